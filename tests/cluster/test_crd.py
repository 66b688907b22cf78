"""The kinds and the webhook at a real API server: what it takes, what it refuses and in which words, what kubectl makes of it."""

import json
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from deployer.kubernetes.admission.certificate import renewed
from deployer.kubernetes.admission.webhook import Webhook, with_bundle
from deployer.spec import KIND, as_object, documents, parse
from tests.cluster.conftest import CRDS
from tests.deployer.kubernetes.test_crd import SDK_STATUS
from tests.deployer.kubernetes.test_webhook import SPEC
from tests.deployer.test_runtimes import auto, runtime
from tests.deployer.test_validation import ACCEPTED, MODEL, REFUSED, canaries, canary, custom, model, service, with_
from tests.left_out import leave_out

MANIFESTS = sorted((Path(__file__).parents[2] / "examples" / "manifests").glob("*.yaml"))
# Most of it is what a collector of garbage has not come to yet; KServe's kinds make it a gigabyte.
MEMORY = 250 << 20
HOOKS = yaml.safe_load("""
- apiVersion: admissionregistration.k8s.io/v1
  kind: MutatingWebhookConfiguration
  metadata: {name: test-serveplane}
  webhooks: [{name: default.serving.serveplane.dev}]
- apiVersion: admissionregistration.k8s.io/v1
  kind: ValidatingWebhookConfiguration
  metadata: {name: test-serveplane}
  webhooks: [{name: validate.serving.serveplane.dev}]
""")
RULE = yaml.safe_load("""
  sideEffects: None
  admissionReviewVersions: [v1]
  failurePolicy: Fail
  timeoutSeconds: 5
  rules:
    - apiGroups: [serving.kserve.io]
      apiVersions: [v1beta1, v1alpha1]
      operations: [CREATE, UPDATE]
      resources: [inferenceservices, servingruntimes, clusterservingruntimes]
      scope: "*"
""")


@pytest.fixture
def hooked(kinds):
    """The cluster with our kinds and the webhook, which runs here: an API server of this machine reaches it."""
    if not kinds.here:
        leave_out("the API server of $KUBECONFIG can't be expected to reach a webhook here; unset it")
    certificate = renewed(None, ("127.0.0.1",), time.time())
    webhook = Webhook(lambda namespace: (), port=0, address="127.0.0.1")
    webhook.use(certificate)
    webhook.start()
    for one, path in zip(HOOKS, ("default", "validate"), strict=True):
        client = {"url": f"https://127.0.0.1:{webhook.port}/{path}"}
        hooks = [{**hook, **RULE, "clientConfig": client} for hook in one["webhooks"]]
        kinds.kubectl("apply", "-f", "-", stdin=with_bundle({**one, "webhooks": hooks}, certificate.authorities))
    try:
        # an API server takes a while to hear of a webhook
        _until(lambda: "did you mean" in dry(kinds, with_(minReplica=1)).stderr)
        _until(lambda: json.loads(dry(kinds, KEYED, "-o", "json").stdout)["spec"]["predictor"].get("model"))
        yield kinds
    finally:
        for one in HOOKS:
            kinds.kubectl("delete", one["kind"], one["metadata"]["name"])
        _until(lambda: dry(kinds, with_(minReplica=1)).returncode == 0)
        webhook.stop()


def _until(done, seconds=30):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it does not come"


def dry(cluster, raw, *how):
    """What would come of making it."""
    if isinstance(raw, dict) and isinstance(raw.get("metadata"), dict):
        raw = {**raw, "metadata": {key: value for key, value in raw["metadata"].items() if key != "creationTimestamp"}}
    return cluster.run("create", "--dry-run=server", *how, "-f", "-", stdin=raw)


KEYED = service({"sklearn": {"storageUri": "/m.skops"}})


# what the API server says of the kinds


