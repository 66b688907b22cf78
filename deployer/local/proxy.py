"""Envoy's files and Envoy's answers: writes what `envoy.py` renders, in an order in which no request falls into a gap.

Make before break: clusters, then routes, then listeners, each once Envoy says that it has what was before; clusters that
nothing leads to any more are removed last.  While Envoy does not run, files are written in the same order, and nothing
is waited for.  Starting and ending Envoy is its supervisor's business.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deployer.local.envoy import EnvoyOptions, ServiceRoutes, bootstrap, render, response
from deployer.local.listeners import Document

# Seconds: for one question to Envoy, for one step of a change, between two looks, until what Envoy says is in its log.
ASK, STEP, LOOK, LOG = 2.0, 5.0, 0.003, 1.5
# Seconds in which one that is replaced tells its callers to come by another connection; two more, and it ends.
DRAIN = 10
WORKERS = 2
# What Envoy reads, each with its own name for it.
FILES = {"cds.json": "cluster_manager.cds", "lds.json": "listener_manager.lds", "routes.json": "http.clients.rds.main"}
_FIRST_LINE = re.compile(r"^\[\d{4}-\d\d-\d\d ", re.MULTILINE)


@dataclass(frozen=True)
class BackendStats:
    """What Envoy counted since it was started, HTTP and gRPC together; `active`, `held` and `healthy` are what is now.

    `requests` were given to predictors, each attempt once, and those that had to wait for one twice.  `held` wait in Envoy
    for a predictor that is ready, since the backend's endpoints last changed.
    """

    requests: int = 0
    active: int = 0
    held: int = 0
    errors_5xx: int = 0
    retries: int = 0
    healthy: int = 0


def steps(before: Mapping[str, Document], wanted: Mapping[str, Document]) -> list[tuple[str, Document]]:
    """What to write, file by file, to come from `before` to `wanted`; nothing is taken away that is still led to."""
    clusters = wanted["cds.json"]
    known = {cluster["name"] for cluster in clusters["resources"]}
    going = [cluster for cluster in before.get("cds.json", clusters)["resources"] if cluster["name"] not in known]
    both = response([*clusters["resources"], *going]) if going else clusters
    # routes before listeners: a service's own port has no use without them
    way = [("cds.json", both), *((name, wanted[name]) for name in ("routes.json", "lds.json")), ("cds.json", clusters)]
    versions = {name: document.get("version_info") for name, document in before.items()}
    found = []
    for name, document in way:
        if versions.get(name) != document["version_info"]:
            found.append((name, document))
            versions[name] = document["version_info"]
    return found


def _program() -> Path:
    return Path(sys.executable).parent / "envoy"


class Refused(Exception):
    """Envoy did not take a file; `str(error)` is what it said."""


class Proxy:
    """One Envoy, by its files and its admin socket.  All methods may be called from any thread."""

    def __init__(self, options: EnvoyOptions) -> None:
        self._options = options
        self._log = options.access_log.parent / "envoy.log"
        self._lock = threading.Lock()
        self._wanted: dict[str, Document] | None = None
        self._files: dict[str, Document] | None = None
        self._applied: tuple[ServiceRoutes, ...] | None = None
        self._rejected = ""

    def command(self, epoch: int = 0) -> list[str]:
        """The argv list that starts Envoy; `apply` must have been called once, for Envoy to find its files.

        Above 0 it takes the listening sockets over from the one that was started with the `epoch` before.
        """
        own = self._options.directory / "base-id"
        if epoch:
            restart = ["--base-id", own.read_text().strip(), "--restart-epoch", str(epoch)]
        else:
            # what two of them share has a number, and other Envoys of this machine have other ones
            restart = ["--use-dynamic-base-id", "--base-id-path", str(own)]
        return [
            *[str(_program()), "--config-path", str(self._options.directory / "bootstrap.json"), *restart],
            *["--drain-time-s", str(DRAIN), "--parent-shutdown-time-s", str(DRAIN + 2), "--concurrency", str(WORKERS)],
            *["--log-level", "warning", "--log-path", str(self._log), "--file-flush-interval-msec", "250"],
        ]

    def likeness(self) -> str:
        """The same for two Envoys that would be the same: of one program, with one bootstrap file."""
        program = _program().stat()
        made = (program.st_ino, program.st_size, program.st_mtime_ns, json.dumps(bootstrap(self._options), sort_keys=True))
        return hashlib.sha256(repr(made).encode()).hexdigest()[:16]

    def is_live(self, epoch: int) -> bool:
        """Whether the Envoy that answers is the one of this epoch, and serves."""
        try:
            told = json.loads(self._ask("/server_info"))
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return told["state"] == "LIVE" and int(told["command_line_options"].get("restart_epoch", 0)) == epoch

    def apply(self, services: Sequence[ServiceRoutes]) -> None:
        """Bring Envoy to these routes; nothing is written where they are there.  What Envoy refuses, `rejected` tells.

        OSError where a file can't be written: those before stay.  ValueError where the admin socket's path is too long.
        """
        asked = tuple(services)
        with self._lock:
            refused = bool(self._rejected) or self._refused(self._wanted or {}, {})
            if asked == self._applied and not refused:
                return
            wanted = render(self._options, services)
            self._prepare()
            again = refused and wanted == self._wanted
            self._wanted, self._applied, self._rejected = wanted, None, ""
            before = self._read()
            ahead = steps(before, wanted)
            if again and not ahead:
                # a port that was taken may be free now; Envoy looks when it is told once more
                ahead = [("lds.json", wanted["lds.json"])]
            for name, document in ahead:
                try:
                    self._take(name, document)
                except Refused as reason:
                    self._rejected = str(reason)
                    # of listeners Envoy takes those that it can, and one service's port is no reason to hold up the others
                    if name != "lds.json":
                        break
            if not self._rejected:
                self._applied = asked

    def rejected(self) -> str:
        """Why Envoy does not use what was applied last, in its own words; "" where it does, or where it does not run."""
        with self._lock:
            if not self._rejected:
                return self._said(0) if self._refused(self._wanted or {}, {}) else ""
            return self._rejected

    def unheard(self) -> frozenset[str]:
        """The listeners that Envoy could not open, where it uses all else as it was applied; nothing where that is not so."""
        with self._lock:
            wanted = self._wanted or {}
        try:
            there = {one["name"] for one in json.loads(self._ask("/listeners?format=json")).get("listener_statuses", [])}
        except OSError:
            return frozenset()
        if not wanted or not self._has({name: document for name, document in wanted.items() if name != "lds.json"}):
            return frozenset()
        return frozenset(one["name"] for one in wanted["lds.json"]["resources"]) - there

    def ready(self) -> bool:
        """Whether Envoy serves: it has read its files, and is not about to end."""
        try:
            return self._ask("/ready").strip() == b"LIVE"
        except OSError:
            return False

    def wait_applied(self, timeout: float) -> bool:
        """Return once Envoy serves what was applied last, or False after `timeout` seconds or where it was refused."""
        deadline = time.monotonic() + timeout
        while not self._rejected:
            wanted = self._wanted if self._wanted is not None else self._read()
            if self.ready() and self._has(wanted):
                return True
            if time.monotonic() > deadline:
                break
            threading.Event().wait(LOOK)
        return False

    def stats(self) -> dict[str, BackendStats]:
        """`<namespace>/<backend>` → figures; nothing while Envoy does not run."""
        try:
            counted = self._stats(r"^cluster\..*\.upstream_rq_(total|5xx|retry)$")
            clusters = json.loads(self._ask("/clusters?format=json")).get("cluster_statuses", [])
        except OSError:
            return {}
        found: dict[str, BackendStats] = {}
        for cluster in clusters:
            name, _, protocol = cluster["name"].rpartition("/")
            if protocol not in ("http", "grpc"):
                continue
            endpoints = [host for host in cluster["host_statuses"] if "socket_address" in host["address"]]
            hold = [host for host in cluster["host_statuses"] if "socket_address" not in host["address"]]
            so_far = found.get(name, BackendStats())
            figures = {
                kind: counted.get(f"cluster.{cluster['name']}.upstream_rq_{kind}", 0) for kind in ("total", "5xx", "retry")
            }
            found[name] = BackendStats(
                requests=so_far.requests + figures["total"] - figures["retry"],
                active=so_far.active + _sum(endpoints, "rq_active"),
                held=so_far.held + _sum(hold, "rq_active"),
                errors_5xx=so_far.errors_5xx + figures["5xx"],
                retries=so_far.retries + figures["retry"],
                # the endpoints of HTTP and gRPC are the same processes, checked in the same way
                healthy=max(so_far.healthy, sum(map(_is_healthy, endpoints))),
            )
        return found

    # files

    def _prepare(self) -> None:
        for directory in (self._options.directory, self._options.access_log.parent, self._options.admin.parent):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        document = bootstrap(self._options)
        if self._read_file(self._options.directory / "bootstrap.json") != document:
            self._write("bootstrap.json", document)

    def _read(self) -> dict[str, Document]:
        """Envoy's files as they are; what a dead run left unreadable counts as absent."""
        if self._files is None:
            found = {name: self._read_file(self._options.directory / name) for name in FILES}
            self._files = {name: document for name, document in found.items() if document}
        return self._files

    def _read_file(self, path: Path) -> Document:
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def _write(self, name: str, document: Document) -> None:
        path = self._options.directory / name
        # in the same folder, so that Envoy sees one rename, of a whole file
        new = path.with_suffix(".new")
        try:
            new.write_text(json.dumps(document))
            new.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        if self._files is not None and name in FILES:
            self._files = {**self._files, name: document}

    def _take(self, name: str, document: Document) -> None:
        """Write a file and wait for Envoy to have it; Refused where it does not want it."""
        earlier, log_size, before = self._rejections(), self._log_size(), self._read().get(name)
        self._write(name, document)
        deadline = time.monotonic() + STEP
        while earlier is not None and not self._has({name: document}):
            if self._refused({name: document}, earlier):
                if name == "routes.json" and before:
                    # an Envoy that is started anew would have no routes at all; of the other files it takes what it can
                    self._write(name, before)
                raise Refused(self._said(log_size))
            if self._rejections() is None:
                # Envoy has ended meanwhile; the next one reads all files as they are
                return
            if time.monotonic() > deadline:
                raise Refused(f"Envoy has not taken {name} within {STEP:g} s")
            threading.Event().wait(LOOK)

    # Envoy

    def _has(self, files: Mapping[str, Document]) -> bool:
        """Whether Envoy uses exactly this content of these files."""
        try:
            stats = self._stats(r"(version_text|warming_clusters|total_listeners_warming)$")
        except OSError:
            return False
        if "cds.json" in files and stats.get("cluster_manager.warming_clusters"):
            return False
        if "lds.json" in files and stats.get("listener_manager.total_listeners_warming"):
            return False
        return all(
            # where no listener could be opened, nobody asks for routes
            stats.get(f"{FILES[name]}.version_text", document["version_info"] if name == "routes.json" else "")
            == document["version_info"]
            for name, document in files.items()
        )

    def _rejections(self) -> dict[str, Any] | None:
        """How often Envoy refused which file, by its own names for them; None while it does not run."""
        try:
            return self._stats(r"\.update_rejected$")
        except OSError:
            return None

    def _refused(self, files: Mapping[str, Document], earlier: Mapping[str, Any]) -> bool:
        """Whether Envoy has refused one of the files since `earlier`, and not taken it since."""
        try:
            stats = self._stats(r"\.(version_text|update_rejected)$")
        except OSError:
            return False
        return any(
            stats.get(f"{FILES[name]}.version_text") != document["version_info"]
            and stats.get(f"{FILES[name]}.update_rejected", 0) > earlier.get(f"{FILES[name]}.update_rejected", 0)
            for name, document in files.items()
        )

    def _stats(self, pattern: str) -> dict[str, Any]:
        document = json.loads(self._ask(f"/stats?format=json&filter={quote(pattern)}"))
        return {one["name"]: one["value"] for one in document["stats"] if "name" in one}

    def _ask(self, path: str) -> bytes:
        """Envoy's answer; OSError where there is no Envoy to give one."""
        connection = UnixConnection(self._options.admin)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"Envoy's admin socket answered no HTTP: {error}") from error
        finally:
            connection.close()

    # what Envoy says of what it refuses is only in its log

    def _log_size(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    def _said(self, since: int) -> str:
        deadline = time.monotonic() + LOG
        while True:
            with contextlib.suppress(OSError), self._log.open(errors="replace") as log:
                log.seek(since)
                if messages := list(refusals(log.read())):
                    return messages[-1]
            if time.monotonic() > deadline:
                return f"Envoy refused the configuration; {self._log} says why"
            threading.Event().wait(LOOK * 10)


def refusals(log: str) -> Iterator[str]:
    """Envoy's reasons in its log, without the content that it repeats before some of them."""
    starts = [match.start() for match in _FIRST_LINE.finditer(log)] + [len(log)]
    for start, end in itertools.pairwise(starts):
        record = log[start:end]
        _, found, reason = record.partition("update rejected: ")
        if found:
            lines = [line for line in reason.splitlines() if line.strip()]
            last = lines[-1].removeprefix(": ") if len(lines) > 3 else " ".join(line.strip() for line in lines)
            yield last


def _sum(hosts: Iterable[Document], name: str) -> int:
    return sum(int(stat.get("value", 0)) for host in hosts for stat in host["stats"] if stat["name"] == name)


def _is_healthy(host: Document) -> bool:
    status = host["health_status"]
    return not any(status.get(flag) for flag in ("failed_active_health_check", "failed_outlier_check"))


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("envoy", timeout=ASK)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ASK)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise
