"""Shortcuts against the estimators they stand for: the same bits, the same refusals, or none at all."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import KMeans
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, OneHotEncoder, RobustScaler, StandardScaler
from sklearn.svm import LinearSVC, LinearSVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier

from predictors import _sklearn_fast, _sklearn_trees
from predictors._sklearn_fast import Faster, faster
from predictors._sklearn_shortcut import Shortcut, compared, difference
from predictors._sklearn_trees import COPY_LIMIT
from predictors.sklearn import load
from server.errors import InvalidInput, ModelLoadError
from server.runtime import LoadOptions, ModelFile, Runtime

RNG = np.random.default_rng(11)
WIDTH = 4
X = RNG.standard_normal((150, WIDTH)) * [1, 10, 0.1, 1000]
HOLES = np.where(RNG.random(X.shape) < 0.2, np.nan, X)
TWO = (X[:, 0] + X[:, 1] / 5 + RNG.normal(0, 0.5, 150) > 0).astype(int)
THREE = np.array(["low", "middle", "high"])[np.digitize(X[:, 1], [-5, 5])]
NUMBER = X @ [3.0, 0.1, -20, 0.002] + RNG.standard_normal(150)
METHODS = ("predict", "predict_proba", "decision_function", "predict_log_proba", "transform")

# each: an estimator, what it is fitted on, and what is expected to answer in its place
CASES: dict[str, tuple[object, np.ndarray, str]] = {
    "forest": (RandomForestClassifier(20), TWO, "20 trees in one"),
    "forest of text labels": (RandomForestClassifier(7, max_depth=3), THREE, "7 trees in one"),
    "forest of bool labels": (RandomForestClassifier(5), TWO > 0, "5 trees in one"),
    "forest of weighted classes": (RandomForestClassifier(9, class_weight="balanced_subsample"), THREE, "9 trees in one"),
    "forest of one tree": (RandomForestClassifier(1), THREE, "1 trees in one"),
    "forest of stumps": (RandomForestRegressor(3, max_depth=1), NUMBER, "3 trees in one"),
    "forest that never splits": (RandomForestRegressor(3, min_samples_leaf=1000), NUMBER, "3 trees in one"),
    "forest of numbers": (RandomForestRegressor(20), NUMBER, "20 trees in one"),
    "extra trees": (ExtraTreesClassifier(20), THREE, "20 trees in one"),
    "extra trees of numbers": (ExtraTreesRegressor(20), NUMBER, "20 trees in one"),
    "tree": (DecisionTreeClassifier(class_weight={0: 5, 1: 1}), TWO, "its tree alone"),
    "tree of numbers": (DecisionTreeRegressor(), NUMBER, "its tree alone"),
    "extra tree": (ExtraTreeClassifier(), THREE, "its tree alone"),
    "boosting": (GradientBoostingClassifier(n_estimators=20), TWO, "20 trees in one"),
    "boosting of three": (GradientBoostingClassifier(n_estimators=8, subsample=0.8), THREE, "24 trees in one"),
    "boosting with another loss": (GradientBoostingClassifier(n_estimators=8, loss="exponential"), TWO, "8 trees in one"),
    "boosting from zero": (GradientBoostingClassifier(n_estimators=8, init="zero"), TWO, "8 trees in one"),
    "boosting of numbers": (GradientBoostingRegressor(n_estimators=20, loss="huber"), NUMBER, "20 trees in one"),
    "histograms": (HistGradientBoostingClassifier(max_iter=20), TWO, "20 trees in one"),
    "histograms of three": (HistGradientBoostingClassifier(max_iter=5), THREE, "15 trees in one"),
    "histograms of numbers": (HistGradientBoostingRegressor(max_iter=20, loss="poisson"), np.abs(NUMBER), "20 trees in one"),
    "logistic": (LogisticRegression(max_iter=2000), TWO, "numpy"),
    "logistic of three": (LogisticRegression(max_iter=2000), THREE, "numpy"),
    "logistic without intercept": (LogisticRegression(fit_intercept=False), THREE, "numpy"),
    "linear": (LinearRegression(), NUMBER, "numpy"),
    "linear of two numbers": (LinearRegression(), np.stack([NUMBER, X[:, 0]], axis=1), "numpy"),
    "linear of one number in a column": (LinearRegression(), NUMBER[:, None], "numpy"),
    "ridge": (Ridge(), NUMBER, "numpy"),
    "lasso": (Lasso(), NUMBER, "numpy"),
    "ridge labels": (RidgeClassifier(), THREE, "numpy"),
    "descent": (SGDClassifier(loss="log_loss"), TWO, "numpy"),
    "descent of three": (SGDClassifier(loss="log_loss"), THREE, "numpy"),
    "descent of a hinge": (SGDClassifier(), THREE, "numpy"),
    "descent to a number": (SGDRegressor(), NUMBER, "numpy"),
    "support vectors": (LinearSVC(), THREE, "numpy"),
    "support vectors of two": (LinearSVC(), TWO, "numpy"),
    "support vectors to a number": (LinearSVR(), NUMBER, "numpy"),
    "standard scaler": (StandardScaler(), NUMBER, "numpy"),
    "standard scaler without a mean": (StandardScaler(with_mean=False), NUMBER, "numpy"),
    "standard scaler without a scale": (StandardScaler(with_std=False), NUMBER, "numpy"),
    "range scaler": (MinMaxScaler((-1, 1), clip=True), NUMBER, "numpy"),
    "robust scaler": (RobustScaler(), NUMBER, "numpy"),
    "largest scaler": (MaxAbsScaler(), NUMBER, "numpy"),
    "pipeline": (
        make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
        THREE,
        "SimpleImputer by numpy, StandardScaler by numpy, LogisticRegression by numpy",
    ),
    "pipeline to a forest": (
        make_pipeline("passthrough", MinMaxScaler(), RandomForestClassifier(9)),
        TWO,
        "MinMaxScaler by numpy, RandomForestClassifier by 9 trees in one",
    ),
    "pipeline in part": (
        make_pipeline(StandardScaler(), KNeighborsClassifier()),
        TWO,
        "StandardScaler by numpy, KNeighborsClassifier by scikit-learn",
    ),
    "search": (
        GridSearchCV(make_pipeline(RobustScaler(), Ridge()), {"ridge__alpha": [0.1, 1]}),
        NUMBER,
        "RobustScaler by numpy, Ridge by numpy",
    ),
}
TAKE_HOLES = {
    "forest": (RandomForestClassifier(9), TWO),
    "tree": (DecisionTreeRegressor(), NUMBER),
    "histograms": (HistGradientBoostingClassifier(max_iter=9), THREE),
}


def fitted(name: str) -> object:
    model, target, _ = CASES[name]
    if name not in _FITTED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _FITTED[name] = model.fit(X, target)  # type: ignore[attr-defined]
    return _FITTED[name]


_FITTED: dict[str, object] = {}
_FASTER: dict[str, dict[str, Faster]] = {}


def methods_of(model: object) -> list[str]:
    return [m for m in METHODS if hasattr(model, m)]


def found_for(name: str) -> dict[str, Faster]:
    if name not in _FASTER:
        _FASTER[name] = faster(fitted(name), methods_of(fitted(name)), [X[:3]])
    return _FASTER[name]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The logarithm of no chance at all is what scikit-learn says it is, with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", CASES)
def test_every_method_has_a_shortcut(name: str) -> None:
    found = found_for(name)
    assert {m: f.how for m, f in found.items()} == dict.fromkeys(methods_of(fitted(name)), CASES[name][2])
    assert all(f.method for f in found.values())


numbers = st.floats(width=64) | st.floats(-3, 3) | st.sampled_from([0.0, -0.0, 1e37, 3.4e38, 1e39, 1e155, 5e-324])


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(CASES)), data=st.data())
def test_a_shortcut_answers_and_refuses_as_the_estimator_does(name: str, data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 40) | st.integers(60, 130), "rows")
    width = data.draw(st.sampled_from([WIDTH] * 9 + [WIDTH + 1]), "columns")
    plain = data.draw(st.booleans(), "plain")
    scale = np.resize(X.std(axis=0), width)
    drawn = np.random.default_rng(data.draw(st.integers(0, 9**9), "seed")).standard_normal((rows, width)) * scale
    if not plain and rows:
        drawn[data.draw(st.integers(0, rows - 1)), :] = data.draw(arrays(np.float64, width, elements=numbers))
    asked = drawn if data.draw(st.booleans(), "one block") else np.asfortranarray(drawn)
    for method, found in found_for(name).items():
        assert found.method
        before = asked.tobytes()
        assert compared(found.method, getattr(fitted(name), method), asked) == ""
        assert asked.tobytes() == before


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(
        [
            RandomForestClassifier,
            ExtraTreesRegressor,
            GradientBoostingClassifier,
            HistGradientBoostingRegressor,
            LogisticRegression,
        ]
    ),
    data=st.data(),
)
def test_a_shortcut_of_any_model_gives_its_bits(kind: type, data: st.DataObject) -> None:
    """Fitted on few different values, so that questions are asked exactly where answers change."""
    values = st.sampled_from([-1.5, -1.0, -0.1, 0.0, 0.1, 0.3, 1.0, 2.5, 1e6])
    rows, width = data.draw(st.integers(8, 40)), data.draw(st.integers(1, 6))
    x = data.draw(arrays(np.float64, (rows, width), elements=values))
    labels = np.resize(np.arange(data.draw(st.integers(2, 4))), rows)
    sizes = {"n_estimators": data.draw(st.integers(1, 12))} if "n_estimators" in kind().get_params() else {}
    model = kind(**sizes).fit(x, labels)
    between = np.unique(np.concatenate([x, (x + x[::-1]) / 2]), axis=0)
    found = faster(model, methods_of(model), [x[:1]])
    for method, f in found.items():
        assert f.method, f.how
        assert compared(f.method, getattr(model, method), between) == ""


@pytest.mark.parametrize("name", TAKE_HOLES)
def test_where_an_estimator_takes_nan_the_shortcut_takes_it_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = TAKE_HOLES[name]
    model.fit(HOLES, target)
    found = faster(model, methods_of(model), [X[:2]])
    expected = {m: getattr(model, m)(HOLES) for m in found}

    def refused(*_: object) -> None:
        raise AssertionError("the estimator itself was asked")

    for own in ("predict_proba", "_raw_predict", "_validate_X_predict"):
        if hasattr(type(model), own):
            monkeypatch.setattr(type(model), own, refused)
    for method, f in found.items():
        assert f.method
        assert f.method(HOLES).tobytes() == expected[method].tobytes()


NONE = {
    "another kind": (KMeans(3, n_init=1).fit(X), "no shortcut is known for KMeans"),
    "several outputs": (
        RandomForestClassifier(3).fit(X, np.stack([TWO, TWO], axis=1)),
        "no shortcut is known for RandomForestClassifier",
    ),
    "a start of its own": (
        GradientBoostingRegressor(n_estimators=3, init=LinearRegression()).fit(X, NUMBER),
        "no shortcut is known for GradientBoostingRegressor",
    ),
    "categories": (
        HistGradientBoostingRegressor(max_iter=3, categorical_features=[0]).fit(np.abs(X.round()) % 9, NUMBER),
        "no shortcut is known for HistGradientBoostingRegressor",
    ),
    "sparse coefficients": (
        LogisticRegression().fit(X, TWO).sparsify(),
        "no shortcut is known for LogisticRegression",
    ),
    "frames": (StandardScaler().set_output(transform="pandas").fit(X), "StandardScaler may give DataFrames"),
    "sparse rows": (
        make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()).fit(X.round(), TWO),
        "LogisticRegression is not given arrays of numbers",
    ),
    "a pipeline that ends in nothing": (
        make_pipeline(StandardScaler(), "passthrough").fit(X),
        "the pipeline's last step does nothing",
    ),
}


@pytest.mark.parametrize("name", NONE)
def test_what_has_no_shortcut_says_why(name: str) -> None:
    model, reason = NONE[name]
    assert {f.how for f in faster(model, methods_of(model), [X[:2]]).values()} == {reason}


class Doubled(LinearRegression):
    def predict(self, x: np.ndarray) -> np.ndarray:
        return 2 * super().predict(x)


def test_somebody_elses_method_has_no_shortcut() -> None:
    model = Doubled().fit(X, NUMBER)
    assert faster(model, ["predict"], [X[:2]])["predict"].method is None


WRONG = {
    "the last bit": (lambda x: np.nextafter(x[:, 0], np.inf), "1 of 1 numbers differ"),
    "the sign of nothing": (lambda x: np.where(x[:, 0] == 0, -x[:, 0], x[:, 0]) if len(x) > 200 else x[:, 0], "numbers differ"),
    "another type": (lambda x: x[:, 0].astype(np.float32), r"float32\[1\], and scikit-learn float64\[1\]"),
    "another shape": (lambda x: x[:, :1], r"float64\[1, 1\], and scikit-learn float64\[1\]"),
    "many rows only": (lambda x: x[:, 0] + (len(x) > 2), "for 7 rows 7 of 7 numbers differ"),
    "a list": (lambda x: [x[:, 0]], "gives a list, and scikit-learn a ndarray"),
    "an error": (lambda x: 1 / 0, "ZeroDivisionError.* and scikit-learn answers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_shortcut_that_differs_is_found_out(name: str) -> None:
    run, text = WRONG[name]
    assert re.search(text, difference(Shortcut("x", 3, run), lambda x: x[:, 0]))


def test_a_shortcut_that_takes_what_the_estimator_refuses_is_found_out() -> None:
    def own(x: np.ndarray) -> np.ndarray:
        if (x < 0).any():
            raise ValueError("negative")
        return x[:, 0]

    assert "it answers, and scikit-learn says ValueError('negative')" in difference(Shortcut("x", 3, lambda x: x[:, 0]), own)


def test_a_shortcut_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be with a version of scikit-learn that computes in another order; the next best is used instead."""
    true = _sklearn_trees._sum
    monkeypatch.setattr(_sklearn_trees, "_sum", lambda leaves, first: true(leaves[::-1].copy(), first))
    model = RandomForestRegressor(30, random_state=0).fit(X, NUMBER)
    found = faster(model, ["predict"], [X[:2]])["predict"]
    assert found.how == "30 trees without checks between them"
    assert found.method
    assert found.method(X).tobytes() == model.predict(X).tobytes()


