"""ModelStreamInfer over both engines: requests of one stream, answered in their order, and nobody else held up."""

import asyncio
import contextlib
import queue

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.grpc_stream import UNDER_WAY, Streams
from server.pending import Pending
from server.settings import Settings

Code = grpc.StatusCode
LIMIT = 1 << 20
PATH = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(scope="module")
def gated(serve, models, lane, gate):
    with serve(f"{models}/gated.py:Gated", *lane, env=gate.environment) as server:
        yield server


@pytest.fixture(scope="module")
def small(serve, models, lane):
    with serve(f"{models}/sums.py:Sums", *lane, "--max_body_bytes", str(LIMIT), "--receive_timeout=1") as server:
        yield server


class Stream:
    """A stream of which a test sends and reads what it likes."""

    def __init__(self, address, **how) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self._sent: queue.Queue = queue.Queue()
        self.call = service_pb2_grpc.GRPCInferenceServiceStub(self.channel).ModelStreamInfer(
            iter(self._sent.get, None), timeout=60, **how
        )

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.call.cancel()
        self._sent.put(None)
        self.channel.close()

    def send(self, *messages) -> None:
        for message in messages:
            self._sent.put(message)

    def half_close(self) -> None:
        self._sent.put(None)

    def read(self):
        """(id, error, value) of the next answer."""
        answer = next(self.call)
        inside = answer.infer_response
        assert inside.parameters["triton_final_response"].bool_param is True
        values = [
            np.frombuffer(raw, "f8" if inside.outputs[0].datatype == "FP64" else "i8") for raw in inside.raw_output_contents
        ]
        return inside.id, answer.error_message, values[0].tolist() if values else None

    def end(self):
        """How the call ends, which has no more answers."""
        with pytest.raises((grpc.RpcError, StopIteration)) as raised:
            next(self.call)
        return raised.value


@pytest.fixture
def stream(gated):
    with Stream(gated.grpc) as stream:
        yield stream


def whole(value, request_id="", model="gated", **parameters):
    given = pb.ModelInferRequest.InferInputTensor(name="x", shape=[1, 1], datatype="INT64")
    given.contents.int64_contents.append(value)
    message = pb.ModelInferRequest(model_name=model, inputs=[given], id=request_id)
    for name, of_that in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(of_that)]
        setattr(message.parameters[name], kind, of_that)
    return message


def rows(count, request_id=""):
    given = pb.ModelInferRequest.InferInputTensor(name="x", shape=[count, 2], datatype="FP64")
    return pb.ModelInferRequest(
        model_name="sums", inputs=[given], id=request_id, raw_input_contents=[np.ones((count, 2)).tobytes()]
    )


def test_answers_come_in_the_requests_order_whichever_is_ready_first(stream, gate):
    stream.send(whole(1000, "slow"), whole(1, "wrong", model="none"), whole(2, "quick"))
    gate.entered().close()
    assert stream.read() == ("slow", "", [2000])
    request_id, error, value = stream.read()
    assert (request_id, value) == ("wrong", None)
    assert error == "unknown model 'none'; models here: gated"
    assert stream.read() == ("quick", "", [4])


def test_what_waits_of_one_stream_is_one_batch(stream, gate, gated, in_flight):
    stream.send(whole(1000))
    with gate.held():
        gate.seen.clear()
        stream.send(*(whole(10 + n) for n in range(20)))
        in_flight(gated, 21)
    assert [stream.read()[2] for _ in range(21)] == [[2000], *([2 * (10 + n)] for n in range(20))]
    assert gate.seen == [list(range(10, 30))]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (whole(1, triton_other=1), "'triton_other' is not known"),
        (whole(1, priority=-1), "'priority' is -1"),
        (whole(1, priority="first"), "'priority' is 'first'"),
        (pb.ModelInferRequest(model_name="gated"), "the request has no inputs"),
        (whole(1, timeout=1), "the deadline passed before the model answered"),
    ],
)
def test_a_mistake_is_told_in_its_own_answer_and_the_stream_goes_on(stream, gate, message, error):
    stream.send(whole(1000))
    with gate.held():
        stream.send(message, whole(2, "after"))
    assert stream.read()[2] == [2000]
    assert error in stream.read()[1]
    assert stream.read() == ("after", "", [4])


def test_parameters_of_sequences_and_of_last_answers_change_nothing(stream):
    stream.send(
        whole(1, sequence_id=7, sequence_start=True),
        whole(2, sequence_id="seven", sequence_end=True, triton_enable_empty_final_response=True),
    )
    stream.half_close()
    assert [stream.read()[2], stream.read()[2]] == [[2], [4]]
    assert isinstance(stream.end(), StopIteration)
    assert stream.call.code() is Code.OK


def test_a_half_closed_stream_is_answered_to_its_end(stream, gate):
    stream.send(whole(1000), whole(1))
    stream.half_close()
    with gate.held():
        pass
    assert [stream.read()[2], stream.read()[2]] == [[2000], [2]]
    assert isinstance(stream.end(), StopIteration)


def test_a_stream_of_nothing_ends_well(stream):
    stream.half_close()
    assert isinstance(stream.end(), StopIteration)
    assert stream.call.code() is Code.OK


