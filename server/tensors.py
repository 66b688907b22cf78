"""The one shape inside: tensors are numpy arrays with an Open Inference datatype, named by a signature.

Nothing here knows bytes, JSON or protobuf.  BYTES tensors are object arrays of `bytes` (None stands for a missing
value where a signature allows it); BF16 tensors are float32 arrays that keep their datatype's name.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from server.class_labels import ClassLabels
from server.errors import InvalidInput, WrongInputs

Array = np.ndarray[Any, Any]

# How TensorFlow calls the signature that a request means which names none.
DEFAULT_SIGNATURE = "serving_default"


# `made(Kind, (a, b))` is the NamedTuple `Kind(a, b)` at a third of the price; for what each request makes several of.
made = tuple.__new__


class Datatype(NamedTuple):
    """`itemsize` is bytes per element on the wire; 0 for BYTES, whose elements carry their own length."""

    name: str
    dtype: np.dtype[Any]
    itemsize: int


# Open Inference Protocol V2, "Tensor Data Types"; BF16 is in its gRPC definition only.
DATATYPES: dict[str, Datatype] = {
    name: Datatype(name, np.dtype(dtype), size)
    for name, dtype, size in (
        ("BOOL", np.bool_, 1),
        ("UINT8", np.uint8, 1),
        ("UINT16", np.uint16, 2),
        ("UINT32", np.uint32, 4),
        ("UINT64", np.uint64, 8),
        ("INT8", np.int8, 1),
        ("INT16", np.int16, 2),
        ("INT32", np.int32, 4),
        ("INT64", np.int64, 8),
        ("FP16", np.float16, 2),
        ("BF16", np.float32, 2),
        ("FP32", np.float32, 4),
        ("FP64", np.float64, 8),
        ("BYTES", np.object_, 0),
    )
}
_NAME_OF_DTYPE = {d.dtype: d.name for d in DATATYPES.values() if d.name != "BF16"}


def datatype(name: object) -> Datatype:
    """The datatype of that name (any case); InvalidInput with a suggestion when there is none."""
    found = DATATYPES.get(name) if isinstance(name, str) else None
    if found is None and isinstance(name, str):
        found = DATATYPES.get(name.upper())
    if found is None:
        alias = {"FLOAT": "FP", "DOUBLE": "FP64", "STRING": "BYTES", "STR": "BYTES", "OBJECT": "BYTES"}
        text = str(name).upper()
        guess = next((text.replace(k, v) for k, v in alias.items() if text.startswith(k)), text)
        guess = {"FP": "FP32"}.get(guess, guess)
        hint = did_you_mean(guess, DATATYPES) or f"; known: {', '.join(DATATYPES)}"
        raise InvalidInput(f"unknown datatype {name!r}{hint}")
    return found


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The Open Inference name of a numpy dtype; strings and objects are BYTES.  Raises KeyError for complex and the like."""
    found = _NAME_OF_DTYPE.get(dtype)
    if found is not None:
        return found
    return "BYTES" if dtype.kind in "OSUT" else _NAME_OF_DTYPE[dtype.newbyteorder("=")]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    if len(name) > 100:  # comparing takes as long as the name, and clients choose it
        return ""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


class Tensor(NamedTuple):
    """A value on its way through: `datatype` is an Open Inference name, `array` has the dtype that it stands for."""

    datatype: str
    array: Array

    @classmethod
    def of(cls, array: Array) -> "Tensor":
        return cls(datatype_of(array.dtype), array)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model wants or gives under one name.  In `shape`, -1 is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    # None is a value (a missing string); missing numbers are NaN
    nullable: bool = False
    # a table's column: [N] and [N,1] are the same to it
    column: bool = False
    # the model named nothing itself, so the usual names of other servers' clients are taken too
    aliases: tuple[str, ...] = ()
    # the shape is not known at all (`shape` is then (-1,)); only the element count is checked
    unknown_rank: bool = False
    # any number of rows of this shape, and nothing to look for inside: such an array of the datatype fits as it is
    row: tuple[int, ...] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        looked_into = self.datatype == "BYTES" and not self.nullable
        if self.shape[:1] == (-1,) and -1 not in self.shape[1:] and not self.unknown_rank and not looked_into:
            object.__setattr__(self, "row", self.shape[1:])

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


# Names under which clients of KServe, MLServer and TF Serving send a model's only, unnamed tensor.
USUAL_NAMES = (
    "x",
    "X",
    "input",
    "inputs",
    "input-0",
    "input_0",
    "input0",
    "input_1",
    "INPUT0",
    "INPUT__0",
    "predict",
    "args",
    "args_0",
)


# So many elements are worth a thread for their number alone.
MANY_TEXTS = 16 * 1024


class Checked(NamedTuple):
    """Inputs that fit a signature.  `rows` is their common leading dimension (1 where the signature has no batch)."""

    arrays: dict[str, Array]
    rows: int


