"""TensorFlow Serving's client, unmodified, in the same process as the server's modules: what it asks for is what it gets."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.wrappers_pb2 import Int64Value
from tensorflow.core.framework.tensor_pb2 import TensorProto

from tests.conftest import EXAMPLES

Code = grpc.StatusCode
TOTAL = {"total": [3.0]}


@pytest.fixture(scope="module")
def client(sums, client_of):
    with client_of(sums) as client:
        yield client


@pytest.fixture(scope="module")
def echo(serve, models, lane, client_of):
    with serve(f"{models}/echo.py:Echo", *lane) as server, client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def iris_client(iris, client_of):
    with client_of(iris) as client:
        yield client


def texts(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


TENSORS = {
    "bool": np.array([True, False]),
    **{n: np.array([np.iinfo(n).min, 1, np.iinfo(n).max], n) for n in ("uint8", "uint16", "uint32", "uint64")},
    **{n: np.array([np.iinfo(n).min, -1, np.iinfo(n).max], n) for n in ("int8", "int16", "int32", "int64")},
    "fp16": np.array([0.1, -65504, np.inf, np.nan], "float16"),
    "fp32": np.array([0.1, np.finfo("float32").max, -np.inf, np.nan], "float32"),
    "fp64": np.array([0.1, 1e308, 5e-324, np.nan], "float64"),
    "bytes": texts(b"plain", "naïve ☃".encode(), b"", b"a\nb\0c"),
}


def predict(messages, model, inputs, outputs=(), **spec):
    request = messages.Predict(model_spec={"name": model, **spec}, output_filter=outputs)
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(value if isinstance(value, TensorProto) else tf.make_tensor_proto(value))
    return request


def arrays(answer):
    return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}


def refused(call, *args, **kwargs):
    with pytest.raises(grpc.RpcError) as raised:
        call(*args, **kwargs)
    return raised.value


ROW = {"x": np.array([[1.0, 2.0]])}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_as_it_was_sent(echo, messages, name):
    found = arrays(echo.Predict(predict(messages, "echo", {name: TENSORS[name]})))
    assert list(found) == [name]
    assert found[name].dtype == TENSORS[name].dtype
    np.testing.assert_array_equal(found[name], TENSORS[name])


def test_values_that_are_not_packed_come_back_too(echo, messages):
    proto = TensorProto(dtype=1, tensor_shape={"dim": [{"size": 3}]}, float_val=[1, 2])
    assert arrays(echo.Predict(predict(messages, "echo", {"fp32": proto})))["fp32"].tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("inputs", "spec", "outputs"),
    [
        (ROW, {}, ()),
        (ROW, {"signature_name": "serving_default"}, ["total"]),
        ({"x": np.array([[1.0, 2.0]], np.float32)}, {}, ()),
        (ROW, {"version": Int64Value(value=0)}, ()),
    ],
    ids=["plainly", "by name", "in fewer bits", "of no version"],
)
def test_predict_is_answered_with_the_signature_that_answered(client, messages, inputs, spec, outputs):
    answer = client.Predict(predict(messages, "sums", inputs, outputs, **spec))
    assert {n: a.tolist() for n, a in arrays(answer).items()} == TOTAL
    assert list(answer.outputs["total"].double_val) == [3.0]
    told = answer.model_spec
    assert (told.name, told.signature_name, told.HasField("version")) == ("sums", "serving_default", False)


BAD = [
    ("46: an unknown model", {"model": "none"}, Code.NOT_FOUND, "Servable not found for request: Latest(none)"),
    (
        "46: an unknown version",
        {"version": Int64Value(value=7)},
        Code.NOT_FOUND,
        "Servable not found for request: Specific(sums, 7)",
    ),
    ("46: an unknown label", {"version_label": "stable"}, Code.INVALID_ARGUMENT, "Unrecognized servable version label: stable"),
    (
        "46: an unknown signature",
        {"signature_name": "other"},
        Code.FAILED_PRECONDITION,
        'Serving signature name: "other" not found in signature def',
    ),
    ("no model", {"model": ""}, Code.INVALID_ARGUMENT, "model_spec.name is empty"),
    ("14: no inputs", {"inputs": {}}, Code.INVALID_ARGUMENT, "input size does not match signature"),
    ("13: another input", {"inputs": {"xx": ROW["x"]}}, Code.INVALID_ARGUMENT, "unknown input 'xx'"),
    ("15: one more input", {"inputs": {**ROW, "yy": ROW["x"]}}, Code.INVALID_ARGUMENT, "input size does not match signature"),
    (
        "18: another datatype",
        {"inputs": {"x": np.array([["a", "b"]])}},
        Code.INVALID_ARGUMENT,
        "input 'x' is BYTES, the model expects FP64",
    ),
    ("26: another shape", {"inputs": {"x": np.array([[1.0]])}}, Code.INVALID_ARGUMENT, "the model expects [-1, 2]"),
    (
        "26: a row without its batch",
        {"inputs": {"x": np.array([1.0, 2.0])}},
        Code.INVALID_ARGUMENT,
        "did you mean [1, 2] (one row)?",
    ),
    ("16: an unknown output", {"outputs": ["totl"]}, Code.INVALID_ARGUMENT, "unknown output 'totl'; did you mean 'total'?"),
    ("too many outputs", {"outputs": ["total"] * 1025}, Code.INVALID_ARGUMENT, "asks for 1025 outputs, 1024 of each are allowed"),
    ("16: an output twice", {"outputs": ["total", "total"]}, Code.INVALID_ARGUMENT, "requested twice"),
    (
        "24: a huge shape of one value",
        {"inputs": {"x": TensorProto(dtype=2, tensor_shape={"dim": [{"size": 10**9}, {"size": 2}]}, double_val=[1])}},
        Code.RESOURCE_EXHAUSTED,
        "--max_body_bytes",
    ),
]


@pytest.mark.parametrize(("how", "code", "text"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_request_has_the_code_and_the_words_of_tensorflow_serving(client, messages, how, code, text):
    how = {"model": "sums", "inputs": ROW, **how}
    error = refused(client.Predict, predict(messages, how.pop("model"), how.pop("inputs"), how.pop("outputs", ()), **how))
    assert error.code() is code
    assert text in error.details()
    assert arrays(client.Predict(predict(messages, "sums", ROW)))["total"].tolist() == [3.0]


def test_bytes_that_are_no_message_are_refused(client):
    for path, kind in (
        ("PredictionService/Predict", "PredictRequest"),
        ("PredictionService/Classify", "ClassificationRequest"),
        ("ModelService/GetModelStatus", "GetModelStatusRequest"),
    ):
        error = refused(client.channel.unary_unary(f"/tensorflow.serving.{path}"), b"\xff\xff")
        assert (error.code(), error.details()) == (Code.INVALID_ARGUMENT, f"the request is not a valid tensorflow.serving.{kind}")


def test_a_deadline_that_has_passed_is_told(serve, gate, models, client_of, messages):
    with serve(f"{models}/gated.py:Gated", env=gate.environment) as server, client_of(server) as client:
        inputs = {"x": np.array([[1000]])}
        assert refused(client.Predict, predict(messages, server.name, inputs), timeout=0.2).code() is Code.DEADLINE_EXCEEDED
        gate.close_held()


def test_status_and_metadata_are_those_of_any_model(client, messages):
    status = client.GetModelStatus(messages.GetModelStatus(model_spec={"name": "sums"})).model_version_status
    assert [(s.version, s.state, s.status.error_code, s.status.error_message) for s in status] == [(0, 30, 0, "")]
    answer = client.GetModelMetadata(messages.GetModelMetadata(model_spec={"name": "sums"}, metadata_field=["signature_def"]))
    told = messages.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(told)
    definition = told.signature_def["serving_default"]
    assert (answer.model_spec.name, definition.method_name) == ("sums", "tensorflow/serving/predict")
    assert [(n, i.dtype, [d.size for d in i.tensor_shape.dim]) for n, i in definition.inputs.items()] == [("x", 2, [-1, 2])]
    assert [(n, i.dtype, [d.size for d in i.tensor_shape.dim]) for n, i in definition.outputs.items()] == [("total", 2, [-1])]


@pytest.mark.parametrize(
    ("method", "fields", "code", "text"),
    [
        ("GetModelStatus", {"model_spec": {"name": "none"}}, Code.NOT_FOUND, "Servable not found for request: Latest(none)"),
        ("GetModelStatus", {}, Code.INVALID_ARGUMENT, "Missing ModelSpec"),
        ("GetModelMetadata", {"model_spec": {"name": "sums"}}, Code.INVALID_ARGUMENT, "ask for 'signature_def'"),
        ("GetModelMetadata", {"model_spec": {"name": "sums"}, "metadata_field": ["x"]}, Code.INVALID_ARGUMENT, "metadata field 'x' is not supported"),
        ("HandleReloadConfigRequest", {"config": {"model_config_list": {}}}, Code.PERMISSION_DENIED, "--enable_model_control"),
        ("MultiInference", {}, Code.INVALID_ARGUMENT, "at least one task"),
        ("Classify", {"model_spec": {"name": "sums"}}, Code.INVALID_ARGUMENT, "Input is empty"),
    ],
)  # fmt: skip
def test_what_can_not_be_told_says_why(client, messages, method, fields, code, text):
    error = refused(getattr(client, method), getattr(messages, method)(**fields))
    assert error.code() is code
    assert text in error.details()


IRIS = [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]]


def of_examples(messages, method, model, *rows, context=None, **spec):
    request = getattr(messages, method)(model_spec={"name": model, **spec})
    if context is None:
        request.input.example_list.examples.extend(rows)
    else:
        request.input.example_list_with_context.examples.extend(rows)
        request.input.example_list_with_context.context.CopyFrom(context)
    return request


def labelled(result):
    return [[(c.label, round(c.score, 4)) for c in row.classes] for row in result.classifications]


def test_a_classifiers_classes_are_labelled_and_have_their_probabilities(iris_client, iris, messages, example):
    answer = iris_client.Classify(of_examples(messages, "Classify", iris.name, *(example(x=row) for row in IRIS)))
    probabilities = arrays(
        iris_client.Predict(predict(messages, iris.name, {"x": np.array(IRIS, np.float32)}, ["predict_proba"]))
    )
    want = [[(str(i), round(p, 4)) for i, p in enumerate(row)] for row in probabilities["predict_proba"].tolist()]
    assert labelled(answer.result) == want
    assert answer.model_spec.signature_name == "serving_default"


def test_a_tables_columns_are_features_and_one_that_an_example_lacks_is_missing(serve, client_of, messages, example):
    with serve(EXAMPLES / "houses.skops") as server, client_of(server) as client:
        first = {"area": 70.0, "age": 60.0, "rooms": 3, "city": "Berlin", "heating": "gas"}
        second = {k: v for k, v in first.items() if k not in ("age", "city")}
        answer = client.Regress(of_examples(messages, "Regress", server.name, example(**first), example(**second)))
        got = [r.value for r in answer.result.regressions]
        columns = {n: np.array([first[n], second.get(n, np.nan)]) for n in ("area", "age", "rooms")}
        columns |= {"city": texts("Berlin", None), "heating": texts("gas", "gas")}
        with pytest.raises(TypeError):  # TensorFlow has no missing strings, which is what a feature that is not there says
            predict(messages, server.name, columns)
        assert len(got) == 2
        assert got[0] != got[1]
        shared = of_examples(
            messages, "Regress", server.name, example(area=70.0), example(area=90.0), context=example(**{**first, "area": 1.0})
        )
        assert client.Regress(shared).result.regressions[0].value == got[0]
        error = refused(client.Regress, of_examples(messages, "Regress", server.name, example(area=70.0, aage=1.0)))
        assert (error.code(), "unknown input 'aage'; did you mean 'a" in error.details()) == (Code.INVALID_ARGUMENT, True)
        error = refused(client.Regress, of_examples(messages, "Regress", server.name, example(**{**first, "city": 3.0})))
        assert "feature 'city' has a number at element 0, the model expects strings" in error.details()
        error = refused(client.Classify, of_examples(messages, "Classify", server.name, example(**first)))
        assert "the model gives no classes; its outputs are predict FP64[-1]; use regress or predict" in error.details()


def test_a_saved_model_that_reads_examples_gets_them_whole(serve, half_plus_two, client_of, messages, example):
    with serve(half_plus_two) as server, client_of(server) as client:
        rows = [example(x=1.0), example(x=4.0)]
        answer = client.Regress(of_examples(messages, "Regress", server.name, *rows, signature_name="regress_x"))
        assert [r.value for r in answer.result.regressions] == [2.5, 4.0]
        assert answer.model_spec.signature_name == "regress_x"
        answer = client.Classify(of_examples(messages, "Classify", server.name, *rows, signature_name="classify_x"))
        assert labelled(answer.result) == [[("up", 2.5), ("down", -2.5)], [("up", 4.0), ("down", -4.0)]]
        request = messages.MultiInference()
        request.input.example_list.examples.extend(rows)
        for method in ("classify", "regress"):
            spec = {"name": server.name, "signature_name": f"{method}_x"}
            request.tasks.add(model_spec=spec, method_name=f"tensorflow/serving/{method}")
        results = client.MultiInference(request).results
        assert [r.model_spec.signature_name for r in results] == ["classify_x", "regress_x"]
        assert labelled(results[0].classification_result)[0] == [("up", 2.5), ("down", -2.5)]
        assert [r.value for r in results[1].regression_result.regressions] == [2.5, 4.0]
        request.tasks[1].model_spec.name = "other"
        assert "all have to name the same" in refused(client.MultiInference, request).details()
        request.tasks[1].CopyFrom(request.tasks[0])
        assert "Duplicate evaluation of signature" in refused(client.MultiInference, request).details()
        request.tasks[1].method_name = "tensorflow/serving/predict"
        assert "task 1 has the method 'tensorflow/serving/predict'" in refused(client.MultiInference, request).details()
        told = client.GetModelMetadata(
            messages.GetModelMetadata(model_spec={"name": server.name}, metadata_field=["signature_def"])
        )
        signatures = messages.SignatureDefMap()
        told.metadata["signature_def"].Unpack(signatures)
        assert {n: s.method_name.rpartition("/")[2] for n, s in signatures.signature_def.items()} == {
            "serving_default": "predict",
            "classify_x": "classify",
            "regress_x": "regress",
        }


def test_each_inference_is_one_record_with_its_method(serve, models, client_of, messages, metrics, example):
    with serve(f"{models}/sums.py:Sums") as server, client_of(server) as client:
        for _ in range(3):
            client.Predict(predict(messages, "sums", ROW))
        client.Regress(of_examples(messages, "Regress", "sums", example(x=[1.0, 2.0]), example(x=[3.0, 4.0])))
        refused(client.Predict, predict(messages, "none", ROW))
        told = metrics(server).items()
        counted = {k: v for k, v in told if k.startswith("serve_request_duration_seconds_count{") and 'protocol="tfs"' in k}
        assert sorted(counted.values()) == [1, 1, 3], told
        server.stop()
        lines = [line for line in server.stderr.splitlines() if '"protocol":"tfs"' in line]
        assert len(lines) == 5
        assert sum('"method":"Predict"' in line for line in lines) == 4
        assert any('"rows":2' in line and '"method":"Regress"' in line for line in lines)


def test_reflection_and_health_know_the_services(sums):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(sums.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"}
        assert services <= set(database.get_services())
        file = database.FindFileContainingSymbol("tensorflow.serving.PredictRequest")
        assert "PredictRequest" in [m.name for m in file.message_type]
        health = health_pb2_grpc.HealthStub(channel)
        for service in services:
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
