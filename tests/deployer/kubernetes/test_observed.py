"""What KServe lets pass and then fails on, or silently ignores, as it was seen to: here nothing of it passes in silence.

Each row is refused at admission, or it is warned of at admission and told in an Event, or it does what it says.  Where the
webhook is switched off, the controller refuses with the same texts in the condition Ready (`parse` is what both ask).
"""

import pytest

from deployer.errors import SpecError
from deployer.kubernetes.rendering import objects
from deployer.kubernetes.rendering.settings import Settings
from deployer.runtimes import parse_runtime
from deployer.spec import check_update, notices, parse
from tests.deployer.kubernetes.test_webhook import reviewed
from tests.deployer.test_runtimes import auto, runtime
from tests.deployer.test_validation import MODEL, canaries, canary, custom, model, service, with_

MODE = 'metadata.annotations["serving.kserve.io/deploymentMode"]'
SCALER = "serving.kserve.io/autoscalerClass"


def noted(raw, **annotations):
    """With annotations, _ for what is no letter in Python's names."""
    notes = {f"serving.kserve.io/{name}": value for name, value in annotations.items()}
    return {**raw, "metadata": {**raw["metadata"], "annotations": notes}}


def sized(requests, limits):
    return model(resources={"requests": requests, "limits": limits}, storageUri="/m")


TRANSFORMER = {"containers": [{"image": "a"}]}

REFUSED = [
    # what KServe admits and fails on
    ("an unknown deployment mode", noted(with_(), deploymentMode="Nomad"), MODE, "wanted Standard"),
    ("a host's label above 63 characters", service(metadata={"name": "a" * 50, "namespace": "n" * 20}), "metadata.name", "shorten name or namespace by 8"),
    ("a predictor's name above 63", with_(name="p" * 50), "spec.predictor.name", "63 are allowed"),
    ("a canary's name above 63", canaries(canary(10, "c" * 50)), "spec.canary[0].predictor.name", "63 are allowed"),
    ("a negative timeout", with_(timeout=-1), "spec.predictor.timeout", "1 or more"),
    ("a model and a framework's key", service({"model": MODEL, "sklearn": {"storageUri": "/m"}}), "spec.predictor.sklearn", "keep one of them"),
    ("onnx that ends otherwise", model(modelFormat={"name": "onnx"}, storageUri="s3://b/m.pb"), "spec.predictor.model.storageUri", "wanted .onnx"),
    ("onnx that ends otherwise, by its key", service({"onnx": {"storageUri": "s3://b/m.bin"}}), "spec.predictor.onnx.storageUri", "wanted .onnx"),
    ("-gpu without a GPU", model(modelFormat={"name": "tensorflow"}, storageUri="s3://b/m", runtimeVersion="2.6-gpu"), "spec.predictor.model.runtimeVersion", "none is asked for"),
    ("-gpu without a GPU, by its key", service({"tensorflow": {"storageUri": "s3://b/m", "runtimeVersion": "2.6-gpu"}}), "spec.predictor.tensorflow.runtimeVersion", "none is asked for"),
    ("a GPU without -gpu", model(modelFormat={"name": "tensorflow"}, storageUri="s3://b/m", runtimeVersion="2.6", resources={"limits": {"nvidia.com/gpu": "1"}}), "spec.predictor.model.runtimeVersion", "add -gpu"),
    ("an unknown protocolVersion", model(protocolVersion="v3", storageUri="/m"), "spec.predictor.model.protocolVersion", "v2"),
    ("requests above limits", sized({"cpu": "2"}, {"cpu": "1"}), "spec.predictor.model.resources.requests.cpu", "limit"),
    ("a batcher of size 0", with_(batcher={"maxBatchSize": 0}), "spec.predictor.batcher.maxBatchSize", "1 or more"),
    ("a percent above 100", with_(canaryTrafficPercent=120), "spec.predictor.canaryTrafficPercent", "100"),
    ("a CPU target without the class", with_(scaleMetric="cpu", scaleTarget=150), "spec.predictor.scaleTarget", "1 to 100"),
    ("an unknown scheme", model(storageUri="gopher://x/y"), "spec.predictor.model.storageUri", "no way to fetch"),
    ("Knative", noted(with_(), deploymentMode="Knative"), MODE, "works without Knative"),
    ("serverless", noted(with_(), deploymentMode="Serverless"), MODE, "works without Knative"),
    ("an unknown field", with_(minReplica=2), "spec.predictor.minReplica", "did you mean 'minReplicas'?"),
    ("an unknown field of a canary", canaries({"trafficPercent": 5, "predictor": {"name": "a", "minReplica": 1, "model": MODEL}}), "spec.canary[0].predictor.minReplica", "did you mean 'minReplicas'?"),
    # what it refuses only because its defaulter panics
    ("a predictor without anything", service({}), "spec.predictor.model", "nothing to run"),
    ("no predictor", {**service(), "spec": {}}, "spec.predictor.model", "nothing to run"),
    ("no spec", {key: value for key, value in service().items() if key != "spec"}, "spec.predictor.model", "nothing to run"),
    # what it swaps: the value that was found, and those that are wanted
    ("a protocol of one's own", custom({"image": "x", "env": [{"name": "PROTOCOL", "value": "v9"}]}), "spec.predictor.containers[0].env[0].value", "found 'v9', wanted v1 or v2"),
    # what an hpa does not read
    ("another metric with the class", noted(with_(scaleMetric="rps", scaleTarget=5), autoscalerClass="hpa"), "spec.predictor.scaleMetric", "cpu and memory only"),
    ("a transformer's percent", service(transformer={**TRANSFORMER, "canaryTrafficPercent": 3}), "spec.transformer.canaryTrafficPercent", "only a predictor"),
    ("a worker", with_(workerSpec={}), "spec.predictor.workerSpec", "not supported"),
]  # fmt: skip

