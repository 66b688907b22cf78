"""Streams of requests in frames, as a client may send them that means harm or has trouble; over our own engine."""

import struct

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from server.grpc_stream import PATH, UNDER_WAY
from server.h2.frames import DATA, END_STREAM, PING, WINDOW_UPDATE, Code, frame, rst_stream, window_update
from server.h2.sending import STREAM_WINDOW
from tests.server.h2.peer import HEADERS_OF_A_CALL
from tests.server.test_grpc_fast import Wire
from tests.server.test_streams import whole

LIMIT = 1 << 20
CALL = [(name, PATH if name == ":path" else value) for name, value in HEADERS_OF_A_CALL]


@pytest.fixture(scope="module")
def gated(serve, models, gate):
    flags = ("--grpc_engine=fast", "--receive_timeout=0.4", "--max_body_bytes", str(LIMIT))
    with serve(f"{models}/gated.py:Gated", *flags, env=gate.environment) as server:
        yield server


@pytest.fixture
def client(gated):
    with Wire(gated, initial_window_size=(1 << 31) - 1) as client:
        client.send(window_update(0, 1 << 30))
        yield client


def message(request) -> bytes:
    sent = request.SerializeToString()
    return struct.pack(">BI", 0, len(sent)) + sent


def data(stream, payload, end=False) -> bytes:
    parts = [payload[at : at + 16384] for at in range(0, len(payload), 16384)] or [b""]
    return b"".join(frame(DATA, END_STREAM if end and at == len(parts) - 1 else 0, stream, p) for at, p in enumerate(parts))


def answers(body: bytes) -> list:
    found = []
    while body:
        length = struct.unpack_from(">BI", body)[1]
        found.append(pb.ModelStreamInferResponse.FromString(body[5 : 5 + length]))
        body = body[5 + length :]
    return found


def values(answer) -> list[int]:
    return [int(np.frombuffer(one.infer_response.raw_output_contents[0], "i8")[0]) for one in answers(answer.body)]


@pytest.mark.parametrize("size", [1, 3, 7, 10_000])
def test_messages_may_come_in_pieces_of_any_size(client, size):
    whole_stream = b"".join(message(whole(n)) for n in range(5))
    client.send(client.headers(1, CALL))
    for at in range(0, len(whole_stream), size):
        client.send(frame(DATA, 0, 1, whole_stream[at : at + size]))
    client.send(frame(DATA, END_STREAM, 1))
    answer = client.answer(1)
    assert (values(answer), answer.trailers["grpc-status"]) == ([0, 2, 4, 6, 8], "0")


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (message(whole(1))[:-1], "3", "bytes into a message"),
        (b"\0\0", "3", "the stream has ended 2 bytes into a message"),
        (b"\1" + message(whole(1))[1:], "3", "no grpc-encoding says how"),
        (b"\7" + message(whole(1))[1:], "3", "no grpc-encoding says how"),
        (struct.pack(">BI", 0, LIMIT + 1), "8", f"({LIMIT + 1} vs. {LIMIT})"),
        (struct.pack(">BI", 0, (1 << 32) - 1), "8", "larger than max"),
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_what_is_no_message_ends_the_stream_with_a_text(client, sent, status, text, before):
    client.send(client.headers(1, CALL), *(data(1, message(whole(n))) for n in range(before)))
    while before and len(answers(getattr(client.answers.get(1), "body", b""))) < before:
        assert client.read()
    client.send(data(1, sent, end=True))
    answer = client.answer(1)
    # where nothing was answered before, headers and trailers are one block
    end = answer.trailers or answer.headers
    assert (end["grpc-status"], values(answer)) == (status, [2 * n for n in range(before)])
    assert text in end["grpc-message"]


def test_half_a_message_has_as_long_as_any_and_an_idle_stream_all_the_time(client):
    client.send(
        client.headers(1, CALL), client.headers(3, CALL), data(1, message(whole(1)) + b"\0\0\0"), data(3, message(whole(2)))
    )
    answer = client.answer(1)
    assert (values(answer), answer.trailers["grpc-status"]) == ([2], "4")
    assert "did not arrive within 0.4 s" in answer.trailers["grpc-message"]
    assert 3 not in client.ended
    client.send(data(3, message(whole(3)), end=True))
    assert values(client.answer(3)) == [4, 6]


def test_who_sends_faster_than_the_model_answers_is_held_back_by_the_windows(client, gate, gated, in_flight):
    one = message(whole(5, request_id="i" * 1000))
    client.send(client.headers(1, CALL), data(1, message(whole(1000))))
    room = STREAM_WINDOW - len(message(whole(1000)))
    sent = 0
    with gate.held():
        while room >= len(one):
            client.send(data(1, one))
            room, sent = room - len(one), sent + 1
        in_flight(gated, UNDER_WAY)
        # what was taken has made room again, and no more than that
        client.send(frame(PING, 0, 0, b"so far.."))
        while not client.of_kind(PING):
            assert client.read()
        granted = sum(int.from_bytes(f.payload, "big") for f in client.of_kind(WINDOW_UPDATE) if f.stream == 1)
        assert granted <= (UNDER_WAY + 1) * len(one)
    client.send(frame(DATA, END_STREAM, 1))
    assert values(client.answer(1)) == [2000] + [10] * sent


def test_a_message_larger_than_a_window_is_let_in_each_time_and_the_room_goes_back(client):
    large = pb.ModelInferRequest()
    large.CopyFrom(whole(7, request_id="i" * (3 * STREAM_WINDOW)))
    whole_stream = message(large)
    client.send(client.headers(1, CALL))
    room = STREAM_WINDOW
    seen = 0
    for n in range(8):
        at = 0
        while at < len(whole_stream):
            grants = [int.from_bytes(f.payload, "big") for f in client.of_kind(WINDOW_UPDATE) if f.stream == 1]
            room += sum(grants[seen:])
            seen = len(grants)
            size = min(room, 16384, len(whole_stream) - at)
            if not size:
                assert client.read()
                continue
            client.send(frame(DATA, 0, 1, whole_stream[at : at + size]))
            at, room = at + size, room - size
        while len(answers_so_far(client)) <= n:
            assert client.read()
    client.send(frame(DATA, END_STREAM, 1))
    assert values(client.answer(1)) == [14] * 8
    assert room <= 2 * STREAM_WINDOW


def answers_so_far(client) -> list:
    """Those that have come whole."""
    body, found = getattr(client.answers.get(1), "body", b""), []
    while len(body) >= 5 and len(body) >= 5 + struct.unpack_from(">BI", body)[1]:
        stop = 5 + struct.unpack_from(">BI", body)[1]
        found.append(body[5:stop])
        body = body[stop:]
    return found


def test_a_stream_that_is_reset_leaves_nothing_under_way(client, gate, gated, in_flight):
    client.send(client.headers(1, CALL), data(1, message(whole(1000))))
    with gate.held():
        client.send(client.headers(3, CALL), *(data(3, message(whole(10 + n))) for n in range(20)))
        in_flight(gated, 21)
        client.send(rst_stream(3, Code.CANCEL))
        in_flight(gated, 1)
    client.send(frame(DATA, END_STREAM, 1))
    assert values(client.answer(1)) == [2000]
