"""Clients that are slow on purpose: each is cut off in its time, and nobody else waits for them.

What slowhttptest does, with 500 connections: heads, bodies and reading, a few bytes at a time.
"""

import contextlib
import selectors
import socket
import threading
import time
from pathlib import Path

import pytest

from server.h2 import frames
from tests.hostile import grpc_cases, v1_cases, v2_cases
from tests.hostile.protocols import tensor, v2
from tests.server.test_grpc_fast import Wire as H2Wire
from tests.server.test_grpc_fast import message as framed
from tests.server.test_grpc_fast import status

HERE = Path(__file__).parent
INFER = b"POST /v2/models/table/infer HTTP/1.1\r\nhost: a\r\n"
# connections that are slow at once, and for how long a drip of theirs is due
CONNECTIONS, EVERY = 500, 0.2
# what is given to slow clients: seconds
GIVEN = 1.0
LARGE = v2(tensor("features", "UINT8", [6000, 4], [7] * 24_000))


@pytest.fixture(scope="module")
def server(serve):
    flags = (
        f"--receive_timeout={GIVEN}",
        f"--send_timeout={GIVEN}",
        "--timeout_keep_alive=4",
        "--limit_connections=600",
        "--max_queue=10000000",
    )
    with serve(f"{HERE}/models/table.py:Table", "--model_name=table", *flags) as server:
        yield server


class Slow:
    """Connections that send what they have to say a few bytes at a time; `ended` counts those that the server has cut."""

    def __init__(self, address: tuple[str, int], first: bytes, drip: bytes, count: int = CONNECTIONS, reads: bool = True) -> None:
        self.ended, self._drip, self._reads = 0, drip, reads
        self._open: list[socket.socket] = []
        for _ in range(count):
            one = socket.socket()
            if not reads:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(address)
            with contextlib.suppress(OSError):
                one.sendall(first)
            one.setblocking(False)
            self._open.append(one)

    def step(self) -> None:
        """Each sends a little, and looks whether it is still wanted."""
        left = []
        for one in self._open:
            try:
                if self._drip:
                    one.send(self._drip)
                if self._reads and not one.recv(4096):
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                self.ended += 1
                one.close()
                continue
            left.append(one)
        self._open = left

    def close(self) -> None:
        for one in self._open:
            one.close()


