"""Services on a real control plane: which objects they become, what is said of them, and that nothing is written twice."""

import threading
from contextlib import contextmanager

import pytest

from deployer.controller import Controller
from deployer.kubernetes.api import connect
from deployer.kubernetes.kinds import (
    CHILDREN,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    HPA,
    INFERENCE_SERVICE,
    POD,
    SERVICE_KIND,
    SERVING_RUNTIME,
    VIRTUAL_SERVICE,
    Kind,
)
from deployer.kubernetes.platform import ClusterPlatform
from tests.cluster.plane import Kubelet, Plane, booted, pod_status, ready_pod, service, until

CHILD_KINDS = [kind for kind in CHILDREN if kind.name not in ("GRPCRoute", "ScaledObject")]
QUOTAS = Kind("v1", "ResourceQuota", "resourcequotas")


class Running:
    """A controller in this process, and what it asked the API server."""

    def __init__(self, plane: Plane) -> None:
        self.api = connect(str(plane.kubeconfig))
        self.platform = ClusterPlatform(self.api)
        self._controller = Controller(self.platform)
        assert self.platform.start()
        self._controller.start()

    @property
    def writes(self) -> int:
        return sum(count for (verb, _), count in self.api.requests.items() if verb not in ("GET", "WATCH"))

    def stop(self) -> None:
        self._controller.stop()
        self.platform.stop()


@pytest.fixture(scope="module")
def plane():
    with booted() as found:
        found.configure("istio")
        yield found


@pytest.fixture(scope="module")
def kubelet(plane):
    one = Kubelet(plane)
    one.start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def running(plane, kubelet):
    one = Running(plane)
    yield one
    one.stop()


@pytest.fixture
def says(kubelet):
    """Have the kubelet say something else of pods, until the test ends."""

    @contextmanager
    def saying(what):
        kubelet.says = what
        kubelet.again()
        try:
            yield
        finally:
            kubelet.says = ready_pod
            kubelet.again()

    return saying


@pytest.fixture
def ns(plane, running, request):
    return plane.namespace("t-" + str(abs(hash(request.node.name)))[:12])


def quiet(plane, running, ns, *kinds):
    """Wait until nothing changes any more; the versions of the objects."""
    seen = [None]

    def same():
        found = {(k.name, o["metadata"]["name"]): o["metadata"]["resourceVersion"] for k in kinds for o in plane.all(k, ns)}
        before, seen[0] = seen[0], found
        threading.Event().wait(0.4)
        return found == before

    until(same)
    return seen[0]