@dataclass(frozen=True)
class Signature:
    """Names, datatypes and shapes of a model's inputs and outputs.

    `batched`: every input's and every output's first dimension counts rows, and rows do not depend on each other, so
    requests may be joined and split along it.  `defaults` are the outputs given when a request names none.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool = True
    defaults: tuple[str, ...] = ()
    # what it is for in TensorFlow's words, where a SavedModel says so: "tensorflow/serving/classify"
    method: str = ""
    _by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False, default_factory=dict)
    _output_names: frozenset[str] = field(init=False, repr=False, compare=False, default=frozenset())
    # every dimension but the first is fixed, so requests of one signature always stack
    uniform: bool = field(init=False, repr=False, compare=False, default=False)
    # and no text in it: every row has the same size, so the rows alone tell what a request costs
    even: bool = field(init=False, repr=False, compare=False, default=False)
    # outputs that are BF16, which their arrays do not tell
    bfloats: frozenset[str] = field(init=False, repr=False, compare=False, default=frozenset())

    def __post_init__(self) -> None:
        for spec in self.inputs:
            for name in (*spec.aliases, spec.name):
                self._by_name[name] = spec
        set_ = object.__setattr__
        set_(self, "_output_names", frozenset(o.name for o in self.outputs))
        set_(self, "bfloats", frozenset(o.name for o in self.outputs if o.datatype == "BF16"))
        set_(self, "uniform", all(-1 not in s.shape[1:] and not s.unknown_rank and not s.optional for s in self.inputs))
        set_(self, "even", self.uniform and bool(self.inputs) and all(s.datatype != "BYTES" for s in self.inputs))
        if not self.defaults:
            set_(self, "defaults", tuple(o.name for o in self.outputs))

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.inputs)

    def spec(self, name: str) -> TensorSpec | None:
        """The input of that name or alias."""
        return self._by_name.get(name)

    def takes(self, names: Iterable[str]) -> bool:
        """Whether exactly these inputs would be understood (all known, none missing)."""
        known = {self._by_name[n].name if n in self._by_name else None for n in names}
        return None not in known and known >= {s.name for s in self.inputs if not s.optional}

    def chosen_outputs(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The outputs a request gets; InvalidInput for an unknown or repeated name."""
        if not names:
            return self.defaults
        for name in names:
            if name not in self._output_names:
                hint = did_you_mean(name, self._output_names)
                raise InvalidInput(f"unknown output {name!r}{hint}; the model has: {', '.join(o.name for o in self.outputs)}")
        if len(set(names)) != len(names):
            twice = next(n for n in names if list(names).count(n) > 1)
            raise InvalidInput(f"output {twice!r} is requested twice")
        return tuple(names)

    def check(self, inputs: Mapping[str, Tensor]) -> Checked:
        """The inputs as the model wants them, or InvalidInput saying which one does not fit and how."""
        arrays: dict[str, Array] = {}
        rows, first = 1, ""
        for given, tensor in inputs.items():
            spec = self._by_name.get(given)
            if spec is None:
                raise WrongInputs(
                    f"unknown input {given!r}{did_you_mean(given, self._by_name)}; the model expects: {self._expected()}"
                )
            if spec.name in arrays:
                raise InvalidInput(f"input {spec.name!r} is given twice (once as {given!r})")
            array = tensor.array
            if tensor.datatype != spec.datatype or not array.ndim or array.shape[1:] != spec.row:
                array = _fit(spec, given, tensor)
            if self.batched:
                if not array.ndim:
                    raise InvalidInput(f"input {given!r} is a scalar, the model expects rows")
                if not first:
                    rows, first = len(array), given
                elif len(array) != rows:
                    raise InvalidInput(f"inputs disagree about the batch: {first!r} has {rows} rows, {given!r} has {len(array)}")
            arrays[spec.name] = array
        if len(arrays) != len(self.inputs):
            missing = [s.name for s in self.inputs if s.name not in arrays and not s.optional]
            if missing:
                raise WrongInputs(f"missing input {', '.join(map(repr, missing))}; the model expects: {self._expected()}")
        return Checked(arrays, rows)

    def _expected(self) -> str:
        return ", ".join(f"{s.name} {s.datatype}{list(s.shape)}" for s in self.inputs)


class OpenSignature(Signature):
    """A signature of code that declares no inputs, or no outputs: what is not declared may have any name, type and shape.

    Never batched, since nothing says what counts rows.  With open outputs a request that names none gets all.
    """

    def takes(self, names: Iterable[str]) -> bool:
        return super().takes(names) if self.inputs else True

    def chosen_outputs(self, names: Sequence[str] | None) -> tuple[str, ...]:
        return super().chosen_outputs(names) if self.outputs else tuple(dict.fromkeys(names or ()))

    def check(self, inputs: Mapping[str, Tensor]) -> Checked:
        return super().check(inputs) if self.inputs else Checked({name: t.array for name, t in inputs.items()}, 1)


