"""TensorFlow Serving's REST as its page describes it, over real sockets and every runtime; rows are requests and answers."""

import base64
import gzip
import json

import pytest
import tensorflow as tf

from server.inference import error_body
from server.routes_tfs import canonical
from tests.conftest import EXAMPLES


@pytest.fixture(scope="module")
def connection(sums, wire):
    with wire(sums.http) as connection:
        yield connection


AVAILABLE = {"version": "0", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
STATUS = {"name": "sums", "ready": True, "model_version_status": [AVAILABLE]}


def info(name, dtype, *dims):
    shape = {"dim": [{"size": str(n), "name": ""} for n in dims], "unknown_rank": False}
    return {"dtype": dtype, "tensor_shape": shape, "name": name}


METADATA = {
    "model_spec": {"name": "sums", "signature_name": "", "version": "0"},
    "metadata": {
        "signature_def": {
            "signature_def": {
                "serving_default": {
                    "inputs": {"x": info("x", "DT_DOUBLE", -1, 2)},
                    "outputs": {"total": info("total", "DT_DOUBLE", -1)},
                    "method_name": "tensorflow/serving/predict",
                    "defaults": {},
                }
            }
        }
    },
}
M = "/v1/models/sums"


@pytest.mark.parametrize(
    ("method", "path", "body", "answer"),
    [
        ("GET", M, b"", STATUS),
        ("GET", "/V1/Models/sums", b"", STATUS),
        ("GET", "/v1/models/su%6ds", b"", STATUS),
        ("GET", f"{M}/metadata", b"", METADATA),
        ("GET", "/v1/models/sums/Metadata", b"", METADATA),
        ("POST", f"{M}:predict", {"instances": [[1, 2], [3, 4]]}, {"predictions": [3.0, 7.0]}),
        ("POST", f"{M}:predict", {"signature_name": "", "instances": [[1, 2]]}, {"predictions": [3.0]}),
        ("POST", f"{M}:predict", {"signature_name": "serving_default", "inputs": [[1, 2]]}, {"outputs": [3.0]}),
        ("POST", "/V1/Models/sums:Predict", {"instances": [[1, 2]]}, {"predictions": [3.0]}),
        ("POST", f"{M}:regress", {"examples": [{"x": [1, 2]}, {"x": [3.5, 4]}]}, {"results": [3.0, 7.5]}),
        ("POST", f"{M}:regress", {"context": {"x": [1, 2]}, "examples": [{}, {"x": [3, 4]}]}, {"results": [3.0, 7.0]}),
        ("POST", f"{M}:Regress", {"signature_name": "serving_default", "examples": [{"x": [1, 2]}]}, {"results": [3.0]}),
    ],
)
def test_a_route_answers(connection, method, path, body, answer):
    found = connection.ask(method, path, body)
    assert (found.status, found.json) == (200, answer)


def test_not_a_number_is_a_bare_word_both_ways(connection):
    found = connection.ask(
        "POST", f"{M}:regress", b'{"examples": [{"x": [NaN, 1]}, {"x": [Infinity, 1]}, {"x": [-Infinity, 1]}]}'
    )
    assert (found.status, found.body) == (200, b'{"results":[NaN,Infinity,-Infinity]}')


NONE = "(Servable not found for request: Latest(none))"
BAD = [
    ("46: an unknown model", "GET", "/v1/models/none", b"", 404, NONE),
    ("46: its metadata", "GET", "/v1/models/none/metadata", b"", 404, NONE),
    ("46: its values", "POST", "/v1/models/none:regress", {"examples": [{"x": 1}]}, 404, NONE),
    ("46: an unknown version", "GET", f"{M}/versions/7", b"", 404, "(Servable not found for request: Specific(sums, 7))"),
    ("46: its metadata", "GET", f"{M}/versions/7/metadata", b"", 404, "Specific(sums, 7)"),
    ("46: its values", "POST", f"{M}/versions/7:regress", {"examples": [{"x": 1}]}, 404, "Specific(sums, 7)"),
    ("46: an unknown label", "GET", f"{M}/labels/stable", b"", 400, "(Unrecognized servable version label: stable)"),
    ("46: its classes", "POST", f"{M}/labels/stable:classify", {"examples": [{}]}, 400, "servable version label: stable)"),
    ("46: an unknown signature", "POST", f"{M}:predict", {"signature_name": "s", "instances": [[1, 2]]}, 400, '(Serving signature name: "s" not found in signature def)'),
    ("46: the same of values", "POST", f"{M}:regress", {"signature_name": "s", "examples": [{"x": 1}]}, 400, '(Serving signature name: "s" not found in signature def)'),
    ("a signature that is no name", "POST", f"{M}:predict", {"signature_name": 7, "instances": [[1, 2]]}, 400, "unknown signature_name 7"),
    ("13: another input", "POST", f"{M}:predict", {"instances": [{"xx": [1, 2]}]}, 400, "(input size does not match signature)"),
    ("12: both forms", "POST", f"{M}:predict", {"instances": [[1, 2]], "inputs": [[1, 2]]}, 400, "got both"),
    ("11: no form", "POST", f"{M}:predict", {}, 400, "(Missing 'inputs' or 'instances' key)"),
    ("28: no rows", "POST", f"{M}:predict", {"instances": []}, 400, "instances is empty"),
    ("1: not JSON", "POST", f"{M}:classify", b"{", 400, "request body is not valid JSON"),
    ("2: empty", "POST", f"{M}:classify", b"", 400, "request body is empty"),
    ("3: a list", "POST", f"{M}:classify", [1], 400, "expected a JSON object, got a list"),
    ("11: no examples", "POST", f"{M}:regress", {}, 400, "expected 'examples', a list of objects by feature, got nothing"),
    ("11: an object of them", "POST", f"{M}:regress", {"examples": {}}, 400, "got a object"),
    ("28: none", "POST", f"{M}:regress", {"examples": []}, 400, "examples is empty"),
    ("an example that is none", "POST", f"{M}:regress", {"examples": [[1, 2]]}, 400, "examples[0] is a list, expected an object of features by name"),
    ("a context that is none", "POST", f"{M}:regress", {"context": 1, "examples": [{}]}, 400, "context is a number"),
    ("13: another feature", "POST", f"{M}:regress", {"examples": [{"xx": [1, 2]}]}, 400, "unknown input 'xx'"),
    ("14: no feature", "POST", f"{M}:regress", {"examples": [{}]}, 400, "missing input 'x'"),
    ("19: too few values", "POST", f"{M}:regress", {"examples": [{"x": [1, 2]}, {"x": 1}]}, 400, "feature 'x' has 1 values in example 1, the model expects 2"),
    ("34: a string", "POST", f"{M}:regress", {"examples": [{"x": ["1", 2]}]}, 400, "feature 'x' has a string at element 0, the model expects numbers (FP64)"),
    ("33: null", "POST", f"{M}:regress", {"examples": [{"x": [None, 2]}]}, 400, "holds a null, expected numbers, strings"),
    ("38: bad base64", "POST", f"{M}:regress", {"examples": [{"x": {"b64": "a"}}]}, 400, "feature 'x'"),
    ("a list in a list", "POST", f"{M}:regress", {"examples": [{"x": [[1, 2]]}]}, 400, "holds a list"),
    ("no classes", "POST", f"{M}:classify", {"examples": [{"x": [1, 2]}]}, 400, "the model gives no classes; its outputs are total FP64[-1]; use regress"),
    ("50: a wrong method", "GET", f"{M}:classify", b"", 405, "method GET is not allowed here"),
    ("50: the same of a version", "PUT", f"{M}/versions/1:regress", b"", 405, "method PUT is not allowed here"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "text"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_request_has_the_status_and_the_words_of_tensorflow_serving(connection, method, path, body, status, text):
    answer = connection.ask(method, path, body)
    assert (answer.status, text in answer.error) == (status, True), answer.error
    assert list(json.loads(error_body("x"))) == list(answer.json)


def test_a_compressed_body_and_a_request_id_are_taken_as_everywhere(connection):
    body = gzip.compress(json.dumps({"examples": [{"x": [1, 2]}]}).encode())
    answer = connection.ask("POST", f"{M}:regress", body, content_encoding="gzip", x_request_id="seven")
    assert (answer.status, answer.json, answer.headers["x-request-id"]) == (200, {"results": [3.0]}, "seven")
    assert connection.ask("POST", f"{M}:regress", body, content_encoding="br").status == 415


def test_a_body_over_the_limit_is_refused(serve, models, wire):
    with serve(f"{models}/sums.py:Sums", "--max_body_bytes", "1000") as server, wire(server.http) as connection:
        assert connection.ask("POST", f"{M}:regress", b" " * 1001).status == 413


def test_classes_have_the_labels_of_the_models_file(serve, wire):
    with serve(EXAMPLES / "reviews.skops") as server, wire(server.http) as connection:
        answer = connection.ask("POST", f"/v1/models/{server.name}:classify", {"examples": [{"text": "a wonderful film"}]})
        (row,) = answer.json["results"]
        assert [label for label, _ in row] == ["negative", "neutral", "positive"]
        assert sum(score for _, score in row) == pytest.approx(1)


def test_a_saved_model_that_reads_examples_gets_them_whole(serve, half_plus_two, wire):
    with serve(half_plus_two) as server, wire(server.http) as connection:
        path = f"/v1/models/{server.name}"
        body = {"signature_name": "regress_x", "examples": [{"x": 1.0}, {"x": 4.5}]}
        assert connection.ask("POST", f"{path}:regress", body).json == {"results": [2.5, 4.25]}
        body["signature_name"] = "classify_x"
        assert connection.ask("POST", f"{path}:classify", body).json == {
            "results": [[["up", 2.5], ["down", -2.5]], [["up", 4.25], ["down", -4.25]]]
        }
        # a feature of another type is what the model itself refuses
        body["examples"][0]["x"] = "one"
        assert connection.ask("POST", f"{path}:classify", body).status == 400
        serialized = tf.train.Example(features={"feature": {"x": {"float_list": {"value": [1.0]}}}}).SerializeToString()
        one = {"b64": base64.b64encode(serialized).decode()}
        body = {"signature_name": "regress_x", "instances": [one]}
        assert connection.ask("POST", f"{path}:predict", body).json == {"predictions": [[2.5]]}


def test_bytes_are_b64_by_the_outputs_name(serve, models, wire, tmp_path):
    (tmp_path / "model.py").write_text(
        "class Bytes:\n"
        "    inputs = [{'name': 'x', 'datatype': 'BYTES', 'shape': [-1]}]\n"
        "    outputs = [{'name': n, 'datatype': 'BYTES', 'shape': [-1]} for n in ('text', 'raw_bytes')]\n"
        "    batched = True\n"
        "    def predict(self, inputs):\n"
        "        return {'text': inputs['x'], 'raw_bytes': inputs['x']}\n"
    )
    with serve(f"{tmp_path}/model.py:Bytes", "--model_name", "m") as server, wire(server.http) as connection:
        sent = [{"b64": base64.b64encode(b"abc").decode()}, "def"]
        want = [{"text": "abc", "raw_bytes": {"b64": "YWJj"}}, {"text": "def", "raw_bytes": {"b64": "ZGVm"}}]
        assert connection.ask("POST", "/v1/models/m:predict", {"instances": sent}).json == {"predictions": want}
        assert connection.ask("POST", "/v1/models/m:predict", {"inputs": sent}).json["outputs"]["raw_bytes"][0] == {"b64": "YWJj"}


def test_a_model_that_could_not_be_loaded_has_ended_and_says_why():
    from server.protocols import tfs, tfs_rest

    parts = [tfs.Part("1", "FAILED", "no room"), tfs.Part("2", "LOADING", ""), tfs.Part("x", "READY", "")]
    told = tfs_rest.status("m", False, parts)
    assert [(p["version"], p["state"], p["status"]) for p in told["model_version_status"]] == [
        ("1", "END", {"error_code": "UNKNOWN", "error_message": "no room"}),
        ("2", "LOADING", {"error_code": "OK", "error_message": ""}),
        ("0", "AVAILABLE", {"error_code": "OK", "error_message": ""}),
    ]


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("/V1/MODELS/Iris/VERSIONS/3:PREDICT", "/v1/models/Iris/versions/3:predict"),
        ("/v1/Models/A/Labels/Stable/metaData", "/v1/models/A/labels/Stable/metadata"),
        ("/V1/models/M", "/v1/models/M"),
        ("/V1/models/M:other", "/v1/models/M:other"),
        ("/V1/models", "/V1/models"),
        ("/V2/models/M", "/V2/models/M"),
        ("/", "/"),
    ],
)
def test_only_the_words_of_the_path_are_read_whatever_their_case(path, want):
    assert canonical(path) == want