def test_a_service_becomes_its_objects_and_is_ready_once_its_pods_are(plane, running, ns):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"), why=str(plane.service(ns, "iris").get("status")))
    deployment = plane.get(DEPLOYMENT, ns, "iris-predictor")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["name"] == "kserve-container"
    assert plane.get(SERVICE_KIND, ns, "iris-predictor")
    assert plane.get(HPA, ns, "iris-predictor")
    assert plane.weights(ns, "iris") == {"iris-predictor": 100}
    (revision,) = plane.all(CONTROLLER_REVISION, ns)
    assert revision["metadata"]["name"] == "iris-predictor-00001"
    assert revision["data"]["predictor"]["model"]["storageUri"] == "s3://models/one"
    status = plane.service(ns, "iris")["status"]
    assert status["url"] == f"http://iris-{ns}.example.com"
    assert status["address"]["url"] == f"http://iris-predictor.{ns}.svc.cluster.local"
    assert status["components"]["predictor"]["latestRolledoutRevision"] == "iris-predictor-00001"
    assert plane.traffic(ns, "iris") == {"iris-predictor-00001": 100}
    for kind in CHILD_KINDS:
        for child in plane.all(kind, ns):
            (owner,) = child["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["name"], owner["controller"]) == ("InferenceService", "iris", True)


def test_nothing_is_written_and_nothing_is_read_while_nothing_changes(plane, running, ns):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    quiet(plane, running, ns, *CHILD_KINDS, INFERENCE_SERVICE)
    before = dict(running.api.requests)
    for _ in range(5):
        running.platform._wake(["*"])
        threading.Event().wait(0.3)
    after = dict(running.api.requests)
    watches = [verb for verb in before if verb[0] == "WATCH"]
    assert {v: n for v, n in after.items() if v not in watches} == {v: n for v, n in before.items() if v not in watches}


def test_a_controller_that_starts_anew_writes_nothing(plane, running, ns):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    versions = quiet(plane, running, ns, *CHILD_KINDS, INFERENCE_SERVICE)
    second = Running(plane)
    try:
        until(lambda: second.platform.reconciles >= 1)
        assert quiet(plane, second, ns, *CHILD_KINDS, INFERENCE_SERVICE) == versions
        assert second.writes == 0, second.api.requests
    finally:
        second.stop()


def test_a_candidate_gets_its_share_when_it_is_ready_and_promotion_makes_it_the_stable_one(plane, running, ns, says):
    plane.apply(service(ns, minReplicas=2))
    until(lambda: plane.is_ready(ns, "iris"))
    with says(lambda pod: pod_status(pod, "canary" not in pod["metadata"]["name"])):
        plane.apply(service(ns, uri="s3://models/two", minReplicas=2, canaryTrafficPercent=20))
        until(lambda: plane.get(DEPLOYMENT, ns, "iris-predictor-canary"))
        until(lambda: plane.ready(ns, "iris").get("status") == "Unknown")
        assert plane.weights(ns, "iris") == {"iris-predictor": 100}
    until(lambda: plane.is_ready(ns, "iris"))
    assert plane.weights(ns, "iris") == {"iris-predictor": 80, "iris-predictor-canary": 20}
    assert plane.traffic(ns, "iris") == {"iris-predictor-00001": 80, "iris-predictor-00002": 20}
    stable = plane.get(DEPLOYMENT, ns, "iris-predictor")
    assert stable["spec"]["template"]["metadata"]["labels"]["serving.serveplane.dev/revision"] == "iris-predictor-00001"

    least = watch_available(plane, ns)
    plane.apply(service(ns, uri="s3://models/two", minReplicas=2))
    until(lambda: plane.is_ready(ns, "iris") and plane.traffic(ns, "iris") == {"iris-predictor-00002": 100})
    until(lambda: plane.get(DEPLOYMENT, ns, "iris-predictor-canary") is None)
    assert plane.weights(ns, "iris") == {"iris-predictor": 100}
    until(lambda: plane.get(SERVICE_KIND, ns, "iris-predictor-canary") is None)
    assert least() >= 2
    component = plane.service(ns, "iris")["status"]["components"]["predictor"]
    assert component["previousRolledoutRevision"] == "iris-predictor-00001"
    assert component["latestRolledoutRevision"] == "iris-predictor-00002"
    assert plane.reasons(ns, "iris").count("RevisionRolledOut") == 1


def watch_available(plane, ns):
    """From now on, the fewest available pods of all Deployments together; a function that gives the number and ends it."""
    counts, ended = [], threading.Event()

    def look():
        while not ended.wait(0.05):
            counts.append(sum(d.get("status", {}).get("availableReplicas", 0) for d in plane.all(DEPLOYMENT, ns)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()

    def least():
        ended.set()
        thread.join()
        return min(counts)

    return least


def test_a_candidate_is_given_up_with_zero_percent_and_by_going_back(plane, running, ns):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    plane.apply(service(ns, uri="s3://models/two", canaryTrafficPercent=50))
    until(lambda: plane.weights(ns, "iris") == {"iris-predictor": 50, "iris-predictor-canary": 50})
    plane.apply(service(ns, uri="s3://models/two", canaryTrafficPercent=0))
    until(lambda: plane.is_ready(ns, "iris") and plane.weights(ns, "iris") == {"iris-predictor": 100})
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris") and plane.get(DEPLOYMENT, ns, "iris-predictor-canary") is None)
    assert plane.traffic(ns, "iris") == {"iris-predictor-00001": 100}
    # the old template is the old revision, and the next new one has a new number
    plane.apply(service(ns, uri="s3://models/three"))
    until(lambda: plane.traffic(ns, "iris") == {"iris-predictor-00003": 100})


def test_canaries_of_the_list_have_names_of_their_own(plane, running, ns):
    entry = {"trafficPercent": 25, "predictor": {"name": "blue", "model": {"storageUri": "s3://models/two"}}}
    plane.apply(service(ns, canary=[entry]))
    until(lambda: plane.is_ready(ns, "iris"))
    assert plane.weights(ns, "iris") == {"iris-predictor": 75, "iris-blue-predictor": 25}
    revision = plane.get(CONTROLLER_REVISION, ns, "iris-predictor-00002")
    assert revision["data"]["predictor"]["model"]["storageUri"] == "s3://models/two"
    assert revision["data"]["predictor"]["model"]["modelFormat"]["name"] == "sklearn"


def test_ten_revisions_are_kept_besides_those_in_use(plane, running, ns):
    for number in range(1, 15):
        plane.apply(service(ns, uri=f"s3://models/{number}"))
        until(lambda number=number: plane.traffic(ns, "iris") == {f"iris-predictor-{number:05d}": 100})
    until(lambda: len(plane.all(CONTROLLER_REVISION, ns)) <= 12)
    numbers = sorted(one["revision"] for one in plane.all(CONTROLLER_REVISION, ns))
    assert numbers[-1] == 14
    assert len(numbers) in (11, 12)
    assert numbers == list(range(numbers[0], 15))


def test_what_somebody_else_changes_or_removes_is_put_back(plane, running, ns):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    path = DEPLOYMENT.path(ns, "iris-predictor")
    image = plane.api.get(path)["spec"]["template"]["spec"]["containers"][0]["image"]
    plane.api.patch(path, [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "evil:1"}], "somebody")
    until(lambda: plane.api.get(path)["spec"]["template"]["spec"]["containers"][0]["image"] == image)
    plane.api.delete(SERVICE_KIND.path(ns, "iris-predictor"))
    until(lambda: plane.get(SERVICE_KIND, ns, "iris-predictor"))
    plane.api.delete(VIRTUAL_SERVICE.path(ns, "iris"))
    until(lambda: plane.get(VIRTUAL_SERVICE, ns, "iris"))
    wrong = [{"op": "add", "path": "/status", "value": {"url": "http://evil.example.com"}}]
    plane.api.patch(INFERENCE_SERVICE.path(ns, "iris") + "/status", wrong, "somebody")
    until(lambda: plane.is_ready(ns, "iris"))


def test_what_others_add_is_left_alone(plane, running, ns):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    path = DEPLOYMENT.path(ns, "iris-predictor")
    mine = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "iris-predictor", "annotations": {"team": "blue"}},
    }
    plane.api.apply(path, mine, "somebody")
    plane.apply(service(ns, uri="s3://models/two"))
    until(lambda: plane.traffic(ns, "iris") == {"iris-predictor-00002": 100})
    assert plane.api.get(path)["metadata"]["annotations"]["team"] == "blue"


