"""What the SavedModel's and the Keras loader share: a signature and the traced TensorFlow function behind it.

TensorFlow is an argument here, since importing this module must not import it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.errors import ModelLoadError
from server.tensors import USUAL_NAMES, Signature, TensorSpec

DEFAULT_SIGNATURE = "serving_default"
DATATYPE_OF = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
}


@dataclass(frozen=True)
class Traced:
    """A signature as one TensorFlow function with flat arguments in the order of `signature.inputs`, and flat results.

    `captured` are its further arguments: the model's variables and tables.
    """

    signature: Signature
    function: Any
    captured: tuple[Any, ...]
    input_types: tuple[Any, ...]
    output_types: tuple[Any, ...]
    defaults: Mapping[str, Any]


@dataclass(frozen=True)
class Opened:
    """A model as its format's loader gives it.  `keeps` is whatever must live as long as the functions do."""

    platform: str
    traced: tuple[Traced, ...]
    properties: Mapping[str, str]
    warnings: tuple[str, ...]
    keeps: Any


def trace(
    tf: Any,
    signature: Signature,
    body: Callable[[tuple[Any, ...]], Sequence[Any]],
    types: Sequence[str],
    defaults: Mapping[str, Any],
) -> Traced:
    """Trace a function of flat tensors once, with free dimensions left free, so that no request makes it trace again."""
    input_types = tuple(tf.as_dtype(name) for name in types)
    shapes = [None if s.unknown_rank else [None if n == -1 else n for n in s.shape] for s in signature.inputs]
    specs = [tf.TensorSpec(shape, tf_type) for shape, tf_type in zip(shapes, input_types, strict=True)]
    function = tf.function(lambda *flat: list(body(flat)), input_signature=specs, autograph=False).get_concrete_function()
    constants = {name: tf.constant(value) for name, value in defaults.items()}
    output_types = tuple(o.dtype for o in function.outputs)
    return Traced(signature, function, tuple(function.captured_inputs), input_types, output_types, constants)


def spec_of(name: str, tf_type: str, shape: Sequence[int | None] | None, optional: bool = False) -> TensorSpec:
    """A spec from TensorFlow's terms: a shape of None has unknown rank, None or -1 in it is free."""
    if tf_type not in DATATYPE_OF:
        raise ModelLoadError(f"tensor {name!r} is of type {tf_type}, which no protocol here can carry")
    if shape is None:
        return TensorSpec(name, DATATYPE_OF[tf_type], (-1,), optional=optional, unknown_rank=True)
    return TensorSpec(name, DATATYPE_OF[tf_type], tuple(-1 if n is None else n for n in shape), optional=optional)


def make_signature(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], alone: bool) -> Signature:
    """Batched where every tensor's first dimension is free.  `alone`: no other signature could be meant by its inputs' names."""
    specs = (*inputs, *outputs)
    batched = bool(inputs) and all(s.shape[:1] == (-1,) and not s.unknown_rank for s in specs)
    if alone and len(inputs) == 1:
        inputs = [replace(inputs[0], aliases=tuple(n for n in USUAL_NAMES if n != inputs[0].name))]
    return Signature(name, tuple(inputs), tuple(outputs), batched)


_WRAPPING = re.compile(r"\{\{[^}]*\}\}\s*|\s*\[Op:[^\]]*\](\s*name:\s*\S*)?\s*$")


def first_line(message: str) -> str:
    """The sentence of a TensorFlow error that says what is wrong, without the graph's stack and node names around it."""
    rest = []
    for line in message.splitlines():
        numbered = re.match(r"\s*\(\d+\)\s+[A-Z_]+:\s*(.*)", line)
        if numbered:
            return _WRAPPING.sub("", numbered[1]).strip()
        wrapping = re.match(r"\s|Graph execution error:|Detected at node|<stack traces|\d+ root error|$", line)
        if not wrapping:
            rest.append(line)
    text = _WRAPPING.sub("", rest[0]).strip() if rest else ""
    return (text or message.strip())[:500]


def newer_than(version: str, than: str) -> bool:
    """Whether the first two numbers of a version are higher."""
    ours, theirs = (tuple(map(int, re.findall(r"\d+", v)[:2])) for v in (than, version))
    return theirs > ours
