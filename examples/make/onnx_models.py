"""Makes the ONNX examples: real models, fitted on data that comes with scikit-learn or is made up here, each under 100 kB.

    python examples/make/onnx_models.py [FOLDER]

- `mlp.onnx`: breast cancer, 30 measurements to two probabilities; the hot path of the benchmarks
- `zipmap.onnx`: iris, with the list of dicts that skl2onnx gives when nobody asks it not to
- `strings.onnx`: text and numbers in, text out (will a customer stay?)
- `external.onnx` and `external.weights`: handwritten digits, with the weights in a file of their own
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

OPSET = 17
IR_VERSION = 8


def mlp() -> onnx.ModelProto:
    """30-64-64-2 with the scaling folded into the first layer, and the one logit turned into two for a softmax."""
    data, target = load_breast_cancer(return_X_y=True)
    scaler = StandardScaler().fit(data)
    network = MLPClassifier((64, 64), random_state=0, alpha=1.0, max_iter=500).fit(scaler.transform(data), target)
    weights, biases = list(network.coefs_), list(network.intercepts_)
    biases[0] = biases[0] - (scaler.mean_ / scaler.scale_) @ weights[0]
    weights[0] = weights[0] / scaler.scale_[:, None]
    weights[-1] = np.hstack([np.zeros_like(weights[-1]), weights[-1]])
    biases[-1] = np.hstack([np.zeros_like(biases[-1]), biases[-1]])
    return dense("mlp", "x", "y", weights, biases)


def external() -> onnx.ModelProto:
    """64-32-10: the pixels of a handwritten digit to ten probabilities."""
    data, target = load_digits(return_X_y=True)
    network = MLPClassifier((32,), random_state=0, max_iter=500).fit(data / 16, target)
    weights, biases = list(network.coefs_), list(network.intercepts_)
    weights[0] = weights[0] / 16
    return dense("digits", "pixels", "probabilities", weights, biases)


def dense(name: str, source: str, result: str, weights: list[np.ndarray], biases: list[np.ndarray]) -> onnx.ModelProto:
    nodes, constants, value = [], [], source
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"b{i}"))
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"h{i}"]))
        value = f"h{i}"
        if i < len(weights) - 1:
            nodes.append(helper.make_node("Relu", [value], [f"a{i}"]))
            value = f"a{i}"
    nodes.append(helper.make_node("Softmax", [value], [result], axis=-1))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["batch", len(weights[0])])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", len(biases[-1])])],
        constants,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, producer_name="serveplane-examples", opset_imports=opsets, ir_version=IR_VERSION)


def zipmap() -> onnx.ModelProto:
    data, target = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data, target)
    return converted(model, "iris", [("X", FloatTensorType([None, 4]))], zipmap=True)


def strings() -> onnx.ModelProto:
    """Customers of three plans and four countries: the longer they stayed, the likelier they stay; the free plan is left most."""
    rng = np.random.default_rng(0)
    plans, countries = np.array(["free", "basic", "pro"]), np.array(["DE", "FR", "JP", "BR"])
    plan, country, months = rng.integers(0, 3, 600), rng.integers(0, 4, 600), rng.integers(1, 60, 600)
    stays = rng.random(600) < 1 / (1 + np.exp(-(months / 15 + plan - 2.5)))
    table = np.empty((600, 3), object)
    table[:, 0], table[:, 1], table[:, 2] = plans[plan], countries[country], months
    columns = ColumnTransformer([("text", OneHotEncoder(handle_unknown="ignore"), [0, 1]), ("number", StandardScaler(), [2])])
    model = make_pipeline(columns, LogisticRegression()).fit(table, np.where(stays, "stays", "leaves"))
    inputs = [(name, StringTensorType([None, 1])) for name in ("plan", "country")]
    return converted(model, "customers", [*inputs, ("months", FloatTensorType([None, 1]))], zipmap=False)


def converted(model: object, name: str, inputs: list[tuple[str, object]], zipmap: bool) -> onnx.ModelProto:
    return convert_sklearn(model, name, inputs, target_opset={"": OPSET, "ai.onnx.ml": 3}, options={"zipmap": zipmap})


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in (("mlp", mlp()), ("zipmap", zipmap()), ("strings", strings())):
        onnx.checker.check_model(model)
        onnx.save_model(model, folder / f"{name}.onnx")
    weights = folder / "external.weights"
    # an existing file would be appended to
    weights.unlink(missing_ok=True)
    onnx.save_model(external(), folder / "external.onnx", save_as_external_data=True, location=weights.name, size_threshold=0)
    # onnx makes it readable for its owner alone
    weights.chmod(0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
