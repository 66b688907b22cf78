"""What goes wrong on a machine: full disks, taken ports, dead state, models that eat memory.  Each is told, none is for good."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loadtests.openloop import Load
from tests.local.conftest import Platform, until
from tests.local.test_platform import ROW, answers, ask, condition, of


@pytest.fixture
def own(tmp_path):
    """A platform of this test alone, not started yet."""
    made = Platform(tmp_path / "home")
    made.home.mkdir()
    yield made
    made.serve("platform", "down")
    until(lambda: not made.left(), 10)


def runs(pid):
    """Not so for one that has ended and that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_a_taken_port_is_told_with_who_has_it_and_all_goes_on_once_it_is_free(own, models):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (own.home / "platform.json").write_text(json.dumps({"port": port}))
        done = own.serve("deploy", models[1], "--name", "m", code=1)
        for word in (f"127.0.0.1:{port}", f"pid {os.getpid()}", "serve platform up --port"):
            assert word in done.stderr
        assert "Traceback" not in done.stderr
    assert own.object("deploy", models[1], "--name", "m")["status"]["url"].startswith(f"http://127.0.0.1:{port}/")


def test_what_a_dead_run_left_hinders_nothing_and_a_foreign_process_is_not_touched(own, models):
    with subprocess.Popen(["sleep", "600"]) as stranger:
        (own.home / "processes" / "default").mkdir(parents=True)
        record = {"pid": stranger.pid, "started": 1, "http_port": 20001, "grpc_port": 20002, "was_ready": True}
        record |= {"namespace": "default", "service": "gone", "revision": "gone-predictor-00001", "slot": 0}
        (own.home / "processes" / "default" / "gone-predictor-00001.0.json").write_text(json.dumps(record))
        (own.home / "processes" / "envoy.json").write_text(json.dumps({"pid": stranger.pid, "started": 1}))
        (own.home / "supervisor.json").write_text(json.dumps({"pid": stranger.pid}))
        (own.home / "supervisor.sock").write_text("not a socket")
        (own.home / "services" / "default").mkdir(parents=True)
        (own.home / "services" / "default" / "half.json").write_text('{"object": {"meta')
        assert condition(own.object("deploy", models[1], "--name", "m"))["status"] == "True"
        assert stranger.poll() is None
        stranger.kill()
    assert [p["service"] for p in own.processes()] == ["m"]


def test_services_start_again_after_everything_was_ended(own, models):
    url = own.object("deploy", models[2], "--name", "m", "--min-replicas", 2)["status"]["url"]
    own.serve("platform", "down")
    assert own.left() == []
    assert own.object("get", "m")["status"]["url"] == url
    until(lambda: sum(p["ready"] for p in of(own, "m")) == 2)
    until(lambda: condition(own.object("get", "m"))["status"] == "True", 10)
    assert ask(url, "m") == (200, 2)


def test_a_request_may_be_the_command_that_starts_everything_again(own, models):
    own.serve("deploy", models[2], "--name", "m")
    own.serve("platform", "down")
    assert own.object("predict", "m")["outputs"]


def test_a_watch_and_a_wait_end_with_the_platform_and_do_not_start_it_again(own, models, tmp_path):
    own.serve("deploy", models[1], "--name", "m")
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "model.py").write_text(
        "import time\nclass M:\n    def load(self, path): time.sleep(60)\n    def predict(self, inputs): ...\n"
    )
    command = [sys.executable, "-P", "-m", "deployer.cli"]
    going = [
        subprocess.Popen([*command, *words], env=own.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for words in (["get", "-w", "-o", "name"], ["deploy", tmp_path / "slow" / "model.py"])
    ]
    assert going[0].stdout.readline() == "inferenceservice.serving.kserve.io/m\n"
    # the watch saw the service that is new, so both talk with the platform
    assert going[0].stdout.readline() == "inferenceservice.serving.kserve.io/slow\n"
    own.serve("platform", "down")
    for one in going:
        assert "the platform was ended" in one.communicate(timeout=60)[1]
        assert one.returncode == 1
    assert not own.supervisor_is_up()


def test_what_serves_on_without_a_supervisor_is_told_as_such(own, models):
    own.serve("deploy", models[1], "--name", "m")
    os.kill(own.supervisor(), signal.SIGINT)
    until(lambda: not own.supervisor_is_up())
    assert "2 processes of it serve on" in own.serve("platform", "status").stdout
    assert "2 processes of it serve on" in own.serve("doctor").stdout
    assert "its services go on" in (own.home / "logs" / "supervisor.log").read_text()
    own.serve("platform", "down", timeout=20)
    assert "the platform is not running" in own.serve("platform", "status").stdout


def test_all_is_found_again_when_supervisor_and_envoy_and_predictor_die_at_once(own, models):
    url = own.object("deploy", models[2], "--name", "m")["status"]["url"]
    for pid in (own.supervisor(), own.envoy(), own.processes()[0]["pid"]):
        os.kill(pid, signal.SIGKILL)
    until(lambda: condition(own.object("get", "m"))["status"] == "True" and answers(url, "m", 2))


def test_a_model_over_its_memory_limit_is_ended_and_told_and_another_service_serves_on(own, models, tmp_path):
    other = own.object("deploy", models[1], "--name", "other")["status"]["url"]
    code = "class M:\n    def predict(self, inputs):\n        self.kept = [bytearray(b'x') * (600 << 20)]\n        import time; time.sleep(5)\n        return {'y': inputs['x']}\n"
    (tmp_path / "hungry").mkdir()
    (tmp_path / "hungry" / "model.py").write_text(code)
    model = {
        "modelFormat": {"name": "python"},
        "storageUri": f"{tmp_path}/hungry/model.py",
        "resources": {"limits": {"memory": "400Mi"}},
    }
    manifest = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "hungry"}}
    (tmp_path / "hungry.yaml").write_text(yaml.safe_dump(manifest | {"spec": {"predictor": {"model": model, "timeout": 3}}}))
    url = own.object("apply", "-f", tmp_path / "hungry.yaml", "--wait")["status"]["address"]["url"]
    body = '{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}'
    asking = subprocess.Popen(["curl", "-s", f"{url}/v2/models/hungry/infer", "-d", body], stdout=subprocess.DEVNULL)
    log = own.home / "logs" / "supervisor.log"
    until(lambda: "OOMKilled: a replica held" in log.read_text(), 20)
    assert ask(other, "other") == (200, 1)
    asking.wait(60)
    until(lambda: condition(own.object("get", "hungry"))["status"] == "True", 60)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB for a state directory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root; CI does")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_told_the_old_revision_serves_on_and_it_goes_on_when_there_is_room(small_disk, models):
    own = Platform(small_disk)
    try:
        url = own.object("deploy", models[1], "--name", "m")["status"]["url"]
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(b"x" * 65536)
                    file.flush()
            except OSError:
                pass
        done = own.serve("deploy", models[2], "--name", "m", code=1)
        assert "DiskFull" in done.stderr or "No space left" in done.stderr
        assert ask(url, "m") == (200, 1)
        filler.unlink()
        own.object("deploy", models[2], "--name", "m")
        assert ask(url, "m") == (200, 2)
    finally:
        own.serve("platform", "down")
        until(lambda: not own.left(), 10)


