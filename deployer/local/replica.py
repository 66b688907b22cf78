"""One predictor process: started, probed, seen to end, adopted by the next supervisor."""

import contextlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.local import state

LOG_BYTES = 10 << 20


def started_at(pid: int) -> int | None:
    """The kernel's start time of a process in ticks, which with its pid tells it from any other; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass
class Process:
    """A process of ours, a child or one that an earlier supervisor started."""

    pid: int
    started: int
    child: subprocess.Popen[bytes] | None = None

    def is_alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        return started_at(self.pid) == self.started

    @property
    def exit_code(self) -> int | None:
        """Minus the signal where one ended it; None where it runs, or where it was not our child."""
        return self.child.returncode if self.child else None

    def signal(self, number: int) -> None:
        """To its whole group; nothing where it has ended, or where its pid is somebody else's by now."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(os.getpgid(self.pid), number)

    def resident_bytes(self) -> int:
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()
        except (OSError, IndexError):
            return 0

    def record(self) -> dict[str, Any]:
        return {"pid": self.pid, "started": self.started}


def adopt(record: dict[str, Any] | None) -> Process | None:
    """The process of a record, where it still runs and is the same."""
    if not record or started_at(int(record.get("pid", 0))) != record.get("started"):
        return None
    return Process(int(record["pid"]), int(record["started"]))


def strays(folder: Path, logs: Path, known: set[int]) -> Iterator[Process]:
    """What an earlier supervisor started and did not live to record: it works under `folder`, and writes under `logs`."""
    for found in Path("/proc").glob("[0-9]*"):
        pid = int(found.name)
        try:
            if pid in known or os.getpgid(pid) != pid:
                continue
            at, written = (found / "cwd").readlink(), (found / "fd" / "1").readlink()
        except OSError:
            # gone, or somebody else's
            continue
        started = started_at(pid)
        if at.is_relative_to(folder) and written.is_relative_to(logs) and started is not None:
            yield Process(pid, started)


def spawn(command: Sequence[str], environment: dict[str, str], folder: Path, log: Path) -> Process:
    """A process in a group of its own, with its own folder, no files but its log, and no core dumps."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("ab") as file:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            close_fds=True,
        )
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
    return Process(child.pid, started_at(child.pid) or 0, child)


def spawn_orphan(command: Sequence[str], environment: dict[str, str], log: Path) -> Process:
    """A process that is nobody's child: its exit code is not to be had.  See `detach`."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    detach = [sys.executable, "-P", "-m", "deployer.local.detach", *command]
    with log.open("ab") as file:
        done = subprocess.run(
            detach,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
            check=True,
        )
    pid = int(done.stdout)
    return Process(pid, started_at(pid) or 0)


def rotate(log: Path, largest: int = LOG_BYTES) -> None:
    """Keep a log and the one before it; the writer appends, so it goes on at the new beginning."""
    try:
        if log.stat().st_size > largest:
            old = log.with_name(log.name + ".1")
            with log.open("rb") as source, old.open("wb") as target:
                while part := source.read(1 << 20):
                    target.write(part)
            os.truncate(log, 0)
    except OSError:
        # a full disk is told where it hinders something
        return


def last_words(log: Path, since: int = 0) -> str:
    """What the process said of its own end: its last "serve: …" line, else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - 64 * 1024))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    said = [line.removeprefix("serve: ") for line in lines if line.startswith("serve: ")]
    return (said or lines or [""])[-1][:1000]


def answers_ready(port: int, timeout: float = 0.5) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Ports:
    """Ports of 127.0.0.1 outside the range that the kernel gives to outgoing connections.  Safe for threads."""

    FIRST, LAST = 20000, 29999

    def __init__(self, taken: set[int]) -> None:
        self._taken = taken
        self._lock = threading.Lock()
        self._next = self.FIRST + os.getpid() * 7 % (self.LAST - self.FIRST)

    def free(self) -> int:
        with self._lock:
            for _ in range(self.LAST - self.FIRST):
                self._next = self.FIRST if self._next >= self.LAST else self._next + 1
                if self._next not in self._taken and can_listen(self._next):
                    self._taken.add(self._next)
                    return self._next
        raise OSError(f"no free port between {self.FIRST} and {self.LAST} on 127.0.0.1")

    def keep(self, port: int) -> None:
        self._taken.add(port)

    def release(self, port: int) -> None:
        self._taken.discard(port)


def can_listen(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@dataclass
class Replica:
    """A place for one process of a revision: its ports stay, whatever dies in it."""

    # what it is
    namespace: str
    service: str
    revision: str
    slot: int
    http_port: int
    grpc_port: int
    # what runs in it now
    process: Process | None = None
    since: float = 0.0
    log_start: int = 0
    is_ready: bool = False
    ended_by_us: bool = False
    # what it has been through
    was_ready: bool = False
    failures: int = 0
    start_at: float = 0.0
    surplus: bool = False
    """Not to be routed to any more; drained once nobody is."""
    stop_by: float = 0.0

    @property
    def draining(self) -> bool:
        return self.stop_by > 0

    @property
    def leaving(self) -> bool:
        return self.surplus or self.draining

    def record(self) -> dict[str, Any]:
        mine = {"namespace": self.namespace, "service": self.service, "revision": self.revision, "slot": self.slot}
        mine |= {"http_port": self.http_port, "grpc_port": self.grpc_port}
        mine |= {"was_ready": self.was_ready, "is_ready": self.is_ready}
        return mine | (self.process.record() if self.process else {})

    def file(self, home: state.Home) -> Path:
        return home.process(self.namespace, self.revision, self.slot)

    def log(self, home: state.Home) -> Path:
        return home.logs(self.namespace, self.service) / f"{self.revision}-{self.slot}.log"

    def drain(self, now: float, grace: float) -> None:
        """Ask it to finish; what still runs after `grace` seconds is ended."""
        if not self.draining:
            self.stop_by = now + grace
            if self.process:
                self.process.signal(signal.SIGTERM)

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Replica":
        names = ("namespace", "service", "revision", "slot", "http_port", "grpc_port")
        replica = cls(**{name: record[name] for name in names})
        replica.process = adopt(record)
        replica.was_ready = bool(record.get("was_ready"))
        replica.is_ready = bool(record.get("is_ready")) and replica.process is not None
        replica.since = time.monotonic()
        return replica
