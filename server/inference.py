"""A wire call from bytes to bytes: decode, find the model, infer, encode.  Used by every edge, knows no transport.

Every call ends in exactly one `Record` (metrics and access log), whether it was answered, refused or abandoned.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple

import orjson

from server.batcher import IN_THREAD, aside
from server.errors import InvalidRequest, RequestCancelled, RequestTooLarge, RuntimeFailed, ServingError
from server.log import log
from server.models import Registry
from server.protocols import encoding, v1, v2_grpc, v2_json
from server.protocols.status import status_of
from server.settings import Settings
from server.telemetry import AccessLog, Metrics, Record
from server.tensors import InferResponse

# Errors quote what they were sent, which may be megabytes.
LONGEST_ERROR = 2000

Headers = list[tuple[bytes, bytes]]
JSON: Headers = [(b"content-type", b"application/json")]
_BINARY: Headers = [(b"content-type", b"application/octet-stream")]


class Answer(NamedTuple):
    """An HTTP answer, but for the connection's own headers."""

    status: int
    headers: Headers
    body: bytes


class Call(NamedTuple):
    """One inference call over HTTP.  `headers` has lower-case names; `started` is on `time.perf_counter`'s clock."""

    protocol: str
    model: str
    version: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    started: float


def error_text(error: ServingError) -> str:
    """What a caller reads, whatever they sent: of bounded length."""
    text = str(error)
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}…"


def error_body(text: str) -> bytes:
    """What every HTTP error says, in the only form that Open Inference clients read."""
    return orjson.dumps({"error": text})


