"""A workload → its autoscaler: KServe's metrics, as Kubernetes' own (HPA v2) or, where the class is `keda`, as KEDA has them."""

from collections.abc import Iterator, Mapping
from typing import Any

from deployer.kubernetes.rendering import labels
from deployer.kubernetes.rendering.labels import Component, Object
from deployer.kubernetes.rendering.settings import Settings
from deployer.spec import AUTOSCALER_CLASS, InferenceService, quantity
from deployer.spec.annotations import METRICS, TARGET_UTILIZATION
from deployer.spec.schema import Component as ComponentSpec
from deployer.spec.schema import ExternalMetric, MetricSpec

DEFAULT_PERCENT = 80
OTEL_SCALER = "keda-otel-scaler.keda.svc:4318"


def autoscaler(
    settings: Settings,
    service: InferenceService,
    part: ComponentSpec,
    name: str,
    low: int,
    high: int,
    component: Component = "predictor",
) -> Object | None:
    """None where a Deployment has a fixed size, or where somebody else scales it.  `part` says what to go by."""
    kind = service.metadata.annotations.get(AUTOSCALER_CLASS, "hpa")
    if kind == "keda":
        return _scaled_object(settings, service, part, name, low, high, component)
    return _hpa(settings, service, part, name, low, high, component) if kind == "hpa" else None


def _hpa(
    settings: Settings, service: InferenceService, part: ComponentSpec, name: str, low: int, high: int, component: Component
) -> Object:
    behavior = part.auto_scaling.behavior if part.auto_scaling else None
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": labels.metadata(settings, service, name, name, component),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": low,
            "maxReplicas": high,
            "metrics": list(_metrics(service, part)),
            **({"behavior": behavior} if behavior else {}),
        },
    }


def _metrics(service: InferenceService, part: ComponentSpec) -> Iterator[Object]:
    listed = [one.resource for one in (part.auto_scaling.metrics if part.auto_scaling else ()) if one.resource]
    for one in listed:
        yield {"type": "Resource", "resource": {"name": one.name, "target": one.target}}
    if not listed:
        yield {"type": "Resource", "resource": _resource(service, part)}


def _resource(service: InferenceService, part: ComponentSpec) -> Object:
    """cpu at 80 %, unless the component says otherwise, or else the older annotations do."""
    notes = service.metadata.annotations
    by_notes = part.scale_metric is None and part.scale_target is None
    named = notes.get(METRICS, "cpu") if by_notes else part.scale_metric
    metric = "memory" if named == "memory" else "cpu"
    # what somebody aims at in requests at once or per second says nothing about a CPU
    given = part.scale_target if part.scale_metric in (None, "cpu", "memory") else None
    target = given or (int(notes.get(TARGET_UTILIZATION, DEFAULT_PERCENT)) if by_notes else DEFAULT_PERCENT)
    if part.scale_metric_type == "AverageValue" and given:
        # KServe's numbers: whole CPUs, and mebibytes
        value = f"{target}Mi" if metric == "memory" else str(target)
        return {"name": metric, "target": {"type": "AverageValue", "averageValue": value}}
    return {"name": metric, "target": {"type": "Utilization", "averageUtilization": target}}


def _scaled_object(
    settings: Settings, service: InferenceService, part: ComponentSpec, name: str, low: int, high: int, component: Component
) -> Object:
    scaling = part.auto_scaling
    triggers = [
        one for metric in (scaling.metrics if scaling else ()) if (one := _trigger(name, service.metadata.namespace, metric))
    ]
    own = _resource(service, part)
    behavior = scaling.behavior if scaling else None
    advanced = {"advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}}} if behavior else {}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": labels.metadata(settings, service, name, name, component),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicaCount": low,
            "maxReplicaCount": high,
            "triggers": triggers or [_resource_trigger(own["name"], own["target"])],
            **advanced,
        },
    }


def _trigger(name: str, namespace: str, metric: MetricSpec) -> Object | None:
    if metric.resource is not None:
        return _resource_trigger(metric.resource.name, metric.resource.target)
    if metric.external is not None:
        return _query(metric.external)
    return _of_pods(name, namespace, metric.podmetric) if metric.podmetric is not None else None


def _resource_trigger(name: str, target: Mapping[str, Any]) -> Object:
    value = target.get("averageUtilization", target.get("averageValue", DEFAULT_PERCENT))
    return {"type": name, "metricType": target.get("type", "Utilization"), "metadata": {"value": str(value)}}


def _query(external: ExternalMetric) -> Object:
    metric, access = external.metric, external.authentication_ref or {}
    about = {"serverAddress": str(metric.get("serverAddress", "")), "query": str(metric["query"]), "threshold": _aim(external)}
    if metric.get("namespace"):
        about["namespace"] = str(metric["namespace"])
    if access.get("authModes"):
        about["authModes"] = str(access["authModes"])
    trigger: Object = {"type": str(metric.get("backend", "prometheus")), "metadata": about}
    who = (access.get("authenticationRef") or access).get("name")
    return trigger | ({"authenticationRef": {"name": who}} if who else {})


def _of_pods(name: str, namespace: str, podmetric: ExternalMetric) -> Object:
    """KServe's: KEDA's scaler for OpenTelemetry adds up what the Deployment's pods say."""
    metric = podmetric.metric
    about = {
        "scalerAddress": str(metric.get("serverAddress") or OTEL_SCALER),
        "metricQuery": f'sum({metric["query"]}{{namespace="{namespace}", deployment="{name}"}})',
        "targetValue": _aim(podmetric),
    }
    if metric.get("operationOverTime"):
        about["operationOverTime"] = str(metric["operationOverTime"])
    return {"type": "external", "metadata": about}


def _aim(metric: ExternalMetric) -> str:
    """Its scalers want a plain number, the manifest has a quantity."""
    return f"{quantity(metric.target['value']):f}"
