"""tritonclient, unmodified, in its four kinds: what it asks for is what a user of ours gets."""

import json
import queue

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.server.kinds import KINDS, OVER_HTTP, run, tensor

TENSORS = {
    "bool": np.array([True, False]),
    **{n: np.array([np.iinfo(n).min, 0, np.iinfo(n).max], n) for n in ("uint8", "uint16", "uint32", "uint64")},
    **{n: np.array([np.iinfo(n).min, -1, np.iinfo(n).max], n) for n in ("int8", "int16", "int32", "int64")},
    "fp16": np.array([0.1, -65504, np.inf, np.nan], "float16"),
    "fp32": np.array([0.1, np.finfo("float32").max, -np.inf, np.nan], "float32"),
    "fp64": np.array([0.1, 1e308, 5e-324, np.nan], "float64"),
    "bytes": np.array([b"plain", "naïve ☃".encode(), b"", b"a\nb\0c"], object),
}


@pytest.fixture(scope="module")
def echo(serve, models, lane):
    with serve(f"{models}/echo.py:Echo", *lane) as server:
        yield server


def pair(kind):
    return [tensor(kind, "x", np.array([[1.0, 2.0]]))]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def test_health_metadata_and_index_answer(kind, sums):
    async def use(client):
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready("sums") is True
        return (
            await client.get_server_metadata(),
            await client.get_model_metadata("sums"),
            await client.get_model_repository_index(),
        )

    server, model, index = run(kind, sums, use)
    if kind in OVER_HTTP:
        assert (server["name"], model["platform"], index[0]["state"]) == ("serveplane", "python_class", "READY")
    else:
        assert (server.name, model.platform, index.models[0].state) == ("serveplane", "python_class", "READY")
        assert [(i.name, i.datatype, list(i.shape)) for i in model.inputs] == [("x", "FP64", [-1, 2])]


def test_a_model_that_is_not_there_is_not_ready_or_unknown(kind, sums):
    async def use(client):
        return await client.is_model_ready("none")

    if kind in OVER_HTTP:
        assert run(kind, sums, use) is False
    else:
        with pytest.raises(InferenceServerException) as raised:
            run(kind, sums, use)
        assert raised.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_as_it_was_sent(kind, echo, name):
    async def use(client):
        return (await client.infer("echo", [tensor(kind, name, TENSORS[name])], request_id="7")).as_numpy(name)

    found = run(kind, echo, use)
    assert found.dtype == TENSORS[name].dtype
    np.testing.assert_array_equal(found, TENSORS[name])


