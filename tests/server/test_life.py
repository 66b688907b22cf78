"""A predictor's life as its surroundings see it: start, readiness, failure, drain, end.  Real processes, real signals."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
# A row of this value waits in the gated model until the test lets it go.
HOLD = 1000


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Launched(NamedTuple):
    """A process of which nobody knows yet whether it will ever be ready."""

    process: subprocess.Popen
    http: str
    grpc: str


@contextmanager
def launched(*flags, cwd=None, env=None):
    http, grpc_port = free_port(), free_port()
    command = [sys.executable, "-P", "-m", "server", "--http_port", str(http), "--grpc_port", str(grpc_port), *flags]
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=cwd, env=env)
        process.errors = lambda: (stderr.seek(0), stderr.read())[1]
        try:
            yield Launched(process, f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc_port}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a process that comes to its end by itself."""
    code = process.wait(60)
    return code, process.stdout.read(), process.errors()


@pytest.fixture
def environment(gate):
    return {**os.environ, **gate.environment}


def v2(value):
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [value]}]}


def message(value):
    given = pb.ModelInferRequest.InferInputTensor(name="x", shape=[1, 1], datatype="INT64", contents={"int64_contents": [value]})
    return pb.ModelInferRequest(model_name="gated", inputs=[given])


PATH = "/v2/models/gated/infer"
LOADING = {"version": "0", "state": "LOADING", "status": {"error_code": "OK", "error_message": ""}}
NOT_READY = "model 'gated' is not ready, it is LOADING"


@pytest.mark.parametrize(
    ("method", "path", "status", "answer"),
    [
        ("GET", "/v2/health/live", 200, {"live": True}),
        ("GET", "/v2/health/ready", 503, {"live": True, "ready": False}),
        ("GET", "/v2/models/gated/ready", 503, {"name": "gated", "ready": False}),
        ("GET", "/v1/models/gated", 503, {"name": "gated", "ready": False, "model_version_status": [LOADING]}),
        ("GET", "/v2/models/gated", 503, {"error": NOT_READY}),
        ("GET", "/v2/models", 200, {"models": ["gated"]}),
        ("GET", "/v2/models/other", 404, {"error": "unknown model 'other'; models here: gated"}),
        ("POST", "/v2/repository/index", 200, [{"name": "gated", "state": "LOADING", "reason": ""}]),
        ("POST", PATH, 503, {"error": NOT_READY}),
        ("POST", "/v1/models/gated:predict", 503, {"error": NOT_READY}),
        ("POST", "/v2/models/other/infer", 404, {"error": "unknown model 'other'; models here: gated"}),
    ],
)
def test_while_its_model_loads_a_server_is_alive_and_not_ready(loading, wire, method, path, status, answer):
    with wire(loading.http) as connection:
        found = connection.ask(method, path, v2(1) if path.endswith(("infer", "predict")) else b"")
    assert (found.status, found.json) == (status, answer)
    if "error" in answer and status == 503:
        assert int(found.headers["retry-after"]) >= 1


@pytest.fixture(scope="module")
def loading(gate, models, lane):
    """A server whose model loads for as long as the tests of this module need."""
    server = launched("--model_dir", f"{models}/gated.py:SlowToLoad", *lane, env={**os.environ, **gate.environment})
    with server as loading, gate.held():
        yield loading


def test_while_its_model_loads_a_server_says_so_over_grpc(loading):
    with grpc.insecure_channel(loading.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(pb.ServerLiveRequest()).live is True
        assert stub.ServerReady(pb.ServerReadyRequest()).ready is False
        assert stub.ModelReady(pb.ModelReadyRequest(name="gated")).ready is False
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(message(1))
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNAVAILABLE, NOT_READY)
        assert int(dict(raised.value.trailing_metadata())["retry-after"]) >= 1


def test_what_a_server_shows_while_its_model_loads(loading, wire, metrics):
    with wire(loading.http) as connection:
        assert connection.ask("GET", "/docs").status == 200
        assert "/v2/models/gated/infer" not in connection.ask("GET", "/openapi.json").json["paths"]
    assert metrics(loading)['serve_model_state{model="gated",state="LOADING",version=""}'] == 1


