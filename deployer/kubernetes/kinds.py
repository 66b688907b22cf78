"""The kinds of objects that the shell reads and writes: what they are called in the API's paths, and which are whose."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

GROUP = "serving.kserve.io"
OWNER = "serving.serveplane.dev/owner"
"""Label of every object that the controller makes for a service, with the service's name: by it they are found and pruned."""
REVISION = "serving.serveplane.dev/revision"
"""Label of pods: the revision they run."""
SERVICE = "serving.kserve.io/inferenceservice"
"""KServe's label of pods: the service's name."""
APPLIED = "serving.serveplane.dev/applied"
"""Annotation of every object that the controller makes: a digest of what was applied last."""
ROUTED = "serving.serveplane.dev/routed"
"""Annotation of routes: who gets which share, by revision and by workload."""
MANAGER = "serveplane"
"""The field manager of all that the controller applies."""


@dataclass(frozen=True)
class Kind:
    api_version: str
    name: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """Of all objects, of a namespace's, or of one."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        middle = f"/namespaces/{namespace}" if namespace and self.namespaced else ""
        return f"{root}{middle}/{self.plural}" + (f"/{name}" if name else "")


INFERENCE_SERVICE = Kind(f"{GROUP}/v1beta1", "InferenceService", "inferenceservices")
SERVING_RUNTIME = Kind(f"{GROUP}/v1alpha1", "ServingRuntime", "servingruntimes")
CLUSTER_SERVING_RUNTIME = Kind(f"{GROUP}/v1alpha1", "ClusterServingRuntime", "clusterservingruntimes", namespaced=False)
CONTROLLER_REVISION = Kind("apps/v1", "ControllerRevision", "controllerrevisions")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
SERVICE_KIND = Kind("v1", "Service", "services")
HPA = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
PDB = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
SECRET = Kind("v1", "Secret", "secrets")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
VIRTUAL_SERVICE = Kind("networking.istio.io/v1", "VirtualService", "virtualservices")
DESTINATION_RULE = Kind("networking.istio.io/v1", "DestinationRule", "destinationrules")
HTTP_ROUTE = Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes")
GRPC_ROUTE = Kind("gateway.networking.k8s.io/v1", "GRPCRoute", "grpcroutes")
SCALED_OBJECT = Kind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects")

ROUTES = (VIRTUAL_SERVICE, HTTP_ROUTE, GRPC_ROUTE)
# Kinds whose definitions a cluster may lack.
OPTIONAL = (VIRTUAL_SERVICE, DESTINATION_RULE, HTTP_ROUTE, GRPC_ROUTE, SCALED_OBJECT)
CHILDREN = (DEPLOYMENT, SERVICE_KIND, HPA, PDB, NETWORK_POLICY, *OPTIONAL)
"""What `objects.render` may make, in no order; ControllerRevisions are made beside it."""
BY_NAME: Mapping[tuple[str, str], Kind] = MappingProxyType({(kind.api_version, kind.name): kind for kind in CHILDREN})


def kind_of(raw: Mapping[str, Any]) -> Kind:
    """KeyError for an object of a kind that is not a service's child."""
    return BY_NAME[raw["apiVersion"], raw["kind"]]
