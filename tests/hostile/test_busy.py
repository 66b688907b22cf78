"""Numbers 48, 54 and 55 of the catalogue: a model that is not ready, a client that goes away, a full queue.

The gates of tests/server say what is under way; more of this is in tests/server/test_isolation.py and test_life.py.
"""

from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from tests.conftest import running
from tests.hostile.protocols import INFER, Case, OverGrpc, OverHttp, as_json, binary, given, message, sized, tensor, v2


def over_v1(n: int, model: str) -> Case:
    return Case("", 200, "", as_json({"instances": [[n]]}))


def over_v2(n: int, model: str) -> Case:
    return Case("", 200, "", v2(tensor("x", "INT64", [1, 1], [n])))


def over_binary(n: int, model: str) -> Case:
    body, headers = binary(sized("x", "INT64", [1, 1], 8), tail=np.int64(n).tobytes())
    return Case("", 200, "", body, headers=headers)


def over_grpc(n: int, model: str) -> Case:
    return Case("", "OK", "", message(given("x", "INT64", [1, 1], int64_contents=[n]), model=model))


PROTOCOLS = {
    "V1": (OverHttp("/v1/models/{}:predict"), over_v1),
    "V2": (OverHttp("/v2/models/{}/infer"), over_v2),
    "binary": (OverHttp("/v2/models/{}/infer"), over_binary),
    "gRPC": (OverGrpc(INFER), over_grpc),
}


@pytest.fixture(scope="module")
def gated(serve, server_models, gate):
    flags = "--max_queue=3", "--max_batch_size=8"
    with serve(f"{server_models}/gated.py:Gated", *flags, env=gate.environment) as server:
        yield server


@pytest.fixture
def busy(gated, gate):
    """A context in which the model is at work for somebody, so that what comes must wait."""

    @contextmanager
    def busy():
        how, sent = PROTOCOLS["V2"]
        holder = how.begin(gated, sent(1000, "gated"))
        with gate.held():
            gate.seen.clear()
            yield
        assert how.end(holder).code == 200

    return busy


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_goes_away_is_not_worked_for_and_its_neighbours_are(gated, gate, busy, in_flight, protocol):
    how, sent = PROTOCOLS[protocol]
    with busy():
        first, leaver, last = (how.begin(gated, sent(n, "gated")) for n in (11, 12, 13))
        in_flight(gated, 4)
        leaver.cancel() if isinstance(leaver, grpc.Future) else leaver.close()
        in_flight(gated, 3)
    assert [how.end(one).code for one in (first, last)] == [sent(0, "").code] * 2
    assert sorted(gate.rows()) == [11, 13]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_full_queue_says_so_and_when_to_come_back(gated, busy, in_flight, protocol):
    how, sent = PROTOCOLS[protocol]
    with busy():
        waiting = [how.begin(gated, sent(n, "gated")) for n in (11, 12, 13)]
        in_flight(gated, 4)
        said = how.end(how.begin(gated, sent(14, "gated")))
        assert said.code == ("RESOURCE_EXHAUSTED" if protocol == "gRPC" else 429)
        assert "the queue is full: 3 rows wait" in said.text
        assert int(said.headers["retry-after"]) >= 1
    assert [how.end(one).code for one in waiting] == [sent(0, "").code] * 3


class Loading:
    """A server's addresses before it has said that it is ready."""

    def __init__(self, http: int, grpc_port: int) -> None:
        self.http, self.grpc, self.name = f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc_port}", "slow"


@pytest.fixture(scope="module")
def ports():
    import socket

    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def test_a_model_that_loads_is_503_over_each_protocol(server_models, gate, ports):
    """And answers as soon as it is there."""
    import threading

    flags = f"--http_port={ports[0]}", f"--grpc_port={ports[1]}", "--model_name=slow"
    ready, end = threading.Event(), threading.Event()

    def serve_it() -> None:
        with running(f"{server_models}/gated.py:SlowToLoad", *flags, env=gate.environment):
            ready.set()
            end.wait(60)

    thread = threading.Thread(target=serve_it)
    thread.start()
    server = Loading(*ports)
    try:
        with gate.held():
            for protocol, (how, sent) in PROTOCOLS.items():
                said = how.end(how.begin(server, sent(1, "slow")))
                assert said.code == ("UNAVAILABLE" if protocol == "gRPC" else 503)
                assert said.text == "model 'slow' is not ready, it is LOADING"
                assert int(said.headers["retry-after"]) >= 1
        assert ready.wait(30)
        for how, sent in PROTOCOLS.values():
            assert how.end(how.begin(server, sent(1, "slow"))).code == sent(0, "").code
    finally:
        end.set()
        thread.join()
