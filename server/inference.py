"""A wire call from bytes to bytes: decode, find the model, infer, encode.  Used by every edge, knows no transport.

Every call ends in exactly one `Record` (metrics and access log), whether it was answered, refused or abandoned.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Awaitable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple

import orjson

from server import plans
from server.batcher import IN_THREAD, Job, Result, aside
from server.errors import InvalidRequest, RequestCancelled, RequestTooLarge, RuntimeFailed, ServingError
from server.identity import identified
from server.log import log
from server.models import ModelHandle, Registry
from server.plans import Kept, Parts, Plan
from server.protocols import encoding, raw_request, tfs, v1, v2_grpc, v2_json
from server.protocols.status import status_of
from server.settings import Settings
from server.telemetry import Metrics, Record, Recorder
from server.tensors import Array, InferRequest, InferResponse, Timing, made

# Errors quote what they were sent, which may be megabytes.
LONGEST_ERROR = 2000

Headers = list[tuple[bytes, bytes]]
# What a request's numbers stand behind.
_V1_KEY, _V2_KEY = b'"instances":', b'"data":'
# The version that ran a call, its rows, and where the time went.
Ran = tuple[ModelHandle, int, Timing]
JSON: Headers = [(b"content-type", b"application/json")]
_BINARY: Headers = [(b"content-type", b"application/octet-stream")]


class Answer(NamedTuple):
    """An HTTP answer, but for the connection's own headers."""

    status: int
    headers: Headers
    body: bytes


class Asked(NamedTuple):
    """What the head of an inference call over HTTP says: the same for many calls, so it is read once and kept.

    `timeout` in seconds, None for none.  `wrong` is what is the matter with the head, where that is so.
    """

    protocol: str
    model: str
    version: str
    path: str
    request_id: str = ""
    timeout: float | None = None
    encoding: str = ""
    accepts: str = ""
    # the bytes of a body's JSON, where tensors follow it
    json_length: str | None = None
    wrong: ServingError | None = None

    @classmethod
    def of(cls, target: tuple[str, str, str], path: str, headers: Mapping[str, str]) -> "Asked":
        """`target` is (protocol, model, version); `headers` have lower-case names."""
        timeout, wrong = None, None
        try:
            timeout = _header_timeout(headers)
        except InvalidRequest as error:
            wrong = error
        get = headers.get
        return cls(
            *target,
            path,
            identified(get("x-request-id", ""), get("traceparent", ""), get("tracestate", "")),
            timeout,
            get("content-encoding", ""),
            get("accept-encoding", ""),
            get(v2_json.HEADER_LENGTH),
            wrong,
        )


class Call:
    """One inference call over HTTP; `started` is on `time.perf_counter`'s clock."""

    __slots__ = ("asked", "body", "request_id", "started")

    def __init__(self, asked: Asked, request_id: str = "") -> None:
        self.asked, self.request_id = asked, request_id or asked.request_id
        self.body: bytes = b""
        self.started = time.perf_counter()


