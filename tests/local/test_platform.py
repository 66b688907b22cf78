"""A whole platform: the command, the supervisor, Envoy and predictors, all real, and requests all the while."""

import http.client
import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from urllib.parse import urlsplit

import pytest
import yaml

from tests.local.conftest import until

ROW = json.dumps({"instances": [[5.1, 3.5, 1.4, 0.2]]})


class Traffic:
    """Requests to a service from `clients` threads, `rate` a second in all, from entering to leaving; every answer is kept."""

    def __init__(self, url, name, rate=120, clients=6):
        parts = urlsplit(url)
        self.netloc, self.path = parts.netloc, f"{parts.path}/v1/models/{name}:predict"
        self.gap, self.answers, self.lost = clients / rate, [], []
        self.done = threading.Event()
        self.threads = [threading.Thread(target=self.client) for _ in range(clients)]

    def client(self):
        while not self.done.is_set():
            started = time.monotonic()
            connection = http.client.HTTPConnection(self.netloc, timeout=30)
            try:
                connection.request("POST", self.path, ROW, {"content-type": "application/json"})
                response = connection.getresponse()
                body = response.read()
                if response.status == 200:
                    self.answers.append((started, round(json.loads(body)["predictions"][0])))
                else:
                    self.lost.append((response.status, body))
            except (OSError, http.client.HTTPException) as error:
                self.lost.append((type(error).__name__, str(error)))
            finally:
                connection.close()
            self.done.wait(max(0.0, self.gap - (time.monotonic() - started)))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        for thread in self.threads:
            thread.join()

    def next(self, number):
        """The answers of the next `number` requests that are sent from now on."""
        now = time.monotonic()
        until(lambda: sum(at > now for at, _ in self.answers) >= number or self.lost, 60)
        return [answer for at, answer in self.answers if at > now]


def ask(url, name, headers=None):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request("POST", f"{parts.path}/v1/models/{name}:predict", ROW, headers or {})
        response = connection.getresponse()
        body = json.loads(response.read())
        return response.status, round(body["predictions"][0]) if response.status == 200 else body
    finally:
        connection.close()


def condition(service, kind="Ready"):
    return next(c for c in service["status"]["conditions"] if c["type"] == kind)


def shares(service):
    return {t["revisionName"]: t["percent"] for t in service["status"]["components"]["predictor"]["traffic"]}


def test_a_cycle_of_canaries_loses_no_request(platform, models):
    url = platform.object("deploy", models[1], "--name", "cycle")["status"]["url"]
    with Traffic(url, "cycle") as traffic:
        service = platform.object("deploy", models[2], "--name", "cycle", "--canary", 20)
        assert shares(service) == {"cycle-predictor-00001": 80, "cycle-predictor-00002": 20}
        found = traffic.next(400)
        assert 0.10 < found.count(2) / len(found) < 0.32
        assert ask(url, "cycle", {"serve-revision": "candidate"}) == (200, 2)
        service = platform.object("deploy", models[2], "--name", "cycle", "--canary", 50)
        assert sorted(shares(service).values()) == [50, 50]
        service = platform.object("promote", "cycle")
        assert set(traffic.next(60)) == {2}
        component = service["status"]["components"]["predictor"]
        assert component["latestRolledoutRevision"] == "cycle-predictor-00002"
        assert component["previousRolledoutRevision"] == "cycle-predictor-00001"
        done = platform.serve("deploy", models["broken"], "--name", "cycle", "--canary", 50, code=1)
        assert "ModelLoadFailed" in done.stderr
        assert "broken.skops" in done.stderr
        assert set(traffic.next(60)) == {2}
        platform.object("rollback", "cycle")
        assert set(traffic.next(60)) == {2}
        platform.object("rollback", "cycle", "--to", "cycle-predictor-00001")
        assert set(traffic.next(60)) == {1}
    assert traffic.lost == []
    platform.serve("delete", "cycle")
    assert ask(url, "cycle")[0] == 404


def test_a_file_with_new_content_under_the_same_name_is_a_new_revision_and_the_old_one_can_come_back(platform, models, tmp_path):
    model = tmp_path / "again.skops"
    model.write_bytes(models[1].read_bytes())
    url = platform.object("deploy", model)["status"]["url"]
    model.write_bytes(models[3].read_bytes())
    assert ask(url, "again") == (200, 1)
    platform.object("deploy", model)
    assert ask(url, "again") == (200, 3)
    platform.object("rollback", "again")
    assert ask(url, "again") == (200, 1)
    platform.serve("delete", "again")


