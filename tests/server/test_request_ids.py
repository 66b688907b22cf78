"""A request is called by one name everywhere: in its answer, in the logs, and over gRPC in both directions."""

import json

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

PATH = "/v2/models/faults/infer"
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def rows(*values):
    return {"inputs": [{"name": "x", "shape": [len(values), 1], "datatype": "FP64", "data": list(values)}]}


def message(value, **more):
    given = pb.ModelInferRequest.InferInputTensor(name="x", shape=[1, 1], datatype="FP64", contents={"fp64_contents": [value]})
    return pb.ModelInferRequest(model_name="faults", inputs=[given], **more)


@pytest.fixture(scope="module")
def server(serve, models, lane):
    with serve(f"{models}/faults.py:Faults", "--log_format", "json", *lane) as started:
        yield started


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def lines(server, until, wanted: str, event: str = "request") -> list[dict]:
    """The log's lines of that event about that request, once there is one."""

    def found():
        complete = server.stderr.rpartition("\n")[0].splitlines()
        return [one for one in map(json.loads, complete) if one["event"] == event and one["request_id"] == wanted]

    return until(found, f"a line about {wanted!r}")


@pytest.mark.parametrize(
    ("given", "called"),
    [
        ("plain-1", "plain-1"),
        (PRINTABLE, PRINTABLE),
        ("i" * 256, "i" * 256),
        ("j" * 257, "j" * 256),
        ("k" * 5000, "k" * 256),
        ("sp ace", "sp ace"),
        ("t\tab\xe4", "t?ab?"),
    ],
)
@pytest.mark.parametrize("body", [rows(1), rows(-1), b"{"], ids=["answered", "failed", "refused"])
def test_over_http_an_id_comes_back_and_is_in_the_log(server, wire, until, given, called, body):
    with wire(server.http) as connection:
        # the second time its head is known, the third time it is kept
        for _ in range(3):
            answer = connection.ask("POST", PATH, body, x_request_id=given)
            assert answer.headers["x-request-id"] == called
    assert lines(server, until, called)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/health/ready", 200),
        ("HEAD", "/v2", 200),
        ("GET", "/metrics", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/v2/models/nobody", 404),
        ("DELETE", PATH, 405),
        ("POST", "/v2/repository/index", 200),
        ("POST", "/v2/models/nobody/infer", 404),
    ],
)
def test_every_answer_over_http_says_which_request_it_is_of(server, wire, method, path, status):
    with wire(server.http) as connection:
        named = connection.ask(method, path, x_request_id="mine")
        made = [connection.ask(method, path).headers["x-request-id"] for _ in range(3)]
    assert (named.status, named.headers["x-request-id"]) == (status, "mine")
    assert len(set(made)) == 3
    assert all(made)


def test_requests_without_an_id_get_one_each_and_it_is_the_logs(server, wire, until):
    with wire(server.http) as connection:
        made = [connection.ask("POST", PATH, rows(1)).headers["x-request-id"] for _ in range(5)]
    assert len(set(made)) == 5
    for one in made:
        assert len(lines(server, until, one)) == 1


@pytest.mark.parametrize(
    ("given", "called"),
    [("plain-2", "plain-2"), (PRINTABLE, PRINTABLE), ("m" * 256, "m" * 256), ("n" * 257, "n" * 256), ("sp ace 2", "sp ace 2")],
)
def test_over_grpc_an_id_comes_back_among_the_trailing_metadata(server, stub, until, given, called):
    for _ in range(3):
        _, call = stub.ModelInfer.with_call(message(1), metadata=(("x-request-id", given),))
        assert ("x-request-id", called) in call.trailing_metadata()
    assert lines(server, until, called)
    for ask, sent in (
        (stub.ModelInfer, message(-1)),
        (stub.ModelInfer, message(1, model_version="9")),
        (stub.ModelMetadata, None),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            ask(sent or pb.ModelMetadataRequest(name="nobody"), metadata=(("x-request-id", given),))
        assert ("x-request-id", called) in refused.value.trailing_metadata()


def test_over_grpc_other_calls_say_whose_they_are_too(stub):
    for ask, sent in ((stub.ServerLive, pb.ServerLiveRequest()), (stub.ModelMetadata, pb.ModelMetadataRequest(name="faults"))):
        _, call = ask.with_call(sent, metadata=(("x-request-id", "mine"),))
        assert ("x-request-id", "mine") in call.trailing_metadata()
        _, call = ask.with_call(sent)
        assert "x-request-id" not in dict(call.trailing_metadata())


def test_a_message_has_a_name_as_well_and_a_failure_without_any_gets_one(server, stub, until):
    stub.ModelInfer(message(1, id="of the message"))
    assert lines(server, until, "of the message")
    for value, event in ((-1, "the model failed"), (-2, "request")):
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(message(value))
        made = dict(refused.value.trailing_metadata())["x-request-id"]
        assert lines(server, until, made)
        assert lines(server, until, made, event)


def test_the_traceback_of_a_failed_batch_names_each_request_that_was_to_blame(server, wire, until):
    """Several wait together and run as one batch: only the bad ones are told of, by their names."""
    names = [f"together-{n}" for n in range(12)]
    connections = [wire(server.http) for _ in names]
    try:
        for n, connection in enumerate(connections):
            connection.send("POST", PATH, rows(-1 if n % 4 == 0 else n), x_request_id=names[n])
        statuses = [connection.read().status for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert statuses == [500 if n % 4 == 0 else 200 for n in range(12)]
    for n in (0, 4, 8):
        (failure,) = lines(server, until, names[n], "the model failed")
        assert "ValueError: secret of the model" in failure["exception"]
    blamed = {one["request_id"] for one in map(json.loads, server.stderr.splitlines()) if one["event"] == "the model failed"}
    assert not blamed & {names[n] for n in range(12) if n % 4}