def test_the_replicas_that_an_autoscaler_sets_survive_updates_and_changes_of_the_class(plane, running, ns):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    path = DEPLOYMENT.path(ns, "iris-predictor")
    scale = {
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {"name": "iris-predictor", "namespace": ns},
        "spec": {"replicas": 3},
    }
    plane.api._ask("PUT", path + "/scale", scale)
    until(lambda: plane.api.get(path)["status"].get("availableReplicas") == 3)
    plane.apply(service(ns, uri="s3://models/two"))
    until(lambda: plane.traffic(ns, "iris") == {"iris-predictor-00002": 100})
    assert plane.api.get(path)["spec"]["replicas"] == 3

    fixed = service(ns, uri="s3://models/two", minReplicas=2)
    fixed["metadata"]["annotations"] = {"serving.kserve.io/autoscalerClass": "none"}
    plane.apply(fixed)
    until(lambda: plane.api.get(path)["spec"]["replicas"] == 2 and plane.get(HPA, ns, "iris-predictor") is None)
    plane.apply(service(ns, uri="s3://models/two"))
    until(lambda: plane.get(HPA, ns, "iris-predictor"))
    until(lambda: plane.ready(ns, "iris"))
    assert plane.api.get(path)["spec"]["replicas"] == 2


def test_a_service_begins_with_as_many_replicas_as_it_has_at_least(plane, running, ns):
    plane.apply(service(ns, minReplicas=3))
    until(lambda: plane.is_ready(ns, "iris"), 10.0)
    assert plane.api.get(DEPLOYMENT.path(ns, "iris-predictor"))["spec"]["replicas"] == 3


