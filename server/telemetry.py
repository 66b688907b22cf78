"""What is seen of a running predictor: metric names and the access log.  All names are in this file.

Labels are bounded: a model that is not loaded is "unknown", whatever a URL says.
"""

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from server.aliases import aliases
from server.exposition import Page, build, processes, siblings, text
from server.identity import trace_of
from server.log import Sink, defused, log, timestamp
from server.tensors import Timing

# How the gauges of several living processes become one.
Over = Literal["livesum", "livemax"]
# seconds: 0.5 ms, 1 ms, … 65 s
SECONDS = [0.0005 * 2**k for k in range(18)]
# what a request consists of is shorter: 0.1 ms, 0.2 ms, … 52 s
PART_SECONDS = [0.0001 * 2**k for k in range(20)]
ROWS = [2**k for k in range(13)]
# Requests whose metrics and log lines are made at one time: some tenths of a millisecond's work.
AT_A_TIME = 64


class Record(NamedTuple):
    """One answered request, as the access log and the request metrics see it.  `seconds` from first byte to answer.

    What the metrics are labelled with comes first, what a log line repeats of others after it.
    """

    model: str
    version: str
    protocol: str
    method: str
    code: int | str
    path: str
    seconds: float
    request_id: str = ""
    rows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    timing: Timing = Timing()
    error: str = ""


class Tally:
    """One labelled histogram, counted here and handed to the library when somebody looks: a tenth of what its own cost."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        self._child, self._bounds = child, bounds
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def total(self) -> tuple[int, float]:
        """How many values there were, and their sum."""
        buckets = sum(bucket.get() for bucket in self._child._buckets)
        return int(buckets) + sum(self._counts), self._child._sum.get() + self._sum

    def hand_over(self) -> None:
        child = self._child
        for bucket, count in zip(child._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        child._sum.inc(self._sum)
        self._counts, self._sum = [0] * len(self._counts), 0.0


class AtOnce(Tally):
    """The same where several processes share one page, and each has to find what the others have counted."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        super().observe(value)
        self.hand_over()


class Traffic:
    """Rows, bytes in and out and compute time of one model version's requests; handed over as a `Tally` is."""

    __slots__ = ("_counters", "compute", "received", "rows", "sent")

    def __init__(self, *counters: Counter) -> None:
        self._counters = counters
        self.rows = self.received = self.sent = 0
        self.compute = 0.0

    def hand_over(self) -> None:
        for counter, more in zip(self._counters, (self.rows, self.received, self.sent, self.compute), strict=True):
            if more:
                counter.inc(more)
        self.rows = self.received = self.sent = 0
        self.compute = 0.0


