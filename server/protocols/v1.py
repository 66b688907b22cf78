"""KServe's V1 JSON (`instances` → `predictions`), which is TF Serving's predict too (`inputs` → `outputs`) ↔ tensors.

V1 names no datatypes, so decoding asks the model's signatures.  Row form: each instance is one row, a value where the
model has one input, else an object by input name (a list is read by position, as a table's row).  Column form:
`inputs` holds each input whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from server.errors import InvalidInput, InvalidRequest, ServingError
from server.protocols import json_values
from server.tensors import DATATYPES, Array, InferRequest, InferResponse, Signature, Tensor, TensorSpec, did_you_mean

# (names of the inputs that a request gives, or None where it names none; the signature it asks for) -> the signature
Choose = Callable[[Sequence[str] | None, object], Signature]


@dataclass(frozen=True, slots=True)
class Form:
    """The form a request came in is the form of its answer."""

    columns: bool = False


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    instances: msgspec.Raw


_decode_request = msgspec.json.Decoder(_Request).decode
_ROWS, _COLUMNS = Form(), Form(columns=True)


def decode(model: str, body: bytes, choose: Choose, strict: bool = False) -> tuple[InferRequest, Form]:
    """A request and the form for its answer.  Raises InvalidRequest, InvalidInput."""
    try:
        request = _quick(model, body, choose)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ServingError):
        request = None
    return (request, _ROWS) if request is not None else _decode_exactly(model, body, choose, strict)


def _quick(model: str, body: bytes, choose: Choose) -> InferRequest | None:
    """Rows of plain values for a model of one input."""
    if body.count(b'"instances"') != 1 or json_values.hides_letters(body):
        return None
    raw = _decode_request(body).instances
    signature = choose(None, None)
    if len(signature.inputs) != 1:
        return None
    spec = signature.inputs[0]
    array = json_values.fast_array(raw, DATATYPES[spec.datatype])
    if array is None or not array.size:
        return None
    return InferRequest(model, {spec.name: Tensor(spec.datatype, _ranked(array, spec))})


def _decode_exactly(model: str, body: bytes, choose: Choose, strict: bool) -> tuple[InferRequest, Form]:
    document = json_values.parse(body)
    if not isinstance(document, dict):
        raise InvalidRequest(f"expected a JSON object, got a {json_values.type_name(document)}")
    given = [key for key in ("instances", "inputs") if key in document]
    if len(given) != 1:
        hint = "" if given else did_you_mean(next(iter(document), ""), ("instances", "inputs"))
        raise InvalidRequest(
            f"expected one of 'instances' and 'inputs', got {'both' if given else 'neither'}{hint}"
            + ("" if given else " (Missing 'inputs' or 'instances' key)")
        )
    key, value = given[0], document[given[0]]
    named = document.get("signature_name")
    if named == "":  # as protobuf leaves out a text that is empty
        named = None
    columns = key == "inputs"
    values = _columns(value, choose, named) if columns else _rows(value, choose, named)
    signature = choose(list(values), named)
    request = InferRequest(model, {n: _tensor(signature, n, v, columns, strict) for n, v in values.items()})
    if named is not None:
        request.parameters = {"signature_name": named}
    request.outputs = _filter(document.get("output_filter"))
    return request, _COLUMNS if columns else _ROWS


def _filter(names: Any) -> list[str] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise InvalidRequest("output_filter must be a list of output names")
    return names or None


def _is_row(instance: Any) -> bool:
    """An object that names inputs; {"b64": "…"} is one binary value."""
    return isinstance(instance, dict) and not (set(instance) == {"b64"} and isinstance(instance["b64"], str))


def _rows(instances: Any, choose: Choose, named: object) -> dict[str, Any]:
    """Values by input name, each a list of one value a row."""
    if not isinstance(instances, list):
        raise InvalidRequest(f"instances is a {json_values.type_name(instances)}, expected a list with one entry a row")
    if not instances:
        raise InvalidRequest("instances is empty; a request needs at least one row")
    if any(_is_row(i) for i in instances):
        return _by_name(instances)
    signature = choose(None, named)
    if len(signature.inputs) <= 1:
        return {_only_input(signature, "instances"): instances}
    names = signature.input_names
    for at, row in enumerate(instances):
        if not isinstance(row, list):
            raise InvalidInput(f"instances[{at}] is a {json_values.type_name(row)}, expected an object with {', '.join(names)}")
        if len(row) != len(names):
            raise InvalidInput(f"instances[{at}] has {len(row)} values, the model has {len(names)} inputs: {', '.join(names)}")
    return {name: [row[i] for row in instances] for i, name in enumerate(names)}


def _by_name(instances: list[Any]) -> dict[str, Any]:
    names: dict[str, None] = {}
    for at, row in enumerate(instances):
        if not _is_row(row):
            raise InvalidInput(f"instances[{at}] is a {json_values.type_name(row)}, but other rows are objects by input name")
        names.update(dict.fromkeys(row))
    for at, row in enumerate(instances):
        missing = [n for n in names if n not in row]
        if missing:
            raise InvalidInput(f"instances[{at}] has no {', '.join(map(repr, missing))}, which other rows have")
    return {name: [row[name] for row in instances] for name in names}


def _columns(value: Any, choose: Choose, named: object) -> dict[str, Any]:
    if _is_row(value):
        return dict(value)
    signature = choose(None, named)
    if len(signature.inputs) > 1:
        wanted = ", ".join(signature.input_names)
        raise InvalidInput(f"inputs is a {json_values.type_name(value)}, expected an object with the inputs {wanted}")
    return {_only_input(signature, "inputs"): value}


def _only_input(signature: Signature, key: str) -> str:
    """The name of the one input; a model that declares none gets the values under the request's own word for them."""
    return signature.inputs[0].name if signature.inputs else key


