"""Envoy as a process: kept running, started again where it dies, and replaced by another one without losing a request."""

import logging
import os
import signal
import subprocess
import threading
import time
from typing import Any

from deployer.local import state
from deployer.local.envoy import EnvoyOptions
from deployer.local.proxy import DRAIN, Proxy
from deployer.local.replica import Process, adopt, rotate, spawn_orphan

log = logging.getLogger(__name__)
# Seconds that a new Envoy may take until it serves; one that was handed the sockets takes a tenth of a second.
TAKE_OVER = 10.0


class EnvoyProcess:
    """Replacing goes one by one; what changes the process, and the thread that looks after it, take turns."""

    def __init__(self, home: state.Home, options: EnvoyOptions, proxy: Proxy) -> None:
        self._home, self._options, self._proxy = home, options, proxy
        self._file = home.root / "processes" / "envoy.json"
        self._log = home.root / "logs" / "envoy.log"
        record: dict[str, Any] = state.read(self._file) or {}
        self._process: Process | None = adopt(record)
        self._epoch, self._like = int(record.get("epoch", 0)), str(record.get("like", ""))
        self._leaving: Process | None = adopt(record.get("leaving"))
        self._turn, self._lock = threading.Lock(), threading.RLock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="envoy", daemon=True)

    @property
    def is_adopted(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        if self._process is None:
            self._spawn(0)
        elif self._like != self._proxy.likeness():
            log.info("the Envoy that runs is of another installation: replacing it")
            self.replace()
        self._thread.start()

    def replace(self) -> None:
        """Another Envoy takes over the listening sockets; this one answers what it has and ends within twelve seconds.

        Where the two can't agree (after an upgrade, say), the old one is ended first: connections are refused for a moment.
        """
        with self._turn:
            # a third one would have the first end at once, with all that it is still asked
            if self._leaving is not None:
                _wait(self._leaving, DRAIN + 4.0)
            self._replace()

    def _replace(self) -> None:
        with self._lock:
            old = self._process
            if old is None or not old.is_alive():
                return self._spawn(0)
            self._leaving = old
            self._spawn(self._epoch + 1)
            new = self._process
            deadline = time.monotonic() + TAKE_OVER
            while new is not None and new.is_alive() and time.monotonic() < deadline:
                if self._proxy.is_live(self._epoch):
                    return None
                self._stopping.wait(0.02)
            log.warning("the next Envoy could not take over: starting it anew")
            for process in (new, old):
                if process is not None:
                    process.signal(signal.SIGKILL)
                    _wait(process)
            return self._spawn(0)

    def _spawn(self, epoch: int) -> None:
        self._options.admin.unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TZ", "TMPDIR")}
        self._process = spawn_orphan(self._proxy.command(epoch), environment, self._log)
        self._epoch, self._like = epoch, self._proxy.likeness()
        record = self._process.record() | {"epoch": epoch, "like": self._like}
        state.write(self._file, record | ({"leaving": self._leaving.record()} if self._leaving else {}))

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(0.05 + pause):
            pause = 0.0
            with self._lock:
                if self._process is not None and not self._process.is_alive():
                    log.warning("Envoy ended: starting it again")
                    try:
                        self._spawn(0)
                    except (OSError, ValueError, subprocess.SubprocessError) as error:
                        log.warning("Envoy could not be started: %s", error)
                        pause = 1.0
                    else:
                        pause = 0.2
            rotate(self._log)
            rotate(self._options.access_log)
            rotate(self._home.log)

    def close(self, end: bool) -> None:
        self._stopping.set()
        self._thread.join()
        if not end or self._process is None:
            return
        for process in (self._process, self._leaving):
            if process is not None:
                process.signal(signal.SIGTERM)
                _wait(process)
                process.signal(signal.SIGKILL)
        self._file.unlink(missing_ok=True)


def _wait(process: Process, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        threading.Event().wait(0.02)
