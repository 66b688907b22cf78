"""The charts with real Helm on a real API server: installed, upgraded, removed; and whether what the controller may do is
what it needs, by running it with its account's own token.  Where the cluster has a node, the controller serves meanwhile.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.charts.helm import CHART, CRDS, helm, run, template
from tests.cluster.conftest import OF_CONTROLLER, VERSION, WITHOUT_NODE
from tests.cluster.test_image import answer
from tests.left_out import leave_out

GOLDEN = Path(__file__).parents[1] / "charts" / "golden"
RELEASE = "serveplane"
# Where there is a node, too, no pod joins in.
IDLE = ["--set", "controller.replicas=0"]
PLAIN = [*IDLE, "--set", "ingress.kind=none", "--set", "webhook.enabled=false"]
SERVICE = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "iris"},
    "spec": {"predictor": {"minReplicas": 2, "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "pvc://models/iris"}}},
}
# Of Kubernetes itself, and of Istio.
FLEETING = {"events", "events.events.k8s.io"}
EVERYWHERE = ("configmap/kube-root-ca.crt", "serviceaccount/default", "configmap/istio-ca-")
CHILDREN = "deployment,service,hpa,poddisruptionbudget,controllerrevision"


@pytest.fixture
def noded(standing, kinds):
    """`kinds`, where it has a node."""
    if kinds.kubeconfig != standing.kubeconfig:
        leave_out(WITHOUT_NODE)
    return kinds


@contextmanager
def installed(cluster, namespace, *options, chart=CHART):
    helm("install", RELEASE, chart, "-n", namespace, *options, kubeconfig=cluster.kubeconfig)
    try:
        yield
    finally:
        helm("uninstall", RELEASE, "-n", namespace, "--no-hooks", kubeconfig=cluster.kubeconfig)


def until(what, why, seconds=30.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {why()}"
        time.sleep(0.1)
    return found


@contextmanager
def controller(cluster, namespace, folder, *namespaces):
    """The controller as a process here, with the rights of the chart's account and no others; yields its log."""
    token = cluster.kubectl("-n", namespace, "create", "token", RELEASE, "--duration=1h").strip()
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    config["users"] = [{"name": one["name"], "user": {"token": token}} for one in config["users"]]
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    flags = ["--kubeconfig", str(kubeconfig), "--config-namespace", namespace, "--port", "0", "--log-level", "info"]
    flags += ["--namespaces", ",".join(namespaces)] if namespaces else []
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-P", "-m", "deployer.kubernetes", *flags], stdout=out, stderr=out)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(30)


def refusals(log):
    """Verbs that were refused for want of a right."""
    (port,) = re.findall(r"telemetry on port (\d+)", log.read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as found:
        return set(re.findall(r'serveplane_api_requests_total\{verb="(\w+)",code="40[13]"\}', found.read().decode()))


@pytest.mark.parametrize("scope", ["cluster", "namespace"])
def test_the_controllers_account_may_do_all_it_has_to(kinds, namespace, tmp_path, scope):
    options = [*PLAIN, "--set", f"rbac.scope={scope}"]
    with (
        installed(kinds, namespace, *options),
        controller(kinds, namespace, tmp_path, *([namespace] if scope == "namespace" else ())) as log,
    ):

        def said():
            return log.read_text()[-3000:]

        kinds.kubectl("-n", namespace, "apply", "-f", "-", stdin=SERVICE)
        until(lambda: kinds.run("-n", namespace, "get", "deployment/iris-predictor").returncode == 0, said)
        until(lambda: kinds.get("-n", namespace, "isvc/iris").get("status"), said)
        made = {one["kind"] for one in kinds.get("-n", namespace, CHILDREN, "-l", "serving.serveplane.dev/owner=iris")["items"]}
        assert made == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "ControllerRevision"}
        # what is not wanted any more it removes
        kinds.kubectl("-n", namespace, "annotate", "isvc/iris", "serving.kserve.io/stop=true")
        until(
            lambda: (
                not kinds.kubectl(
                    "-n", namespace, "get", "deployment,hpa", "-l", "serving.serveplane.dev/owner=iris", "-o", "name"
                )
            ),
            said,
        )
        # the runtimes of all namespaces are not a Role's to give, and the controller does without
        assert refusals(log) <= ({"GET"} if scope == "namespace" else set())
        kinds.kubectl("-n", namespace, "delete", "isvc/iris")


def test_what_kubernetes_says_the_account_may_do_is_what_is_written_down(kinds, namespace):
    with installed(kinds, namespace):
        account = f"--as=system:serviceaccount:{namespace}:{RELEASE}"
        lines = kinds.kubectl("-n", namespace, "auth", "can-i", "--list", "--no-headers", account).splitlines()
    # everybody's own: reviews of oneself and the API's addresses
    lines = [line for line in lines if "selfsubject" not in line and not re.search(r"\[/", line)]
    text = "\n".join(sorted(re.sub(r"\s{2,}", "  ", line.replace(namespace, "NAMESPACE")).rstrip() for line in lines)) + "\n"
    path = GOLDEN / "can-i.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"what the account may do has changed: look at it, then UPDATE_GOLDEN=1 writes {path}"


