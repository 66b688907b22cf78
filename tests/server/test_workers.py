"""`--workers N`: one address, one metrics page, one readiness, and nothing lost when a worker dies."""

import os
import select
import signal
import time
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "python" / "model.py"


@pytest.fixture(scope="module")
def server(serve, lane):
    with serve(EXAMPLE, "--workers", "2", *lane) as started:
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


def end(pid) -> None:
    """Kill a process, and wait until it has ended and its sockets with it."""
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([process], [], [], 30)[0]
    os.close(process)


def predict(server):
    return httpx.post(f"{server.http}/v1/models/{server.name}:predict", json={"instances": ["good", "bad"]}).status_code


def test_connections_are_spread_and_every_page_counts_them_all(server):
    assert [predict(server) for _ in range(40)] == [200] * 40
    for _ in range(4):
        assert metric(server, "serve_request_duration_seconds_count", protocol="v1", code="200") == 40
    with triton.InferenceServerClient(server.grpc) as client:
        assert client.is_server_ready()


def test_a_worker_that_dies_is_replaced_and_its_successor_takes_nothing_before_it_is_ready(serve):
    with serve(EXAMPLE, "--workers", "2") as server:
        before = children(server.process.pid)
        assert len(before) == 2
        end(before[0])
        deadline = time.monotonic() + 60
        statuses = {predict(server)}
        while server.stderr.count("model ready") < 3 and time.monotonic() < deadline:
            statuses.add(predict(server))
        assert statuses == {200}
        now = children(server.process.pid)
        assert len(now) == 2
        assert before[1] in now
        assert [predict(server) for _ in range(20)] == [200] * 20
        with triton.InferenceServerClient(server.grpc) as client:
            assert client.is_server_ready()


def test_a_model_that_can_not_be_loaded_ends_all_workers_with_its_reason(serve):
    with pytest.raises(RuntimeError, match="no model found"), serve("/nowhere/model.onnx", "--workers", "2"):
        pass


def test_a_stop_signal_reaches_all_workers(serve):
    with serve(EXAMPLE, "--workers", "2") as server:
        workers = children(server.process.pid)
        assert server.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_with_the_process_that_started_them(serve):
    with serve(EXAMPLE, "--workers", "2") as server:
        workers = [os.pidfd_open(pid) for pid in children(server.process.pid)]
        server.process.kill()
        for worker in workers:
            assert select.select([worker], [], [], 30)[0]
            os.close(worker)
