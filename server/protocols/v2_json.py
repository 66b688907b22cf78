"""Open Inference Protocol V2 over HTTP: JSON, with the binary tensor extension ↔ tensors.  Pure, no I/O.

Source: the protocol's REST page and its binary data extension (`Inference-Header-Content-Length`).  `decode` tries one
typed pass over the text; whatever that can't take goes to `_decode_exactly`, which either understands it after all or
says what is wrong.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import orjson

from server.errors import InvalidInput, InvalidRequest, NotSupported, ServingError
from server.protocols import classification, json_values
from server.protocols.parameters import timeout_of
from server.protocols.raw import MAX_TENSORS, checked_shape, raw_from_tensor, tensor_from_raw
from server.tensors import DATATYPES, InferRequest, InferResponse, Tensor, TensorSpec, datatype, element_count

HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a request wants its outputs written: binary or JSON, by name, with a default for the rest."""

    binary: bool = False
    by_name: Mapping[str, bool] | None = None
    # of which outputs the best classes are wanted, and how many
    classes: Mapping[str, int] | None = None

    def is_binary(self, name: str) -> bool:
        return self.binary if self.by_name is None else self.by_name.get(name, self.binary)


_NONE = msgspec.Raw(b"")
_PLAIN = Wanted()
_ALL_BINARY = Wanted(binary=True)


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = _NONE
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


_decode_request = msgspec.json.Decoder(_Request).decode


def decode(model: str, body: bytes, header_length: str | None = None, strict: bool = False) -> tuple[InferRequest, Wanted]:
    """A request and how it wants its answer.  Raises InvalidRequest and its children, NotSupported."""
    text: bytes | memoryview = body
    tail = memoryview(b"")
    if header_length is not None:
        text, tail = _cut(body, header_length)
    try:
        parsed = _decode_request(text)
        inputs = _quick_inputs(parsed, text, tail)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ServingError):
        inputs = None
    if inputs is None:
        return _decode_exactly(model, text, tail, strict)
    parameters = parsed.parameters or {}
    request = InferRequest(model, inputs, id=parsed.id or "", parameters=parameters, timeout=timeout_of(parameters))
    if parsed.outputs:
        request.outputs = [o.name for o in parsed.outputs]
        return request, _wanted(parameters, [(o.name, o.parameters) for o in parsed.outputs])
    return request, _wanted(parameters, ()) if parameters else _PLAIN


def _cut(body: bytes, header_length: str) -> tuple[memoryview, memoryview]:
    try:
        length = int(header_length) if header_length.strip().isdecimal() else -1
    except ValueError:
        length = -1
    if not 0 <= length <= len(body):
        raise InvalidRequest(f"{HEADER_LENGTH} is {header_length[:40]!r}, expected the length of the JSON part: 0 to {len(body)}")
    view = memoryview(body)
    return view[:length], view[length:]


def _quick_inputs(parsed: _Request, text: bytes | memoryview, tail: memoryview) -> dict[str, Tensor] | None:
    """The tensors where all is plain, else None."""
    raw = bytes(text)
    count = len(parsed.inputs)
    if not 0 < count <= MAX_TENSORS or len(parsed.outputs or ()) > MAX_TENSORS or _may_repeat(parsed, raw):
        return None
    inputs: dict[str, Tensor] = {}
    start = 0
    for one in parsed.inputs:
        kind = DATATYPES.get(one.datatype)
        if kind is None:
            return None
        shape = tuple(one.shape)
        if one.data:
            array = json_values.fast_array(one.data, kind)
            if array is None or (array.shape != shape and (array.ndim != 1 or len(shape) > 16)):
                return None
            if array.shape != shape:
                if min(shape, default=0) < 0 or element_count(shape) != array.size:
                    return None
                array = array.reshape(shape)
            inputs[one.name] = Tensor(kind.name, array)
        else:
            size = (one.parameters or {}).get("binary_data_size")
            if type(size) is not int or size < 0 or start + size > len(tail):
                return None
            inputs[one.name] = tensor_from_raw(one.name, kind, checked_shape(one.name, one.shape), tail[start : start + size])
            start += size
    return inputs if start == len(tail) and len(inputs) == count else None


