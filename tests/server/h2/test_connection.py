"""One connection between a server that echoes and a client of which tests write every byte.  No sockets, no clock."""

import asyncio
import functools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.h2 import connection as h2
from server.h2 import frames, hpack, patience
from server.h2.connection import Connection, Limits
from server.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Code,
    frame,
)
from server.h2.sending import Outbox
from tests.server.h2.peer import Client, parsed

BEGIN, END = hpack.encode([(b":status", b"200")]), hpack.encode([(b"end", b"yes")])


class Echo(Connection):
    """Answers a request with its body, or keeps it waiting where its path is /wait."""

    def __init__(self, outbox, streams=8):
        super().__init__(Limits(streams, 30.0), outbox)
        self.bodies, self.waiting, self.left = {}, {}, []

    def head_of(self, request, too_large):
        return request.path, too_large

    def opened(self, stream):
        self.bodies[stream.id] = b""
        if stream.ended:
            self.received(stream, b"")

    def received(self, stream, data):
        self.bodies[stream.id] += data
        if not stream.ended:
            self.grant(stream, len(data)) if data else None
        elif stream.head[0] == b"/wait":
            self.waiting[stream.id] = stream
        else:
            self.answer(stream, BEGIN, self.bodies[stream.id], END)

    def gone(self, stream):
        self.left.append(stream.id)

    def late(self, stream):
        self.reset(stream, Code.CANCEL)


class Transport:
    """The wire: what the server has written, and whether it still listens."""

    def __init__(self):
        self.written, self.reads, self.open = b"", True, True

    def write(self, data):
        assert self.open
        self.written += data

    def close(self):
        self.open = False

    abort = close

    def pause_reading(self):
        self.reads = False

    def resume_reading(self):
        self.reads = True


class Pair:
    """A client and its server."""

    def __init__(self, **options):
        self.client, self.wire, self.server = Client(), Transport(), Echo(Outbox(), **options)
        self.server.connection_made(self.wire)

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.server.data_received(part)
        self.server.flush()
        found, self.wire.written = parsed(self.wire.written)
        assert not self.wire.written
        self.client.take(found)

    def goaway(self):
        """The code with which the connection has ended, None where it goes on."""
        assert self.wire.open == (not self.client.of_kind(GOAWAY))
        return None if self.wire.open else self.client.of_kind(GOAWAY)[-1].code


def alone(test):
    """Run a test in an event loop in which nothing else happens."""

    async def inside(*args, **kwargs):
        test(*args, **kwargs)

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(inside(*args, **kwargs))

    return run


def connected(**options) -> Pair:
    pair = Pair(**options)
    pair.send(pair.client.hello())
    return pair


def wait(client, stream):
    return client.headers(stream, _path("/wait"), end=True)


def _path(path):
    return [(":method", "POST"), (":scheme", "http"), (":path", path)]


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.lists(st.integers(1, 60), max_size=60))
@alone
def test_bytes_may_come_in_any_pieces(bodies, cuts):
    pair = Pair()
    data = pair.client.hello() + b"".join(pair.client.request(2 * n + 1, body) for n, body in enumerate(bodies))
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    pair.send(*pieces, data[at:])
    assert [pair.client.answers[2 * n + 1].body for n in range(len(bodies))] == bodies
    assert pair.goaway() is None


