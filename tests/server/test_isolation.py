"""What one client can do to another through the sockets of one server: nothing.  Gates, not clocks, say what is under way."""

import json
import struct
from contextlib import contextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

Code = grpc.StatusCode
# A row of this value waits in the model until the test lets it go.
HOLD = 1000


def body(value, name="x", datatype="INT64", **more):
    return {"inputs": [{"name": name, "shape": [1, 1], "datatype": datatype, "data": [value]}], **more}


def message(model, value, name="x", datatype="INT64", **more):
    given = pb.ModelInferRequest.InferInputTensor(name=name, shape=[1, 1], datatype=datatype)
    field = given.contents.int64_contents if datatype == "INT64" else given.contents.fp64_contents
    field.append(value)
    return pb.ModelInferRequest(model_name=model, inputs=[given], **more)


@pytest.fixture(scope="module", params=["Gated", "AsyncGated"])
def gated(request, serve, models, lane, gate):
    """A server whose model does one thing at a time, and in whose queue three rows may wait."""
    flags = "--max_queue=3", "--max_batch_size=8", *lane
    with serve(f"{models}/gated.py:{request.param}", *flags, env=gate.environment) as server:
        yield server


@pytest.fixture
def stub(gated):
    with grpc.insecure_channel(gated.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def wires(gated, wire):
    """Four connections."""
    connections = [wire(gated.http) for _ in range(4)]
    yield connections
    for connection in connections:
        connection.close()


PATH = "/v2/models/gated/infer"


@pytest.fixture
def busy(gated, gate, wire):
    """A context in which the model is at work for somebody, so that what comes must wait."""

    @contextmanager
    def busy():
        with wire(gated.http) as holder:
            holder.send("POST", PATH, body(HOLD))
            with gate.held():
                gate.seen.clear()
                yield
            assert doubled(holder.read()) == 2 * HOLD

    return busy


def doubled(answer) -> int:
    assert answer.status == 200, answer
    return answer.json["outputs"][0]["data"][0]


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [
        ({"x_request_timeout": "0.05"}, {}),
        ({"x_envoy_expected_rq_timeout_ms": "50"}, {}),
        ({}, {"timeout": 50_000}),
        ({"x_request_timeout": "0.05"}, {"timeout": 60_000_000}),
    ],
)
def test_a_deadline_that_passes_in_the_queue_is_504_and_the_work_is_not_done(wires, busy, gate, headers, parameters):
    late, other, *_ = wires
    with busy():
        late.send("POST", PATH, body(11, parameters=parameters), **headers)
        other.send("POST", PATH, body(12))
        answer = late.read()
        assert (answer.status, answer.error) == (504, "the deadline passed before the model answered")
    assert doubled(other.read()) == 24
    assert 11 not in gate.rows()


def test_a_deadline_that_passes_in_the_model_is_504_and_the_model_goes_on(wires, gate):
    late, other, *_ = wires
    late.send("POST", PATH, body(HOLD), x_request_timeout="0.1")
    with gate.held():
        assert late.read().status == 504
    assert doubled(other.ask("POST", PATH, body(12))) == 24
    assert doubled(late.ask("POST", PATH, body(13))) == 26


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e99", ""])
def test_a_deadline_that_is_none_is_400(wires, value):
    answer = wires[0].ask("POST", PATH, body(1), x_request_timeout=value)
    assert (answer.status, answer.error) == (400, f"header x-request-timeout is '{value}', expected a number greater than 0")


def test_a_full_queue_is_429_with_a_time_to_try_again_and_those_in_it_are_served(wires, busy, stub, gated, in_flight):
    with busy():
        for n, connection in enumerate(wires[:3]):
            connection.send("POST", PATH, body(11 + n))
        in_flight(gated, 4)
        answer = wires[3].ask("POST", PATH, body(14))
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "the queue is full" in answer.error
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(message("gated", 15))
        assert raised.value.code() is Code.RESOURCE_EXHAUSTED
        assert int(dict(raised.value.trailing_metadata())["retry-after"]) >= 1
    assert [doubled(c.read()) for c in wires[:3]] == [22, 24, 26]
    assert doubled(wires[3].ask("POST", PATH, body(14))) == 28


def test_who_leaves_the_queue_is_not_worked_for_and_makes_room(wires, busy, gated, gate, in_flight, until):
    first, leaver, last, newcomer = wires
    with busy():
        for n, connection in enumerate((first, leaver, last)):
            connection.send("POST", PATH, body(11 + n), x_request_id=f"queued-{n}")
        in_flight(gated, 4)
        leaver.close()
        in_flight(gated, 3)
        newcomer.send("POST", PATH, body(14))
        in_flight(gated, 4)
    assert [doubled(c.read()) for c in (first, last, newcomer)] == [22, 26, 28]
    assert sorted(gate.rows()) == [11, 13, 14]
    line = until(lambda: next((t for t in gated.stderr.splitlines() if '"queued-1"' in t), None), "the line of who has left")
    assert (json.loads(line)["code"], json.loads(line)["error"]) == (499, "RequestCancelled")


