"""Real estimators, fitted, saved and loaded by the scikit-learn runtime, against what they say themselves."""

import pickle
import runpy
import sys
import warnings
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_transformer
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
    (MultiOutputClassifier(LogisticRegression()), np.c_[Y, 1 - Y], ["predict INT64", "predict_proba_0 FP64", "predict_proba_1 FP64"]),
    (StandardScaler(), None, ["transform FP64"]),
]


@pytest.mark.parametrize(("model", "target", "outputs"), OUTPUTS, ids=lambda v: type(v).__name__)
def test_outputs_are_the_methods_a_fitted_model_really_has(model, target, outputs, tmp_path: Path) -> None:
    signature = served(model.fit(X, target), tmp_path).signatures[0]
    assert [f"{o.name} {o.datatype}" for o in signature.outputs] == outputs
    assert signature.defaults == (outputs[0].split()[0],)


def test_a_multi_output_models_probabilities_are_one_output_each(tmp_path: Path) -> None:
    model = MultiOutputClassifier(LogisticRegression()).fit(X, np.c_[Y, WORDS])
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
    found = ask(runtime, columns(TABLE))
    assert found["transform_s__plan"].tolist() == mixed.transform(TABLE)["s__plan"].tolist()


TABLE_MODELS = {
    "classifier": (table_pipeline(LogisticRegression()), WORDS),
    "regressor": (table_pipeline(Ridge()), X[:, 0]),
    "ordinal": (table_pipeline(RandomForestClassifier(5, random_state=0), OrdinalEncoder()), Y),
    "target encoder": (table_pipeline(Ridge(), TargetEncoder(random_state=0)), X[:, 0]),
    "search": (GridSearchCV(table_pipeline(LogisticRegression()), {"logisticregression__C": [0.1, 1]}, cv=2), Y),
    "calibrated": (CalibratedClassifierCV(table_pipeline(LogisticRegression()), cv=2), Y),
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
                    ("n", SimpleImputer(), lambda t: [c for c in t if t[c].dtype.kind == "f"]),
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
    # saving a lambda is not what is tested
    model.fit(table, target)
    if name == "selected by type":
        model[0].transformers[0] = ("n", SimpleImputer(), ["age"])
        model[0]._columns = None
    runtime = served(model, tmp_path)
    (signature,) = runtime.signatures
    expected = {n: "FP64" if n == "age" else "BYTES" for n in table}
    assert {s.name: s.datatype for s in signature.inputs} == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ask(runtime, columns(table), *(o.name for o in signature.outputs))
    for output, array in found.items():
        assert array.tolist() == getattr(model, output)(table).tolist()


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


@pytest.mark.parametrize("model", [make_pipeline(StandardScaler(), LogisticRegression()), table_pipeline(LogisticRegression())])
def test_a_data_frame_of_numbers_may_come_as_one_tensor_or_as_columns(model, tmp_path: Path) -> None:
    if len(model) == 2 and isinstance(model[0], ColumnTransformer):
        model = make_pipeline(make_column_transformer((StandardScaler(), ["b", "a"]), remainder="passthrough"), model[1])
    expected = model.fit(NUMBERS, Y).predict_proba(NUMBERS).tolist()
    runtime = served(model, tmp_path)
    assert [s.name for s in runtime.signatures] == ["tensor", "columns"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask(runtime, {"x": fp64(X)}, "predict_proba")["predict_proba"].tolist() == expected
        by_name = ask(runtime, columns(NUMBERS), "predict_proba", signature=1)
    assert by_name["predict_proba"].tolist() == expected


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


def test_an_option_names_string_columns_that_a_model_does_not_tell(tmp_path: Path) -> None:
    model = make_pipeline(FunctionTransformer(pd.DataFrame.eval, kw_args={"expr": "a"}), TfidfVectorizer(), MultinomialNB())
    table = pd.DataFrame({"a": TEXTS})
    model.fit(table, WORDS)
    model.feature_names_in_ = None
    runtime = served(FrameText().fit(table, WORDS), tmp_path, options=LoadOptions(trust_code=True, extra={"string-columns": "a"}))
    assert ask(runtime, {"a": texts(TEXTS)})["predict"].tolist() == FrameText().fit(table, WORDS).predict(table).tolist()


class FrameText:
    """Somebody's own estimator: it looks at a DataFrame, and keeps what it learnt where nobody knows."""

    def fit(self, table: pd.DataFrame, labels: np.ndarray) -> "FrameText":
        self.feature_names_in_ = np.array(table.columns, object)
        self.inside = make_pipeline(TfidfVectorizer(), MultinomialNB()).fit(table["a"], labels)
        return self

    def predict(self, table: pd.DataFrame) -> np.ndarray:
        return self.inside.predict(table["a"])