def test_a_service_that_is_stopped_has_nothing_and_comes_back_with_its_history(plane, running, ns):
    for uri in ("s3://models/one", "s3://models/two"):
        plane.apply(service(ns, uri=uri))
        until(lambda: plane.is_ready(ns, "iris"))
    stopped = service(ns, uri="s3://models/two")
    stopped["metadata"]["annotations"] = {"serving.kserve.io/stop": "true"}
    plane.apply(stopped)
    until(lambda: not any(plane.all(kind, ns) for kind in CHILD_KINDS))
    until(lambda: plane.ready(ns, "iris").get("reason") == "Stopped")
    plane.apply(service(ns, uri="s3://models/two"))
    until(lambda: plane.is_ready(ns, "iris"))
    component = plane.service(ns, "iris")["status"]["components"]["predictor"]
    assert component["previousRolledoutRevision"] == "iris-predictor-00001"
    assert component["latestRolledoutRevision"] == "iris-predictor-00002"


AT = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}


def ended(code, **more):
    return {"terminated": {"exitCode": code, "reason": "Error", **AT, **more}}


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


FAILURES = {
    "the model can't be fetched": (
        {"init": ended(1, message="fetching…\ns3://models/none: there is no such bucket\n")},
        ("ModelLoadFailed", "there is no such bucket"),
    ),
    "the server ends with an error": (
        {
            "state": waiting("CrashLoopBackOff", "back-off 10s"),
            "last": ended(3, message="model.skops: it is no model"),
            "restarts": 2,
        },
        ("ModelLoadFailed", "model.skops: it is no model"),
    ),
    "it needs too much memory": (
        {"state": waiting("CrashLoopBackOff"), "last": ended(137, reason="OOMKilled"), "restarts": 1},
        ("OOMKilled", "resources.limits.memory"),
    ),
    "the image is not there": (
        {"state": waiting("ImagePullBackOff", 'Back-off pulling image "none:1"')},
        ("ImagePullBackOff", "imagePullSecrets"),
    ),
    "a secret is not there": (
        {"state": waiting("CreateContainerConfigError", 'secret "none" not found')},
        ("CreateContainerConfigError", 'secret "none" not found'),
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_why_pods_do_not_get_ready_is_said_in_the_status(plane, running, ns, says, case):
    said, (reason, text) = FAILURES[case]
    with says(lambda pod: pod_status(pod, False, **said) if pod["metadata"]["namespace"] == ns else ready_pod(pod)):
        plane.apply(service(ns))
        until(lambda: plane.ready(ns, "iris").get("reason") == reason)
        status = plane.service(ns, "iris")["status"]
        assert text in plane.ready(ns, "iris")["message"]
        info = status["modelStatus"]["lastFailureInfo"]
        assert (info["reason"], info["modelRevisionName"]) == (reason, "iris-predictor-00001")
        assert info["location"] == plane.all(POD, ns)[0]["metadata"]["name"]
        until(lambda: reason in plane.reasons(ns, "iris"))
    until(lambda: plane.is_ready(ns, "iris"))


def test_that_no_node_takes_a_pod_is_told_after_a_while_with_what_to_do(plane, running, ns):
    plane.apply(service(ns, uri="pvc://none/model"))
    until(lambda: plane.ready(ns, "iris").get("reason") == "Unschedulable")
    assert "make the claim, or name another in storageUri" in plane.ready(ns, "iris")["message"]


def test_a_quota_is_said_to_be_why_no_pod_is_made(plane, running, ns):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small", "namespace": ns},
        "spec": {"hard": {"pods": "0"}},
    }
    plane.api.create(QUOTAS.path(ns), quota)
    until(lambda: plane.get(QUOTAS, ns, "small").get("status", {}).get("hard"))
    plane.apply(service(ns))
    until(lambda: "exceeded quota" in plane.ready(ns, "iris").get("message", ""))
    assert "raise the namespace's quota" in plane.ready(ns, "iris")["message"]
    plane.api.delete(QUOTAS.path(ns, "small"))


def test_what_the_api_server_refuses_is_told_and_the_others_go_on(plane, running, ns):
    plane.apply(service(ns, name="bad", volumes=[{"name": "Not_A_Name", "emptyDir": {}}]))
    plane.apply(service(ns, name="good"))
    until(lambda: plane.is_ready(ns, "good"))
    until(lambda: "Not_A_Name" in plane.ready(ns, "bad").get("message", ""))
    assert plane.ready(ns, "bad")["reason"] == "InvalidPredictorSpec"
    until(lambda: "ApplyRefused" in plane.reasons(ns, "bad"))
    plane.apply(service(ns, name="bad"))
    until(lambda: plane.is_ready(ns, "bad"))


def test_an_autoscaler_that_the_cluster_has_not_is_told_as_that_and_the_service_serves(plane, running, ns):
    raw = service(ns)
    raw["metadata"]["annotations"] = {"serving.kserve.io/autoscalerClass": "keda"}
    plane.apply(raw)
    until(lambda: plane.ready(ns, "iris").get("reason") == "AutoscalerNotConfigured")
    message = plane.ready(ns, "iris")["message"]
    assert "the cluster has no kind ScaledObject (keda.sh/v1alpha1)" in message
    assert "serving.kserve.io/autoscalerClass" in message
    until(lambda: plane.weights(ns, "iris") == {"iris-predictor": 100})
    states = {one["type"]: one["status"] for one in plane.service(ns, "iris")["status"]["conditions"]}
    assert states == {"Ready": "False", "PredictorReady": "False", "IngressReady": "True", "Stopped": "False"}
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))


