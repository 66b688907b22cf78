"""Fixtures for tests of bad input; nothing else."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.server.conftest import LANES, gate, in_flight, metrics, until_, wire  # noqa: F401 (fixtures that are used here too)

HERE = Path(__file__).parent


@pytest.fixture(scope="package")
def server_models() -> Path:
    return HERE.parent / "server" / "models"


@pytest.fixture(scope="package")
def words(tmp_path_factory) -> Path:
    """A model of scikit-learn of a column of text and one of numbers."""
    import pandas as pd
    import skops.io
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table = pd.DataFrame({"word": ["red", "green", "blue", "red"], "number": [1.0, 2.0, 3.0, 4.0]})
    model = make_pipeline(make_column_transformer((OneHotEncoder(), ["word"]), remainder="passthrough"), LinearRegression())
    path = tmp_path_factory.mktemp("words") / "words.skops"
    skops.io.dump(model.fit(table, [1, 2, 3, 4]), path)
    return path


@pytest.fixture(scope="package")
def catalogue_servers(serve, words):
    """A server for each model of the catalogue: narrow in its limits, and ready to join requests.

    "Lossy" is Table for what makes a server join no more: a model that gives fewer rows than it got.
    """
    flags = "--max_body_bytes=262144", "--max_batch_size=32", "--concurrency=1"
    models = {
        "Table": f"{HERE}/models/table.py:Table",
        "Mixed": f"{HERE}/models/table.py:Mixed",
        "Lossy": f"{HERE}/models/table.py:Table",
        "Words": words,
    }
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        # at once: most of their time is importing
        started = {n: pool.submit(stack.enter_context, serve(m, *flags, f"--model_name={n.lower()}")) for n, m in models.items()}
        yield {n: one.result() for n, one in started.items()}


@pytest.fixture(scope="package", params=LANES)
def lane(request) -> tuple[str, ...]:
    return LANES[request.param]