def test_the_kinds_are_established_without_a_complaint_and_cost_the_api_server_little(kinds, capsys):
    for one in kinds.get("crd", *[f"{path.stem.partition('_')[2]}.serving.kserve.io" for path in CRDS.iterdir()])["items"]:
        states = {condition["type"]: condition["status"] for condition in one["status"]["conditions"]}
        assert states["Established"] == states["NamesAccepted"] == "True"
        # present where the API server finds a schema not to be structural
        assert "NonStructuralSchema" not in states
    before = kinds.memory_without_kinds
    if before is not None:
        kinds.kubectl("get", "--raw", "/openapi/v2")
        now = kinds.memory()
        with capsys.disabled():
            print(f"\nthe API server holds {before / 2**20:.0f} MiB without the kinds, and {now / 2**20:.0f} MiB with them")
        assert now - before < MEMORY


def test_explain_is_useful(kinds):
    _until(lambda: kinds.run("explain", "isvc").returncode == 0)
    for path, texts in {
        "isvc": ["A model that is served", "spec", "status"],
        "isvc.spec.predictor.minReplicas": ["<integer>", "Replicas that are always there"],
        "isvc.spec.predictor.model": ["storageUri", "Where the model is", "kubectl explain pod.spec.containers.stdin"],
        "isvc.spec.predictor.model.protocolVersion": ["ENUM", "grpc-v2"],
        "isvc.spec.canary": ["-required-"],
        "isvc.spec.canary.trafficPercent": ["Percent of the requests that go to this canary"],
        "isvc.status.modelStatus": ["UpToDate, InProgress"],
        "servingruntime.spec.supportedModelFormats": ["autoSelect", "Whether a model that names no runtime may get this one"],
        "clusterservingruntime.spec.containers": ["kserve-container"],
    }.items():
        said = kinds.kubectl("explain", path)
        for text in texts:
            assert text in said, f"{path}: {said}"


# what it takes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_example_is_taken(kinds, path):
    objects = documents(path.read_text(), path.name)
    for one in objects:
        one["metadata"].pop("namespace", None)
    done = dry(kinds, objects)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_whatever_the_parser_takes_is_taken_and_kept(hooked):
    for why, raw in ACCEPTED:
        done = dry(hooked, raw, "-o", "json")
        assert done.returncode == 0, f"{why}: {done.stderr}"
        assert (
            parse(json.loads(done.stdout), formats=None).spec.predictor.model == parse(raw, formats=None).spec.predictor.model
        ), why


def test_a_service_gets_its_defaults(kinds):
    for raw in (with_(), with_(minReplicas=None)):
        assert json.loads(dry(kinds, raw, "-o", "json").stdout)["spec"]["predictor"]["minReplicas"] == 1
    raw = canaries(
        canary(), logger={"url": "http://a"}, storageUris=[{"uri": "pvc://a/b"}], model={"modelFormat": {"name": "sklearn"}}
    )
    spec = json.loads(dry(kinds, raw, "-o", "json").stdout)["spec"]
    assert spec["predictor"]["logger"]["mode"] == "all"
    assert spec["predictor"]["storageUris"] == [{"uri": "pvc://a/b", "mountPath": "/mnt/models"}]
    assert "minReplicas" not in spec["canary"][0]["predictor"]


def test_null_is_as_good_as_absent(kinds, namespace):
    model_ = {**MODEL, "protocolVersion": None, "resources": None, "runtime": None}
    nothing = ("minReplicas", "maxReplicas", "scaleMetric", "timeout", "containers", "storageUris", "sklearn", "nodeSelector")
    raw = service({"model": model_, **dict.fromkeys(nothing), "logger": {"mode": None}}, canary=None, transformer=None)
    # kubectl itself would leave them out
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices"
    kept = json.loads(kinds.kubectl("create", "--raw", path, "-f", "-", stdin=raw))["spec"]
    assert kept == {"predictor": {"model": MODEL, "minReplicas": 1, "logger": {"mode": "all"}}}


# what it refuses without the webhook