def test_a_service_has_a_port_of_its_own_and_answers_by_host_name(platform, models):
    service = platform.object("deploy", models[2], "--name", "own")
    assert ask(service["status"]["address"]["url"], "own") == (200, 2)
    base = service["status"]["url"].partition("/serving")[0]
    assert ask(base, "own", {"host": "own-default.localhost"}) == (200, 2)
    code, body = ask(base + "/serving/default/nobody", "nobody")
    assert code == 404
    assert body["error"]
    platform.serve("delete", "own")


@pytest.fixture(scope="module")
def pair(platform, models):
    """A service of two predictors."""
    service = platform.object("deploy", models[1], "--name", "pair", "--min-replicas", 2)
    return service["status"]["url"]


def of(platform, name):
    return [p for p in platform.processes() if p["service"] == name]


def test_killing_one_of_two_predictors_loses_nothing_and_it_is_replaced(platform, pair):
    victim = of(platform, "pair")[0]["pid"]
    with Traffic(pair, "pair") as traffic:
        traffic.next(20)
        platform.kill(victim)
        traffic.next(60)
        until(lambda: [p["ready"] for p in of(platform, "pair")] == [True, True])
        traffic.next(60)
    assert traffic.lost == []


def test_killing_the_supervisor_loses_nothing_and_the_next_command_finds_all_as_it_was(platform, pair):
    before = [p["pid"] for p in of(platform, "pair")]
    with Traffic(pair, "pair") as traffic:
        traffic.next(20)
        platform.kill(platform.supervisor())
        traffic.next(60)
        service = platform.object("get", "pair")
        traffic.next(60)
    assert traffic.lost == []
    assert service["status"]["url"] == pair
    assert [p["pid"] for p in of(platform, "pair")] == before


def test_envoy_is_started_again_where_it_dies(platform, pair):
    dead = platform.envoy()
    platform.kill(dead)
    until(lambda: platform.envoy() != dead, 5)
    until(lambda: answers(pair, "pair"), 5)


def answers(url, name, value=1):
    """Whether it does, also where nobody takes connections for a moment."""
    try:
        return ask(url, name) == (200, value)
    except OSError:
        return False


def test_requests_in_flight_are_answered_when_their_predictor_is_told_to_stop(platform, tmp_path):
    code = "import time\nclass M:\n    def predict(self, inputs):\n        time.sleep(float(inputs['x'].ravel()[0]))\n        return {'y': inputs['x']}\n"
    (tmp_path / "model.py").write_text(code)
    url = platform.object("deploy", f"{tmp_path}/model.py", "--name", "slow")["status"]["url"]
    body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [3.0]}]})
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request("POST", f"{parts.path}/v2/models/slow/infer", body)
    (one,) = of(platform, "slow")
    os.kill(one["pid"], signal.SIGTERM)
    assert connection.getresponse().status == 200
    platform.serve("delete", "slow")


def test_replicas_follow_the_work_between_their_bounds(platform, tmp_path):
    code = "import time\nclass M:\n    def predict(self, inputs):\n        time.sleep(0.05)\n        return {'y': inputs['x']}\n"
    (tmp_path / "model.py").write_text(code)
    service = platform.object("deploy", f"{tmp_path}/model.py", "--name", "busy", "--min-replicas", 1, "--max-replicas", 2)
    assert len(of(platform, "busy")) == 1
    url = service["status"]["url"]
    body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [3.0]}]})
    done = threading.Event()

    def load():
        parts = urlsplit(url)
        while not done.is_set():
            connection = http.client.HTTPConnection(parts.netloc, timeout=30)
            connection.request("POST", f"{parts.path}/v2/models/busy/infer", body)
            connection.getresponse().read()
            connection.close()

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: sum(p["ready"] for p in of(platform, "busy")) == 2, 40)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    platform.serve("delete", "busy")


def test_all_mistakes_of_a_manifest_are_told_at_once_and_nothing_is_applied(platform, tmp_path):
    bad = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "bad"},
        "spec": {
            "predictor": {
                "minReplicas": 3,
                "maxReplicas": 1,
                "model": {"modelFormat": {"name": "sklern"}, "storageUri": "gopher://x"},
            }
        },
    }
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(bad))
    done = platform.serve("apply", "-f", tmp_path / "bad.yaml", code=2)
    for word in ("maxReplicas", "sklern", "gopher"):
        assert word in done.stderr
    platform.serve("get", "bad", code=3)


