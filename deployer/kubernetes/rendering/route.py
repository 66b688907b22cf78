"""Shares → routes: what `local/envoy.py` says to an Envoy, said to Istio (VirtualService, DestinationRule) or the Gateway API.

The way of a request, the most special rule first; each once for gRPC, once for all else:

    the header that the service names → the candidate
    serve-revision: a revision's name, `stable`, `candidate` or a canary's name → that one; any other value → 404
    every other request → by weight

Istio retries what is safe to retry, predictions being idempotent: connections that fail or are reset, and the 503 by which a
predictor says that it is not ready (yet, or any more).  The Gateway API has no stable words for that, and leaves it out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deployer import names
from deployer.kubernetes.rendering import labels
from deployer.kubernetes.rendering.labels import Object
from deployer.kubernetes.rendering.layout import Layout, Workload, stable_name
from deployer.kubernetes.rendering.service import HTTP_PORT
from deployer.kubernetes.rendering.settings import Settings
from deployer.plan import Plan
from deployer.spec import VISIBILITY, InferenceService

REVISION_HEADER = "serve-revision"
STABLE, CANDIDATE = "stable", "candidate"
MESH = "mesh"
GRPC_TYPE = "application/grpc"
RETRIES = 2
RETRY_ON = "connect-failure,refused-stream,reset-before-request,reset,unavailable,503"
# What the Gateway API allows in one HTTPRoute.
MOST_RULES = 16


@dataclass(frozen=True)
class Backend:
    """A Service that requests go to; `grpc_port` is 0 where it speaks none, `revision` is "" for what has none."""

    name: str
    percent: int
    grpc_port: int
    revision: str = ""


@dataclass(frozen=True)
class Rule:
    """Requests with such headers go to `backends`, by weight; to none of them where there are none: 404.

    `headers` are (name, pattern), with None for any value; `without` is a pattern that REVISION_HEADER must not match.
    """

    backends: tuple[Backend, ...]
    headers: tuple[tuple[str, str | None], ...] = ()
    without: str = ""
    grpc: bool = False


# names and addresses


def host(settings: Settings, service: InferenceService) -> str:
    """Under which the gateway knows the service; "" where it does not."""
    if is_local(settings, service):
        return ""
    meta = service.metadata
    words = {"Name": meta.name, "Namespace": meta.namespace, "IngressDomain": settings.domain}
    if settings.domain_template == Settings.domain_template:
        return names.host(meta.namespace, meta.name, settings.domain)
    return re.sub(r"\{\{ *\.(\w+) *\}\}", lambda found: words[found[1]], settings.domain_template)


def is_local(settings: Settings, service: InferenceService) -> bool:
    """Whether the service has no address outside of the cluster."""
    return settings.ingress == "none" or service.metadata.labels.get(VISIBILITY) == "cluster-local"


def url(settings: Settings, service: InferenceService) -> str:
    """For `status.url`."""
    outside = host(settings, service)
    return f"{settings.scheme}://{outside}" if outside else address(service)


def address(service: InferenceService) -> str:
    """For `status.address.url`: how pods of this cluster reach the service."""
    return f"http://{inside(service, front(service))}"


def front(service: InferenceService) -> str:
    """The workload that requests come to first."""
    if service.spec.transformer is not None:
        return beside_name(service, "transformer")
    return stable_name(service.metadata.name, service.spec.predictor.name or "")


def beside_name(service: InferenceService, component: str) -> str:
    return f"{service.metadata.name}-{component}"


def inside(service: InferenceService, workload: str) -> str:
    return f"{workload}.{service.metadata.namespace}.svc.cluster.local"


# rules


def rules(service: InferenceService, plan: Plan, layout: Layout, grpc_ports: Mapping[str, int]) -> tuple[Rule, ...]:
    """From the most special to all other requests; none where nothing was ever ready.  `grpc_ports` are by workload."""
    by_revision: dict[str, Workload] = {}
    for one in layout.workloads:
        # a candidate before the stable one, where both carry it
        by_revision[one.revision] = one
    # who answered is said where several may; while a promotion goes on, pods of both revisions answer for the stable one
    several = len(layout.workloads) > 1 and not layout.retained
    revisions = {one.name: one.revision for one in layout.workloads} if several else {}
    default_port = next(iter(grpc_ports.values()), 0)

    def backend(name: str, percent: int = 100) -> Backend:
        return Backend(name, percent, grpc_ports.get(name, default_port), revisions.get(name, ""))

    shares = tuple(backend(one.workload, one.percent) for one in layout.shares if one.percent)
    if not shares:
        return ()
    made = [
        Rule((backend(by_revision[match.revision].name),), ((match.header, re.escape(match.value)),))
        for match in plan.header_matches
        if match.revision in by_revision
    ]
    known = list(_words(layout))
    if len(known) == 1:
        made.append(Rule((), ((REVISION_HEADER, None),), without=known[0][1]))
    else:
        made += [Rule((backend(name),), ((REVISION_HEADER, pattern),)) for name, pattern in known]
        made.append(Rule((), ((REVISION_HEADER, None),)))
    made.append(Rule(shares))
    return tuple(one for rule in made for one in _both(rule))


def _words(layout: Layout) -> Iterator[tuple[str, str]]:
    """Each workload with the words that mean it, as a pattern."""
    for at, one in enumerate(layout.workloads):
        words = [one.revision, *([one.canary] if one.canary else [])]
        words += [STABLE] if at == 0 else [CANDIDATE] if at == len(layout.workloads) - 1 else []
        yield one.name, "|".join(re.escape(word) for word in words)


def _both(rule: Rule) -> Iterator[Rule]:
    """For gRPC, where it is spoken, and for HTTP."""
    if rule.backends and all(one.grpc_port for one in rule.backends):
        yield Rule(rule.backends, rule.headers, rule.without, grpc=True)
    yield rule


# Istio


def virtual_service(
    settings: Settings, service: InferenceService, plan: Plan, layout: Layout, grpc_ports: Mapping[str, int]
) -> Object | None:
    """Of the predictors: for the gateway, unless something stands before them, and for callers inside of a mesh."""
    has_front = service.spec.transformer is not None
    outside = "" if has_front else host(settings, service)
    made = rules(service, plan, layout, grpc_ports)
    if not made or not layout.workloads:
        return None
    name = service.metadata.name if not has_front else layout.workloads[0].name
    hosts = [*([outside] if outside else ()), inside(service, layout.workloads[0].name)]
    routes = [_istio_rule(service, plan, layout, one) for one in made]
    return _virtual_service(settings, service, name, hosts, [*([settings.gateway] if outside else ()), MESH], routes)


def front_virtual_service(settings: Settings, service: InferenceService, backend: Backend) -> Object | None:
    """Of the transformer: for the gateway."""
    outside = host(settings, service)
    if not outside:
        return None
    timeout = service.spec.transformer.timeout if service.spec.transformer and service.spec.transformer.timeout else 60
    routes = [
        _matched(
            rule, {"route": [_istio_destination(service, backend, rule.grpc)], "timeout": f"{timeout}s", "retries": _RETRIES}
        )
        for rule in _both(Rule((backend,)))
    ]
    return _virtual_service(settings, service, service.metadata.name, [outside], [settings.gateway], routes)


def _virtual_service(
    settings: Settings,
    service: InferenceService,
    name: str,
    hosts: Sequence[str],
    gateways: Sequence[str],
    http: Sequence[Object],
) -> Object:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": labels.metadata(settings, service, name),
        "spec": {"hosts": list(hosts), "gateways": list(gateways), "http": list(http)},
    }


_RETRIES: Object = {"attempts": RETRIES, "retryOn": RETRY_ON}


def _istio_rule(service: InferenceService, plan: Plan, layout: Layout, rule: Rule) -> Object:
    if not rule.backends:
        return _matched(rule, {"directResponse": {"status": 404, "body": {"string": _no_such_revision(service, layout)}}})
    weighted = len(rule.backends) > 1
    route = [_istio_destination(service, one, rule.grpc, weighted=weighted) for one in rule.backends]
    action: Object = {"route": route, "timeout": f"{plan.timeout:g}s", "retries": _RETRIES}
    if copy := _mirrored(plan, layout, rule):
        port = _port(Backend(copy, 0, rule.backends[0].grpc_port), rule.grpc)
        destination = {"host": inside(service, copy), "port": {"number": port}}
        action["mirrors"] = [{"destination": destination, "percentage": {"value": plan.mirror[1] if plan.mirror else 0}}]
    return _matched(rule, action)


def _matched(rule: Rule, action: Object) -> Object:
    headers: Object = {"content-type": {"prefix": GRPC_TYPE}} if rule.grpc else {}
    # an empty match means that the header is there
    headers |= {name: {} if pattern is None else {"regex": pattern} for name, pattern in rule.headers}
    match: Object = {"headers": headers} if headers else {}
    if rule.without:
        match["withoutHeaders"] = {REVISION_HEADER: {"regex": rule.without}}
    return ({"match": [match]} if match else {}) | action


def _istio_destination(service: InferenceService, backend: Backend, grpc: bool, *, weighted: bool = False) -> Object:
    made: Object = {"destination": {"host": inside(service, backend.name), "port": {"number": _port(backend, grpc)}}}
    if weighted:
        made["weight"] = backend.percent
    if backend.revision:
        made["headers"] = {"response": {"set": {REVISION_HEADER: backend.revision}}}
    return made


def _port(backend: Backend, grpc: bool) -> int:
    return backend.grpc_port if grpc else HTTP_PORT


def _mirrored(plan: Plan, layout: Layout, rule: Rule) -> str:
    """The workload that gets copies, "" for none; one that has the requests anyway gets none."""
    if plan.mirror is None or not plan.mirror[1]:
        return ""
    name = next((one.name for one in layout.workloads[1:] if one.revision == plan.mirror[0]), "")
    return "" if [one.name for one in rule.backends] == [name] else name


def _no_such_revision(service: InferenceService, layout: Layout) -> str:
    known = [STABLE, *([CANDIDATE] if len(layout.workloads) > 1 else []), *(one.revision for one in layout.workloads)]
    key = names.key(service.metadata.namespace, service.metadata.name)
    return f"{key} has no such revision; {REVISION_HEADER} may be {', '.join(known)}"


def destination_rule(settings: Settings, service: InferenceService, workload: str) -> Object:
    """How a workload's pods are chosen, and when one of them is left alone."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": labels.metadata(settings, service, workload, workload),
        "spec": {"host": inside(service, workload), "trafficPolicy": _POLICY},
    }


