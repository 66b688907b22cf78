"""Everything that a service is on a cluster, as objects, in the order in which they are applied.

Make before break: what requests are routed to comes first, then the routes; what is not here is removed after that.
"""

from collections.abc import Callable, Iterator, Mapping

from deployer.kubernetes.rendering import autoscaler, policy, route
from deployer.kubernetes.rendering.credentials import ServiceAccountSeen, account_of
from deployer.kubernetes.rendering.deployment import beside, predictor
from deployer.kubernetes.rendering.labels import Component, Object
from deployer.kubernetes.rendering.layout import Layout
from deployer.kubernetes.rendering.service import grpc_port
from deployer.kubernetes.rendering.service import service as service_of
from deployer.kubernetes.rendering.settings import Settings
from deployer.plan import Plan
from deployer.spec import InferenceService, Notice, notices
from deployer.spec.schema import Component as ComponentSpec


def urls(settings: Settings, service: InferenceService) -> tuple[str, str]:
    """For `status.url` and for `status.address.url`."""
    return route.url(settings, service), route.address(service)


def render(
    settings: Settings,
    service: InferenceService,
    plan: Plan,
    layout: Layout,
    account: Callable[[str, str], ServiceAccountSeen],
) -> list[Object]:
    """`account` gives the ServiceAccount of a namespace by its name.

    Objects of the workloads in `layout.retained`, which have their names, are not here and must not be removed yet.
    """
    made: list[Object] = []
    grpc_ports: dict[str, int] = {}
    scaled: list[Object] = []
    for one in layout.workloads:
        who = account(service.metadata.namespace, account_of(one.template.get("pod") or {}))
        pods = predictor(settings, service, one, who)
        grpc_ports[one.name] = grpc_port(pods)
        main = service.spec.predictor
        scaled += _workload(settings, service, main, pods, one.min_replicas, one.max_replicas, "predictor")
    for component, part in _beside(service) if layout.workloads else ():
        name = route.beside_name(service, component)
        pods = beside(settings, service, component, part, name, layout.workloads[0].name)
        grpc_ports[name] = grpc_port(pods)
        low = max(1, part.min_replicas)
        scaled += _workload(settings, service, part, pods, low, max(low, part.max_replicas), component)
    made += sorted(scaled, key=lambda one: _ORDER.index(one["kind"]))
    return [*made, *_routes(settings, service, plan, layout, grpc_ports)]


_ORDER = (
    "NetworkPolicy",
    "Service",
    "Deployment",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "ScaledObject",
    "DestinationRule",
)


def _beside(service: InferenceService) -> Iterator[tuple[Component, ComponentSpec]]:
    if service.spec.transformer is not None:
        yield "transformer", service.spec.transformer
    if service.spec.explainer is not None and service.spec.explainer.containers:
        yield "explainer", service.spec.explainer


def _workload(
    settings: Settings,
    service: InferenceService,
    part: ComponentSpec,
    pods: Object,
    low: int,
    high: int,
    component: Component,
) -> list[Object]:
    name = pods["metadata"]["name"]
    made = [
        policy.network_policy(settings, service, pods, component),
        service_of(settings, service, pods, component),
        pods,
        policy.disruption_budget(settings, service, name, low, component),
        autoscaler.autoscaler(settings, service, part, name, low, high, component),
        route.destination_rule(settings, service, name) if settings.ingress == "istio" else None,
    ]
    return [one for one in made if one is not None]


def _routes(
    settings: Settings, service: InferenceService, plan: Plan, layout: Layout, grpc_ports: Mapping[str, int]
) -> Iterator[Object]:
    if settings.ingress == "gateway-api":
        if made := route.http_route(settings, service, plan, layout, grpc_ports):
            yield made
    elif settings.ingress == "istio":
        made = route.virtual_service(settings, service, plan, layout, grpc_ports)
        if made is None:
            return
        yield made
        name = route.beside_name(service, "transformer")
        if name in grpc_ports and (
            first := route.front_virtual_service(settings, service, route.Backend(name, 100, grpc_ports[name]))
        ):
            yield first


def notes(settings: Settings, service: InferenceService) -> tuple[Notice, ...]:
    """What the service says, and no object of a cluster does: with why, and what to do."""
    return (*notices(service, "kubernetes"), *_notes(settings, service))


def _notes(settings: Settings, service: InferenceService) -> Iterator[Notice]:
    """What depends on how the cluster is set up."""
    spec = service.spec
    percent = spec.predictor.canary_traffic_percent
    splits = bool(spec.canary) or (percent is not None and 0 < percent < 100)
    for name, part in (("predictor", spec.predictor), ("transformer", spec.transformer), ("explainer", spec.explainer)):
        if part is not None and part.logger is not None:
            why = "has no effect: nothing sends requests and responses on yet; the access log has a line for each"
            yield Notice(f"spec.{name}.logger", why)
    if spec.explainer is not None and not spec.explainer.containers:
        yield Notice("spec.explainer.art", "has no effect: there is no such explainer any more; give it containers")
    if splits and spec.transformer is not None and settings.ingress != "none":
        why = "its calls are split between the predictors only where it has a mesh's sidecar; else the stable one has all"
        yield Notice("spec.transformer", why)
    if splits and settings.ingress == "none":
        why = "gets no requests: without an ingress nothing splits them; set one in the ConfigMap inferenceservice-config"
        path = "spec.canary" if spec.canary else "spec.predictor.canaryTrafficPercent"
        yield Notice(path, why)
