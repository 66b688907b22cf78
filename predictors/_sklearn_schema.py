"""A fitted estimator → the columns it was fitted on: their names, their datatypes, and values they plausibly hold.

Read from fitted attributes alone: nothing is called, nothing is imported, nothing is changed.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# Attributes under which an estimator keeps others that are given the same columns as itself.
_SAME_COLUMNS = ("best_estimator_", "estimator_", "regressor_", "estimator", "_preprocessor")
_MANY = 8


@dataclass(frozen=True)
class Column:
    """One column of a table.  `choices` are categories seen in fitting, or the words of free text where `text`."""

    name: str
    datatype: str = "FP64"
    # what the estimator takes for a missing string
    missing: float | None = math.nan
    choices: tuple[Any, ...] = ()
    text: bool = False
    center: float = 0.0
    spread: float = 1.0
    # a ColumnTransformer drops it, so a request need not have it
    dropped: bool = False


@dataclass(frozen=True)
class Schema:
    """`columns` is empty where the number of features is not known.

    `named`: fitted on a DataFrame.  `frame`: has to be called with one.
    """

    columns: tuple[Column, ...]
    named: bool = False
    frame: bool = False
    # a list of documents and not a table; `columns` then has that one
    documents: bool = False

    @property
    def has_text(self) -> bool:
        return any(c.datatype == "BYTES" for c in self.columns)


def schema_of(model: Any, string_columns: Sequence[str] = ()) -> Schema:
    """What a fitted model takes.  `string_columns` names columns of strings that the model itself does not tell."""
    lead = leading(model)
    if hasattr(lead[-1], "build_analyzer"):
        return Schema((_words(lead[-1], Column("text")),), documents=True)
    names = next((v for e in lead if (v := fitted(e, "feature_names_in_")) is not None), None)
    count = next((v for e in lead if (v := fitted(e, "n_features_in_")) is not None), 0 if names is None else len(names))
    columns = [Column(str(n)) for n in names] if names is not None else [Column(f"x{i}") for i in range(count)]
    _walk(model, range(len(columns)), columns)
    for i, column in enumerate(columns):
        if column.name in string_columns:
            columns[i] = replace(column, datatype="BYTES")
    return Schema(tuple(columns), named=names is not None, frame=names is not None)


def nested(model: Any) -> Iterator[Any]:
    """The estimator and all those inside it, each once."""
    seen: set[int] = set()
    todo = [model]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        inside: Iterable[Any] = ()
        if isinstance(item, dict):
            inside = item.values()
        elif isinstance(item, list | tuple):
            inside = item
        elif isinstance(item, np.ndarray) and item.dtype == object:
            inside = item.ravel().tolist()
        elif not isinstance(item, type) and hasattr(item, "__dict__"):
            estimator = hasattr(item, "get_params")
            if estimator:
                yield item
            # helpers of scikit-learn hold estimators too; objects of others may lead anywhere
            if estimator or type(item).__module__.startswith("sklearn."):
                inside = vars(item).values()
        todo.extend(v for v in inside if not _plain(v))


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bytes | int | float | np.generic)


def fitted(estimator: Any, attribute: str) -> Any:
    """An attribute that may be a property which fails in its own way where there is nothing to tell."""
    try:
        return getattr(estimator, attribute, None)
    except Exception:  # a property of somebody's class; none of its errors matters here
        return None


def leading(model: Any) -> list[Any]:
    """The model, then whatever in it sees the input first, down to an estimator that contains none."""
    lead = [model]
    while inner := _first_steps(lead[-1]) or list(itertools.islice(_same_columns(lead[-1]), 1)):
        lead.append(inner[0])
    return lead


def _first_steps(estimator: Any) -> list[Any]:
    steps = getattr(estimator, "steps", None)
    if isinstance(steps, list):
        return [s for _, s in steps if s is not None and not isinstance(s, str)][:1]
    union = getattr(estimator, "transformer_list", None)
    return [t for _, t in union if not isinstance(t, str)] if isinstance(union, list) else []


def _same_columns(estimator: Any) -> Iterator[Any]:
    for name in _SAME_COLUMNS:
        inner = vars(estimator).get(name) if hasattr(estimator, "__dict__") else None
        # an unfitted template beside its fitted copies says nothing
        if hasattr(inner, "get_params") and not isinstance(inner, type) and (name != "estimator" or _is_fitted(inner)):
            yield inner
    calibrated = getattr(estimator, "calibrated_classifiers_", None) or ()
    yield from (c.estimator for c in itertools.islice(calibrated, 1))
    many = getattr(estimator, "estimators_", None)
    flat: Iterable[Any] = many.ravel() if isinstance(many, np.ndarray) else many if isinstance(many, list) else ()
    yield from (e for e in itertools.islice(flat, _MANY) if hasattr(e, "get_params"))


def _is_fitted(estimator: Any) -> bool:
    lead: Any = estimator
    while first := _first_steps(lead):
        lead = first[0]
    return any(name.endswith("_") and not name.startswith("__") for name in vars(lead))


def _walk(estimator: Any, at: Sequence[int], columns: list[Column]) -> None:
    """Note what an estimator that is given the columns at these positions knows of them."""
    if not hasattr(estimator, "get_params"):
        return
    steps = getattr(estimator, "steps", None)
    transformers = getattr(estimator, "transformers_", None)
    union = getattr(estimator, "transformer_list", None)
    if isinstance(steps, list):
        for _, step in steps:
            _walk(step, at, columns)
            if not _keeps_columns(step):
                return
    elif isinstance(transformers, list):
        for _, transformer, selection in transformers:
            chosen = _selected(selection, at, columns)
            for i in chosen:
                columns[i] = replace(columns[i], dropped=transformer == "drop")
            _walk(transformer, chosen, columns)
    elif isinstance(union, list):
        for _, transformer in union:
            _walk(transformer, at, columns)
    else:
        _note(estimator, at, columns)
        for inner in _same_columns(estimator):
            if fitted(inner, "n_features_in_") in (None, len(at)):
                _walk(inner, at, columns)


def _keeps_columns(step: Any) -> bool:
    """Whether the next step of a pipeline sees the same columns with the same kind of values."""
    if step is None or step == "passthrough":
        return True
    statistics = fitted(step, "statistics_")
    if statistics is None or getattr(step, "add_indicator", False):
        return False
    dropped = [isinstance(s, float) and math.isnan(s) for s in np.asarray(statistics).tolist()]
    return getattr(step, "keep_empty_features", False) or not any(dropped)


def _selected(selection: Any, at: Sequence[int], columns: Sequence[Column]) -> list[int]:
    """The positions that a column selection of a ColumnTransformer means; none where it can't be told."""
    names = [columns[i].name for i in at]
    if isinstance(selection, slice):
        ends = [names.index(e) if isinstance(e, str) else e for e in (selection.start, selection.stop)]
        if isinstance(selection.stop, str):
            # a slice of names includes its end
            ends[1] += 1
        return list(at[slice(ends[0], ends[1], selection.step)])
    if isinstance(selection, str | int | np.integer):
        selection = [selection]
    try:
        items = list(selection)
    except TypeError:
        return []
    if items and all(isinstance(i, bool | np.bool_) for i in items):
        return [i for i, chosen in zip(at, items, strict=False) if chosen]
    return [at[names.index(i) if isinstance(i, str) else int(i)] for i in items if not isinstance(i, str) or i in names]