def test_a_manifest_is_applied_shown_in_every_form_and_deleted(platform, models, tmp_path):
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "applied", "namespace": "team"},
        "spec": {"predictor": {"sklearn": {"storageUri": f"file://{models[2]}"}}},
    }
    (tmp_path / "applied.yaml").write_text(yaml.safe_dump(service))
    assert condition(platform.object("apply", "-f", tmp_path / "applied.yaml", "--wait"))["status"] == "True"
    assert "applied" in platform.serve("get", "-A").stdout
    assert "applied" not in platform.serve("get").stdout
    assert yaml.safe_load(platform.serve("get", "applied", "-n", "team", "-o", "yaml").stdout)["kind"] == "InferenceService"
    assert platform.serve("get", "-n", "team", "-o", "name").stdout.strip() == "inferenceservice.serving.kserve.io/applied"
    assert "100 %" in platform.serve("status", "applied", "-n", "team").stdout
    assert platform.object("predict", "applied", "-n", "team")["outputs"]
    assert "draining" not in platform.serve("logs", "applied", "-n", "team").stdout
    platform.serve("delete", "-f", tmp_path / "applied.yaml")
    platform.serve("delete", "applied", "-n", "team", code=3)
    platform.serve("delete", "applied", "-n", "team", "--ignore-not-found")


ODD = [
    ("a file that isn't there", ["predict", "odd", "--data", "@/nowhere.json"], 2, "/nowhere.json can't be read"),
    ("a list for an object", ["predict", "odd", "--data", "[1]"], 2, 'wanted {"instances"'),
    ("a header without a value", ["predict", "odd", "-H", "stable"], 2, "wanted NAME: VALUE"),
    ("a name with a space", ["get", "two words"], 3, "'two words'"),
    ("a name that is not ASCII", ["status", "é"], 3, "'é'"),
    ("a name with a slash", ["delete", "odd/revisions"], 3, "'odd/revisions'"),
    ("an empty name", ["status", ""], 3, "empty name"),
]


@pytest.mark.parametrize(("arguments", "code", "text"), [o[1:] for o in ODD], ids=[o[0] for o in ODD])
def test_a_mistake_of_a_caller_of_services_ends_with_its_code_and_a_text(platform, odd, arguments, code, text):
    done = platform.serve(*arguments, code=code)
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def odd(platform, models):
    platform.serve("deploy", models[1], "--name", "odd")
    yield
    platform.serve("delete", "odd")


@pytest.mark.parametrize("arguments", [["get", "-o", "wide"], ["platform", "status"]], ids=["get", "platform status"])
def test_a_table_is_whole_on_a_narrow_terminal(platform, odd, arguments):
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 40))
    command = [sys.executable, "-P", "-m", "deployer.cli", *arguments]
    subprocess.run(command, env=platform.environment, stdout=slave, stderr=slave, timeout=60, check=True)
    os.close(slave)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert "odd-predictor-00001" in shown
    assert str(platform.supervisor()) in shown or "http://127.0.0.1:" in shown
    assert "…" not in shown


def test_a_class_that_is_not_there_is_told_by_the_file_that_was_named(platform, tmp_path):
    (tmp_path / "model.py").write_text("class M:\n    def predict(self, inputs): ...\n")
    told = platform.serve("deploy", f"{tmp_path}/model.py:N", "--name", "classless", code=1).stderr
    assert f"{tmp_path}/model.py has no class 'N'" in told
    platform.serve("delete", "classless")


def test_a_change_that_nobody_waits_for_is_on_its_way_whatever_was_before(platform, models):
    platform.serve("deploy", models[1], "--name", "hasty")
    assert "is on its way" in platform.serve("deploy", models[2], "--name", "hasty", "--no-wait").stdout
    platform.serve("delete", "hasty")


def test_what_is_missing_keeps_nothing_else_from_being_deleted(platform, models):
    platform.serve("deploy", models[1], "--name", "one", "--no-wait")
    platform.serve("deploy", models[1], "--name", "two", "--no-wait")
    done = platform.serve("delete", "nobody", "one", "nothing", "two", code=3)
    assert done.stdout.split() == [
        "inferenceservice.serving.kserve.io/one", "deleted", "inferenceservice.serving.kserve.io/two", "deleted",
    ]  # fmt: skip
    assert "'nobody'" in done.stderr
    assert "'nothing'" in done.stderr
    platform.serve("delete", "one", "--ignore-not-found")


def test_platform_up_where_it_is_up_says_so_and_moves_nothing(platform, odd):
    url = platform.object("platform", "status")["url"]
    assert url in platform.serve("platform", "up", code=1).stderr
    assert "serve platform down" in platform.serve("platform", "up", "-d", "--port", "1", code=1).stderr
    assert url in platform.serve("platform", "up", "-d").stderr


def test_what_is_not_there_in_time_is_exit_4_with_the_reason(platform, tmp_path):
    (tmp_path / "model.py").write_text(
        "import time\nclass M:\n    def load(self, path): time.sleep(60)\n    def predict(self, inputs): ...\n"
    )
    done = platform.serve("deploy", f"{tmp_path}/model.py", "--name", "late", "--timeout", "2s", code=4)
    assert "0 of 1 replicas are ready" in done.stderr
    platform.serve("delete", "late")


