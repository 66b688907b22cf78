"""Shortcuts for trees, forests and gradient boosting: all trees in one.

scikit-learn walks a row down one tree at a time, with some microseconds of Python around each.  Here the trees hang below
one more tree, which sends a row to the tree that an extra column names, so that one compiled call walks each row down all
of them.  What the leaves say is added up in scikit-learn's order, which the last bit depends on.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from predictors._sklearn_shortcut import FLOAT32, FLOAT64, Method, Shortcut
from server.tensors import Array

# Bytes of the table with each row once for each tree: what the second level of a processor's cache holds.
_TABLE = 1 << 20
# Trees in one are a second copy of them; those that would take more are left as they are.
COPY_LIMIT = 64 << 20
_SOME_EDGES = 4096

# Rows at a time up to which trees are better walked in one: boosted ones of the two kinds, and forests.
_FEW, _SOME, _MANY = 16, 64, 100

# plain rows → for each tree (in order), each row, each number of its leaf
Leaves = Callable[[Array], Array]


@dataclass(frozen=True)
class Fields:
    """What scikit-learn calls the parts of a node, in its two kinds of trees."""

    left: str
    right: str
    feature: str
    threshold: str


_TREE = Fields("left_child", "right_child", "feature", "threshold")
_HISTOGRAM = Fields("left", "right", "feature_idx", "num_threshold")


def shortcuts(estimator: Any, method: str, code: str, shared: dict[int, list[Shortcut]]) -> list[Shortcut]:
    """Shortcuts for one method, the best first; `code` is the class and name of the function that implements it.

    `shared`, empty at first, keeps by the estimator's id what all of its methods begin with, which may be megabytes.
    """
    for codes, raw, finish in _FAMILIES:
        if code in codes:
            if id(estimator) not in shared:
                shared[id(estimator)] = raw(estimator)
            return [replace(s, run=finish(estimator, method, s.run)) for s in shared[id(estimator)]]
    return []


def _single(estimator: Any) -> list[Shortcut]:
    tree = estimator.tree_
    if tree.n_outputs != 1:
        return []
    walk, nan = tree.predict, _takes_nan(estimator)
    return [Shortcut("its tree alone", tree.n_features, lambda x: walk(x.astype(np.float32)), FLOAT32, nan, _edges([tree]))]


def _forest(estimator: Any) -> list[Shortcut]:
    trees = [e.tree_ for e in estimator.estimators_]
    if trees[0].n_outputs != 1:
        return []
    count, width = len(trees), trees[0].n_features

    def mean(total: Method) -> Method:
        def run(x: Array) -> Array:
            sums: Array = total(x)
            sums /= count
            return sums

        return run

    apart = Shortcut(
        f"{count} trees without checks between them",
        width,
        mean(lambda x: _one_by_one(trees, x)),
        FLOAT32,
        _takes_nan(estimator.estimators_[0]),
        _edges(trees),
    )
    leaves = trees_in_one(trees)
    if leaves is None:
        return [apart]
    few = mean(_blocks(lambda x: _sum(leaves(x), 0.0), _block(count, width, 4)))
    # a tree that many rows walk down one after the other stays in the processor's cache
    joined: Method = lambda x: few(x) if len(x) <= _MANY else apart.run(x)  # noqa: E731
    return [replace(apart, how=f"{count} trees in one", run=joined), apart]


def _of_means(estimator: Any, method: str, means: Method) -> Method:
    """A method by what gives each class's share, or a regressor's only number in a column."""
    if not hasattr(estimator, "classes_"):
        return lambda x: means(x)[:, 0]
    shares = means
    if method == "predict":
        classes = estimator.classes_
        return lambda x: classes.take(shares(x).argmax(axis=1), axis=0)
    if method == "predict_log_proba":
        return lambda x: np.log(shares(x))
    return shares


def _boosting(estimator: Any) -> list[Shortcut]:
    stages, rate = estimator.estimators_, estimator.learning_rate
    trees = [e.tree_ for e in stages.ravel()]
    width, each, first = trees[0].n_features, stages.shape[1], _first_guess(estimator)
    if first is None:
        return []
    add = importlib.import_module("sklearn.ensemble._gradient_boosting").predict_stages

    def added(x: Array) -> Array:
        raw = np.repeat(first, len(x), axis=0)
        add(stages, np.ascontiguousarray(x, np.float32), rate, raw)
        return raw

    apart = Shortcut(f"{len(trees)} trees without checks before them", width, added, FLOAT32, edges=_edges(trees))
    leaves = trees_in_one(trees, rate)
    if leaves is None:
        return [apart]

    def joined(x: Array) -> Array:
        # scikit-learn's own loop over the trees is compiled: it costs more to begin with, and less a row
        return added(x) if len(x) > _FEW else np.ascontiguousarray(_stages(leaves(x), each, first).T)

    return [replace(apart, how=f"{len(trees)} trees in one", run=joined), apart]


def _first_guess(estimator: Any) -> Array | None:
    """What the sum of a row's trees starts from, as an array of one row; None where that depends on the row."""
    zero = isinstance(estimator.init_, str)
    if not zero and not type(estimator.init_).__module__.startswith("sklearn.dummy"):
        return None
    first: Array = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_)))
    return first.astype(np.float64)


