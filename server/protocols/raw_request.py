"""Triton's raw binary request: the whole body is the one input of a model, and there is no JSON that says so.  Pure.

One row, every output binary.
"""

import numpy as np

from server.errors import InvalidInput, InvalidRequest
from server.protocols.raw import tensor_from_raw
from server.protocols.v2_json import Wanted
from server.tensors import DATATYPES, InferRequest, Signature, Tensor, TensorSpec, element_count

_ALL_BINARY = Wanted(binary=True)


def is_raw(json_length: str | None) -> bool:
    """Whether Inference-Header-Content-Length says that the body has no JSON part."""
    return bool(json_length) and not str(json_length).strip("0")


def decode(model: str, body: bytes, signature: Signature) -> tuple[InferRequest, Wanted]:
    """The request, and how it wants its answer.  InvalidRequest where the model takes none of this kind."""
    if len(signature.inputs) != 1:
        names = ", ".join(s.name for s in signature.inputs) or "none that is declared"
        raise InvalidRequest(f"a request without JSON needs a model with exactly one input, and {model!r} has {names}")
    (spec,) = signature.inputs
    return InferRequest(model, {spec.name: _tensor(spec, body, signature.batched)}), _ALL_BINARY


def _tensor(spec: TensorSpec, body: bytes, batched: bool) -> Tensor:
    dims = spec.shape[1:] if batched else spec.shape
    free = dims.count(-1)
    if free > 1 or spec.unknown_rank:
        raise InvalidRequest(
            f"input {spec.name!r} has shape {list(spec.shape)}, which the size of a body does not tell; send JSON with a shape"
        )
    known = element_count([d for d in dims if d != -1])
    rows = (1,) if batched else ()
    kind = DATATYPES[spec.datatype]
    if not kind.itemsize:
        if known != 1:
            raise InvalidRequest(f"input {spec.name!r} is {known} texts, and a body is one; send JSON with their lengths")
        text = np.empty((*rows, *(1 for _ in dims)), object)
        text.ravel()[0] = body
        return Tensor(spec.datatype, text)
    size = known * kind.itemsize
    if free and (not size or len(body) % size):
        raise InvalidInput(f"input {spec.name!r} of shape {list(spec.shape)} takes {size} bytes a step, and {len(body)} came")
    shape = (*rows, *(len(body) // size if d == -1 else d for d in dims))
    return tensor_from_raw(spec.name, kind, shape, body)
