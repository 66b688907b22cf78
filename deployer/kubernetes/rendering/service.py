"""A workload → its Service, and which ports of it speak what."""

from collections.abc import Mapping, Sequence
from typing import Any

from deployer.kubernetes.rendering import labels
from deployer.kubernetes.rendering.deployment import COLLOCATED, HTTP
from deployer.kubernetes.rendering.labels import Component, Object
from deployer.kubernetes.rendering.settings import Settings
from deployer.spec import InferenceService

HTTP_PORT = 80
H2C = "kubernetes.io/h2c"


def service(
    settings: Settings, owner: InferenceService, deployment: Mapping[str, Any], component: Component = "predictor"
) -> Object:
    """Of the Deployment's pods; a transformer in the same pod is asked before its predictor."""
    name = deployment["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": labels.metadata(settings, owner, name, name, component),
        "spec": {"selector": labels.selector(name), "ports": _ports(deployment["spec"]["template"]["spec"]["containers"])},
    }


def grpc_port(deployment: Mapping[str, Any]) -> int:
    """The port of a Deployment's Service that speaks gRPC, 0 where none does."""
    ports = _ports(deployment["spec"]["template"]["spec"]["containers"])
    return next((int(one["port"]) for one in ports if one.get("appProtocol") == H2C), 0)


def _ports(containers: Sequence[Mapping[str, Any]]) -> list[Object]:
    """The first under 80, as KServe has it, the others under their own numbers; all with a name, by which a mesh knows them."""
    server = next((one for one in containers if one.get("name") == COLLOCATED), containers[0])
    made: list[Object] = []
    for port in server.get("ports") or [{"containerPort": 8080}]:
        number = port["containerPort"]
        outside = number if made else HTTP_PORT
        if any(one["port"] == outside for one in made):
            continue
        one: Object = {"name": port.get("name") or (f"port-{number}" if made else HTTP), "port": outside}
        one |= {"targetPort": port.get("name", number), "protocol": port.get("protocol", "TCP")}
        if "grpc" in one["name"] or "h2c" in one["name"]:
            one["appProtocol"] = H2C
        made.append(one)
    return made