def test_a_watcher_sees_a_server_get_ready_and_drain(gate, models, environment, wire, lane):
    flags = "--model_dir", f"{models}/gated.py:SlowToLoad", "--output=json", "--drain_delay=60", *lane
    with launched(*flags, env=environment) as server, gate.held(), grpc.insecure_channel(server.grpc) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watched).status == NOT_SERVING
        gate.close_held()
        assert next(watched).status == SERVING
        assert json.loads(server.process.stdout.readline())["name"] == "gated"
        server.process.send_signal(signal.SIGTERM)
        assert next(watched).status == NOT_SERVING
        with wire(server.http) as connection:
            ready = connection.ask("GET", "/v2/health/ready")
            assert (ready.status, ready.json, ready.headers["connection"]) == (503, {"live": True, "ready": False}, "close")
        with wire(server.http) as connection:
            answer = connection.ask("POST", PATH, v2(2))
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert connection.read().status == 0
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelInfer(message(2)).model_name == "gated"
        assert stub.ServerReady(pb.ServerReadyRequest()).ready is False


def test_a_load_that_fails_ends_the_process_with_one_line(gate, models, environment):
    with launched("--model_dir", f"{models}/gated.py:SlowToLoad", env=environment) as server, gate.entered() as connection:
        connection.sendall(b"!")
        code, out, err = ended(server.process)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("serve: SlowToLoad.load() failed at ")
    assert err.endswith("RuntimeError: the test said so\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_that_is_still_loading(gate, models, environment, number):
    with launched("--model_dir", f"{models}/gated.py:SlowToLoad", env=environment) as server, gate.held():
        server.process.send_signal(number)
        assert ended(server.process)[:2] == (0, "")


BROKEN = {
    "syntax.py": "class Model:\n    def predict(self\n",
    "raises.py": "raise ValueError('no')\n",
    "exits.py": "import sys\nsys.exit('bye')\n",
    "needs.py": "import a_package_that_nobody_has\n",
    "none.py": "x = 1\n",
    "two.py": "class A:\n    def predict(self, inputs): ...\nclass B:\n    def predict(self, inputs): ...\n",
    "garbage.skops": "not a zip",
    "garbage.onnx": "not protobuf",
    "text.txt": "hello",
}


@pytest.mark.parametrize(
    ("model", "flags", "text"),
    [
        ("absent.skops", [], "absent.skops"),
        ("hf://owner/model", [], "fetching from the Hugging Face hub is not built"),
        ("syntax.py", [], "syntax.py:2: SyntaxError"),
        ("raises.py", [], "ValueError: no"),
        ("exits.py", [], "SystemExit: bye"),
        ("needs.py", [], "'a_package_that_nobody_has', which is not installed"),
        ("none.py", [], "no class with a predict method"),
        ("two.py", [], "name one: two.py:A"),
        ("two.py:C", [], "no class 'C'"),
        ("two.py:A", ["--trust_pickle=false"], "--trust-pickle"),
        ("two.py:A", ["--runtime_option=a=b"], "no option 'a'"),
        ("garbage.skops", [], "garbage.skops"),
        ("garbage.onnx", [], "garbage.onnx"),
        ("text.txt", [], "text.txt"),
    ],
)
def test_a_model_that_can_not_be_served_is_one_line_and_exit_1(tmp_path, model, flags, text):
    for name, content in BROKEN.items():
        (tmp_path / name).write_text(content)
    uri = model if "://" in model else f"{tmp_path}/{model}"
    with launched("--model_dir", uri, *flags, "--output=json", cwd=tmp_path) as server:
        code, out, err = ended(server.process)
    assert (code, out) == (1, "")
    assert err.startswith("serve: ")
    assert text in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(("flag", "what"), [("--http_port", "HTTP"), ("--grpc_port", "gRPC")])
def test_a_port_that_is_taken_is_one_line_with_port_and_flag(models, flag, what, lane):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        with launched("--model_dir", f"{models}/sums.py:Sums", flag, port, *lane, "--output=json") as server:
            code, out, err = ended(server.process)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"serve: {what} can't listen on 127.0.0.1:{port}")
    assert f"choose another port with {flag}, or 0" in err


def test_an_address_that_is_not_ours_is_one_line(models):
    with launched("--model_dir", f"{models}/sums.py:Sums", "--host", "192.0.2.1") as server:
        code, out, err = ended(server.process)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "192.0.2.1" in err


def test_no_model_is_exit_2_and_names_the_flag():
    with launched() as server:
        code, out, err = ended(server.process)
    assert (code, out) == (2, "")
    assert "--model_dir" in err


def test_files_in_the_working_directory_shadow_nothing(serve, models, wire, tmp_path):
    names = "server predictors deployer numpy grpc fastapi uvicorn uvloop orjson msgspec json asyncio logging sitecustomize model"
    for name in names.split():
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')\n")
    with serve(f"{models}/sums.py:Sums", cwd=tmp_path) as server, wire(server.http) as connection:
        assert connection.ask("GET", "/v2/health/ready").status == 200


