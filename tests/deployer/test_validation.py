"""What is refused, where, and in which words: one row, one mistake."""

import pytest

from deployer.errors import SpecError
from deployer.spec import API_VERSION, KIND, parse
from deployer.spec.pods import quantity

URI = "https://models.example.com/iris.skops"
MODEL = {"modelFormat": {"name": "sklearn"}, "storageUri": URI}
OURS = "serving.serveplane.dev/"
KSERVE = "serving.kserve.io/"


def service(predictor=None, *, metadata=None, **spec):
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "iris", **(metadata or {})},
        "spec": {"predictor": {"model": MODEL} if predictor is None else predictor, **spec},
    }


def with_(**fields):
    return service({"model": MODEL, **fields})


def model(**fields):
    return service({"model": {**MODEL, **fields}})


def annotated(**annotations):
    return service(metadata={"annotations": annotations})


def note(key, value):
    return service(metadata={"annotations": {key: value}})


def custom(*containers):
    return service({"containers": list(containers)})


def canaries(*entries, **stable):
    return service({"model": MODEL, **stable}, canary=list(entries))


def canary(percent=10, name="v2", **fields):
    return {
        "trafficPercent": percent,
        "predictor": {"name": name, "model": {"storageUri": "https://models.example.com/2.skops"}, **fields},
    }


def hpa(**fields):
    return service({"model": MODEL, **fields}, metadata={"annotations": {f"{KSERVE}autoscalerClass": "hpa"}})


def keda(**fields):
    return service({"model": MODEL, **fields}, metadata={"annotations": {f"{KSERVE}autoscalerClass": "keda"}})


def metrics(*items):
    return {"autoScaling": {"metrics": list(items)}}


def resource(name, **target):
    return {"type": "Resource", "resource": {"name": name, "target": target}}


def mistakes(raw, **how):
    with pytest.raises(SpecError) as error:
        parse(raw, **how)
    assert str(error.value) == "\n".join(map(str, error.value.mistakes))
    found = {one.path: one.message for one in error.value.mistakes}
    assert len(found) == len(error.value.mistakes)
    return found


