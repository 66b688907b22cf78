"""`accelerate=onnx`: a real conversion beside the real estimator, used where it comes near, and not where it doesn't."""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor, IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, SVR

from predictors._sklearn_onnx import TOLERANCE, Unfit, converted
from predictors.sklearn import load
from server.errors import InvalidInput, ModelLoadError
from server.runtime import LoadOptions, ModelFile, Runtime

RNG = np.random.default_rng(2)
X = RNG.standard_normal((120, 3))
TWO = (X[:, 0] > X[:, 1]).astype(int)
WORDS = np.array(["no", "perhaps", "yes"])[np.digitize(X[:, 2], [-0.5, 0.5])]
NUMBER = X @ [1.0, 2, 3]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def served(model: object, folder: Path) -> Runtime:
    joblib.dump(model, folder / "m.joblib")
    options = LoadOptions(trust_code=True, extra={"accelerate": "onnx"})
    return load(ModelFile(folder / "m.joblib", "joblib", "sklearn"), options)


def answers(runtime: Runtime, rows: np.ndarray, output: str) -> np.ndarray:
    return runtime.predict(runtime.signatures[0], {"x": rows}, (output,), {})[output]


def warned(runtime: Runtime) -> str:
    """What it warns of beyond being a pickle."""
    return "\n".join(runtime.warnings[1:])


USED = {
    "forest": (RandomForestClassifier(11, random_state=0), TWO, "predict, predict_proba: ONNX in float32 (of 2000 rows"),
    "forest of text labels": (RandomForestClassifier(9, random_state=0), WORDS, "predict, predict_proba: ONNX in float32"),
    "forest of numbers": (RandomForestRegressor(9), NUMBER, "predict: ONNX in float32 (of 2000 rows"),
    "support vectors": (SVC(), TWO > 0, "predict: ONNX in float64 (of 2000 rows 0 have another label"),
    "support vectors of numbers": (SVR(), NUMBER, "predict: ONNX in float32"),
    "net": (make_pipeline(StandardScaler(), MLPClassifier(9, max_iter=50)), WORDS, "predict, predict_proba: ONNX in float64"),
    "neighbours": (KNeighborsClassifier(), WORDS, "predict, predict_proba: ONNX in float64"),
    "clusters": (KMeans(3, n_init=1), None, "predict: ONNX in float64"),
}


@pytest.mark.parametrize("name", USED)
def test_a_conversion_that_comes_near_is_used_and_told(name: str, tmp_path: Path) -> None:
    model, target, by = USED[name]
    runtime = served(model.fit(X, target), tmp_path)
    assert runtime.properties["answered_by"].startswith(by)
    for output in runtime.signatures[0].outputs:
        expected, found = getattr(model, output.name)(X), answers(runtime, X, output.name)
        assert found.shape == expected.shape
        if expected.dtype.kind == "f":
            assert found.dtype == expected.dtype
            infinite = np.isinf(expected)
            assert np.allclose(found[~infinite], expected[~infinite], rtol=1e-4, atol=1e-4)
        else:
            assert found.tolist() == expected.tolist()


def test_rows_alone_and_together_give_the_same(tmp_path: Path) -> None:
    model, target, _ = USED["forest"]
    runtime = served(model.fit(X, target), tmp_path)
    together = answers(runtime, X, "predict_proba")
    alone = np.concatenate([answers(runtime, X[i : i + 1], "predict_proba") for i in range(len(X))])
    assert np.abs(together - alone).max() <= TOLERANCE


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e39])
def test_what_the_estimator_refuses_is_refused_still(odd: float, tmp_path: Path) -> None:
    model = SVR().fit(X, NUMBER)
    runtime = served(model, tmp_path)
    assert "ONNX" in runtime.properties["answered_by"]
    row = np.array([[0, odd, 0]])
    if odd == 1e39:
        assert answers(runtime, row, "predict").tolist() == model.predict(row).tolist()
    else:
        with pytest.raises(InvalidInput, match=r"Input X? ?contains (NaN|infinity)"):
            answers(runtime, row, "predict")


def test_arithmetic_alone_is_left_as_it_is(tmp_path: Path) -> None:
    runtime = served(LogisticRegression().fit(X, TWO), tmp_path)
    assert "ONNX" not in runtime.properties["answered_by"]
    assert warned(runtime) == ""


