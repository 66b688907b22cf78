"""Routes → Envoy's configuration, as JSON documents.  Pure: no files, no clock; equal values give equal documents.

The way of a request:

    client → main | the service's own port → [route] → priority 0: the endpoints of one backend
                                                       priority 1, 2, 3: hold → try → the same endpoints

`hold` and `try` are listeners inside Envoy.  A request gets there when no endpoint is healthy, and with each retry: `try`
asks a healthy endpoint once, and `hold` asks `try` again for as long as it says that nothing was sent to anyone.  So a
request waits for a predictor that is being started again, but is handed to predictors three times at most: one that kills
whatever runs it can't go on doing so.

Why what is retried may be retried: predictions are idempotent.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployer.local.listeners import (
    FOR_CLUSTER,
    HELD_BY,
    HTTP2,
    KEPT_BODY_BYTES,
    NOT_SENT,
    TYPE,
    Document,
    extension,
    hold_listener,
    listener,
    set_header,
    source,
    try_listener,
)

LOOPBACK = "127.0.0.1"
# The one address of all services; a service's own port has a listener of the service's key.
MAIN_LISTENER = "main"
HTTP, GRPC = "http", "grpc"
SERVICE_HEADER, REVISION_HEADER = "serve-service", "serve-revision"
STABLE, CANDIDATE = "stable", "candidate"

# A request may come to be run once, and this often again: see the module's docstring.
RETRIES = 2
# Requests of one service that wait for a predictor.
HELD = 1000
# A predictor takes 1000 HTTP connections (its `limit_connections`), health checks among them.
CONNECTIONS_PER_ENDPOINT = 900
# More than a predictor's own patience (its `timeout_keep_alive`) would mean requests sent into a closing connection.
UPSTREAM_IDLE = "50s"
# The longest that a dead or hanging endpoint gets requests is the first two together.
CHECK_EVERY, CHECK_TIMEOUT, CHECK_EVERY_WHILE_DOWN = "0.5s", "1s", "0.1s"
MOST_MEMORY, MOST_CONNECTIONS = 1 << 30, 10_000
# What `sun_path` has room for.
LONGEST_SOCKET_PATH = 107

_HELD_ENDPOINT = {"held": True}


@dataclass(frozen=True)
class Endpoint:
    """Where one predictor listens on 127.0.0.1."""

    http_port: int
    grpc_port: int


@dataclass(frozen=True)
class Backend:
    """A revision: its name, its share of requests in percent, and those of its predictors that are to get requests."""

    name: str
    weight: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True)
class Mirror:
    """`percent` of the requests are also sent to `backend`, whose answers nobody sees."""

    backend: str
    percent: int


@dataclass(frozen=True)
class HeaderRoute:
    """Requests whose `header` is exactly `value` go to `backend`."""

    header: str
    value: str
    backend: str


@dataclass(frozen=True)
class ServiceRoutes:
    """One service: `port` is its own listener's; `timeout` in seconds, 0 for none; the first backend is the stable one."""

    namespace: str
    name: str
    port: int
    timeout: float
    backends: tuple[Backend, ...]
    header_routes: tuple[HeaderRoute, ...] = ()
    mirror: Mirror | None = None

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def host(self) -> str:
        return f"{self.name}-{self.namespace}.localhost"


@dataclass(frozen=True)
class EnvoyOptions:
    """`directory` holds the files that Envoy reads, `port` is the one address's, `admin` the socket only this user may ask."""

    directory: Path
    port: int
    admin: Path
    access_log: Path
    host: str = LOOPBACK


