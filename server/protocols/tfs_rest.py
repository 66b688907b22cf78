"""TensorFlow Serving over REST, but for `:predict`, which is `v1.py`: status, metadata, classify and regress as JSON."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from server.errors import InvalidRequest
from server.protocols import json_values
from server.protocols.examples import Example, from_json
from server.protocols.tensor_proto import CARRIED
from server.protocols.tfs import PREDICT, STATES, Classes, Part, named_signatures, number_of
from server.tensors import Array, Signature, TensorSpec


class Rows(NamedTuple):
    """What `:classify` and `:regress` are sent."""

    examples: list[Example]
    signature_name: object


def rows(body: bytes) -> Rows:
    """InvalidRequest, InvalidInput."""
    document = json_values.parse(body)
    if not isinstance(document, dict):
        raise InvalidRequest(f"expected a JSON object, got a {json_values.type_name(document)}")
    return Rows(from_json(document), document.get("signature_name") or None)


def classified(found: Classes, strict: bool = False) -> bytes:
    """For each example a list of [label, score]."""
    scores = json_values.listed(found.scores)
    results = [[list(pair) for pair in zip(labels, row, strict=True)] for labels, row in zip(found.labels, scores, strict=True)]
    return json_values.dump({"results": results}, [found.scores], strict)


def regressed(values: Array, strict: bool = False) -> bytes:
    """A number for each example."""
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    return json_values.dump({"results": np.ascontiguousarray(values)}, [values], strict)


def status(name: str, is_ready: bool, parts: Iterable[Part]) -> dict[str, Any]:
    """What a KServe client and one of TensorFlow Serving read of the same answer."""
    return {
        "name": name,
        "ready": is_ready,
        "model_version_status": [
            {
                "version": str(number_of(part.version)),
                "state": STATES.get(part.state, "UNKNOWN"),
                "status": {"error_code": "UNKNOWN" if part.failed else "OK", "error_message": part.reason},
            }
            for part in parts
        ],
    }


def metadata(name: str, version: str, signatures: Sequence[Signature]) -> dict[str, Any]:
    definitions = {
        name: {
            "inputs": {spec.name: _info(spec) for spec in signature.inputs},
            "outputs": {spec.name: _info(spec) for spec in signature.outputs},
            "method_name": signature.method or PREDICT,
            "defaults": {},
        }
        for name, signature in named_signatures(signatures).items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(number_of(version))},
        "metadata": {"signature_def": {"signature_def": definitions}},
    }


def _info(spec: TensorSpec) -> dict[str, Any]:
    dims = [] if spec.unknown_rank else [{"size": str(n), "name": ""} for n in spec.shape]
    return {
        "dtype": CARRIED[spec.datatype].dtype,
        "tensor_shape": {"dim": dims, "unknown_rank": spec.unknown_rank},
        "name": spec.name,
    }
