"""The command line's side of the supervisor's API; starts the supervisor where there is none."""

import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deployer import names, spec
from deployer.calling import call
from deployer.client import Endpoints, Replica, absent, check_name
from deployer.errors import Conflict, DeployerError, Mistake, NotFound, SpecError
from deployer.local import state
from deployer.local.api import ROOT, RUNTIMES
from deployer.local.replica import adopt
from deployer.runtimes import parse_runtime
from deployer.spec.notices import Platform

START_SECONDS = 30.0
ANSWER_SECONDS = 30.0
LOOK_SECONDS = 0.2


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class LocalClient:
    """InferenceServices of this machine's platform, as `deployer.client.Client` has them, and the platform itself."""

    platform: Platform = "local"
    namespace = "default"

    def __init__(self, home: state.Home, tell: Callable[[str], None] = lambda text: None) -> None:
        self._home, self._tell = home, tell
        self._was_up = False

    def get(self, namespace: str, name: str) -> dict[str, Any]:
        self._need(namespace, name)
        return self._ask("GET", _path(namespace, name))

    def listed(self, namespace: str | None) -> list[dict[str, Any]]:
        if self._keeps_nothing():
            return []
        return list(self._ask("GET", _path(namespace))["items"])

    def _keeps_nothing(self) -> bool:
        """Whether there is no service to look at, so that no platform need be started for it."""
        if self.is_up() or self._home.service_keys():
            return False
        if unusable := self._home.unusable():
            raise DeployerError(unusable)
        return True

    def _need(self, namespace: str, name: str) -> None:
        """NotFound for what is not kept here: no platform is started only to say so."""
        check_name(namespace, name)
        if not self._home.service(names.key(namespace, name)).exists() and not self.is_up():
            raise NotFound(f"{absent(namespace, name)} on this machine; for a cluster's say --target kubernetes")

    def apply(self, raw: dict[str, Any], content: str = "") -> dict[str, Any]:
        """`content` says which content a model's URI stands for: "" what is there now, "known" what was found last, or
        what a revision had."""
        service = spec.parse(raw, formats=None)
        path = _path(service.metadata.namespace, service.metadata.name)
        return self._ask("PUT", f"{path}/content/{content}" if content else path, raw)

    def delete(self, namespace: str, name: str) -> dict[str, Any]:
        self._need(namespace, name)
        return self._ask("DELETE", _path(namespace, name))

    def revisions(self, namespace: str, name: str) -> list[dict[str, Any]]:
        return list(self._ask("GET", _path(namespace, name) + "/revisions")["items"])

    def install(self, raw: dict[str, Any]) -> dict[str, Any]:
        """A ServingRuntime or ClusterServingRuntime."""
        return self._ask("PUT", f"{RUNTIMES}/{parse_runtime(raw).metadata.namespace}", raw)

    def uninstall(self, raw: dict[str, Any]) -> dict[str, Any]:
        where = urllib.parse.quote(str(raw["metadata"].get("namespace", "default")), safe="")
        return self._ask("DELETE", f"{RUNTIMES}/{where}", raw)

    def runtimes(self, namespace: str) -> list[dict[str, Any]]:
        return list(self._ask("GET", f"{RUNTIMES}/{namespace}")["items"])

    def runs(self, namespace: str, name: str) -> bool:
        """Whether processes of a service are left, also of a deleted one."""
        return bool(self._ask("GET", _path(namespace, name) + "/processes")["running"])

    def replicas(self, namespace: str, name: str) -> list[Replica]:
        mine = (p for p in self.described()["processes"] if (p["namespace"], p["service"]) == (namespace, name))
        return [Replica(p["revision"], bool(p["ready"])) for p in mine]

    def ask(self, service: Mapping[str, Any], path: str, body: Any, headers: Mapping[str, str]) -> Any:
        return call(service["status"]["url"] + path, body, headers)

    def way(self, service: Mapping[str, Any]) -> str:
        return str(service["status"]["url"])

    def endpoints(self, service: Mapping[str, Any]) -> Endpoints:
        status = service["status"]
        return Endpoints(status["url"], {}, urllib.parse.urlsplit(status["address"]["url"]).netloc)

    def logs(self, namespace: str, name: str, tail: int, follow: bool) -> Iterator[str]:
        self.get(namespace, name)
        folder = self._home.logs(namespace, name)
        positions: dict[Path, int] = {}
        while True:
            for file in sorted(folder.glob("*.log")):
                lines, positions[file] = _lines_from(file, positions.get(file), tail)
                yield from (f"{file.stem}  {line}" for line in lines)
            if not follow:
                return
            time.sleep(LOOK_SECONDS)

    def described(self) -> dict[str, Any]:
        """The platform: its address, its pids, its processes."""
        return self._ask("GET", "/platform")

    def is_up(self) -> bool:
        try:
            self._call("GET", "/platform", None)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def left_running(self) -> int:
        """How many processes serve on though no supervisor looks after them."""
        files = [*self._home.process_files(), self._home.root / "processes" / "envoy.json"]
        return sum(adopt(state.read(file)) is not None for file in files)

    def up(self, port: int = 0) -> None:
        """Have a supervisor; started in the background where there is none."""
        if self.is_up():
            return
        if unusable := self._home.unusable():
            raise DeployerError(unusable)
        self._tell("starting the platform in the background …")
        self._home.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [sys.executable, "-P", "-m", "deployer.local.supervisor", *(["--port", str(port)] if port else [])]
        with self._home.log.open("ab") as log:
            at = log.tell()
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self._home.root
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.is_up():
            if child.poll() is not None and not self._is_locked():
                with self._home.log.open() as log_text:
                    log_text.seek(at)
                    said = log_text.read().strip().splitlines() or ["it said nothing"]
                raise DeployerError(f"the platform did not start: {said[-1].removeprefix('serve: ')} (log: {self._home.log})")
            if time.monotonic() > deadline:
                raise DeployerError(f"the platform did not start within {START_SECONDS:g} s; its log: {self._home.log}")
            time.sleep(0.03)

    def _is_locked(self) -> bool:
        """Whether a supervisor runs, also one that does not answer yet, or no more: the one without the lock gives way."""
        import fcntl

        with self._home.lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def _recorded_pid(self) -> int | None:
        return (state.read(self._home.pid) or {}).get("pid")

    def down(self) -> dict[str, Any] | None:
        """End the supervisor and all it started; None where nothing ran."""
        if not self.is_up():
            if not any(self._home.process_files()) and not (self._home.root / "processes" / "envoy.json").exists():
                return None
            # a dead supervisor's processes are ended by a new one
            self.up()
        return self._end("/platform/down")

    def restart(self) -> dict[str, Any]:
        """Have another supervisor and another Envoy, of the installation that this is; what serves goes on serving."""
        if self.is_up():
            self._end("/platform/stop")
        self._was_up = False
        return self._ask("POST", "/platform/envoy")

    def _end(self, path: str) -> dict[str, Any]:
        described = self._ask("POST", path)
        # by its lock and record: one that this command started would be a zombie with a pid until the command ends, and the
        # next one may have the lock already
        deadline = time.monotonic() + 40
        while self._is_locked() and self._recorded_pid() == described["pid"] and time.monotonic() < deadline:
            time.sleep(0.03)
        return described

    def _ask(self, verb: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            status, answer = self._call(verb, path, body)
        except TimeoutError:
            raise DeployerError(f"the platform did not answer within {ANSWER_SECONDS:g} s; its log: {self._home.log}") from None
        except (OSError, http.client.HTTPException):
            if self._was_up and not self._home.socket.exists():
                raise DeployerError("the platform was ended meanwhile; the next command starts it again") from None
            self.up()
            status, answer = self._call(verb, path, body)
        self._was_up = True
        if status == 200:
            return answer
        text = answer.get("message", "")
        if status == 422:
            raise SpecError(tuple(Mistake(**m) for m in answer["mistakes"]))
        raise {404: NotFound, 409: Conflict}.get(status, DeployerError)(text)

    def _call(self, verb: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        connection = _Connection(str(self._home.socket), ANSWER_SECONDS)
        try:
            connection.request(verb, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        finally:
            connection.close()


def _lines_from(file: Path, position: int | None, tail: int) -> tuple[list[str], int]:
    """What was written since `position`, where nothing was read yet the last `tail` lines; and the position after it."""
    with file.open("rb") as opened:
        end = opened.seek(0, 2)
        opened.seek(0 if position is None or position > end else position)
        lines = opened.read().decode(errors="replace").splitlines()
        return (lines[-tail:] if position is None and tail else lines), opened.tell()


def _path(namespace: str | None, name: str | None = None) -> str:
    if name is not None:
        check_name(namespace or "", name)
    middle = f"/namespaces/{urllib.parse.quote(namespace, safe='')}" if namespace else ""
    return f"{ROOT}{middle}/inferenceservices" + (f"/{name}" if name is not None else "")
