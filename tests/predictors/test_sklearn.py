"""Real estimators, fitted, saved and loaded by the scikit-learn runtime, against what they say themselves."""

import pickle
import runpy
import warnings
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_selector, make_column_transformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.svm import SVC

from predictors.sklearn import load
from server.errors import InvalidInput, ModelLoadError, NotSupported
from server.runtime import LoadOptions, ModelFile, Runtime
from server.tensors import Tensor

RNG = np.random.default_rng(3)
X = RNG.standard_normal((80, 4))
Y = (X[:, 0] + 0.3 * X[:, 1] > 0).astype(int)
WORDS = np.array(["no", "yes"], object)[Y]
TRUSTED = LoadOptions(trust_code=True)
TABLE = pd.DataFrame(
    {
        "age": np.where(RNG.random(80) < 0.1, np.nan, RNG.normal(40, 10, 80)),
        "city": np.where(RNG.random(80) < 0.1, None, np.array(["Bern", "Oslo", "Rome"], object)[RNG.integers(0, 3, 80)]),
        "plan": np.array(["free", "paid"], object)[RNG.integers(0, 2, 80)],
    }
)
NUMBERS = pd.DataFrame(X, columns=["a", "b", "c", "d"])
TEXTS = ["good fast ship", "bad slow boat", "good boat", "slow ship"] * 20
EXAMPLES = Path(__file__).parents[2] / "examples"


def save(model: object, path: Path, format: str = "joblib") -> ModelFile:
    if format == "skops":
        skops.io.dump(model, path)
    elif format == "pickle":
        path.write_bytes(pickle.dumps(model))
    else:
        joblib.dump(model, path)
    return ModelFile(path, format, "sklearn")


def served(model: object, folder: Path, format: str = "joblib", options: LoadOptions = TRUSTED) -> Runtime:
    return load(save(model, folder / f"model.{format}", format), options)


def ask(runtime: Runtime, inputs: dict[str, Tensor], *outputs: str, signature: int = 0) -> dict[str, np.ndarray]:
    chosen = runtime.signatures[signature]
    return runtime.predict(chosen, chosen.check(inputs).arrays, chosen.chosen_outputs(outputs), {})


def fp64(values: object) -> Tensor:
    array = np.array(values, float)
    # as the arrays are that a request's bytes back
    array.flags.writeable = False
    return Tensor("FP64", array)


def texts(values: object) -> Tensor:
    items = [None if v is None or v != v else str(v).encode() for v in values]  # type: ignore[attr-defined]
    return Tensor("BYTES", np.array(items, object))


def columns(table: pd.DataFrame) -> dict[str, Tensor]:
    """A table as a client sends it: backwards, to show that names decide."""
    return {n: fp64(table[n]) if table[n].dtype.kind == "f" else texts(table[n]) for n in reversed(table.columns)}


def table_pipeline(last: object, encoder: object = None) -> object:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    strings = make_pipeline(SimpleImputer(strategy="most_frequent"), encoder or OneHotEncoder(handle_unknown="ignore"))
    return make_pipeline(make_column_transformer((numbers, ["age"]), (strings, ["city", "plan"])), last)


class FrameText:
    """Somebody's own estimator: it looks at a DataFrame, and keeps what it learnt where nobody knows."""

    def fit(self, table: pd.DataFrame, labels: np.ndarray) -> "FrameText":
        self.feature_names_in_ = np.array(table.columns, object)
        self.inside = make_pipeline(TfidfVectorizer(), MultinomialNB()).fit(table["a"], labels)
        return self

    def predict(self, table: pd.DataFrame) -> np.ndarray:
        return self.inside.predict(table["a"])


class Foreign:
    def fit(self, rows: np.ndarray) -> "Foreign":
        self.n_features_in_ = rows.shape[1]
        return self

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, 0]


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


class Evaluate:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return eval, (self.code,)