def test_who_leaves_while_the_model_works_for_it_disturbs_nobody(wires, gated, gate, in_flight):
    leaver, other, *_ = wires
    leaver.send("POST", PATH, body(HOLD))
    with gate.held():
        leaver.close()
        in_flight(gated, 0)
        other.send("POST", PATH, body(12))
        in_flight(gated, 1)
    assert doubled(other.read()) == 24


def test_over_grpc_a_deadline_and_a_cancellation_keep_work_from_being_done(stub, busy, gated, gate, in_flight):
    with busy():
        late = stub.ModelInfer.future(message("gated", 11), timeout=0.1)
        assert late.exception(timeout=30).code() is Code.DEADLINE_EXCEEDED
        in_flight(gated, 1)
        leaver, other = (stub.ModelInfer.future(message("gated", v)) for v in (12, 13))
        in_flight(gated, 3)
        leaver.cancel()
        in_flight(gated, 2)
    assert other.result(timeout=30).raw_output_contents[0] == (26).to_bytes(8, "little")
    assert gate.rows() == [13]


def test_a_busy_model_holds_up_neither_health_nor_metadata(wires, busy, stub):
    with busy():
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/gated", "/metrics", "/docs"):
            assert wires[0].ask("GET", path).status == 200
        assert wires[0].ask("POST", PATH, b"{").status == 400
        assert stub.ServerReady(pb.ServerReadyRequest()).ready


def test_a_slow_request_takes_one_slot_and_others_pass_it(serve, models, gate, wire):
    two_slots = serve(f"{models}/gated.py:Gated", "--concurrency=2", env=gate.environment)
    with two_slots as server, wire(server.http) as slow, wire(server.http) as quick:
        slow.send("POST", PATH, body(HOLD))
        with gate.held():
            for n in range(20):
                assert doubled(quick.ask("POST", PATH, body(n))) == 2 * n
        assert doubled(slow.read()) == 2 * HOLD


# what a bad request's value does to the model is in models/faults.py
BAD = [
    (body(-1, datatype="FP64"), 500, Code.INTERNAL, "the model failed: ValueError"),
    (body(-2, datatype="FP64"), 400, Code.INVALID_ARGUMENT, "x must not be -2"),
    (body(-3, datatype="FP64"), 503, Code.RESOURCE_EXHAUSTED, "ran out of memory"),
    (body(-5, datatype="FP64"), 500, Code.INTERNAL, "predict returned NoneType"),
    (body(-6, datatype="FP64"), 500, Code.INTERNAL, "an array of objects"),
    (body(-7, datatype="FP64"), 500, Code.INTERNAL, "the model failed: SystemExit"),
    (body(-9, datatype="FP64"), 500, Code.INTERNAL, "the model failed: CancelledError"),
    (body(5, name="y", datatype="FP64"), 400, Code.INVALID_ARGUMENT, "unknown input 'y'"),
    (body(5, datatype="BYTES"), 400, Code.INVALID_ARGUMENT, "input 'x'"),
]
ROW_EATER = (body(-4, datatype="FP64"), 500, Code.INTERNAL, "for")


def as_message(document):
    one = document["inputs"][0]
    return message("faults", one["data"][0], one["name"], one["datatype"])


@pytest.mark.parametrize("bad", [BAD, [*BAD, ROW_EATER]], ids=["rows kept", "rows lost"])
def test_among_200_at_once_each_gets_its_own_answer_and_the_bad_their_own_errors(serve, models, lane, wire, bad):
    with serve(f"{models}/faults.py:Faults", *lane) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        sent = []
        for n in range(200):
            case = bad[n // 7 % len(bad)] if n % 7 == 0 else (body(n, datatype="FP64"), 200, Code.OK, "")
            if n % 2:
                sent.append((n, case, stub.ModelInfer.future(as_message(case[0]))))
            else:
                sent.append((n, case, wire(server.http)))
                sent[-1][2].send("POST", "/v2/models/faults/infer", case[0])
        for n, (_, status, code, text), call in sent:
            if isinstance(call, grpc.Future):
                error = call.exception(timeout=60)
                assert (error.code() if error else Code.OK, n) == (code, n)
                assert (
                    text in error.details() if error else struct.unpack("<d", call.result().raw_output_contents[0]) == (2.0 * n,)
                )
            else:
                answer = call.read()
                call.close()
                assert (answer.status, n) == (status, n)
                assert text in answer.error if status != 200 else doubled(answer) == 2.0 * n
        assert "secret of the model" in server.stderr


@pytest.mark.parametrize("model", ["Faults", "AsyncFaults"])
def test_a_model_that_tries_to_end_the_process_ends_its_own_request_only(serve, models, wire, model):
    with serve(f"{models}/faults.py:{model}", "--concurrency=1") as server, wire(server.http) as connection:
        for value in (-7, -9, -7):
            answer = connection.ask("POST", "/v2/models/faults/infer", body(value, datatype="FP64"))
            assert (answer.status, answer.error.startswith("the model failed: ")) == (500, True)
            assert "secret" not in answer.error
        assert doubled(connection.ask("POST", "/v2/models/faults/infer", body(4, datatype="FP64"))) == 8.0
        assert server.process.poll() is None
