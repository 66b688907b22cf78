"""The charts with real Helm on a real API server: installed, upgraded, removed; and whether what the controller may do is
what it needs, by running it with its account's own token."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.charts.helm import CHART, CRDS, helm, run

GOLDEN = Path(__file__).parents[1] / "charts" / "golden"
RELEASE = "serveplane"
# No node is needed: nothing here waits for a pod.
PLAIN = ["--set", "ingress.kind=none", "--set", "webhook.enabled=false"]
SERVICE = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "iris"},
    "spec": {"predictor": {"minReplicas": 2, "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "pvc://models/iris"}}},
}
CHILDREN = "deployment,service,hpa,poddisruptionbudget,controllerrevision"


@pytest.fixture
def free(kinds):
    """The cluster, where our chart is not installed: its runtimes have fixed names."""
    if helm("list", "-A", "-q", "--filter", "serveplane", kubeconfig=kinds.kubeconfig).strip():
        pytest.skip("left out: the cluster of $KUBECONFIG has the chart installed; unset it, and a control plane is started")
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
def test_the_controllers_account_may_do_all_it_has_to(free, namespace, tmp_path, scope):
    options = [*PLAIN, "--set", f"rbac.scope={scope}"]
    with (
        installed(free, namespace, *options),
        controller(free, namespace, tmp_path, *([namespace] if scope == "namespace" else ())) as log,
    ):

        def said():
            return log.read_text()[-3000:]

        free.kubectl("-n", namespace, "apply", "-f", "-", stdin=SERVICE)
        until(lambda: free.run("-n", namespace, "get", "deployment/iris-predictor").returncode == 0, said)
        until(lambda: free.get("-n", namespace, "isvc/iris").get("status"), said)
        made = {one["kind"] for one in free.get("-n", namespace, CHILDREN, "-l", "serving.serveplane.dev/owner=iris")["items"]}
        assert made == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "ControllerRevision"}
        # what is not wanted any more it removes
        free.kubectl("-n", namespace, "annotate", "isvc/iris", "serving.kserve.io/stop=true")
        until(
            lambda: (
                not free.kubectl(
                    "-n", namespace, "get", "deployment,hpa", "-l", "serving.serveplane.dev/owner=iris", "-o", "name"
                )
            ),
            said,
        )
        # the runtimes of all namespaces are not a Role's to give, and the controller does without
        assert refusals(log) <= ({"GET"} if scope == "namespace" else set())
        free.kubectl("-n", namespace, "delete", "isvc/iris")


def test_what_kubernetes_says_the_account_may_do_is_what_is_written_down(free, namespace):
    with installed(free, namespace):
        account = f"--as=system:serviceaccount:{namespace}:{RELEASE}"
        lines = free.kubectl("-n", namespace, "auth", "can-i", "--list", "--no-headers", account).splitlines()
    # everybody's own: reviews of oneself and the API's addresses
    lines = [line for line in lines if "selfsubject" not in line and not re.search(r"\[/", line)]
    text = "\n".join(sorted(re.sub(r"\s{2,}", "  ", line.replace(namespace, "NAMESPACE")).rstrip() for line in lines)) + "\n"
    path = GOLDEN / "can-i.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"what the account may do has changed: look at it, then UPDATE_GOLDEN=1 writes {path}"


def test_from_the_version_before_to_this_one_and_away(free, namespace, tmp_path):
    before = tmp_path / "serveplane"
    shutil.copytree(CHART, before)
    about = yaml.safe_load((before / "Chart.yaml").read_text())
    (before / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "0.0.9", "appVersion": "0.0.9"}))
    # what the version before did not have
    (before / "templates" / "protection.yaml").unlink()
    free.kubectl("-n", namespace, "apply", "-f", "-", stdin=SERVICE)
    uid = free.get("-n", namespace, "isvc/iris")["metadata"]["uid"]
    options = [*PLAIN, "--set", "networkPolicy.enabled=true"]
    with installed(free, namespace, *options, chart=before):
        config = free.get("-n", namespace, "configmap/inferenceservice-config")
        assert "storage-initializer:0.0.9" in config["data"]["storageInitializer"]
        assert free.run("-n", namespace, "get", f"networkpolicy/{RELEASE}").returncode == 1
        # somebody's own field, which Helm has no word in
        free.kubectl("-n", namespace, "annotate", f"deployment/{RELEASE}", "team=ml")
        helm(
            "upgrade",
            RELEASE,
            CHART,
            "-n",
            namespace,
            *options,
            "--set",
            "ingress.domain=models.example.com",
            kubeconfig=free.kubeconfig,
        )
        config = free.get("-n", namespace, "configmap/inferenceservice-config")
        assert json.loads(config["data"]["ingress"])["ingressDomain"] == "models.example.com"
        deployment = free.get("-n", namespace, f"deployment/{RELEASE}")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["image"].endswith(f"controller:{about['appVersion']}")
        assert deployment["metadata"]["annotations"]["team"] == "ml"
        free.kubectl("-n", namespace, "get", f"networkpolicy/{RELEASE}")
        # and back
        helm("rollback", RELEASE, "1", "-n", namespace, kubeconfig=free.kubeconfig)
        assert free.run("-n", namespace, "get", f"networkpolicy/{RELEASE}").returncode == 1
    everything = "deployment,service,configmap,serviceaccount,secret,role,rolebinding"
    left = free.kubectl("-n", namespace, "get", everything, "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name")
    cluster_wide = (
        "clusterrole,clusterrolebinding,clusterservingruntime,mutatingwebhookconfiguration,validatingwebhookconfiguration"
    )
    left += free.kubectl("get", cluster_wide, "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name")
    assert left == ""
    # services are their owners', not the release's
    assert free.get("-n", namespace, "isvc/iris")["metadata"]["uid"] == uid


def test_the_kinds_are_taken_over_upgraded_and_never_removed_with_their_chart(free, namespace):
    name = f"kinds-{uuid.uuid4().hex[:6]}"
    place = ["-n", namespace]
    taken = run("install", name, CRDS, *place, "--take-ownership", kubeconfig=free.kubeconfig)
    assert taken.returncode == 0, taken.stderr
    helm("upgrade", name, CRDS, *place, kubeconfig=free.kubeconfig)
    free.kubectl("-n", namespace, "apply", "-f", "-", stdin=SERVICE)
    helm("uninstall", name, *place, kubeconfig=free.kubeconfig)
    assert free.get("-n", namespace, "isvc/iris")["spec"] == SERVICE["spec"]


def test_the_webhook_finds_its_secret_and_its_configurations(free, namespace):
    with installed(free, namespace):
        found = free.get(
            "mutatingwebhookconfiguration,validatingwebhookconfiguration", "-l", f"app.kubernetes.io/instance={RELEASE}"
        )
        assert {one["metadata"]["name"] for one in found["items"]} == {f"{RELEASE}-{namespace}"}
        secret = free.get("-n", namespace, f"secret/{RELEASE}-webhook")
        # what the controller writes into it is not Helm's to take away
        free.kubectl("-n", namespace, "patch", f"secret/{RELEASE}-webhook", "-p", '{"data": {"tls.crt": "eA=="}}')
        helm("upgrade", RELEASE, CHART, "-n", namespace, "--set", "webhook.timeoutSeconds=3", kubeconfig=free.kubeconfig)
        assert free.get("-n", namespace, f"secret/{RELEASE}-webhook")["data"] == {"tls.crt": "eA=="}
        assert secret["metadata"]["uid"] == free.get("-n", namespace, f"secret/{RELEASE}-webhook")["metadata"]["uid"]
