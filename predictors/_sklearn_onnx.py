"""A fitted model → a session of onnxruntime that comes near it, where skl2onnx can convert it: on request only.

Near is not the same: a session may add up in another order, and in 32 bits.  So the session is compared with the model at
load, on made-up rows and on those of a sample file, and is not used where it gives other labels or numbers.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from predictors import _sklearn_trees
from predictors._sklearn_shortcut import FLOAT32, FLOAT64, Method, Shortcut, guarded, made_up
from server.errors import ModelLoadError
from server.tensors import Array

# How far a number may be from the model's, as a share of it where it is more than 1.  Two classes whose probabilities are
# no further apart are tied, and either label counts as right; but not for more than this share of the rows.
TOLERANCE = 1e-5
TIES = 0.01
SAMPLE_ENDINGS = (".sample.json", ".sample.npy", ".sample.csv")
# rows to compare with: as many of each origin
ROWS = 1000
# where estimators keep the rows that they learnt from, or some of them
_LEARNT = ("support_vectors_", "_fit_X", "X_train_")
# the methods that a session can stand in for, in the order of its outputs
_METHODS = ("predict", "predict_proba")


class Unfit(Exception):
    """Why there is no session that could be used."""


@dataclass(frozen=True)
class Converted:
    """`methods` in place of the model's own of these names; what answers them, and what the comparison found."""

    methods: Mapping[str, Method]
    how: str
    found: "Comparison"


@dataclass(frozen=True)
class Comparison:
    """Of some rows: those with another label, those of them that are no tie, those with a number that is too far off."""

    rows: int = 0
    labels: int = 0
    wrong: int = 0
    far: int = 0
    furthest: float = 0.0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.rows + other.rows,
            self.labels + other.labels,
            self.wrong + other.wrong,
            self.far + other.far,
            max(self.furthest, other.furthest),
        )

    @property
    def near(self) -> bool:
        return not self.wrong and not self.far and self.labels <= TIES * self.rows

    def __str__(self) -> str:
        ties = f", {self.labels - self.wrong} of them ties" if self.labels else ""
        return (
            f"of {self.rows} rows {self.labels} have another label{ties},"
            f" and {self.far} a number further off than {TOLERANCE:g} (at most {self.furthest:.1g})"
        )


def converted(model: Any, own: Mapping[str, Method], rows: Sequence[Array]) -> Converted:
    """A session in place of what the model predicts, or else transforms; Unfit says why there is none.

    `own` are the methods that count as right, and that go on answering for rows which are not plain numbers.
    """
    names = [m for m in _METHODS if m in own] or ["transform"]
    if names[0] not in own:
        raise Unfit("it does not predict or transform")
    if not rows or any(type(x) is not np.ndarray or x.dtype != np.float64 for x in rows):
        raise Unfit("it takes more than numbers")
    reasons = []
    for dtype in (np.float64, np.float32):
        kind = np.dtype(dtype).name
        try:
            session = _session(model, dtype, rows[0].shape[1])
            methods = _methods(session, dtype, own, names, rows[0])
            found = _compared(methods, own, rows)
        except ModelLoadError:
            raise
        except Exception as error:
            # what skl2onnx and onnxruntime raise has no common base, and all of it means that this can't be used
            reasons.append(f"{kind}: {type(error).__name__}: {(str(error).strip() or 'no text').splitlines()[0][:200]}")
            continue
        if found.near:
            return Converted(methods, f"ONNX in {kind} ({found})", found)
        reasons.append(f"{kind}: {found}")
    raise Unfit("; ".join(reasons))


def _session(model: Any, dtype: type, width: int) -> Any:
    try:
        convert = importlib.import_module("skl2onnx").convert_sklearn
        types = importlib.import_module("skl2onnx.common.data_types")
        ort = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"accelerate=onnx needs the Python package {error.name!r}, which is not installed",
            "run: pip install 'serveplane[accelerate]', or leave the option out",
        ) from error
    kind = types.DoubleTensorType if dtype is np.float64 else types.FloatTensorType
    # probabilities as one array, and not as a dictionary for each row
    options = {id(model): {"zipmap": False}} if hasattr(model, "classes_") else None
    graph = convert(model, initial_types=[("x", kind([None, width]))], options=options)
    settings = ort.SessionOptions()
    # a request has one thread, as with scikit-learn's own code
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    settings.enable_cpu_mem_arena = settings.enable_mem_pattern = False
    return ort.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def _methods(session: Any, dtype: type, own: Mapping[str, Method], names: Sequence[str], rows: Array) -> dict[str, Method]:
    largest = FLOAT64 if dtype is np.float64 else FLOAT32
    methods = {}
    for name, output in zip(names, session.get_outputs(), strict=False):
        like = own[name](rows[:1])
        if type(like) is not np.ndarray:
            raise Unfit(f"{name} gives a {type(like).__name__}")
        run = _run(session.run, output.name, dtype, like)
        methods[name] = guarded(Shortcut("ONNX", rows.shape[1], run, largest), own[name])
    return methods