class Entry:
    """What becomes known of a call while it runs, for its record."""

    __slots__ = ("bytes_in", "bytes_out", "model", "ran", "request_id")

    def __init__(self, request_id: str, model: str) -> None:
        self.request_id, self.model = request_id, model
        self.bytes_in = self.bytes_out = 0
        self.ran: Ran | None = None


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
        self, registry: Registry, settings: Settings, metrics: Metrics, access_log: Recorder | None, executor: Executor
    ) -> None:
        self.registry, self.settings, self.metrics = registry, settings, metrics
        self._log, self.executor = access_log, executor
        self.in_flight = 0
        self._spans = plans.Spans()
        self._ids = (f"{prefix}-{n}" for prefix in [os.urandom(4).hex()] for n in itertools.count(1))

    def answers_at_once(self, model: str, version: str, nbytes: int) -> bool:
        """Whether a call is answered within a turn or two of the event loop, so that its caller need not be watched."""
        try:
            return nbytes <= IN_THREAD and self.registry.ready(model, version).batcher.inline
        except ServingError:
            return True

    def new_id(self) -> str:
        """An id for a request that came without one."""
        return next(self._ids)

    def _tell_in_flight(self) -> None:
        self.metrics.in_flight.set(self.in_flight)

    async def rest(self, call: Call) -> Answer:
        """The answer to a V1 or V2 call; errors are answers too.  Only cancellation passes through."""
        self.in_flight += 1
        if self.metrics.shared:
            self._tell_in_flight()
        asked = call.asked
        request_id = call.request_id = call.request_id or next(self._ids)
        ran: Ran | None = None
        handle: ModelHandle | None = None
        answer: Answer
        failure = ""
        try:
            if asked.wrong is not None:
                raise asked.wrong
            handle = self.registry.ready(asked.model, asked.version)
            planned = None if asked.encoding else self._planned(asked, handle, call.body)
            if planned is None:
                body = await self.decompressed(call.body, asked.encoding) if asked.encoding else call.body
                job, answer_id, form = await self._job(asked, handle, body)
                response = await handle.infer(job, answer_id)
                encode = self._encode_v2 if asked.protocol == "v2" else self._encode_v1
                answer = await self._off_loop(response.nbytes, encode, response, form)
                ran = handle, job.rows, response.timing
            else:
                # as above, without a coroutine for each step
                job, plan = planned
                result = await handle.batcher.submit(job)
                written = plan.written
                text = None if written is None else written.text(result.outputs)
                if text is None or written is None:
                    answer = await self._off_plan(asked, handle, plan, job, result)
                else:
                    answer = made(Answer, (200, written.extra, text))
                handle.waited(result.timing.queue)
                ran = handle, job.rows, result.timing
            if asked.accepts and len(answer.body) >= encoding.SMALLEST:
                answer = await self._compressed(asked.accepts, answer)
        except ServingError as error:
            self._report(error, request_id)
            failure, answer = type(error).__name__, error_answer(self._worded(asked, error))
        except asyncio.CancelledError:
            failure, answer = RequestCancelled.__name__, Answer(499, JSON, b"")
            raise
        except Exception as error:  # a bug of ours: the caller still gets an answer, and we the traceback
            log.exception("internal error", request_id=request_id, path=asked.path)
            failure, answer = type(error).__name__, Answer(500, JSON, error_body(f"internal error; request id {request_id}"))
        finally:
            self.in_flight -= 1
            if self.metrics.shared:
                self._tell_in_flight()
            self._record(asked.protocol, "infer", asked.path, asked.model, answer.status, call.started, request_id,
                         ran if not failure else _refused_by(handle), len(call.body), len(answer.body), failure)  # fmt: skip
        return answer

    def refused(self, call: Call, error: ServingError) -> Answer:
        """The answer to a call whose body did not come in whole, or was not wanted."""
        call.request_id = call.request_id or next(self._ids)
        asked, answer = call.asked, error_answer(error)
        self._record(asked.protocol, "infer", asked.path, asked.model, answer.status, call.started, call.request_id,
                     None, len(call.body), len(answer.body), type(error).__name__)  # fmt: skip
        return answer

    async def grpc(self, sent: bytes, path: str, timeout: float | None, request_id: str) -> bytes:
        """The ModelInferResponse to a ModelInferRequest, both as bytes.  `timeout` in seconds from now.  Raises ServingError."""
        started = time.perf_counter()
        self.in_flight += 1
        if self.metrics.shared:
            self._tell_in_flight()
        ran: Ran | None = None
        handle: ModelHandle | None = None
        code, failure, model, encoded = "OK", "", "", b""
        small = len(sent) <= IN_THREAD
        try:
            plan = None
            found = self._spans.find(sent) if small else None
            if found is not None:
                model, version, parts = found
                handle = self.registry.ready(model, version)
                plan = Kept.of(handle).grpc.find(parts.frame)
                if plan is not None:
                    job = plan.job(parts.numbers, handle.deadline(least(plan.timeout, timeout)), len(sent))
                    if job is not None and job.rows <= handle.batcher.limits.rows:
                        request_id = request_id or plan.id
                        result = await handle.batcher.submit(job)
                        text = None if plan.written is None else plan.written.text(result.outputs)
                        encoded = text if text is not None else await self._grpc_off_plan(handle, plan, job, result)
                        handle.waited(result.timing.queue)
                        ran = handle, job.rows, result.timing
            if ran is None:
                # the small are not even asked to wait for themselves: that would cost a tenth of their whole call
                message = v2_grpc.parse(sent) if small else await self._off_loop(len(sent), v2_grpc.parse, sent)
                model, request_id = message.model_name, request_id or message.id
                request = v2_grpc.decode(message) if small else await self._off_loop(len(sent), v2_grpc.decode, message)
                own, answer_id = request.timeout, request.id
                request.timeout, request.nbytes = least(own, timeout), len(sent)
                handle = self.registry.ready(request.model, request.version)
                job = await handle.job(request)
                if small:
                    request.timeout = own
                    self._remember(handle, sent, request, job)
                response = await handle.infer(job, answer_id)
                encoded = await self._off_loop(response.nbytes, v2_grpc.encode, response, request.classes)
                ran = handle, job.rows, response.timing
            return encoded
        except ServingError as error:
            error.request_id = request_id = request_id or next(self._ids)
            self._report(error, request_id)
            code, failure = status_of(error).grpc, type(error).__name__
            raise
        except asyncio.CancelledError:
            code, failure = "CANCELLED", RequestCancelled.__name__
            raise
        except Exception as error:
            code, failure = "INTERNAL", type(error).__name__
            request_id = request_id or next(self._ids)
            log.exception("internal error", request_id=request_id, path=path)
            failed = RuntimeFailed(f"internal error; request id {request_id}")
            failed.request_id = request_id
            raise failed from error
        finally:
            self.in_flight -= 1
            if self.metrics.shared:
                self._tell_in_flight()
            self._record("grpc", "ModelInfer", path, model, code, started, request_id,
                         ran if not failure else _refused_by(handle), len(sent), len(encoded), failure)  # fmt: skip

    @contextlib.contextmanager
    def recorded(
        self, protocol: str, method: str, path: str, request_id: str, model: str = "", over_http: bool = False
    ) -> Iterator[Entry]:
        """A call of another kind: counted while the block runs, and one record at its end.  What it raises is a ServingError."""
        started = time.perf_counter()
        entry = Entry(request_id or next(self._ids), model)
        self.in_flight += 1
        if self.metrics.shared:
            self._tell_in_flight()
        code: int | str = 200 if over_http else "OK"
        failure = ""
        try:
            yield entry
        except ServingError as error:
            self._report(error, entry.request_id)
            status = status_of(error)
            code, failure = status.http if over_http else status.grpc, type(error).__name__
            raise
        except asyncio.CancelledError:
            code, failure = 499 if over_http else "CANCELLED", RequestCancelled.__name__
            raise
        except Exception as error:
            code, failure = 500 if over_http else "INTERNAL", type(error).__name__
            log.exception("internal error", request_id=entry.request_id, path=path)
            raise RuntimeFailed(f"internal error; request id {entry.request_id}") from error
        finally:
            self.in_flight -= 1
            if self.metrics.shared:
                self._tell_in_flight()
            self._record(protocol, method, path, entry.model, code, started, entry.request_id,
                         None if failure else entry.ran, entry.bytes_in, entry.bytes_out, failure)  # fmt: skip

    async def _grpc_off_plan(self, handle: ModelHandle, plan: Plan, job: Job, result: Result) -> bytes:
        if not plan.is_learnt:
            plan.learn(
                result.outputs,
                lambda outputs: (v2_grpc.encode(handle.response(job, result._replace(outputs=outputs), plan.id)), None),
            )
        response = handle.response(job, result, plan.id)
        encoded: bytes = await self._off_loop(response.nbytes, v2_grpc.encode, response)
        return encoded

    def _remember(self, handle: ModelHandle, sent: bytes, request: InferRequest, job: Job) -> None:
        """Keep a plan for messages such as this one, where it has one tensor whose bytes are in it as they are."""
        kept = Kept.of(handle).grpc
        parts = plans.message_parts(sent, request)
        if parts is None or request.classes or not kept.wanted(parts.frame):
            return

        def decode(body: bytes) -> tuple[InferRequest, None]:
            return v2_grpc.decode(v2_grpc.parse(body)), None

        plan = plans.plan_of(parts, request, None, job, decode)
        kept.keep(parts.frame, plan)
        if plan is not None:
            self._spans.keep(request, parts)

    def _parts(self, asked: Asked, body: bytes) -> Parts | None:
        if len(body) > IN_THREAD:
            return None
        if asked.protocol == "v1":
            return plans.json_parts(body, _V1_KEY)
        return plans.json_parts(body, _V2_KEY) if asked.json_length is None else plans.binary_parts(body, asked.json_length)

    def _planned(self, asked: Asked, handle: ModelHandle, body: bytes) -> tuple[Job, Plan] | None:
        """The job of a call whose like has been answered before."""
        if len(body) > IN_THREAD:
            return None
        kept: Kept = handle.kept or Kept.of(handle)
        if asked.protocol == "v1" or asked.json_length is None:
            found = kept.v2.find_json(body, _V2_KEY) if asked.protocol == "v2" else kept.v1.find_json(body, _V1_KEY)
            if found is None:
                return None
            plan, numbers = found
        else:
            parts = plans.binary_parts(body, asked.json_length)
            planned = None if parts is None else kept.v2.find(parts.frame)
            if planned is None or parts is None:
                return None
            plan, numbers = planned, parts.numbers
        job = plan.job(numbers, handle.deadline(least(plan.timeout, asked.timeout)), len(body))
        return None if job is None or job.rows > handle.batcher.limits.rows else (job, plan)

    async def _job(self, asked: Asked, handle: ModelHandle, body: bytes) -> tuple[Job, str, Any]:
        """The job of a body, its id, and how its answer is to be written."""
        strict, kept = self.settings.strict_json, Kept.of(handle)
        decode: plans.Decode
        if asked.protocol != "v2":
            plans_here, decode = kept.v1, lambda body: v1.decode(asked.model, body, handle.signature_for, strict)
        elif raw_request.is_raw(asked.json_length):
            plans_here, decode = kept.v2, lambda body: raw_request.decode(asked.model, body, handle.signature)
        else:
            plans_here, decode = kept.v2, lambda body: v2_json.decode(asked.model, body, asked.json_length, strict)
        request, form = await self._off_loop(len(body), decode, body)
        own = request.timeout
        request.timeout, request.nbytes = least(own, asked.timeout), len(body)
        job = await handle.job(request)
        parts = self._parts(asked, body)
        if parts is not None and plans_here.wanted(parts.frame):
            request.timeout = own
            plans_here.keep(parts.frame, plans.plan_of(parts, request, form, job, decode))
        return job, request.id, form

    async def _off_plan(self, asked: Asked, handle: ModelHandle, plan: Plan, job: Job, result: Result) -> Answer:
        """The answer written the ordinary way, and a look at whether the next one can be written by plan."""
        encode = self._encode_v2 if asked.protocol == "v2" else self._encode_v1

        def encoded(outputs: dict[str, Array]) -> tuple[bytes, Headers]:
            answer = encode(handle.response(job, result._replace(outputs=outputs), plan.id), plan.extra)
            return answer.body, answer.headers

        if not plan.is_learnt:
            plan.learn(result.outputs, encoded)
        response = handle.response(job, result, plan.id)
        answer: Answer = await self._off_loop(response.nbytes, encode, response, plan.extra)
        return answer

    def _encode_v2(self, response: InferResponse, wanted: v2_json.Wanted) -> Answer:
        text, json_length = v2_json.encode(response, wanted, self.settings.strict_json)
        if json_length is None:
            return made(Answer, (200, JSON, text))
        return Answer(200, [*_BINARY, (v2_json.HEADER_LENGTH.encode(), str(json_length).encode())], text)

    def _worded(self, asked: Asked, error: ServingError) -> ServingError:
        """V1's clients are TensorFlow Serving's too, and those look for its words."""
        if asked.protocol != "v1":
            return error
        meant = tfs.Asked(asked.model, asked.version, "", "/labels/" in asked.path)
        return tfs.worded(error, meant, asked.model in self.registry.names())

    def _encode_v1(self, response: InferResponse, form: v1.Form) -> Answer:
        return Answer(200, JSON, v1.encode(response, form, self.settings.strict_json))

    def _off_loop(self, size: int, work: Any, *args: Any) -> Awaitable[Any]:
        """The work on that many bytes done: here if it is little, else in a thread."""
        return aside(self.executor, size, work, *args)

    async def decompressed(self, body: bytes, name: str) -> bytes:
        """A body without its Content-Encoding, within the limit of one."""
        largest = len(body) * encoding.MOST_EXPANSION
        plain: bytes = await self._off_loop(largest, encoding.decompress, body, name, self.settings.max_body_bytes)
        return plain

    async def _compressed(self, accepts: str, answer: Answer) -> Answer:
        chosen = encoding.accepted(accepts)
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
        ran: Ran | None, bytes_in: int, bytes_out: int, failure: str,
    ) -> None:  # fmt: skip
        seconds = time.perf_counter() - started
        if ran is not None:
            handle, rows, timing = ran
            record = made(Record, (handle.name, handle.version, protocol, method, code, path, seconds, request_id,
                                   rows, bytes_in, bytes_out, timing, failure))  # fmt: skip
        else:
            known = model if model in self.registry.names() else "unknown"
            record = Record(known, "", protocol, method, code, path, seconds, request_id, 0, bytes_in, bytes_out, error=failure)
        self.metrics.observe(record)
        if self._log is not None:
            self._log.write(record)


def _refused_by(handle: ModelHandle | None) -> Ran | None:
    """What is known of a call that failed once its model was found."""
    return None if handle is None else (handle, 0, Timing())


def error_answer(error: ServingError) -> Answer:
    status = status_of(error).http
    headers = list(JSON)
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    if status == 415:
        headers.append((b"accept-encoding", encoding.SUPPORTED.encode()))
    return Answer(status, headers, error_body(error_text(error)))


def least(one: float | None, other: float | None) -> float | None:
    """The shorter of two timeouts in seconds, None standing for "none"."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


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
