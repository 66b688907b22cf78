"""Requests at a constant rate, whatever becomes of those before: what a fault costs is seen only by an open loop.

    with Load(url, body, rate=150) as load:
        load.mark("killed")
        …
    assert not load.lost
    assert load.between("killed")[-1].seconds < 1

A request is lost when it has no answer within `timeout`, or one that `check` objects to.  Connections are kept and used
again.  A kept connection that its server has closed before a request is written to it is dropped, and the request goes over
another: that is how HTTP/1.1 ends connections.  Whatever happens after the first byte was written counts as lost; nothing is
sent twice.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """`at` is when the request was due, in seconds since the load began; `seconds` from then to the answer's last byte."""

    at: float
    seconds: float
    status: int
    headers: dict[str, str]
    body: bytes


class Lost(NamedTuple):
    at: float
    seconds: float
    why: str


def is_200(answer: Answer) -> str:
    """What is wrong with an answer, or ""."""
    return "" if answer.status == 200 else f"{answer.status} {answer.body[:300]!r}"


class Load:
    """`rate` requests a second from entering the block to leaving it, which waits for the answers that are still due.

    `body` is what is posted, or a function from the request's number to that, or to that and headers of its own; None asks
    with GET.
    """

    def __init__(
        self,
        url: str,
        body: bytes | Callable[[int], bytes | tuple[bytes, dict[str, str]]] | None = b"{}",
        rate: float = 150.0,
        check: Callable[[Answer], str] = is_200,
        headers: dict[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._body, self._rate, self._check, self._timeout = body, rate, check, timeout
        self._headers = {"Host": parts.netloc, "Content-Type": "application/json", **(headers or {})}
        self.answers: list[Answer] = []
        self.lost: list[Lost] = []
        self.marks: dict[str, float] = {}
        self.sent = 0
        self._began = 0.0
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._stopping = threading.Event()
        self._running = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name=f"load {url}", daemon=True)

    def __enter__(self) -> "Load":
        self._thread.start()
        self._running.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(self._timeout + 30)

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def mark(self, name: str) -> float:
        """Remember this moment by a name; its time in seconds since the load began."""
        self.marks[name] = at = self.now
        return at

    def between(self, first: str, last: str | None = None, after: float = 0.0) -> list[Answer]:
        """The answers to requests that were due between two marks (or since one), the first moved by `after` seconds."""
        end = self.marks[last] if last else float("inf")
        return [answer for answer in self.answers if self.marks[first] + after <= answer.at < end]

    def wait_for(self, count: int, seconds: float = 60.0) -> None:
        """Return once `count` more requests were answered or lost; AssertionError when that takes too long."""
        target = len(self.answers) + len(self.lost) + count
        end = time.monotonic() + seconds
        while len(self.answers) + len(self.lost) < target:
            assert time.monotonic() < end, f"{count} more answers did not come within {seconds:g} s"
            threading.Event().wait(0.002)

    def percentile(self, share: float) -> float:
        """The time in seconds within which this share of the answers came."""
        ordered = sorted(answer.seconds for answer in self.answers)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def __repr__(self) -> str:
        worst = max((answer.seconds for answer in self.answers), default=0.0)
        times = f"p50 {self.percentile(0.5):.4f} s, p99 {self.percentile(0.99):.4f} s, max {worst:.3f} s"
        lost = "".join(f"\n  {one.at:8.3f} s (+{one.seconds:.3f}): {one.why}" for one in self.lost[:20])
        return f"{self.sent} sent, {len(self.answers)} answered, {len(self.lost)} lost; {times}; {self.marks}{lost}"

    async def _run(self) -> None:
        self._began = time.monotonic()
        self._running.set()
        tasks: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            due = self.sent / self._rate
            await asyncio.sleep(max(0.0, due - self.now))
            task = asyncio.create_task(self._one(self.sent, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            self.sent += 1
        if tasks:
            await asyncio.wait(set(tasks), timeout=self._timeout + 5)
        for _, writer in self._idle:
            writer.close()

    async def _one(self, number: int, due: float) -> None:
        made = self._body(number) if callable(self._body) else self._body
        body, own = made if isinstance(made, tuple) else (made, {})
        try:
            async with asyncio.timeout(self._timeout):
                status, headers, content = await self._ask(body, own)
        except (OSError, ValueError, EOFError, TimeoutError) as error:
            self.lost.append(Lost(due, self.now - due, f"{type(error).__name__}: {error}"))
            return
        answer = Answer(due, self.now - due, status, headers, content)
        if wrong := self._check(answer):
            self.lost.append(Lost(due, answer.seconds, wrong))
        else:
            self.answers.append(answer)

    async def _ask(self, body: bytes | None, own: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await self._connection()
        try:
            lines = [f"{'GET' if body is None else 'POST'} {self._path} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in (self._headers | own).items()]
            if body is not None:
                lines.append(f"content-length: {len(body)}")
            writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
            status, headers, content = await read_answer(reader)
        except BaseException:
            writer.close()
            raise
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return status, headers, content

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and reader.exception() is None and not writer.is_closing():
                return reader, writer
            writer.close()
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 24)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return reader, writer


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    line = await reader.readline()
    if not line:
        raise EOFError("the connection was closed without an answer")
    headers: dict[str, str] = {}
    while (header := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        content = b""
        while size := int(await reader.readline() or b"", 16):
            content += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        content = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(line.split()[1]), headers, content
