"""Between onnxruntime's values and ours: a session's tensors as a signature, and single inputs and outputs as arrays.

Pure: nothing here opens a file or runs a model.  Shapes and types are onnxruntime's (it infers what the file leaves out);
`Graph` adds what it hides.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from predictors._onnx_graph import Graph, Labels
from server.errors import InvalidInput, ModelLoadError, NotSupported, RuntimeFailed
from server.tensors import DATATYPES, Array, Signature, TensorSpec

Symbols = dict[str, tuple[str, ...]]
Convert = Callable[[Any], Array]

_DATATYPES = {
    "float": "FP32",
    "double": "FP64",
    "float16": "FP16",
    "string": "BYTES",
    **{d.name.lower(): d.name for d in DATATYPES.values() if d.dtype.kind in "iub"},
}
_ZIPPED = re.compile(r"seq\(map\((int64|string),tensor\(float\)\)\)")
# Exporters that have no name for a free dimension write these.
_NAMELESS = re.compile(r"unk__\d+|\?|-1|None|")


@dataclass(frozen=True)
class Described:
    """A session as a signature.  `symbols`: per tensor the names of its free dimensions, "" where one has none.

    `converters` make an array of what onnxruntime returns for an output that is no plain tensor.  `labels` are the classes
    of the outputs that ZipMap makes, empty where the file does not tell.  `alone` is why requests can't be joined, empty
    where they can.
    """

    signature: Signature
    symbols: Symbols
    converters: dict[str, Convert]
    labels: dict[str, Labels]
    alone: str


def describe(path: Path, graph: Graph, inputs: Sequence[Any], optional: Sequence[Any], outputs: Sequence[Any]) -> Described:
    """The signature of a session's NodeArgs; ModelLoadError naming the tensor that can't be carried over the wire."""
    specs_in = [_input(path, a, graph, False) for a in inputs] + [_input(path, a, graph, True) for a in optional]
    specs_out, converters = [], {}
    for arg in outputs:
        spec, convert = _output(path, arg, graph)
        specs_out.append(spec)
        if convert:
            converters[spec.name] = convert
    symbols = {a.name: _symbols(a) for a in (*inputs, *optional, *outputs)}
    labels = {a.name: graph.zipmaps.get(a.name, []) for a in outputs if _ZIPPED.fullmatch(a.type)}
    alone = why_alone(specs_in, specs_out, symbols)
    signature = Signature("serving_default", tuple(specs_in), tuple(specs_out), batched=not alone)
    return Described(signature, symbols, converters, labels, alone)


def _input(path: Path, arg: Any, graph: Graph, optional: bool) -> TensorSpec:
    inner = re.fullmatch(r"optional\((.+)\)", arg.type)
    return _tensor(path, "input", arg, inner[1] if inner else arg.type, graph, optional or bool(inner))


def _output(path: Path, arg: Any, graph: Graph) -> tuple[TensorSpec, Convert | None]:
    """How an output looks on the wire, and how to make that of what onnxruntime returns (None for a plain tensor)."""
    name = arg.name
    if _ZIPPED.fullmatch(arg.type):
        labels = graph.zipmaps.get(name, [])
        return TensorSpec(name, "FP32", (-1, len(labels) or -1)), lambda rows: matrix(name, rows, labels)
    sequence = re.fullmatch(r"seq\((tensor\(\w+\))\)", arg.type)
    if sequence:
        spec = _tensor(path, "output", arg, sequence[1], graph, False)
        dtype = DATATYPES[spec.datatype].dtype
        return replace(spec, shape=(-1,), unknown_rank=True), lambda values: stacked(name, values, dtype)
    inner = re.fullmatch(r"optional\((tensor\(\w+\))\)", arg.type)
    if inner:
        return _tensor(path, "output", arg, inner[1], graph, False), lambda value: present(name, value)
    return _tensor(path, "output", arg, arg.type, graph, False), None


def _tensor(path: Path, role: str, arg: Any, type_: str, graph: Graph, optional: bool) -> TensorSpec:
    element = re.fullmatch(r"tensor\((\w+)\)", type_)
    datatype = _DATATYPES.get(element[1]) if element else None
    if datatype is None:
        raise ModelLoadError(
            f"{path} has the {role} {arg.name!r} of type {arg.type}, which the serving protocols can't carry",
            "export the model with a tensor of float, double, float16, string, bool or an integer type in its place",
        )
    if not arg.shape and arg.name in graph.unranked:
        return TensorSpec(arg.name, datatype, (-1,), optional=optional, unknown_rank=True)
    shape = tuple(n if isinstance(n, int) and n >= 0 else -1 for n in arg.shape)
    return TensorSpec(arg.name, datatype, shape, optional=optional)


def _symbols(arg: Any) -> tuple[str, ...]:
    return tuple(n if isinstance(n, str) and not _NAMELESS.fullmatch(n) else "" for n in arg.shape)


def why_alone(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], symbols: Symbols) -> str:
    """Why rows of several requests can't go through the model together; empty where they can."""
    if not inputs:
        return "it has no inputs"
    for role, spec in [("input", s) for s in inputs] + [("output", s) for s in outputs]:
        tensor = f"{'optional ' if spec.optional else ''}{role} {spec.name!r}"
        if spec.unknown_rank:
            return f"its {tensor} has no known shape"
        if not spec.shape:
            return f"its {tensor} is a scalar"
        if spec.shape[0] != -1:
            return f"its {tensor} has a fixed first dimension ({list(spec.shape)}); export it with a free one to change that"
    first = {names[0]: name for name, names in symbols.items() if names and names[0]}
    if len(first) > 1:
        (one, tensor), (other, second) = list(first.items())[:2]
        return f"the first dimensions of {tensor!r} ({one!r}) and {second!r} ({other!r}) count different things"
    for name, names in symbols.items():
        again = next((symbol for symbol in names[1:] if symbol in first), None)
        if again:
            return f"{again!r} is more than the first dimension of {name!r}, so rows depend on each other"
    return ""


