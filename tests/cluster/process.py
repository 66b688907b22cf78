"""The controller as a process, as it runs in a cluster."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.cluster.plane import until


class Process:
    """`python -m deployer.kubernetes` with a Lease of a name of its own."""

    def __init__(self, kubeconfig: Path, lease: str, *flags: str, identity: str = "") -> None:
        self._log = tempfile.NamedTemporaryFile("w+", prefix="controller-", suffix=".log")  # noqa: SIM115
        command = [sys.executable, "-P", "-m", "deployer.kubernetes", "--kubeconfig", str(kubeconfig), "--port", "0"]
        command += ["--lease-name", lease, *(["--identity", identity] if identity else []), *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        self._port = 0

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def port(self) -> int:
        found = until(lambda: re.search(r"telemetry on port (\d+)", self.log) or self.process.poll() is not None, 20.0)
        assert not isinstance(found, bool), self.log
        return int(found[1])

    def metric(self, name: str) -> float:
        """The sum of a metric's values."""
        lines = self._metrics().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def requests(self) -> dict[tuple[str, int], float]:
        """To the API server so far, by verb and by the answer's code; its Lease does not count."""
        line = r'^serveplane_api_requests_total{verb="(\w+)",code="(\d+)"} (\S+)$'
        return {(verb, int(code)): float(count) for verb, code, count in re.findall(line, self._metrics(), re.MULTILINE)}

    def leads(self) -> bool:
        return self.process.poll() is None and self.metric("serveplane_leader") == 1

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = 40.0) -> int:
        return self.process.wait(seconds)

    def stop(self) -> int:
        """SIGTERM, and its exit code; killed where it does not end."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes it has held at most, and holds now: the larger."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return max(int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmHWM", "VmRSS")))

    def shared_memory(self) -> int:
        """Bytes it holds now, those that it shares with others in part (PSS)."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def at_most(what, seconds: float) -> float:
    """How long it took until `what()` was so; AssertionError where that is longer than `seconds`."""
    began = time.monotonic()
    until(what, seconds)
    return time.monotonic() - began