ARRAY_MODELS = {
    "classifier": LogisticRegression(),
    "string labels": (LogisticRegression(), WORDS),
    "bool labels": (RandomForestClassifier(5, random_state=0), Y.astype(bool)),
    "regressor": LinearRegression(),
    "two targets": (Ridge(), np.c_[X[:, 0], X[:, 1]]),
    "forest in parallel": RandomForestRegressor(5, n_jobs=2, random_state=0),
    "anomalies": IsolationForest(n_estimators=5, random_state=0),
    "clusters": KMeans(3, random_state=0),
    "neighbours": KNeighborsClassifier(),
    "boosting": HistGradientBoostingClassifier(max_iter=5),
    "search": GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": [0.1, 1]}, cv=2),
    "calibrated": CalibratedClassifierCV(LogisticRegression(), cv=2),
    "votes": VotingClassifier([("a", LogisticRegression()), ("b", KNeighborsClassifier())], voting="soft"),
    "transformer": PowerTransformer(),
    "scaler that works in place": StandardScaler(copy=False),
    "target transformed": TransformedTargetRegressor(Ridge(), transformer=StandardScaler()),
}


@pytest.mark.parametrize("format", ["skops", "joblib", "pickle"])
@pytest.mark.parametrize("name", ARRAY_MODELS)
def test_every_output_equals_a_direct_call(name: str, format: str, tmp_path: Path) -> None:
    case = ARRAY_MODELS[name]
    model, target = case if isinstance(case, tuple) else (case, Y)
    model.fit(X.copy(), target)
    runtime = served(model, tmp_path, format)
    (signature,) = runtime.signatures
    assert signature.batched
    assert signature.inputs[0].shape == (-1, 4)
    for spec in signature.outputs:
        expected = getattr(model, spec.name)(X.copy())
        found = ask(runtime, {"input-0": fp64(X)}, spec.name)[spec.name]
        assert Tensor.of(found).datatype == spec.datatype
        assert found.shape == np.shape(expected)
        assert found.tolist() == np.asarray(expected).tolist()
        assert spec.shape == (-1, *found.shape[1:])


OUTPUTS = [
    (LogisticRegression(), Y, ["predict INT64", "predict_proba FP64", "decision_function FP64", "predict_log_proba FP64"]),
    (SVC(), WORDS, ["predict BYTES", "decision_function FP64"]),
    (RandomForestClassifier(3), Y.astype(bool), ["predict BOOL", "predict_proba FP64", "predict_log_proba FP64"]),
    (Ridge(), Y, ["predict FP64"]),
    (KMeans(2), None, ["predict INT64", "transform FP64"]),
    (IsolationForest(n_estimators=3), None, ["predict INT64", "decision_function FP64", "score_samples FP64"]),
    (
        MultiOutputClassifier(LogisticRegression()),
        np.c_[Y, 1 - Y],
        ["predict INT64", "predict_proba_0 FP64", "predict_proba_1 FP64"],
    ),
    (StandardScaler(), None, ["transform FP64"]),
]


@pytest.mark.parametrize(("model", "target", "outputs"), OUTPUTS, ids=lambda v: type(v).__name__)
def test_outputs_are_the_methods_a_fitted_model_really_has(model, target, outputs, tmp_path: Path) -> None:
    signature = served(model.fit(X, target), tmp_path).signatures[0]
    assert [f"{o.name} {o.datatype}" for o in signature.outputs] == outputs
    assert signature.defaults == (outputs[0].split()[0],)


def test_a_multi_output_models_probabilities_are_one_output_each(tmp_path: Path) -> None:
    model = MultiOutputClassifier(LogisticRegression()).fit(X, np.c_[Y.astype(str), WORDS])
    runtime = served(model, tmp_path)
    found = ask(runtime, {"x": fp64(X)}, "predict", "predict_proba_1", "predict_proba_0")
    assert found["predict"].tolist() == model.predict(X).tolist()
    for i, expected in enumerate(model.predict_proba(X)):
        assert found[f"predict_proba_{i}"].tolist() == expected.tolist()
    assert runtime.properties["classes"] == '[["0", "1"], ["no", "yes"]]'