class Metrics:
    """The process's metrics, in a registry of their own.

    With `shared`, several processes write into one folder (the library's multi-process mode, which `__main__` turns on
    before the first import) and each one's page is the page of all.  `compat` names the servers under whose names the same
    counts are on the page too (see `aliases`), `version` is ours.
    """

    def __init__(self, shared: bool = False, compat: Collection[str] = (), version: str = "") -> None:
        self.shared, self.compat = shared, compat
        self._build = build(version)
        self.registry = registry = CollectorRegistry()
        if not shared:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
        of_model = ("model", "version")

        def histogram(name: str, text: str, labels: Sequence[str] = of_model, buckets: Sequence[float] = SECONDS) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels or of_model, registry=registry)

        def gauge(name: str, text: str, labels: Sequence[str], over: Over) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=over)

        self._duration = histogram(
            "serve_request_duration_seconds",
            "From a request's first byte to its answer",
            (*of_model, "protocol", "method", "code"),
        )
        self._of_traffic = (
            counter("serve_request_rows", "Rows of requests that were answered"),
            counter("serve_request_bytes", "Bytes of request bodies"),
            counter("serve_response_bytes", "Bytes of answers"),
            counter("serve_request_compute_seconds", "Time the model took for the batches of requests, for each request anew"),
        )
        self._errors = counter("serve_request_errors", "Requests that failed", *of_model, "protocol", "reason")
        self.queue = histogram("serve_queue_duration_seconds", "Time a request waited for its batch", buckets=PART_SECONDS)
        self.compute = histogram("serve_compute_duration_seconds", "Time the model took for a batch", buckets=PART_SECONDS)
        self.batch_rows = histogram("serve_batch_rows", "Rows per batch", buckets=ROWS)
        self.in_flight = gauge("serve_requests_in_flight", "Requests received and not yet answered", (), "livesum")
        self.queue_rows = gauge("serve_queue_rows", "Rows that wait", of_model, "livesum")
        self.rejected = counter("serve_rejected", "Requests not run", *of_model, "reason")
        self.fallbacks = counter("serve_batch_fallback", "Batches that failed and were run again in parts")
        states = (*of_model, "state")
        self.state = gauge("serve_model_state", "1 for the state that a model version is in", states, "livemax")
        self.load_seconds = gauge("serve_model_load_seconds", "Seconds from opening a model to ready", of_model, "livemax")
        self.load_failures = counter("serve_model_load_failures", "Models that could not be loaded", "model")
        self.memory = gauge("serve_model_memory_bytes", "What loading added to resident memory", of_model, "livesum")
        self.loop_lag = gauge("serve_event_loop_lag_seconds", "How late the event loop last woke up", (), "livemax")
        self._of_version = (
            self._duration, *self._of_traffic, self._errors, self.queue, self.compute, self.batch_rows, self.queue_rows,
            self.rejected, self.fallbacks, self.state, self.load_seconds, self.memory,
        )  # fmt: skip
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        # seen, and not yet counted
        self._records: list[Record] = []
        # what is counted here and not yet there
        self._pending: list[Tally | Traffic] = []
        self._kinds: dict[tuple[str | int, ...], tuple[Tally, Traffic]] = {}
        self._traffic: dict[tuple[str, str], Traffic] = {}

    def tally(self, child: Histogram, bounds: Sequence[float] = SECONDS) -> Tally:
        """A labelled histogram to observe with."""
        tally = AtOnce(child, bounds) if self.shared else Tally(child, bounds)
        self._pending.append(tally)
        return tally

    def observe(self, record: Record) -> None:
        """Counted some at a time, which costs half of what it does one by one between other work."""
        self._records.append(record)
        if len(self._records) >= AT_A_TIME or self.shared:
            self._count()

    def _count(self) -> None:
        for record in self._records:
            kind = self._kinds.get(record[:5])
            duration, traffic = self._begin(record) if kind is None else kind
            duration.observe(record[6])
            traffic.rows += record[8]
            traffic.received += record[9]
            traffic.sent += record[10]
            traffic.compute += record[11][1]
            if record[12]:
                self._errors.labels(*record[:3], record[12]).inc()
            if self.shared:
                traffic.hand_over()
        self._records.clear()

    def requests(self, model: str, version: str) -> dict[int | str, tuple[int, float]]:
        """Answered requests of a model version by status: how many, and their seconds; as far as this process answered them."""
        self._count()
        found: dict[int | str, tuple[int, float]] = {}
        for (name, number, _, _, code), (duration, _) in self._kinds.items():
            if (name, number) == (model, version):
                count, seconds = duration.total()
                before = found.get(code, (0, 0.0))
                found[code] = before[0] + count, before[1] + seconds
        return found

    def _begin(self, record: Record) -> tuple[Tally, Traffic]:
        """Where a kind of request is counted that is the first of its kind."""
        of, key = (record.model, record.version), record[:5]
        traffic = self._traffic.get(of)
        if traffic is None:
            traffic = self._traffic[of] = Traffic(*[counter.labels(*of) for counter in self._of_traffic])
            self._pending.append(traffic)
        kind = self._kinds[key] = self.tally(self._duration.labels(*key)), traffic
        return kind

    def of_model(self, model: str, version: str) -> "ModelMetrics":
        """The same for one version each time, so that what is loaded again goes on counting."""
        found = self._models.get((model, version))
        if found is None:
            found = self._models[model, version] = ModelMetrics(self, model, version)
        return found

    def forget(self, model: str, version: str) -> None:
        """Have no samples any more of a version that has gone: others come after it, for as long as the process lives."""
        self._count()
        of = (model, version)
        gone: list[Tally | Traffic] = list(self._models.pop(of).tallies) if of in self._models else []
        gone += [self._kinds.pop(key)[0] for key in list(self._kinds) if key[:2] == of]
        if of in self._traffic:
            gone.append(self._traffic.pop(of))
        self._pending = [one for one in self._pending if one not in gone]
        if not self.shared:  # the library can't in the files of several processes
            for metric in self._of_version:
                metric.remove_by_labels({"model": model, "version": version})

    def page(self, in_flight: int) -> tuple[bytes, str]:
        """Prometheus' text page and its content type, with so many requests received and not yet answered."""
        self._count()
        for pending in self._pending:
            pending.hand_over()
        self.in_flight.set(in_flight)
        families = [*(self._of_all() if self.shared else self.registry.collect()), self._build]
        return Page(families).text() + text(aliases(families, self.compat)), CONTENT_TYPE_LATEST

    def _of_all(self) -> Iterable[Metric]:
        """What all processes have counted, and what they use."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return [*registry.collect(), *processes(siblings(os.environ["PROMETHEUS_MULTIPROC_DIR"]))]


class ModelMetrics:
    """One model version's metrics with their labels bound; the batcher's observer."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        labels = self.labels = (model, version)
        self._queue = metrics.tally(metrics.queue.labels(*labels), PART_SECONDS)
        self._compute = metrics.tally(metrics.compute.labels(*labels), PART_SECONDS)
        self._rows = metrics.tally(metrics.batch_rows.labels(*labels), ROWS)
        self.tallies = self._queue, self._compute, self._rows
        self.waited, self._waiting = self._queue.observe, metrics.queue_rows.labels(*labels)
        self._fallbacks, self._rejected = metrics.fallbacks.labels(*labels), metrics.rejected
        self._state = metrics.state
        self.load_seconds, self.memory = metrics.load_seconds.labels(*labels), metrics.memory.labels(*labels)

    def batch(self, rows: int, seconds: float) -> None:
        self._compute.observe(seconds)
        self._rows.observe(rows)

    def fallback(self) -> None:
        self._fallbacks.inc()

    def rejected(self, reason: str) -> None:
        self._rejected.labels(*self.labels, reason).inc()

    def queued(self, rows: int) -> None:
        self._waiting.set(rows)

    def alone(self, why: str) -> None:
        log.warning("requests of this model are no longer joined", model=self.labels[0], version=self.labels[1], reason=why)

    @property
    def queue_seconds(self) -> float:
        """What its requests have waited, together."""
        return self._queue.total()[1]

    @property
    def memory_bytes(self) -> int:
        """What loading added to resident memory."""
        return int(self.memory._value.get())

    def entered(self, state: str, states: tuple[str, ...]) -> None:
        for one in states:
            self._state.labels(*self.labels, one).set(one == state)