def test_stdout_holds_the_ready_line_and_nothing_else(serve, models, wire):
    with serve(f"{models}/sums.py:Sums") as server:
        curl = server.info.pop("curl")
        assert f"{server.http}/v2/models/sums/infer" in curl
        assert server.info == {
            "name": "sums",
            "runtime": "python",
            "platform": "python_class",
            "http": server.http,
            "grpc": server.grpc,
            "docs": f"{server.http}/docs",
            "default_outputs": ["total"],
            "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
            "outputs": [{"name": "total", "datatype": "FP64", "shape": [-1]}],
            "warnings": [],
            "models": [{"name": "sums", "versions": [{"version": "", "state": "READY", "reason": ""}], "labels": {}}],
        }
        with wire(server.http) as connection:
            connection.ask("GET", "/docs")
            connection.ask("POST", "/v2/models/sums/infer", b"bad")
        assert server.stop() == 0
        assert server.process.stdout.read() == ""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_page_for_people_has_a_command_that_works_when_pasted(models, workers):
    with launched("--model_dir", f"{models}/sums.py:Sums", "--output=text", "--workers", workers) as server:
        page = []
        while "Ctrl-C" not in (page[-1] if page else ""):
            page.append(server.process.stdout.readline())
        assert "sums is ready" in "".join(page)
        words = shlex.split(next(line for line in page if "curl" in line))
        assert words[2] == f"{server.http}/v2/models/sums/infer"
        if shutil.which("curl"):
            answer = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)
            assert answer["outputs"][0]["name"] == "total"


def test_ipv6_is_an_address_too(serve, models, lane):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serve(f"{models}/sums.py:Sums", "--host=::1", *lane) as server, grpc.insecure_channel(server.grpc) as channel:
        assert server.http.startswith("http://[::1]:")
        assert service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerReady(pb.ServerReadyRequest()).ready


def refuses(address: str) -> bool:
    host, port = address.removeprefix("http://").rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return True
    return False


def test_what_is_under_way_is_finished_before_the_end(serve, models, gate, lane, wire, until):
    gated = serve(f"{models}/gated.py:Gated", "--concurrency=2", *lane, env=gate.environment)
    with gated as server, wire(server.http) as asking, wire(server.http) as idle, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert idle.ask("GET", "/v2/health/ready").status == 200
        with ExitStack() as held:
            # one after the other, because what comes at once is one batch
            asking.send("POST", PATH, v2(HOLD))
            held.enter_context(gate.held())
            calling = stub.ModelInfer.future(message(HOLD + 1))
            held.enter_context(gate.held())
            server.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(server.http) and refuses(server.grpc), "the end of listening")
            assert idle.read().status == 0
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelInfer(message(1), timeout=30)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not calling.done()
        answer = asking.read()
        assert (answer.json["outputs"][0]["data"], answer.headers["connection"]) == ([2 * HOLD], "close")
        assert calling.result(timeout=30).raw_output_contents[0] == (2 * HOLD + 2).to_bytes(8, "little")
        assert server.process.wait(40) == 0


def test_what_does_not_end_in_time_is_given_up(serve, models, gate, wire):
    gated = serve(f"{models}/gated.py:Gated", "--grace=1", env=gate.environment)
    with gated as server, wire(server.http) as asking:
        asking.send("POST", PATH, v2(HOLD))
        with gate.held():
            assert server.stop() == 0
            assert asking.read().status == 0


@pytest.mark.parametrize(("under_way", "code"), [(False, 0), (True, 128 + signal.SIGTERM)])
def test_a_second_signal_ends_the_process_there_and_then(serve, models, gate, wire, until, under_way, code):
    gated = serve(f"{models}/gated.py:Gated", "--drain_delay=600", "--grace=700", env=gate.environment)
    with gated as server, wire(server.http) as asking:
        asking.send("POST", PATH, v2(HOLD if under_way else 1))
        waiting = gate.entered() if under_way else asking.read()
        server.process.send_signal(signal.SIGTERM)

        def draining() -> bool:
            with wire(server.http) as connection:
                return connection.ask("GET", "/v2/health/ready").status == 503

        until(draining, "readiness to end")
        assert server.stop(signal.SIGTERM) == code
        assert waiting


def test_an_interrupt_does_not_wait_for_load_balancers(serve, models):
    with serve(f"{models}/sums.py:Sums", "--drain_delay=600", "--grace=700") as server:
        assert server.stop(signal.SIGINT) == 0


def test_a_model_is_closed_at_the_end_and_can_not_change_how_it_ends(serve, models, gate):
    with serve(f"{models}/gated.py:TellsItsEnd", env=gate.environment) as server:
        gate.seen.clear()
        assert server.stop() == 0
        assert gate.seen == [[77]]
        assert "raised while closing" in server.stderr
