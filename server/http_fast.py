"""The fast lane: plain inference requests answered straight from what a socket read, without ASGI.

A request is plain when nothing about it is unusual: POST to an inference route over HTTP/1.1, a Content-Length that fits
in one buffer, no Expect, no Transfer-Encoding, nothing still being answered on its connection. All else takes
uvicorn's own way to the same `Inference`. `--http_fast=false` sends everything there; the wire tests run both ways.

Clients send the same head again and again. What the parser made of one is kept, and a request that comes in one piece
behind the same bytes is not parsed any more.
"""

import time
from functools import partial
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from server.errors import DeadlineExceeded, RequestCancelled
from server.http_api import CLOSE, closing, inference_target
from server.http_protocol import HttpProtocol
from server.identity import LONGEST_ID, identified
from server.inference import Answer, Asked, Call, Headers, Inference
from server.life import Life
from server.work import Work

# A longer body is read with back-pressure, which is uvicorn's business.
LARGEST_BODY = 64 * 1024
# Heads that are kept, how long they may be, and how many that came once are remembered.
MOST_HEADS, LARGEST_KEPT, MOST_SEEN = 1024, 4096, 8192
_END = b"\r\n\r\n"
_ID_AT = len(b"\r\nx-request-id: ")
_UNUSUAL = frozenset(("expect", "transfer-encoding", "upgrade"))


class Head(NamedTuple):
    """A plain request's head.  `length` is the body's in bytes."""

    asked: Asked
    length: int
    keep_alive: bool


class Heads:
    """The heads that were seen lately, for all connections of a process: by their bytes, but for those of a request's id."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Head] = {}
        self._seen: set[int] = set()
        self.find = self._kept.get
        # how the last answer began, and of what that was made
        self._opening: tuple[Any, ...] = (0, None, None, b"")

    def opening(self, status: int, headers: Headers, defaults: Headers) -> bytes:
        """An answer's head up to what only it has.  `defaults` are the server's own, a new list where they change."""
        was_status, was_headers, was_defaults, opening = self._opening
        if status == was_status and headers is was_headers and defaults is was_defaults:
            kept: bytes = opening
            return kept
        opening = STATUS_LINE[status] + b"".join([b"%b: %b\r\n" % one for one in (*defaults, *headers)])
        self._opening = status, headers, defaults, opening
        return opening

    def keep(self, raw: bytes, head: Head) -> None:
        """From the second time on that it is seen: what comes once would only push others out."""
        number = hash(raw)
        if number not in self._seen:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen.add(number)
            return
        self._seen.discard(number)
        if len(self._kept) >= MOST_HEADS:
            # rather all of them than a look at their order on each request
            self._kept.clear()
        self._kept[raw] = head


def without_id(head: bytes) -> tuple[bytes, str]:
    """A head without the value of its X-Request-Id, and that value; as it is where there is none that is plain.

    Proxies and tracers give each request another, which does not make it another head.
    """
    start = head.find(b"\r\nx-request-id: ")
    if start < 0:
        start = head.find(b"\r\nX-Request-Id: ")
        if start < 0:
            return head, ""
    start += _ID_AT
    stop = head.find(b"\r\n", start, start + LONGEST_ID + 2)
    # one that is too long has a line's end in it
    value = head[start:stop]
    if not value.replace(b"-", b"").isalnum():
        return head, ""
    return head[:start] + head[stop:], value.decode()


def without_trace(head: bytes) -> tuple[bytes, str]:
    """The same where requests are traced: its traceparent and tracestate have gone too, and the id knows of them."""
    head, request_id = without_id(head)
    head, parent = _without(head, b"traceparent", b"Traceparent")
    if not parent:
        return head, request_id
    head, state = _without(head, b"tracestate", b"Tracestate")
    return head, identified(request_id, parent, state)


def _without(head: bytes, *names: bytes) -> tuple[bytes, str]:
    """A head without the value of the first header that is called so; as it is where there is none that is plain."""
    for name in names:
        before, found, rest = head.partition(b"\r\n%b: " % name)
        if found:
            value, end, rest = rest.partition(b"\r\n")
            text = value.decode("latin-1")
            return (before + found + end + rest, text) if text.isascii() and text.isprintable() else (head, "")
    return head, ""


def names_it_once(raw: bytes) -> bool:
    """Whether what was taken out of a head is what counts: of several headers of one name it would be another."""
    lower = raw.lower()
    return all(lower.count(b"\r\n%b:" % name) <= 1 for name in (b"x-request-id", b"traceparent", b"tracestate"))


class FastCall(Call):
    """One plain request in the place of uvicorn's request-response cycle: what its connection asks of one is here."""

    __slots__ = ("disconnected", "head", "keep_alive", "more_body", "response_complete", "work")

    def __init__(self, head: Head, request_id: str = "") -> None:
        # what its base does, without the call
        asked = self.asked = head.asked
        self.request_id, self.body, self.started = request_id or asked.request_id, b"", time.perf_counter()
        self.head, self.keep_alive = head, head.keep_alive
        self.more_body, self.response_complete, self.disconnected = True, False, False
        self.work: Work | None = None

    @property
    def message_event(self) -> "FastCall":
        return self

    def set(self) -> None:
        """Something has happened on the connection; where it was lost, nobody waits for the answer any more."""
        work = self.work
        if self.disconnected and work is not None:
            self.work = None
            work.cancel()


