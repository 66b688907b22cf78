"""What an estimator's methods return → named tensors.  Which outputs there are is told by one trial call of each method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.errors import NotSupported
from server.tensors import DATATYPES, Array, TensorSpec, datatype_of

METHODS = ("predict", "predict_proba", "decision_function", "predict_log_proba", "transform", "score_samples")
# A sparse result of few rows may be gigabytes when it is written out.
DENSE_LIMIT = 64 << 20


@dataclass(frozen=True)
class Output:
    """One tensor of a method's result; `part` is its position in a list of arrays or its column in a DataFrame."""

    spec: TensorSpec
    method: str
    part: int | None = None


def outputs_of(method: str, result: Any, classes: Any = None) -> list[Output]:
    """The outputs that a method's result, of any number of rows, holds."""
    if isinstance(result, list):
        return [Output(_spec(f"{method}_{i}", array), method, i) for i, array in enumerate(result)]
    if hasattr(result, "dtypes") and hasattr(result, "columns") and len({*map(_kind, result.dtypes)}) > 1:
        columns = [result.iloc[:, i] for i in range(result.shape[1])]
        return [Output(_spec(f"{method}_{c.name}", c), method, i) for i, c in enumerate(columns)]
    return [Output(_spec(method, result, classes if method == "predict" else None), method)]


def guessed_output(method: str, classes: Any) -> Output:
    """The output of a method that could not be tried."""
    array = np.empty(0) if classes is None or method != "predict" else np.asarray(classes)
    return Output(TensorSpec(method, _spec(method, array, classes).datatype, (-1,), unknown_rank=True), method)


def tensor(output: Output, result: Any) -> Array:
    """One output's array, in its datatype, of a method's result; NotSupported where it is too large when written out."""
    if output.part is not None:
        result = result[output.part] if isinstance(result, list) else result.iloc[:, output.part]
    array: Array = result if type(result) is np.ndarray else _dense(result)
    if output.spec.datatype == "BYTES":
        return _texts(array)
    want = DATATYPES[output.spec.datatype].dtype
    return array if array.dtype == want else array.astype(want)


def _spec(name: str, result: Any, classes: Any = None) -> TensorSpec:
    if not hasattr(result, "shape"):
        result = np.asarray(result)
    datatype = _kind(getattr(result, "dtype", None) or result.dtypes.iloc[0])
    if datatype == "BYTES":
        values = result if classes is None or isinstance(classes, list) else classes
        datatype = _of_objects(np.asarray(values).ravel().tolist())
    return TensorSpec(name, datatype, (-1, *result.shape[1:]))


def _kind(dtype: Any) -> str:
    """The datatype that answers carry for a numpy or pandas dtype."""
    kind = getattr(dtype, "kind", "O")
    if kind == "i":
        return "INT64"
    if kind == "f" and dtype.itemsize > 8:
        return "FP64"
    return datatype_of(dtype) if isinstance(dtype, np.dtype) and kind in "fub" else "BYTES"


def _of_objects(values: Sequence[Any]) -> str:
    for datatype, python in (("BOOL", bool), ("INT64", int), ("FP64", float)):
        if values and all(type(v) is python for v in values):
            return datatype
    return "BYTES"


def _dense(result: Any) -> Array:
    if hasattr(result, "toarray"):
        size = int(np.prod(result.shape, dtype=object)) * result.dtype.itemsize
        if size > DENSE_LIMIT:
            raise NotSupported(
                f"the model's answer of shape {list(result.shape)} is sparse, and {size >> 20} MiB when written out, over the"
                f" limit of {DENSE_LIMIT >> 20} MiB; send fewer rows"
            )
        return np.asarray(result.toarray())
    return np.asarray(result)


def _texts(array: Array) -> Array:
    if array.dtype != object:
        return array.astype(np.str_ if array.dtype.kind in "Mm" else array.dtype).astype(object)
    texts = np.empty(array.shape, object)
    texts.ravel()[:] = [v if isinstance(v, str | bytes) else str(v) for v in array.ravel().tolist()]
    return texts