def shared_axes(described: Described) -> list[tuple[str, list[tuple[str, int]]]]:
    """Names of dimensions that several inputs' axes have, but for the batch, which the signature checks."""
    axes: dict[str, list[tuple[str, int]]] = {}
    for spec in described.signature.inputs:
        for axis, symbol in enumerate(described.symbols[spec.name]):
            if symbol and not (described.signature.batched and axis == 0):
                axes.setdefault(symbol, []).append((spec.name, axis))
    return [(symbol, places) for symbol, places in axes.items() if len(places) > 1]


def check_shared(shared: Sequence[tuple[str, list[tuple[str, int]]]], inputs: Mapping[str, Array]) -> None:
    """InvalidInput where two axes of one name differ in size; onnxruntime itself would compute something."""
    for symbol, places in shared:
        given = [(name, axis, inputs[name].shape[axis]) for name, axis in places if name in inputs]
        for name, axis, size in given[1:]:
            first, first_axis, wanted = given[0]
            if size != wanted:
                raise InvalidInput(
                    f"inputs disagree about {symbol!r}: dimension {first_axis} of {first!r} is {wanted}, "
                    f"dimension {axis} of {name!r} is {size}"
                )


def empty_outputs(signature: Signature, given: str, outputs: Sequence[str]) -> dict[str, Array]:
    """The answer to no rows, which the model is not asked: some operators crash on it."""
    specs = {s.name: s for s in signature.outputs}
    answer = {}
    for name in outputs:
        spec = specs[name]
        if not signature.batched or -1 in spec.shape[1:]:
            raise InvalidInput(f"input {given!r} is empty; give at least one row")
        answer[name] = np.empty((0, *spec.shape[1:]), DATATYPES[spec.datatype].dtype)
    return answer


def decoded(name: str, array: Array) -> Array:
    """Bytes as onnxruntime wants strings; InvalidInput where they are not UTF-8."""
    texts = np.empty(array.size, object)
    values = array.ravel().tolist()
    try:
        texts[:] = [str(value, "utf-8") for value in values]
    except UnicodeDecodeError as error:
        at = next(i for i, value in enumerate(values) if value == error.object)
        raise InvalidInput(f"input {name!r} is not UTF-8 at element {at}: {error.reason}") from None
    return texts.reshape(array.shape)


def matrix(name: str, rows: Sequence[Mapping[Any, float]], labels: Labels) -> Array:
    """ZipMap's dicts as a matrix: columns as the node lists its labels, in their own order where that is not known."""
    columns = labels or sorted(rows[0] if rows else ())
    try:
        values = np.fromiter(chain.from_iterable([row[c] for c in columns] for row in rows), np.float32, len(rows) * len(columns))
    except KeyError as error:
        raise RuntimeFailed(f"a row of the model's output {name!r} has no value for class {error.args[0]!r}") from None
    return values.reshape(len(rows), len(columns))


def stacked(name: str, values: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    shapes = {np.shape(value) for value in values}
    if len(shapes) > 1:
        told = " and ".join(str(list(s)) for s in sorted(shapes)[:2])
        raise NotSupported(
            f"the model's output {name!r} is a list of tensors of different shapes, {told}, and can't be one tensor"
        )
    return np.stack(values) if values else np.empty(0, dtype)


def present(name: str, value: Array | None) -> Array:
    if value is None:
        raise NotSupported(f"the model gave nothing for its optional output {name!r}; request the others by name")
    return value