class FastProtocol(HttpProtocol):
    """One connection with the fast lane open."""

    cycle: Any
    # what takes from a head what each request has another of
    named = staticmethod(without_id)

    def __init__(self, inference: Inference, life: Life, heads: Heads, *args: Any, **kwargs: Any) -> None:
        super().__init__(inference.settings, *args, **kwargs)
        self._inference, self._life, self._heads = inference, life, heads
        self._largest = min(LARGEST_BODY, inference.settings.max_body_bytes)
        self._late_body: Any = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._body_is_here()
        if type(self.cycle) is FastCall and self.cycle.more_body:
            self._inference.refused(self.cycle, RequestCancelled("the client has gone"))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        raw = b""
        if not self._head_bytes and (cycle is None or cycle.response_complete):
            end = data.find(_END, 0, LARGEST_KEPT) + len(_END)
            if end >= len(_END):
                raw, request_id = self.named(data[:end])
            head = self._heads.find(raw)
            if head is not None and len(data) - end == head.length and not self.flow.write_paused:
                self._head_is_here()
                self.cycle = cycle = FastCall(head, request_id)
                cycle.body = data[end:]
                self._begin(cycle)
                return
        super().data_received(data)
        cycle = self.cycle
        if type(cycle) is not FastCall:
            return
        if cycle.more_body:
            if self._late_body is None:
                self._late_body = self.loop.call_later(self._seconds, self._give_up)
        elif raw and cycle.body == data[end:] and cycle.asked.wrong is None:
            # the same body as is behind the first blank line: the parser, too, took the head to end there
            head = cycle.head
            if not request_id:
                self._heads.keep(raw, head)
            elif type(head.asked.request_id) is type(request_id) and names_it_once(raw):
                # its trace, if it has one, was taken out with its id
                self._heads.keep(raw, head._replace(asked=head.asked._replace(request_id="")))

    def on_headers_complete(self) -> None:
        plain = self._plain()
        if plain is None:
            super().on_headers_complete()
        else:
            self._check_head()
            self._head_is_here()
            self.cycle = FastCall(plain)

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if type(cycle) is not FastCall:
            super().on_message_complete()
        elif cycle.more_body:
            self._body_is_here()
            self._begin(cycle)

    def _plain(self) -> Head | None:
        url = self.url
        if not url.endswith((b"/infer", b":predict")) or b"%" in url or b"?" in url or not self._between_requests():
            return None
        parser = self.parser
        # a client that reads slower than it asks is for uvicorn to hold back
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or self.flow.write_paused:
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        length = headers.get("content-length", "")
        if not length.isdecimal() or len(length) > 5 or int(length) > self._largest or not _UNUSUAL.isdisjoint(headers):
            return None
        path = url.decode("latin-1")
        target = inference_target({"path": path})
        return None if target is None else Head(Asked.of(target, path, headers), int(length), parser.should_keep_alive())

    def _begin(self, cycle: FastCall) -> None:
        cycle.more_body = False
        work = Work(self._inference.rest(cycle), partial(self._write, cycle))
        # each refers to the other only for as long as it may be cancelled, or the garbage collector would have to find them
        cycle.work = None if cycle.response_complete else work

    def _write(self, cycle: FastCall, answer: Answer) -> None:
        transport = self.transport
        cycle.response_complete = True
        cycle.work = None
        if transport.is_closing():
            return
        keep_alive = cycle.keep_alive and not self._life.draining
        status, headers, body = answer
        opening = self._heads.opening(status, headers, self.server_state.default_headers)
        if not keep_alive and CLOSE not in headers:
            opening += b"connection: close\r\n"
        named = cycle.request_id.encode("latin-1", "replace")
        transport.write(b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (opening, named, len(body), body))
        if not keep_alive:
            transport.close()
        self.on_response_complete()

    def _body_is_here(self) -> None:
        if self._late_body is not None:
            self._late_body.cancel()
            self._late_body = None

    def _give_up(self) -> None:
        cycle = self.cycle
        cycle.more_body, cycle.keep_alive = False, False
        error = DeadlineExceeded(f"the request's body did not arrive within {self._seconds:g} s")
        self._write(cycle, closing(self._inference.refused(cycle, error)))


class TracedProtocol(FastProtocol):
    """The same where requests are traced."""

    named = staticmethod(without_trace)
