"""`python -m deployer.local.supervisor`: the one process that keeps this user's platform as it should be.

It may be killed at any time: predictors and Envoy are in sessions of their own and go on serving, and the next
supervisor finds them by their records.  `serve platform down` ends everything.
"""

import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from deployer.controller import Controller
from deployer.local import state
from deployer.local.api import serve
from deployer.local.envoy import EnvoyOptions
from deployer.local.envoy_process import EnvoyProcess
from deployer.local.platform import LocalPlatform
from deployer.local.proxy import Proxy
from deployer.local.replica import Ports, adopt, can_listen
from deployer.local.replicas import Replicas
from deployer.local.scaling import Scaler

log = logging.getLogger(__name__)
PREFERRED_PORT = 8085
# What a supervisor may take to end.
LOCK_SECONDS = 25.0


class Supervisor:
    """The parts of one platform, made in `__init__`, living from `run` to its return."""

    def __init__(self, home: state.Home, port: int) -> None:
        self._home = home
        self.port = port
        self.stop = threading.Event()
        self.end_all = False
        ports = Ports({port})
        options = EnvoyOptions(home.envoy, port, home.root / "envoy.sock", home.root / "logs" / "access.log")
        self._proxy = Proxy(options)
        self.envoy = EnvoyProcess(home, options, self._proxy)
        self._replicas = Replicas(home, ports)
        self.platform = LocalPlatform(home, self._proxy, ports, self._replicas, f"http://127.0.0.1:{port}")
        self._scaler = Scaler(self._replicas)
        self._controller = Controller(self.platform)

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop.set())
        self.platform.route_all()
        self.envoy.start()
        server = serve(self._home.socket, self)
        self._replicas.start()
        self._controller.start()
        self._scaler.start()
        record = {"pid": os.getpid(), "port": self.port, "url": f"http://127.0.0.1:{self.port}", "home": str(self._home.root)}
        state.write(self._home.pid, record)
        log.info("the platform is up on %s", record["url"])
        self.stop.wait()
        server.shutdown()
        # whoever comes from here on is not kept waiting, and starts the next supervisor
        self._home.socket.unlink(missing_ok=True)
        server.server_close()
        self._scaler.close()
        self._controller.stop()
        self._replicas.close(self.end_all)
        self.envoy.close(self.end_all)
        self._home.pid.unlink(missing_ok=True)
        if not self.end_all:
            log.info("the supervisor has ended; its services go on until `serve platform down`")
        return 0

    def described(self) -> dict[str, Any]:
        described = state.read(self._home.pid) or {}
        described["envoy"] = (state.read(self._home.root / "processes" / "envoy.json") or {}).get("pid")
        described["processes"] = [
            {"revision": r.revision, "namespace": r.namespace, "service": r.service, "slot": r.slot, "ready": r.is_ready}
            | {"pid": r.process.pid if r.process else None, "http_port": r.http_port, "grpc_port": r.grpc_port}
            for r in self._replicas.all()
        ]
        return described


def take_lock(home: state.Home) -> IO[str] | None:
    """The lock of the one supervisor, held as long as the file is open; None where another has it."""
    home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = home.lock.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def choose_port(home: state.Home, asked: int, envoy_runs: bool) -> int:
    """The one address's port: kept over restarts, so that clients need not be told anew.  OSError where it is taken."""
    kept = (state.read(home.settings) or {}).get("port")
    port = asked or kept
    if port and (envoy_runs and port == kept):
        return int(port)
    if port and not can_listen(port):
        holder = _holder(port)
        raise OSError(f"127.0.0.1:{port}, the platform's address, is taken{holder}; end that, or: serve platform up --port N")
    if not port:
        port = PREFERRED_PORT if can_listen(PREFERRED_PORT) else Ports(set()).free()
    state.write(home.settings, {"port": port})
    return int(port)


def _holder(port: int) -> str:
    """ " by pid N (name)" where this user may see who listens on a port."""
    wanted = f"0100007F:{port:04X}", f"00000000:{port:04X}"
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] in wanted and fields[3] == "0A":
            inodes.add(f"socket:[{fields[9]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) in inodes:
                pid = link.parts[2]
                return f" by pid {pid} ({Path('/proc', pid, 'comm').read_text().strip()})"
        except OSError:
            continue
    return ""


def main() -> int:
    home = state.find()
    asked = int(sys.argv[sys.argv.index("--port") + 1]) if "--port" in sys.argv else 0
    lock = take_lock(home)
    deadline = time.monotonic() + LOCK_SECONDS
    while lock is None and not home.socket.exists() and time.monotonic() < deadline:
        # the one that has it is ending, or only beginning
        time.sleep(0.03)
        lock = take_lock(home)
    if lock is None:
        print(f"serve: the platform is up already ({json.dumps(state.read(home.pid))})", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        envoy_runs = adopt(state.read(home.root / "processes" / "envoy.json")) is not None
        port = choose_port(home, asked, envoy_runs)
        return Supervisor(home, port).run()
    except OSError as error:
        print(f"serve: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