def _note(estimator: Any, at: Sequence[int], columns: list[Column]) -> None:
    if hasattr(estimator, "build_analyzer"):
        for i in at:
            columns[i] = _words(estimator, columns[i])
        return
    for i, categories in _each(estimator, "categories_", at):
        columns[i] = _categorical(columns[i], np.asarray(categories))
    for i, statistic in _each(estimator, "statistics_", at):
        if isinstance(statistic, str):
            missing = None if estimator.missing_values is None else columns[i].missing
            columns[i] = replace(columns[i], datatype="BYTES", missing=missing)
        elif isinstance(statistic, int | float | np.number) and math.isfinite(statistic):
            columns[i] = replace(columns[i], center=float(statistic))
    centers = dict(itertools.chain(_each(estimator, "mean_", at), _each(estimator, "center_", at)))
    for i, spread in _each(estimator, "scale_", at):
        if i in centers and columns[i].datatype == "FP64":
            columns[i] = replace(columns[i], center=float(centers[i]), spread=float(spread))


def _each(estimator: Any, attribute: str, at: Sequence[int]) -> Iterator[tuple[int, Any]]:
    values = fitted(estimator, attribute)
    if isinstance(values, list | np.ndarray) and len(values) == len(at):
        yield from zip(at, values, strict=True)


def _words(vectorizer: Any, column: Column) -> Column:
    words = itertools.islice(fitted(vectorizer, "vocabulary_") or ("some", "words", "of", "text"), 1000)
    return replace(column, datatype="BYTES", text=True, choices=tuple(str(w) for w in words))


def _categorical(column: Column, categories: np.ndarray[Any, Any]) -> Column:
    values = categories.tolist()
    known = tuple(v for v in values if v is not None and v == v)
    if column.datatype == "BYTES" or any(isinstance(v, str) for v in known):
        missing = None if any(v is None for v in values) else column.missing
        return replace(column, datatype="BYTES", missing=missing, choices=tuple(v for v in known if isinstance(v, str)))
    if known and len(known) == len(values):
        if all(isinstance(v, bool) for v in known):
            return replace(column, datatype="BOOL", choices=known)
        if all(isinstance(v, int) for v in known):
            return replace(column, datatype="INT64", choices=known)
    return replace(column, choices=known)
