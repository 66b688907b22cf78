"""`--workers N`: one address, one metrics page, one readiness, and nothing lost when a worker dies."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "python" / "model.py"


@pytest.fixture(scope="module")
def server(serve):
    with serve(EXAMPLE, "--workers", "2") as started:
        yield started


def children(pid):
    return [int(p) for t in os.listdir(f"/proc/{pid}/task") for p in Path(f"/proc/{pid}/task/{t}/children").read_text().split()]


def metric(server, name, **labels):
    page = httpx.get(f"{server.http}/metrics").text
    return sum(
        s.value
        for family in text_string_to_metric_families(page)
        for s in family.samples
        if s.name == name and all(s.labels.get(k) == v for k, v in labels.items())
    )


def predict(server):
    return httpx.post(f"{server.http}/v1/models/{server.name}:predict", json={"instances": ["good", "bad"]}).status_code


def test_connections_are_spread_and_every_page_counts_them_all(server):
    assert [predict(server) for _ in range(40)] == [200] * 40
    for _ in range(4):
        assert metric(server, "serve_request_duration_seconds_count", protocol="v1", code="200") == 40
    with triton.InferenceServerClient(server.grpc) as client:
        assert client.is_server_ready()


def test_a_worker_that_dies_is_replaced(server):
    before = children(server.process.pid)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now = children(server.process.pid)
        if len(now) == 2 and before[0] not in now and metric(server, "serve_model_state", state="READY") == 1:
            break
    assert before[1] in now
    assert [predict(server) for _ in range(20)] == [200] * 20


def test_a_model_that_can_not_be_loaded_ends_all_workers_with_its_reason(serve):
    with pytest.raises(RuntimeError, match="no model found"), serve("/nowhere/model.onnx", "--workers", "2"):
        pass


def test_a_stop_signal_reaches_all_workers(serve):
    with serve(EXAMPLE, "--workers", "2") as server:
        workers = children(server.process.pid)
        assert server.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