WARNED = [
    # KServe makes an autoscaler on cpu at 80 % of each
    ("requests at once", with_(scaleMetric="concurrency", scaleTarget=5), "spec.predictor.scaleMetric"),
    ("requests a second", with_(scaleMetric="rps", scaleTarget=5), "spec.predictor.scaleMetric"),
    ("requests at once, by annotation", noted(with_(), metrics="concurrency"), 'metadata.annotations["serving.kserve.io/metrics"]'),
    ("requests a second of a transformer", service(transformer={**TRANSFORMER, "scaleMetric": "rps"}), "spec.transformer.scaleMetric"),
    # in KServe's Standard mode only Knative would read them
    ("a limit of requests at once", with_(containerConcurrency=4), "spec.predictor.containerConcurrency"),
    ("no replica", with_(minReplicas=0), "spec.predictor.minReplicas"),
    ("a logger", with_(logger={"url": "http://logs.default"}), "spec.predictor.logger"),
    ("a batch's longest wait", with_(batcher={"maxLatency": 5}), "spec.predictor.batcher.maxLatency"),
    ("batches of a container of one's own", service({"containers": [{"name": "kserve-container", "image": "x"}], "batcher": {"maxBatchSize": 4}}), "spec.predictor.batcher.maxBatchSize"),
    ("a storage container", with_(storageContainerName="theirs"), "spec.predictor.storageContainerName"),
    ("a sealed model", model(storageUri="s3://b/m", confidential={"enabled": True}), "spec.predictor.model.confidential"),
    ("a schema", service({"model": {"modelFormat": {"name": "sklearn"}, "storage": {"key": "k", "schemaPath": "s"}}}), "spec.predictor.model.storage.schemaPath"),
    ("an explainer that is not any more", service(explainer={"art": {"type": "SquareAttack"}}), "spec.explainer.art"),
    ("traces", service(tracing={}), "spec.tracing"),
    ("an annotation that nobody reads", noted(with_(), autoscalerClas="hpa"), 'metadata.annotations["serving.kserve.io/autoscalerClas"]'),
    # KServe routes past it without a word
    ("a canary behind a transformer", service({"model": MODEL, "canaryTrafficPercent": 20}, transformer=TRANSFORMER), "spec.transformer"),
]  # fmt: skip


def of_istio(one):
    return objects.notes(Settings(ingress="istio"), one)


@pytest.mark.parametrize(("raw", "path", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_kserve_lets_pass_and_fails_on_is_refused_with_its_path(raw, path, text):
    response = reviewed(raw)
    assert not response["allowed"]
    messages = [one["message"] for one in response["status"]["details"]["causes"] if one["field"] == path]
    assert any(text in message for message in messages), response["status"]["message"]
    # what the condition says where no webhook was asked
    with pytest.raises(SpecError, match="(?s)" + text.replace("?", r"\?")) as error:
        parse(raw, formats=None)
    assert path in str(error.value)


@pytest.mark.parametrize(("raw", "path"), [row[1:] for row in WARNED], ids=[row[0] for row in WARNED])
def test_what_kserve_ignores_in_silence_is_warned_of_with_its_path(raw, path):
    response = reviewed(raw, notices=of_istio)
    assert response["allowed"], response
    told = [text for text in response["warnings"] if text.startswith(f"{path}: ")]
    assert len(told) == 1, response["warnings"]


def test_a_canary_that_nothing_can_split_is_warned_of():
    def without_ingress(one):
        return objects.notes(Settings(ingress="none"), one)

    for raw, path in (
        (with_(canaryTrafficPercent=20), "spec.predictor.canaryTrafficPercent"),
        (canaries(canary()), "spec.canary"),
    ):
        (warning,) = reviewed(raw, notices=without_ingress)["warnings"]
        assert warning.startswith(f"{path}: gets no requests")


def test_two_runtimes_that_are_as_good_are_refused_whatever_their_versions():
    """Of the formats' versions that differ, too: a model that names none could have either."""
    first = parse_runtime(runtime("first", {**auto("sklearn", 1), "version": "1"}))
    second = runtime("second", {**auto("sklearn", 1), "version": "2"})
    response = reviewed(second, kind="ServingRuntime", installed=[first])
    assert not response["allowed"]
    assert response["status"]["details"]["causes"][0]["field"] == "spec.supportedModelFormats"


def test_a_mode_is_not_changed_under_a_service():
    """KServe compares with the status, and takes it where there is none yet."""
    old = parse(with_())
    old = old.model_copy(
        update={"metadata": old.metadata.model_copy(update={"annotations": {"serving.kserve.io/deploymentMode": "Knative"}})}
    )
    with pytest.raises(SpecError, match="can't change"):
        check_update(old, parse(with_()))


DOES = [
    ("memory above 100", noted(with_(scaleMetric="memory", scaleMetricType="AverageValue", scaleTarget=512), autoscalerClass="hpa")),
    ("a CPU target by annotation", noted(with_(), metrics="cpu", targetUtilizationPercentage="60")),
    ("an autoscaler's behavior", with_(autoScaling={"behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}})),
    ("metrics for Prometheus", {**with_(), "metadata": {"name": "iris", "annotations": {"serving.kserve.io/enable-prometheus-scraping": "true"}}}),
    ("a share for the newest revision", with_(canaryTrafficPercent=10)),
]  # fmt: skip


@pytest.mark.parametrize("raw", [row[1] for row in DOES], ids=[row[0] for row in DOES])
def test_what_kserve_gets_wrong_works_and_needs_no_word(raw):
    response = reviewed(raw, notices=of_istio)
    assert response["allowed"]
    assert "warnings" not in response
    assert notices(parse(raw), "kubernetes") == ()
