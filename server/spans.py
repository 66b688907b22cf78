"""OpenTelemetry spans of requests that were answered: made from their records, some at a time.  The only file that knows it.

A request pays for nothing but what its record takes to put away.  Whether it has spans is its caller's decision where it
comes with a trace (W3C Trace Context), and `--trace_sample`'s where it begins one.  Where spans go, and how, is said by the
standard's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_… and so on).
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from server.identity import Trace, TracedId, trace_of
from server.log import log as events
from server.telemetry import Record, Recorder

PRODUCT = "serveplane"
# Requests whose spans are made at one time: a third of a millisecond's work, so that others do not wait for it.
AT_A_TIME = 8
# Codes of gRPC's that are a server's fault, by OpenTelemetry's conventions.
_FAULTS = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))
_CHOSEN = re.compile(r"/(models|versions|labels)/.*(?=/[a-z]+$|:[a-zA-Z]+$)")
_NS = 1e9
# Between two lines about spans that could not be sent.
COMPLAIN_SECONDS = 60.0
_QUERY = re.compile(r"\?[^\s()'\"]*")

Attributes = dict[str, str | int | float]


class Ended(NamedTuple):
    """A record, its trace, and when it was written: `at` in seconds of the epoch, `clock` on `time.monotonic`'s clock."""

    at: float
    clock: float
    record: Record
    trace: Trace


class Tracing:
    """Takes every record, makes spans of those whose trace is sampled, and hands all to the next."""

    def __init__(
        self, processor: SpanProcessor, share: float, version: str, log: Recorder | None, flush_seconds: float = 0.25
    ) -> None:
        self._processor, self._share, self._log = processor, share, log
        self._resource, self._scope = resource(version), InstrumentationScope(PRODUCT, version)
        self._ended: list[Ended] = []
        self._flush_seconds = flush_seconds
        self._timer: asyncio.TimerHandle | None = None

    def write(self, record: Record) -> None:
        trace = trace_of(record.request_id)
        if trace is None and random.random() < self._share:
            trace = Trace(f"{_number(128):032x}", "", True)
            record = record._replace(request_id=TracedId(record.request_id, trace))
        if trace is not None and trace.sampled:
            self._ended.append(Ended(time.time(), time.monotonic(), record, trace))
            if len(self._ended) >= AT_A_TIME:
                self._make()
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._flush_seconds, self._make)
        if self._log is not None:
            self._log.write(record)

    def flush(self) -> None:
        self._make()
        if self._log is not None:
            self._log.flush()

    def close(self) -> None:
        """Send what there is; takes as long as the exporter does, so it is called in a thread."""
        self._processor.shutdown()

    def _make(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ended, self._ended = self._ended, []
        for one in ended:
            for span in spans_of(one, self._resource, self._scope):
                self._processor.on_end(span)


class _Complaints(logging.Handler):
    """What the library has to complain of, a line a minute: without the queries of URLs, which may be keys."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock, self._next = clock, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + COMPLAIN_SECONDS
            events.warning("spans could not be sent", reason=_QUERY.sub("?…", record.getMessage())[:500])


def begin(share: float, version: str, log: Recorder | None) -> Tracing:
    """Tracing as the environment says: OTLP over HTTP, in batches that a thread sends."""
    library = logging.getLogger("opentelemetry")
    library.propagate = False
    library.addHandler(_Complaints())
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()), share, version, log)


def resource(version: str) -> Resource:
    """Who we are, where OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES do not say it."""
    found = Resource.create()
    ours = {SERVICE_VERSION: version}
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        ours[SERVICE_NAME] = PRODUCT
    return found.merge(
        Resource({key: value for key, value in ours.items() if key == SERVICE_NAME or key not in found.attributes})
    )


def spans_of(ended: Ended, whose: Resource, scope: InstrumentationScope) -> list[ReadableSpan]:
    """The request's span, and where a model ran it, one for its time in the queue and one for the batch it ran in."""
    at, clock, record, trace = ended
    trace_id, state = int(trace.trace_id, 16), TraceState.from_header([trace.state] if trace.state else [])
    flags = TraceFlags(TraceFlags.SAMPLED)
    parent = SpanContext(trace_id, int(trace.parent, 16), True, flags, state) if trace.parent else None

    def span(
        name: str, kind: SpanKind, within: SpanContext | None, began: float, seconds: float,
        attributes: Mapping[str, str | int | float], status: StatusCode = StatusCode.UNSET,
    ) -> ReadableSpan:  # fmt: skip
        context = SpanContext(trace_id, _number(64), False, flags, state)
        begins, ends = int(began * _NS), int((began + seconds) * _NS)
        return ReadableSpan(
            name, context, within, whose, attributes, kind=kind, status=Status(status),
            start_time=begins, end_time=ends, instrumentation_scope=scope,
        )  # fmt: skip

    name, attributes, failed = described(record)
    status = StatusCode.ERROR if failed else StatusCode.UNSET
    request = span(name, SpanKind.SERVER, parent, at - record.seconds, record.seconds, attributes, status)
    timing = record.timing
    if not timing.batch_rows:
        return [request]
    ran = at - (clock - timing.began)
    queue = span("queue", SpanKind.INTERNAL, request.context, ran - timing.queue, timing.queue, {})
    rows: Attributes = {"serveplane.batch.rows": timing.batch_rows}
    return [request, queue, span("predict", SpanKind.INTERNAL, request.context, ran, timing.compute, rows)]


def described(record: Record) -> tuple[str, Attributes, bool]:
    """A request's span by OpenTelemetry's conventions: its name, its attributes, and whether it counts as failed there.

    Nothing of headers, query or body is among them.
    """
    attributes: Attributes = {
        "serveplane.model.name": record.model,
        "serveplane.request.id": str(record.request_id)[:256],
    }
    if record.version:
        attributes["serveplane.model.version"] = record.version
    if record.rows:
        attributes["serveplane.rows"] = record.rows
    if isinstance(record.code, int):
        route = _CHOSEN.sub(_placeholders, record.path[:1024])
        name, failed = f"POST {route}", record.code >= 500
        attributes |= {
            "http.request.method": "POST",
            "http.route": route,
            "http.response.status_code": record.code,
            "url.path": record.path[:1024],
            "url.scheme": "http",
            "http.request.body.size": record.bytes_in,
            "http.response.body.size": record.bytes_out,
        }
    else:
        name, failed = record.path.strip("/"), record.code in _FAULTS
        attributes |= {"rpc.system.name": "grpc", "rpc.method": name, "rpc.response.status_code": record.code}
    if failed:
        attributes["error.type"] = record.error or str(record.code)
    return name, attributes, failed


def _placeholders(chosen: re.Match[str]) -> str:
    """The route of a path: what clients choose in it by its kind."""
    kinds = [kind for kind in ("models", "versions", "labels") if f"/{kind}/" in chosen[0]]
    return "".join(f"/{kind}/{{{kind.removesuffix('s')}}}" for kind in kinds)


def _number(bits: int) -> int:
    """A number that is an id: any but 0."""
    return random.getrandbits(bits) or 1