def _may_repeat(parsed: _Request, raw: bytes) -> bool:
    """Whether a key may be there twice in one object, which would go unseen: the parser keeps the last."""
    count, outputs = len(parsed.inputs), parsed.outputs or []
    found = raw.count
    if found(b'"data"') + found(b'"binary_data_size"') != count or found(b'"inputs"') != 1 or json_values.hides_letters(raw):
        return True
    if found(b'"shape"') != count or found(b'"datatype"') != count or found(b'"name"') != count + len(outputs):
        return True
    if found(b'"id"') > 1 or found(b'"outputs"') > 1:
        return True
    of_inputs, of_outputs = [one.parameters for one in parsed.inputs], [one.parameters for one in outputs]
    given = [told for told in (parsed.parameters, *of_inputs, *of_outputs) if told is not None]
    if found(b'"parameters"') != len(given):
        return True
    keys = Counter(key for told in given for key in told)
    return any(found(b'"%b"' % key.encode(errors="replace")) != times for key, times in keys.items())


def _wanted(parameters: Mapping[str, Any], outputs: Sequence[tuple[str, Mapping[str, Any] | None]]) -> Wanted:
    default = parameters.get("binary_data_output", False)
    if not isinstance(default, bool):
        raise InvalidRequest(f"parameter binary_data_output is {default!r}, expected true or false")
    by_name: dict[str, bool] = {}
    classes: dict[str, int] = {}
    for name, told in outputs:
        told = told or {}
        if "shared_memory_region" in told:
            raise NotSupported(f"output {name!r} asks for shared_memory_region, which this server does not offer")
        if classification.PARAMETER in told and (count := classification.count_of(name, told[classification.PARAMETER])):
            classes[name] = count
        if "binary_data" in told:
            if not isinstance(told["binary_data"], bool):
                raise InvalidRequest(f"output {name!r}: binary_data is {told['binary_data']!r}, expected true or false")
            by_name[name] = told["binary_data"]
    if by_name or classes:
        return Wanted(default, by_name or None, classes or None)
    return _ALL_BINARY if default else _PLAIN


def _decode_exactly(model: str, text: bytes | memoryview, tail: memoryview, strict: bool) -> tuple[InferRequest, Wanted]:
    document = json_values.parse(text, "request body" if not tail else "the request's JSON part")
    if not isinstance(document, dict):
        raise InvalidRequest(f"expected a JSON object, got a {json_values.type_name(document)}")
    parameters = _object(document, "parameters", "the request")
    request = InferRequest(model, {}, parameters=parameters, timeout=timeout_of(parameters))
    given_id = document.get("id")
    if given_id is not None and not isinstance(given_id, str):
        raise InvalidRequest(f"id is a {json_values.type_name(given_id)}, expected a string")
    request.id = _text(given_id or "", "id")
    if "inputs" not in document:
        found = ", ".join(repr(key[:40]) for key in list(document)[:8])
        raise InvalidRequest(f"missing 'inputs', found {found or 'nothing'}; a request is an object with a list of inputs")
    start = 0
    for at, one in enumerate(_list(document["inputs"], "inputs")):
        name, tensor, used = _input(one, f"inputs[{at}]", tail[start:], strict)
        if name in request.inputs:
            raise InvalidInput(f"input {name!r} is given twice")
        request.inputs[name] = tensor
        start += used
    if not request.inputs:
        raise InvalidRequest("'inputs' is empty; a request needs at least one")
    if start != len(tail):
        raise InvalidRequest(
            f"{len(tail) - start} bytes of binary data are left over: the inputs' binary_data_size add up to {start}"
        )
    outputs: list[tuple[str, Mapping[str, Any]]] = []
    for at, one in enumerate(_list(document.get("outputs") or [], "outputs")):
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise InvalidRequest(f"outputs[{at}] needs a name (a string)")
        outputs.append((one["name"], _object(one, "parameters", f"outputs[{at}]")))
    if outputs:
        request.outputs = [name for name, _ in outputs]
    return request, _wanted(parameters, outputs)