def bootstrap(options: EnvoyOptions) -> Document:
    """What Envoy is started with; it names the files of `render`.  ValueError where the admin socket's path is too long."""
    length = len(str(options.admin))
    if length > LONGEST_SOCKET_PATH:
        found = f"{options.admin}: a socket's path has {LONGEST_SOCKET_PATH} characters at most, this one {length}"
        raise ValueError(f"{found}; choose a shorter state directory")
    inside = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
    monitors = "envoy.extensions.resource_monitors."
    return {
        "node": {"id": "serveplane", "cluster": "serveplane"},
        "admin": {"address": {"pipe": {"path": str(options.admin), "mode": 0o600}}},
        "dynamic_resources": {
            "cds_config": source(options.directory, "cds.json"),
            "lds_config": source(options.directory, "lds.json"),
        },
        "static_resources": {"listeners": [hold_listener(), try_listener()]},
        "bootstrap_extensions": [extension("envoy.bootstrap.internal_listener", inside)],
        "overload_manager": {
            "resource_monitors": [
                extension(
                    "envoy.resource_monitors.fixed_heap",
                    f"{monitors}fixed_heap.v3.FixedHeapConfig",
                    max_heap_size_bytes=MOST_MEMORY,
                ),
                extension(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    f"{monitors}downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=MOST_CONNECTIONS,
                ),
            ],
            "actions": [
                {
                    "name": f"envoy.overload_actions.{action}",
                    "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}],
                }
                for action, share in (("shrink_heap", 0.9), ("stop_accepting_requests", 0.95))
            ],
        },
    }


def render(options: EnvoyOptions, services: Sequence[ServiceRoutes]) -> dict[str, Document]:
    """File name → document.  Of two services with one host name the first in order has it; the paths tell them apart."""
    routes = source(options.directory, "routes.json")
    listeners = [listener(MAIN_LISTENER, options.host, options.port, routes, options.access_log)]
    clusters: list[Document] = []
    for service in services:
        # every listener has the same routes; on a service's own port each request names the service
        own = set_header(SERVICE_HEADER, service.key)
        listeners.append(listener(service.key, options.host, service.port, routes, options.access_log, own))
        if service.backends:
            clusters.append(_hold_cluster(service))
        clusters += [_cluster(*about) for about in _clusters(service)]
    return {
        "cds.json": response(clusters),
        "lds.json": response(listeners),
        "routes.json": response([_route_configuration(services)]),
    }


def cluster_name(service: ServiceRoutes, backend: str, protocol: str) -> str:
    return f"{service.namespace}/{backend}/{protocol}"


def response(resources: list[Document]) -> Document:
    """What a file holds.  The version is the content's, so that Envoy can be asked which content it has."""
    content = json.dumps(resources, sort_keys=True).encode()
    return {"version_info": hashlib.sha256(content).hexdigest()[:16], "resources": resources}


# clusters and endpoints


def _clusters(service: ServiceRoutes) -> Iterator[tuple[str, str, Backend, bool]]:
    """(name, protocol, backend, whether requests are held) of each cluster; a backend without endpoints has none."""
    for backend in service.backends:
        for protocol in (HTTP, GRPC) if backend.endpoints else ():
            yield cluster_name(service, backend.name, protocol), protocol, backend, True
            if service.mirror and service.mirror.backend == backend.name:
                # of its own, because a copy that is held would be sent to where its original is
                yield _mirror_name(service, backend.name, protocol), protocol, backend, False


def _mirror_name(service: ServiceRoutes, backend: str, protocol: str) -> str:
    return f"{cluster_name(service, backend, protocol)}/mirror"


