"""What every object of a service has in its metadata: KServe's labels, our own, and whose it is."""

from collections.abc import Mapping
from typing import Any, Literal

from deployer.kubernetes.kinds import OWNER, REVISION, SERVICE
from deployer.kubernetes.rendering.layout import short
from deployer.kubernetes.rendering.settings import Settings
from deployer.spec import InferenceService
from deployer.spec.annotations import OURS, RULES

Object = dict[str, Any]
Component = Literal["predictor", "transformer", "explainer"]
MANAGED_BY = "app.kubernetes.io/managed-by"


def selector(workload: str) -> dict[str, str]:
    """By it a Deployment knows its pods, for ever: a selector can't be changed."""
    return {"app": short(f"isvc.{workload}")}


def metadata(
    settings: Settings, service: InferenceService, name: str, workload: str = "", component: Component = "predictor"
) -> Object:
    """`workload` is "" for what belongs to the whole service."""
    meta = service.metadata
    passed = {key: value for key, value in meta.labels.items() if key not in settings.labels_kept}
    of_workload = {**selector(workload), "component": component} if workload else {}
    return {
        "name": name,
        "namespace": meta.namespace,
        "labels": {**passed, **of_workload, SERVICE: meta.name, OWNER: meta.name, MANAGED_BY: "serveplane"},
        "ownerReferences": [
            {
                "apiVersion": service.api_version,
                "kind": service.kind,
                "name": meta.name,
                "uid": meta.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def pod_labels(
    settings: Settings, service: InferenceService, workload: str, component: Component, own: Mapping[str, str], revision: str = ""
) -> dict[str, str]:
    passed = {key: value for key, value in service.metadata.labels.items() if key not in settings.labels_kept}
    ours = {**selector(workload), "component": component, SERVICE: service.metadata.name, MANAGED_BY: "serveplane"}
    return {**passed, **own, **ours, **({REVISION: short(revision)} if revision else {})}


def pod_annotations(
    settings: Settings, service: InferenceService, own: Mapping[str, str], port: int, revision: str = ""
) -> dict[str, str]:
    """Those of the service that are not about how the service itself is run, and the component's own."""
    given = service.metadata.annotations
    passed = {key: value for key, value in given.items() if key not in settings.annotations_kept and not _of_the_service(key)}
    # where the label has no room for it
    whole = {REVISION: revision} if short(revision) != revision else {}
    return {**_scraping({**given, **own}, port), **passed, **own, **whole}


def _of_the_service(key: str) -> bool:
    """Pods are not made anew because a weight, a header or a class of scaler changes."""
    return key.startswith(OURS) or key in RULES


def _scraping(given: Mapping[str, str], port: int) -> dict[str, str]:
    if given.get("serving.kserve.io/enable-prometheus-scraping") != "true":
        return {}
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": given.get("prometheus.kserve.io/port", str(port)),
        "prometheus.io/path": given.get("prometheus.kserve.io/path", "/metrics"),
    }