def _input(one: Any, where: str, tail: memoryview, strict: bool) -> tuple[str, Tensor, int]:
    """(name, tensor, bytes of the binary part that it used)."""
    if not isinstance(one, dict):
        raise InvalidRequest(f"{where} is a {json_values.type_name(one)}, expected an object")
    name = one.get("name")
    if not isinstance(name, str):
        raise InvalidRequest(f"{where} needs a name (a string)")
    _text(name, f"the name of {where}")
    for key in ("datatype", "shape"):
        if key not in one:
            raise InvalidInput(f"input {name!r} has no {key}")
    kind = datatype(one["datatype"])
    if not isinstance(one["shape"], list):
        raise InvalidInput(f"input {name!r}: shape is a {json_values.type_name(one['shape'])}, expected a list of whole numbers")
    shape = checked_shape(name, one["shape"])
    parameters = _object(one, "parameters", where)
    given = [k for k in ("data", "binary_data_size", "shared_memory_region") if k in (one if k == "data" else parameters)]
    if len(given) != 1:
        raise InvalidInput(
            f"input {name!r} needs exactly one of data and binary_data_size, got {' and '.join(given) or 'neither'}"
        )
    if given == ["shared_memory_region"]:
        raise NotSupported(f"input {name!r} is in shared memory, which this server does not offer")
    if given == ["binary_data_size"]:
        size = parameters["binary_data_size"]
        if type(size) is not int or size < 0:
            raise InvalidInput(f"input {name!r}: binary_data_size is {size!r}, expected a whole number of bytes")
        if size > len(tail):
            raise InvalidInput(f"input {name!r}: binary_data_size is {size}, but only {len(tail)} bytes of binary data are left")
        return name, tensor_from_raw(name, kind, shape, tail[:size]), size
    return name, Tensor(kind.name, _data(name, one["data"], kind.name, shape, strict)), 0


def _text(value: str, what: str) -> str:
    """The text, which goes into the answer, so that UTF-8 must be able to express it (JSON's escapes can say more)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} holds half a surrogate pair, which UTF-8 can't express") from None
    return value


def _data(name: str, data: Any, kind: str, shape: tuple[int, ...], strict: bool) -> np.ndarray[Any, Any]:
    if not isinstance(data, list):
        data = [data] if element_count(shape) == 1 and not isinstance(data, dict) else data
        if not isinstance(data, list):
            raise InvalidInput(f"input {name!r}: data is a {json_values.type_name(data)}, expected a list")
    array = json_values.exact_array(data, DATATYPES[kind], f"input {name!r}", strict)
    if array.shape == shape:
        return array
    if array.size != element_count(shape):
        raise InvalidInput(f"input {name!r}: shape {list(shape)} needs {element_count(shape)} values, data has {array.size}")
    if array.ndim > 1 and array.size:
        raise InvalidInput(f"input {name!r}: data is nested as {list(array.shape)}, but shape says {list(shape)}")
    return array.reshape(shape)


def _object(parent: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}: {key} is a {json_values.type_name(value)}, expected an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{what!r} is a {json_values.type_name(value)}, expected a list")
    if len(value) > MAX_TENSORS:
        raise InvalidRequest(f"{what!r} has {len(value)} entries, {MAX_TENSORS} are allowed")
    return value


def encode(response: InferResponse, wanted: Wanted, strict: bool = False) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part where binary tensors follow it.

    Put together from parts that are the same each time.
    """
    if wanted.classes:
        response = classification.classified(response, wanted.classes)
    parts = [_model_members(response.model, response.version)]
    if response.id:
        parts += b',"id":', orjson.dumps(response.id)
    parts.append(b',"outputs":[')
    tail = []
    for name, tensor in response.outputs.items():
        parts.append(_output_members(name, tensor.datatype, tensor.array.shape))
        if wanted.is_binary(name):
            raw = raw_from_tensor(name, tensor)
            parts.append(b'"parameters":{"binary_data_size":%d}},' % len(raw))
            tail.append(raw)
        else:
            parts += b'"data":', json_values.flat_text(tensor, name, strict), b"},"
    # the last one's comma
    parts[-1] = parts[-1][:-1]
    parts.append(b"]}")
    text = b"".join(parts)
    if not tail:
        return text, None
    return b"".join([text, *tail]), len(text)


@lru_cache(maxsize=256)
def _model_members(model: str, version: str) -> bytes:
    """An answer's text up to its id."""
    return orjson.dumps({"model_name": model, **({"model_version": version} if version else {})})[:-1]


@lru_cache(maxsize=1024)
def _output_members(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """An output's text up to its numbers."""
    return orjson.dumps({"name": name, "datatype": datatype, "shape": shape})[:-1] + b","


def metadata(
    name: str,
    versions: Sequence[str],
    platform: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    properties: Mapping[str, str],
) -> dict[str, Any]:
    """The model metadata object ("Model Metadata Response JSON Object")."""
    document: dict[str, Any] = {"name": name}
    if any(versions):
        document["versions"] = list(versions)
    document |= {"platform": platform, "inputs": [i.as_json() for i in inputs], "outputs": [o.as_json() for o in outputs]}
    return {**document, "properties": dict(properties)}