def test_trees_that_would_take_much_memory_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sklearn_trees, "COPY_LIMIT", 1000)
    for name, how in {
        "forest": "20 trees without checks between them",
        "boosting": "20 trees without checks before them",
    }.items():
        model = fitted(name)
        assert {f.how for f in faster(model, methods_of(model), [X[:2]]).values()} == {how}
    assert COPY_LIMIT < 100 << 20


def served(model: object, folder: Path, **options: str) -> Runtime:
    joblib.dump(model, folder / "model.joblib")
    found = ModelFile(folder / "model.joblib", "joblib", "sklearn")
    return load(found, LoadOptions(trust_code=True, extra=options))


def answers(runtime: Runtime, rows: np.ndarray, output: str) -> np.ndarray:
    return runtime.predict(runtime.signatures[0], {"x": rows}, (output,), {})[output]


def test_a_served_model_tells_what_answers_and_still_refuses_values(tmp_path: Path) -> None:
    model = fitted("forest")
    runtime = served(model, tmp_path)
    assert runtime.properties["answered_by"] == "predict, predict_proba, predict_log_proba: 20 trees in one"
    assert runtime.notes == ("who answers: predict, predict_proba, predict_log_proba: 20 trees in one",)
    assert answers(runtime, X, "predict_proba").tobytes() == model.predict_proba(X).tobytes()  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match="infinity or a value too large for dtype"):
        answers(runtime, np.full((2, WIDTH), 1e39), "predict")
    together = answers(runtime, X, "predict_proba")
    assert all(answers(runtime, X[i : i + 1], "predict_proba").tobytes() == together[i].tobytes() for i in range(len(X)))