def test_a_command_while_the_platform_ends_is_done_by_the_next_one(own, models, tmp_path):
    """The predictor takes its time to end, and the one who asks neither waits for the old platform nor fails with it."""
    own.object("deploy", models[1], "--name", "m")
    (pid,) = (p["pid"] for p in own.processes())
    os.kill(pid, signal.SIGSTOP)
    down = subprocess.Popen(
        [sys.executable, "-P", "-m", "deployer.cli", "platform", "down"], env=own.environment, stdout=subprocess.DEVNULL
    )
    until(lambda: not (own.home / "supervisor.sock").exists(), 10)
    assert (own.home / "supervisor.json").exists()
    command = [sys.executable, "-P", "-m", "deployer.cli", "get", "m", "-o", "name"]
    with subprocess.Popen(command, env=own.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as get:
        assert "starting the platform" in get.stderr.readline()
        os.kill(pid, signal.SIGCONT)
        assert get.wait(25) == 0, get.stderr.read()
    assert down.wait(10) == 0
    until(lambda: condition(own.object("get", "m"))["status"] == "True", 20)


def test_a_service_whose_own_port_is_taken_is_told_and_the_others_go_on(own, models):
    port = int(own.object("deploy", models[1], "--name", "a")["status"]["address"]["url"].rpartition(":")[2])
    own.object("deploy", models[1], "--name", "b")
    own.serve("platform", "down")
    with socket.create_server(("127.0.0.1", port)):
        url = own.object("deploy", models[2], "--name", "b", "--timeout", 20)["status"]["url"]
        assert ask(url, "b") == (200, 2)
        until(lambda: {p["revision"] for p in of(own, "b")} == {"b-predictor-00002"}, 20)
        told = until(lambda: condition(own.object("get", "a"), "IngressReady"), 20)
        assert told["status"] == "False"
        assert str(port) in told["message"]


def test_another_envoy_takes_the_place_of_the_one_that_runs_and_no_request_is_lost(own, models):
    """F16: those who keep their connections, and those who come by a new one each time; also in the middle of a request."""
    service = own.object("deploy", models[1], "--name", "m", "--min-replicas", 2)["status"]
    path = "/v1/models/m:predict"
    first = own.envoy()
    with (
        Load(service["url"] + path, ROW.encode(), rate=100) as kept,
        Load(service["url"] + path, ROW.encode(), rate=50, headers={"connection": "close"}) as fresh,
        Load(service["address"]["url"] + path, ROW.encode(), rate=50) as direct,
    ):
        loads = (kept, fresh, direct)
        for _ in range(2):
            before, supervisor = own.envoy(), own.supervisor()
            own.serve("platform", "restart")
            assert own.envoy() != before
            assert own.supervisor() != supervisor
        # the first one ends once it has told everybody to come by another connection
        until(lambda: not runs(first), 20)
        seen = [len(load.answers) for load in loads]
        until(lambda: all(len(load.answers) > count + 50 for load, count in zip(loads, seen, strict=True)), 20)
    assert [load.lost for load in loads] == [[], [], []]
    slowest = max(answer.seconds for load in loads for answer in load.answers)
    assert slowest < 1.0, slowest


def test_an_envoy_of_another_installation_is_replaced_by_the_next_supervisor(own, models):
    url = own.object("deploy", models[1], "--name", "m")["status"]["url"]
    record = own.home / "processes" / "envoy.json"
    own.kill(own.supervisor())
    old = json.loads(record.read_text())
    record.write_text(json.dumps(old | {"like": "another one"}))
    own.object("get", "m")
    until(lambda: own.envoy() != old["pid"])
    assert ask(url, "m") == (200, 1)


def test_where_two_envoys_can_not_agree_the_old_one_is_ended_first(own, models):
    """As after an upgrade to one that shares its memory in another way: here the number by which they find each other is wrong."""
    url = own.object("deploy", models[1], "--name", "m")["status"]["url"]
    old = own.envoy()
    (own.home / "envoy" / "base-id").write_text("4242")
    own.serve("platform", "restart")
    assert own.envoy() != old
    assert not runs(old)
    until(lambda: answers(url, "m"), 10)