def _histogram(estimator: Any) -> list[Shortcut]:
    if getattr(estimator, "_preprocessor", None) is not None:
        # categories of its own are told from numbers before the trees see them
        return []
    predictors = [p for stage in estimator._predictors for p in stage]
    width, each = estimator._n_features, estimator.n_trees_per_iteration_
    joined = join([p.nodes for p in predictors], [p.nodes["is_leaf"] == 0 for p in predictors], _HISTOGRAM, width)
    first: Array = estimator._baseline_prediction.reshape(1, -1)
    if joined.nbytes > COPY_LIMIT or len(predictors) * width * 8 > _TABLE or first.dtype != np.float64:
        return []
    walk = importlib.import_module("sklearn.ensemble._hist_gradient_boosting._predictor")._predict_from_raw_data
    threads = importlib.import_module("sklearn.utils._openmp_helpers")._openmp_effective_n_threads
    known, positions = estimator._bin_mapper.make_known_categories_bitsets()
    none, longer = predictors[0].raw_left_cat_bitsets, np.append(positions, positions.dtype.type(0))
    count, names = len(predictors), np.arange(len(predictors), dtype=np.float64)

    def raw(x: Array) -> Array:
        if len(x) > _SOME:
            total = np.repeat(first.T, len(x), axis=1)
            for i, predictor in enumerate(predictors):
                total[i % each] += predictor.predict(x, known, positions, threads())
            return total.T
        values = np.empty(count * len(x))
        walk(joined, _for_each_tree(x, names), none, known, longer, 1, values)
        return _stages(values.reshape(count, len(x), 1), each, first).T

    edges = _thresholds([p.nodes for p in predictors], _HISTOGRAM, width)
    return [Shortcut(f"{count} trees in one", width, raw, FLOAT64, True, edges)]


def _of_scores(estimator: Any, method: str, raw: Method) -> Method:
    """A boosted model's method by its raw scores, of which there is a column for each class, or one for two classes."""
    flat = estimator.n_trees_per_iteration_ == 1
    scores: Method = (lambda x: raw(x).ravel()) if flat else raw
    if method == "decision_function" or not hasattr(estimator, "classes_"):
        return scores
    classes, shares = estimator.classes_, estimator._loss.predict_proba
    if method == "predict":
        return (lambda x: classes[(scores(x) >= 0).astype(int)]) if flat else (lambda x: classes[scores(x).argmax(axis=1)])
    if method == "predict_log_proba":
        return lambda x: np.log(shares(scores(x)))
    return lambda x: shares(scores(x))


def _of_histogram_scores(estimator: Any, method: str, raw: Method) -> Method:
    if not hasattr(estimator, "classes_"):
        inverse = estimator._loss.link.inverse
        return lambda x: inverse(raw(x).ravel())
    if method == "predict" and estimator.n_trees_per_iteration_ == 1:
        classes = estimator.classes_
        return lambda x: classes[(raw(x).ravel() > 0).astype(int)]
    if method == "predict_proba":
        shares = estimator._loss.predict_proba
        return lambda x: shares(raw(x))
    return _of_scores(estimator, method, raw)


def trees_in_one(trees: Sequence[Any], scale: float | None = None) -> Leaves | None:
    """What the leaves of all trees say, times `scale`, by one call; None where the copy would be too large."""
    width, numbers = trees[0].n_features, int(trees[0].max_n_classes)
    nodes = sum(t.node_count for t in trees)
    if nodes * (trees[0].__getstate__()["nodes"].itemsize + 8 * (numbers + 1)) > COPY_LIMIT or width * len(trees) * 4 > _TABLE:
        return None
    states = [t.__getstate__() for t in trees]
    joined = join([s["nodes"] for s in states], [s["nodes"]["left_child"] != -1 for s in states], _TREE, width)
    router = len(joined) - nodes
    said = np.concatenate([np.zeros((router, numbers)), *(s["values"][:, 0, :] for s in states)])
    if scale is not None:
        said *= scale
    one = type(trees[0])(width + 1, np.ones(1, np.intp), 1)
    # what its leaves say is in `said`, so that the tree itself need not know
    one.__setstate__({"max_depth": 0, "node_count": len(joined), "nodes": joined, "values": np.zeros((len(joined), 1, 1))})
    walk, count, names = one.apply, len(trees), np.arange(len(trees), dtype=np.float32)

    def leaves(x: Array) -> Array:
        found: Array = said.take(walk(_for_each_tree(x, names)), axis=0).reshape(count, len(x), numbers)
        return found

    return leaves


