"""What a manifest says and a platform does not do: accepted, kept, and told, with why and what to do instead."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deployer.errors import show, under
from deployer.spec.annotations import (
    AUTOSCALER_CLASS,
    KSERVE,
    METRICS,
    STOP,
    TARGET_UTILIZATION,
    VISIBILITY,
    unknown_kserve_annotation,
)
from deployer.spec.formats import not_local
from deployer.spec.objects import as_object
from deployer.spec.pods import CONTAINER_FIELDS, POD_FIELDS
from deployer.spec.schema import InferenceService

Platform = Literal["local", "kubernetes"]


@dataclass(frozen=True)
class Notice:
    """`path` leads to what has no effect, as the canonical object has it; `message` says why and what to do instead."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


_PREDICTOR_ONLY = "the platform on one machine runs predictors only, and requests go straight to them; it runs on a cluster"
_SCALER = "replicas follow the work that arrives on this platform; set minReplicas and maxReplicas"
_NO_PODS = "there are no pods on this platform"

# What the scaler of this platform can go by, besides the work that arrives.
SCALED_BY = ("concurrency", "rps")

LOCAL_SPEC: Mapping[str, str] = {
    "transformer": f"{_PREDICTOR_ONLY}; on one machine do its work in a Python model",
    "explainer": _PREDICTOR_ONLY,
}
LOCAL_COMPONENT: Mapping[str, str] = {
    "annotations": f"{_NO_PODS} to annotate; what the platform itself reads stands under metadata.annotations",
    "autoScaling": _SCALER,
    "containerConcurrency": "requests wait in a bounded queue instead; give --concurrency or --max_queue in model.args",
    "containers": f"{_NO_PODS}, and a container needs one; give the predictor a model, or use a cluster",
    "deploymentStrategy": "a new revision always runs before the old one ends, and capacity never dips",
    "labels": f"{_NO_PODS} to label",
    "logger": "nothing sends requests and responses on from this platform; the access log has a line for each",
    "scaleMetricType": _SCALER,
    "storageContainerName": "models are fetched by the platform itself",
    "storageUris": "one model is fetched for each predictor on this platform; give model.storageUri",
    "nodeSelector": "there is only this machine",
    "affinity": "there is only this machine",
    "tolerations": "there is only this machine",
    "nodeName": "there is only this machine",
    "topologySpreadConstraints": "there is only this machine",
    "serviceAccountName": "models are fetched as you: with your own permissions, and without a cluster's secrets",
    "volumes": "predictors see this machine's files as they are; name their real paths",
    "initContainers": f"{_NO_PODS}; prepare what they would before the service is applied",
    "imagePullSecrets": "no image is pulled: predictors run in the installed Python environment",
    "terminationGracePeriodSeconds": "predictors end after their requests, within 25 s, on this platform",
    "securityContext": "predictors run as you on this platform, which is no security boundary",
}
LOCAL_MODEL: Mapping[str, str] = {
    "confidential": "sealed models are not opened; give the model as it is",
    "runtimeVersion": "the installed version runs, whatever the tag of an image would be; install the version that you want",
    "storage": "there are no cluster secrets to take credentials from; give a storageUri that this machine can fetch",
    "image": "predictors run in the installed Python environment, not in an image",
    "command": "the platform starts the predictor itself; give it flags by args",
    "envFrom": "there are no ConfigMaps and Secrets; list the variables under env",
    "volumeMounts": "predictors see this machine's files as they are; name their real paths",
    "readinessProbe": "the platform asks /v2/health/ready of every predictor itself",
    "livenessProbe": "the platform watches its processes itself",
    "startupProbe": "the platform asks /v2/health/ready of every predictor itself",
    "ports": "the platform chooses the ports; status.url and status.address say where a service answers",
    "securityContext": "predictors run as you on this platform, which is no security boundary",
}
_CLUSTER_METRIC = "the cluster's autoscaler reads cpu and memory; choose one of these"
CLUSTER_COMPONENT: Mapping[str, str] = {
    "storageContainerName": "one storage initializer fetches all models; name its image in the ConfigMap inferenceservice-config",
}
CLUSTER_PREDICTOR: Mapping[str, str] = {
    **CLUSTER_COMPONENT,
    "containerConcurrency": "requests wait in a bounded queue instead; give --concurrency or --max_queue in model.args",
}
_LOCAL_EFFECT = frozenset(("args", "env", "resources"))
_ALWAYS_BATCHER: Mapping[str, str] = {
    "maxLatency": "batches form from what waits while others run, and nothing waits for a timer; leave it out",
    "timeout": "a request's own deadline ends its wait; set spec.predictor.timeout",
}


def notices(service: InferenceService, platform: Platform) -> tuple[Notice, ...]:
    """Everything the service says that has no effect on this platform, in the order of its canonical object."""
    return tuple(_all(as_object(service), platform))


def _all(whole: dict[str, Any], platform: Platform) -> Iterator[Notice]:
    spec, metadata = whole.get("spec", {}), whole["metadata"]
    for key, value in metadata.get("annotations", {}).items():
        if message := _annotation(key, value, platform):
            yield Notice(under("metadata.annotations", key), message)
    if platform == "local" and VISIBILITY in metadata.get("labels", {}):
        yield Notice(under("metadata.labels", VISIBILITY), "services listen on 127.0.0.1 only: all of them are local")
    if "predictor" in spec:
        yield from _predictor("spec.predictor", spec["predictor"], platform)
    for name in ("transformer", "explainer"):
        if name in spec:
            if platform == "local":
                yield Notice(f"spec.{name}", f"has no effect: {LOCAL_SPEC[name]}")
            else:
                yield from _anywhere(f"spec.{name}", spec[name])
                yield from _on_a_cluster(f"spec.{name}", spec[name], CLUSTER_COMPONENT)
    if "tracing" in spec:
        yield Notice("spec.tracing", "has no effect: predictors write no traces yet; the access log has a line for each request")
    for at, canary in enumerate(spec.get("canary", ())):
        yield from _predictor(f"spec.canary[{at}].predictor", canary.get("predictor", {}), platform)


