"""Shortcuts for linear models and for what is often in front of one: the arithmetic without what scikit-learn asks before it.

Each does the same operations in the same order on arrays of the same layout, since a sum depends on all of that.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from predictors._sklearn_shortcut import Method, Shortcut
from server.tensors import Array

HOW = "numpy"


def shortcuts(estimator: Any, code: str) -> list[Shortcut]:
    """Shortcuts for one method, the best first; `code` is the class and name of the function that implements it."""
    maker = _MAKERS.get(code)
    runs = [] if maker is None else maker(estimator)
    width = getattr(estimator, "n_features_in_", 0)
    return [Shortcut(HOW, width, run) for run in runs] if width else []


def _scores(estimator: Any) -> list[Method]:
    coefficients, intercept = estimator.coef_, estimator.intercept_
    if type(coefficients) is not np.ndarray:
        return []
    # of the same layout as scikit-learn's operand: not a copy
    weights = coefficients.T
    if weights.ndim == 2 and weights.shape[1] == 1:
        return [lambda x: (x @ weights + intercept).reshape(-1)]
    return [lambda x: x @ weights + intercept]


def _values(estimator: Any) -> list[Method]:
    coefficients, intercept = estimator.coef_, estimator.intercept_
    if type(coefficients) is not np.ndarray:
        return []
    weights = coefficients.T
    return [lambda x: x @ weights + intercept]


def _labels(estimator: Any) -> list[Method]:
    classes = estimator.classes_
    if isinstance(classes, list):
        return []
    return [_best_class(classes, scores, len(classes) == 2) for scores in _scores(estimator)]


def _best_class(classes: Array, scores: Method, two: bool) -> Method:
    if two:
        return lambda x: classes.take((scores(x) > 0).astype(np.intp), axis=0)
    return lambda x: classes.take(scores(x).argmax(axis=1), axis=0)


def _ridge_labels(estimator: Any) -> list[Method]:
    return [] if estimator._label_binarizer.y_type_.startswith("multilabel") else _labels(estimator)


def _shares(estimator: Any) -> list[Method]:
    """Of a logistic regression, which in older files may be one of several kinds."""
    if len(estimator.classes_) == 2:
        return [_two_shares(scores) for scores in _scores(estimator)]
    return [way(scores) for scores in _scores(estimator) for way in (_softmax, _one_against_others)]


def _descended_shares(estimator: Any) -> list[Method]:
    if estimator.loss != "log_loss":
        return []
    way = _two_shares if len(estimator.classes_) == 2 else _one_against_others
    return [way(scores) for scores in _scores(estimator)]


def _logarithms(of: Callable[[Any], list[Method]]) -> Callable[[Any], list[Method]]:
    return lambda estimator: [_logarithm(shares) for shares in of(estimator)]


def _logarithm(shares: Method) -> Method:
    return lambda x: np.log(shares(x))


def _softmax(scores: Method) -> Method:
    def shares(x: Array) -> Array:
        found: Array = scores(x)
        found -= np.maximum.reduce(found, axis=1, keepdims=True)
        np.exp(found, out=found)
        found /= np.add.reduce(found, axis=1, keepdims=True)
        return found

    return shares


def _two_shares(scores: Method) -> Method:
    expit = importlib.import_module("scipy.special").expit

    def shares(x: Array) -> Array:
        yes: Array = expit(scores(x))
        both = np.empty((len(yes), 2), yes.dtype)
        np.subtract(1, yes, out=both[:, 0])
        both[:, 1] = yes
        return both

    return shares


def _one_against_others(scores: Method) -> Method:
    expit = importlib.import_module("scipy.special").expit

    def shares(x: Array) -> Array:
        found: Array = scores(x)
        expit(found, out=found)
        total = found.sum(axis=1)
        nothing = total == 0
        if nothing.any():
            found[nothing, :] = 1
            total[nothing] = found.shape[1]
        found /= total.reshape(-1, 1)
        return found

    return shares


def _shifted(shift: str, scale: str) -> Callable[[Any], list[Method]]:
    """A scaler that subtracts one fitted attribute and divides by another, unless it has none."""

    def scaled(estimator: Any) -> list[Method]:
        center = getattr(estimator, shift, None)
        spread = getattr(estimator, scale, None)
        if getattr(estimator, "with_mean", True) is False or getattr(estimator, "with_centering", True) is False:
            center = None
        if getattr(estimator, "clip", False):
            return []

        def transform(x: Array) -> Array:
            y = x.copy() if center is None else x - center
            if spread is not None:
                y /= spread
            return y

        return [transform]

    return scaled


def _to_range(estimator: Any) -> list[Method]:
    scale, least = estimator.scale_, estimator.min_
    low, high = estimator.feature_range
    clip = estimator.clip

    def transform(x: Array) -> Array:
        y: Array = x * scale
        y += least
        if clip:
            np.clip(y, low, high, out=y)
        return y

    return [transform]


def _nothing_missing(estimator: Any) -> list[Method]:
    """An imputer, for rows without NaN, where no column is left out or added."""
    missing = estimator.missing_values
    plain = isinstance(missing, float) and math.isnan(missing) and not estimator.add_indicator
    if not plain or estimator.statistics_.dtype.kind != "f" or np.isnan(estimator.statistics_).any():
        return []
    return [lambda x: x.copy()]


_MAKERS: dict[str, Callable[[Any], list[Method]]] = {
    "BaseSGDRegressor.predict": _values,
    "LinearClassifierMixin.decision_function": _scores,
    "LinearClassifierMixin.predict": _labels,
    "LinearModel.predict": _values,
    "LogisticRegression.predict_log_proba": _logarithms(_shares),
    "LogisticRegression.predict_proba": _shares,
    "MaxAbsScaler.transform": _shifted("", "scale_"),
    "MinMaxScaler.transform": _to_range,
    "MultiOutputLinearModel.predict": _values,
    "Ridge.predict": _values,
    "RidgeCV.predict": _values,
    "RobustScaler.transform": _shifted("center_", "scale_"),
    "SGDClassifier.predict_log_proba": _logarithms(_descended_shares),
    "SGDClassifier.predict_proba": _descended_shares,
    "SimpleImputer.transform": _nothing_missing,
    "StandardScaler.transform": _shifted("mean_", "scale_"),
    "_RidgeClassifierMixin.predict": _ridge_labels,
}