def _cluster(name: str, protocol: str, backend: Backend, held: bool) -> Document:
    balancer = extension(
        "envoy.load_balancing_policies.least_request",
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        # all of the few are compared, so that one that hangs gets a request or two until its check fails, not half of them
        selection_method="FULL_SCAN",
    )
    subset = extension(
        "envoy.load_balancing_policies.subset",
        "envoy.extensions.load_balancing_policies.subset.v3.Subset",
        fallback_policy="ANY_ENDPOINT",
        subset_selectors=[{"keys": ["held"], "fallback_policy": "NO_FALLBACK"}],
        subset_lb_policy={"policies": [{"typed_extension_config": balancer}]},
    )
    return {
        "@type": f"{TYPE}envoy.config.cluster.v3.Cluster",
        "name": name,
        # not files of their own (EDS): Envoy takes one of the user's few inotify instances for each, and dies without
        "type": "STATIC",
        "load_assignment": _endpoints(name, protocol, backend, held),
        "connect_timeout": "1s",
        "load_balancing_policy": {"policies": [{"typed_extension_config": subset if held else balancer}]},
        # never to endpoints that are known not to answer: requests wait instead
        # and at once when they do: Envoy's default gathers changes of health for a second
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
        # who removes an endpoint has its reason, healthy or not
        "ignore_health_on_host_removal": True,
        "typed_extension_protocol_options": _protocol({"explicit_http_config": _PROTOCOLS[protocol]}),
        "transport_socket_matches": [{"name": "inside", "match": _HELD_ENDPOINT, "transport_socket": _INSIDE}] if held else [],
        "circuit_breakers": {
            # Envoy's default is three retries at once, which loses requests when an endpoint dies under load
            "thresholds": [
                {"max_connections": 10_000, "max_pending_requests": 2_000, "max_requests": 10_000, "max_retries": 10_000}
            ],
            "per_host_thresholds": [{"max_connections": CONNECTIONS_PER_ENDPOINT}],
        },
        "health_checks": [
            {
                "timeout": CHECK_TIMEOUT,
                "interval": CHECK_EVERY,
                "no_traffic_interval": CHECK_EVERY,
                "no_traffic_healthy_interval": CHECK_EVERY,
                "unhealthy_interval": CHECK_EVERY_WHILE_DOWN,
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/v2/health/ready", "host": "localhost"},
            }
        ],
        # bridges the time from an endpoint's death to its next check; the check that it passes ends it
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 2,
            "enforcing_consecutive_local_origin_failure": 100,
            # an answer is an answer: what a model does with bad requests says nothing about the next ones
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "1s",
            "max_ejection_time": "1s",
            "max_ejection_percent": 100,
        },
    }


def _endpoints(name: str, protocol: str, backend: Backend, held: bool) -> Document:
    groups: list[Document] = [{"priority": 0, "lb_endpoints": [_endpoint(e, protocol, held) for e in backend.endpoints]}]
    for attempt in range(1, RETRIES + 2) if held else ():
        hold: Document = {
            "endpoint": {
                "address": {"envoy_internal_address": {"server_listener_name": "hold", "endpoint_id": str(attempt)}},
                "health_check_config": {"disable_active_health_check": True},
            },
            "metadata": {"filter_metadata": {"envoy.transport_socket_match": _HELD_ENDPOINT, "envoy.lb": _HELD_ENDPOINT}},
        }
        groups.append({"priority": attempt, "lb_endpoints": [hold]})
    return {
        "cluster_name": name,
        "endpoints": groups,
        # one healthy endpoint of many is enough not to hold anything
        "policy": {"overprovisioning_factor": 100_000},
    }


def _endpoint(endpoint: Endpoint, protocol: str, held: bool) -> Document:
    port = endpoint.http_port if protocol == HTTP else endpoint.grpc_port
    return {
        "endpoint": {
            "address": {"socket_address": {"address": LOOPBACK, "port_value": port}},
            "health_check_config": {"port_value": endpoint.http_port},
        },
        "metadata": {"filter_metadata": {"envoy.lb": {"held": False}}} if held else {},
    }


