"""Envoy's files and Envoy's answers: writes what `envoy.py` renders, in an order in which no request falls into a gap.

Make before break: clusters and endpoints, then listeners, then routes, each once Envoy says that it has what was before;
what nothing leads to any more is removed last.  While Envoy does not run, files are written in the same order, and nothing
is waited for.  Starting and ending Envoy is its supervisor's business.
"""

import contextlib
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
WORKERS = 2
_FIRST_LINE = re.compile(r"^\[\d{4}-\d\d-\d\d ", re.MULTILINE)


@dataclass(frozen=True)
class BackendStats:
    """What Envoy counted since it was started (`active`, `held`, `healthy`: what is now), HTTP and gRPC together.

    `requests` were given to predictors, each attempt once; `held` wait in Envoy for a predictor that is ready.
    """

    requests: int = 0
    active: int = 0
    held: int = 0
    errors_5xx: int = 0
    retries: int = 0
    healthy: int = 0


@dataclass(frozen=True)
class Step:
    """Files that may be written together, with what is to be in them; None: the file is not needed any more."""

    files: Mapping[str, Document | None]


def steps(before: Mapping[str, Document], wanted: Mapping[str, Document]) -> list[Step]:
    """The way from the files that are there to those that are wanted; no step takes away what the one before still uses."""
    grown: dict[str, Document | None] = {}
    new_listeners: dict[str, Document | None] = {}
    routes: dict[str, Document | None] = {}
    shrunk: dict[str, Document | None] = {}
    # a list of clusters or listeners comes after the files that it names
    for name, document in sorted(wanted.items(), key=lambda item: item[0] in ("cds.json", "lds.json")):
        old = before.get(name)
        if old == document:
            continue
        if name.startswith("routes"):
            # a listener's routes have to be there before the listener
            (routes if old else new_listeners)[name] = document
            continue
        both = _union(old, document) if old else document
        if both != old:
            (new_listeners if name == "lds.json" else grown)[name] = both
        if both != document:
            shrunk[name] = document
    gone: dict[str, Document | None] = {name: None for name in before if name not in wanted}
    return [Step(files) for files in (grown, new_listeners, routes, shrunk, gone) if files]


def _union(old: Document, new: Document) -> Document:
    """The new resources, and the old ones of other names; for endpoints, the old ones of other ports."""
    if _kind(new) == "ClusterLoadAssignment":
        groups = [dict(group) for group in new["resources"][0]["endpoints"]]
        groups[0]["lb_endpoints"] = _joined(
            groups[0]["lb_endpoints"], old["resources"][0]["endpoints"][0]["lb_endpoints"], lambda e: json.dumps(e["endpoint"])
        )
        return response([{**new["resources"][0], "endpoints": groups}])
    return response(_joined(new["resources"], old["resources"], lambda resource: resource["name"]))


def _joined(new: list[Document], old: list[Document], key: Any) -> list[Document]:
    known = {key(one) for one in new}
    return [*new, *(one for one in old if key(one) not in known)]


def _kind(document: Document) -> str:
    return str(document["resources"][0]["@type"]).rpartition(".")[2] if document["resources"] else ""


class Refused(Exception):
    """Envoy did not take a file; `files` are those, `str(error)` is what it said."""

    def __init__(self, files: set[str], message: str) -> None:
        super().__init__(message)
        self.files = files


