"""Triton's classification extension: of an output's numbers the largest few, as texts `value:index[:label]`.  Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from server.errors import InvalidInput, InvalidRequest
from server.tensors import Array, InferResponse, Tensor

PARAMETER = "classification"


def count_of(output: str, value: object) -> int:
    """How many classes an output's parameter asks for, 0 for all of the numbers as they are; InvalidRequest for nonsense."""
    if type(value) is not int or value < 0:
        raise InvalidRequest(f"output {output!r}: {PARAMETER} is {value!r}, expected how many classes are wanted")
    return value


def classified(response: InferResponse, wanted: Mapping[str, int]) -> InferResponse:
    """The response with the best classes in the place of each wanted output, the largest first; of equal ones the earlier.

    InvalidInput where an output has no numbers.
    """
    outputs = {
        name: _best(name, tensor, wanted[name], response) if wanted.get(name) else tensor
        for name, tensor in response.outputs.items()
    }
    return replace(response, outputs=outputs)


def _best(name: str, tensor: Tensor, count: int, response: InferResponse) -> Tensor:
    array = tensor.array
    if array.dtype.kind not in "fiub":
        raise InvalidInput(f"output {name!r} is {tensor.datatype}, and only numbers have a largest one; leave out {PARAMETER}")
    rows = array.reshape((len(array), -1) if response.batched and array.ndim and array.size else (1, -1))
    count = min(count, rows.shape[1])
    order = _descending(rows)[:, :count]
    labels = response.labels.of(name, rows.shape[1])
    texts: Array = np.empty(order.shape, object)
    for at, indices in enumerate(order.tolist()):
        texts[at] = _texts(rows[at, indices].tolist(), indices, labels)
    if not response.batched:
        texts = texts.reshape(-1)
    elif not array.size:
        texts = texts.reshape(len(array) if array.ndim else 1, 0)
    return Tensor("BYTES", texts)


def _descending(rows: Array) -> Array:
    """The columns' order in each row, the largest first, equal ones as they come, and what is no number last."""
    if rows.dtype.kind == "f":
        return np.argsort(-rows, axis=1, kind="stable")
    last = rows.shape[1] - 1
    order: Array = last - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    return order


def _texts(values: Sequence[float], indices: Sequence[int], labels: Sequence[str]) -> list[bytes]:
    names = [f":{labels[index]}" for index in indices] if labels else [""] * len(indices)
    return [f"{_number(v)}:{i}{name}".encode() for v, i, name in zip(values, indices, names, strict=True)]


def _number(value: float) -> str:
    return f"{value:f}" if isinstance(value, float) else str(int(value))
