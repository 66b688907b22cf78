"""Requests that a model takes, made from its signature: for the docs page, for the terminal, for `serve check`."""

import shlex
from typing import Any

import orjson

from server.models import ModelHandle
from server.protocols import json_values
from server.tensors import Signature, Tensor


def _sample(handle: ModelHandle, rows: int, signature: Signature) -> dict[str, Tensor]:
    arrays = handle.runtime.sample(signature, rows)
    return {s.name: Tensor(s.datatype, arrays[s.name]) for s in signature.inputs if s.name in arrays}


def v2_request(handle: ModelHandle, rows: int = 1, signature: Signature | None = None) -> dict[str, Any]:
    """A V2 request of made-up rows, as what JSON would parse to; without a signature, of the default one."""
    inputs = []
    for name, tensor in _sample(handle, rows, signature or handle.signature).items():
        data = json_values.jsonable(tensor, name, flat=True)
        flat = data if isinstance(data, list) else _shortest(data)
        inputs.append({"name": name, "shape": list(tensor.array.shape), "datatype": tensor.datatype, "data": flat})
    return {"inputs": inputs}


def v1_request(handle: ModelHandle, rows: int = 1) -> dict[str, Any]:
    """The same as a V1 request: `instances` where every input has the rows, else `inputs`."""
    values = {}
    for name, tensor in _sample(handle, rows, handle.signature).items():
        value = json_values.jsonable(tensor, name, flat=False)
        values[name] = value if isinstance(value, list) else _shortest(value)
    if not handle.signature.batched:
        return {"inputs": values if len(values) != 1 else next(iter(values.values()))}
    if len(values) == 1:
        return {"instances": next(iter(values.values()))}
    return {"instances": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}


def _shortest(array: Any) -> Any:
    """Numbers as they are best typed: 0.1, not 0.10000000149011612."""
    return orjson.loads(orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY))


def curl(handle: ModelHandle, address: str) -> str:
    """A command that answers when pasted."""
    body = orjson.dumps(v2_request(handle)).decode()
    return f"curl -s {address}/v2/models/{handle.name}/infer -d {shlex.quote(body)}"
