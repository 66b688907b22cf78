"""Every example × every protocol gives what the framework's own predict gives for the same rows.

The server is a process of its own, the clients are the published ones, and the expectation comes from the framework
called directly in this process.
"""

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Inputs as a client sends them, and the outputs that the framework gives for them.

    `asked` names outputs to request (None: the model's defaults).
    """

    model: str
    inputs: Arrays
    want: Callable[[], Arrays]
    asked: tuple[str, ...] | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.model}{f' ({self.name})' if self.name else ''}"


def texts(*values: Any) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def estimator(name: str) -> Any:
    path = EXAMPLES / name
    if path.suffix == ".skops":
        import skops.io

        return skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    import joblib

    return joblib.load(path)


def sklearn(name: str, rows: Any, method: str = "predict") -> Callable[[], Arrays]:
    return lambda: {method: np.asarray(getattr(estimator(name), method)(rows() if callable(rows) else rows))}


def onnx(name: str, inputs: Arrays, **renamed: Callable[[Any], np.ndarray]) -> Callable[[], Arrays]:
    def want() -> Arrays:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(EXAMPLES / name))
        outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))
        return {n: renamed[n](v) if n in renamed else v for n, v in outputs.items()}

    return want


def saved_model(signature: str, inputs: Arrays) -> Callable[[], Arrays]:
    def want() -> Arrays:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(EXAMPLES / "two-signatures"))
        return {n: v.numpy() for n, v in loaded.signatures[signature](**{n: tf.constant(v) for n, v in inputs.items()}).items()}

    return want


def keras(inputs: Arrays) -> Callable[[], Arrays]:
    def want() -> Arrays:
        import keras as library

        model = library.saving.load_model(EXAMPLES / "tiny.keras")
        return {model.output_names[0]: np.asarray(model(next(iter(inputs.values()))))}

    return want


IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.6, 3.0, 4.4, 1.4], [6.3, 3.3, 6.0, 2.5]])
CANCER = np.random.default_rng(1).uniform(0.1, 20, (3, 30))
DIABETES = np.random.default_rng(2).normal(0, 0.05, (4, 10))
REVIEWS = ["a wonderful film, I loved it", "terrible, boring and far too long", ""]
NAN = float("nan")
HOUSES = {
    "area": [70.0, 120.5, 88.0],
    "age": [60.0, 2.0, 31.0],
    "rooms": [3.0, 6.0, 4.0],
    "city": ["Berlin", "Hamburg", "nowhere known"],
    "heating": ["gas", "heat pump", "gas"],
}
GAPS = {**HOUSES, "age": [NAN, 2.0, NAN], "city": ["Berlin", None, "nowhere known"], "heating": [None, "gas", None]}


def frame(table: dict[str, list]) -> Callable[[], Any]:
    def rows() -> Any:
        import pandas

        return pandas.DataFrame(table)

    return rows


def columns(table: dict[str, list]) -> Arrays:
    return {n: np.array(c) if isinstance(c[0], float) else texts(*(v and v.encode() for v in c)) for n, c in table.items()}


def probabilities(rows: list[dict[int, float]]) -> np.ndarray:
    return np.array([[row[k] for k in sorted(row)] for row in rows], np.float32)


MLP = {"x": CANCER.astype(np.float32)}
ZIPMAP = {"X": IRIS.astype(np.float32)}
PIXELS = {"pixels": np.random.default_rng(3).uniform(0, 16, (2, 64)).astype(np.float32)}
CUSTOMERS = {
    "plan": texts(b"basic", b"premium").reshape(2, 1),
    "country": texts(b"DE", b"never seen").reshape(2, 1),
    "months": np.array([[3.0], [40.0]], np.float32),
}
FLOWERS = {"x": IRIS.astype(np.float32)}
NAMES = {"name": texts(b" Setosa", b"unknown", b"VIRGINICA ")}

SENTENCES = {"text": texts(b"a good and lovely day", b"awful", b"")}


def sentiment() -> Arrays:
    """The user's class called by hand, as its own tests would."""
    spec = importlib.util.spec_from_file_location("example_model", EXAMPLES / "python" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (kind,) = [
        v for v in vars(module).values() if isinstance(v, type) and v.__module__ == "example_model" and hasattr(v, "predict")
    ]
    model = kind()
    model.load(EXAMPLES / "python")
    return {n: np.asarray(v, object if isinstance(v[0], str) else None) for n, v in model.predict(SENTENCES).items()}


CASES = [
    Case("python/model.py", SENTENCES, sentiment),
    Case("iris.skops", {"x": IRIS}, sklearn("iris.skops", IRIS)),
    Case("iris.skops", {"x": IRIS}, sklearn("iris.skops", IRIS, "predict_proba"), ("predict_proba",), "probabilities"),
    Case("iris.skops", {"x": IRIS}, sklearn("iris.skops", IRIS, "decision_function"), ("decision_function",), "decision"),
    Case("iris.joblib", {"x": IRIS}, sklearn("iris.joblib", IRIS)),
    Case("cancer.joblib", {"x": CANCER}, sklearn("cancer.joblib", CANCER)),
    Case("diabetes.skops", {"x": DIABETES}, sklearn("diabetes.skops", DIABETES)),
    Case("reviews.skops", {"text": texts(*(t.encode() for t in REVIEWS))}, sklearn("reviews.skops", REVIEWS)),
    Case("houses.skops", columns(HOUSES), sklearn("houses.skops", frame(HOUSES))),
    Case("houses.skops", columns(GAPS), sklearn("houses.skops", frame(GAPS)), name="with values missing"),
    Case("mlp.onnx", MLP, onnx("mlp.onnx", MLP)),
    Case("zipmap.onnx", ZIPMAP, onnx("zipmap.onnx", ZIPMAP, output_probability=probabilities)),
    Case(
        "strings.onnx",
        CUSTOMERS,
        onnx(
            "strings.onnx",
            {n: np.vectorize(bytes.decode, otypes=[object])(a) if a.dtype == object else a for n, a in CUSTOMERS.items()},
        ),
    ),
    Case("external.onnx", PIXELS, onnx("external.onnx", PIXELS)),
    Case("two-signatures", FLOWERS, saved_model("serving_default", FLOWERS)),
    Case("two-signatures", NAMES, saved_model("strings", NAMES), name="the other signature"),
    Case("tiny.keras", {"features": IRIS.astype(np.float32)}, keras({"features": IRIS.astype(np.float32)})),
]


@pytest.fixture(scope="module")
def servers(serve):
    """A server for each example and gRPC engine, started when it is first wanted and kept for the other protocols."""
    with ExitStack() as stack:
        started: dict[str, Any] = {}

        def get(model: str, engine: str) -> Any:
            key = f"{model} {engine}"
            if key not in started:
                started[key] = stack.enter_context(serve(EXAMPLES / model, "--grpc_engine", engine))
            return started[key]

        yield get


def names_of(server: Any, case: Case) -> list[str] | None:
    return list(case.asked) if case.asked else None


def can_say(protocol: str, case: Case) -> bool:
    """Binary tensors have no way to say that a string is missing; JSON has null."""
    return protocol in ("V2 JSON", "V1", "TF Serving REST") or not any(
        None in a.ravel().tolist() for a in case.inputs.values() if a.dtype == object
    )


def jsonable(array: np.ndarray) -> list:
    if array.dtype != object:
        return [None if v != v else v for v in array.ravel().tolist()]
    return [None if v is None else v.decode() for v in array.ravel().tolist()]


def datatype(array: np.ndarray) -> str:
    return {"f": "FP", "i": "INT"}[array.dtype.kind] + str(array.dtype.itemsize * 8) if array.dtype != object else "BYTES"


def v2_json(server: Any, case: Case) -> Arrays:
    tensors = [{"name": n, "shape": a.shape, "datatype": datatype(a), "data": jsonable(a)} for n, a in case.inputs.items()]
    body: dict[str, Any] = {"inputs": tensors}
    if case.asked:
        body["outputs"] = [{"name": n} for n in case.asked]
    answer = httpx.post(f"{server.http}/v2/models/{server.name}/infer", json=body)
    assert answer.status_code == 200, answer.text
    return {
        o["name"]: np.array(o["data"], object if o["datatype"] == "BYTES" else None).reshape(o["shape"])
        for o in answer.json()["outputs"]
    }


def v1(server: Any, case: Case) -> Arrays:
    rows = {n: np.array(jsonable(a), object).reshape(a.shape).tolist() for n, a in case.inputs.items()}
    body: dict[str, Any] = {"instances": [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]}
    if case.asked:
        body["output_filter"] = list(case.asked)
    answer = httpx.post(f"{server.http}/v1/models/{server.name}:predict", json=body)
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    want = list(case.want())
    if len(want) == 1:
        return {want[0]: np.array(predictions)}
    return {n: np.array([row[n] for row in predictions]) for n in want}


def triton(module: Any, server: Any, address: str, case: Case, **output_options: Any) -> Arrays:
    inputs = []
    for name, array in case.inputs.items():
        tensor = module.InferInput(name, list(array.shape), datatype(array))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = [module.InferRequestedOutput(n, **output_options) for n in case.asked] if case.asked else None
    with module.InferenceServerClient(address) as client:
        result = client.infer(server.name, inputs, outputs=outputs)
    response = result.get_response()
    names = [o["name"] for o in response["outputs"]] if isinstance(response, dict) else [o.name for o in response.outputs]
    return {n: result.as_numpy(n) for n in names}


def tfs_rest(server: Any, case: Case) -> Arrays:
    """The column form, as `v1` is the row form."""
    body: dict[str, Any] = {
        "inputs": {n: np.array(jsonable(a), object).reshape(a.shape).tolist() for n, a in case.inputs.items()}
    }
    if case.asked:
        body["output_filter"] = list(case.asked)
    answer = httpx.post(f"{server.http}/v1/models/{server.name}:predict", json=body)
    assert answer.status_code == 200, answer.text
    want, outputs = list(case.want()), answer.json()["outputs"]
    return {want[0]: np.array(outputs)} if len(want) == 1 else {n: np.array(v) for n, v in outputs.items()}


def tfs_grpc(server: Any, case: Case) -> Arrays:
    request = predict_pb2.PredictRequest(model_spec={"name": server.name}, output_filter=case.asked or ())
    for name, array in case.inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    with grpc.insecure_channel(server.grpc) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}


PROTOCOLS = {
    "TF Serving REST": tfs_rest,
    "TF Serving gRPC": tfs_grpc,
    "TF Serving gRPC, grpcio's engine": tfs_grpc,
    "V2 JSON": v2_json,
    "V1": v1,
    "V2 binary, tritonclient.http": lambda server, case: triton(triton_http, server, server.http.removeprefix("http://"), case),
    "V2 gRPC, tritonclient.grpc": lambda server, case: triton(triton_grpc, server, server.grpc, case),
    "V2 gRPC, tritonclient.grpc, grpcio's engine": lambda server, case: triton(triton_grpc, server, server.grpc, case),
}


PAIRS = [(protocol, case) for case in CASES for protocol in PROTOCOLS if can_say(protocol, case)]


@pytest.mark.parametrize(("protocol", "case"), PAIRS, ids=str)
def test_an_answer_is_what_the_framework_itself_predicts(servers, protocol, case):
    server = servers(case.model, "grpcio" if "grpcio" in protocol else "fast")
    got, want = PROTOCOLS[protocol](server, case), case.want()
    assert got.keys() == want.keys()
    for name, expected in want.items():
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(got[name].astype(float), expected, rtol=1e-5, atol=1e-6)
        else:
            assert plain(got[name]) == plain(expected)


def plain(array: np.ndarray) -> list:
    return [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]


def test_every_example_has_a_case():
    models = {
        p.name
        for p in EXAMPLES.iterdir()
        if p.name not in ("make", "manifests", "python", "README.md") and p.suffix != ".weights"
    }
    assert models <= {c.model for c in CASES}
