"""What TensorFlow Serving says over REST and over gRPC alike: its words for models, states, mistakes, classes and values."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from server.class_labels import ClassLabels
from server.errors import InvalidRequest, ModelNotFound, ServingError, UnknownSignature, WrongInputs
from server.tensors import DEFAULT_SIGNATURE, Array, Signature, TensorSpec

PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))
# ModelVersionStatus.State of the registry's states; others are UNKNOWN.
STATES = {
    "PENDING": "START",
    "DOWNLOADING": "LOADING",
    "LOADING": "LOADING",
    "WARMING": "LOADING",
    "READY": "AVAILABLE",
    "DRAINING": "UNLOADING",
    "FAILED": "END",
    "UNLOADED": "END",
}
# Outputs under which models give each class a number, the best first, where none is called as TensorFlow Serving wants it.
_SCORES = ("predict_proba", "probabilities", "output_probability", "probability", "decision_function")


class Asked(NamedTuple):
    """Which model, version and signature a request means.  Empty: the server chooses.  `by_label`: `version` is a label."""

    model: str
    version: str = ""
    signature: str = ""
    by_label: bool = False


class Part(NamedTuple):
    """One version of a model, as its status has it."""

    version: str
    state: str
    reason: str

    @property
    def failed(self) -> bool:
        """Whether it could not be loaded; a reason without that is no more than news."""
        return self.state == "FAILED"


def number_of(version: str) -> int:
    """A version as the number that TensorFlow Serving's are; 0 for a model without versions."""
    return int(version) if version.isdecimal() and len(version) < 19 else 0


def named_signatures(signatures: Sequence[Signature]) -> dict[str, Signature]:
    """Signatures by the names that clients know them by: there always is a default one."""
    names = [s.name for s in signatures]
    if signatures and DEFAULT_SIGNATURE not in names:
        names[0] = DEFAULT_SIGNATURE
    return dict(zip(names, signatures, strict=True))


def name_of(signature: Signature, signatures: Sequence[Signature]) -> str:
    return next((name for name, one in named_signatures(signatures).items() if one is signature), signature.name)


def worded(error: ServingError, asked: Asked, is_known: bool) -> ServingError:
    """The same mistake, where clients look for TensorFlow Serving's words with these behind our own.

    `is_known`: there is a model of that name, so that what is not found is its version.
    """
    words, kind = "", type(error)
    if isinstance(error, ModelNotFound) and is_known and asked.by_label:
        words, kind = f"Unrecognized servable version label: {asked.version}", InvalidRequest
    elif isinstance(error, ModelNotFound):
        which = f"Specific({asked.model}, {asked.version})" if asked.version else f"Latest({asked.model})"
        words = f"Servable not found for request: {which}"
    elif isinstance(error, UnknownSignature):
        words = f'Serving signature name: "{error.name}" not found in signature def'
    elif isinstance(error, WrongInputs):
        words = "input size does not match signature"
    if not words:
        return error
    return kind(f"{error} ({words[:200]})", retry_after=error.retry_after).with_traceback(error.__traceback__)


class Sources(NamedTuple):
    """The outputs that classes are made of; empty where there is none of the kind."""

    labels: str
    scores: str

    @property
    def outputs(self) -> list[str]:
        return [name for name in self if name]


def class_sources(signature: Signature) -> Sources:
    """Where a classification comes from: outputs called as TensorFlow Serving wants them, else what looks like scores.

    InvalidRequest where nothing does.
    """
    outputs = {o.name: o for o in signature.outputs}
    if "classes" in outputs or "scores" in outputs:
        return Sources(*(name if name in outputs else "" for name in ("classes", "scores")))
    for name in (*_SCORES, *outputs):
        if name in outputs and _is_a_number_a_class(outputs[name]):
            return Sources("", name)
    for spec in signature.outputs:
        if spec.datatype == "BYTES" and len(spec.shape) <= 2:
            return Sources(spec.name, "")
    raise InvalidRequest(f"the model gives no classes; its outputs are {_shown(signature.outputs)}; use regress or predict")


def _is_a_number_a_class(spec: TensorSpec) -> bool:
    return spec.datatype in ("FP16", "BF16", "FP32", "FP64") and len(spec.shape) == 2 and not spec.unknown_rank


def value_source(signature: Signature) -> str:
    """The output that a regression is; InvalidRequest where none is one number a row."""
    by_name = {o.name: o for o in signature.outputs}
    for name in ("outputs", *signature.defaults):
        spec = by_name.get(name)
        if spec is not None and spec.datatype not in ("BYTES", "BOOL") and (len(spec.shape) < 2 or spec.shape[1:] == (1,)):
            return name
    raise InvalidRequest(f"the model gives no value a row; its outputs are {_shown(signature.outputs)}; use classify or predict")


def _shown(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{s.name} {s.datatype}{list(s.shape)}" for s in specs) or "not declared"


class Classes(NamedTuple):
    """`labels` and `scores` of each row, the same number of both."""

    labels: list[list[str]]
    scores: Array


def classes(sources: Sources, outputs: Mapping[str, Array], known: ClassLabels) -> Classes:
    """`known` are the labels of the scores' columns; without, columns are numbered.

    InvalidRequest where the outputs do not go together.
    """
    labels = _matrix(sources.labels, outputs) if sources.labels else None
    scores = _matrix(sources.scores, outputs) if sources.scores else None
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise InvalidRequest(
            f"the outputs {sources.labels!r} and {sources.scores!r} have the shapes {list(labels.shape)} and"
            f" {list(scores.shape)}; a classification has a score for each class"
        )
    if labels is not None:
        texts = [[_text(v) for v in row] for row in labels.tolist()]
        return Classes(texts, np.ones(labels.shape, np.float32) if scores is None else scores)
    assert scores is not None
    width = scores.shape[1]
    names = list(known.of(sources.scores, width)) or [str(i) for i in range(width)]
    return Classes([names] * len(scores), scores)


def values(name: str, outputs: Mapping[str, Array]) -> Array:
    """One number a row; InvalidRequest where there are more."""
    matrix = _matrix(name, outputs)
    if matrix.shape[1] != 1:
        raise InvalidRequest(f"output {name!r} has {matrix.shape[1]} values a row, a regression has one")
    return matrix[:, 0]


def _matrix(name: str, outputs: Mapping[str, Array]) -> Array:
    array = outputs[name]
    if array.ndim == 1:
        return array.reshape(-1, 1)
    if array.ndim != 2:
        raise InvalidRequest(f"output {name!r} has the shape {list(array.shape)}, which is not rows of classes or values")
    return array


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
