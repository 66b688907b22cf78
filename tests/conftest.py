"""Fixtures shared by all tests, and what a run says at its end; nothing else."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

from tests import buckets
from tests.left_out import pytest_terminal_summary  # noqa: F401

# a machine may be busy: how long an example takes to make or to run says nothing of what it shows
hypothesis.settings.register_profile("any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any-machine")

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


class Server:
    """A predictor in a process of its own: `info` is what it said when it was ready."""

    def __init__(self, process: subprocess.Popen, info: dict, stderr) -> None:
        self.process, self.info, self._stderr = process, info, stderr

    @property
    def http(self) -> str:
        return self.info["http"]

    @property
    def grpc(self) -> str:
        return self.info["grpc"]

    @property
    def name(self) -> str:
        return self.info["name"]

    @property
    def stderr(self) -> str:
        # not by a seek: the process writes at the same place of the same file
        number = self._stderr.fileno()
        return os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(40)


@contextmanager
def running(model, *flags: str, cwd=None, env=None, timeout: float = 120.0, redirect: str = ""):
    """`python -m server` on a model, from ready to stopped; RuntimeError with what it said where it does not get ready.

    `redirect` is a shell's: "2>&-" starts it without stderr.
    """
    with tempfile.TemporaryFile("w+") as stderr:
        command = [sys.executable, "-P", "-m", "server", "--model_dir", str(model), "--http_port", "0", "--grpc_port", "0"]
        command += ["--output", "json", "--trust_pickle", "--drain_delay", "0", *flags]
        if redirect:
            command = ["bash", "-c", f'exec "$@" {redirect}', "bash", *command]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=cwd, env={**os.environ, **(env or {})}
        )
        try:
            line = _line(process, timeout)
            if not line:
                process.kill()
                process.wait()
                stderr.seek(0)
                raise RuntimeError(f"{model} was not served: {stderr.read()}")
            yield Server(process, json.loads(line), stderr)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            process.stdout.close()


def _line(process: subprocess.Popen, timeout: float) -> str:
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(timeout) else ""


@pytest.fixture(scope="session")
def serve():
    """Start a predictor: `with serve(path, "--flag") as server`."""
    return running


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory):
    """An S3 server for the tests of one file."""
    with buckets.running(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture(scope="session")
def iris():
    """One iris server for all tests that leave it as they found it."""
    with running(EXAMPLES / "iris.skops") as server:
        yield server