def _hold_cluster(service: ServiceRoutes) -> Document:
    """From `hold` to `try`; one a service, so that those who wait for one service take no place from another's."""
    inside = {"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": "try"}}}}
    protocols = {"http_protocol_options": {}, "http2_protocol_options": HTTP2}
    return {
        "@type": f"{TYPE}envoy.config.cluster.v3.Cluster",
        "name": _hold_name(service),
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": _hold_name(service), "endpoints": [{"lb_endpoints": [inside]}]},
        "transport_socket": _INSIDE,
        "typed_extension_protocol_options": _protocol({"use_downstream_protocol_config": protocols}),
        "circuit_breakers": {
            "thresholds": [
                {"max_connections": 10_000, "max_pending_requests": 10_000, "max_requests": 10_000, "max_retries": HELD}
            ]
        },
    }


def _hold_name(service: ServiceRoutes) -> str:
    return f"{service.key}/hold"


_PROTOCOLS = {HTTP: {"http_protocol_options": {}}, GRPC: {"http2_protocol_options": HTTP2}}
_INSIDE = extension(
    "envoy.transport_sockets.internal_upstream",
    "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
    transport_socket=extension(
        "envoy.transport_sockets.raw_buffer", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
    ),
)


def _protocol(chosen: Document) -> Document:
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    common = {"idle_timeout": UPSTREAM_IDLE}
    return {kind: {"@type": TYPE + kind, "common_http_protocol_options": common, **chosen}}


# routes


def _virtual_host(name: str, domain: str, routes: list[Document]) -> Document:
    host: Document = {"name": name, "domains": [domain], "routes": routes}
    return {**host, "retry_policy": _RETRY, "request_body_buffer_limit": KEPT_BODY_BYTES}


_UNKNOWN = (
    f"there is no such service; its path is /serving/NAMESPACE/NAME/, over gRPC its header {SERVICE_HEADER}: NAMESPACE/NAME"
)


def _route_configuration(services: Sequence[ServiceRoutes]) -> Document:
    hosts: dict[str, Document] = {}
    by_path: list[Document] = []
    by_header: list[Document] = []
    for service in services:
        if service.host not in hosts:
            hosts[service.host] = _virtual_host(service.key, service.host, [*_routes(service, {"prefix": "/"})])
        path = f"/serving/{service.key}"
        by_path += _routes(service, {"path_separated_prefix": path}, path)
        named = f"(default/)?{re.escape(service.name)}" if service.namespace == "default" else re.escape(service.key)
        by_header += _routes(service, {"prefix": "/", "headers": [_matches(SERVICE_HEADER, named)]})
    unknown = {"match": {"prefix": "/"}, "direct_response": _says(404, _UNKNOWN)}
    return {
        "@type": f"{TYPE}envoy.config.route.v3.RouteConfiguration",
        "name": "main",
        # headers first: a service's own port sets them, and has no prefix
        "virtual_hosts": [*hosts.values(), _virtual_host("shared", "*", [*by_header, *by_path, unknown])],
        "ignore_port_in_host_matching": True,
        "response_headers_to_remove": [NOT_SENT],
    }


def _routes(service: ServiceRoutes, match: Document, prefix: str = "") -> Iterator[Document]:
    """The routes of one service for one way to name it, in the order in which Envoy tries them; `prefix` is taken away."""
    for headers, weights in _choices(service):
        both = {**match, "headers": [*match.get("headers", []), *headers]} if headers else match
        serving = [(b, w) for b, w in weights or () if w and b.endpoints]
        if weights is None:
            yield _route(service, both, {"direct_response": _says(404, _no_such_revision(service))})
        elif not serving:
            yield _route(service, both, {"direct_response": _says(503, f"{service.key} has no predictor that is ready")})
        else:
            # what gRPC asks for is in its path, and no path of ours
            for protocol in (HTTP,) if prefix else (GRPC, HTTP):
                asked = {**both, "grpc": {}} if protocol == GRPC else both
                yield _route(service, asked, {"route": _action(service, serving, protocol, prefix)})


