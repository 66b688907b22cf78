"""`--metrics_compat`: our counts under the names, labels and units of Triton, TensorFlow Serving, KServe and MLServer.

Worked out from a page's own families when the page is read, so that dashboards, alerts and autoscaling rules written for those
servers go on working, and requests pay nothing for it.  docs/observability.md has the table, and what has no counterpart.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from prometheus_client.core import Metric

from server.exposition import Family

# The versions of a model without versions: what the others call them.
FIRST_VERSION = "1"
# in a second
_US = 1e6
# The label of requests for models that are not here, which the others do not count.
_UNKNOWN = "unknown"

# Triton's reasons for a failure, by the name of our error; any other is OTHER.
_REASONS = {
    "Overloaded": "REJECTED",
    "DeadlineExceeded": "REJECTED",
    "RequestCancelled": "CANCELED",
    "RuntimeFailed": "BACKEND",
    "ResourceExhausted": "BACKEND",
}
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
# gRPC's names for HTTP's statuses, where TensorFlow Serving has the former for both.
CANONICAL = {
    "200": "OK",
    "400": "INVALID_ARGUMENT",
    "403": "PERMISSION_DENIED",
    "404": "NOT_FOUND",
    "413": "RESOURCE_EXHAUSTED",
    "415": "INVALID_ARGUMENT",
    "429": "RESOURCE_EXHAUSTED",
    "499": "CANCELLED",
    "500": "INTERNAL",
    "501": "UNIMPLEMENTED",
    "503": "UNAVAILABLE",
    "504": "DEADLINE_EXCEEDED",
}
_APIS = {"classify": "Classify", "regress": "Regress", "multiinference": "MultiInference"}

Labels = Mapping[str, str]
# The labels that an alias is counted by.
Key = tuple[str, ...]


class Counted:
    """A page's samples by name."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._samples: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for family in families:
            for sample in family.samples:
                if sample.labels.get("model") != _UNKNOWN:
                    self._samples[sample.name].append((sample.labels, sample.value))

    def of(self, name: str) -> list[tuple[Labels, float]]:
        return self._samples[name]

    def sums(self, name: str, key: Callable[[Labels], Key | None]) -> dict[Key, float]:
        """The samples of that name added up by what `key` makes of their labels; those that it makes None of left out."""
        found: dict[Key, float] = defaultdict(float)
        for labels, value in self._samples[name]:
            of = key(labels)
            if of is not None:
                found[of] += value
        return found


def aliases(families: Iterable[Metric], compat: Collection[str]) -> list[Family]:
    """The families of those servers; `compat` has names from `SERVERS`."""
    wanted = [make for server, make in SERVERS.items() if server in compat]
    counted = Counted(families if wanted else ())
    return [family for make in wanted for family in make(counted)]


def _triton(counted: Counted) -> Iterator[Family]:
    """NVIDIA's names: cumulative microseconds, a counter for each model and version, none of them with `_total`."""
    states = {(labels["model"], labels["version"]) for labels, _ in counted.of("serve_model_state")}

    def version(labels: Labels) -> Key | None:
        of = labels["model"], labels["version"]
        return (of[0], of[1] or FIRST_VERSION) if of in states else None

    def answered(labels: Labels) -> Key | None:
        return version(labels) if _is_ok(labels) else None

    def failed(labels: Labels) -> Key | None:
        of = version(labels)
        return None if of is None else (*of, _REASONS.get(labels["reason"], "OTHER"))

    every = sorted((model, number or FIRST_VERSION) for model, number in states)

    def family(name: str, kind: str, about: str, found: Mapping[Key, float], scale: float = 1) -> Family:
        samples = [(name, {"model": m, "version": v}, found.get((m, v), 0.0) * scale) for m, v in every]
        return Family(name, kind, about, samples)

    requests = "serve_request_duration_seconds"
    yield family(
        "nv_inference_request_success", "counter", "Requests that were answered", counted.sums(f"{requests}_count", answered)
    )
    failures = counted.sums("serve_request_errors_total", failed)
    name = "nv_inference_request_failure"
    samples = [(name, {"model": m, "version": v, "reason": r}, failures.get((m, v, r), 0.0)) for m, v in every for r in REASONS]
    yield Family(name, "counter", "Requests that failed, by reason", samples)
    counts: tuple[tuple[str, str, str, Callable[[Labels], Key | None], float], ...] = (
        ("count", "Rows of requests that were answered", "serve_request_rows_total", version, 1),
        ("exec_count", "Batches that a model ran", "serve_batch_rows_count", version, 1),
        ("request_duration_us", "From first byte to answer, added up", f"{requests}_sum", answered, _US),
        ("queue_duration_us", "Time in the queue, added up", "serve_queue_duration_seconds_sum", version, _US),
        ("compute_infer_duration_us", "Time a model took, for each request", "serve_request_compute_seconds_total", version, _US),
    )
    for name, about, source, key, scale in counts:
        yield family(f"nv_inference_{name}", "counter", about, counted.sums(source, key), scale)
    for name in ("nv_inference_compute_input_duration_us", "nv_inference_compute_output_duration_us"):
        yield family(name, "counter", "Not taken apart here, so always 0", {})
    waiting = counted.sums("serve_queue_rows", version)
    yield family("nv_inference_pending_request_count", "gauge", "Rows that wait in the queue", waiting)


