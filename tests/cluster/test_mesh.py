"""Services on a real node behind the real Istio gateway: who gets how many of the requests, that none is lost on the way, and
how many replicas there are for them.

What is about routes runs twice, over an Istio VirtualService and over an HTTPRoute of the Gateway API.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from dataclasses import dataclass
from math import sqrt

import pytest

from deployer.kubernetes.kinds import DEPLOYMENT, HPA
from tests.charts.helm import CHART, helm
from tests.cluster.mesh import Models, Served, value_of
from tests.left_out import leave_out

GATEWAY = f"127.0.0.1:{os.environ.get('TESTMESH_HTTP_PORT', '18080')}"
ADMIN = f"http://127.0.0.1:{os.environ.get('TESTMESH_ADMIN_PORT', '15000')}/ready"
WITHOUT_MESH = "no mesh serves the cluster. Start both, and run: KUBECONFIG=$(./scripts/cluster up) ./scripts/test tests/cluster"
MANY = 2000


@pytest.fixture(scope="module")
def released(standing):
    """Namespace and name of our chart's release on the cluster, whose gateway leads to its services."""
    listed = json.loads(helm("list", "-A", "-o", "json", kubeconfig=standing.kubeconfig))
    found = [(one["namespace"], one["name"]) for one in listed if one["chart"].rpartition("-")[0] == "serveplane"]
    if not found or not is_live():
        leave_out(WITHOUT_MESH)
    return found[0]


def is_live():
    try:
        with urllib.request.urlopen(ADMIN, timeout=2) as answer:
            return answer.read().strip() == b"LIVE"
    except OSError:
        return False


@pytest.fixture(scope="module", params=["istio", "gateway-api"])
def ingress(request, standing, released):
    """The chart, upgraded to this kind of ingress; in the end as it was."""
    place, name = released
    before = json.loads(helm("history", name, "-n", place, "-o", "json", kubeconfig=standing.kubeconfig))[-1]["revision"]
    wanted = ["--reuse-values", "--set", f"ingress.kind={request.param}", "--wait"]
    helm("upgrade", name, CHART, "-n", place, *wanted, kubeconfig=standing.kubeconfig)
    yield request.param
    helm("rollback", name, before, "-n", place, kubeconfig=standing.kubeconfig)


