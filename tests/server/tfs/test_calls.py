"""Every call of TensorFlow Serving's clients, by the table that users read: docs/tensorflow-serving.md says what becomes of it."""

import re

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2, session_service_pb2

from tests.conftest import EXAMPLES, ROOT

ROW = [5.1, 3.5, 1.4, 0.2]


def table() -> dict[str, str]:
    page = (ROOT / "docs/tensorflow-serving.md").read_text()
    rows = re.findall(r"^\| (`.+?) \| *(.*?) *\|", page, re.M)
    return {call.replace("`", ""): works for call, works in rows}


TABLE = table()


@pytest.fixture(scope="module")
def server(serve, lane):
    with serve(EXAMPLES / "iris.skops", *lane, "--enable_model_control") as server:
        yield server


@pytest.fixture(scope="module")
def client(server, client_of):
    with client_of(server) as client:
        yield client


@pytest.fixture
def requests(messages, example):
    """A request of each method, and what shows that its answer is one."""
    spec = {"name": "iris"}
    predict = messages.Predict(model_spec=spec)
    predict.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([ROW])))
    of_examples = {"model_spec": spec, "input": {"example_list": {"examples": [example(x=ROW)]}}}
    task = {"model_spec": spec, "method_name": "tensorflow/serving/classify"}
    reload = {"config": {"model_config_list": {"config": [{"name": "iris", "base_path": str(EXAMPLES / "iris.skops")}]}}}
    return {
        "Predict": (predict, lambda a: a.outputs["predict"].int64_val[0] == 0),
        "Classify": (messages.Classify(**of_examples), lambda a: len(a.result.classifications[0].classes) == 3),
        "Regress": (messages.Regress(**of_examples), lambda a: a.result.regressions[0].value == 0),
        "MultiInference": (
            messages.MultiInference(tasks=[task], input=of_examples["input"]),
            lambda a: a.results[0].classification_result.classifications[0].classes[0].label == "0",
        ),
        "GetModelMetadata": (
            messages.GetModelMetadata(model_spec=spec, metadata_field=["signature_def"]),
            lambda a: a.metadata["signature_def"].type_url.endswith("tensorflow.serving.SignatureDefMap"),
        ),
        "GetModelStatus": (messages.GetModelStatus(model_spec=spec), lambda a: a.model_version_status[0].state == 30),
        "HandleReloadConfigRequest": (messages.HandleReloadConfigRequest(**reload), lambda a: a.status.error_code == 0),
        "SessionRun": (session_service_pb2.SessionRunRequest(model_spec=spec, fetch=["y:0"]), lambda a: a.tensor),
    }


METHODS = [
    f"{service}.{method.name}"
    for module in (prediction_service_pb2, model_service_pb2, session_service_pb2)
    for service, described in module.DESCRIPTOR.services_by_name.items()
    for method in described.methods
]
PATHS = {
    "GET /v1/models/M": (b"", "model_version_status"),
    "GET /v1/models/M/metadata": (b"", "metadata"),
    "POST /v1/models/M:predict (instances)": ({"instances": [ROW]}, "predictions"),
    "POST /v1/models/M:predict (inputs)": ({"inputs": [ROW]}, "outputs"),
    "POST /v1/models/M:classify": ({"examples": [{"x": ROW}]}, "results"),
    "POST /v1/models/M:regress": ({"examples": [{"x": ROW}]}, "results"),
}


def test_the_table_has_a_line_for_each_call_there_is():
    assert sorted(TABLE) == sorted([*METHODS, *PATHS])


@pytest.mark.parametrize("call", METHODS)
def test_what_the_table_says_of_a_call_is_what_becomes_of_it(client, requests, call):
    service, method = call.split(".")
    request, is_answer = requests[method]
    module = {"PredictionService": prediction_service_pb2, "ModelService": model_service_pb2}.get(service, session_service_pb2)
    described = module.DESCRIPTOR.services_by_name[service]
    answer_class = described.methods_by_name[method].output_type._concrete_class
    invoke = client.channel.unary_unary(
        f"/{described.full_name}/{method}", type(request).SerializeToString, answer_class.FromString
    )
    if TABLE[call] == "yes":
        assert is_answer(invoke(request, timeout=30))
    else:
        with pytest.raises(grpc.RpcError) as raised:
            invoke(request, timeout=30)
        assert raised.value.code().name == TABLE[call]


@pytest.mark.parametrize("call", PATHS)
def test_what_the_table_says_of_a_path_is_what_becomes_of_it(server, wire, call):
    method, path = call.split(" (")[0].split()
    body, key = PATHS[call]
    with wire(server.http) as connection:
        answer = connection.ask(method, path.replace("/M", "/iris"), body)
    assert TABLE[call] == "yes"
    assert (answer.status, key in answer.json) == (200, True)