@pytest.mark.parametrize("kind", OVER_HTTP, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(("sent", "wanted"), [(False, False), (True, False), (False, True)])
def test_a_tensor_comes_back_as_it_was_sent_in_json_too(kind, echo, name, sent, wanted):
    array = TENSORS[name]
    if name == "bytes" and not sent:
        array = np.array([b.decode() for b in array], object)
    if name == "fp16":  # tritonclient refuses to write it as JSON
        sent = True

    async def use(client):
        outputs = [kind.InferRequestedOutput(name, binary_data=wanted)]
        result = await client.infer("echo", [tensor(kind, name, array, binary_data=sent)], outputs=outputs)
        return result.as_numpy(name), result.get_output(name)

    found, described = run(kind, echo, use)
    assert ("data" in described, "binary_data_size" in described.get("parameters", {})) == (not wanted, wanted)
    if name == "bytes":
        as_bytes = [v.encode() if isinstance(v, str) else v for v in found.tolist()]
        assert as_bytes == TENSORS[name].tolist()
    else:
        np.testing.assert_array_equal(found, TENSORS[name])


def test_the_id_comes_back_and_several_tensors_keep_their_names(kind, echo):
    async def use(client):
        result = await client.infer("echo", [tensor(kind, n, a) for n, a in TENSORS.items()], request_id="seven")
        return result.get_response(), {n: result.as_numpy(n) for n in TENSORS}

    response, found = run(kind, echo, use)
    assert (response["id"] if kind in OVER_HTTP else response.id) == "seven"
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways_changes_nothing(kind, sums, algorithm):
    array = np.full((3000, 2), 0.25)
    both = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    how = both if kind in OVER_HTTP else {"compression_algorithm": algorithm}

    async def use(client):
        return (await client.infer("sums", [tensor(kind, "x", array)], **how)).as_numpy("total")

    assert run(kind, sums, use).tolist() == [0.5] * 3000


def test_six_megabytes_of_one_request_are_answered_row_by_row(kind, sums):
    array = np.random.default_rng(1).random((400_000, 2))

    async def use(client):
        return (await client.infer("sums", [tensor(kind, "x", array)])).as_numpy("total")

    np.testing.assert_array_equal(run(kind, sums, use), array.sum(axis=1))


ERRORS = [
    ("none", {}, 404, "NOT_FOUND", "unknown model 'none'"),
    ("sums", {"model_version": "3"}, 404, "NOT_FOUND", "has no version '3'"),
    ("sums", {"parameters": {"a": "b"}, "outputs": ["totl"]}, 400, "INVALID_ARGUMENT", "did you mean 'total'?"),
    ("sums", {"timeout": -1}, 400, "INVALID_ARGUMENT", "'timeout' is -1"),
    ("sums", {"priority": 1, "sequence_id": 5, "sequence_start": True}, 200, "OK", ""),
    ("sums", {"parameters": {"mine": 1, "and": "yours", "flag": True}}, 200, "OK", ""),
]


@pytest.mark.parametrize(("model", "arguments", "status", "code", "text"), ERRORS)
def test_an_error_reaches_the_client_with_status_and_text(kind, sums, model, arguments, status, code, text):
    outputs = [kind.InferRequestedOutput(n) for n in arguments.get("outputs", ())] or None

    async def use(client):
        return await client.infer(model, pair(kind), **{**arguments, "outputs": outputs})

    if status == 200:
        assert run(kind, sums, use).as_numpy("total").tolist() == [3.0]
        return
    with pytest.raises(InferenceServerException) as raised:
        run(kind, sums, use)
    assert text in raised.value.message()
    assert raised.value.status() == (str(status) if kind in OVER_HTTP else f"StatusCode.{code}")


@pytest.mark.parametrize("kind", [tritonclient.http, tritonclient.grpc], ids=lambda kind: kind.__name__)
def test_async_infer_of_the_blocking_clients_answers(kind, sums):
    if kind is tritonclient.http:

        async def use(client):
            pending = [await client.async_infer("sums", pair(kind)) for _ in range(5)]
            return [p.get_result().as_numpy("total").tolist() for p in pending]
    else:

        async def use(client):
            answers: queue.Queue = queue.Queue()
            for _ in range(5):
                await client.async_infer("sums", pair(kind), lambda result, error: answers.put((result, error)))
            got = [answers.get(timeout=30) for _ in range(5)]
            assert [error for _, error in got] == [None] * 5
            return [result.as_numpy("total").tolist() for result, _ in got]

    assert run(kind, sums, use) == [[3.0]] * 5


@pytest.mark.parametrize("binary", [True, False])
def test_a_body_made_by_the_client_may_be_sent_by_other_means(sums, wire, binary):
    client = tritonclient.http.InferenceServerClient
    outputs = [tritonclient.http.InferRequestedOutput("total", binary_data=binary)]
    given = [tensor(tritonclient.http, "x", np.array([[1.0, 2.0], [3.0, 4.0]]), binary_data=binary)]
    body, length = client.generate_request_body(given, outputs=outputs, request_id="1")
    headers = {"inference_header_content_length": str(length)} if length else {}
    with wire(sums.http) as connection:
        answer = connection.ask("POST", "/v2/models/sums/infer", body, **headers)
    got = answer.headers.get("inference-header-content-length")
    assert (got is not None, answer.headers["content-type"]) == (binary, f"application/{'octet-stream' if binary else 'json'}")
    result = client.parse_response_body(answer.body, header_length=int(got) if got else None)
    assert result.as_numpy("total").tolist() == [3.0, 7.0]


ROW = np.array([1.0, 2.0]).tobytes()


def binary(tail=ROW, length=None, size=16, **parameters):
    """(body, Inference-Header-Content-Length) of a request whose only input is binary."""
    one = {"name": "x", "shape": [1, 2], "datatype": "FP64", "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [one], "parameters": parameters}).encode()
    return text + tail, str(len(text) if length is None else length)


@pytest.mark.parametrize(
    ("body_and_length", "status", "error"),
    [
        (binary(), 200, ""),
        (binary(binary_data_output=True), 200, ""),
        (binary(binary_data_output=1), 400, "binary_data_output is 1, expected true or false"),
        (binary(ROW[:-1]), 400, "only 15 bytes of binary data are left"),
        (binary(ROW + b"!"), 400, "1 bytes of binary data are left over"),
        (binary(ROW, size=8), 400, "needs 16 bytes, got 8"),
        (binary(size=-1), 400, "expected a whole number of bytes"),
        (binary(size=16.0), 400, "expected a whole number of bytes"),
        (binary(size=True), 400, "expected a whole number of bytes"),
        (binary(length=10), 400, "not valid JSON"),
        (binary(length=100_000), 400, "inference-header-content-length is '100000'"),
        (binary(length=-1), 400, "inference-header-content-length is '-1'"),
        (binary(length="ten"), 400, "inference-header-content-length is 'ten'"),
        (binary(length="9" * 5000), 400, "inference-header-content-length is '9999"),
        (binary(length=0), 400, "needs 16 bytes, got"),
        ((binary()[0], None), 400, "is not UTF-8"),
    ],
)
def test_raw_bytes_behind_the_json_are_counted(sums, wire, body_and_length, status, error):
    body, length = body_and_length
    headers = {} if length is None else {"inference_header_content_length": length}
    with wire(sums.http) as connection:
        answer = connection.ask("POST", "/v2/models/sums/infer", body, **headers)
    assert answer.status == status
    if status == 200 and "inference-header-content-length" in answer.headers:
        assert answer.body[int(answer.headers["inference-header-content-length"]) :] == np.array([3.0]).tobytes()
    elif status == 200:
        assert answer.json["outputs"][0]["data"] == [3.0]
    else:
        assert error in answer.error


def test_the_server_and_the_client_live_in_one_process():
    """Both bring protobuf messages of the same names."""
    from server.grpc_api import GrpcEdge
    from server.protocols import _pb

    assert GrpcEdge
    ours, theirs = _pb.message("ModelInferRequest"), tritonclient.grpc.service_pb2.ModelInferRequest
    assert ours is not theirs
    assert ours.FromString(theirs(model_name="m", id="1").SerializeToString()).model_name == "m"