def test_so_many_requests_of_a_stream_are_under_way_and_the_rest_waits(stream, gate, gated, in_flight, metrics):
    stream.send(whole(1000))
    with gate.held():
        stream.send(*(whole(n) for n in range(3 * UNDER_WAY)))
        # the one who reads ahead holds one more in its hand, which is not begun
        in_flight(gated, UNDER_WAY)
        with Stream(gated.grpc) as other:
            other.send(whole(5))
            in_flight(gated, UNDER_WAY + 1)
    assert [stream.read()[2] for _ in range(1 + 3 * UNDER_WAY)] == [[2000], *([2 * n] for n in range(3 * UNDER_WAY))]


def test_a_cancelled_stream_leaves_the_queue_and_nothing_of_it_is_computed(gated, gate, in_flight):
    with Stream(gated.grpc) as holder:
        holder.send(whole(1000))
        with gate.held():
            gate.seen.clear()
            with Stream(gated.grpc) as stream:
                stream.send(*(whole(10 + n) for n in range(20)))
                in_flight(gated, 21)
            in_flight(gated, 1)
        holder.read()
        holder.send(whole(99))
        holder.read()
    assert gate.rows() == [99]


def test_a_deadline_of_the_stream_ends_it_and_what_waits_is_not_computed(gated, gate, in_flight):
    with Stream(gated.grpc) as holder:
        holder.send(whole(1000))
        with gate.held():
            gate.seen.clear()
            with grpc.insecure_channel(gated.grpc) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                with pytest.raises(grpc.RpcError) as raised:
                    list(stub.ModelStreamInfer(iter([whole(11)]), timeout=0.3))
                assert raised.value.code() is Code.DEADLINE_EXCEEDED
            in_flight(gated, 1)
        holder.read()
    assert 11 not in gate.rows()


def test_a_stream_may_go_on_for_long(small):
    with Stream(small.grpc) as stream:
        for n in range(100):
            stream.send(*(rows(1, f"{n}-{m}") for m in range(50)))
            assert [stream.read() for _ in range(50)] == [(f"{n}-{m}", "", [2.0]) for m in range(50)]


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_messages_may_be_as_large_as_elsewhere_and_compressed(small, compression):
    with Stream(small.grpc, compression=compression) as stream:
        count = (LIMIT - 100) // 16
        stream.send(*(rows(count, str(n)) for n in range(6)), rows(1))
        for n in range(6):
            request_id, error, value = stream.read()
            assert (request_id, error, len(value)) == (str(n), "", count)
        assert stream.read()[2] == [2.0]


def test_a_message_that_is_too_large_ends_the_stream(small):
    with Stream(small.grpc) as stream:
        stream.send(rows(1), rows(LIMIT // 16))
        seen = []
        with pytest.raises(grpc.RpcError) as raised:
            seen.extend(iter(stream.read, None))
        assert raised.value.code() is Code.RESOURCE_EXHAUSTED
        assert str(LIMIT) in raised.value.details()


def test_a_stream_that_is_opened_and_forgotten_costs_nobody_anything(small, wire):
    streams = [Stream(small.grpc) for _ in range(50)]
    with Stream(small.grpc) as stream:
        stream.send(rows(1))
        assert stream.read()[2] == [2.0]
    for one in streams:
        one.__exit__()


def test_who_watches_health_is_told_and_does_not_keep_the_process(serve, models, lane):
    with (
        serve(f"{models}/sums.py:Sums", *lane, "--grace=20") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        server.process.terminate()
        assert [answer.status for answer in watched] in ([], [health_pb2.HealthCheckResponse.NOT_SERVING])
        assert watched.code() is Code.OK
        assert server.process.wait(15) == 0


def test_a_stream_is_told_of_the_end_once_what_was_under_way_is_answered(serve, models, lane, gate, in_flight):
    with (
        serve(f"{models}/gated.py:Gated", *lane, env=gate.environment) as server,
        Stream(server.grpc) as stream,
        Stream(server.grpc) as idle,
    ):
        idle.send(whole(1))
        assert idle.read()[2] == [2]
        stream.send(whole(1000), whole(3))
        with gate.held():
            in_flight(server, 2)
            server.process.terminate()
            error = idle.end()
            assert error.code() is Code.UNAVAILABLE
            assert "about to end" in error.details()
        assert [stream.read()[2], stream.read()[2]] == [[2000], [6]]
        assert stream.end().code() is Code.UNAVAILABLE
        assert server.process.wait(20) == 0


def test_an_answer_that_is_there_in_the_turn_in_which_its_caller_goes_is_nobodys():
    class OneAtATime:
        settings = Settings()

        async def grpc(self, sent, path, timeout, request_id):
            await self.done
            return b""

    async def main():
        loop, complaints = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda loop, context: complaints.append(context))
        inference = OneAtATime()
        inference.done = Pending(loop)
        asked = asyncio.Event()

        async def messages():
            yield b"one"
            asked.set()
            await asyncio.Event().wait()

        async def read():
            async with contextlib.aclosing(Streams(inference).converse(messages())) as answers:
                return await anext(answers)

        task = asyncio.ensure_future(read())
        await asked.wait()
        await asyncio.sleep(0)
        task.cancel()
        inference.done.set_result(None)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert complaints == []

    asyncio.run(main())