def _tfs(counted: Counted) -> Iterator[Family]:
    """TensorFlow Serving's names, which begin with a colon; microseconds in histograms."""

    def status(labels: Labels) -> Key:
        return labels["model"], CANONICAL.get(labels["code"], labels["code"])

    def call(labels: Labels) -> Key | None:
        if not _is_ok(labels):
            return None
        return labels["model"], _APIS.get(labels["method"].lower(), "Predict"), "GRPC" if labels["code"] == "OK" else "REST"

    def model(labels: Labels) -> Key:
        return (labels["model"],)

    def of_batches(labels: Labels) -> Key:
        return labels["model"], "Predict", "serveplane"

    requests, prefix = "serve_request_duration_seconds", ":tensorflow:serving"
    name = f"{prefix}:request_count"
    counts = counted.sums(f"{requests}_count", status)
    samples = [(name, {"model_name": m, "status": s}, count) for (m, s), count in counts.items()]
    yield Family(name, "counter", "Requests, by what became of them", samples)
    yield _histogram(
        counted, f"{prefix}:request_latency", "Microseconds from first byte to answer",
        requests, call, ("model_name", "API", "entrypoint"), _US,
    )  # fmt: skip
    yield _histogram(
        counted, f"{prefix}:runtime_latency", "Microseconds the model took for a batch",
        "serve_compute_duration_seconds", of_batches, ("model_name", "API", "runtime"), _US,
    )  # fmt: skip
    name = f"{prefix}:request_example_count_total"
    rows = counted.sums("serve_request_rows_total", model)
    yield Family(name, "counter", "Rows of requests that were answered", [(name, {"model": m}, n) for (m,), n in rows.items()])
    yield _histogram(
        counted, f"{prefix}:batching_session:queuing_latency", "Microseconds a request waited for its batch",
        "serve_queue_duration_seconds", model, ("thread_pool_name",), _US,
    )  # fmt: skip


def _kserve(counted: Counted) -> Iterator[Family]:
    """The names of KServe's Python server, and of MLServer, which KServe runs as well."""

    def predicted(labels: Labels) -> Key | None:
        # what the model saw, whether it came to an answer or not
        return (labels["model"],) if _is_ok(labels) or labels["code"] in ("500", "INTERNAL") else None

    def version(labels: Labels) -> Key:
        return labels["model"], labels["version"]

    def answered(labels: Labels) -> Key | None:
        return version(labels) if _is_ok(labels) else None

    requests = "serve_request_duration_seconds"
    about = "From first byte to answer, of requests that a model saw"
    yield _histogram(counted, "request_predict_seconds", about, requests, predicted, ("model_name",))
    of_version = ("model", "version")
    for name, about, source, key in (
        ("model_infer_request_success_total", "Requests that were answered", f"{requests}_count", answered),
        ("model_infer_request_failure_total", "Requests that failed", "serve_request_errors_total", version),
    ):
        found = counted.sums(source, key)
        samples = [(name, dict(zip(of_version, of, strict=True)), count) for of, count in found.items()]
        yield Family(name, "counter", about, samples)
    name = "model_infer_request_duration"
    samples = [
        (f"{name}_{part}", dict(zip(of_version, of, strict=True)), value)
        for part in ("count", "sum")
        for of, value in counted.sums(f"{requests}_{part}", answered).items()
    ]
    yield Family(name, "summary", "Seconds from first byte to answer", samples)


SERVERS: dict[str, Callable[[Counted], Iterator[Family]]] = {"triton": _triton, "tfs": _tfs, "kserve": _kserve}


def _is_ok(labels: Labels) -> bool:
    return labels["code"] in ("200", "OK")


def _histogram(
    counted: Counted, name: str, about: str, source: str, key: Callable[[Labels], Key | None], names: Key, scale: float = 1
) -> Family:  # fmt: skip
    """One of our histograms of seconds under another name: labels as `key` and `names` say, values times `scale`."""

    def bound(labels: Labels) -> Key | None:
        of = key(labels)
        return None if of is None else (*of, labels["le"])

    samples: list[tuple[str, Labels, float]] = []
    for (*of, le), count in counted.sums(f"{source}_bucket", bound).items():
        edge = le if le == "+Inf" else f"{float(le) * scale:.10g}"
        samples.append((f"{name}_bucket", {**dict(zip(names, of, strict=True)), "le": edge}, count))
    for part, factor in (("count", 1.0), ("sum", scale)):
        for whole, value in counted.sums(f"{source}_{part}", key).items():
            samples.append((f"{name}_{part}", dict(zip(names, whole, strict=True)), value * factor))
    return Family(name, "histogram", about, samples)
