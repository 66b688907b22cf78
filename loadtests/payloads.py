"""Requests made from what a model says of its inputs: the same ones for every run, by a seed.  Pure, but for what asks.

    signature = read_signature(metadata, example)
    body, headers = v2_json(signature, rows(signature, count=1, seed=7))

`metadata` is the answer to GET /v2/models/NAME (Open Inference), `example` a V2 request that the model accepts, such as the
one in Serveplane's /openapi.json; without it texts are words that no model was trained on.
"""

import json
import struct
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}
FREE = 1
"""How long an axis is that the model leaves open, other than the first, which is the rows."""
ASK_SECONDS = 30.0
Headers = dict[str, str]


class Unusable(Exception):
    """No request can be made; `str(error)` says why, and what to do."""


@dataclass(frozen=True)
class Input:
    name: str
    datatype: str
    shape: tuple[int, ...]
    """Without the rows; every axis has a length."""
    samples: tuple[Any, ...] = ()
    """Values that the model is known to take, flat."""


@dataclass(frozen=True)
class Signature:
    model: str
    inputs: tuple[Input, ...]


def read_headers(lines: Sequence[str]) -> Headers:
    """From "NAME: VALUE" each."""
    return {name.strip(): value.strip() for name, value in (line.split(":", 1) for line in lines)}


def ask_signature(url: str, model: str, headers: Mapping[str, str], example: str | None) -> Signature:
    """From the service itself; `example` names a file.  Unusable where the service does not say, or where nobody answers."""
    address = f"{url.rstrip('/')}/v2/models/{model}"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=dict(headers)), timeout=ASK_SECONDS) as answer:
            metadata = json.loads(answer.read())
        return read_signature(metadata, json.loads(Path(example).read_text()) if example else None)
    except (OSError, ValueError, KeyError) as error:
        raise Unusable(f"{address} does not say what the model takes: {error}") from None


def speaks_tfs(url: str, model: str, headers: Mapping[str, str]) -> bool:
    """Whether the service has TensorFlow Serving's metadata of the model, which other servers of V1 have not."""
    address = f"{url.rstrip('/')}/v1/models/{model}/metadata"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=dict(headers)), timeout=ASK_SECONDS) as answer:
            return "metadata" in json.loads(answer.read())
    except (OSError, ValueError):
        return False


def read_signature(metadata: Mapping[str, Any], example: Mapping[str, Any] | None = None) -> Signature:
    """Unusable where an input has a datatype that is none of Open Inference's, or no rows."""
    known = {one["name"]: one.get("data", ()) for one in (example or {}).get("inputs", ())}
    inputs = []
    for one in metadata["inputs"]:
        name, datatype, shape = one["name"], one["datatype"], one["shape"]
        if datatype not in DTYPES:
            raise Unusable(f"input {name!r} has the datatype {datatype!r}; give a request of your own with --data")
        rest = tuple(FREE if size < 1 else int(size) for size in shape[1:])
        inputs.append(Input(name, datatype, rest, tuple(known.get(name, ()))))
    if not inputs:
        raise Unusable("the model says nothing of its inputs; give a request of your own with --data")
    return Signature(metadata["name"], tuple(inputs))


def rows(signature: Signature, count: int, seed: int) -> dict[str, np.ndarray]:
    """One array for each input, of `count` rows; integers and texts as the example has them, else small."""
    random = np.random.default_rng(seed)
    return {one.name: _values(one, (count, *one.shape), random) for one in signature.inputs}


