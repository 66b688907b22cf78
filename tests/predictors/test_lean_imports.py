"""What the scikit-learn runtime does not import, and that whoever needs it after all has the real thing.

Each row is a process of its own: in this one, tests have long imported everything.
"""

import json
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PowerTransformer, QuantileTransformer, SplineTransformer
from sklearn.utils import all_estimators

from predictors._lean_imports import is_public_estimator

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(5).normal(3, 1, (60, 2)).clip(0.1)
Y = X[:, 0] * 2

LOAD = """
import sys
sys.path.insert(0, ROOT)
from pathlib import Path
import numpy as np
from predictors import _lean_imports
from predictors.sklearn import load
from server.runtime import LoadOptions, ModelFile

def answer(name):
    options = LoadOptions(trust_code=True, extra={"accelerate": "off"})
    runtime = load(ModelFile(Path(FOLDER, name), name.split(".")[1], "sklearn"), options)
    signature = runtime.signatures[0]
    return runtime, signature, runtime.predict(signature, runtime.sample(signature, 4), signature.defaults, {})

def deferred(*names):
    return [n for n in names if type(sys.modules[n]).__name__ == "DeferredModule"]
"""


def run(code: str, folder: Path) -> str:
    head = LOAD.replace("ROOT", repr(str(ROOT))).replace("FOLDER", repr(str(folder)))
    done = subprocess.run([sys.executable, "-P", "-c", head + code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    labels = Y.mean() < Y
    skops.io.dump(LogisticRegression().fit(X, labels), folder / "plain.skops")
    joblib.dump(LogisticRegression().fit(X, labels), folder / "plain.joblib")
    joblib.dump(LogisticRegression().fit(pd.DataFrame(X, columns=["a", "b"]), labels), folder / "named.joblib")
    joblib.dump(OneHotEncoder().fit(pd.DataFrame({"s": ["p", "q"]})), folder / "strings.joblib")
    joblib.dump(PowerTransformer().fit(X), folder / "power.joblib")
    joblib.dump(QuantileTransformer(n_quantiles=20, output_distribution="normal").fit(X), folder / "quantile.joblib")
    joblib.dump(make_pipeline(SplineTransformer(), Ridge()).fit(X, Y), folder / "spline.joblib")
    search = RandomizedSearchCV(Ridge(), {"alpha": stats.loguniform(0.1, 10)}, n_iter=2, cv=2).fit(X, Y)
    joblib.dump(search, folder / "search.joblib")
    return folder


@pytest.mark.parametrize("name", ["plain.skops", "plain.joblib", "named.joblib"])
def test_a_plain_predictor_loads_without_pandas_statistics_and_tests(name: str, models: Path) -> None:
    run(
        f"""
answer({name!r})
assert deferred(*_lean_imports.DEFERRED) == list(_lean_imports.DEFERRED)
assert not {{"pandas", "pytest", "matplotlib", "sklearn.ensemble", "sklearn.utils._testing"}} & set(sys.modules)
""",
        models,
    )


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell a process's memory")
def test_a_small_predictor_with_all_its_edges_fits_in_150_megabytes(models: Path) -> None:
    found = run(
        """
import fastapi, uvicorn, uvloop, httptools, grpc, prometheus_client, msgspec, orjson
answer("plain.skops")
print(next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Pss:")))
""",
        models,
    )
    assert int(found) < 150 * 1024


NEEDS = {
    "a function that needs scipy.stats": """
from sklearn.isotonic import IsotonicRegression
x = np.arange(20.0)
found = IsotonicRegression(increasing="auto").fit(x, -x).predict(x)
assert found.tolist() == (-x).tolist()
import scipy.stats
assert scipy.stats is sys.modules["scipy.stats"] and scipy.stats.norm.cdf(0) == 0.5
""",
    "a transformer that calls scipy.stats": """
answer("power.joblib")
answer("quantile.joblib")
assert not deferred("scipy.stats")
""",
    "splines": """
answer("spline.joblib")
assert not deferred("scipy.interpolate")
from scipy.interpolate import BSpline
import scipy.interpolate._bsplines
assert BSpline is scipy.interpolate._bsplines.BSpline
""",
    "a pickled distribution": """
runtime, _, _ = answer("search.joblib")
search = runtime._methods["predict"].__self__
assert 0.1 <= search.param_distributions["alpha"].rvs(random_state=0) <= 10
import scipy.stats._distn_infrastructure as home
assert type(search.param_distributions["alpha"]) is home.rv_continuous_frozen
assert sys.modules["scipy.stats"]._distn_infrastructure is home
assert isinstance(sys.modules["scipy.stats"].norm, home.rv_generic)
assert home.__spec__.loader.get_source
""",
    "pandas": """
_, _, found = answer("strings.joblib")
assert "pandas" in sys.modules and found["transform"].shape == (4, 2)
answer("plain.joblib")
""",
    "names imported by somebody else": """
from scipy.stats import rankdata, spearmanr
from scipy.integrate import *
import scipy, inspect, numpy
assert inspect.isfunction(rankdata)
assert quad(lambda x: x, 0, 1)[0] == 0.5
assert scipy.optimize.linprog([1], bounds=[(2, 3)]).x.tolist() == [2]
assert scipy.optimize.milp([1], bounds=scipy.optimize.Bounds(2, 3)).x.tolist() == [2]
assert "get_include" in dir(numpy.f2py) and numpy.f2py.get_include()
from sklearn.metrics import roc_auc_score, auc
assert roc_auc_score([0, 1, 1], [0.1, 0.2, 0.3]) == 1.0 and auc([0, 1], [0, 1]) == 0.5
""",
}


@pytest.mark.parametrize("case", NEEDS)
def test_who_needs_a_deferred_module_has_the_real_one(case: str, models: Path) -> None:
    run(NEEDS[case], models)


def test_lean_skops_trusts_what_skops_trusts(models: Path) -> None:
    """The lists of names are the same, and an estimator is on neither or on both."""
    show = (
        "import skops.io._trusted_types as t, json; print(json.dumps({k: v for k, v in vars(t).items() if k.endswith('NAMES')}))"
    )
    lean = run(f"_lean_imports.skops_io()\n{show}", models)
    plain = subprocess.run(
        [sys.executable, "-P", "-c", f"import skops.io\n{show}"], capture_output=True, text=True, check=True
    ).stdout
    by_lean, by_plain = (dict(sorted(json.loads(text).items())) for text in (lean, plain))
    estimators = by_plain.pop("SKLEARN_ESTIMATOR_TYPE_NAMES")
    assert by_lean.pop("SKLEARN_ESTIMATOR_TYPE_NAMES") == []
    assert {k: set(v) for k, v in by_lean.items()} == {k: set(v) for k, v in by_plain.items()}
    assert [e for e in estimators if not is_public_estimator(e)] == []
    known = {f"{c.__module__}.{c.__qualname__}" for _, c in all_estimators()}
    assert set(estimators) <= known


@pytest.mark.parametrize(
    "name",
    [
        "sklearn.base.BaseEstimator",
        "sklearn.linear_model._base.LinearModel",
        "sklearn.linear_model.LogisticRegression",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.utils._mocking.CheckingClassifier",
        "sklearn.tests.test_base.MyEstimator",
        "sklearn.externals.Anything",
        "sklearn.nowhere.Thing",
        "sklearn.metrics.accuracy_score",
        "sklearn._loss.loss.HalfSquaredError",
        "sklearnish.linear_model.LogisticRegression",
        "os.system",
        "LogisticRegression",
    ],
)
def test_what_is_no_public_estimator_is_not_trusted_as_one(name: str) -> None:
    assert not is_public_estimator(name)