def test_what_has_no_effect_is_told_in_one_event_for_each_generation(plane, running, ns):
    def told():
        return sorted(e["message"] for e in plane.all(EVENT, ns) if e["reason"] == "NoEffect")

    odd = {"scaleMetric": "rps", "scaleTarget": 5, "logger": {"url": "http://logs.default"}}
    plane.apply(service(ns, **odd))
    until(lambda: plane.is_ready(ns, "iris"))
    (message,) = told()
    assert message.startswith("spec.predictor.scaleMetric: has no effect")
    assert "; spec.predictor.logger: has no effect" in message
    running.platform._wake(["*"])
    plane.apply(service(ns, minReplicas=2, **odd))
    until(lambda: plane.is_ready(ns, "iris"))
    assert told() == [message, message]


def test_what_is_somebody_elses_is_not_taken(plane, running, ns):
    labels = {"app": "theirs"}
    container = {"name": "main", "image": "theirs:1"}
    spec = {
        "selector": {"matchLabels": labels},
        "replicas": 0,
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    theirs = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "iris-predictor", "namespace": ns},
        "spec": spec,
    }
    plane.api.create(DEPLOYMENT.path(ns), theirs)
    plane.apply(service(ns))
    until(lambda: "somebody else's" in plane.ready(ns, "iris").get("message", ""))
    assert plane.get(DEPLOYMENT, ns, "iris-predictor")["spec"]["template"]["spec"]["containers"][0]["image"] == "theirs:1"


