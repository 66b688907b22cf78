"""Fixtures for tests that talk to a predictor over real sockets; nothing else."""

import json
import queue
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

MODELS = Path(__file__).parent / "models"


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error, whose body must be exactly {"error": text}."""
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        assert isinstance(self.json["error"], str)
        assert self.json["error"]
        return self.json["error"]


class Wire:
    """One HTTP connection on which a test writes what it likes, and reads answers when it likes."""

    def __init__(self, url: str) -> None:
        host, port = re.search(r"//([^/:]+):(\d+)", url).groups()
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self._file = self.socket.makefile("rb")
        self._bodiless = False

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are; the server may close the connection while they are sent."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def send(self, method: str, path: str, body=b"", **headers: str) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: test"]
        if (body or method == "POST") and not {"content_length", "transfer_encoding"} & set(headers):
            headers["content_length"] = str(len(body))
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._bodiless = method == "HEAD"
        self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def read(self) -> Answer:
        """The next answer; status 0 where the server closed the connection instead."""
        try:
            line = self._file.readline()
        except ConnectionResetError:
            line = b""
        if not line:
            return Answer(0, {}, b"")
        headers = {}
        while (header := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = b"" if self._bodiless else self._file.read(int(headers.get("content-length", 0)))
        return Answer(int(line.split()[1]), headers, body)

    def ask(self, method: str, path: str, body=b"", **headers: str) -> Answer:
        self.send(method, path, body, **headers)
        return self.read()


class Gate:
    """The test's side of models/gated.py: rows of 1000 and more wait here, all that the model saw is in `seen`."""

    def __init__(self, path: Path) -> None:
        self.environment = {"GATE": str(path)}
        self.seen: list[list[int]] = []
        self._waiting: queue.Queue = queue.Queue()
        self._held: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            rows = json.loads(connection.makefile().readline() or "[0]")
            self.seen.append(rows)
            if max(rows) >= 1000:
                self._waiting.put(connection)
            else:
                connection.close()

    def entered(self) -> socket.socket:
        """Wait until the model has been called with such a row; closing the socket lets it through."""
        connection = self._waiting.get(timeout=30)
        self._held.append(connection)
        return connection

    @contextmanager
    def held(self):
        """The model is busy with a row of 1000 or more that somebody has sent, for as long as the block lasts."""
        with self.entered():
            yield

    def close_held(self) -> None:
        """Let everybody through who waits."""
        for connection in self._held:
            connection.close()

    def rows(self) -> list[int]:
        return [row for rows in self.seen for row in rows]

    def close(self) -> None:
        self._listener.close()
        self.close_held()
        while not self._waiting.empty():
            self._waiting.get().close()


def until(found, what: str, seconds: float = 20.0):
    """What `found()` gives as soon as it gives something; it asks the server each time, so there is no need to sleep."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
    raise AssertionError(f"{what} did not happen within {seconds:g} s")


def samples(page: str) -> dict[str, float]:
    """A /metrics page as {name and labels: value}."""
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in page.splitlines() if line[:1] != "#")}


@pytest.fixture(scope="session")
def wire():
    """`with wire(server.http) as connection`."""
    return Wire


@pytest.fixture(scope="session")
def models() -> Path:
    return MODELS


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    gate = Gate(tmp_path_factory.mktemp("gate") / "socket")
    yield gate
    gate.close()


@pytest.fixture(scope="session")
def metrics():
    """`metrics(server)`: the samples of its /metrics page."""

    def read(server) -> dict[str, float]:
        with Wire(server.http) as connection:
            return samples(connection.ask("GET", "/metrics").body.decode())

    return read


@pytest.fixture(scope="session")
def in_flight(metrics):
    """`in_flight(server, n)`: return once exactly n inference requests are received and not answered."""
    return lambda server, n: until(lambda: metrics(server)["serve_requests_in_flight"] == n, f"{n} requests in flight")


@pytest.fixture(scope="session", name="until")
def until_():
    return until


LANES = {
    "fast": ("--http_fast=true", "--grpc_engine=fast"),
    "libraries": ("--http_fast=false", "--grpc_engine=grpcio"),
}


@pytest.fixture(scope="session", params=LANES)
def lane(request) -> tuple[str, ...]:
    """The flags for each of the two ways that a request takes through the edges: our own, and by way of libraries."""
    return LANES[request.param]


@pytest.fixture(scope="session")
def sums(serve, lane):
    """A server of row sums for all tests that leave it as they found it."""
    with serve(f"{MODELS}/sums.py:Sums", *lane) as server:
        yield server


@pytest.fixture(scope="session")
def faults(serve):
    with serve(f"{MODELS}/faults.py:Faults") as server:
        yield server