_POLICY: Object = {
    "loadBalancer": {"simple": "LEAST_REQUEST"},
    "connectionPool": {
        "tcp": {"maxConnections": 10000, "connectTimeout": "1s"},
        "http": {
            "http1MaxPendingRequests": 2000,
            "http2MaxRequests": 10000,
            # Envoy's default is three at once, which loses requests when a pod dies under load
            "maxRetries": 10000,
            # more than a predictor's own patience would mean requests sent into a closing connection
            "idleTimeout": "50s",
        },
    },
    # bridges the time from a pod's death to its leaving the endpoints
    "outlierDetection": {
        "splitExternalLocalOriginErrors": True,
        "consecutiveLocalOriginFailures": 2,
        # an answer is an answer: what a model does with bad requests says nothing about the next ones
        "consecutive5xxErrors": 0,
        "consecutiveGatewayErrors": 0,
        "interval": "1s",
        "baseEjectionTime": "1s",
        "maxEjectionPercent": 100,
    },
}


# the Gateway API


def http_route(
    settings: Settings, service: InferenceService, plan: Plan, layout: Layout, grpc_ports: Mapping[str, int]
) -> Object | None:
    """One route for HTTP and gRPC: an HTTPRoute and a GRPCRoute may not share a host."""
    outside = host(settings, service)
    made = rules(service, plan, layout, grpc_ports)
    if not outside or not made:
        return None
    if service.spec.transformer is not None:
        name = beside_name(service, "transformer")
        made = tuple(_both(Rule((Backend(name, 100, grpc_ports.get(name, 0)),))))
    if len(made) > MOST_RULES:
        made = tuple(one for one in made if all(name != REVISION_HEADER for name, _ in one.headers))
    gateway = {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "namespace": settings.gateway_namespace,
        "name": settings.gateway_name,
    }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": labels.metadata(settings, service, service.metadata.name),
        "spec": {"parentRefs": [gateway], "hostnames": [outside], "rules": [_api_rule(plan, layout, one) for one in made]},
    }


