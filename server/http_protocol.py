"""uvicorn's HTTP/1.1 connection, with this server's limits and form of errors.  Nothing about routes or models in here."""

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.inference import error_body
from server.settings import Settings

# The request line and headers together; what more a client sends before a body is refused.
LARGEST_HEAD = 64 * 1024
# Requests that wait on one connection behind the one being answered.
MOST_PIPELINED = 100
_H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


class HttpProtocol(HttpToolsProtocol):
    """One connection: a bounded head within a bounded time, one of a bounded number, and errors as JSON."""

    def __init__(self, settings: Settings, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit, self._seconds = settings.limit_connections, settings.receive_timeout
        self._head_bytes = 0
        self._late: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._answered_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > self._limit:
            self._refuse(503, f"there are {self._limit} connections, which is the limit (--limit_connections)")
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        if self._idle is not None:
            self._idle.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._between_requests():
            data = without_h2c(data)
        answered_at = self._answered_at
        super().data_received(data)
        if len(self.pipeline) > MOST_PIPELINED:
            # it asks faster than it reads; an error would be taken for an answer to one of its requests
            self.transport.abort()
        # what was answered on the spot was no part of a head
        if self._between_requests() and self._answered_at == answered_at and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD:
                self._refuse(431, f"the request's headers are more than {LARGEST_HEAD} bytes")
            else:
                self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_here()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """As uvicorn has it, but with one timer for all of a connection's pauses: one for each costs a tenth of a request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._answered_at = self.loop.time()
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _close_if_idle(self) -> None:
        rest = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if not self._between_requests() or self._late is not None:
            # whoever asks is waited for by other clocks, and counts as idle from the answer on
            rest = self.timeout_keep_alive
        if rest > 0:
            self._idle = self.loop.call_later(rest, self._close_if_idle)
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not a valid HTTP/1.1 request")

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self._seconds, self.transport.close)

    def _head_is_here(self) -> None:
        self._head_bytes = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: int, text: str) -> None:
        body = error_body(text)
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


def without_h2c(data: bytes) -> bytes:
    """A request's first bytes without an offer to go on in HTTP/2, which Java's client makes by default.

    The offer may be ignored, but the parser would take the body for HTTP/2 and drop it.
    """
    if b"h2c" not in data:
        return data
    head, blank, rest = data.partition(b"\r\n\r\n")
    return _H2C.sub(b"", head + b"\r\n", count=1)[:-2] + blank + rest