class Good(threading.Thread):
    """Asks over each protocol, one after the other, as long as it is wanted; what it was told and how long that took."""

    def __init__(self, server) -> None:
        super().__init__()
        self._server, self._enough = server, threading.Event()
        self.hundred = threading.Event()
        self.seconds: list[float] = []
        self.wrong: list = []

    def run(self) -> None:
        kinds = (v1_cases, v2_cases, grpc_cases)
        # opened when they are needed: whoever connects and asks nothing is slow, too
        connections: dict = {}
        n = 0
        while not self._enough.is_set():
            n += 1
            kind = kinds[n % 3]
            if n <= 3:
                connections[kind] = kind.PROTOCOL.open(self._server)
            connection = connections[kind]
            one, started = kind.good(n), time.perf_counter()
            said = kind.PROTOCOL.end(kind.PROTOCOL.begin(self._server, one, connection), keep=True)
            self.seconds.append(time.perf_counter() - started)
            if n == 100:
                self.hundred.set()
            if (said.code, said.numbers) != (one.code, one.numbers):
                self.wrong.append(said)

    def stop(self) -> float:
        """The median, in milliseconds."""
        self._enough.set()
        self.join()
        return sorted(self.seconds)[len(self.seconds) // 2] * 1e3


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


KINDS = {
    "heads": (INFER + b"x: ", b"y"),
    "headers": (INFER, b"x: y\r\n"),
    "bodies": (INFER + b"content-length: 100000\r\n\r\n", b" "),
    "chunks": (INFER + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "blank lines": (b"\r\n", b"\r\n"),
    "nothing": (b"", b""),
    "bytes of gRPC": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", b""),
    "frames of gRPC": (frames.PREFACE + frames.settings({}), b"\0"),
}


def beside(server, slow: Slow, record_property, what: str) -> int:
    """Let slow clients drip until all are cut off, beside good ones; how many were.  The figures are in pytest's --junitxml."""
    with contextlib.closing(slow):
        good = Good(server)
        good.start()
        end = time.monotonic() + 4 * GIVEN + 10
        selector = selectors.DefaultSelector()
        while slow.ended < CONNECTIONS and time.monotonic() < end:
            slow.step()
            # nothing is registered: a pause that is part of being slow
            selector.select(EVERY)
        record_property(f"median with slow {what}, ms", round(good.stop(), 2))
        record_property("answers beside them", len(good.seconds))
    assert good.seconds
    assert not good.wrong
    return slow.ended


@pytest.fixture(scope="module")
def alone(server):
    """The median without slow clients, in milliseconds."""
    good = Good(server)
    good.start()
    assert good.hundred.wait(30)
    return good.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_500_slow_clients_are_cut_off_and_good_ones_answered_beside_them(server, alone, record_property, kind):
    record_property("median alone, ms", round(alone, 2))
    first, drip = KINDS[kind]
    where = server.grpc if "gRPC" in kind else server.http
    assert beside(server, Slow(address(where), first, drip), record_property, kind) == CONNECTIONS


def test_500_who_do_not_read_are_cut_off_and_cost_bounded_memory(server, alone, record_property, metrics, until):
    """Each has asked for an answer that is more than a connection takes by itself."""
    before = metrics(server)["process_resident_memory_bytes"]
    asked = INFER + b"content-length: %d\r\n\r\n" % len(LARGE) + LARGE
    slow = Slow(address(server.http), asked, b"", reads=False)
    good = Good(server)
    good.start()
    with contextlib.closing(slow):
        # all were answered, and every one is taken from the server's list in the end
        until(lambda: open_connections(server) < 20, "the end of the connections", 60)
        grown = metrics(server)["process_resident_memory_bytes"] - before
    record_property("memory for 500 who do not read, MB", round(grown / 2**20, 1))
    record_property("median beside them, ms", round(good.stop(), 2))
    assert not good.wrong
    assert grown < 200 << 20


def open_connections(server) -> int:
    """The server's side of connections on its HTTP port."""
    port = f"{address(server.http)[1]:04X}"
    lines = Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]
    # 01: established; what the kernel still has to send for one that is closed is its own
    return sum(1 for line in lines if line.split()[1].endswith(f":{port}") and line.split()[3] == "01")


def test_whoever_does_not_read_even_a_little_is_cut_off(server, until):
    """What a connection is to send when it is closed waits for its client, and must not do so for ever."""
    rows = v2(tensor("features", "UINT8", [900, 4], [7] * 3600))
    before = open_connections(server)
    with contextlib.ExitStack() as stack:
        for body, close in ((rows, b""), (rows, b"connection: close\r\n"), (b"x" * 100, b"")):
            lazy = stack.enter_context(socket.socket())
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            lazy.connect(address(server.http))
            lazy.sendall(INFER + close + b"content-length: %d\r\n\r\n" % len(body) + body)
        until(lambda: open_connections(server) <= before, "the end of the connections", 30)


def test_a_message_that_comes_a_byte_at_a_time_is_given_up(server):
    """As a call; the connection goes on for the others on it."""
    with H2Wire(server) as connection:
        connection.send(connection.headers(1))
        sent = framed(grpc_cases.typed())
        end = time.monotonic() + 3 * GIVEN
        connection.socket.settimeout(0.1)
        at = 0
        while 1 not in connection.ended and time.monotonic() < end:
            connection.send(frames.frame(frames.DATA, 0, 1, sent[at : at + 1]))
            at = min(at + 1, len(sent) - 2)
            with contextlib.suppress(TimeoutError):
                connection.read()
        assert status(connection.answer(1)) == ("4", f"the request's message did not arrive within {GIVEN:g} s")
        connection.socket.settimeout(30)
        assert status(connection.ask(3, sent))[0] == "0"


@pytest.mark.parametrize("path", ["/v2/models/table/infer", "/v1/models/table:predict", "/v2/repository/index"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_stops_is_answered_when_its_time_is_over(server, wire, path, chunked):
    """Number 5 of the catalogue."""
    with wire(server.http) as connection:
        if chunked:
            connection.send("POST", path, transfer_encoding="chunked")
            connection.send_raw(b'4\r\n{"in\r\n')
        else:
            connection.send("POST", path, b'{"inp', content_length="100")
        answer = connection.read()
        assert (answer.status, answer.error) == (504, f"the request's body did not arrive within {GIVEN:g} s")
        assert (answer.headers["connection"], connection.read().status) == ("close", 0)