def test_a_service_that_is_made_again_has_nothing_of_the_one_before(plane, running, ns):
    for uri in ("s3://models/one", "s3://models/two"):
        plane.apply(service(ns, uri=uri))
        until(lambda: plane.is_ready(ns, "iris"))
    plane.api.delete(INFERENCE_SERVICE.path(ns, "iris"))
    made = plane.apply(service(ns, uri="s3://models/three"))
    until(lambda: plane.is_ready(ns, "iris"), 60.0)
    until(
        lambda: (
            {c["metadata"]["ownerReferences"][0]["uid"] for k in CHILD_KINDS for c in plane.all(k, ns)}
            == {made["metadata"]["uid"]}
        )
    )
    assert plane.traffic(ns, "iris") == {"iris-predictor-00001": 100}
    plane.api.delete(INFERENCE_SERVICE.path(ns, "iris"))
    until(lambda: not any(plane.all(kind, ns) for kind in (*CHILD_KINDS, CONTROLLER_REVISION)), 60.0)


def test_a_mistaken_spec_is_told_and_what_serves_goes_on(plane, running, ns):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    versions = quiet(plane, running, ns, DEPLOYMENT, SERVICE_KIND, VIRTUAL_SERVICE)
    wrong = service(ns)
    wrong["metadata"]["annotations"] = {"serving.kserve.io/stop": "perhaps"}
    plane.apply(wrong)
    until(lambda: plane.ready(ns, "iris").get("reason") == "InvalidSpec")
    assert "perhaps" in plane.ready(ns, "iris")["message"]
    assert quiet(plane, running, ns, DEPLOYMENT, SERVICE_KIND, VIRTUAL_SERVICE) == versions
    before = running.writes
    running.platform._wake(["*"])
    threading.Event().wait(1.5)
    assert running.writes == before
    right = service(ns)
    right["metadata"]["annotations"] = {"serving.kserve.io/stop": "false"}
    plane.apply(right)
    until(lambda: plane.is_ready(ns, "iris"))


def test_a_runtime_that_is_installed_serves_and_one_that_is_broken_is_none(plane, running, ns):
    container = {"name": "kserve-container", "image": "theirs:1", "args": ["--port=8080"]}
    runtime = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "theirs", "namespace": ns},
        "spec": {"supportedModelFormats": [{"name": "lightgbm", "autoSelect": True, "priority": 1}], "containers": [container]},
    }
    plane.apply(service(ns, model={"modelFormat": {"name": "lightgbm"}, "storageUri": "s3://models/one"}))
    until(lambda: plane.ready(ns, "iris").get("status") == "False")
    plane.api.create(SERVING_RUNTIME.path(ns), runtime)
    until(lambda: plane.is_ready(ns, "iris"))
    assert plane.get(DEPLOYMENT, ns, "iris-predictor")["spec"]["template"]["spec"]["containers"][0]["image"] == "theirs:1"


def test_the_config_map_is_read_again_when_it_changes_and_kept_when_it_is_wrong(plane, running, ns):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    try:
        plane.configure("gateway-api")
        until(lambda: plane.get(VIRTUAL_SERVICE, ns, "iris") is None)
        until(lambda: plane.is_ready(ns, "iris"))
        plane.configure("nonsense")
        threading.Event().wait(0.5)
        assert running.platform.settings.ingress == "gateway-api"
    finally:
        plane.configure("istio")
    until(lambda: plane.get(VIRTUAL_SERVICE, ns, "iris"))
    until(lambda: plane.is_ready(ns, "iris"))