class Recorder(Protocol):
    """Who is told of each request that has ended, in the event loop's thread."""

    def write(self, record: Record) -> None: ...

    def flush(self) -> None: ...


class AccessLog:
    """A line per request, collected and given to the log a few times a second.

    Of the requests that were answered only the share `sample` has one, evenly spread.
    """

    def __init__(self, sink: Sink, json: bool, sample: float = 1.0, flush_seconds: float = 0.25) -> None:
        self._sample, self._due = sample, 0.0
        self._sink, self._line, self._flush_seconds = sink, json_line if json else text_line, flush_seconds
        self._records: list[tuple[float, Record]] = []
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(self, record: Record) -> None:
        if self._sample < 1.0 and not record.error:
            self._due += self._sample
            if self._due < 1.0:
                return
            self._due -= 1.0
        self._records.append((time.time(), record))
        if len(self._records) >= AT_A_TIME:
            self._write_down()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_seconds, self.flush)

    def _write_down(self) -> None:
        line = self._line
        self._lines += [line(at, record) for at, record in self._records]
        self._records.clear()

    def flush(self) -> None:
        self._write_down()
        lines, self._lines, self._timer = self._lines, [], None
        if lines:
            self._sink.write(b"".join(lines))


def json_line(at: float, record: Record) -> bytes:
    """A line for a request that was answered `at` that time, in seconds of the epoch.

    By a template, since most of a line is the same each time.
    """
    *_, seconds, request_id, rows, bytes_in, bytes_out, (queue, compute, batch_rows, _), error = record
    trace = trace_of(request_id)
    traced = b',"trace_id":"%b"' % trace.trace_id.encode() if trace is not None else b""
    failed = b',"error":' + orjson.dumps(error) if error else b""
    return _LINE % (timestamp(at).encode(), _said(record[:6]), seconds * 1e3, queue * 1e3, compute * 1e3, batch_rows,
                    rows, bytes_in, bytes_out, orjson.dumps(request_id[:256]), traced, failed)  # fmt: skip


_LINE = (
    b'{"timestamp":"%b","event":"request",%b,"ms":%.3f,"queue_ms":%.3f,"compute_ms":%.3f,"batch_rows":%d,'
    b'"rows":%d,"bytes_in":%d,"bytes_out":%d,"request_id":%b%b%b}\n'
)


@lru_cache(maxsize=1024)
def _said(record: tuple[Any, ...]) -> bytes:
    """What a request asked for and got, as members of a JSON object; from a Record's first six fields."""
    model, version, protocol, method, code, path = record
    members = {"protocol": protocol, "method": method, "path": path[:1024], "model": model, "version": version, "code": code}
    return orjson.dumps(members)[1:-1]


def text_line(at: float, record: Record) -> bytes:
    t, trace = record.timing, trace_of(record.request_id)
    clock = time.strftime("%H:%M:%S", time.localtime(at))
    parts = [
        f"{clock}  {record.code}  {record.seconds * 1e3:8.2f} ms  {record.protocol} {record.path}",
        f"model {record.model}{record.version and '/'}{record.version}",
        f"queue {t.queue * 1e3:.2f}  compute {t.compute * 1e3:.2f}  batch {t.batch_rows}" if t.batch_rows else "",
        f"rows {record.rows}  bytes {record.bytes_in} {record.bytes_out}",
        f"id {record.request_id[:256]}" if record.request_id else "",
        f"trace {trace.trace_id}" if trace is not None else "",
        record.error,
    ]
    return defused("  ".join(filter(None, parts))).encode() + b"\n"