P = "spec.predictor"
M = "spec.predictor.model"
PIN = f'metadata.annotations["{OURS}sha256"]'
SUM = "a" * 64
REFUSED = [
    # what it is
    ("nothing", {}, "apiVersion", "missing; wanted serving.kserve.io/v1beta1"),
    ("another version", {**service(), "apiVersion": "serving.kserve.io/v1alpha2"}, "apiVersion", "wanted serving.kserve.io/v1beta1"),
    ("another kind", {**service(), "kind": "InferenceServices"}, "kind", "did you mean 'InferenceService'?"),
    ("no metadata", {"apiVersion": API_VERSION, "kind": KIND, "spec": service()["spec"]}, "metadata.name", "missing"),
    ("only generateName", {**service(), "metadata": {"generateName": "a-"}}, "metadata.name", "generateName is not supported"),
    ("a name with capitals", service(metadata={"name": "My_Iris"}), "metadata.name", "'my-iris' would do"),
    ("a name of digits", service(metadata={"name": "1iris"}), "metadata.name", "a letter first"),
    ("a name that ends in a dash", service(metadata={"name": "iris-"}), "metadata.name", "no '-' last"),
    ("a name with a version", service(metadata={"name": "iris.v2"}), "metadata.name", "'iris-v2' would do"),
    ("a name with a number", service(metadata={"name": "Iris_2"}), "metadata.name", "'iris-2' would do"),
    ("a name that begins with a number", service(metadata={"name": "2.iris_"}), "metadata.name", "'iris' would do"),
    ("a name that is too long", service(metadata={"name": "a" * 52}), "metadata.name", "it has 52 characters, and 51 are allowed"),
    ("a name too long for its host", service(metadata={"name": "a" * 30, "namespace": "b" * 33}), "metadata.name", "has a label of 64 characters, and 63 are allowed"),
    ("a namespace with a slash", service(metadata={"namespace": "a/b"}), "metadata.namespace", "found 'a/b'"),
    ("a label that is none", service(metadata={"labels": {"a": "b c"}}), "metadata.labels.a", "wanted a label's value"),
    ("a number as a label", service(metadata={"labels": {"a": 1}}), "metadata.labels.a", "found 1, wanted text; put it in quotes"),
    ("nothing as a label", service(metadata={"labels": {"a": None}}), "metadata.labels.a", "found nothing, wanted text"),
    ("no spec", {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "a"}}, M, "missing: there is nothing to run"),
    ("a spec that is a list", {**service(), "spec": []}, "spec", "found a list of 0, wanted an object"),
    # unknown fields
    ("a misspelt field", with_(minReplica=2), f"{P}.minReplica", "did you mean 'minReplicas'?"),
    ("a misspelt pod field", with_(nodeSelectors={}), f"{P}.nodeSelectors", "did you mean 'nodeSelector'?"),
    ("a field of a pod's own place", with_(pod={}), f"{P}.pod", "a predictor has no such field"),
    ("a misspelt model field", model(storageURI="/m"), f"{M}.storageURI", "did you mean 'storageUri'?"),
    ("a model's field one level up", with_(storageUri="/m"), f"{P}.storageUri", "it belongs to its model, one level down"),
    ("a predictor's field one level down", model(minReplicas=2), f"{M}.minReplicas", "it belongs to the predictor, one level up"),
    ("a misspelt component", service(transfomer={}), "spec.transfomer", "did you mean 'transformer'?"),
    ("a misspelt logger field", with_(logger={"uri": "x"}), f"{P}.logger.uri", "did you mean 'url'?"),
    ("an unknown batcher field", with_(batcher={"zzz": 1}), f"{P}.batcher.zzz", "known: maxBatchSize, maxLatency, timeout"),
    ("an unknown field at the top", {**service(), "specs": {}}, "specs", "did you mean 'spec'?"),
    ("an unknown field of metadata", service(metadata={"label": {}}), "metadata.label", "did you mean 'labels'?"),
    # types and ranges
    ("a number in quotes", with_(minReplicas="3"), f"{P}.minReplicas", "found '3', wanted a whole number, without quotes"),
    ("half a replica", with_(minReplicas=1.5), f"{P}.minReplicas", "found 1.5, wanted a whole number"),
    ("a truth for a number", with_(minReplicas=True), f"{P}.minReplicas", "found true, wanted a whole number"),
    ("fewer replicas than none", with_(minReplicas=-1), f"{P}.minReplicas", "found -1, wanted a whole number, 0 or more"),
    ("min above max", with_(minReplicas=3, maxReplicas=1), f"{P}.maxReplicas", "found 1, wanted minReplicas (3) or more"),
    ("a negative timeout", with_(timeout=-1), f"{P}.timeout", "wanted a whole number, 1 or more (seconds"),
    ("no time at all", with_(timeout=0), f"{P}.timeout", "found 0"),
    ("a negative concurrency", with_(containerConcurrency=-1), f"{P}.containerConcurrency", "0 or more"),
    ("more than all", with_(canaryTrafficPercent=120), f"{P}.canaryTrafficPercent", "found 120, wanted a whole number from 0 to 100"),
    ("less than nothing", with_(canaryTrafficPercent=-1), f"{P}.canaryTrafficPercent", "from 0 to 100"),
    ("batches of nothing", with_(batcher={"maxBatchSize": 0}), f"{P}.batcher.maxBatchSize", "found 0, wanted a whole number, 1 or more"),
    ("an unknown logger mode", with_(logger={"mode": "al"}), f"{P}.logger.mode", "wanted all, request or response"),
    ("a model that is text", service({"model": "sklearn"}), M, "found 'sklearn', wanted an object"),
    ("a list that is text", with_(logger={"metadataHeaders": "a"}), f"{P}.logger.metadataHeaders", "wanted a list"),
    ("a number in a list of texts", with_(logger={"metadataHeaders": ["a", 3]}), f"{P}.logger.metadataHeaders[1]", "found 3, wanted text"),
    ("infinity", model(resources={"limits": {"cpu": float("inf")}}), f"{M}.resources.limits.cpu", "wanted a finite number"),
    # one thing to run
    ("nothing to run", service({}), M, "missing: there is nothing to run"),
    ("a model and a key", service({"model": MODEL, "sklearn": {"storageUri": URI}}), f"{P}.sklearn", "stands beside model"),
    ("two keys", service({"sklearn": {"storageUri": URI}, "onnx": {"storageUri": "/m.onnx"}}), f"{P}.onnx", "stands beside sklearn"),
    ("a model and a server", with_(containers=[{"name": "kserve-container"}]), f"{P}.containers", "either a model or a container"),
    ("containers without the server", custom({"name": "a"}, {"name": "b"}), f"{P}.containers", "wanted one called kserve-container"),
    ("two containers of one name", custom({"name": "kserve-container"}, {"name": "kserve-container"}), f"{P}.containers[1].name", "names have to differ"),
    ("a sidecar without a name", custom({"name": "kserve-container"}, {}), f"{P}.containers[1].name", "each container needs a name"),
    ("a transformer of nothing", service(transformer={"minReplicas": 1}), "spec.transformer.containers", "nothing to run"),
    ("an explainer of two kinds", service(explainer={"art": {}, "containers": [{"image": "a"}]}), "spec.explainer.containers", "either art or containers"),
    ("a transformer with a canary", service(transformer={"containers": [{"image": "a"}], "canaryTrafficPercent": 3}), "spec.transformer.canaryTrafficPercent", "only a predictor has canaries"),
    ("several machines", with_(workerSpec={}), f"{P}.workerSpec", "not supported"),
    ("a predictor's name that is none", with_(name="V 2"), f"{P}.name", "wanted small letters"),
    # the model
    ("a misspelt format", model(modelFormat={"name": "sklern"}), f"{M}.modelFormat.name", "there is no model format 'sklern'; did you mean 'sklearn'?"),
    ("a format from nowhere", model(modelFormat={"name": "zzz"}), f"{M}.modelFormat.name", "known: sklearn, onnx, tensorflow, python"),
    ("no format", service({"model": {"storageUri": URI}}), f"{M}.modelFormat.name", "the storageUri's ending says sklearn"),
    ("a format that is text", model(modelFormat="sklearn"), f"{M}.modelFormat", "found 'sklearn', wanted an object"),
    ("no place", service({"model": {"modelFormat": {"name": "sklearn"}}}), f"{M}.storageUri", "missing: say where the model is"),
    ("an empty place", model(storageUri=""), f"{M}.storageUri", "is empty"),
    ("a name of the container", model(name="x"), f"{M}.name", "may not be given here"),
    ("an unknown protocol", model(protocolVersion="v3"), f"{M}.protocolVersion", "wanted v1, v2, grpc-v1 or grpc-v2"),
    ("an unknown scheme", model(storageUri="gopher://x"), f"{M}.storageUri", "there is no way to fetch from 'gopher://'"),
    ("a scheme nearly right", model(storageUri="htps://h/m.skops"), f"{M}.storageUri", "did you mean 'https'?"),
    ("a relative path", model(storageUri="models/iris.skops"), f"{M}.storageUri", "wanted an absolute path or a URI"),
    ("a file on another host", model(storageUri="file://host/m.skops"), f"{M}.storageUri", "wanted three slashes"),
    ("a store without a name", model(storageUri="s3://"), f"{M}.storageUri", "names nothing after s3://"),
    ("a line break", model(storageUri="/m\n.skops"), f"{M}.storageUri", "holds a line break"),
    ("another framework's ending", model(storageUri="/m.onnx"), f"{M}.storageUri", "ends like a model for onnx, and modelFormat says sklearn"),
    ("onnx with a wrong ending", service({"onnx": {"storageUri": "/m.pt"}}), f"{P}.onnx.storageUri", "ends in .pt, wanted .onnx"),
    ("two places", with_(storageUris=[{"uri": "/a"}]), f"{P}.storageUris", "exclude each other"),
    ("a place and a store", model(storage={"key": "k"}), f"{M}.storage", "leave one of the two out"),
    ("a GPU's version without a GPU", service({"tensorflow": {"storageUri": "/m", "runtimeVersion": "2-gpu"}}), f"{P}.tensorflow.runtimeVersion", "is for a GPU"),
    ("a GPU without its version", service({"tensorflow": {"storageUri": "/m", "runtimeVersion": "2", "resources": {"limits": {"nvidia.com/gpu": 1}}}}), f"{P}.tensorflow.runtimeVersion", "is for the CPU"),
    ("sealed and nowhere", service({"model": {"modelFormat": {"name": "sklearn"}, "confidential": {"enabled": True}, "image": "x"}}), f"{M}.confidential", "needs a storageUri"),
    ("a format beside its key", service({"onnx": {"storageUri": "/m.onnx", "modelFormat": {"name": "onnx"}}}), f"{P}.onnx.modelFormat", "says the format already"),
    ("a key that is text", service({"sklearn": URI}), f"{P}.sklearn", "wanted an object"),
    # several artifacts
    ("a relative mount", service({"model": {"modelFormat": {"name": "sklearn"}}, "storageUris": [{"uri": "/a", "mountPath": "a"}]}), f"{P}.storageUris[0].mountPath", "wanted an absolute path"),
    ("a mount at the root", service({"model": {"modelFormat": {"name": "sklearn"}}, "storageUris": [{"uri": "/a", "mountPath": "/"}]}), f"{P}.storageUris[0].mountPath", "below /"),
    ("a mount that climbs", service({"model": {"modelFormat": {"name": "sklearn"}}, "storageUris": [{"uri": "/a", "mountPath": "/mnt/../etc"}]}), f"{P}.storageUris[0].mountPath", "without '..'"),
    ("one mount twice", service({"model": {"modelFormat": {"name": "sklearn"}}, "storageUris": [{"uri": "/a"}, {"uri": "/b"}]}), f"{P}.storageUris[1].mountPath", "another one's"),
    ("mounts far apart", service({"model": {"modelFormat": {"name": "sklearn"}}, "storageUris": [{"uri": "/a", "mountPath": "/a/x"}, {"uri": "/b", "mountPath": "/b/x"}]}), f"{P}.storageUris", "wanted one folder for all"),
    ("an artifact from nowhere", service({"model": {"modelFormat": {"name": "sklearn"}}, "storageUris": [{}]}), f"{P}.storageUris[0].uri", "missing"),
    # containers
    ("PYTHONPATH", model(env=[{"name": "PYTHONPATH", "value": "/x"}]), f"{M}.env[0].name", "PYTHONPATH may not be set"),
    ("PYTHONPATH in a sidecar", with_(containers=[{"name": "a", "env": [{"name": "PYTHONPATH"}]}]), f"{P}.containers[0].env[0].name", "PYTHONPATH"),
    ("PYTHONPATH before all", with_(initContainers=[{"name": "a", "env": [{"name": "PYTHONPATH"}]}]), f"{P}.initContainers[0].env[0].name", "PYTHONPATH"),
    ("a number in env", model(env=[{"name": "A", "value": 1}]), f"{M}.env[0].value", "found 1, wanted text; put it in quotes"),
    ("a variable without a name", model(env=[{"value": "a"}]), f"{M}.env[0].name", "wanted the variable's name"),
    ("env as an object", model(env={"A": "b"}), f"{M}.env", "wanted a list"),
    ("two values", model(env=[{"name": "A", "value": "b", "valueFrom": {}}]), f"{M}.env[0]", "exclude each other"),
    ("a number as an argument", model(args=["--a", 1]), f"{M}.args[1]", "found 1, wanted text"),
    ("args as text", model(args="--a"), f"{M}.args", "wanted a list"),
    ("a misspelt container field", custom({"name": "kserve-container", "imge": "x"}), f"{P}.containers[0].imge", "did you mean 'image'?"),
    ("a port that is none", model(ports=[{"containerPort": 99999}]), f"{M}.ports[0].containerPort", "wanted a port"),
    ("an unknown protocol of a container", custom({"env": [{"name": "PROTOCOL", "value": "v3"}]}), f"{P}.containers[0].env[0].value", "found 'v3', wanted v1 or v2"),
    ("a transformer that loads", with_(containers=[{"name": "transformer-container", "env": [{"name": "STORAGE_URI", "value": "/m"}]}]), f"{P}.containers[0].env", "leave STORAGE_URI out"),
    ("bytes for a quantity", model(resources={"limits": {"memory": "2GB"}}), f"{M}.resources.limits.memory", "did you mean 2Gi?"),
    ("words for a quantity", model(resources={"limits": {"cpu": "many"}}), f"{M}.resources.limits.cpu", "found 'many', wanted a quantity"),
    ("requests above limits", model(resources={"requests": {"cpu": "1500m"}, "limits": {"cpu": 1}}), f"{M}.resources.requests.cpu", "1500m is more than the limit, 1"),
    ("a misspelt kind of resources", model(resources={"limit": {}}), f"{M}.resources.limit", "did you mean 'limits'?"),
    ("a volume without a name", with_(volumes=[{"emptyDir": {}}]), f"{P}.volumes[0].name", "missing"),
    ("a selector by number", with_(nodeSelector={"a": 1}), f"{P}.nodeSelector.a", "found 1, wanted text"),
    ("a pod's field of another type", with_(hostNetwork="yes"), f"{P}.hostNetwork", "wanted true or false"),
    # the logger
    ("a logger without an address", with_(logger={"url": "logs"}), f"{P}.logger.url", "wanted an address with its scheme"),
    ("half a logger's storage", with_(logger={"storage": {"path": "p", "parameters": {"a": "b"}}}), f"{P}.logger.storage.key", "missing"),
    # scaling, with and without the class
    ("more CPU than there is", with_(scaleMetric="cpu", scaleTarget=150), f"{P}.scaleTarget", "from 1 to 100"),
    ("more CPU, metric left out", with_(scaleTarget=150), f"{P}.scaleTarget", "from 1 to 100"),
    ("an unknown metric", with_(scaleMetric="gpu"), f"{P}.scaleMetric", "wanted cpu, memory, concurrency or rps"),
    ("concurrency with hpa", hpa(scaleMetric="concurrency"), f"{P}.scaleMetric", "reads cpu and memory only"),
    ("rps as utilization", with_(scaleMetric="rps", scaleMetricType="Utilization"), f"{P}.scaleMetricType", "leave it out"),
    ("a CPU's value", with_(scaleMetric="cpu", scaleMetricType="Value"), f"{P}.scaleMetricType", "wanted Utilization or AverageValue"),
    ("scaleMetric with keda", keda(scaleMetric="cpu"), f"{P}.scaleMetric", "reads autoScaling.metrics only"),
    ("two ways to scale", with_(scaleMetric="cpu", **metrics(resource("cpu", type="Utilization", averageUtilization=50))), f"{P}.autoScaling", "exclude each other"),
    ("an external metric without keda", with_(**metrics({"type": "External"})), f"{P}.autoScaling.metrics[0].type", "reads Resource metrics only"),
    ("an external metric of nothing", keda(**metrics({"type": "External", "external": {"target": {"value": "1"}}})), f"{P}.autoScaling.metrics[0].external.metric.query", "missing"),
    ("an external metric without an aim", keda(**metrics({"type": "External", "external": {"metric": {"query": "q"}}})), f"{P}.autoScaling.metrics[0].external.target.value", "missing"),
    ("a pods' metric of nothing", keda(**metrics({"type": "PodMetric", "podmetric": {"target": {"value": "1"}}})), f"{P}.autoScaling.metrics[0].podmetric.metric.query", "missing"),
    ("a metric without a type", with_(**metrics({})), f"{P}.autoScaling.metrics[0].type", "missing"),
    ("an unknown resource", with_(**metrics(resource("mem", type="Utilization"))), f"{P}.autoScaling.metrics[0].resource.name", "did you mean 'memory'?"),
    ("a resource without a kind", with_(**metrics(resource("cpu"))), f"{P}.autoScaling.metrics[0].resource.target.type", "wanted Utilization or AverageValue"),
    ("a utilization above all", with_(**metrics(resource("cpu", type="Utilization", averageUtilization=101))), f"{P}.autoScaling.metrics[0].resource.target.averageUtilization", "from 1 to 100"),
    ("less memory than a page", with_(**metrics(resource("memory", type="AverageValue", averageValue="1Ki"))), f"{P}.autoScaling.metrics[0].resource.target.averageValue", "1Mi or more"),
    # canaries
    ("two spellings", canaries(canary(), canaryTrafficPercent=10), f"{P}.canaryTrafficPercent", "two ways to say the same"),
    ("a canary without a name", canaries(canary(name=None)), "spec.canary[0].predictor.name", "each canary needs a name"),
    ("two canaries of one name", canaries(canary(), canary()), "spec.canary[1].predictor.name", "'v2' is the name of spec.canary[0].predictor already"),
    ("a canary named like the stable", canaries(canary(name="v1"), name="v1"), "spec.canary[0].predictor.name", "is the name of spec.predictor already"),
    ("a canary without a share", canaries({"predictor": {"name": "v2"}}), "spec.canary[0].trafficPercent", "missing"),
    ("a canary with more than all", canaries(canary(101)), "spec.canary[0].trafficPercent", "from 0 to 100"),
    ("canaries with more than all", canaries(canary(60), canary(50, "v3")), "spec.canary", "add up to 110"),
    ("a canary that scales", canaries(canary(maxReplicas=3)), "spec.canary[0].predictor.maxReplicas", "a canary may not say this"),
    ("a canary with a metric", canaries(canary(scaleMetric="cpu")), "spec.canary[0].predictor.scaleMetric", "may not say"),
    ("a canary of a canary", canaries(canary(canaryTrafficPercent=1)), "spec.canary[0].predictor.canaryTrafficPercent", "may not say"),
    ("a canary over machines", canaries(canary(workerSpec={})), "spec.canary[0].predictor.workerSpec", "may not say"),
    ("a canary larger than the stable", canaries(canary(minReplicas=3), minReplicas=2), "spec.canary[0].predictor.minReplicas", "wanted at most the stable predictor's minReplicas, 2"),
    ("a canary from nowhere", canaries(canary(model={"storageUri": "gopher://x"})), "spec.canary[0].predictor.model.storageUri", "no way to fetch"),
    ("a canary with a misspelt field", canaries(canary(timeouts=3)), "spec.canary[0].predictor.timeouts", "did you mean 'timeout'?"),
    ("a canary with a key and a model", canaries(canary(onnx={"storageUri": "/m.onnx"})), "spec.canary[0].predictor.onnx", "stands beside model"),
    ("a canary's name too long", canaries(canary(name="b" * 60)), "spec.canary[0].predictor.name", "is too long"),
    # annotations
    ("an unknown mode", note(f"{KSERVE}deploymentMode", "Standrd"), f'metadata.annotations["{KSERVE}deploymentMode"]', "did you mean 'Standard'?"),
    ("Knative", note(f"{KSERVE}deploymentMode", "Serverless"), f'metadata.annotations["{KSERVE}deploymentMode"]', "works without Knative"),
    ("ModelMesh", note(f"{KSERVE}deploymentMode", "ModelMesh"), f'metadata.annotations["{KSERVE}deploymentMode"]', "not supported"),
    ("an unknown autoscaler", note(f"{KSERVE}autoscalerClass", "kpa"), f'metadata.annotations["{KSERVE}autoscalerClass"]', "wanted hpa or keda or external or none"),
    ("stop: yes", note(f"{KSERVE}stop", "yes"), f'metadata.annotations["{KSERVE}stop"]', "wanted true or false"),
    ("stop: a truth", note(f"{KSERVE}stop", True), f'metadata.annotations["{KSERVE}stop"]', "found true, wanted text; put it in quotes"),
    ("trust in words", note(f"{OURS}trust-pickle", "always"), f'metadata.annotations["{OURS}trust-pickle"]', "wanted true or false"),
    ("a header without a value", note(f"{OURS}route-header", "x-candidate"), f'metadata.annotations["{OURS}route-header"]', "wanted NAME=VALUE"),
    ("a header with a space", note(f"{OURS}route-header", "x candidate=yes"), f'metadata.annotations["{OURS}route-header"]', "wanted NAME=VALUE"),
    ("a header of two lines", note(f"{OURS}route-header", "x-a=b\r\nx-c: d"), f'metadata.annotations["{OURS}route-header"]', "wanted NAME=VALUE"),
    ("a header of the transport", note(f"{OURS}route-header", "Host=a"), f'metadata.annotations["{OURS}route-header"]', "belongs to the transport"),
    ("more than a whole mirror", note(f"{OURS}mirror-percent", "101"), f'metadata.annotations["{OURS}mirror-percent"]', "from 0 to 100"),
    ("a checksum that is none", note(f"{OURS}sha256", "12"), PIN, "found '12', wanted 64 hex digits"),
    ("a checksum of nothing", service({"model": {"modelFormat": {"name": "sklearn"}, "storage": {"key": "k"}}}, metadata={"annotations": {f"{OURS}sha256": SUM}}), PIN, "is of spec.predictor.model.storageUri, which is not there"),
    ("a checksum of what is mounted", service({"model": MODEL | {"storageUri": "pvc://c/m.skops"}}, metadata={"annotations": {f"{OURS}sha256": SUM}}), PIN, "in pvc:// is mounted and never fetched"),
    ("two checksums", service({"model": MODEL | {"storageUri": f"/m.skops#sha256={'b' * 64}"}}, metadata={"annotations": {f"{OURS}sha256": SUM}}), PIN, "storageUri ends in another one"),
    ("a predictor's own checksum", with_(annotations={f"{OURS}sha256": SUM}), f'{P}.annotations["{OURS}sha256"]', "read under metadata.annotations only"),
    ("an unknown one of ours", note(f"{OURS}trust-pickel", "true"), f'metadata.annotations["{OURS}trust-pickel"]', f"did you mean '{OURS}trust-pickle'?"),
    ("an unknown visibility", service(metadata={"labels": {"networking.kserve.io/visibility": "local"}}), 'metadata.labels["networking.kserve.io/visibility"]', "wanted cluster-local"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "path", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_mistake_is_told_with_its_path_and_what_to_do(raw, path, words):
    found = mistakes(raw)
    assert path in found, found
    assert words in found[path]
    if raw:  # one mistake made, one mistake told: no consequences of it
        assert list(found) == [path]


ACCEPTED = [
    ("a format nothing here serves", service({"xgboost": {"storageUri": "/m.bst"}})),
    ("a store nothing here reads yet", model(storageUri="s3://b/m.skops")),
    ("a folder for onnx", service({"onnx": {"storageUri": "/models/v1.2"}})),
    ("an archive for onnx", service({"onnx": {"storageUri": "https://h/m.tar.gz"}})),
    ("an ending that its own runtime reads", service({"model": {**MODEL, "storageUri": "/m.onnx", "runtime": "own"}})),
    ("a model inside its image", service({"model": {"modelFormat": {"name": "sklearn"}, "image": "x:1"}})),
    ("a sidecar", with_(containers=[{"name": "side", "image": "x"}])),
    ("a store and a key for it", model(storageUri="s3://b/m.skops", storage={"key": "k"})),
    ("a scheme of a storage container", service({"model": {"modelFormat": {"name": "sklearn"}}, "storageUris": [{"uri": "own://x"}], "storageContainerName": "own"})),
    ("artifacts side by side", service({"model": {"modelFormat": {"name": "sklearn"}}, "storageUris": [{"uri": "/a", "mountPath": "/mnt/a"}, {"uri": "/b", "mountPath": "/mnt/b"}]})),
    ("memory above all", with_(scaleMetric="memory", scaleTarget=200)),
    ("memory in numbers above all", with_(scaleMetric="memory", scaleMetricType="AverageValue", scaleTarget=500)),
    ("concurrency without a class", with_(scaleMetric="concurrency", scaleTarget=4)),
    ("a metric with keda", keda(**metrics({"type": "External", "external": {"metric": {"query": "q"}, "target": {"value": "1"}}}))),
    ("no share, for a rollback", with_(canaryTrafficPercent=0)),
    ("everything to canaries", canaries(canary(60), canary(40, "v3"))),
    ("the old name of the mode", note(f"{KSERVE}deploymentMode", "RawDeployment")),
    ("a header", note(f"{OURS}route-header", "x-user=anna b=c")),
    ("an annotation of somebody else", note("example.com/owner", "me")),
    ("an unknown one of KServe's", note(f"{KSERVE}something-new", "x")),
    ("nulls", service({"model": {**MODEL, "runtime": None}, "timeout": None, "logger": None})),
    ("a name that just fits", service(metadata={"name": "a" * 45})),
    ("numbers as quantities", model(resources={"requests": {"cpu": 0.5, "memory": 1000000}, "limits": {"cpu": 1, "memory": "1e9"}})),
]  # fmt: skip


@pytest.mark.parametrize("raw", [row[1] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_what_is_right_is_accepted(raw):
    parse(raw)


def test_all_mistakes_are_told_at_once():
    predictor = {"minReplicas": 3, "maxReplicas": 1, "canaryTrafficPercent": 120}
    predictor["model"] = {"modelFormat": {"name": "sklern"}, "storageUri": "gopher://x"}
    found = mistakes(service(predictor))
    assert found.keys() == {f"{P}.maxReplicas", f"{P}.canaryTrafficPercent", f"{M}.modelFormat.name", f"{M}.storageUri"}


def test_a_path_is_the_one_that_was_written():
    found = mistakes(
        service({"sklearn": {"storageUri": "gopher://x", "env": [{"name": "A", "value": 1}], "protocolVersion": "v9"}})
    )
    assert found.keys() == {f"{P}.sklearn.storageUri", f"{P}.sklearn.env[0].value", f"{P}.sklearn.protocolVersion"}


def test_a_mistake_of_the_stable_predictor_is_not_told_again_of_its_canaries():
    found = mistakes(canaries(canary(), canary(5, "v3"), nodeSelector={"a": 1}))
    assert found.keys() == {f"{P}.nodeSelector.a"}


def test_formats_of_ones_own_runtimes_may_be_named():
    raw = model(modelFormat={"name": "own"}, storageUri="/m")
    assert f"{M}.modelFormat.name" in mistakes(raw)
    assert parse(raw, formats=("own",)).spec.predictor.model.model_format.name == "own"


def test_after_a_hundred_mistakes_no_more_are_looked_for():
    found = mistakes(with_(**{f"field{n}": 1 for n in range(5000)}))
    assert len(found) == 101
    assert "there are more" in found[""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500m", 0.5), ("2", 2), (4, 4), (0.5, 0.5), ("1Ki", 1024), ("2Gi", 2 << 30), ("1.5Gi", 1.5 * (1 << 30)), ("1k", 1000), ("1e3", 1000), ("1E", 1e18), (".5", 0.5), ("5n", 5e-9)],
)  # fmt: skip
def test_a_quantity_is_a_number(text, expected):
    assert float(quantity(text)) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "2GB", "Gi", "-1", "1.2.3", "1e999", "2 Gi", True, None, [], "٣", "9" * 100, float("nan")])
def test_what_is_no_quantity_says_what_one_looks_like(text):
    with pytest.raises(ValueError, match="wanted a quantity such as 500m"):
        quantity(text)
