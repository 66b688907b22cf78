"""TensorFlow Serving over gRPC: its protobuf messages ↔ the one shape inside.  Pure functions; calls belong to the edge."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from server.errors import InvalidInput, InvalidRequest
from server.protocols import _pb
from server.protocols.raw import MAX_TENSORS
from server.protocols.tensor_proto import CARRIED, proto_bytes, tensor_of
from server.protocols.tfs import PREDICT, STATES, Asked, Classes, Part, named_signatures, number_of
from server.protocols.varints import varint
from server.tensors import Array, InferRequest, InferResponse, Signature, TensorSpec

PACKAGE = "tensorflow.serving"
PREDICTION, MODEL = f"{PACKAGE}.PredictionService", f"{PACKAGE}.ModelService"
METHODS = {service: _pb.methods(service) for service in (PREDICTION, MODEL)}
# google.rpc.Code, of a version that could not be loaded
_UNKNOWN = 2
_ANY = "type.googleapis.com/"
# PredictResponse.outputs and .model_spec, a map entry's key and value: field number and "bytes with a length"
_OUTPUTS, _SPEC, _KEY, _VALUE = b"\x0a", b"\x12", b"\x0a", b"\x12"


def message(name: str) -> Any:
    """The class of the message `tensorflow.serving.<name>`."""
    return _pb.message(name, PACKAGE)


_ModelSpec = message("ModelSpec")


def parse(kind: Any, sent: bytes) -> Any:
    """The message in these bytes; InvalidRequest where they are none."""
    try:
        return kind.FromString(sent)
    except DecodeError:
        raise InvalidRequest(f"the request is not a valid {kind.DESCRIPTOR.full_name}") from None


def asked_of(request: Any) -> Asked:
    """What a request's model_spec means; InvalidRequest where it names no model."""
    spec = request.model_spec
    if not spec.name:
        raise InvalidRequest("the request names no model: model_spec.name is empty (Missing ModelSpec)")
    if spec.WhichOneof("version_choice") == "version_label":
        return Asked(spec.name, spec.version_label, spec.signature_name, by_label=True)
    version = str(spec.version.value) if spec.version.value else ""
    return Asked(spec.name, version, spec.signature_name)


def predict_request(request: Any, asked: Asked, most_bytes: int) -> InferRequest:
    """A PredictRequest as arrays.  InvalidInput names the input that is malformed."""
    if len(request.inputs) > MAX_TENSORS or len(request.output_filter) > MAX_TENSORS:
        raise InvalidInput(
            f"the request has {len(request.inputs)} inputs and asks for {len(request.output_filter)} outputs,"
            f" {MAX_TENSORS} of each are allowed"
        )
    inputs = {name: tensor_of(name, proto, most_bytes) for name, proto in request.inputs.items()}
    made = InferRequest(asked.model, inputs, asked.version, outputs=list(request.output_filter) or None)
    if asked.signature:
        made.parameters["signature_name"] = asked.signature
    return made


def predict_response(response: InferResponse, signature: str) -> bytes:
    """A PredictResponse, `signature` by the name that clients know it by."""
    parts: list[bytes] = []
    for name, tensor in response.outputs.items():
        key, value = name.encode(), proto_bytes(name, tensor)
        entry = b"".join((_KEY, varint(len(key)), key, _VALUE, varint(len(value)), value))
        parts += _OUTPUTS, varint(len(entry)), entry
    spec = _spec_bytes(response.model, response.version, signature)
    return b"".join((*parts, _SPEC, varint(len(spec)), spec))


@lru_cache(maxsize=256)
def _spec_bytes(model: str, version: str, signature: str) -> bytes:
    sent: bytes = model_spec(model, version, signature).SerializeToString()
    return sent


def model_spec(model: str, version: str, signature: str = "") -> Any:
    spec = _ModelSpec(name=model, signature_name=signature)
    if version:
        spec.version.value = number_of(version)
    return spec


def classification_result(found: Classes) -> Any:
    result = message("ClassificationResult")()
    for labels, scores in zip(found.labels, found.scores.tolist(), strict=True):
        rows = [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]
        result.classifications.add(classes=rows)
    return result


def regression_result(values: Array) -> Any:
    return message("RegressionResult")(regressions=[{"value": float(v)} for v in values.tolist()])


def model_status(parts: Iterable[Part]) -> Any:
    response = message("GetModelStatusResponse")()
    for part in parts:
        status = {"error_code": _UNKNOWN if part.failed else 0, "error_message": part.reason}
        state = STATES.get(part.state, "UNKNOWN")
        response.model_version_status.add(version=number_of(part.version), state=state, status=status)
    return response


def metadata(model: str, version: str, fields: Sequence[str], signatures: Sequence[Signature]) -> Any:
    """A GetModelMetadataResponse; `signature_def` is all the metadata there is, and InvalidRequest says so."""
    if not fields:
        raise InvalidRequest("metadata_field is empty; ask for 'signature_def'")
    for field in fields:
        if field != "signature_def":
            raise InvalidRequest(f"metadata field {field!r} is not supported; there is 'signature_def'")
    response = message("GetModelMetadataResponse")(model_spec=model_spec(model, version))
    signature_map = message("SignatureDefMap")()
    for name, signature in named_signatures(signatures).items():
        definition = signature_map.signature_def[name]
        definition.method_name = signature.method or PREDICT
        for specs, told in ((signature.inputs, definition.inputs), (signature.outputs, definition.outputs)):
            for spec in specs:
                _fill(told[spec.name], spec)
    response.metadata["signature_def"].type_url = _ANY + signature_map.DESCRIPTOR.full_name
    response.metadata["signature_def"].value = signature_map.SerializeToString(deterministic=True)
    return response


def _fill(info: Any, spec: TensorSpec) -> None:
    info.name, info.dtype = spec.name, CARRIED[spec.datatype].number
    if spec.unknown_rank:
        info.tensor_shape.unknown_rank = True
    else:
        for n in spec.shape:
            info.tensor_shape.dim.add(size=n)
        info.tensor_shape.SetInParent()


def tasks_of(request: Any) -> list[tuple[Asked, str]]:
    """A MultiInferenceRequest's tasks, (what is asked, method name) each; InvalidRequest where they do not go together."""
    tasks = [(asked_of(task), task.method_name) for task in request.tasks]
    if not tasks:
        raise InvalidRequest("the request has no tasks (Inference request must have at least one task)")
    models = dict.fromkeys(asked.model for asked, _ in tasks)
    if len(models) > 1:
        raise InvalidRequest(f"the tasks name several models, {', '.join(map(repr, models))}; all have to name the same")
    counted: Mapping[tuple[str, str], None] = {(asked.signature, method): None for asked, method in tasks}
    if len(counted) < len(tasks):
        raise InvalidRequest("two of the tasks have the same signature and method (Duplicate evaluation of signature)")
    return tasks