def _run(run_session: Callable[..., Any], output: str, dtype: type, like: Array) -> Method:
    """One output of a session in the type and the shape that the model gives."""
    tail, kind = like.shape[1:], object if like.dtype.kind in "OU" else like.dtype

    def run(x: Array) -> Array:
        found: Array = run_session([output], {"x": x.astype(dtype, "C", copy=False)})[0]
        return found.reshape(len(x), *tail).astype(kind, copy=False)

    return run


def _compared(methods: Mapping[str, Method], own: Mapping[str, Method], rows: Sequence[Array]) -> Comparison:
    return sum((_compare(methods, own, x) for x in rows), Comparison())


def _compare(methods: Mapping[str, Method], own: Mapping[str, Method], x: Array) -> Comparison:
    labels = wrong = 0
    far, furthest = np.zeros(len(x), bool), 0.0
    for name, method in methods.items():
        found, expected = method(x), own[name](x)
        if expected.dtype.kind == "f":
            off = (np.abs(found - expected) / np.maximum(1, np.abs(expected))).reshape(len(x), -1).max(axis=1)
            # a NaN is as far off as can be
            far |= ~(off <= TOLERANCE)
            furthest = max(furthest, float(off.max()))
        else:
            differ = (found.astype(object) != expected.astype(object)).reshape(len(x), -1).any(axis=1)
            labels = int(differ.sum())
            wrong = labels - _ties(own, x[differ]) if labels else 0
    return Comparison(len(x), labels, wrong, int(far.sum()), furthest)


def _ties(own: Mapping[str, Method], x: Array) -> int:
    """Rows whose two likeliest classes are as likely as each other; none where the model tells no probabilities."""
    if "predict_proba" not in own:
        return 0
    shares = np.sort(own["predict_proba"](x), axis=1)
    return int((shares[:, -1] - shares[:, -2] <= TOLERANCE).sum())


def learnt_rows(model: Any, width: int, seed: int = 0) -> list[Array]:
    """Rows at a model's thresholds, and near those that it remembers, so far as it tells."""
    rng = np.random.default_rng(seed)
    edges = _sklearn_trees.edges(model)
    rows = [made_up(rng, ROWS, width, edges)] if edges else []
    for name in _LEARNT:
        learnt = getattr(model, name, None)
        if type(learnt) is np.ndarray and learnt.ndim == 2 and learnt.shape[1] == width and len(learnt):
            picked = learnt[rng.integers(0, len(learnt), ROWS)].astype(np.float64)
            rows.append(picked + 0.1 * learnt.std(axis=0) * rng.standard_normal(picked.shape))
    return rows


def sample_file(model: Path, width: int) -> Iterator[Array]:
    """The rows of a file MODEL.sample.json, .npy or .csv beside a model; Unfit where it does not hold such rows."""
    for ending in SAMPLE_ENDINGS:
        path = model.with_name(model.stem + ending)
        if not path.exists():
            continue
        try:
            rows = np.asarray(_read(path), np.float64)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise Unfit(f"{path.name} can't be read: {error}") from error
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise Unfit(f"{path.name} holds an array of shape {list(rows.shape)}, and rows of {width} numbers are wanted")
        yield rows


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".csv":
        lines = path.read_text().splitlines()
        try:
            return np.loadtxt(lines, delimiter=",", ndmin=2)
        except ValueError:
            # the first line may be the columns' names
            return np.loadtxt(lines[1:], delimiter=",", ndmin=2)
    rows = json.loads(path.read_text())
    return rows["instances"] if isinstance(rows, dict) else rows