def _api_rule(plan: Plan, layout: Layout, rule: Rule) -> Object:
    headers = [{"type": "RegularExpression", "name": "content-type", "value": f"^{GRPC_TYPE}.*"}] if rule.grpc else []
    for name, pattern in rule.headers:
        headers.append({"type": "RegularExpression", "name": name, "value": f"^({pattern})$" if pattern is not None else ".*"})
    match: Object = {"path": {"type": "PathPrefix", "value": "/"}} | ({"headers": headers} if headers else {})
    if not rule.backends:
        # nowhere to go
        return {"matches": [match]}
    weighted = len(rule.backends) > 1
    made: Object = {
        "matches": [match],
        "backendRefs": [_api_backend(one, _port(one, rule.grpc), weighted) for one in rule.backends],
        "timeouts": {"request": f"{plan.timeout:g}s"},
    }
    if copy := _mirrored(plan, layout, rule):
        port = _port(Backend(copy, 0, rule.backends[0].grpc_port), rule.grpc)
        mirror = {"backendRef": {"kind": "Service", "name": copy, "port": port}, "percent": plan.mirror[1] if plan.mirror else 0}
        made["filters"] = [{"type": "RequestMirror", "requestMirror": mirror}]
    return made


def _api_backend(backend: Backend, port: int, weighted: bool) -> Object:
    made: Object = {"kind": "Service", "name": backend.name, "port": port, "weight": backend.percent if weighted else 1}
    if backend.revision:
        said = {"set": [{"name": REVISION_HEADER, "value": backend.revision}]}
        made["filters"] = [{"type": "ResponseHeaderModifier", "responseHeaderModifier": said}]
    return made