def test_float32_stays_float32(tmp_path: Path) -> None:
    model = FunctionTransformer(np.ndarray.astype, kw_args={"dtype": np.float32}).fit(X)
    found = ask(served(model, tmp_path), {"x": fp64(X)})["transform"]
    assert found.dtype == np.float32


def test_sparse_results_are_written_out_up_to_a_limit(tmp_path: Path) -> None:
    model = HashingVectorizer(n_features=2**20)
    runtime = served(model, tmp_path)
    assert runtime.signatures[0].outputs[0].shape == (-1, 2**20)
    assert ask(runtime, {"text": texts(TEXTS[:8])})["transform"].tolist() == model.transform(TEXTS[:8]).toarray().tolist()
    with pytest.raises(NotSupported, match="72 MiB"):
        ask(runtime, {"text": texts(TEXTS[:9])})


def test_a_data_frame_result_becomes_plain_arrays(tmp_path: Path) -> None:
    same = StandardScaler().set_output(transform="pandas").fit(NUMBERS)
    assert ask(served(same, tmp_path), {"x": fp64(X)})["transform"].tolist() == same.transform(NUMBERS).to_numpy().tolist()
    mixed = ColumnTransformer([("n", "passthrough", ["age"]), ("s", OrdinalEncoder(dtype=np.int64), ["plan"])])
    mixed.set_output(transform="pandas").fit(TABLE)
    runtime = served(mixed, tmp_path)
    assert [(o.name, o.datatype) for o in runtime.signatures[0].outputs] == [
        ("transform_n__age", "FP64"),
        ("transform_s__plan", "INT64"),
    ]
    found = ask(runtime, columns(TABLE[["age", "plan"]]))
    assert found["transform_s__plan"].tolist() == mixed.transform(TABLE)["s__plan"].tolist()


TABLE_MODELS = {
    "table classifier": (table_pipeline(LogisticRegression()), WORDS),
    "table regressor": (table_pipeline(Ridge()), X[:, 0]),
    "ordinal": (table_pipeline(RandomForestClassifier(5, random_state=0), OrdinalEncoder()), Y),
    "target encoder": (table_pipeline(Ridge(), TargetEncoder(random_state=0)), X[:, 0]),
    "table search": (GridSearchCV(table_pipeline(LogisticRegression()), {"logisticregression__C": [0.1, 1]}, cv=2), Y),
    "table calibrated": (CalibratedClassifierCV(table_pipeline(LogisticRegression()), cv=2), Y),
    "encoder that knows missing": (
        make_pipeline(
            make_column_transformer((OneHotEncoder(), ["city", "plan"]), (SimpleImputer(), ["age"])), LogisticRegression()
        ),
        Y,
    ),
    "selected by type": (
        make_pipeline(
            ColumnTransformer(
                [
                    ("n", SimpleImputer(), make_column_selector(dtype_include="number")),
                    ("s", OneHotEncoder(), [False, True, True]),
                ]
            ),
            LogisticRegression(),
        ),
        Y,
    ),
    "text column": (
        make_pipeline(make_column_transformer((TfidfVectorizer(), "plan"), (SimpleImputer(), ["age"])), LogisticRegression()),
        Y,
    ),
}


@pytest.mark.parametrize("name", TABLE_MODELS)
def test_columns_reach_a_data_frame_model_by_name(name: str, tmp_path: Path) -> None:
    model, target = TABLE_MODELS[name]
    table = TABLE[["age", "plan"]] if name == "text column" else TABLE
    runtime = served(model.fit(table, target), tmp_path)
    (signature,) = runtime.signatures
    expected = {n: "FP64" if n == "age" else "BYTES" for n in table}
    assert {s.name: s.datatype for s in signature.inputs} == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = ask(runtime, columns(table), *(o.name for o in signature.outputs))
    for output, array in found.items():
        assert array.tolist() == getattr(model, output)(table).tolist()


