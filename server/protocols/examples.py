"""tf.Examples ↔ a signature's inputs: `classify` and `regress` send rows as features by name.

An example is {feature: values}, the values numbers or bytes.  A feature is a column of a table or a model's one tensor; a
SavedModel that reads whole examples itself gets them whole.  A feature that only some examples have is missing in the others.
"""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from server.errors import InvalidInput, InvalidRequest
from server.protocols import _pb, json_values
from server.protocols.tfs import CLASSIFY, REGRESS
from server.protocols.v1 import Choose
from server.tensors import DATATYPES, Array, Signature, Tensor, TensorSpec

_Example = _pb.message("Example", "tensorflow")
Example = dict[str, list[Any]]


def from_input(message: Any) -> list[Example]:
    """The examples of a tensorflow.serving.Input, each with the features of the context; InvalidRequest where there are none."""
    kind = message.WhichOneof("kind")
    sent = getattr(message, kind).examples if kind else ()
    if not sent:
        raise InvalidRequest("the input has no examples (Input is empty)")
    context = _features(message.example_list_with_context.context) if kind == "example_list_with_context" else {}
    return [_joined(context, _features(one)) for one in sent]


def _features(message: Any) -> Example:
    features = message.features.feature
    kinds = {name: (feature, feature.WhichOneof("kind")) for name, feature in features.items()}
    return {name: getattr(feature, kind).value[:] if kind else [] for name, (feature, kind) in kinds.items()}


def from_json(document: Mapping[str, Any]) -> list[Example]:
    """The same of a REST body's `examples` and `context`."""
    sent = document.get("examples")
    if not isinstance(sent, list):
        found = "nothing" if "examples" not in document else f"a {json_values.type_name(sent)}"
        raise InvalidRequest(f"expected 'examples', a list of objects by feature, got {found}")
    if not sent:
        raise InvalidRequest("examples is empty; a request needs at least one (Input is empty)")
    context = _read(document.get("context", {}), "context")
    return [_joined(context, _read(one, f"examples[{at}]")) for at, one in enumerate(sent)]


def _joined(context: Example, example: Example) -> Example:
    return {**context, **example} if context else example


def _read(sent: Any, where: str) -> Example:
    if not isinstance(sent, dict):
        raise InvalidRequest(f"{where} is a {json_values.type_name(sent)}, expected an object of features by name")
    return {name: _listed(value, f"{where}, feature {name!r}") for name, value in sent.items()}


def _listed(value: Any, where: str) -> list[Any]:
    return [_element(v, where) for v in (value if isinstance(value, list) else [value])]


def _element(value: Any, where: str) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
            return base64.b64decode(value["b64"], validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise InvalidInput(f"{where}: {error}") from None
    found = json_values.type_name(value)
    raise InvalidInput(f'{where} holds a {found}, expected numbers, strings or {{"b64": …}}; leave out what is missing')


def inputs_of(examples: Sequence[Example], choose: Choose, named: object) -> dict[str, Tensor]:
    """The inputs of the signature that `choose` finds for these features; InvalidInput names what does not fit one."""
    features = dict.fromkeys(name for example in examples for name in example)
    signature = choose(None, named)
    if not _reads_examples(signature, features):
        signature = choose(list(features), named)
    if _reads_examples(signature, features):
        whole = np.empty(len(examples), object)
        whole[:] = [serialized(example) for example in examples]
        return {signature.inputs[0].name: Tensor("BYTES", whole)}
    return {name: _input(signature.spec(name), name, [example.get(name, []) for example in examples]) for name in features}


def _reads_examples(signature: Signature, features: Mapping[str, None]) -> bool:
    """Whether a signature of a SavedModel takes serialised examples: its one input says so, or what it is for."""
    only = signature.inputs[0] if len(signature.inputs) == 1 and signature.method else None
    if only is None or only.datatype != "BYTES" or len(only.shape) != 1 or any(signature.spec(name) for name in features):
        return False
    return signature.method in (CLASSIFY, REGRESS) or "example" in only.name


def serialized(example: Example) -> bytes:
    """A tf.Example's bytes."""
    message = _Example()
    for name, values in example.items():
        feature = message.features.feature[name]
        if all(isinstance(v, bytes) for v in values):
            feature.bytes_list.value.extend(values)
        elif any(isinstance(v, bytes) for v in values):
            raise InvalidInput(f"feature {name!r} mixes numbers and strings")
        elif all(isinstance(v, int) for v in values):
            feature.int64_list.value.extend(_within_int64(name, values))
        else:
            feature.float_list.value.extend(values)
    sent: bytes = message.SerializeToString(deterministic=True)
    return sent


def _within_int64(name: str, values: list[int]) -> list[int]:
    if not all(-(2**63) <= v < 2**63 for v in values):
        raise InvalidInput(f"feature {name!r} holds an integer that 64 bits can't")
    return values


def _input(spec: TensorSpec | None, name: str, rows: list[list[Any]]) -> Tensor:
    """One value of each row for [N] and [N,1], as many as there have to be for [N,k]."""
    if spec is None:
        # the signature's own check says that there is none, with a suggestion; or it takes whatever comes
        return _undeclared(rows)
    rest = (1,) if spec.column else spec.shape[1:]
    width = math.prod(rest) if -1 not in rest and not spec.unknown_rank else len(rows[0])
    for at, row in enumerate(rows):
        if not row and spec.column:
            row.append(None)
        if len(row) != width:
            raise InvalidInput(f"feature {name!r} has {len(row)} values in example {at}, the model expects {width}")
    array = _elements(spec, name, [value for row in rows for value in row])
    if spec.column or len(spec.shape) == 1:
        return Tensor(spec.datatype, array)
    fixed = [width if n == -1 else n for n in rest] if rest.count(-1) == 1 and len(rest) == 1 else list(rest)
    if -1 in fixed:
        raise InvalidInput(
            f"feature {name!r} is a tensor of {len(rest)} open dimensions, which a list of values can't say; use predict"
        )
    return Tensor(spec.datatype, array.reshape(len(rows), *fixed))


def _elements(spec: TensorSpec, name: str, values: list[Any]) -> Array:
    is_text = spec.datatype == "BYTES"
    for at, value in enumerate(values):
        if value is not None and isinstance(value, bytes) != is_text:
            found, wanted = ("a number", "strings") if is_text else ("a string", f"numbers ({spec.datatype})")
            raise InvalidInput(f"feature {name!r} has {found} at element {at}, the model expects {wanted}")
    if is_text:
        texts = np.empty(len(values), object)
        texts[:] = values
        return texts
    if spec.datatype == "BOOL":
        values = [bool(v) if v in (0, 1) else v for v in values]
    return json_values.exact_array(values, DATATYPES[spec.datatype], f"feature {name!r}")


def _undeclared(rows: list[list[Any]]) -> Tensor:
    values = [value for row in rows for value in row]
    if len(values) != len(rows) or any(isinstance(v, bytes) for v in values):
        texts = np.empty(len(values), object)
        texts[:] = values
        return Tensor("BYTES", texts)
    kind = json_values.natural_datatype(values)
    return Tensor(kind, json_values.exact_array(values, DATATYPES[kind], "the feature"))