def test_a_second_supervisor_gives_way(platform, pair):
    command = [sys.executable, "-P", "-m", "deployer.local.supervisor"]
    done = subprocess.run(command, env=platform.environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "up already" in done.stderr


RUNTIME = {
    "apiVersion": "serving.kserve.io/v1alpha1",
    "kind": "ServingRuntime",
    "metadata": {"name": "mine"},
    "spec": {
        "supportedModelFormats": [{"name": "mine", "version": "1", "autoSelect": True, "priority": 1}],
        "protocolVersions": ["v1", "v2"],
        "containers": [{"name": "kserve-container", "image": "serveplane/sklearn:0.1.0", "args": ["--max_batch_size=7"]}],
    },
}


def test_a_runtime_of_the_user_s_own_serves_a_format_of_its_own(platform, models, tmp_path):
    model = {"modelFormat": {"name": "mine"}, "storageUri": str(models[3])}
    service = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "custom"}}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump_all([RUNTIME, service | {"spec": {"predictor": {"model": model}}}]))
    applied = platform.object("apply", "-f", tmp_path / "both.yaml", "--wait")
    assert ask(applied["status"]["url"], "custom") == (200, 3)
    (pid,) = (p["pid"] for p in of(platform, "custom"))
    with open(f"/proc/{pid}/cmdline") as words:
        assert "--max_batch_size=7" in words.read().split("\0")
    foreign = json.loads(json.dumps(RUNTIME))
    foreign["spec"]["containers"][0]["image"] = "example.com/other:1"
    (tmp_path / "foreign.yaml").write_text(yaml.safe_dump(foreign))
    platform.serve("apply", "-f", tmp_path / "foreign.yaml")
    told = until(
        lambda: (
            condition(platform.object("get", "custom"))
            if condition(platform.object("get", "custom"))["status"] == "False"
            else None
        )
    )
    assert "example.com/other:1" in told["message"]
    assert ask(applied["status"]["url"], "custom") == (200, 3)
    deleted = platform.serve("delete", "-f", tmp_path / "both.yaml").stdout
    assert "inferenceservice.serving.kserve.io/custom deleted" in deleted
    assert "servingruntime.serving.kserve.io/mine deleted" in deleted
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(service | {"spec": {"predictor": {"model": model}}}))
    assert "mine" in platform.serve("apply", "-f", tmp_path / "alone.yaml", code=2).stderr
    assert "no ServingRuntime" in platform.serve("delete", "-f", tmp_path / "foreign.yaml", code=3).stderr


def test_fewer_replicas_lose_no_request(platform, models):
    url = platform.object("deploy", models[1], "--name", "fewer", "--min-replicas", 3)["status"]["url"]
    with Traffic(url, "fewer") as traffic:
        traffic.next(30)
        platform.object("deploy", models[1], "--name", "fewer", "--min-replicas", 1, "--max-replicas", 1)
        until(lambda: len(of(platform, "fewer")) == 1)
        traffic.next(60)
    assert traffic.lost == []
    platform.serve("delete", "fewer")


def test_a_service_made_again_under_its_name_has_nothing_of_the_one_before(platform, models):
    platform.object("deploy", models[1], "--name", "phoenix")
    platform.serve("delete", "phoenix", "--no-wait")
    service = platform.object("deploy", models[2], "--name", "phoenix")
    assert ask(service["status"]["url"], "phoenix") == (200, 2)
    until(lambda: [p["ready"] for p in of(platform, "phoenix")] == [True])
    assert ask(service["status"]["url"], "phoenix") == (200, 2)
    platform.serve("delete", "phoenix")


def test_a_canary_of_the_list_can_be_promoted_and_rolled_back_to(platform, models, tmp_path):
    def model(number):
        return {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": str(models[number])}}

    service = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "listed"}}
    spec = {
        "predictor": model(1),
        "canary": [{"trafficPercent": 0, "predictor": {"name": "blue", "model": {"storageUri": str(models[2])}}}],
    }
    (tmp_path / "listed.yaml").write_text(yaml.safe_dump(service | {"spec": spec}))
    url = platform.object("apply", "-f", tmp_path / "listed.yaml", "--wait")["status"]["url"]
    assert ask(url, "listed") == (200, 1)
    assert ask(url, "listed", {"serve-revision": "listed-predictor-00002"}) == (200, 2)
    before = {p["revision"]: p["pid"] for p in of(platform, "listed")}
    platform.object("promote", "listed")
    assert ask(url, "listed") == (200, 2)
    after = {p["revision"]: p["pid"] for p in of(platform, "listed") if p["ready"]}
    assert after["listed-predictor-00002"] == before["listed-predictor-00002"], "its process serves on"
    platform.object("rollback", "listed")
    assert ask(url, "listed") == (200, 1)
    platform.serve("delete", "listed")