def test_from_the_version_before_to_this_one_and_away(kinds, namespace, tmp_path):
    before = tmp_path / "serveplane"
    shutil.copytree(CHART, before)
    about = yaml.safe_load((before / "Chart.yaml").read_text())
    (before / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "0.0.9", "appVersion": "0.0.9"}))
    # what the version before did not have
    (before / "templates" / "protection.yaml").unlink()
    kinds.kubectl("-n", namespace, "apply", "-f", "-", stdin=SERVICE)
    uid = kinds.get("-n", namespace, "isvc/iris")["metadata"]["uid"]
    options = [*PLAIN, "--set", "networkPolicy.enabled=true"]
    with installed(kinds, namespace, *options, chart=before):
        config = kinds.get("-n", namespace, "configmap/inferenceservice-config")
        assert "storage-initializer:0.0.9" in config["data"]["storageInitializer"]
        assert kinds.run("-n", namespace, "get", f"networkpolicy/{RELEASE}").returncode == 1
        # somebody's own field, which Helm has no word in
        kinds.kubectl("-n", namespace, "annotate", f"deployment/{RELEASE}", "team=ml")
        helm(
            "upgrade",
            RELEASE,
            CHART,
            "-n",
            namespace,
            *options,
            "--set",
            "ingress.domain=models.example.com",
            kubeconfig=kinds.kubeconfig,
        )
        config = kinds.get("-n", namespace, "configmap/inferenceservice-config")
        assert json.loads(config["data"]["ingress"])["ingressDomain"] == "models.example.com"
        deployment = kinds.get("-n", namespace, f"deployment/{RELEASE}")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["image"].endswith(f"controller:{about['appVersion']}")
        assert deployment["metadata"]["annotations"]["team"] == "ml"
        kinds.kubectl("-n", namespace, "get", f"networkpolicy/{RELEASE}")
        # and back
        helm("rollback", RELEASE, "1", "-n", namespace, kubeconfig=kinds.kubeconfig)
        assert kinds.run("-n", namespace, "get", f"networkpolicy/{RELEASE}").returncode == 1
    assert left_by(kinds, namespace) == ["inferenceservice.serving.kserve.io/iris"]
    # services are their owners', not the release's
    assert kinds.get("-n", namespace, "isvc/iris")["metadata"]["uid"] == uid


def left_by(cluster, namespace):
    """What there is of the release, of all kinds and anywhere; and in the namespace, but for what is in every one."""
    own = f"app.kubernetes.io/instance={RELEASE}"
    found = cluster.kubectl("get", listed(cluster), "-A", "-l", own, "-o", "name").split()
    found += cluster.kubectl("get", listed(cluster, "--namespaced=true"), "-n", namespace, "-o", "name").split()
    # the way to services, of the release that was there before the test, outlives it
    return sorted({one for one in found if not one.startswith((*EVERYWHERE, "gateway."))})


def listed(cluster, *which):
    names = set(cluster.kubectl("api-resources", "--verbs=list,delete", "-o", "name", *which).split())
    return ",".join(sorted(names - FLEETING))


