"""Fits the scikit-learn examples and saves them: python examples/make/sklearn_models.py [OUT_DIR]

All data comes with scikit-learn or is made here, so that the same versions give the same predictions on every machine.
"""

import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

HERE = Path(__file__).resolve().parent.parent
CITIES = ("Aachen", "Bergen", "Cork", "Delft")
HEATING = ("district", "gas", "heat pump")
GOOD = ("great", "delightful", "sturdy", "clever", "lovely", "quick", "reliable", "bright")
BAD = ("awful", "flimsy", "slow", "broken", "dull", "noisy", "useless", "late")
SO_SO = ("fine", "usable", "ordinary", "acceptable", "plain", "average", "middling", "decent")
THINGS = ("kettle", "lamp", "bicycle", "book", "chair", "radio", "jacket", "phone")


def iris() -> LogisticRegression:
    features, species = load_iris(return_X_y=True)
    # to the optimum itself: a solver that stops before it stops elsewhere on another processor
    return LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(features, species)


def diabetes() -> Any:
    features, progression = load_diabetes(return_X_y=True)
    return make_pipeline(StandardScaler(), Ridge(alpha=10.0)).fit(features, progression)


def cancer() -> RandomForestClassifier:
    features, benign = load_breast_cancer(return_X_y=True)
    return RandomForestClassifier(n_estimators=100, max_leaf_nodes=16, random_state=0).fit(features, benign)


def houses_data(rows: int = 600) -> tuple[pd.DataFrame, np.ndarray]:
    """Houses and their prices, with gaps in the numbers and in the strings."""
    rng = np.random.default_rng(7)
    city, heating = rng.integers(0, len(CITIES), rows), rng.integers(0, len(HEATING), rows)
    area, age = rng.normal(110, 35, rows).clip(25).round(1), rng.integers(0, 120, rows).astype(float)
    price = 900 + 3200 * area - 700 * age + 30_000 * city + 12_000 * heating + rng.normal(0, 15_000, rows)
    table = pd.DataFrame(
        {
            "area": area,
            "age": age,
            "rooms": (area / 25).round().clip(1),
            "city": np.array(CITIES, object)[city],
            "heating": np.array(HEATING, object)[heating],
        }
    )
    for column, share in (("age", 0.08), ("rooms", 0.05), ("heating", 0.1)):
        table.loc[rng.random(rows) < share, column] = None
    return table, price.round(-2)


def houses() -> Any:
    table, price = houses_data()
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["area", "age", "rooms"]),
            (
                "strings",
                make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
                ["city", "heating"],
            ),
        ]
    )
    return make_pipeline(columns, Ridge()).fit(table, price)


def reviews_data(rows: int = 600) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(11)
    texts, labels = [], []
    for _ in range(rows):
        label, words = [("positive", GOOD), ("negative", BAD), ("neutral", SO_SO)][rng.integers(3)]
        first, second = rng.choice(words, 2, replace=False)
        texts.append(f"the {rng.choice(THINGS)} is {first} and {second}, says my {rng.choice(THINGS)} dealer")
        labels.append(label)
    return texts, labels


def reviews() -> Any:
    texts, labels = reviews_data()
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    # a memory address, which spares the vectorizer a check of its stop words and would make every file different
    del model[0]._stop_words_id
    return model


def save_skops(model: Any, path: Path) -> None:
    """skops names a file's members by memory addresses and writes the time; here both are made the same every time."""
    skops.io.dump(model, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    schema = members.pop("schema.json").decode()
    plain = {}
    for i, (name, content) in enumerate(members.items()):
        stable = str(uuid.uuid5(uuid.NAMESPACE_OID, str(i))) + Path(name).suffix
        schema = schema.replace(f'"{name}"', f'"{stable}"')
        plain[stable] = content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [*plain.items(), ("schema.json", _renumbered(schema).encode())]:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def _renumbered(schema: str) -> str:
    """The schema with 1, 2, 3 … for its objects' ids."""
    pieces = schema.split('"__id__": ')
    numbers: dict[str, int] = {}
    for i, piece in enumerate(pieces[1:], 1):
        old = piece[: len(piece) - len(piece.lstrip("0123456789"))]
        pieces[i] = str(numbers.setdefault(old, len(numbers) + 1)) + piece[len(old) :]
    return '"__id__": '.join(pieces)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, model in (("iris", iris()), ("diabetes", diabetes()), ("houses", houses()), ("reviews", reviews())):
        save_skops(model, out / f"{name}.skops")
    joblib.dump(iris(), out / "iris.joblib")
    joblib.dump(cancer(), out / "cancer.joblib", compress=("xz", 6))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
