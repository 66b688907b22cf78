"""KServe's published Python SDK against our kinds and our controller: unmodified, in an environment of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployer.kubernetes.kinds import CONFIG_MAP
from tests.cluster.plane import Kubelet, booted
from tests.cluster.test_platform import Running
from tests.left_out import leave_out

# The SDK says which clients it works with; its own requirement, kubernetes < 34, is not ours.
WANTED = ("kserve==0.21.0", "kubernetes<34")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "serveplane" / "kserve-0.21.0"


@pytest.fixture(scope="module")
def sdk():
    """A Python that has it; made on first use, kept for the next."""
    python = CACHE / "bin" / "python"
    if not (CACHE / ".whole").exists():
        uv = [sys.executable, "-m", "uv"]
        for command in (
            ["venv", "--quiet", "--clear", "--python", sys.executable, CACHE],
            ["pip", "install", "--quiet", "--python", python, *WANTED],
        ):
            done = subprocess.run([*uv, *map(str, command)], capture_output=True, text=True)
            if done.returncode:
                leave_out(f"KServe's SDK can't be installed: {done.stderr[-300:]}")
        (CACHE / ".whole").touch()
    return python


@pytest.fixture(scope="module")
def told(sdk, tmp_path_factory):
    with booted() as plane:
        plane.configure("istio")
        # as the chart has it: the SDK reads how Secrets' keys are called
        names = {"s3": {"s3AccessKeyIDName": "AWS_ACCESS_KEY_ID", "s3SecretAccessKeyName": "AWS_SECRET_ACCESS_KEY"}}
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "inferenceservice-config", "namespace": "kserve"}}
        path = CONFIG_MAP.path("kserve", "inferenceservice-config")
        plane.api.apply(path, config | {"data": {"credentials": json.dumps(names)}}, "credentials")
        kubelet, running = Kubelet(plane), Running(plane)
        kubelet.start()
        plane.namespace("sdk")
        script = Path(__file__).with_name("with_sdk.py")
        command = [sdk, script, plane.kubeconfig, "sdk", tmp_path_factory.mktemp("sdk")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        running.stop()
        kubelet.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {one["step"]: one["found"] for one in lines}


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ("created", "sdk"),
        ("url", "http://sdk-sdk.example.com"),
        ("ready", True),
        ("listed", ["sdk"]),
        ("canary", {"sdk-predictor-00001": 80, "sdk-predictor-00002": 20}),
        ("watched", True),
        ("promoted", {"sdk-predictor-00002": 100}),
        ("legacy", True),
        ("deleted", True),
    ],
)
def test_the_sdk_finds_what_it_finds_with_kserve(told, step, wanted):
    assert told[step] == wanted


def test_credentials_that_it_stores_reach_the_storage_initializer(told):
    found = told["credentials"]
    assert found["AWS_ACCESS_KEY_ID"] is True
    assert found["AWS_SECRET_ACCESS_KEY"] is True
    assert found["AWS_ENDPOINT_URL"] == "http://minio.example.com:9000"


def test_a_refusal_comes_with_its_reason(told):
    assert "a lowercase RFC 1123 subdomain" in told["refused"]