def _choices(service: ServiceRoutes) -> Iterator[tuple[list[Document], list[tuple[Backend, int]] | None]]:
    """(headers to match, backends and weights) from the most special to all other requests; None: there is no such backend."""
    backends = {b.name: b for b in service.backends}
    for route in service.header_routes:
        yield [_is(route.header, route.value)], [(backends[route.backend], 1)] if route.backend in backends else None
    rest = [(b, b.weight) for b in service.backends]
    known = [(backend, f"{re.escape(backend.name)}|{word}") for backend, word in _words(service)]
    if len(known) == 1 and known[0][0].weight:
        yield [{**_matches(REVISION_HEADER, known[0][1]), "invert_match": True, "treat_missing_header_as_empty": False}], None
        yield [], rest
        return
    for backend, pattern in known:
        yield [_matches(REVISION_HEADER, pattern)], [(backend, 1)]
    yield [{"name": REVISION_HEADER, "present_match": True}], None
    yield [], rest


def _words(service: ServiceRoutes) -> Iterator[tuple[Backend, str]]:
    """The backends, each with the word that means it besides its name."""
    for i, backend in enumerate(service.backends):
        yield backend, STABLE if i == 0 else CANDIDATE if i == len(service.backends) - 1 else re.escape(backend.name)


def _no_such_revision(service: ServiceRoutes) -> str:
    names = [b.name for b in service.backends]
    return f"{service.key} has no such revision; {REVISION_HEADER} may be {', '.join([STABLE, CANDIDATE, *names])}"


def _matches(header: str, pattern: str) -> Document:
    return {"name": header, "string_match": {"safe_regex": {"regex": pattern}}}


def _is(header: str, value: str) -> Document:
    return {"name": header, "string_match": {"exact": value}}


def _says(status: int, text: str) -> Document:
    return {"status": status, "body": {"inline_string": text}}


def _route(service: ServiceRoutes, match: Document, rest: Document) -> Document:
    return {"name": service.key, "match": match, **rest}


def _action(service: ServiceRoutes, backends: Iterable[tuple[Backend, int]], protocol: str, prefix: str) -> Document:
    action: Document = {
        "weighted_clusters": {"clusters": [_weighted(service, b, weight, protocol) for b, weight in backends]},
        "timeout": f"{service.timeout:g}s",
        # ends a client that stopped sending; and Envoy starts no clock for `timeout` where the first attempt fails before the
        # whole body is there, so this ends such a request, too
        "idle_timeout": f"{max(service.timeout + 0.25, 5.0):g}s" if service.timeout else "0s",
    }
    if prefix:
        action["regex_rewrite"] = {"pattern": {"regex": f"^{re.escape(prefix)}/?"}, "substitution": "/"}
    mirror = service.mirror
    if mirror and mirror.percent and any(b.name == mirror.backend and b.endpoints for b in service.backends):
        action["request_mirror_policies"] = [
            {
                "cluster": _mirror_name(service, mirror.backend, protocol),
                "runtime_fraction": {"default_value": {"numerator": mirror.percent, "denominator": "HUNDRED"}},
                "disable_shadow_host_suffix_append": True,
            }
        ]
    return action


def _weighted(service: ServiceRoutes, backend: Backend, weight: int, protocol: str) -> Document:
    name = cluster_name(service, backend.name, protocol)
    return {
        "name": name,
        "weight": weight,
        "request_headers_to_add": [set_header(FOR_CLUSTER, name), set_header(HELD_BY, _hold_name(service))],
        "response_headers_to_add": [set_header(REVISION_HEADER, backend.name)],
    }


_RETRY = {
    # 503 and UNAVAILABLE: a predictor that loads its model or is about to end says so before it has done anything
    "retry_on": "connect-failure,refused-stream,reset-before-request,reset,retriable-status-codes,unavailable",
    "retriable_status_codes": [503],
    "num_retries": RETRIES,
    "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.1s"},
    # one attempt at an endpoint, all others by way of `hold`, where none is spent on an endpoint that is not there
    "retry_priority": extension(
        "envoy.retry_priorities.previous_priorities",
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        update_frequency=1,
    ),
}
