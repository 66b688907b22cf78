"""uvicorn's HTTP/1.1 connection, with this server's limits and form of errors.  Nothing about routes or models in here."""

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.inference import error_body
from server.settings import Settings

# Pieces of one chunked body: each costs as much as a request's line, whatever is in it.
MOST_CHUNKS = 65_536
# What a client that reads slowly has to take of its answer within the time for that.
LEAST_READ = 16 * 1024
# Requests that wait on one connection behind the one being answered.
MOST_PIPELINED = 100
# Of a head's bytes those that no limit counts: the method, the protocol's version and the blank line.
_AROUND_A_HEAD = 32
_ANNOUNCES_A_BODY = frozenset((b"content-length", b"transfer-encoding"))
_H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


class HttpProtocol(HttpToolsProtocol):
    """One connection: a bounded head within a bounded time, one of a bounded number, and errors as JSON."""

    def __init__(self, settings: Settings, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._limit, self._seconds = settings.limit_connections, settings.receive_timeout
        self._head_bytes = self._chunks = 0
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._answered_at = 0.0
        # what is the matter with a head that the parser itself has nothing against
        self._wrong: tuple[int, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > self._limit:
            self._refuse(503, f"there are {self._limit} connections, which is the limit (--limit_connections)")
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        for timer in (self._idle, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _expect_reading(self) -> None:
        """The client has to take something of what waits for it, or is cut off: closing would wait for it for ever."""
        left = self.transport.get_write_buffer_size()
        if left and self._unread is None:
            self._unread = self.loop.call_later(self._settings.send_timeout, self._cut_if_unread, left)

    def _cut_if_unread(self, was: int) -> None:
        self._unread = None
        if was - self.transport.get_write_buffer_size() < LEAST_READ:
            self.transport.abort()
        else:
            self._expect_reading()

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
            if self._head_bytes > self._settings.max_header_bytes + _AROUND_A_HEAD:
                self._refuse(*self._too_large())
            else:
                self._expect_head()

    def on_headers_complete(self) -> None:
        self._check_head()
        self._head_is_here()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > MOST_CHUNKS:
            self._reject(413, f"the body came in more than {MOST_CHUNKS} chunks, which is the limit; send larger ones")

    def _check_head(self) -> None:
        """Limits that the parser does not have.  What came in one piece was not counted on its way."""
        self._chunks = 0
        settings = self._settings
        if self.parser.should_upgrade() and any(name in _ANNOUNCES_A_BODY and value != b"0" for name, value in self.headers):
            # the parser leaves the body to the other protocol, and would take it for the next request
            self._reject(400, "the request offers another protocol (upgrade) and has a body; send it without the offer")
        if len(self.url) > settings.max_url_bytes:
            self._reject(414, f"the URL is {len(self.url)} bytes, the limit is {settings.max_url_bytes} (--max_url_bytes)")
        if len(self.headers) > settings.max_headers:
            text = f"the request has {len(self.headers)} headers, the limit is {settings.max_headers} (--max_headers)"
            self._reject(431, text)
        # four bytes around each: a colon, a blank, the line's end
        if sum([len(name) + len(value) + 4 for name, value in self.headers]) + len(self.url) > settings.max_header_bytes:
            self._reject(*self._too_large())

    def _too_large(self) -> tuple[int, str]:
        return 431, f"the request's headers are more than {self._settings.max_header_bytes} bytes (--max_header_bytes)"

    def _reject(self, status: int, text: str) -> None:
        """Within the parser's callbacks, which an exception ends; `send_400_response` is where that comes out."""
        self._wrong = status, text
        raise ValueError(text)

    def on_response_complete(self) -> None:
        """As uvicorn has it, but with one timer for all of a connection's pauses: one for each costs a tenth of a request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._expect_reading()
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
            self._expect_reading()

    def send_400_response(self, msg: str) -> None:
        """Refuse what has come, unless that would be taken for the answer to a request before it."""
        if self.pipeline:
            self.transport.abort()
        elif self._between_requests() or (self.cycle.more_body and not getattr(self.cycle, "response_started", False)):
            self._refuse(*(self._wrong or (400, "this is not a valid HTTP/1.1 request")))
        else:
            self.cycle.keep_alive = False
            self.flow.pause_reading()

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self._seconds, self._close_late)

    def _close_late(self) -> None:
        self.transport.close()
        self._expect_reading()

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
        self._expect_reading()


def without_h2c(data: bytes) -> bytes:
    """A request's first bytes without an offer to go on in HTTP/2, which Java's client makes by default.

    The offer may be ignored, but the parser would take the body for HTTP/2 and drop it.
    """
    if b"h2c" not in data:
        return data
    head, blank, rest = data.partition(b"\r\n\r\n")
    return _H2C.sub(b"", head + b"\r\n", count=1)[:-2] + blank + rest