class Inference:
    """The calls of one process, over its registry."""

    def __init__(
        self, registry: Registry, settings: Settings, metrics: Metrics, access_log: AccessLog | None, executor: Executor
    ) -> None:
        self.registry, self.settings, self.metrics = registry, settings, metrics
        self._log, self.executor = access_log, executor
        self.in_flight = 0
        self._ids = (f"{prefix}-{n}" for prefix in [os.urandom(4).hex()] for n in itertools.count(1))

    def answers_at_once(self, model: str, version: str, nbytes: int) -> bool:
        """Whether a call is answered within a turn or two of the event loop, so that its caller need not be watched."""
        try:
            return nbytes <= IN_THREAD and self.registry.ready(model, version).batcher.inline
        except ServingError:
            return True

    def _entered(self, calls: int) -> None:
        self.in_flight += calls
        if self.metrics.shared:
            self.metrics.in_flight.set(self.in_flight)

    async def rest(self, call: Call) -> Answer:
        """The answer to a V1 or V2 call; errors are answers too.  Only cancellation passes through."""
        self._entered(1)
        request_id = call.headers.get("x-request-id") or next(self._ids)
        response: InferResponse | None = None
        failure = ""
        try:
            response, answer = await (self._v1 if call.protocol == "v1" else self._v2)(call)
            answer = await self._encoded(call, answer)
        except ServingError as error:
            self._report(error, request_id)
            failure, answer = type(error).__name__, error_answer(error)
        except asyncio.CancelledError:
            failure, answer = RequestCancelled.__name__, Answer(499, JSON, b"")
            raise
        except Exception as error:  # a bug of ours: the caller still gets an answer, and we the traceback
            log.exception("internal error", request_id=request_id, path=call.path)
            failure, answer = type(error).__name__, Answer(500, JSON, error_body(f"internal error; request id {request_id}"))
        finally:
            self._entered(-1)
            self._record(call.protocol, "infer", call.path, call.model, answer.status, call.started, request_id,
                         response, len(call.body), len(answer.body), failure)  # fmt: skip
        return _identified(answer, request_id)

    def refused(self, call: Call, error: ServingError) -> Answer:
        """The answer to a call whose body did not come in whole, or was not wanted."""
        request_id, answer = call.headers.get("x-request-id") or next(self._ids), error_answer(error)
        self._record(call.protocol, "infer", call.path, call.model, answer.status, call.started, request_id,
                     None, len(call.body), len(answer.body), type(error).__name__)  # fmt: skip
        return _identified(answer, request_id)

    async def grpc(self, sent: bytes, path: str, timeout: float | None, request_id: str) -> bytes:
        """The ModelInferResponse to a ModelInferRequest, both as bytes.  `timeout` in seconds from now.  Raises ServingError."""
        started = time.perf_counter()
        self._entered(1)
        response: InferResponse | None = None
        code, failure, model, sent_back = "OK", "", "", 0
        small = len(sent) <= IN_THREAD
        try:
            # the small are not even asked to wait for themselves: that would cost a tenth of their whole call
            message = v2_grpc.parse(sent) if small else await self._off_loop(len(sent), v2_grpc.parse, sent)
            model, request_id = message.model_name, request_id or message.id
            request = v2_grpc.decode(message) if small else await self._off_loop(len(sent), v2_grpc.decode, message)
            if timeout is not None:
                request.timeout = least(request.timeout, timeout)
            request.nbytes = len(sent)
            response = await self.registry.ready(request.model, request.version).infer(request)
            small = response.nbytes <= IN_THREAD
            encoded = v2_grpc.encode(response) if small else await self._off_loop(response.nbytes, v2_grpc.encode, response)
            sent_back = len(encoded)
            return encoded
        except ServingError as error:
            self._report(error, request_id)
            code, failure = status_of(error).grpc, type(error).__name__
            raise
        except asyncio.CancelledError:
            code, failure = "CANCELLED", RequestCancelled.__name__
            raise
        except Exception as error:
            code, failure = "INTERNAL", type(error).__name__
            log.exception("internal error", request_id=request_id, path=path)
            raise RuntimeFailed(f"internal error; request id {request_id}") from error
        finally:
            self._entered(-1)
            self._record("grpc", "ModelInfer", path, model, code, started, request_id,
                         response, len(sent), sent_back, failure)  # fmt: skip

    async def _v2(self, call: Call) -> tuple[InferResponse, Answer]:
        handle = self.registry.ready(call.model, call.version)
        body, strict = await self._body(call), self.settings.strict_json
        length = call.headers.get(v2_json.HEADER_LENGTH)
        request, wanted = await self._off_loop(len(body), v2_json.decode, call.model, body, length, strict)
        request.timeout = least(request.timeout, _header_timeout(call.headers))
        request.nbytes = len(body)
        response = await handle.infer(request)
        text, json_length = await self._off_loop(response.nbytes, v2_json.encode, response, wanted, strict)
        if json_length is None:
            return response, Answer(200, JSON, text)
        return response, Answer(200, [*_BINARY, (v2_json.HEADER_LENGTH.encode(), str(json_length).encode())], text)

    async def _v1(self, call: Call) -> tuple[InferResponse, Answer]:
        handle = self.registry.ready(call.model, call.version)
        body, strict = await self._body(call), self.settings.strict_json
        request, form = await self._off_loop(len(body), v1.decode, call.model, body, handle.signature_for, strict)
        request.timeout, request.nbytes = _header_timeout(call.headers), len(body)
        response = await handle.infer(request)
        return response, Answer(200, JSON, await self._off_loop(response.nbytes, v1.encode, response, form, strict))

    def _off_loop(self, size: int, work: Any, *args: Any) -> Awaitable[Any]:
        """The work on that many bytes done: here if it is little, else in a thread."""
        return aside(self.executor, size, work, *args)

    async def _body(self, call: Call) -> bytes:
        used = call.headers.get("content-encoding")
        if not used:
            return call.body
        largest = len(call.body) * encoding.MOST_EXPANSION
        plain: bytes = await self._off_loop(largest, encoding.decompress, call.body, used, self.settings.max_body_bytes)
        return plain

    async def _encoded(self, call: Call, answer: Answer) -> Answer:
        wanted = call.headers.get("accept-encoding")
        if not wanted or len(answer.body) < encoding.SMALLEST:
            return answer
        chosen = encoding.accepted(wanted)
        if not chosen:
            return answer
        headers = [*answer.headers, (b"content-encoding", chosen.encode()), (b"vary", b"accept-encoding")]
        return Answer(answer.status, headers, await self._off_loop(len(answer.body), encoding.compress, answer.body, chosen))

    def _report(self, error: ServingError, request_id: str) -> None:
        """The traceback of a model's own failure, for whoever runs the model; the caller gets one line."""
        if isinstance(error, RuntimeFailed):
            cause = error.__cause__ or error
            log.error("the model failed", request_id=request_id, exc_info=cause)

    def _record(
        self, protocol: str, method: str, path: str, model: str, code: int | str, started: float, request_id: str,
        response: InferResponse | None, bytes_in: int, bytes_out: int, failure: str,
    ) -> None:  # fmt: skip
        seconds = time.perf_counter() - started
        if response is not None:
            record = Record(protocol, method, path, response.model, response.version, code, seconds, request_id,
                            response.rows, bytes_in, bytes_out, response.timing)  # fmt: skip
        else:
            known = model if model in self.registry.names() else "unknown"
            record = Record(protocol, method, path, known, "", code, seconds, request_id, 0, bytes_in, bytes_out, error=failure)
        self.metrics.observe(record)
        if self._log is not None:
            self._log.write(record)


def error_answer(error: ServingError) -> Answer:
    status = status_of(error).http
    headers = list(JSON)
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    if status == 415:
        headers.append((b"accept-encoding", encoding.SUPPORTED.encode()))
    return Answer(status, headers, error_body(error_text(error)))


def _identified(answer: Answer, request_id: str) -> Answer:
    header = (b"x-request-id", request_id.encode("latin-1", "replace"))
    return Answer(answer.status, [*answer.headers, header], answer.body)


def least(*timeouts: float | None) -> float | None:
    """The shortest of several timeouts in seconds, None standing for "none"."""
    return min((t for t in timeouts if t is not None), default=None)


def _header_timeout(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `X-Request-Timeout` (seconds) or from what Envoy tells its upstreams (milliseconds)."""
    for name, unit in (("x-request-timeout", 1.0), ("x-envoy-expected-rq-timeout-ms", 1e-3)):
        text = headers.get(name)
        if text is not None:
            try:
                seconds = float(text) * unit
            except ValueError:
                seconds = -1.0
            if not 0 < seconds < 1e9:
                raise InvalidRequest(f"header {name} is {text[:40]!r}, expected a number greater than 0")
            return seconds
    return None


def too_large(size: int, limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is {size} bytes, the limit is {limit} (--max_body_bytes)")