NEAR = 1 + np.arange(400)[:, None] * 1e-9
LEFT_ALONE = {
    "no converter": (IsolationForest(n_estimators=5).fit(X), "is not used for m.joblib: float64: RuntimeError"),
    "a table with text": (
        make_pipeline(make_column_transformer((OneHotEncoder(), [0])), SVC()).fit(
            np.array([["a"], ["b"]] * 20, object), [0, 1] * 20
        ),
        "it takes more than numbers",
    ),
    "numbers that 32 bits can't tell apart": (
        HistGradientBoostingRegressor(max_iter=50).fit(NEAR, np.arange(400) % 7 * 10.0),
        r"float32: of 1400 rows 0 have another label, and [1-9]\d* a number further off than 1e-05",
    ),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_model_that_can_not_be_converted_well_answers_itself_and_says_so(name: str, tmp_path: Path) -> None:
    model, text = LEFT_ALONE[name]
    if "32 bits" in name:
        np.save(tmp_path / "m.sample.npy", NEAR)
    runtime = served(model, tmp_path)
    assert "ONNX" not in runtime.properties["answered_by"]
    assert re.search(text, warned(runtime))
    drawn = runtime.sample(runtime.signatures[0], 5)
    found = runtime.predict(runtime.signatures[0], drawn, ("predict",), {})["predict"]
    x = np.array([[v.decode()] for v in drawn["x"].ravel()], object) if "text" in name else drawn["x"]
    assert found.tolist() == model.predict(x).tolist()


FILES = {
    ".npy": lambda path: np.save(path, X[:7]),
    ".csv": lambda path: np.savetxt(path, X[:7], delimiter=","),
    ".csv with names": lambda path: np.savetxt(path, X[:7], delimiter=",", header="a,b,c", comments=""),
    ".json": lambda path: path.write_text(json.dumps(X[:7].tolist())),
    ".json of a request": lambda path: path.write_text(json.dumps({"instances": X[:7].tolist()})),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_rows_of_a_sample_file_beside_the_model_are_compared_too(kind: str, tmp_path: Path) -> None:
    FILES[kind](tmp_path / f"m.sample{kind.partition(' ')[0]}")
    assert "(of 1007 rows 0 have another label" in served(KMeans(3, n_init=1).fit(X), tmp_path).properties["answered_by"]


BROKEN = {
    "other columns": ("[[1, 2]]", r"m.sample.json holds an array of shape \[1, 2\], and rows of 3 numbers are wanted"),
    "no rows": ("[]", r"shape \[0\]"),
    "words": ('[["a", 1, 2]]', "m.sample.json can't be read: could not convert string"),
    "no JSON": ("{", "m.sample.json can't be read: Expecting"),
    "something else": ('{"rows": 1}', "m.sample.json can't be read: 'instances'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_sample_file_that_does_not_fit_is_a_reason_not_to_convert(name: str, tmp_path: Path) -> None:
    text, reason = BROKEN[name]
    (tmp_path / "m.sample.json").write_text(text)
    runtime = served(KMeans(3, n_init=1).fit(X), tmp_path)
    assert "ONNX" not in runtime.properties["answered_by"]
    assert re.search(reason, warned(runtime))


def tied(trees: int, noise: float) -> tuple[RandomForestClassifier, np.ndarray]:
    """A forest whose votes are even for some rows, and rows; the noisier its labels were, the more."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 3))
    labels = (x[:, 0] + noise * rng.standard_normal(100) > 0).astype(int)
    return RandomForestClassifier(trees, random_state=1).fit(x, labels), rng.standard_normal((20_000, 3))


def test_few_other_labels_are_borne_where_classes_are_tied(tmp_path: Path) -> None:
    model, rows = tied(20, 0.1)
    np.save(tmp_path / "m.sample.npy", rows)
    runtime = served(model, tmp_path)
    said = re.search(r"of 22000 rows (\d+) have another label, (\d+) of them ties", runtime.properties["answered_by"])
    assert said
    assert said[1] == said[2]
    assert f"accelerate=onnx changes labels of m.joblib: {said[0]}" in warned(runtime)
    differ = answers(runtime, rows, "predict") != model.predict(rows)
    assert 0 < differ.sum() <= int(said[1])
    assert model.predict_proba(rows[differ]).tolist() == [[0.5, 0.5]] * int(differ.sum())


def test_many_other_labels_are_not_borne(tmp_path: Path) -> None:
    model, rows = tied(20, 100)
    np.save(tmp_path / "m.sample.npy", rows)
    runtime = served(model, tmp_path)
    assert runtime.properties["answered_by"] == "predict, predict_proba, predict_log_proba: 20 trees in one"
    assert "of them ties" in warned(runtime)


def test_another_label_where_no_classes_are_tied_is_a_reason_not_to_convert() -> None:
    model, rows = tied(11, 0)
    own = {
        "predict": lambda x: np.where(x[:, 2] > 3.5, 1 - model.predict(x), model.predict(x)),
        "predict_proba": model.predict_proba,
    }
    with pytest.raises(Unfit, match=r"of 20000 rows \d have another label, 0 of them ties"):
        converted(model, own, [rows])


def test_without_skl2onnx_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ModelLoadError, match=r"'skl2onnx', which is not installed.*pip install 'serveplane\[accelerate\]'"):
        served(SVC().fit(X, TWO), tmp_path)


def test_nobody_who_does_not_ask_for_it_loads_a_converter(tmp_path: Path) -> None:
    joblib.dump(RandomForestClassifier(3).fit(X, TWO), tmp_path / "m.joblib")
    code = f"""
import sys
from pathlib import Path
from predictors.sklearn import load
from server.runtime import LoadOptions, ModelFile
load(ModelFile(Path({str(tmp_path / "m.joblib")!r}), "joblib", "sklearn"), LoadOptions(trust_code=True))
print(sorted(sys.modules.keys() & {{"skl2onnx", "onnx", "onnxruntime", "pandas"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"
