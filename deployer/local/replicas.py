"""All predictor processes of this machine: kept at their numbers, started again with back-off, ended gently.

One thread (`run`) looks at every process; it probes those that start, notices those that end, and tells the controller
which service has changed.  Numbers and templates come from plans (`scale`, `retire`).
"""

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer import names
from deployer.local import process, state
from deployer.local.replica import Ports, Replica, answers_ready, last_words, rotate, spawn, strays
from deployer.observed import Failure
from deployer.plan import RevisionPlan
from deployer.workqueue import pause

log = logging.getLogger(__name__)
# Seconds: what a model may take to load, and between two looks.
LOAD_SECONDS, BUSY_TICK, IDLE_TICK, TEND_EVERY = 900.0, 0.05, 0.25, 2.0
# Seconds before a process that ended is started again: at once the first time after it was ready, then doubling.
FIRST_PAUSE, LONGEST_PAUSE, SETTLED = 1.0, 300.0, 60.0


@dataclass(frozen=True)
class Job:
    """What a revision's replicas run."""

    template: dict[str, Any]
    model: str
    plan: RevisionPlan


class Replicas:
    """`start` and `close` are its life; everything else may be called from any thread."""

    def __init__(self, home: state.Home, ports: Ports) -> None:
        self._home, self._ports = home, ports
        self._lock = threading.RLock()
        self._replicas: list[Replica] = []
        self._jobs: dict[tuple[str, str], Job] = {}
        self._failures: dict[tuple[str, str], Failure] = {}
        self._wanted: dict[tuple[str, str], int] = {}
        self._tended: dict[Path, float] = {}
        self._changed: Callable[[str], None] = lambda key: None
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="replicas", daemon=True)
        for file in home.process_files():
            if record := state.read(file):
                try:
                    replica = Replica.of(record)
                except (KeyError, TypeError, ValueError, AttributeError):
                    log.warning("%s is no record of a process: left out", file)
                    file.unlink(missing_ok=True)
                    continue
                ports.keep(replica.http_port)
                ports.keep(replica.grpc_port)
                self._replicas.append(replica)
        for stray in strays(home.root / "run", home.root / "logs", {r.process.pid for r in self._replicas if r.process}):
            log.warning("pid %d was started by an earlier supervisor, and nobody knows for what: ending it", stray.pid)
            stray.signal(signal.SIGTERM)

    def watch(self, changed: Callable[[str], None]) -> None:
        self._changed = changed

    def start(self) -> None:
        self._thread.start()

    def all(self) -> list[Replica]:
        with self._lock:
            return list(self._replicas)

    def of(self, key: str) -> list[Replica]:
        with self._lock:
            return [r for r in self._replicas if names.key(r.namespace, r.service) == key]

    def running(self, key: str, revision: str) -> list[Replica]:
        """Those of a revision that are to stay."""
        return [r for r in self.of(key) if r.revision == revision and not r.leaving]

    def failure(self, key: str, revision: str) -> Failure | None:
        return self._failures.get((key, revision))

    def scaled(self) -> dict[tuple[str, str], RevisionPlan]:
        """The revisions whose number may change, by service and name."""
        with self._lock:
            return {at: job.plan for at, job in self._jobs.items() if job.plan.max_replicas > job.plan.min_replicas}

    def want(self, key: str, revision: str, number: int) -> None:
        """Have as many from the next plan on."""
        with self._lock:
            if (key, revision) not in self._jobs:
                return
            self._wanted[key, revision] = number
        self._changed(key)

    def scale(self, key: str, revision: RevisionPlan, model: str) -> None:
        """Have between `min_replicas` and `max_replicas` of it; surplus ones are for `retire` to drain."""
        with self._lock:
            mine = self.running(key, revision.name)
            # a supervisor that is new to it keeps what is there until the scaler knows better
            wanted = self._wanted.get((key, revision.name), len(mine))
            number = min(max(wanted, revision.min_replicas), revision.max_replicas)
            self._jobs[key, revision.name] = Job(dict(revision.template), model, revision)
            taken = {r.slot for r in self.of(key) if r.revision == revision.name}
            for _ in range(number - len(mine)):
                slot = next(n for n in range(len(taken) + 1) if n not in taken)
                taken.add(slot)
                namespace, _, name = key.partition("/")
                self._replicas.append(Replica(namespace, name, revision.name, slot, self._ports.free(), self._ports.free()))
            # those that serve stay
            for replica in sorted(mine, key=lambda r: (not r.is_ready, r.process is None))[number:]:
                replica.surplus = True
        self._wake.set()

    def retire(self, key: str, keep: set[str]) -> None:
        """Drain what runs of the service's other revisions, and surplus replicas: nobody is sent there any more."""
        with self._lock:
            for replica in self.of(key):
                if replica.revision not in keep or replica.surplus:
                    replica.drain(time.monotonic(), process.GRACE_SECONDS + 5)
            for at in [at for at in {*self._jobs, *self._failures} if at[0] == key and at[1] not in keep]:
                self._forget_revision(*at)
        self._wake.set()

    def _forget_revision(self, key: str, revision: str) -> None:
        for known in (self._jobs, self._failures, self._wanted):
            known.pop((key, revision), None)

    def close(self, end: bool) -> None:
        """Stop looking after them; with `end`, stop the processes too, the slow ones by force."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        if not end:
            return
        for replica in self.all():
            replica.drain(time.monotonic(), process.GRACE_SECONDS)
            if replica.process:
                # a second signal: nobody is routed there any more, so nobody waits
                replica.process.signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        left = [r for r in self.all() if r.process]
        while left and time.monotonic() < deadline:
            left = [r for r in left if r.process and r.process.is_alive()]
            self._wake.clear()
            self._wake.wait(0.05)
        for replica in left:
            if replica.process:
                replica.process.signal(signal.SIGKILL)
        for replica in self.all():
            replica.file(self._home).unlink(missing_ok=True)

    # the thread

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            busy = False
            for replica in self.all():
                try:
                    busy |= self._look(replica, time.monotonic())
                except Exception as error:
                    self._stumbled(replica, error)
            self._wake.wait(BUSY_TICK if busy else IDLE_TICK)

    def _look(self, replica: Replica, now: float) -> bool:
        """One look at one replica; whether the next should be soon."""
        running = replica.process is not None and replica.process.is_alive()
        if replica.leaving and not running:
            self._forget(replica)
            return True
        if replica.draining:
            if replica.process and now > replica.stop_by:
                replica.process.signal(signal.SIGKILL)
            return True
        if replica.process is None:
            if now >= replica.start_at:
                self._start(replica, now)
            return True
        if not running:
            self._ended(replica, now)
            return True
        if not replica.is_ready:
            return self._probe_starting(replica, now)
        self._look_after(replica, now)
        return False

    def _stumbled(self, replica: Replica, error: Exception) -> None:
        """This one could not be looked after; the others are, and it is tried again."""
        replica.failures += 1
        replica.start_at = time.monotonic() + _pause(replica.failures)
        if isinstance(error, OSError):
            message = error.strerror or str(error)
        else:
            log.error("%s-%d:", replica.revision, replica.slot, exc_info=error)
            message = f"{type(error).__name__}: {error}"
        if replica.process is None and not replica.draining:
            self._fail(replica, "StartFailed", f"the predictor can't be started: {message}", None)
            self._changed(names.key(replica.namespace, replica.service))

    def _start(self, replica: Replica, now: float) -> None:
        key = names.key(replica.namespace, replica.service)
        job = self._jobs.get((key, replica.revision))
        if job is None:
            # adopted, and its plan has not come yet
            return
        command = process.command(job.template, replica.service, job.model, replica.http_port, replica.grpc_port)
        log_file = replica.log(self._home)
        rotate(log_file)
        replica.log_start = log_file.stat().st_size if log_file.exists() else 0
        folder = self._home.root / "run" / replica.namespace / f"{replica.revision}-{replica.slot}"
        environment = process.environment(job.template, os.environ)
        replica.process = spawn(command, environment, folder, log_file)
        replica.since = now
        state.write(replica.file(self._home), replica.record())

    def _probe_starting(self, replica: Replica, now: float) -> bool:
        if answers_ready(replica.http_port):
            replica.is_ready = replica.was_ready = True
            replica.since = now
            key = names.key(replica.namespace, replica.service)
            self._failures.pop((key, replica.revision), None)
            self._changed(key)
            state.write(replica.file(self._home), replica.record())
        elif now - replica.since > LOAD_SECONDS and replica.process:
            replica.process.signal(signal.SIGKILL)
        return True

    def _look_after(self, replica: Replica, now: float) -> None:
        self._watch_memory(replica)
        if now - self._tended.get(replica.log(self._home), 0.0) < TEND_EVERY:
            return
        self._tended[replica.log(self._home)] = now
        rotate(replica.log(self._home))
        if replica.failures and now - replica.since > SETTLED:
            replica.failures = 0

    def _watch_memory(self, replica: Replica) -> None:
        job = self._jobs.get((names.key(replica.namespace, replica.service), replica.revision))
        limit = job.template["memory"] if job else None
        if replica.process is None or not limit or (held := replica.process.resident_bytes()) <= limit:
            return
        text = f"a replica held {held >> 20} MiB, its limit is {limit >> 20} MiB"
        self._fail(replica, "OOMKilled", f"{text}; raise spec.predictor.model.resources.limits.memory", -signal.SIGKILL)
        replica.ended_by_us = True
        replica.process.signal(signal.SIGKILL)

    def _ended(self, replica: Replica, now: float) -> None:
        assert replica.process is not None
        code, words = replica.process.exit_code, last_words(replica.log(self._home), replica.log_start)
        key = names.key(replica.namespace, replica.service)
        job = self._jobs.get((key, replica.revision))
        if job:
            words = _named_by_uri(words, job.model, job.template["uri"])
        if not replica.ended_by_us:
            self._fail(replica, *_why(replica, code, words), code)
        replica.failures += 1
        replica.start_at = now + (0.0 if replica.is_ready and replica.failures == 1 else _pause(replica.failures))
        if "can't listen" in words:
            self._move(replica)
        replica.process, replica.is_ready, replica.ended_by_us = None, False, False
        self._changed(key)

    def _fail(self, replica: Replica, reason: str, message: str, code: int | None) -> None:
        key = names.key(replica.namespace, replica.service)
        location = f"{replica.revision}-{replica.slot}"
        self._failures[key, replica.revision] = Failure(reason, message, time.time(), location, code)
        log.warning("%s: %s: %s", location, reason, message)

    def _move(self, replica: Replica) -> None:
        """Somebody else has its ports."""
        for port in (replica.http_port, replica.grpc_port):
            self._ports.release(port)
        replica.http_port, replica.grpc_port = self._ports.free(), self._ports.free()

    def _forget(self, replica: Replica) -> None:
        with self._lock:
            self._replicas.remove(replica)
            replica.file(self._home).unlink(missing_ok=True)
            for port in (replica.http_port, replica.grpc_port):
                self._ports.release(port)
            self._tended.pop(replica.log(self._home), None)
        self._changed(names.key(replica.namespace, replica.service))


def _named_by_uri(words: str, model: str, uri: str) -> str:
    """What a predictor says of the cache's copy, said of what the user named; of `model.py:Class` it names the file alone."""
    file, its_class, _ = model.partition(".py:")
    words = words.replace(model, uri)
    return words.replace(f"{file}.py", f"{uri.partition('.py:')[0]}.py") if its_class else words


def _pause(failures: int) -> float:
    return pause(FIRST_PAUSE, LONGEST_PAUSE, failures) * (0.75 + random.random() / 2)


def _name(number: int) -> str:
    """A signal's, also where it is one of those that have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _why(replica: Replica, code: int | None, words: str) -> tuple[str, str]:
    """KServe's reason and a line for a person, from how a process ended."""
    times = f" ({replica.failures + 1} times now)" if replica.failures else ""
    if code is not None and code < 0:
        cause = "; the kernel does that where memory runs out" if -code == signal.SIGKILL else ""
        return ("CrashLoop" if replica.failures > 1 else "Crashed"), f"the predictor was ended by {_name(-code)}{times}{cause}"
    if not replica.is_ready and words:
        return "ModelLoadFailed", words
    return ("CrashLoop" if replica.failures > 1 else "Crashed"), f"the predictor ended{times}: {words or f'exit code {code}'}"