@given(
    body=st.integers(0, 200_000),
    first=st.integers(0, 70_000),
    more=st.lists(st.tuples(st.booleans(), st.integers(1, 40_000)), max_size=12),
    largest=st.sampled_from([16384, 20_000, 1 << 20]),
)
@alone
def test_an_answer_never_passes_the_windows_and_uses_all_of_them(body, first, more, largest):
    pair = Pair()
    content = bytes(range(256)) * (body // 256 + 1)
    content = content[:body]
    pair.send(pair.client.hello(initial_window_size=first, max_frame_size=largest), pair.client.headers(1))
    for at in range(0, body, 16384):
        pair.send(frame(DATA, 0, 1, content[at : at + 16384]))
    pair.send(frame(DATA, END_STREAM, 1))
    stream, whole = first, 65535
    for of_stream, size in more:
        sent = len(pair.client.answers[1].body)
        assert sent == min(body, stream, whole)
        pair.send(frames.window_update(1 if of_stream else 0, size) if sent < body or not of_stream else b"")
        stream, whole = (stream + size, whole) if of_stream else (stream, whole + size)
    sent = pair.client.answers[1].body
    assert sent == content[: min(body, stream, whole)]
    assert max(len(f.payload) for f in pair.client.of_kind(DATA)) <= largest if sent else True
    assert (1 in pair.client.ended) == (len(sent) == body)


@alone
def test_windows_are_shared_out_in_turn():
    pair = Pair()
    pair.send(pair.client.hello(initial_window_size=100_000))
    for stream in (1, 3, 5):
        parts = [frame(DATA, 0, stream, b"x" * 16384)] * 3 + [frame(DATA, END_STREAM, stream, b"y")]
        pair.send(pair.client.headers(stream), *parts)
    pair.send(frames.window_update(0, 1 << 20))
    assert [len(pair.client.answers[n].body) for n in (1, 3, 5)] == [3 * 16384 + 1] * 3
    order = [f.stream for f in pair.client.of_kind(DATA)]
    assert order[-6:] != sorted(order[-6:])


@alone
def test_a_smaller_window_takes_back_what_was_given():
    pair = Pair()
    pair.send(pair.client.hello(initial_window_size=10), pair.client.request(1, b"x" * 30))
    assert len(pair.client.answers[1].body) == 10
    pair.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 4}), frames.window_update(1, 8))
    assert len(pair.client.answers[1].body) == 12
    pair.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
    assert len(pair.client.answers[1].body) == 30


FLOODS = {
    "PING": lambda n: frame(PING, 0, 0, b"12345678"),
    "SETTINGS": lambda n: frame(SETTINGS, 0, 0),
    "SETTINGS acknowledged": lambda n: frame(SETTINGS, ACK, 0),
    "PRIORITY": lambda n: frame(PRIORITY, 0, 3, bytes(5)),
    "an unknown kind": lambda n: frame(99, 0, 0),
    "WINDOW_UPDATE": lambda n: frames.window_update(0, 1),
    "empty DATA": lambda n: frame(DATA, 0, 1),
    "rapid reset": lambda n: (1 + 2 * n, True),
    "resets that we are made to do": lambda n: (1 + 2 * n, False),
}


@pytest.mark.parametrize("flood", FLOODS)
@alone
def test_who_only_makes_work_is_told_to_calm_down(flood):
    pair = connected()
    if flood == "empty DATA":
        pair.send(pair.client.headers(1))
    for n in range(5 * patience.LENT):
        part = FLOODS[flood](n)
        if isinstance(part, tuple):
            stream, by_itself = part
            last = frames.rst_stream(stream, Code.CANCEL) if by_itself else frames.window_update(stream, 0)
            part = wait(pair.client, stream) + last
        pair.send(part)
        if not pair.wire.open:
            break
    assert pair.goaway() is Code.ENHANCE_YOUR_CALM
    assert n <= patience.LENT


@pytest.mark.parametrize(
    "parts",
    [
        [frame(CONTINUATION, 0, 1)] * (patience.LENT + 10),
        [frame(CONTINUATION, 0, 1, b"\0\x01a\x7f\x80\x7f" + b"x" * 16000)] * 6,
    ],
)
@alone
def test_header_blocks_do_not_grow_for_ever(parts):
    pair = connected()
    pair.send(frame(HEADERS, END_STREAM, 1))
    for part in parts:
        pair.send(part)
        if not pair.wire.open:
            break
    assert pair.goaway() is Code.ENHANCE_YOUR_CALM


@alone
def test_answers_earn_patience():
    """A client that asks a lot also measures a lot: one PING for each answer is what some do."""
    pair = connected()
    for n in range(3 * patience.LENT):
        pair.send(pair.client.request(1 + 2 * n, b""), frame(PING, 0, 0, b"12345678"), frames.window_update(0, 1))
    assert pair.goaway() is None
    assert len(pair.client.ended) == 3 * patience.LENT


@alone
def test_streams_beyond_the_limit_are_refused_and_the_others_go_on():
    pair = connected(streams=2)
    pair.send(wait(pair.client, 1), wait(pair.client, 3), wait(pair.client, 5))
    assert pair.client.answers[5].code is Code.REFUSED_STREAM
    pair.send(frames.rst_stream(1, Code.CANCEL), pair.client.request(7, b"seven"))
    assert pair.client.answers[7].body == b"seven"
    assert pair.server.left == [1]