def join(trees: Sequence[Array], inner: Sequence[Array], fields: Fields, column: int) -> Array:
    """The nodes of several trees as one tree, which asks `column` for a tree's number first.

    `inner` tells the nodes of each tree that are no leaves.
    """
    first = len(trees) - 1
    starts = first + np.cumsum([0, *(len(t) for t in trees)])
    joined: Array = np.zeros(int(starts[-1]), trees[0].dtype)
    free = iter(range(first))

    def route(low: int, high: int) -> int:
        if high - low == 1:
            return int(starts[low])
        node, middle = next(free), (low + high) // 2
        joined[fields.feature][node], joined[fields.threshold][node] = column, middle - 0.5
        joined[fields.left][node] = route(low, middle)
        joined[fields.right][node] = route(middle, high)
        return node

    route(0, len(trees))
    for nodes, parents, start in zip(trees, inner, starts, strict=False):
        part = joined[start : start + len(nodes)]
        part[:] = nodes
        for child in (fields.left, fields.right):
            part[child][parents] += nodes.dtype[child].type(start)
    return joined


def _for_each_tree(x: Array, names: Array) -> Array:
    """All rows once for each tree, with its number behind them."""
    rows, width = x.shape
    table = np.empty((len(names), rows, width + 1), names.dtype)
    table[:, :, :width] = x
    table[:, :, width] = names[:, None]
    return table.reshape(-1, width + 1)


def _block(trees: int, width: int, itemsize: int) -> int:
    return max(1, _TABLE // (trees * (width + 1) * itemsize))


def _blocks(run: Method, rows: int) -> Method:
    """The same, for not more than so many rows at a time."""

    def method(x: Array) -> Array:
        if len(x) <= rows:
            result: Array = run(x)
            return result
        return np.concatenate([run(x[i : i + rows]) for i in range(0, len(x), rows)])

    return method


def _sum(leaves: Array, first: float | Array) -> Array:
    """`first` and then one tree after the other."""
    leaves[0] += first
    # numpy adds up what lies in one line by halves, but never a running total
    total: Array = np.add.accumulate(leaves, axis=0)[-1] if leaves[0].size == 1 else np.add.reduce(leaves, axis=0)
    return total


def _stages(leaves: Array, each: int, first: Array) -> Array:
    """The sums of boosted trees, of which a stage has `each`: one line for each of those."""
    return _sum(leaves.reshape(-1, each, leaves.shape[1]), first.T)


def _one_by_one(trees: Sequence[Any], x: Array) -> Array:
    narrow = x.astype(np.float32)
    total = np.zeros((len(x), trees[0].max_n_classes))
    for tree in trees:
        total += tree.predict(narrow)
    return total


def _takes_nan(estimator: Any) -> bool:
    return bool(estimator._support_missing_values(np.zeros((1, 1))))


def edges(estimator: Any) -> tuple[Array, ...]:
    """Some of the values of each column at which a tree or a forest decides; empty for anything else."""
    trees = [e.tree_ for e in np.ravel(getattr(estimator, "estimators_", [estimator])) if hasattr(e, "tree_")]
    return _edges(trees) if trees else ()


def _edges(trees: Sequence[Any]) -> tuple[Array, ...]:
    return _thresholds([t.__getstate__()["nodes"] for t in trees], _TREE, trees[0].n_features)


def _thresholds(trees: Sequence[Array], fields: Fields, width: int) -> tuple[Array, ...]:
    """Some of the thresholds of each column."""
    inner = np.concatenate([t[fields.left] != t[fields.right] for t in trees])
    features = np.concatenate([t[fields.feature] for t in trees])[inner]
    order = features.argsort(kind="stable")
    thresholds = np.concatenate([t[fields.threshold] for t in trees])[inner][order]
    parts = np.split(thresholds, np.searchsorted(features[order], range(1, width)))
    return tuple(values[:: len(values) // _SOME_EDGES + 1] for values in parts)


# what implements the methods; what they begin with; how they go on
_FAMILIES: tuple[tuple[frozenset[str], Callable[[Any], list[Shortcut]], Callable[[Any, str, Method], Method]], ...] = (
    (
        frozenset(
            {
                "BaseDecisionTree.predict",
                "DecisionTreeClassifier.predict_proba",
                "DecisionTreeClassifier.predict_log_proba",
            }
        ),
        _single,
        _of_means,
    ),
    (
        frozenset(
            {
                "ForestClassifier.predict",
                "ForestClassifier.predict_proba",
                "ForestClassifier.predict_log_proba",
                "ForestRegressor.predict",
            }
        ),
        _forest,
        _of_means,
    ),
    (
        frozenset(
            {
                "GradientBoostingClassifier.decision_function",
                "GradientBoostingClassifier.predict",
                "GradientBoostingClassifier.predict_proba",
                "GradientBoostingClassifier.predict_log_proba",
                "GradientBoostingRegressor.predict",
            }
        ),
        _boosting,
        _of_scores,
    ),
    (
        frozenset(
            {
                "HistGradientBoostingClassifier.decision_function",
                "HistGradientBoostingClassifier.predict",
                "HistGradientBoostingClassifier.predict_proba",
                "HistGradientBoostingRegressor.predict",
            }
        ),
        _histogram,
        _of_histogram_scores,
    ),
)
