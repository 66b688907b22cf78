"""A model's schema → its input signatures, what to call it with for a request's arrays, and made-up inputs.

A request's columns become a DataFrame, an array or a list of documents: whatever the model was fitted on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from predictors._sklearn_schema import Column, Schema
from server.errors import InvalidInput
from server.tensors import USUAL_NAMES, Array, Signature, TensorSpec, synthetic

# a request's arrays → what an estimator's methods are called with
Feed = Callable[[Mapping[str, Array]], Any]

TENSOR, COLUMNS, TEXT = "tensor", "columns", "text"
# Numbers of a made-up row are rounded, because a person may read and paste them.
_DIGITS = 3
_WORDS = 5


def input_specs(schema: Schema) -> dict[str, tuple[TensorSpec, ...]]:
    """The inputs of each signature, the default one first: one tensor, or one tensor for each column."""
    if schema.documents:
        return {TEXT: (TensorSpec("text", "BYTES", (-1,), column=True, aliases=USUAL_NAMES),)}
    datatypes = {c.datatype for c in schema.columns}
    datatype = "BYTES" if datatypes == {"BYTES"} else "FP64"
    width = len(schema.columns) or -1
    tensor = TensorSpec("x", datatype, (-1, width), nullable=datatype == "BYTES", aliases=USUAL_NAMES[1:])
    columns = tuple(
        TensorSpec(c.name, c.datatype, (-1,), c.dropped and schema.frame, c.datatype == "BYTES", column=True)
        for c in schema.columns
    )
    specs: dict[str, tuple[TensorSpec, ...]] = {}
    if not schema.has_text or (datatype == "BYTES" and not schema.named):
        specs[TENSOR] = (tensor,)
    if columns and (schema.named or TENSOR not in specs):
        specs[COLUMNS] = columns
    return specs


def feed(signature: str, schema: Schema) -> Feed:
    """The function that turns one signature's checked inputs into what the model is called with."""
    columns = schema.columns
    if signature == TEXT:
        return lambda inputs: strings(columns[0], inputs["text"])
    if signature == TENSOR and columns and columns[0].datatype == "BYTES":
        return lambda inputs: _object_array(columns, inputs["x"].T)
    if schema.frame:
        return _frame_feed(signature, columns)
    if signature == TENSOR:
        return _tensor_feed
    names = [c.name for c in columns]
    if schema.has_text:
        return lambda inputs: _object_array(columns, [inputs[n] for n in names])
    return lambda inputs: np.column_stack([inputs[n] for n in names])


def _tensor_feed(inputs: Mapping[str, Array]) -> Array:
    x = inputs["x"]
    # some of scikit-learn's compiled code takes no read-only buffer, which a request's bytes are
    return x if x.flags.writeable else x.copy()


def _frame_feed(signature: str, columns: Sequence[Column]) -> Feed:
    import pandas

    index = pandas.Index([c.name for c in columns])
    if signature == TENSOR:
        return lambda inputs: pandas.DataFrame(inputs["x"].copy(), columns=index)

    def frame(inputs: Mapping[str, Array]) -> Any:
        # an explicit dtype, so that pandas does not look at each value to find its own string dtype
        return pandas.DataFrame(
            {
                c.name: pandas.Series(strings(c, inputs[c.name]), dtype=object) if c.datatype == "BYTES" else inputs[c.name]
                for c in columns
                if c.name in inputs
            },
            copy=True,
        )

    return frame


def _object_array(columns: Sequence[Column], values: Sequence[Array] | Array) -> Array:
    table = np.empty((len(values[0]), len(columns)), object)
    for i, column in enumerate(columns):
        table[:, i] = strings(column, values[i]) if column.datatype == "BYTES" else values[i]
    return table


def strings(column: Column, values: Array) -> list[Any]:
    """A column's texts, missing ones as its estimator wants them; InvalidInput where bytes are not UTF-8."""
    missing = column.missing
    items = values.tolist()
    try:
        return [missing if v is None else v if type(v) is str else v.decode() for v in items]
    except UnicodeDecodeError as error:
        row = next(i for i, v in enumerate(items) if v is error.object)
        raise InvalidInput(f"column {column.name!r}, row {row}: the bytes are not UTF-8 ({error.reason})") from error


def sample(signature: Signature, schema: Schema, rows: int, seed: int, positive: bool = False) -> dict[str, Array]:
    """Made-up inputs: categories and words that were seen in fitting, numbers from where the scaler saw them.

    `positive`: the model refuses negative numbers.
    """
    if not schema.columns:
        return {s.name: synthetic(s, rows, seed) for s in signature.inputs}
    rng = np.random.default_rng(seed)
    values = {c.name: _sample_column(c, rows, rng, positive) for c in schema.columns}
    if signature.name != TENSOR:
        return values
    table = np.empty((rows, len(schema.columns)), object if schema.has_text else np.float64)
    for i, column in enumerate(schema.columns):
        table[:, i] = values[column.name]
    return {"x": table}


def _sample_column(column: Column, rows: int, rng: np.random.Generator, positive: bool) -> Array:
    if column.datatype == "BYTES":
        choices = column.choices or ("text",)
        count = _WORDS if column.text else 1
        picked = rng.integers(0, len(choices), (rows, count)).tolist()
        texts = np.empty(rows, object)
        texts[:] = [" ".join(str(choices[i]) for i in row).encode() for row in picked]
        return texts
    if column.choices:
        dtype = {"INT64": np.int64, "BOOL": np.bool_}.get(column.datatype, np.float64)
        return np.array([column.choices[i] for i in rng.integers(0, len(column.choices), rows)], dtype)
    numbers = column.center + (column.spread or 1.0) * rng.standard_normal(rows)
    # as many digits as the column's spread makes sense of
    digits = _DIGITS - math.floor(math.log10(abs(column.spread) or 1.0))
    rounded: Array = np.round(np.abs(numbers) if positive else numbers, min(max(digits, 0), 12))
    return rounded
