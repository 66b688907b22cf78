"""What protects a workload: how many of its pods may be taken away at once, and who may talk to them."""

from collections.abc import Mapping
from typing import Any

from deployer.kubernetes.rendering import labels
from deployer.kubernetes.rendering.labels import Component, Object
from deployer.kubernetes.rendering.settings import Settings
from deployer.spec import InferenceService

NAMESPACE = "kubernetes.io/metadata.name"


def disruption_budget(
    settings: Settings, service: InferenceService, name: str, replicas: int, component: Component = "predictor"
) -> Object | None:
    """None for a workload of one pod: a budget would either keep its node from ever being emptied, or allow it anyway."""
    if replicas < 2 or not settings.disruption_budget:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": labels.metadata(settings, service, name, name, component),
        "spec": {
            "selector": {"matchLabels": labels.selector(name)},
            "maxUnavailable": 1,
            # a pod that does not work keeps no node
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def network_policy(
    settings: Settings, service: InferenceService, deployment: Mapping[str, Any], component: Component = "predictor"
) -> Object | None:
    """Into the pods from the gateway, from their own namespace and from where the settings say; out of them anywhere.

    A model is fetched from wherever it is, so what a pod may reach is the cluster's to say.
    """
    if not settings.network_policy:
        return None
    name = deployment["metadata"]["name"]
    places = (
        dict.fromkeys((settings.gateway_namespace, *settings.allow_from))
        if settings.ingress != "none"
        else dict.fromkeys(settings.allow_from)
    )
    sources: list[Object] = [{"podSelector": {}}]
    sources += [{"namespaceSelector": {"matchLabels": {NAMESPACE: place}}} for place in places]
    containers = deployment["spec"]["template"]["spec"]["containers"]
    ports = [
        {"protocol": port.get("protocol", "TCP"), "port": port["containerPort"]}
        for one in containers
        for port in one.get("ports") or ()
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": labels.metadata(settings, service, name, name, component),
        "spec": {
            "podSelector": {"matchLabels": labels.selector(name)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": sources, "ports": ports}],
        },
    }