class Proxy:
    """One Envoy, by its files and its admin socket.  All methods may be called from any thread."""

    def __init__(self, options: EnvoyOptions) -> None:
        self._options = options
        self._log = options.access_log.parent / "envoy.log"
        self._lock = threading.Lock()
        self._wanted: dict[str, Document] | None = None
        self._rejected = ""

    def command(self) -> list[str]:
        """The argv list that starts Envoy; `apply` must have been called once, for Envoy to find its files."""
        return [
            *[str(Path(sys.executable).parent / "envoy"), "--config-path", str(self._options.directory / "bootstrap.json")],
            # another Envoy of this machine is nobody to share memory with
            *["--disable-hot-restart", "--concurrency", str(WORKERS), "--drain-time-s", "10"],
            *["--log-level", "warning", "--log-path", str(self._log), "--file-flush-interval-msec", "250"],
        ]

    def apply(self, services: Sequence[ServiceRoutes]) -> None:
        """Bring Envoy to these routes; nothing is written where they are there.  What Envoy refuses, `rejected` tells.

        OSError where a file can't be written: those before stay.  ValueError: the routes contradict each other.
        """
        with self._lock:
            wanted = render(self._options, services)
            self._prepare()
            again = bool(self._rejected) and wanted == self._wanted
            self._wanted, self._rejected = wanted, ""
            before = self._read()
            ahead = steps(before, wanted)
            if again and not ahead:
                # a port that was taken may be free now; Envoy looks when it is told once more
                ahead = [Step({"lds.json": wanted["lds.json"]})]
            for step in ahead:
                try:
                    self._take(step, before)
                except Refused as refused:
                    self._rejected = str(refused)
                    if refused.files != {"lds.json"}:
                        break
                    # of listeners Envoy takes those that it can, and one service's port is no reason to hold up the others

    def rejected(self) -> str:
        """Why Envoy does not use what was applied last, in its own words; "" where it does, or where it does not run."""
        with self._lock:
            if not self._rejected:
                refused = self._refused(self._wanted or {}, {})
                return self._said(0) if refused else ""
            return self._rejected

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
                requests=so_far.requests + figures["total"] - _sum(hold, "rq_total"),
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
        found = {path.name: self._read_file(path) for path in self._options.directory.glob("*.json")}
        return {name: document for name, document in found.items() if document and name != "bootstrap.json"}

    def _read_file(self, path: Path) -> Document:
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def _write(self, name: str, document: Document) -> None:
        path = self._options.directory / name
        # not *.json, and in the same folder: Envoy sees one rename, of a whole file
        new = path.with_suffix(".new")
        try:
            new.write_text(json.dumps(document, indent=1))
            new.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    def _take(self, step: Step, before: Mapping[str, Document]) -> None:
        """Write a step's files and wait for Envoy to have them; Refused where it does not want them."""
        rejections, log_size = self._rejections(), self._log_size()
        for name, document in step.files.items():
            if document is None:
                (self._options.directory / name).unlink(missing_ok=True)
            else:
                self._write(name, document)
        written = {name: document for name, document in step.files.items() if document is not None}
        if rejections is None or not written:
            return
        deadline = time.monotonic() + STEP
        while not self._has(written):
            if refused := self._refused(written, rejections):
                self._put_back(refused, before)
                raise Refused(refused, self._said(log_size))
            if self._rejections() is None:
                # Envoy has ended meanwhile; the next one reads all files as they are
                return
            if time.monotonic() > deadline:
                raise Refused(set(written), f"Envoy has not taken {', '.join(sorted(written))} within {STEP:g} s")
            threading.Event().wait(LOOK)

    def _put_back(self, refused: Iterable[str], before: Mapping[str, Document]) -> None:
        """The files that Envoy had before, for an Envoy that is started anew would have nothing instead.

        Of clusters and listeners it takes those that it can; putting back the others would lose them.
        """
        for name in refused:
            if name in before and name not in ("cds.json", "lds.json"):
                self._write(name, before[name])

    # Envoy

    def _has(self, files: Mapping[str, Document]) -> bool:
        """Whether Envoy uses exactly this content of these files."""
        try:
            stats = self._stats(r"(version_text|warming_clusters|total_listeners_warming)$")
        except OSError:
            return False
        if stats.get("cluster_manager.warming_clusters") or stats.get("listener_manager.total_listeners_warming"):
            return False
        return all(
            stats.get(f"{place}.version_text") == document["version_info"]
            for name, document in files.items()
            for place in _places(name, document)
        )

    def _rejections(self) -> dict[str, Any] | None:
        """How often Envoy refused which file, by its own names for them; None while it does not run."""
        try:
            return self._stats(r"\.update_rejected$")
        except OSError:
            return None

    def _refused(self, files: Mapping[str, Document], earlier: Mapping[str, Any]) -> set[str]:
        """Which of the files Envoy has refused since `earlier`, and not taken since."""
        try:
            stats = self._stats(r"\.(version_text|update_rejected)$")
        except OSError:
            return set()
        return {
            name
            for name, document in files.items()
            for place in _places(name, document)
            if stats.get(f"{place}.version_text") != document["version_info"]
            and stats.get(f"{place}.update_rejected", 0) > earlier.get(f"{place}.update_rejected", 0)
        }

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


def _places(name: str, document: Document) -> Iterator[str]:
    """Where Envoy's statistics speak of a file."""
    if name == "cds.json":
        yield "cluster_manager.cds"
    elif name == "lds.json":
        yield "listener_manager.lds"
    else:
        for resource in document["resources"]:
            if "cluster_name" in resource:
                yield f"cluster.{resource['cluster_name']}"
            else:
                yield f"http.{resource['name']}.rds.{resource['name']}"


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