BY_ITSELF = [
    (with_(minReplicas=3, maxReplicas=1), "spec.predictor.maxReplicas", "found 1, wanted minReplicas (3) or more; raise it, or lower that"),
    (with_(maxReplicas=0), "", ""),
    (with_(scaleTarget=150), "spec.predictor.scaleTarget", "found 150, wanted a whole number from 1 to 100"),
    (with_(scaleMetric="memory", scaleTarget=150), "", ""),
    (with_(scaleMetric="rps", scaleMetricType="Utilization"), "spec.predictor.scaleMetricType", "leave it out for concurrency and rps"),
    (with_(scaleMetricType="Value"), "spec.predictor.scaleMetricType", "wanted Utilization or AverageValue"),
    (with_(scaleMetric="cpu", autoScaling={"metrics": [{"type": "Resource"}]}), "spec.predictor.autoScaling", "exclude each other"),
    (service({}), "spec.predictor", "there is nothing to run; give it a model"),
    (service({"model": MODEL, "sklearn": {"storageUri": "/m"}}), "spec.predictor", "a predictor serves one model"),
    (with_(containers=[{"name": "kserve-container"}]), "spec.predictor.containers", "has either a model or a container kserve-container"),
    (with_(storageUris=[{"uri": "/a"}]), "spec.predictor.storageUris", "put the one into the list"),
    (with_(workerSpec={}), "spec.predictor.workerSpec", "over several machines is not supported"),
    (model(storageUri="gopher://x"), "spec.predictor.model.storageUri", "wanted an absolute path or a URI; known: file://"),
    (model(storageUri="models/iris"), "spec.predictor.model.storageUri", "wanted an absolute path or a URI"),
    (model(storageUri="S3://b/m"), "", ""),
    (model(storageUri="oci+native://b/m"), "", ""),
    (service({"sklearn": {"storageUri": "gopher://x"}}), "spec.predictor.sklearn.storageUri", "wanted an absolute path or a URI"),
    (model(storage={"key": "k"}), "spec.predictor.model.storage", "leave one of the two out"),
    (service(transformer={"minReplicas": 1}), "spec.transformer", "there is nothing to run; give it containers"),
    (service(transformer={"containers": [{"image": "a"}], "canaryTrafficPercent": 3}), "spec.transformer.canaryTrafficPercent", "only a predictor has canaries"),
    (service(explainer={"art": {}}), "", ""),
    (canaries(canary(), canaryTrafficPercent=10), "spec.predictor.canaryTrafficPercent", "two ways to say the same"),
    (canaries(canary(60), canary(50, "v3")), "spec.canary", "add up to 110, wanted at most 100"),
    (canaries(canary(1), canary(2)), "spec.canary", "two predictors have the same name"),
    (canaries(canary(1, "v1"), name="v1"), "spec.canary", "two predictors have the same name"),
    (canaries(canary(10, minReplicas=3), minReplicas=2), "spec.canary", "above the stable predictor's"),
    (canaries(canary(10, minReplicas=1), minReplicas=0), "", ""),
    (canaries(canary(10, maxReplicas=3)), "spec.canary[0].predictor", "a canary may not say maxReplicas"),
    (canaries({"trafficPercent": 3, "predictor": {}}), "spec.canary[0].predictor.name", "Required value"),
    (canaries({"predictor": {"name": "a"}}), "spec.canary[0].trafficPercent", "Required value"),
    (with_(minReplicas="3"), "spec.predictor.minReplicas", "must be of type integer"),
    (with_(timeout=0), "spec.predictor.timeout", "should be greater than or equal to 1"),
    (model(protocolVersion="v3"), "spec.predictor.model.protocolVersion", 'supported values: "v1", "v2", "grpc-v1", "grpc-v2"'),
    (service(metadata={"name": "a" * 52}), "metadata.name", "51"),
    (custom({"image": "x"}), "", ""),
    (runtime("mine", auto("sklearn"), containers=[{"name": "a", "image": "x"}]), "spec.containers", "wanted a container called kserve-container"),
    (runtime("mine", auto("sklearn"), containers=[{"name": "a", "image": "x"}], multiModel=True), "", ""),
    (runtime("mine", auto("sklearn", 0)), "spec.supportedModelFormats[0].priority", "greater than or equal to 1"),
    (runtime("mine", auto("sklearn", 1)), "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "path", "text"), BY_ITSELF)
def test_the_api_server_refuses_by_itself_what_the_schema_finds(kinds, raw, path, text):
    done = dry(kinds, raw)
    assert (done.returncode == 0) == (not path), done.stderr
    assert path in done.stderr
    assert text in done.stderr
    if raw["kind"] == KIND and not path:
        parse(raw)


def test_what_is_wrong_by_schema_and_by_rule_names_its_field_as_kubectl_lists_it(kinds):
    done = dry(kinds, with_(minReplicas=3, maxReplicas=1))
    assert done.stderr.startswith('The InferenceService "iris" is invalid: spec.predictor.maxReplicas: Invalid value:')


def test_a_typo_is_kept_for_the_controller_to_tell(kinds):
    kept = json.loads(dry(kinds, with_(minReplica=3), "-o", "json").stdout)["spec"]["predictor"]
    assert kept["minReplica"] == 3


# with the webhook


def test_a_typo_is_refused_with_the_name_that_was_meant(hooked):
    for strict in ("strict", "warn", "ignore"):
        done = dry(hooked, with_(minReplica=3), f"--validate={strict}")
        assert done.returncode != 0
        assert "spec.predictor.minReplica: a predictor has no such field; did you mean 'minReplicas'?" in done.stderr


# an API server drops what is unknown at the top and in the metadata, writes "" for a label of nothing, and knows of no other
# namespace than the request's
NOT_THERE = ("specs", "metadata.label", "metadata.labels.a", "metadata.namespace")


def test_whatever_the_parser_refuses_is_refused_at_admission(hooked):
    taken = []
    for why, raw, path, _ in REFUSED:
        # kubectl has to know what it sends, and where to; a name is made of generateName before anybody is asked
        if raw.get("kind") != KIND or not raw.get("apiVersion", "").endswith("v1beta1") or path in NOT_THERE:
            continue
        if not raw.get("metadata", {}).get("name"):
            continue
        done = dry(hooked, raw, "--validate=ignore")
        if done.returncode == 0 and "there is no model format" not in done.stderr:
            taken.append(why)
    assert taken == []


def test_all_mistakes_are_listed_and_warnings_are_told(hooked):
    done = dry(hooked, with_(timeout=1, minReplica=3, zzz=1))
    assert done.stderr.startswith('The InferenceService "iris" is invalid: \n* spec.predictor.minReplica: ')
    assert "\n* spec.predictor.zzz: " in done.stderr
    done = dry(hooked, with_(scaleMetric="rps", scaleTarget=5))
    assert done.returncode == 0
    assert "Warning: spec.predictor.scaleMetric: has no effect" in done.stderr


def test_applying_again_changes_nothing_however_it_is_written(hooked, namespace):
    forms = {
        "keyed": KEYED,
        "unset": with_(maxReplicas=0, timeout=None),
        "container": custom({"image": "x"}),
        "canaries": canaries(canary(), canary(5, "v3")),
    }
    for name, raw in forms.items():
        raw = {**raw, "metadata": {"name": name}}
        for how in ((), ("--server-side",)):
            one = {**raw, "metadata": {"name": f"{name}{len(how)}"}}
            for _ in range(3):
                hooked.kubectl("apply", *how, "-n", namespace, "-f", "-", stdin=one)
                same = hooked.run("diff", *how, "-n", namespace, "-f", "-", stdin=one)
                assert same.returncode == 0, same.stdout + same.stderr
            found = hooked.get("isvc", one["metadata"]["name"], "-n", namespace)
            assert found["metadata"]["generation"] == 1, f"{name} {how}"
            wanted = as_object(parse(raw))["spec"]
            wanted["predictor"].setdefault("minReplicas", 1)
            assert found["spec"] == wanted
    changed = {**service({"sklearn": {"storageUri": "/2.skops"}}), "metadata": {"name": "keyed0"}}
    hooked.kubectl("apply", "-n", namespace, "-f", "-", stdin=changed)
    found = hooked.get("isvc", "keyed0", "-n", namespace)
    assert (found["metadata"]["generation"], found["spec"]["predictor"]["model"]["storageUri"]) == (2, "/2.skops")


def test_two_runtimes_that_are_as_good_are_not_told_apart_by_the_schema_but_by_the_webhook(hooked):
    done = dry(
        hooked,
        runtime(
            "mine", {"name": "sklearn", "autoSelect": True, "priority": 1}, {"name": "sklearn", "autoSelect": True, "priority": 2}
        ),
    )
    assert "a runtime has one priority for a format" in done.stderr


# kubectl's verbs


def test_a_service_is_applied_scaled_waited_for_listed_and_deleted(kinds, namespace):
    here = ("-n", namespace)
    kinds.kubectl("apply", *here, "-f", "-", stdin=with_())
    kinds.kubectl("scale", *here, "isvc/iris", "--replicas=3")
    found = kinds.get("isvc", "iris", *here)
    assert (found["spec"]["predictor"]["minReplicas"], found["metadata"]["generation"]) == (3, 2)
    kinds.kubectl("patch", *here, "isvc", "iris", "--type=merge", "-p", json.dumps({"spec": {"predictor": {"maxReplicas": 4}}}))
    done = kinds.run("scale", *here, "isvc/iris", "--replicas=5")
    assert "found 4, wanted minReplicas (5) or more" in done.stderr
    for generation in (2, 3):
        # a condition of an older generation is none to wait for
        assert kinds.run("wait", *here, "--for=condition=Ready", "isvc/iris", "--timeout=0s").returncode != 0
        status = {**SDK_STATUS, "observedGeneration": generation}
        kinds.kubectl(
            "patch", *here, "isvc", "iris", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status})
        )
        found = kinds.get("isvc", "iris", *here)
        assert (found["status"], found["metadata"]["generation"]) == (status, 3)
    kinds.kubectl("wait", *here, "--for=condition=Ready", "isvc/iris", "--timeout=10s")
    head, row = kinds.kubectl("get", "isvc", *here).splitlines()
    assert head.split() == ["NAME", "URL", "READY", "PREV", "LATEST", "PREVROLLEDOUTREVISION", "LATESTREADYREVISION", "AGE"]
    assert row.split()[:4] == ["iris", "http://iris-default.example.com", "True", "10"]
    assert "iris" in kinds.kubectl("get", "all", *here)
    kinds.kubectl("delete", *here, "isvc/iris", "--timeout=20s")


def test_the_status_is_nobodys_but_the_controllers_and_the_spec_is_not_the_status(kinds, namespace):
    kinds.kubectl("create", "-n", namespace, "-f", "-", stdin={**with_(), "status": SDK_STATUS})
    assert "status" not in kinds.get("isvc", "iris", "-n", namespace)


@pytest.fixture(scope="module")
def place(kinds):
    kinds.kubectl("create", "namespace", "anything")
    yield "anything"
    kinds.kubectl("delete", "namespace", "anything", "--wait=false")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(SPEC)
def test_a_service_of_anything_is_taken_or_refused_and_never_an_error_of_the_server(kinds, place, anything):
    raw = {**service(), "spec": anything}
    try:
        text = json.dumps(raw, allow_nan=False)
        text.encode()
    except ValueError:
        return
    done = dry(kinds, text, "-n", place, "--validate=ignore")
    assert "InternalError" not in done.stderr
    assert done.returncode == 0 or "nvalid" in done.stderr or "BadRequest" in done.stderr or "unable to decode" in done.stderr, (
        done.stderr
    )