_LOCAL_ANNOTATIONS: Mapping[str, str] = {
    AUTOSCALER_CLASS: _SCALER,
    METRICS: _SCALER,
    TARGET_UTILIZATION: _SCALER,
    f"{KSERVE}enable-prometheus-scraping": f"{_NO_PODS} to annotate; every predictor has /metrics",
    f"{KSERVE}enable-metric-aggregation": "there is no sidecar to collect from; every predictor has /metrics",
    f"{KSERVE}storageSecretName": "there are no cluster secrets",
    "storage.kserve.io/readonly": "models are shared by all replicas and stay as they were fetched",
    "sidecar.istio.io/inject": "there are no sidecars; the platform's own Envoy stands in front of every service",
}


def _annotation(key: str, value: str, platform: Platform) -> str:
    if hint := unknown_kserve_annotation(key):
        return hint
    if platform == "kubernetes" and key == METRICS and value in SCALED_BY:
        return f"has no effect: {_CLUSTER_METRIC}"
    return f"has no effect: {_LOCAL_ANNOTATIONS[key]}" if platform == "local" and key in _LOCAL_ANNOTATIONS else ""


def _predictor(path: str, predictor: dict[str, Any], platform: Platform) -> Iterator[Notice]:
    yield from _anywhere(path, predictor)
    if platform == "kubernetes":
        yield from _on_a_cluster(path, predictor, CLUSTER_PREDICTOR)
        return
    if predictor.get("scaleMetric", "cpu") not in SCALED_BY:
        for name in ("scaleMetric", "scaleTarget"):
            if name in predictor:
                yield Notice(f"{path}.{name}", f"has no effect: {_SCALER}, or scaleMetric {' or '.join(SCALED_BY)} with a target")
    for name in predictor:
        if name in LOCAL_COMPONENT or name in POD_FIELDS:
            yield Notice(f"{path}.{name}", f"has no effect: {LOCAL_COMPONENT.get(name, _NO_PODS)}")
    model = predictor.get("model", {})
    for name, value in model.items():
        here = f"{path}.model.{name}"
        if name == "resources":
            yield from _resources(here, value)
        elif name == "env":
            yield from _environment(here, value)
        elif name == "storageUri" and (why := not_local(value)):
            yield Notice(here, why)
        elif name in LOCAL_MODEL or (name in CONTAINER_FIELDS and name not in _LOCAL_EFFECT):
            yield Notice(here, f"has no effect: {LOCAL_MODEL.get(name, _NO_PODS)}")


def _on_a_cluster(path: str, component: dict[str, Any], fields: Mapping[str, str]) -> Iterator[Notice]:
    for name, why in fields.items():
        if component.get(name):
            yield Notice(f"{path}.{name}", f"has no effect: {why}")
    uri = component.get("model", {}).get("storageUri", "")
    if uri.startswith(("/", "file://")) and not component.get("volumes"):
        why = (
            "is a path inside of the pod, and no volume puts anything there; use pvc://CLAIM/PATH, or give the predictor volumes"
        )
        yield Notice(f"{path}.model.storageUri", why)
    if component.get("scaleMetric") in SCALED_BY:
        yield Notice(f"{path}.scaleMetric", f"has no effect: {_CLUSTER_METRIC}")
    if "containers" in component and "model" not in component and "maxBatchSize" in component.get("batcher", {}):
        yield Notice(
            f"{path}.batcher.maxBatchSize", "has no effect: a server of one's own makes its own batches; tell it by its args"
        )
    if component.get("model", {}).get("confidential", {}).get("enabled"):
        yield Notice(f"{path}.model.confidential", f"has no effect: {LOCAL_MODEL['confidential']}")


def _anywhere(path: str, component: dict[str, Any]) -> Iterator[Notice]:
    """What no platform does (yet)."""
    if component.get("minReplicas") == 0:
        yield Notice(
            f"{path}.minReplicas",
            f"has no effect: scaling to zero is not built yet, and one replica stays; the annotation {STOP} ends them all",
        )
    for name in component.get("batcher", {}):
        if name in _ALWAYS_BATCHER:
            yield Notice(f"{path}.batcher.{name}", f"has no effect: {_ALWAYS_BATCHER[name]}")
    if "schemaPath" in component.get("model", {}).get("storage", {}):
        yield Notice(f"{path}.model.storage.schemaPath", "has no effect: nothing reads it, nor does KServe")


_NO_DEVICE = "nothing on this platform shares it out between predictors"
_RESOURCE: Mapping[str, str] = {
    "cpu": "predictors share this machine's CPUs; give --threads in model.args to bound one",
    "memory": "nothing is set aside on this platform; resources.limits.memory is kept",
}


def _resources(path: str, resources: dict[str, Any]) -> Iterator[Notice]:
    """One machine has no scheduler to ask; a limit of memory is kept."""
    for kind, amounts in resources.items():
        for name in amounts if isinstance(amounts, dict) else ():
            if (kind, name) != ("limits", "memory"):
                yield Notice(under(f"{path}.{kind}", name), f"has no effect: {_RESOURCE.get(name, _NO_DEVICE)}")


def _environment(path: str, variables: list[dict[str, Any]]) -> Iterator[Notice]:
    for at, variable in enumerate(variables):
        if "valueFrom" in variable:
            yield Notice(
                f"{path}[{at}].valueFrom",
                f"has no effect: there are no ConfigMaps and Secrets; give {show(variable['name'])} a value",
            )