def _tensor(signature: Signature, name: str, value: Any, columns: bool, strict: bool) -> Tensor:
    spec = signature.spec(name)
    if not signature.inputs:
        kind = json_values.natural_datatype(value)
        return Tensor(kind, json_values.exact_array(value, DATATYPES[kind], name, strict))
    if spec is None:
        # the signature's own check says so, with a suggestion; any array will do until then
        return Tensor("BYTES", np.empty(0, object))
    told = "BOOL" if _is_flags(spec, value) else spec.datatype
    array = json_values.exact_array(value, DATATYPES[told], f"{'inputs' if columns else 'instances'} ({name})", strict)
    return Tensor(told, _ranked(array, spec))


def _is_flags(spec: TensorSpec, value: Any) -> bool:
    """Whether a table's column of numbers is given as true and false, which the signature takes for 1 and 0."""
    numbers = spec.column and DATATYPES[spec.datatype].dtype.kind in "iuf"
    return numbers and isinstance(value, list) and bool(value) and all(isinstance(v, bool) for v in value)


def _ranked(array: Array, spec: TensorSpec) -> Array:
    """[N] for a model of [N,1], where a caller wrote one number a row."""
    if array.ndim == 1 and len(spec.shape) == 2 and spec.shape[1] == 1:
        return array.reshape(-1, 1)
    return array


def encode(response: InferResponse, form: Form, strict: bool = False) -> bytes:
    """`predictions`, one entry a row (an object where the model has several outputs), or `outputs`, each whole."""
    values: dict[str, Any] = {}
    for name, tensor in response.outputs.items():
        values[name] = _jsonable(name, tensor)
    arrays = [v for v in values.values() if isinstance(v, np.ndarray)]
    only = next(iter(values.values())) if len(values) == 1 else None
    if form.columns:
        return json_values.dump({"outputs": values if len(values) != 1 else only}, arrays, strict)
    if len(values) == 1:
        return json_values.dump({"predictions": only}, arrays, strict)
    return json_values.dump({"predictions": _as_rows(values)}, arrays, strict)


def _jsonable(name: str, tensor: Tensor) -> Any:
    if tensor.datatype == "BYTES" and name.endswith("_bytes"):
        return _base64(tensor.array)
    return json_values.jsonable(tensor, name, flat=False)


def _base64(array: Array) -> Any:
    flat = np.empty(array.size, object)
    flat[:] = [json_values.b64(v) for v in array.ravel().tolist()]
    return flat.reshape(array.shape).tolist()


def _as_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    lengths = {name: len(v) if isinstance(v, list | np.ndarray) else None for name, v in values.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise InvalidRequest(f"the outputs have no common rows ({lengths}); use 'inputs' instead of 'instances'")
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