@alone
def test_who_does_not_read_is_not_read_from():
    pair = connected()
    pair.server.pause_writing()
    assert not pair.wire.reads
    pair.send(pair.client.request(1, b"x"))
    assert pair.client.answers[1].body == b""
    pair.server.resume_writing()
    assert pair.wire.reads
    pair.send(b"")
    assert (pair.client.answers[1].body, 1 in pair.client.ended) == (b"x", True)


@alone
def test_draining_answers_what_has_come_and_closes():
    pair = connected()
    pair.send(wait(pair.client, 1))
    pair.server.drain()
    pair.send(b"")
    first, ping = pair.client.of_kind(GOAWAY)[0], pair.client.of_kind(PING)[0]
    assert (first.code, int.from_bytes(first.payload[:4], "big")) == (Code.NO_ERROR, 2**31 - 1)
    # sent before it knew
    pair.send(wait(pair.client, 3), frame(PING, ACK, 0, ping.payload))
    assert int.from_bytes(pair.client.of_kind(GOAWAY)[-1].payload[:4], "big") == 3
    # and one sent after it should have known
    pair.send(pair.client.request(5, b"late"))
    assert 5 not in pair.client.answers
    for stream in (1, 3):
        assert pair.wire.open
        pair.server.answer(pair.server.waiting[stream], BEGIN, b"done", END)
        pair.send(b"")
        assert pair.client.answers[stream].body == b"done"
    assert not pair.wire.open


@alone
def test_a_body_that_nobody_wants_to_the_end_is_dropped():
    pair = connected()
    pair.send(pair.client.headers(1))
    pair.server.answer(pair.server._streams[1], BEGIN, b"early", END)
    pair.send(frame(DATA, 0, 1, b"more"), frame(DATA, END_STREAM, 1, b"and more"))
    assert pair.client.answers[1][1:] == (b"early", {"end": "yes"}, Code.NO_ERROR)
    pair.send(frame(DATA, 0, 1, b"after the end"))
    assert pair.client.of_kind(RST_STREAM)[-1].code is Code.STREAM_CLOSED
    assert pair.goaway() is None


@alone
def test_the_connections_window_is_filled_up_again():
    pair = connected(streams=1000)
    for n in range(2 * h2.CONNECTION_WINDOW // 65536):
        stream = 1 + 2 * n
        pair.send(pair.client.headers(stream), *[frame(DATA, 0, stream, bytes(16384))] * 4)
        pair.send(frames.rst_stream(stream, Code.CANCEL))
    given_back = [int.from_bytes(f.payload, "big") for f in pair.client.of_kind(WINDOW_UPDATE) if not f.stream]
    assert sum(given_back) >= 65536 + 2 * h2.CONNECTION_WINDOW - h2.CONNECTION_WINDOW // 2


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40))
        | st.tuples(st.just(HEADERS), st.just(END_HEADERS), st.integers(0, 9), st.just(None))
        | st.tuples(
            st.just(WINDOW_UPDATE), st.just(0), st.integers(0, 9), st.integers(0, 2**32 - 1).map(struct.Struct(">I").pack)
        ),
        max_size=40,
    ),
    st.booleans(),
)
@alone
def test_frames_at_random_end_in_answers_or_in_a_fault_that_is_named(sent, settled):
    pair = connected() if settled else Pair()
    if not settled:
        pair.send(PREFACE)
    for kind, flags, stream, payload in sent:
        pair.send(pair.client.headers(stream) if payload is None else frame(kind, flags, stream, payload))
        if not pair.wire.open:
            break
    pair.goaway()
    pair.server.connection_lost(None)
    assert not pair.server._streams


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Code.PROTOCOL_ERROR),
        (PREFACE + frame(PING, 0, 0, bytes(8)), Code.PROTOCOL_ERROR),
        (PREFACE + frame(SETTINGS, 0, 0, b"12345"), Code.FRAME_SIZE_ERROR),
        (PREFACE + struct.pack(">IBI", 20_000 << 8 | SETTINGS, 0, 0), Code.FRAME_SIZE_ERROR),
    ],
)
@alone
def test_a_beginning_that_is_none_is_told_so(data, code):
    pair = Pair()
    pair.send(data)
    assert pair.goaway() is code
