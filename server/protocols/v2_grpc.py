"""Open Inference over gRPC: its protobuf messages ↔ the one shape inside.

Pure functions; no I/O, and no gRPC either: calls, status codes and deadlines belong to the edge.  Answers to inference
calls are put together here, field by field, since most of their bytes are the same each time.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from server.errors import InvalidInput, InvalidRequest, NotSupported, ServingError
from server.protocols import _pb, classification
from server.protocols.parameters import timeout_of
from server.protocols.raw import MAX_TENSORS, checked_shape, raw_from_tensor, tensor_from_raw
from server.protocols.varints import varint
from server.tensors import Array, Datatype, InferRequest, InferResponse, Tensor, TensorSpec, datatype, element_count

_InferRequest = _pb.message("ModelInferRequest")
_InferResponse = _pb.message("ModelInferResponse")
_StreamResponse = _pb.message("ModelStreamInferResponse")
_ModelMetadata = _pb.message("ModelMetadataResponse")
_ServerMetadata = _pb.message("ServerMetadataResponse")
_RepositoryIndex = _pb.message("RepositoryIndexResponse")


class _Field(NamedTuple):
    """Where typed contents of one datatype are; `limits` where the field is wider than the datatype.

    `fixed`: protobuf packs the field's elements just as the array has them, which beats making objects of them.
    """

    name: str
    limits: tuple[int, int] | None = None
    fixed: bool = False


_FIELDS = {
    "BOOL": _Field("bool_contents", fixed=True),
    "UINT8": _Field("uint_contents", (0, 2**8 - 1)),
    "UINT16": _Field("uint_contents", (0, 2**16 - 1)),
    "UINT32": _Field("uint_contents"),
    "UINT64": _Field("uint64_contents"),
    "INT8": _Field("int_contents", (-(2**7), 2**7 - 1)),
    "INT16": _Field("int_contents", (-(2**15), 2**15 - 1)),
    "INT32": _Field("int_contents"),
    "INT64": _Field("int64_contents"),
    "FP32": _Field("fp32_contents", fixed=True),
    "FP64": _Field("fp64_contents", fixed=True),
    "BYTES": _Field("bytes_contents"),
}


# ModelInferResponse.id and .raw_output_contents: field number and "bytes with a length"
_ID, _RAW = b"\x1a", b"\x32"
# ModelStreamInferResponse.infer_response, and what is in each: fields that are set twice, or in any order, are one message
_ANSWER = b"\x12"
_FINAL: bytes = _InferResponse(parameters={"triton_final_response": {"bool_param": True}}).SerializeToString()


def parse(sent: bytes) -> Any:
    """The ModelInferRequest in these bytes; InvalidRequest where they are none."""
    try:
        return _InferRequest.FromString(sent)
    except DecodeError:
        raise InvalidRequest("the request is not a valid inference.ModelInferRequest") from None


def decode(message: Any) -> InferRequest:
    """A ModelInferRequest as arrays; raw contents are not copied.

    InvalidInput names the input that is malformed, InvalidRequest the parameter; NotSupported for what is not offered.
    """
    sent, raw = message.inputs[:], message.raw_input_contents[:]
    if not sent:
        raise InvalidInput("the request has no inputs")
    if len(sent) > MAX_TENSORS or len(message.outputs) > MAX_TENSORS:
        raise InvalidInput(
            f"the request has {len(sent)} inputs and asks for {len(message.outputs)} outputs, {MAX_TENSORS} of each are allowed"
        )
    if raw and len(raw) != len(sent):
        raise _raw_count_fault(message)
    inputs: dict[str, Tensor] = {}
    for at, tensor in enumerate(sent):
        name = tensor.name
        if name in inputs:
            raise InvalidInput(f"input {name!r} is given twice")
        inputs[name] = _input(name, tensor, raw[at] if raw else None)
    request = InferRequest(message.model_name, inputs, message.model_version, message.id)
    if message.outputs:
        classes: dict[str, int] = {}
        request.outputs = [_requested(output, classes) for output in message.outputs]
        request.classes = classes or None
    if message.parameters:
        request.parameters = _parameters(message.parameters)
        request.timeout = timeout_of(request.parameters)
    return request


def encode(response: InferResponse, classes: Mapping[str, int] | None = None) -> bytes:
    """A ModelInferResponse, always with raw contents: common clients read no other numbers.

    Of the outputs in `classes` so many of the best classes.
    """
    if classes:
        response = classification.classified(response, classes)
    parts = [_model_fields(response.model, response.version)]
    if response.id:
        text = response.id.encode()
        parts += _ID, varint(len(text)), text
    raws: list[bytes] = []
    for name, tensor in response.outputs.items():
        parts.append(_output_field(name, tensor.datatype, tensor.array.shape))
        raw = raw_from_tensor(name, tensor)
        raws += _RAW, varint(len(raw)), raw
    return b"".join(parts + raws)


def streamed(encoded: bytes) -> bytes:
    """A ModelStreamInferResponse with an encoded answer, marked as the only one of its request."""
    return b"".join((_ANSWER, varint(len(encoded) + len(_FINAL)), encoded, _FINAL))


def streamed_error(text: str, sent: bytes) -> bytes:
    """A ModelStreamInferResponse that says what is the matter with a request, and with which one if it has an id."""
    try:
        request_id = parse(sent).id
    except InvalidRequest:
        request_id = ""
    answer: bytes = _StreamResponse(error_message=text).SerializeToString()
    return answer + streamed(_InferResponse(id=request_id).SerializeToString())


@lru_cache(maxsize=256)
def _model_fields(model: str, version: str) -> bytes:
    fields: bytes = _InferResponse(model_name=model, model_version=version).SerializeToString()
    return fields


@lru_cache(maxsize=1024)
def _output_field(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    message = _InferResponse()
    message.outputs.add(name=name, datatype=datatype, shape=shape)
    field: bytes = message.SerializeToString()
    return field


def server_metadata(name: str, version: str, extensions: Sequence[str]) -> Any:
    return _ServerMetadata(name=name, version=version, extensions=extensions)


def model_metadata(
    name: str,
    versions: Sequence[str],
    platform: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    properties: Mapping[str, str],
) -> Any:
    return _ModelMetadata(
        name=name,
        versions=versions,
        platform=platform,
        inputs=[spec.as_json() for spec in inputs],
        outputs=[spec.as_json() for spec in outputs],
        properties=properties,
    )


def repository_index(entries: Iterable[tuple[str, str, str, str]]) -> Any:
    """The RepositoryIndexResponse of (name, version, state, reason) entries, in their order."""
    message = _RepositoryIndex()
    for name, version, state, reason in entries:
        message.models.add(name=name, version=version, state=state, reason=reason)
    return message


def _input(name: str, tensor: Any, raw: bytes | None) -> Tensor:
    if tensor.parameters:
        _reject_shared_memory(f"input {name!r}", tensor)
    try:
        kind = datatype(tensor.datatype)
    except InvalidInput as error:
        raise InvalidInput(f"input {name!r}: {error}") from None
    shape = checked_shape(name, tensor.shape[:])
    if raw is None:
        return Tensor(kind.name, _typed(name, kind, shape, tensor.contents))
    if tensor.HasField("contents") and tensor.contents.ListFields():
        raise _both(name)
    return tensor_from_raw(name, kind, shape, raw)


def _typed(name: str, kind: Datatype, shape: tuple[int, ...], contents: Any) -> Array:
    field = _FIELDS.get(kind.name)
    if field is None:
        raise InvalidInput(f"input {name!r} is {kind.name}, which has no typed contents; use raw_input_contents")
    count = element_count(shape)
    if field.fixed and count:
        array = _packed(contents, field, kind, count, shape)
        if array is not None:
            return array
    found = contents.ListFields()
    if not found and not count:
        return np.empty(shape, kind.dtype)
    if len(found) != 1 or found[0][0].name != field.name:
        raise InvalidInput(_field_fault(name, kind, field, [descriptor.name for descriptor, _ in found]))
    values = found[0][1]
    if len(values) != count:
        raise InvalidInput(f"input {name!r} of shape {list(shape)} needs {count} values, {field.name} has {len(values)}")
    elements = values[:]
    if field.limits is not None and count:
        _check_range(name, kind, field.limits, elements)
    return np.array(elements, kind.dtype).reshape(shape)


def _packed(contents: Any, field: _Field, kind: Datatype, count: int, shape: tuple[int, ...]) -> Array | None:
    """The array as protobuf has it packed; None where anything but that many elements of the field is there."""
    size = count * kind.itemsize
    tag_and_length = 1 + -(-size.bit_length() // 7)
    if len(getattr(contents, field.name)) != count or contents.ByteSize() != tag_and_length + size:
        return None
    # a copy, because behind the tag and the length the elements are not aligned
    return np.ndarray(shape, kind.dtype, contents.SerializeToString()[tag_and_length:])


def _check_range(name: str, kind: Datatype, limits: tuple[int, int], elements: list[int]) -> None:
    low, high = limits
    if low <= min(elements) and max(elements) <= high:
        return
    at = next(i for i, value in enumerate(elements) if not low <= value <= high)
    raise InvalidInput(f"input {name!r}: element {at} is {elements[at]}, {kind.name} goes from {low} to {high}")


def _field_fault(name: str, kind: Datatype, field: _Field, found: list[str]) -> str:
    if not found:
        return f"input {name!r} has no data: neither {field.name} nor raw_input_contents is set"
    return f"input {name!r} is {kind.name} and needs {field.name} only, but the request sets {', '.join(found)}"


def _both(name: str) -> InvalidInput:
    return InvalidInput(f"input {name!r} has contents although the request uses raw_input_contents; send one of the two")


def _raw_count_fault(message: Any) -> ServingError:
    for tensor in message.inputs:
        _reject_shared_memory(f"input {tensor.name!r}", tensor)
        if tensor.contents.ListFields():
            return _both(tensor.name)
    names = ", ".join(tensor.name for tensor in message.inputs)
    return InvalidInput(
        f"raw_input_contents has {len(message.raw_input_contents)} entries"
        f" for {len(message.inputs)} inputs ({names}); send one for each"
    )


def _reject_shared_memory(what: str, tensor: Any) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise NotSupported(f"{what} is in shared memory, which this server does not offer; send it in the message")


def _requested(output: Any, classes: dict[str, int]) -> str:
    """The output's name; where its best classes are wanted, their number goes to `classes`."""
    name: str = output.name
    if output.parameters:
        _reject_shared_memory(f"requested output {name!r}", output)
        if classification.PARAMETER in output.parameters:
            value = _parameters(output.parameters)[classification.PARAMETER]
            if count := classification.count_of(name, value):
                classes[name] = count
    return name


def _parameters(sent: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, parameter in sent.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter {key!r} has no value; set one of bool, int64, uint64, double or string")
        values[key] = getattr(parameter, choice)
    return values
