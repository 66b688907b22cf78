"""The fast lane: plain inference requests answered straight from the HTTP parser, without ASGI.

A request is plain when nothing about it is unusual: POST to an inference route over HTTP/1.1, a Content-Length that fits
in one buffer, no Expect, no Transfer-Encoding, nothing still being answered on its connection. All else takes
uvicorn's own way to the same `Inference`. `--http_fast=false` sends everything there; the wire tests run both ways.
"""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from server.errors import DeadlineExceeded, RequestCancelled
from server.http_api import CLOSE, closing, inference_target
from server.http_protocol import HttpProtocol
from server.inference import Answer, Call, Inference
from server.life import Life

# A longer body is read with back-pressure, which is uvicorn's business.
LARGEST_BODY = 64 * 1024
_UNUSUAL = frozenset(("expect", "transfer-encoding", "upgrade"))


class FastCall:
    """One plain request in the place of uvicorn's request-response cycle: what its connection asks of one is here."""

    __slots__ = (
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "more_body",
        "path",
        "response_complete",
        "started",
        "target",
        "task",
    )

    def __init__(self, target: tuple[str, str, str], path: str, headers: dict[str, str], keep_alive: bool) -> None:
        self.target, self.path, self.headers, self.keep_alive = target, path, headers, keep_alive
        self.started = time.perf_counter()
        self.body = bytearray()
        self.more_body, self.response_complete, self.disconnected = True, False, False
        self.task: asyncio.Task[None] | None = None

    @property
    def message_event(self) -> "FastCall":
        return self

    def set(self) -> None:
        """Something has happened on the connection; where it was lost, nobody waits for the answer any more."""
        if self.disconnected and self.task is not None:
            self.task.cancel()

    def call(self) -> Call:
        return Call(*self.target, self.path, self.headers, bytes(self.body), self.started)


class FastProtocol(HttpProtocol):
    """One connection with the fast lane open."""

    cycle: Any

    def __init__(self, inference: Inference, life: Life, *args: Any, **kwargs: Any) -> None:
        super().__init__(inference.settings, *args, **kwargs)
        self._inference, self._life = inference, life
        self._largest = min(LARGEST_BODY, inference.settings.max_body_bytes)
        self._late_body: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._body_is_here()
        if type(self.cycle) is FastCall and self.cycle.more_body:
            self._inference.refused(self.cycle.call(), RequestCancelled("the client has gone"))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle = self.cycle
        if type(cycle) is FastCall and cycle.more_body and self._late_body is None:
            self._late_body = self.loop.call_later(self._seconds, self._give_up)

    def on_headers_complete(self) -> None:
        plain = self._plain()
        if plain is None:
            super().on_headers_complete()
        else:
            self._head_is_here()
            self.cycle = plain

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if type(cycle) is not FastCall:
            super().on_message_complete()
        elif cycle.more_body:
            cycle.more_body = False
            self._body_is_here()
            cycle.task = self.loop.create_task(self._answer(cycle))
            self.tasks.add(cycle.task)
            cycle.task.add_done_callback(self.tasks.discard)

    def _plain(self) -> FastCall | None:
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
        return None if target is None else FastCall(target, path, headers, parser.should_keep_alive())

    async def _answer(self, cycle: FastCall) -> None:
        answer = await self._inference.rest(cycle.call())
        self._write(cycle, answer)

    def _write(self, cycle: FastCall, answer: Answer) -> None:
        transport = self.transport
        cycle.response_complete = True
        if transport.is_closing():
            return
        keep_alive = cycle.keep_alive and not self._life.draining
        parts = [STATUS_LINE[answer.status]]
        for name, value in self.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        for name, value in answer.headers:
            parts += (name, b": ", value, b"\r\n")
        if not keep_alive and CLOSE not in answer.headers:
            parts.append(b"connection: close\r\n")
        parts += (b"content-length: %d\r\n\r\n" % len(answer.body), answer.body)
        transport.write(b"".join(parts))
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
        self._write(cycle, closing(self._inference.refused(cycle.call(), error)))
