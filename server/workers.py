"""`--workers N`: N predictor processes behind one HTTP and one gRPC address, seen as one.

The kernel spreads connections over the workers' sockets (SO_REUSEPORT). This process serves nothing: it holds the
ports, starts the workers, says ready when all are, passes signals on, and starts again what dies. Metrics meet in a
folder that all workers write, so each worker's /metrics is the page of all.
"""

import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

import orjson
from prometheus_client.multiprocess import mark_process_dead

from server import announce
from server.errors import ModelLoadError
from server.log import fail, write_all
from server.settings import Settings, inherited, to_flags

# Seconds before a worker that died is started again: doubling, reset once one has lived for a minute.
FIRST_PAUSE, LONGEST_PAUSE, SETTLED = 0.5, 30.0, 60.0


def hold(host: str, port: int) -> socket.socket:
    """A bound socket that never listens: it keeps the port for the workers and gets no connections itself."""
    holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        holder.bind((host, port))
    except OSError as error:
        holder.close()
        raise ModelLoadError(f"can't listen on {host}:{port}: {error.strerror}", "choose another port, or 0") from error
    return holder


class Worker:
    """One predictor process: started, watched, started again."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._pause = FIRST_PAUSE
        self.was_ready = False
        self.start_at = 0.0
        self.start()

    def start(self, *more: str) -> None:
        self.process = subprocess.Popen([*self._command, *more], stdout=subprocess.PIPE, env=inherited())
        self.started = time.monotonic()

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def died(self, now: float) -> None:
        """Plan the next start."""
        self._pause = FIRST_PAUSE if now - self.started > SETTLED else min(self._pause * 2, LONGEST_PAUSE)
        self.start_at = now + self._pause


class Workers:
    """The loop of the parent: a selector over the workers' ready lines and a wake-up for signals."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = ""
        self._stopping = 0
        self._announced = False
        self._selector = selectors.DefaultSelector()
        self._workers: list[Worker] = []
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)

    def run(self) -> int:
        """Serve until told to stop; the exit code of the whole."""
        settings = self._settings
        try:
            http = hold(settings.host, settings.http_port)
            grpc = hold(settings.host, settings.grpc_port)
        except ModelLoadError as error:
            return fail(str(error))
        metrics = self._metrics = tempfile.mkdtemp(prefix="serve-metrics-")
        worker = settings.model_copy(
            update={"workers": 1, "reuse_port": True, "output": "json", "metrics_dir": metrics}
            | {"http_port": http.getsockname()[1], "grpc_port": grpc.getsockname()[1]}
        )
        command = [sys.executable, "-P", "-m", "server", *to_flags(worker)]
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        if settings.model_config_file:
            signal.signal(signal.SIGHUP, self._pass_on)
        self._selector.register(self._woken, selectors.EVENT_READ)
        try:
            for _ in range(settings.workers):
                self._workers.append(Worker(command))
                self._listen_to(self._workers[-1])
            return self._watch()
        finally:
            for one in self._workers:
                if one.process.poll() is None:
                    one.process.kill()
                one.process.wait()
            shutil.rmtree(metrics, ignore_errors=True)
            http.close()
            grpc.close()

    def _listen_to(self, worker: Worker) -> None:
        self._selector.register(worker.stdout, selectors.EVENT_READ, worker)

    def _stop(self, number: int, frame: Any) -> None:
        self._stopping = number
        self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: Any) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.send_signal(number)

    def _watch(self) -> int:
        while True:
            for key, _ in self._selector.select(timeout=self._until_next_start()):
                if key.data is None:
                    self._woken.recv(4096)
                elif not self._hear(key.data):
                    return 1
            gone = [w for w in self._workers if w.process.poll() is not None]
            if self._stopping:
                if len(gone) == len(self._workers):
                    codes: list[int] = [abs(w.process.returncode or 0) for w in self._workers]
                    return max(codes)
                continue
            for worker in gone:
                if not self._announced:
                    # the first start failed: the worker has said why
                    return int(worker.process.returncode or 1)
                self._start_again(worker)

    def _until_next_start(self) -> float | None:
        waiting = [w.start_at for w in self._workers if w.start_at]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _start_again(self, worker: Worker) -> None:
        now = time.monotonic()
        if not worker.start_at:
            worker.died(now)
            mark_process_dead(worker.process.pid, self._metrics)  # type: ignore[no-untyped-call]
            text = {"event": "a worker ended", "pid": worker.process.pid, "code": worker.process.returncode}
            write_all(2, orjson.dumps({**text, "again_in_seconds": worker.start_at - now}, option=orjson.OPT_APPEND_NEWLINE))
        elif now >= worker.start_at:
            worker.start_at = 0.0
            # the others answer meanwhile: one that loads would get its share of connections, and say 503
            worker.start("--listen_when_ready")
            self._listen_to(worker)

    def _hear(self, worker: Worker) -> bool:
        """Take a worker's ready line, or its end of file; False where all are ready and nobody can be told."""
        line = worker.stdout.readline()
        if not line:
            self._selector.unregister(worker.stdout)
            worker.stdout.close()
            worker.process.wait()
            return True
        worker.was_ready = True
        if not self._announced and all(w.was_ready for w in self._workers):
            self._announced = True
            return self._announce(line)
        return True

    def _announce(self, line: bytes) -> bool:
        """Say on stdout what a worker has said; False where nobody can hear it."""
        try:
            announce.ready(sys.stdout.buffer, self._settings.output, orjson.loads(line), len(self._workers))
        except OSError as error:
            fail(f"can't say on stdout that the model is ready: {error.strerror}")
            return False
        return True
