"""Load tests, tested: requests that every model accepts, shapes and verdicts by tables, and whole runs with their exit codes."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

from loadtests import payloads, report
from loadtests.compare import Cell, table
from loadtests.openloop import Answer, Lost
from loadtests.shapes import Load, users_at
from loadtests.verdict import Figures, Limits, percentile, shortcomings
from tests.conftest import EXAMPLES, ROOT, running

FIGURES = Figures(requests=1000, failures=5, rate=200.0, p50=1.0, p95=5.0, p99=9.0, longest=20.0)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(failures=0.01), []),
        (Limits(), ["5 of 1000 requests failed (0.50%)"]),
        (Limits(0.01, p99=9.0, rate=200.0), []),
        (Limits(0.01, p99=8.9), ["9.0 ms, wanted: 8.9 ms"]),
        (Limits(0.01, rate=201.0), ["200.0 requests a second, wanted: 201"]),
        (Limits(0.0, 1.0, 999.0), ["failed", "9.0 ms", "wanted: 999"]),
    ],
)
def test_each_limit_that_is_not_kept_has_its_line(limits, words):
    found = list(shortcomings(FIGURES, limits))
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_a_run_without_an_answer_is_never_good():
    assert list(shortcomings(Figures(0, 0, 0, 0, 0, 0, 0), Limits(failures=1.0)))


@pytest.mark.parametrize(
    ("load", "users"),
    [
        (Load("constant", 40, 100), {0: 40, 99.9: 40, 100: None}),
        (Load("steps", 40, 100), {0: 10, 24.9: 10, 25: 20, 50: 30, 75: 40, 99: 40, 101: None}),
        (Load("spike", 40, 100), {0: 4, 39: 4, 40: 40, 59: 40, 60: 4, 100: None}),
        (Load("soak", 40, 100), {0: 1, 2.5: 20, 5: 40, 99: 40, 100: None}),
        (Load("spike", 1, 10), {0: 1, 5: 1}),
        (Load("constant", 3, float("inf")), {0: 3, 1e9: 3}),
    ],
)
def test_the_number_of_users_follows_the_shape(load, users):
    assert {second: users_at(load, second) for second in users} == users


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_a_percentile_is_one_of_the_values(share, value):
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == value


def test_an_input_of_an_unknown_datatype_is_told_with_what_to_do():
    with pytest.raises(payloads.Unusable, match="'x' has the datatype 'FP8'; give a request of your own"):
        payloads.read_signature({"name": "m", "inputs": [{"name": "x", "datatype": "FP8", "shape": [-1]}]})


def test_the_same_seed_makes_the_same_requests_and_open_axes_have_a_length():
    metadata = {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1, 3]}]}
    signature = payloads.read_signature(metadata)
    first, second = (payloads.pool(signature, 4, 2, seed=1) for _ in range(2))
    assert [one["x"].shape for one in first] == [(2, 1, 3)] * 4
    assert all(np.array_equal(one["x"], other["x"]) for one, other in zip(first, second, strict=True))
    assert not np.array_equal(first[0]["x"], first[1]["x"])


@pytest.mark.parametrize("model", ["iris.skops", "houses.skops", "reviews.skops", "mlp.onnx", "strings.onnx", "zipmap.onnx"])
def test_every_model_takes_what_is_made_for_it_over_every_protocol(model):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    from tritonclient.grpc import InferenceServerClient, service_pb2

    with running(EXAMPLES / model) as server:
        page = httpx.get(f"{server.http}/openapi.json").json()
        example = page["paths"][f"/v2/models/{server.name}/infer"]["post"]["requestBody"]["content"]["application/json"][
            "example"
        ]
        signature = payloads.read_signature(httpx.get(f"{server.http}/v2/models/{server.name}").json(), example)
        for arrays in payloads.pool(signature, 3, 2, seed=5):
            for protocol, make in payloads.BODIES.items():
                body, headers = make(signature, arrays)
                answer = httpx.post(server.http + payloads.path(protocol, server.name), content=body, headers=headers)
                assert answer.status_code == 200, (protocol, answer.text)
            request = service_pb2.ModelInferRequest(model_name=server.name)
            for one in signature.inputs:
                request.inputs.add(name=one.name, datatype=one.datatype, shape=arrays[one.name].shape)
                request.raw_input_contents.append(payloads.raw(arrays[one.name]))
            assert InferenceServerClient(server.grpc)._client_stub.ModelInfer(request).outputs
            with grpc.insecure_channel(server.grpc) as channel:
                predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
                sent = predict_pb2.PredictRequest.FromString(payloads.tfs_message(signature, arrays))
                assert {name: tf.make_ndarray(value).dtype for name, value in sent.inputs.items()} == {
                    name: array.dtype for name, array in arrays.items()
                }
                assert predict(sent).outputs


def test_a_page_holds_the_figures_the_verdict_and_drawings_that_are_whole():
    answers = [Answer(at / 10, 0.001 * (at % 7 + 1), 200, {}, b"") for at in range(200)]
    found = report.figures(answers, [Lost(1.0, 0.1, "500")], seconds=20.0)
    assert (found.requests, found.failures, found.rate, found.longest) == (201, 1, 10.0, 7.0)
    drawn = report.chart(
        "A <title>", {"50 %": report.by_second(answers, 0.5), "99 %": report.by_second(answers, 0.99)}, "s", "ms"
    )
    assert len(ElementTree.fromstring(drawn).findall("{*}polyline")) == 2
    page = report.page("m", found, ["too slow & late"], [drawn])
    assert "It falls short: too slow &amp; late" in page
    assert "All limits were kept" in report.page("m", found, [], [])


@pytest.fixture(scope="module")
def iris():
    with running(EXAMPLES / "iris.skops") as server:
        yield server


def run(*command):
    return subprocess.run([sys.executable, "-P", "-m", *map(str, command)], cwd="/", capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("limits", "code"), [([], 0), (["--p99", 0.0001], 1), (["--min-rate", 1e6], 1)])
def test_a_run_at_a_rate_ends_with_its_verdict_and_a_page(iris, tmp_path, limits, code):
    page = tmp_path / "page.html"
    done = run("loadtests.rate", iris.http, iris.name, "--rate", 100, "--seconds", 1, "--html", page, *limits)
    assert done.returncode == code, done.stderr
    assert "0 failed" in done.stdout
    assert ("falls short" in done.stderr) == bool(code)
    assert "<svg" in page.read_text()


@pytest.mark.parametrize(("limits", "code"), [([], 0), (["--p99", 0.0001], 1)])
def test_users_of_every_protocol_run_and_end_with_their_verdict(iris, tmp_path, limits, code):
    page = tmp_path / "page.html"
    file = Path(ROOT) / "loadtests" / "locustfile.py"
    done = run(
        "locust", "-f", file, "--headless", "-u", 6, "-t", "2s", "--only-summary", "--host", iris.http, "--model", iris.name,
        "--grpc-host", iris.grpc, "--html", page, *limits,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    for protocol in ("grpc", "tfs", "tfs-grpc", "v1", "v2", "v2-binary"):
        assert f" {protocol} " in done.stdout + done.stderr
    assert page.exists()


def test_only_a_service_of_tensorflow_serving_is_asked_as_one(iris):
    assert payloads.speaks_tfs(iris.http, iris.name, {})
    assert not payloads.speaks_tfs(f"{iris.http}/elsewhere", iris.name, {})
    assert not payloads.speaks_tfs("http://127.0.0.1:1", iris.name, {})


def test_a_comparison_is_a_line_for_each_server_and_rate_and_a_picture(iris, tmp_path):
    markdown, svg = tmp_path / "table.md", tmp_path / "picture.svg"
    done = run(
        "loadtests.compare", f"ours={iris.http}", f"the same={iris.http}", "--model", iris.name, "--rate", 50, "--rate", 100,
        "--seconds", 0.5, "--rounds", 2, "--pid", f"ours={iris.process.pid}", "--markdown", markdown, "--svg", svg,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.read_text().splitlines()[2:]]
    assert [line[:2] for line in lines] == [["ours", "50"], ["the same", "50"], ["ours", "100"], ["the same", "100"]]
    assert all(float(line[2]) > 0 and line[3] == "0" for line in lines)
    assert [bool(line[8]) for line in lines] == [True, False, True, False]
    assert len(ElementTree.fromstring(svg.read_text()).findall(".//{*}polyline")) == 4
    assert done.stderr.count("round 2 of 2") == 4


def test_cpu_is_told_as_a_share_of_the_first_servers():
    answers = [Answer(0.0, 0.001, 200, {}, b"")] * 100
    cells = [Cell("ours", 100.0, answers, [], 1.0, 0.01), Cell("theirs", 100.0, answers, [], 1.0, 0.1)]
    assert [line.split("|")[-3:-1] for line in table(cells).splitlines()[2:]] == [[" 0.100 ", " 1.00 "], [" 1.000 ", " 10.00 "]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["nonsense"], "is not NAME=VALUE"),
        (["a=http://h", "--pid", "a=0"], "is no process"),
        (["a=http://127.0.0.1:1"], "does not say"),
    ],
)
def test_a_comparison_of_nothing_is_told_in_a_line(given, words):
    done = run("loadtests.compare", *given, "--model", "m")
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_that_is_not_there_is_told_in_a_line():
    done = run("loadtests.rate", "http://127.0.0.1:1", "m", "--seconds", 1)
    assert done.returncode == 1
    assert "http://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_asked_of_a_model_is_json():
    signature = payloads.read_signature({"name": "m", "inputs": [{"name": "a", "datatype": "INT32", "shape": [-1]}]})
    body, _ = payloads.v1_json(signature, payloads.rows(signature, 2, 1))
    assert len(json.loads(body)["instances"]) == 2