@pytest.fixture(scope="module")
def models(standing, tmp_path_factory):
    """At the address by which pods reach an API server of this machine."""
    slices = standing.get("-n", "default", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes")["items"]
    try:
        store = Models(slices[0]["endpoints"][0]["addresses"][0], tmp_path_factory.mktemp("models"))
    except OSError:
        leave_out(WITHOUT_MESH)
    yield store
    store.stop()


@pytest.fixture
def served(standing, models, released):
    """A name for a service, in a namespace of its own."""
    namespace = f"mesh-{uuid.uuid4().hex[:8]}"
    standing.kubectl("create", "namespace", namespace)
    yield Served(standing, models, GATEWAY, namespace, "m")
    standing.kubectl("delete", "namespace", namespace, "--wait=false")


def assert_split(counts, percents):
    """All is answered by those who were asked for, and within four standard deviations of their shares."""
    total = sum(counts.values())
    assert set(counts) <= set(percents), counts
    for value, percent in percents.items():
        share = percent / 100
        assert abs(counts[value] - total * share) <= 4 * sqrt(total * share * (1 - share)), (counts, percents)


def test_no_request_is_lost_from_a_first_candidate_to_the_end_of_a_bad_one(ingress, served, models, capsys):
    served.apply("1.skops")
    served.until_ready()
    # what is Ready is within reach
    assert served.counted(20) == {1: 20}
    with served.load(100.0) as load:
        with models.held("2.skops") as asked:
            # a candidate that is not ready gets nothing
            served.apply("2.skops", canaryTrafficPercent=20)
            served.until(asked.is_set)
            assert served.pods("m-predictor-canary")
            assert served.weights() == {"m-predictor": 100}
            assert served.counted(200) == {1: 200}
        served.until_ready()
        assert served.weights() == {"m-predictor": 80, "m-predictor-canary": 20}
        served.until(lambda: 2 in served.counted(50))
        counts = {"HTTP": served.counted(MANY), "gRPC": served.counted_grpc(MANY)}
        for one in counts.values():
            assert_split(one, {1: 80, 2: 20})
        served.patch(canaryTrafficPercent=50)
        served.until_ready()
        assert served.weights() == {"m-predictor": 50, "m-predictor-canary": 50}
        load.wait_for(50)
        counts["HTTP, half of it"] = served.counted(MANY)
        assert_split(counts["HTTP, half of it"], {1: 50, 2: 50})
        # promoted
        served.patch(canaryTrafficPercent=None)
        served.until_ready()
        assert served.counted(200) == {2: 200}
        served.until(lambda: served.names(DEPLOYMENT) == ["m-predictor"])
        # rolled back, and promoted again
        served.patch(canaryTrafficPercent=0)
        served.until_ready()
        served.until_all_answer(1)
        served.patch(canaryTrafficPercent=None)
        served.until_ready()
        served.until_all_answer(2)
        # a candidate that never loads, and the manifest of before
        load.mark("bad")
        served.apply("bad.skops", canaryTrafficPercent=50)
        served.until(lambda: served.status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad")
        assert served.weights() == {"m-predictor": 100}
        served.apply("2.skops")
        served.until_ready()
        served.until(lambda: served.names(DEPLOYMENT) == ["m-predictor"])
        load.mark("end")
    with capsys.disabled():
        print(f"\n{ingress}: {counts}; meanwhile {load}")
    assert not load.lost
    assert {value_of(one.body) for one in load.between("bad", "end")} == {2}


def test_canaries_by_name_have_their_shares_and_are_had_by_name(ingress, served):
    served.apply("1.skops", canary=[served.canary("second", "2.skops", 20), served.canary("third", "3.skops", 10)])
    served.until_ready()
    served.until_answered()
    assert served.weights() == {"m-predictor": 70, "m-second-predictor": 20, "m-third-predictor": 10}
    served.until(lambda: len(served.counted(100)) == 3)
    assert_split(served.counted(MANY), {1: 70, 2: 20, 3: 10})
    for word, value in (("stable", 1), ("second", 2), ("third", 3)):
        assert served.counted(50, **{"serve-revision": word}) == {value: 50}
    # the first becomes the service's own, and the other goes
    served.apply("2.skops")
    served.until_ready()
    served.until_all_answer(2)
    served.until(lambda: served.names(DEPLOYMENT) == ["m-predictor"])


def test_replicas_follow_the_load_and_leave_again_without_a_lost_request(served, capsys):
    served.apply("1.skops", maxReplicas=3, scaleMetric="cpu", scaleTarget=60, cpu="30m")
    served.until_ready()
    served.until_answered()
    timeline = Timeline(served)
    assert timeline.look().ready == 1
    with served.load(150.0) as load:
        timeline.mark("150 requests a second")
        served.until(lambda: timeline.look().ready > 1, 90.0)
        load.mark("more")
        load.wait_for(500)
    with served.load(5.0) as trickle:
        timeline.mark("5 requests a second")
        served.until(lambda: timeline.look().ready == 1, 120.0)
    with capsys.disabled():
        print(f"\n{timeline}\n{load}\n{trickle}")
    assert not load.lost
    assert not trickle.lost


@dataclass
class Look:
    """`percent` is the CPU that the autoscaler sees, of what was requested."""

    at: float
    wanted: int
    ready: int
    percent: int | None


class Timeline:
    """When a service had how many replicas."""

    def __init__(self, served):
        self._served, self._began, self._lines, self._last = served, time.monotonic(), [], None

    def look(self):
        (deployment,), (hpa,) = self._served.all(DEPLOYMENT), self._served.all(HPA)
        metrics = hpa.get("status", {}).get("currentMetrics") or [{}]
        percent = metrics[0].get("resource", {}).get("current", {}).get("averageUtilization")
        found = Look(self._now, deployment["spec"]["replicas"], deployment["status"].get("readyReplicas", 0), percent)
        if (found.wanted, found.ready) != self._last:
            self._last = found.wanted, found.ready
            self._lines.append(f"{found.at:5.1f} s: {found.ready} of {found.wanted} ready, CPU at {percent} %")
        return found

    def mark(self, text):
        self._lines.append(f"{self._now:5.1f} s: {text}")

    @property
    def _now(self):
        return time.monotonic() - self._began

    def __str__(self):
        return "\n".join(self._lines)


def test_replicas_have_a_fixed_number_where_nothing_scales_them(served):
    served.apply("1.skops", annotations={"serving.kserve.io/autoscalerClass": "none"}, minReplicas=2, maxReplicas=2)
    served.until_ready()
    assert served.names(HPA) == []
    assert served.replicas() == (2, 2)
    served.kubectl("scale", "deployment/m-predictor", "--replicas=1")
    served.until(lambda: served.replicas() == (2, 2))


def test_replicas_are_another_ones_where_that_one_scales_them(served):
    served.apply("1.skops", annotations={"serving.kserve.io/autoscalerClass": "external"})
    served.until_ready()
    assert served.names(HPA) == []
    served.kubectl("scale", "deployment/m-predictor", "--replicas=2")
    served.until(lambda: served.replicas() == (2, 2))
    # another template is rolled out over as many
    served.apply("2.skops", annotations={"serving.kserve.io/autoscalerClass": "external"})
    served.until_ready()
    served.until_answered()
    served.until_all_answer(2)
    served.until(lambda: served.replicas() == (2, 2))


def test_a_service_that_is_stopped_has_nothing_that_runs_and_comes_back_as_it_was(served):
    served.apply("1.skops")
    served.until_ready()
    served.until_answered()
    host, pods = served.host, served.pods("m-predictor")
    assert len(pods) == 1
    served.kubectl("annotate", "isvc/m", "serving.kserve.io/stop=true")
    served.until(lambda: served.condition("Stopped") == "True" and not served.names(DEPLOYMENT) and not served.names(HPA))
    assert served.condition("Ready") == "False"
    served.until(lambda: not served.pods("m-predictor"))
    served.kubectl("annotate", "isvc/m", "serving.kserve.io/stop-")
    served.until_ready()
    served.until_answered()
    assert served.host == host
    assert served.counted(50) == {1: 50}


def test_the_command_reaches_pods_by_the_api_server_and_by_the_gateway(standing, served):
    served.apply("1.skops")
    served.until_ready()
    served.until_answered()

    def serve(*args):
        environment = {**os.environ, "KUBECONFIG": standing.kubeconfig, "SERVE_TARGET": "kubernetes"}
        command = [sys.executable, "-P", "-m", "deployer.cli", *args, "-n", served.namespace]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    row = json.dumps({"instances": [[1, 0, 0, 0]]})
    for way in ([], ["--gateway", f"http://{GATEWAY}"]):
        assert round(json.loads(serve("predict", "m", "-d", row, "-o", "json", *way))["predictions"][0]) == 1
    (pod,) = served.pods("m-predictor")
    lines = serve("logs", "m", "--tail", "0").splitlines()
    assert all(line.startswith(f"{pod['metadata']['name']}  ") for line in lines)
    assert sum("/v1/models/m:predict" in line for line in lines) == 2
