"""A fitted model → faster methods that give the same bits, where there are any; found and proven when the model is loaded.

A pipeline is as fast as its steps: each step's shortcut is tried against that step, and the whole against the pipeline.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from predictors import _sklearn_linear, _sklearn_trees
from predictors._sklearn_shortcut import Method, Shortcut, compared, difference, guarded

# Rows of more columns are seldom arrays, and take long to try.
WIDEST = 10_000


@dataclass(frozen=True)
class Faster:
    """A method in place of the estimator's own; `how` tells by what means.  Without `method`, `how` tells why not.

    `least`: it is the arithmetic alone, and nothing else could be quicker.
    """

    how: str
    method: Method | None = None
    least: bool = False


def faster(model: Any, methods: Iterable[str], samples: Sequence[Any]) -> dict[str, Faster]:
    """What is to be had for each method: nothing that differs from it, for made-up rows and for the samples."""
    shared: dict[int, list[Shortcut]] = {}
    return {name: _proven(_find(model, name, samples, shared), getattr(model, name), samples) for name in methods}


def _proven(found: Faster, own: Method, samples: Sequence[Any]) -> Faster:
    if found.method is not None:
        for sample in samples:
            mistake = compared(found.method, own, sample)
            if mistake:
                return Faster(f"{found.how}: {mistake}")
    return found


def _find(estimator: Any, method: str, samples: Sequence[Any], shared: dict[int, list[Shortcut]]) -> Faster:
    code = _code(estimator, method)
    if code.startswith("Pipeline."):
        return _pipeline(estimator, method, samples, shared)
    if code.startswith("BaseSearchCV."):
        return _find(estimator.best_estimator_, method, samples, shared)
    name = type(estimator).__name__
    if not all(type(x) is np.ndarray and x.dtype == np.float64 for x in samples):
        return Faster(f"{name} is not given arrays of numbers")
    if method == "transform" and getattr(estimator, "_sklearn_output_config", None):
        return Faster(f"{name} may give DataFrames")
    own, reasons = getattr(estimator, method), []
    for shortcut in (*_sklearn_trees.shortcuts(estimator, method, code, shared), *_sklearn_linear.shortcuts(estimator, code)):
        mistake = difference(shortcut, own) if shortcut.width <= WIDEST else f"more than {WIDEST} columns"
        if not mistake:
            return Faster(shortcut.how, guarded(shortcut, own), shortcut.how == _sklearn_linear.HOW)
        reasons.append(f"{shortcut.how}: {mistake}")
    return Faster("; ".join(reasons) or f"no shortcut is known for {name}")


def _code(estimator: Any, method: str) -> str:
    """The class of scikit-learn and the name of the function that implement a method; empty where it is somebody else's."""
    function = getattr(type(estimator), method, None)
    ours = all(str(getattr(x, "__module__", "")).startswith("sklearn.") for x in (type(estimator), function))
    return str(getattr(function, "__qualname__", "")) if ours else ""


def _pipeline(pipeline: Any, method: str, samples: Sequence[Any], shared: dict[int, list[Shortcut]]) -> Faster:
    """The steps one after the other, as a pipeline calls them."""
    steps = [step for _, step in pipeline.steps if step is not None and step != "passthrough"]
    if not steps or steps[-1] is not pipeline.steps[-1][1]:
        return Faster("the pipeline's last step does nothing")
    chain: list[Method] = []
    found: list[Faster] = []
    given = list(samples)
    for step in steps:
        name = method if step is steps[-1] else "transform"
        found.append(_find(step, name, given, shared))
        chain.append(found[-1].method or getattr(step, name))
        if step is not steps[-1]:
            given = [step.transform(x) for x in given]
    if not any(f.method for f in found):
        return found[-1]
    *first, last = chain

    def run(x: Any) -> Any:
        for step in first:
            x = step(x)
        return last(x)

    named = zip(steps, found, strict=True)
    how = ", ".join(f"{type(s).__name__} by {f.how if f.method else 'scikit-learn'}" for s, f in named)
    return Faster(how, run, all(f.least for f in found))


def summary(found: Mapping[str, Faster]) -> str:
    """What answers each method, and where that is scikit-learn itself, why: for the metadata and the log."""
    by: dict[str, list[str]] = {}
    for name, f in found.items():
        by.setdefault(f.how if f.method else f"scikit-learn itself ({f.how})", []).append(name)
    return "; ".join(f"{', '.join(names)}: {how}" for how, names in by.items())