def _values(one: Input, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    dtype = DTYPES[one.datatype]
    if one.datatype == "BYTES":
        found = [str(value) for value in one.samples] or ["alpha", "beta", "gamma"]
        return random.choice(np.array(found, dtype=object), shape)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        found = [int(value) for value in one.samples] or list(range(10))
        return random.choice(np.array(found), shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def v1_json(signature: Signature, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, Headers]:
    """KServe's V1 and TensorFlow Serving's row format: a list for one input, an object by name for several."""
    if len(arrays) == 1:
        (array,) = arrays.values()
        instances = array.tolist()
    else:
        lists = {name: array.tolist() for name, array in arrays.items()}
        # a column of one value a row is that value
        flat = {name: [one[0] if arrays[name].shape[1:] == (1,) else one for one in rows] for name, rows in lists.items()}
        instances = [dict(zip(flat, row, strict=True)) for row in zip(*flat.values(), strict=True)]
    return json.dumps({"instances": instances}).encode(), {"Content-Type": "application/json"}


def v2_json(signature: Signature, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, Headers]:
    """Open Inference V2, numbers as JSON."""
    inputs = [_head(one, arrays[one.name]) | {"data": arrays[one.name].ravel().tolist()} for one in signature.inputs]
    return json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"}


def v2_binary(signature: Signature, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, Headers]:
    """Open Inference V2 with the binary tensor extension, outputs as binary too."""
    parts = [raw(arrays[one.name]) for one in signature.inputs]
    inputs = [
        _head(one, arrays[one.name]) | {"parameters": {"binary_data_size": len(part)}}
        for one, part in zip(signature.inputs, parts, strict=True)
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return b"".join([head, *parts]), headers


def _head(one: Input, array: np.ndarray) -> dict[str, Any]:
    return {"name": one.name, "datatype": one.datatype, "shape": list(array.shape)}


def raw(array: np.ndarray) -> bytes:
    """Row-major and little-endian; texts with their length in four bytes before each."""
    if array.dtype != object:
        return np.ascontiguousarray(array).tobytes()
    texts = [str(value).encode() for value in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def tfs_json(signature: Signature, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, Headers]:
    """TensorFlow Serving's column format: each input whole."""
    return json.dumps({"inputs": {name: array.tolist() for name, array in arrays.items()}}).encode(), {
        "Content-Type": "application/json"
    }


BODIES = {"v1": v1_json, "v2": v2_json, "v2-binary": v2_binary, "tfs": tfs_json}
"""The HTTP protocols by name; V2's gRPC message is `users.py`'s, because it takes generated code."""


def path(protocol: str, model: str) -> str:
    return f"/v1/models/{model}:predict" if protocol in ("v1", "tfs") else f"/v2/models/{model}/infer"


TENSORFLOW = {"FP32": 1, "FP64": 2, "INT32": 3, "UINT8": 4, "INT16": 5, "INT8": 6, "BYTES": 7, "INT64": 9, "BOOL": 10}
TENSORFLOW |= {"UINT16": 17, "FP16": 19, "UINT32": 22, "UINT64": 23}
"""TensorFlow's numbers of the datatypes."""


def tfs_message(signature: Signature, arrays: Mapping[str, np.ndarray]) -> bytes:
    """A tensorflow.serving.PredictRequest, written by hand: its generated code comes with TensorFlow, which is 600 MB."""
    inputs = [
        _field(2, _field(1, one.name.encode()) + _field(2, _tensor(one.datatype, arrays[one.name]))) for one in signature.inputs
    ]
    return _field(1, _field(1, signature.model.encode())) + b"".join(inputs)


def _tensor(datatype: str, array: np.ndarray) -> bytes:
    shape = b"".join(_field(2, b"\x08" + _varint(size)) for size in array.shape)
    head = b"\x08" + _varint(TENSORFLOW[datatype]) + _field(2, shape)
    if array.dtype != object:
        return head + _field(4, np.ascontiguousarray(array).tobytes())
    return head + b"".join(_field(8, str(value).encode()) for value in array.ravel())


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf's with its length before it."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes((low | 0x80,)) + _varint(rest) if rest else bytes((low,))


def pool(signature: Signature, count: int, batch: int, seed: int) -> Sequence[dict[str, np.ndarray]]:
    """`count` different requests of `batch` rows each."""
    return [rows(signature, batch, seed + number) for number in range(count)]
