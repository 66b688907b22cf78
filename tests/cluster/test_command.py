"""`serve … --target kubernetes` on a real control plane, as a user types it; what happens in pods is a thread's say-so."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from deployer.errors import Conflict
from deployer.kubernetes.client import ClusterClient
from deployer.kubernetes.kinds import DEPLOYMENT, INFERENCE_SERVICE
from tests.cluster.plane import Kubelet, booted, pod_status, ready_pod, service, until
from tests.cluster.test_platform import Running

ONE, TWO, BAD = (f"https://models.example.com/{name}.skops" for name in ("one", "two", "bad"))


@pytest.fixture(scope="module")
def plane():
    with booted() as found:
        found.configure("istio")
        yield found


@pytest.fixture(scope="module", autouse=True)
def running(plane):
    kubelet = Kubelet(plane)
    kubelet.says = says
    kubelet.start()
    one = Running(plane)
    yield one
    one.stop()
    kubelet.stop()


def says(pod):
    """A model called bad can't be fetched."""
    if any(BAD in str(one.get("args")) for one in pod["spec"].get("initContainers", ())):
        waiting = {"terminated": {"exitCode": 1, "reason": "Error", "message": "no such model"}}
        return pod_status(pod, False, init=waiting)
    return ready_pod(pod)


@pytest.fixture
def ns(plane, request):
    return plane.namespace("c-" + str(abs(hash(request.node.name)))[:12])


@pytest.fixture
def serve(plane, ns):
    def call(*args, code=0, stdin=None, target="kubernetes"):
        environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "SERVE_TARGET": target}
        command = [sys.executable, "-P", "-m", "deployer.cli", *map(str, args)]
        done = subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    call.object = lambda *args, **options: json.loads(call(*args, "-n", ns, "-o", "json", **options).stdout)
    return call


def test_a_model_goes_from_deployed_to_canary_to_promoted_and_back(plane, serve, ns):
    made = serve.object("deploy", ONE, "--name", "m")
    assert made["status"]["url"] == f"http://m-{ns}.example.com"
    assert plane.traffic(ns, "m") == {"m-predictor-00001": 100}
    serve.object("deploy", TWO, "--name", "m", "--canary", 20)
    assert plane.traffic(ns, "m") == {"m-predictor-00001": 80, "m-predictor-00002": 20}
    shown = serve("status", "m", "-n", ns).stdout
    assert "m-predictor-00001   80 %" in shown
    assert "1/1 ready" in shown
    serve.object("promote", "m")
    assert plane.traffic(ns, "m") == {"m-predictor-00002": 100}
    back = serve.object("rollback", "m")
    assert back["spec"]["predictor"]["model"]["storageUri"] == ONE
    until(lambda: list(plane.traffic(ns, "m").values()) == [100])
    gone = serve.object("delete", "m")
    assert gone["metadata"]["name"] == "m"
    assert plane.get(DEPLOYMENT, ns, "m-predictor") is None
    assert "no InferenceService 'm'" in serve("get", "m", "-n", ns, code=3).stderr


def test_a_candidate_that_can_not_load_is_told_and_can_be_given_up(plane, serve, ns):
    serve("deploy", ONE, "--name", "m", "-n", ns)
    told = serve("deploy", BAD, "--name", "m", "--canary", 10, "-n", ns, "--timeout", "60s", code=1)
    assert "no such model" in told.stderr
    serve("rollback", "m", "-n", ns)
    assert plane.traffic(ns, "m") == {"m-predictor-00001": 100}


def test_manifests_are_applied_listed_and_deleted_by_their_files(plane, serve, ns, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump_all([service(ns, "a"), service(ns, "b")]))
    assert serve("apply", "-f", file, "--wait").stdout.splitlines() == [
        "inferenceservice.serving.kserve.io/a applied",
        "inferenceservice.serving.kserve.io/b applied",
    ]
    rows = serve("get", "-n", ns).stdout.splitlines()
    assert [row.split()[1] for row in rows] == ["NAME", "a", "b"]
    assert {one["metadata"]["name"] for one in serve.object("get")["items"]} == {"a", "b"}
    serve("delete", "-f", file)
    assert serve.object("get")["items"] == []


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["get", "none"], 3, "no InferenceService 'none'"),
        (["promote", "none"], 3, "no InferenceService 'none'"),
        (["get", "--context", "elsewhere"], 1, "elsewhere"),
        (["deploy", "examples/iris.skops"], 1, "pods can't read it"),
        (["deploy", "file:///models/iris.skops"], 1, "pods can't read it"),
        (["deploy", ONE, "--min-replicas", "3", "--max-replicas", "2"], 2, "maxReplicas"),
    ],
)
def test_mistakes_are_told_in_a_line(serve, ns, args, code, words):
    told = serve(*args, "-n", ns, code=code).stderr
    assert words in told
    assert "Traceback" not in told


def test_a_context_is_none_of_this_machine(serve):
    assert "--target kubernetes" in serve("get", "--context", "x", code=2, target="local").stderr


def test_a_cluster_that_does_not_answer_is_named(serve, plane, tmp_path, ns):
    nowhere = yaml.safe_load(plane.kubeconfig.read_text())
    nowhere["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(nowhere))
    command = [sys.executable, "-P", "-m", "deployer.cli", "get", "--target", "kubernetes"]
    done = subprocess.run(command, env={**os.environ, "KUBECONFIG": str(file)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "https://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_others_keep_at_an_object_stays_and_nobodys_change_is_lost(plane, ns, monkeypatch):
    raw = service(ns)
    raw["metadata"] |= {"labels": {"team": "a"}, "annotations": {"note": "kept"}}
    plane.apply(raw)
    monkeypatch.setattr("deployer.kubernetes.client.connect", lambda context: plane.api)
    client = ClusterClient()
    client.apply(service(ns, uri=ONE))
    after = plane.service(ns, "iris")
    assert (after["metadata"]["labels"]["team"], after["metadata"]["annotations"]["note"]) == ("a", "kept")
    assert after["spec"]["predictor"]["model"]["storageUri"] == ONE

    read = client.get(ns, "iris")
    plane.api.patch(INFERENCE_SERVICE.path(ns, "iris"), [{"op": "add", "path": "/metadata/labels/by", "value": "other"}])
    with pytest.raises(Conflict, match="somebody else has changed iris"):
        client.apply(read)