def test_a_column_that_a_model_drops_may_be_left_out(tmp_path: Path) -> None:
    model = make_column_transformer((SimpleImputer(), ["age"]), ("drop", ["city"]), (OrdinalEncoder(), ["plan"])).fit(TABLE)
    runtime = served(model, tmp_path, options=LoadOptions(trust_code=True, extra={"string-columns": "city"}))
    for table in (TABLE, TABLE[["age", "plan"]]):
        assert ask(runtime, columns(table))["transform"].tolist() == model.transform(TABLE).tolist()
    with pytest.raises(InvalidInput, match="missing input 'plan'"):
        ask(runtime, columns(TABLE[["age", "city"]]))


def test_a_missing_string_is_what_the_encoder_was_fitted_with(tmp_path: Path) -> None:
    table = pd.DataFrame({"s": pd.Series(["a", None, "b", "a"], dtype=object)})
    model = OneHotEncoder().fit(table)
    found = ask(served(model, tmp_path), {"s": texts(["b", None])})["transform"]
    assert found.tolist() == [[0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("values", "datatype"), [([1, 2, 3, 2], "INT64"), ([True, False, True, True], "BOOL"), ([0.5, 1.5, 0.5, 1.5], "FP64")]
)
def test_categories_tell_a_columns_datatype(values: list[object], datatype: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"k": values, "s": ["p", "q", "p", "q"]})
    model = make_column_transformer((OneHotEncoder(), ["k", "s"])).fit(table)
    runtime = served(model, tmp_path)
    (signature,) = runtime.signatures
    assert {s.name: s.datatype for s in signature.inputs} == {"k": datatype, "s": "BYTES"}
    found = ask(runtime, {"k": Tensor.of(np.array(values)), "s": texts(table["s"])})["transform"]
    assert found.tolist() == model.transform(table).tolist()


def test_boosting_that_was_fitted_on_categories_takes_their_strings(tmp_path: Path) -> None:
    table = TABLE.astype({"city": "category", "plan": "category"})
    model = HistGradientBoostingClassifier(max_iter=5, categorical_features="from_dtype").fit(table, Y)
    found = ask(served(model, tmp_path), columns(TABLE), "predict_proba")["predict_proba"]
    assert found.tolist() == model.predict_proba(table).tolist()


