"""A platform of its own for the tests of one file: the `serve` command with a state directory that is gone afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


class Platform:
    """The `serve` command as a user types it, against the state directory `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "SERVEPLANE_HOME": str(home)}

    def serve(self, *arguments, code=0, timeout=120.0, **options):
        command = [sys.executable, "-P", "-m", "deployer.cli", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False,
            env=self.environment, **options,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def object(self, *arguments, **options):
        return json.loads(self.serve(*arguments, "-o", "json", **options).stdout)

    def processes(self):
        return self.object("platform", "status")["processes"]

    def supervisor(self) -> int:
        return int(json.loads((self.home / "supervisor.json").read_text())["pid"])

    def supervisor_is_up(self) -> bool:
        return self.object("platform", "status")["pid"] is not None

    def envoy(self) -> int:
        return int(json.loads((self.home / "processes" / "envoy.json").read_text())["pid"])

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def left(self) -> list[str]:
        """Command lines of processes that name the state directory."""
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if str(self.home) in line]


def until(what, seconds=30.0):
    """Wait until `what()` is true, looking often; its value."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not so within {seconds:g} s"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    home = tmp_path_factory.mktemp("p")
    made = Platform(home)
    try:
        yield made
    finally:
        made.serve("platform", "down")
        until(lambda: not made.left(), 10)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Models with one signature whose answers tell them apart: model N answers N to anything."""
    import skops.io
    from sklearn.linear_model import LinearRegression

    folder = tmp_path_factory.mktemp("models")
    made = {}
    for number in (1, 2, 3):
        made[number] = folder / f"m{number}.skops"
        skops.io.dump(LinearRegression().fit(np.eye(4), np.full(4, float(number))), made[number])
    broken = folder / "broken.skops"
    broken.write_bytes(made[1].read_bytes()[:200])
    return made | {"broken": broken}