def test_acceleration_can_be_turned_off(tmp_path: Path) -> None:
    runtime = served(fitted("forest"), tmp_path, accelerate="off")
    assert "answered_by" not in runtime.properties
    assert runtime._methods["predict"].__self__.n_estimators == 20  # type: ignore[attr-defined]
    with pytest.raises(ModelLoadError, match="accelerate is 'gpu'.*exact, onnx, off"):
        served(fitted("forest"), tmp_path, accelerate="gpu")


def test_a_model_of_a_data_frame_of_numbers_has_shortcuts_too(tmp_path: Path) -> None:
    import pandas as pd

    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(pd.DataFrame(X, columns=list("abcd")), THREE)
    runtime = served(model, tmp_path)
    assert "LogisticRegression by numpy" in runtime.properties["answered_by"]
    by_column = {name: X[:, i] for i, name in enumerate("abcd")}
    told = runtime.predict(runtime.signatures[1], by_column, ("predict_proba",), {})["predict_proba"]
    assert told.tobytes() == answers(runtime, X, "predict_proba").tobytes()


def test_the_copy_of_the_trees_is_shared_by_all_methods() -> None:
    model = fitted("forest")
    shared: dict[int, list[Shortcut]] = {}
    for method in methods_of(model):
        _sklearn_fast._find(model, method, [X[:2]], shared)
    assert list(shared) == [id(model)]