@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(make_column_transformer((StandardScaler(), ["b", "a"]), remainder="passthrough"), LogisticRegression()),
    ],
    ids=["names not needed", "names needed"],
)
def test_a_data_frame_of_numbers_may_come_as_one_tensor_or_as_columns(model, tmp_path: Path) -> None:
    expected = model.fit(NUMBERS, Y).predict_proba(NUMBERS)
    runtime = served(model, tmp_path)
    assert [s.name for s in runtime.signatures] == ["tensor", "columns"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_tensor = ask(runtime, {"x": fp64(X)}, "predict_proba")["predict_proba"]
        by_name = ask(runtime, columns(NUMBERS), "predict_proba", signature=1)["predict_proba"]
    # the last bit depends on an array's order in memory
    assert np.allclose(as_tensor, expected, rtol=1e-13, atol=0)
    assert np.allclose(by_name, expected, rtol=1e-13, atol=0)


def test_an_array_of_objects_is_served_by_column(tmp_path: Path) -> None:
    rows = np.array([["a", 1.0], ["b", 2.0], ["a", 3.0]], object)
    encode = ColumnTransformer([("s", OneHotEncoder(), [0]), ("n", StandardScaler(), [1])])
    model = make_pipeline(encode, LinearRegression()).fit(rows, [1, 2, 3])
    runtime = served(model, tmp_path)
    assert [(s.name, s.datatype) for s in runtime.signatures[0].inputs] == [("x0", "BYTES"), ("x1", "FP64")]
    found = ask(runtime, {"x1": fp64([1.5, 2]), "x0": texts(["b", "a"])})["predict"]
    assert found.tolist() == model.predict(np.array([["b", 1.5], ["a", 2.0]], object)).tolist()


def test_an_array_of_strings_is_one_tensor(tmp_path: Path) -> None:
    rows = np.array([["a", "p"], ["b", "q"], ["a", "q"]], object)
    model = make_pipeline(OrdinalEncoder(), LinearRegression()).fit(rows, [1, 2, 3])
    found = ask(served(model, tmp_path), {"x": Tensor("BYTES", np.array([[b"b", b"p"]], object))})["predict"]
    assert found.tolist() == model.predict(np.array([["b", "p"]], object)).tolist()


def test_a_text_pipeline_takes_documents(tmp_path: Path) -> None:
    model = make_pipeline(TfidfVectorizer(), MultinomialNB()).fit(TEXTS, WORDS)
    runtime = served(model, tmp_path, "skops")
    (signature,) = runtime.signatures
    assert [(s.name, s.datatype, s.shape) for s in signature.inputs] == [("text", "BYTES", (-1,))]
    assert ask(runtime, {"input-0": texts(TEXTS)})["predict"].tolist() == model.predict(TEXTS).tolist()


def test_an_option_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    options = LoadOptions(trust_code=True, extra={"string_columns": "a"})
    with pytest.raises(ModelLoadError, match="no option 'string_columns'; it has: accelerate, string-columns, trusted-types"):
        served(LinearRegression().fit(X, X[:, 0]), tmp_path, options=options)


def test_an_option_names_string_columns_that_a_model_does_not_tell(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": TEXTS})
    model = FrameText().fit(table, WORDS)
    runtime = served(model, tmp_path, options=LoadOptions(trust_code=True, extra={"string-columns": "a"}))
    assert ask(runtime, {"a": texts(TEXTS)})["predict"].tolist() == model.predict(table).tolist()
    assert runtime.concurrency == 1


@pytest.mark.parametrize(
    ("model", "inputs", "text"),
    [
        ("numbers", {"x": fp64([[1, np.nan, 0, 0]])}, "contains NaN"),
        ("numbers", {"x": fp64([[1, np.inf, 0, 0]])}, "contains infinity"),
        ("strings", {"s": texts(["c"])}, "unknown categories"),
        ("strings", {"s": texts([None])}, "unknown categories"),
        ("strings", {"s": Tensor("BYTES", np.array([b"a", b"\xff"], object))}, "column 's', row 1: the bytes are not UTF-8"),
        ("box-cox", {"x": fp64([[-1.0, 1, 1, 1]])}, "strictly positive"),
    ],
)
def test_values_that_scikit_learn_refuses_are_the_callers_fault(model: str, inputs: dict, text: str, tmp_path: Path) -> None:
    models = {
        "numbers": lambda: LogisticRegression().fit(X, Y),
        "strings": lambda: OneHotEncoder().fit(pd.DataFrame({"s": ["a", "b"]})),
        "box-cox": lambda: PowerTransformer(method="box-cox").fit(np.abs(X)),
    }
    runtime = served(models[model](), tmp_path)
    with pytest.raises(InvalidInput, match=text) as caught:
        ask(runtime, inputs)
    assert "\n" not in str(caught.value)


def test_other_errors_are_the_models_own(tmp_path: Path) -> None:
    runtime = served(FunctionTransformer(np.linalg.inv).fit(X[:4]), tmp_path, options=TRUSTED)
    with pytest.raises(np.linalg.LinAlgError):
        ask(runtime, {"x": fp64(np.zeros((4, 4)))})


def test_requests_do_not_change_their_own_bytes(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": X[:, 0], "b": X[:, 1]})
    model = make_pipeline(make_column_transformer((StandardScaler(copy=False), ["a", "b"])), Ridge()).fit(table, Y)
    rows = np.ones((3, 2))
    runtime = served(model, tmp_path)
    first = ask(runtime, {"x": Tensor("FP64", rows)})["predict"].tolist()
    assert rows.tolist() == [[1, 1]] * 3
    assert ask(runtime, {"x": Tensor("FP64", rows)})["predict"].tolist() == first


@pytest.mark.parametrize("name", [*ARRAY_MODELS, *TABLE_MODELS])
def test_sampled_inputs_fit_the_signatures_and_are_predicted(name: str, tmp_path: Path) -> None:
    case = ARRAY_MODELS.get(name) or TABLE_MODELS[name]
    model, target = case if isinstance(case, tuple) else (case, Y)
    table = TABLE[["age", "plan"]] if name == "text column" else TABLE if name in TABLE_MODELS else X.copy()
    runtime = served(model.fit(table, target), tmp_path)
    for signature in runtime.signatures:
        drawn = runtime.sample(signature, 5, seed=1)
        again = runtime.sample(signature, 5, seed=1)
        assert {n: a.tolist() for n, a in drawn.items()} == {n: a.tolist() for n, a in again.items()}
        checked = signature.check({s.name: Tensor(s.datatype, drawn[s.name]) for s in signature.inputs})
        assert checked.rows == 5
        for array in runtime.predict(signature, checked.arrays, signature.defaults, {}).values():
            assert len(array) == 5


def test_sampled_strings_are_known_categories(tmp_path: Path) -> None:
    runtime = served(TABLE_MODELS["encoder that knows missing"][0].fit(TABLE, Y), tmp_path)
    drawn = runtime.sample(runtime.signatures[0], 50)
    assert set(drawn["city"]) == {b"Bern", b"Oslo", b"Rome"}
    assert set(drawn["plan"]) == {b"free", b"paid"}


def test_sampled_numbers_lie_where_the_scaler_saw_them(tmp_path: Path) -> None:
    runtime = served(make_pipeline(StandardScaler(), Ridge()).fit(X * 10 + [0, 1000, 0, 0], Y), tmp_path)
    drawn = runtime.sample(runtime.signatures[0], 200)["x"]
    assert 990 < drawn[:, 1].mean() < 1010
    assert 5 < drawn[:, 1].std() < 15


def test_facts_and_warnings(tmp_path: Path) -> None:
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, WORDS)
    by_skops, by_joblib = served(model, tmp_path, "skops"), served(model, tmp_path, "joblib")
    assert (by_skops.platform, by_joblib.platform) == ("sklearn_skops", "sklearn_joblib")
    assert by_skops.warnings == ()
    assert by_skops.properties == {
        "estimator": "Pipeline",
        "format": "skops",
        "sklearn_version": sklearn.__version__,
        "model_sklearn_version": sklearn.__version__,
        "classes": '["no", "yes"]',
        "answered_by": "predict, predict_proba, decision_function, predict_log_proba: StandardScaler by numpy,"
        " LogisticRegression by numpy",
    }
    (warning,) = by_joblib.warnings
    assert "runs code when it is opened" in warning


def test_estimators_use_one_thread_each(tmp_path: Path) -> None:
    model = make_pipeline(StandardScaler(), VotingClassifier([("f", RandomForestClassifier(3, n_jobs=-1))], n_jobs=2)).fit(X, Y)
    runtime = served(model, tmp_path, options=LoadOptions(threads=2, trust_code=True, extra={"accelerate": "off"}))
    pipeline = runtime._methods["predict"].__self__
    assert pipeline[1].n_jobs == pipeline[1].estimators_[0].n_jobs == 1
    assert runtime.concurrency == 2


def aged(found: ModelFile) -> str:
    """Make a file claim that an older scikit-learn wrote it; returns which."""
    now = sklearn.__version__
    old = "0" + now[1:]
    if found.format == "skops":
        with zipfile.ZipFile(found.path) as archive:
            members = {n: archive.read(n) for n in archive.namelist()}
        with zipfile.ZipFile(found.path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content.replace(now.encode(), old.encode()))
    else:
        found.path.write_bytes(found.path.read_bytes().replace(now.encode(), old.encode()))
    return old


@pytest.mark.parametrize("format", ["skops", "joblib", "pickle"])
def test_a_version_mismatch_is_told_with_the_line_that_fixes_it(format: str, tmp_path: Path) -> None:
    found = save(make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y), tmp_path / "old", format)
    old = aged(found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime = load(found, TRUSTED)
    told = [w for w in runtime.warnings if old in w]
    assert len(told) == 1
    assert f"pip install scikit-learn=={old}" in told[0]
    assert (runtime.properties["model_sklearn_version"], runtime.properties["sklearn_version"]) == (old, sklearn.__version__)
    with pytest.raises(ModelLoadError, match=f"pip install scikit-learn=={old}"):
        load(found, LoadOptions(trust_code=True, strict_versions=True))


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (LogisticRegression(), "LogisticRegression that is not fitted; call fit"),
        (make_pipeline(StandardScaler(), LogisticRegression()), "Pipeline that is not fitted"),
        ({"model": LogisticRegression(), "scaler": 1}, "holds a dict ('model': LogisticRegression, 'scaler': int)"),
        ([1, 2], "holds a list (0: int, 1: int), and one fitted estimator"),
        (LogisticRegression, "holds the class LogisticRegression"),
        (np.arange(3), "holds a numpy.ndarray"),
        (TABLE, "DataFrame, and one fitted estimator"),
        (len, "builtin_function_or_method"),
        (DBSCAN().fit(X), "has fit_predict only"),
        (DictVectorizer().fit([{"a": 1}]), "takes dicts"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_is_no_fitted_estimator_is_refused_by_its_type(thing: object, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        served(thing, tmp_path)
    assert text in str(caught.value)


@pytest.mark.parametrize("format", ["skops", "joblib", "pickle"])
@pytest.mark.parametrize("length", [0, 10, -30])
def test_a_truncated_file_is_named_with_its_format(format: str, length: int, tmp_path: Path) -> None:
    found = save(LogisticRegression().fit(X, Y), tmp_path / "cut", format)
    found.path.write_bytes(found.path.read_bytes()[:length])
    with pytest.raises(ModelLoadError, match=f"cannot read .*cut .*bytes\\) as {format}.*corrupt, cut short") as caught:
        load(found, TRUSTED)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def renamed(old: bytes, new: bytes, folder: Path) -> ModelFile:
    found = save(LogisticRegression().fit(X, Y), folder / "renamed.pkl", "pickle")
    assert len(old) == len(new)
    found.path.write_bytes(found.path.read_bytes().replace(old, new))
    return found


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b"sklearn.linear_model._logistic", b"sklearn.linear_model._logarith", "_logarith, which .* not have; .*pip install"),
        (b"sklearn.linear_model._logistic", b"acme_models.churn.linear_model", "module 'acme_models', .*pip install acme_models"),
        (b"LogisticRegression", b"MyModelFromNotebok", "needs 'MyModelFromNotebok' from 'sklearn.linear_model._logistic'"),
    ],
    ids=["moved in scikit-learn", "missing module", "missing class"],
)
def test_a_pickle_that_needs_what_is_not_here_is_told_apart(old: bytes, new: bytes, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=text):
        load(renamed(old, new, tmp_path), TRUSTED)


def test_a_class_of_the_script_that_saved_it_is_named(tmp_path: Path) -> None:
    found = ModelFile(tmp_path / "main.pkl", "pickle", "sklearn")
    found.path.write_bytes(b"c__main__\nPriceModel\n)\x81.")
    with pytest.raises(ModelLoadError, match=r"needs 'PriceModel' from the script that saved it \(__main__\)"):
        load(found, TRUSTED)


def test_an_older_version_that_breaks_names_the_one_to_install(tmp_path: Path) -> None:
    found = renamed(b"LogisticRegression", b"LogisticRegressoin", tmp_path)
    old = aged(found)
    with pytest.raises(ModelLoadError, match=f"saved with scikit-learn {old}, and .* pip install scikit-learn=={old}"):
        load(found, TRUSTED)


@pytest.mark.parametrize("format", ["joblib", "pickle"])
def test_a_pickle_is_not_opened_without_trust(format: str, tmp_path: Path) -> None:
    found = save(Touch(tmp_path / "ran"), tmp_path / "evil", format)
    with pytest.raises(ModelLoadError, match=r"can run any code .*skops.*--trust-pickle"):
        load(found, LoadOptions())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_suspicious_names_in_a_pickle_are_told(compress: object, tmp_path: Path) -> None:
    model = LogisticRegression().fit(X, Y)
    model.hidden = [np.arange(1000.0), Evaluate("1 + 1")]
    joblib.dump(model, tmp_path / "model", compress=compress)
    runtime = load(ModelFile(tmp_path / "model", "joblib", "sklearn"), TRUSTED)
    assert any("builtins.eval" in w for w in runtime.warnings)


@pytest.mark.parametrize("name", ARRAY_MODELS)
def test_ordinary_pickles_hold_nothing_suspicious(name: str, tmp_path: Path) -> None:
    case = ARRAY_MODELS[name]
    model, target = case if isinstance(case, tuple) else (case, Y)
    assert len(served(model.fit(X.copy(), target), tmp_path).warnings) == 1


def test_skops_files_load_with_known_types_only(tmp_path: Path) -> None:
    found = save(
        make_pipeline(FunctionTransformer(np.linalg.norm, kw_args={"axis": 1, "keepdims": True})).fit(X), tmp_path / "m", "skops"
    )
    with pytest.raises(ModelLoadError, match=r"not known to be safe: numpy.linalg.norm; .*trusted-types=numpy.linalg.norm"):
        load(found, LoadOptions())
    allowed = load(found, LoadOptions(extra={"trusted-types": "numpy.linalg.norm"}))
    assert ask(allowed, {"x": fp64(X)})["transform"].tolist() == np.linalg.norm(X, axis=1, keepdims=True).tolist()
    foreign = save(Foreign().fit(X), tmp_path / "f", "skops")
    with pytest.raises(ModelLoadError, match=r"trusted-types=.*\.Foreign"):
        load(foreign, TRUSTED)


def test_trees_in_skops_need_a_word_unless_the_file_is_trusted(tmp_path: Path) -> None:
    found = save(RandomForestClassifier(3).fit(X, Y), tmp_path / "m", "skops")
    with pytest.raises(ModelLoadError, match=r"sklearn.tree._tree.Tree \(a forged tree can crash"):
        load(found, LoadOptions())
    load(found, TRUSTED)
    load(found, LoadOptions(extra={"trusted-types": "sklearn.tree._tree.Tree"}))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("examples")
    runpy.run_path(str(EXAMPLES / "make" / "sklearn_models.py"))["main"](folder)
    return folder


@pytest.mark.parametrize(
    "name", ["iris.skops", "diabetes.skops", "houses.skops", "reviews.skops", "iris.joblib", "cancer.joblib"]
)
def test_a_shipped_example_predicts_what_its_script_makes(name: str, examples: Path) -> None:
    format = name.partition(".")[2]
    made, shipped = (
        load(ModelFile(f / name, format, "sklearn"), LoadOptions(trust_code=format == "joblib")) for f in (examples, EXAMPLES)
    )
    assert (EXAMPLES / name).stat().st_size < 300_000
    signature = shipped.signatures[0]
    drawn = shipped.sample(signature, 50)
    for spec in signature.outputs:
        found, expected = (r.predict(r.signatures[0], drawn, (spec.name,), {})[spec.name] for r in (shipped, made))
        # solvers stop a little earlier or later with another processor's arithmetic
        numbers = spec.datatype not in ("BYTES", "INT64")
        assert np.allclose(found, expected, rtol=0.05, atol=0.02) if numbers else found.tolist() == expected.tolist()
