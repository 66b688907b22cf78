"""The long load of `tests.soak`, for a short while."""

import subprocess
import sys
from pathlib import Path


def test_a_server_that_keeps_changing_loses_nothing_and_answers_right():
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.25", "--rate", "60"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 lost, 0 wrong" in done.stdout
