"""The scaler's shell: once a second it reads what each predictor counted, and asks `autoscaler` how many there should be."""

import http.client
import logging
import os
import re
import threading
import time
from dataclasses import dataclass, field

from deployer.autoscaler import Metric, Observation, Sample, Settings, State, decide
from deployer.local.replica import Replica
from deployer.local.replicas import Replicas
from deployer.plan import RevisionPlan

log = logging.getLogger(__name__)
EVERY = 1.0
# One busy second is one core's, or one second of the model's, whichever is more: tiny models cost less than their HTTP.
SLOTS = 1.0
# Knative's meaning of the metrics that name a figure of their own, and its defaults.
_METRICS = {"concurrency": (Metric.CONCURRENCY, 100.0), "rps": (Metric.RPS, 200.0)}
_LINE = re.compile(r"^([a-z_]+)(?:\{[^}]*\})? ([-+0-9.eE]+)$", re.MULTILINE)
_ARRIVED, _BUSY, _CPU = "serve_request_duration_seconds_count", "serve_compute_duration_seconds_sum", "process_cpu_seconds_total"
_IN_FLIGHT, _WAITING = "serve_requests_in_flight", "serve_queue_rows"


@dataclass
class _Known:
    """What is remembered of one revision between two looks."""

    state: State = field(default_factory=State)
    # by pid: what a process counted by when
    counts: dict[int, dict[str, float]] = field(default_factory=dict)
    at: float = 0.0


def settings(revision: RevisionPlan, cores: int) -> Settings:
    metric, target = _METRICS.get(revision.scale_metric, (Metric.WORK, SLOTS))
    if revision.scale_target and metric is not Metric.WORK:
        target = float(revision.scale_target)
    low, high = revision.min_replicas, revision.max_replicas
    return Settings(low, high, metric=metric, target=target, max_starting=max(1, cores), request_timeout=revision.timeout)


def totals(page: str) -> dict[str, float]:
    """The sums over all labels of a Prometheus page's series."""
    sums: dict[str, float] = {}
    for name, value in _LINE.findall(page):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def sample(before: dict[int, dict[str, float]], now: dict[int, dict[str, float]], seconds: float) -> Sample | None:
    """What all replicas counted since `before`; one that is new since then has nothing to compare with and is left out."""
    both = [pid for pid in now if pid in before]
    if not both or seconds <= 0:
        return None

    def grown(name: str) -> float:
        return sum(max(0.0, now[pid].get(name, 0.0) - before[pid].get(name, 0.0)) for pid in both)

    finished, in_flight = grown(_ARRIVED), sum(now[pid].get(_IN_FLIGHT, 0.0) for pid in both)
    arrivals = max(0.0, finished + in_flight - sum(before[pid].get(_IN_FLIGHT, 0.0) for pid in both))
    waiting = sum(now[pid].get(_WAITING, 0.0) for pid in both)
    return Sample(seconds, arrivals, finished, max(grown(_BUSY), grown(_CPU)), waiting, in_flight)


class Scaler:
    """`start` and `close` are its life; `watch` says which revisions there are and between which numbers."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._known: dict[tuple[str, str], _Known] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scaler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(EVERY):
            scaled = self._replicas.scaled()
            self._known = {key: known for key, known in self._known.items() if key in scaled}
            for key, revision in scaled.items():
                try:
                    self._look(key, revision, time.monotonic())
                except Exception as error:
                    log.warning("%s is not scaled: %s: %s", revision.name, type(error).__name__, error)

    def _look(self, key: tuple[str, str], revision: RevisionPlan, now: float) -> None:
        known = self._known.setdefault(key, _Known())
        mine = [r for r in self._replicas.of(key[0]) if r.revision == revision.name and not r.leaving]
        ready = [r for r in mine if r.is_ready and r.process]
        counts = {r.process.pid: page for r in ready if r.process and (page := _counts(r))}
        found = sample(known.counts, counts, now - known.at) if known.at else None
        seen = Observation(len(ready), len(mine) - len(ready), found, len(counts))
        decision, known.state = decide(settings(revision, os.cpu_count() or 1), known.state, seen, now)
        known.counts, known.at = counts, now
        if decision.replicas != len(mine):
            log.info("%s: %d replicas, there are %d: %s", revision.name, decision.replicas, len(mine), decision.why)
            self._replicas.want(key[0], revision.name, decision.replicas)


def _counts(replica: Replica) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", replica.http_port, timeout=0.5)
    try:
        connection.request("GET", "/metrics")
        return totals(connection.getresponse().read().decode())
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