def test_it_serves_and_is_tested_from_one_version_to_the_next_and_leaves_nothing_but_its_kinds(noded, namespace, tmp_path):
    cluster, place = noded, ["-n", namespace]
    # only its own images are here: the version before is told apart by all else
    options = ["--set", f"images.tag={VERSION}", "--set", "ingress.kind=none", "--set", "webhook.failurePolicy=Fail"]
    helm("package", CHART, "--version", "0.0.9", "--app-version", "0.0.9", "-d", tmp_path)
    try:
        helm("install", RELEASE, tmp_path / "serveplane-0.0.9.tgz", *place, *options, "--wait", kubeconfig=cluster.kubeconfig)
        assert "Succeeded" in helm("test", RELEASE, *place, kubeconfig=cluster.kubeconfig)
        cluster.kubectl(*place, "apply", "-f", "-", stdin=doubling())
        cluster.kubectl(*place, "wait", "--for=condition=Ready", "isvc/doubling", "--timeout=60s")
        pods = cluster.kubectl(*place, "get", "pods", "-l", "app=isvc.doubling-predictor", "-o", "name")
        with asking(cluster, namespace) as refusals:
            helm("upgrade", RELEASE, CHART, *place, *options, "--wait", kubeconfig=cluster.kubeconfig)
            # until the controller before is gone, and the last of its addresses with it
            until(lambda: len(controllers(cluster, namespace)) == 1, lambda: controllers(cluster, namespace))
        assert refusals == []
        version = cluster.get(*place, f"deployment/{RELEASE}")["metadata"]["labels"]["app.kubernetes.io/version"]
        assert version == VERSION
        tested = helm("test", RELEASE, *place, "--logs", kubeconfig=cluster.kubeconfig)
        assert '{"predictions": [[2, 4], [6, 8]]}' in tested
        # what is served is none of the controller's business
        assert cluster.kubectl(*place, "get", "pods", "-l", "app=isvc.doubling-predictor", "-o", "name") == pods
        assert doubled(cluster, namespace) == [[2, 4]]
        wrong = cluster.run(*place, "apply", "-f", "-", stdin=doubling(minReplicas=2, maxReplicas=1)[1])
        assert wrong.returncode == 1
        assert "spec.predictor.maxReplicas" in wrong.stderr
    finally:
        helm("uninstall", RELEASE, *place, "--wait", kubeconfig=cluster.kubeconfig)
    assert doubled(cluster, namespace) == [[2, 4]]
    # without a controller, too, what a service has goes with it
    cluster.kubectl(*place, "delete", "isvc/doubling", "configmap/doubling")
    until(lambda: left_by(cluster, namespace) == [], lambda: left_by(cluster, namespace))
    assert cluster.run("get", "isvc", "-A").returncode == 0


@contextmanager
def asking(cluster, namespace):
    """What is said, meanwhile, against a service that is as good as any; the webhook is asked of each."""
    refusals, ended = [], threading.Event()

    def ask():
        while not ended.is_set():
            done = cluster.run(
                "-n", namespace, "create", "--dry-run=server", "-f", "-", stdin={**doubling()[1], "metadata": {"name": "asked"}}
            )
            refusals.extend([done.stderr] if done.returncode else [])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield refusals
    finally:
        ended.set()
        thread.join()


def controllers(cluster, namespace):
    return cluster.kubectl("-n", namespace, "get", "pods", "-l", OF_CONTROLLER, "-o", "name").split()


def doubling(**predictor):
    """The model of `helm test`, as somebody's own service."""
    found = {one["kind"]: one for one in template({}, "--show-only", "templates/tests/predict.yaml")}
    config, service = found["ConfigMap"], found["InferenceService"]
    config["metadata"] = service["metadata"] = {"name": "doubling"}
    service["spec"]["predictor"]["volumes"][0]["configMap"]["name"] = "doubling"
    service["spec"]["predictor"] |= predictor
    return [config, service]


def doubled(cluster, namespace):
    address = cluster.get("-n", namespace, "service/doubling-predictor")["spec"]["clusterIP"]
    return answer(f"http://{address}/v1/models/doubled:predict", {"instances": [[1, 2]]})["predictions"]


def test_the_kinds_are_taken_over_upgraded_and_never_removed_with_their_chart(kinds, namespace):
    name = f"kinds-{uuid.uuid4().hex[:6]}"
    place = ["-n", namespace]
    taken = run("install", name, CRDS, *place, "--take-ownership", kubeconfig=kinds.kubeconfig)
    assert taken.returncode == 0, taken.stderr
    helm("upgrade", name, CRDS, *place, kubeconfig=kinds.kubeconfig)
    kinds.kubectl("-n", namespace, "apply", "-f", "-", stdin=SERVICE)
    helm("uninstall", name, *place, kubeconfig=kinds.kubeconfig)
    assert kinds.get("-n", namespace, "isvc/iris")["spec"] == SERVICE["spec"]


def test_the_webhook_finds_its_secret_and_its_configurations(kinds, namespace):
    with installed(kinds, namespace, *IDLE):
        found = kinds.get(
            "mutatingwebhookconfiguration,validatingwebhookconfiguration", "-l", f"app.kubernetes.io/instance={RELEASE}"
        )
        assert {one["metadata"]["name"] for one in found["items"]} == {f"{RELEASE}-{namespace}"}
        secret = kinds.get("-n", namespace, f"secret/{RELEASE}-webhook")
        # what the controller writes into it is not Helm's to take away
        kinds.kubectl("-n", namespace, "patch", f"secret/{RELEASE}-webhook", "-p", '{"data": {"tls.crt": "eA=="}}')
        changed = [*IDLE, "--set", "webhook.timeoutSeconds=3"]
        helm("upgrade", RELEASE, CHART, "-n", namespace, *changed, kubeconfig=kinds.kubeconfig)
        assert kinds.get("-n", namespace, f"secret/{RELEASE}-webhook")["data"] == {"tls.crt": "eA=="}
        assert secret["metadata"]["uid"] == kinds.get("-n", namespace, f"secret/{RELEASE}-webhook")["metadata"]["uid"]