def _fit(spec: TensorSpec, given: str, tensor: Tensor) -> Array:
    array = tensor.array
    if tensor.datatype != spec.datatype:
        array = _cast(spec, given, tensor)
    shape, want = array.shape, spec.shape
    if spec.unknown_rank:
        pass
    elif len(shape) != len(want):
        if spec.column and len(shape) == 2 and shape[1] == 1:
            array = array.reshape(-1)
        elif spec.column and len(shape) == 1 and want[1:] == (1,):
            array = array.reshape(-1, 1)
        else:
            hint = ""
            if len(shape) == len(want) - 1 and _same(shape, want[1:]):
                hint = f"; did you mean {[1, *shape]} (one row)?"
            raise InvalidInput(f"input {given!r} has shape {list(shape)}, the model expects {list(want)}{hint}")
    elif not _same(shape, want):
        raise InvalidInput(f"input {given!r} has shape {list(shape)}, the model expects {list(want)}")
    if tensor.datatype == "BYTES" and not spec.nullable:
        for at, value in enumerate(array.ravel().tolist()):
            if value is None:
                raise InvalidInput(f"input {given!r} is null at element {at}, and the model takes no missing values there")
    return array


def _same(shape: Sequence[int], want: Sequence[int]) -> bool:
    return len(shape) == len(want) and all(w in (-1, n) for n, w in zip(shape, want, strict=True))


def _cast(spec: TensorSpec, given: str, tensor: Tensor) -> Array:
    """The tensor in the model's datatype where no value can change (widening), else InvalidInput."""
    have, want = DATATYPES[tensor.datatype], DATATYPES[spec.datatype]
    numbers = have.dtype.kind in "iuf" and want.dtype.kind in "iuf"
    if numbers and "BF16" not in (have.name, want.name) and np.can_cast(have.dtype, want.dtype, "safe"):
        return tensor.array.astype(want.dtype)
    if have.name == "BOOL" and spec.column and want.dtype.kind in "iuf" and want.name != "BF16":
        # a table's column of true and false, which the model was fitted on as 1 and 0
        return tensor.array.astype(want.dtype)
    if have.name == "BF16" and want.name in ("FP32", "FP64"):
        return tensor.array.astype(want.dtype)
    raise InvalidInput(f"input {given!r} is {have.name}, the model expects {want.name}")


class Timing(NamedTuple):
    """Where a request's time went, in seconds, and the batch that it ran in.  `began` is that, on `time.monotonic`'s clock."""

    queue: float = 0.0
    compute: float = 0.0
    batch_rows: int = 0
    began: float = 0.0


@dataclass(slots=True)
class InferRequest:
    """One request: `outputs` None means the model's defaults, `version` empty means that the server chooses.

    `timeout` is in seconds from now, None for none.
    """

    model: str
    inputs: dict[str, Tensor]
    version: str = ""
    id: str = ""
    outputs: list[str] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    # of which outputs the best classes are wanted, and how many; of a call over gRPC
    classes: Mapping[str, int] | None = None
    # what it was on the wire: arrays of text do not tell their own size
    nbytes: int = 0


@dataclass(slots=True)
class InferResponse:
    model: str
    version: str
    outputs: dict[str, Tensor]
    id: str = ""
    rows: int = 1
    timing: Timing = Timing()
    labels: ClassLabels = ClassLabels()
    # the outputs' first dimension counts rows
    batched: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of the outputs' arrays, with those of their texts where the references alone do not make it large."""
        return sum([t.array.nbytes + (_text_bytes(t.array) if t.array.dtype.kind == "O" else 0) for t in self.outputs.values()])


def _text_bytes(texts: Array) -> int:
    return 0 if texts.size > MANY_TEXTS else sum([len(t) for t in texts.ravel().tolist() if t is not None])


def element_count(shape: Sequence[int]) -> int:
    """Elements of a shape, in Python's integers: it can't overflow, whatever a request claims."""
    return math.prod(shape)


def synthetic(spec: TensorSpec, rows: int, seed: int = 0, free: int = 1) -> Array:
    """Plausible made-up values for a tensor: `rows` of them where its first dimension is free, `free` for other free ones."""
    rng = np.random.default_rng(seed)
    shape = [rows if i == 0 and n == -1 else free if n == -1 else n for i, n in enumerate(spec.shape)]
    dtype = DATATYPES[spec.datatype].dtype
    if dtype.kind == "f":
        return np.round(rng.random(shape), 3).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    texts = np.empty(shape, object)
    texts.ravel()[:] = [f"text {n}".encode() for n in rng.integers(0, 10, texts.size)]
    return texts
