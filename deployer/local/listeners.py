"""Envoy's listeners and what belongs to connections: limits, access log, the form of Envoy's own answers.  Pure.

`hold` and `try` are listeners inside Envoy; what they are for stands in `envoy.py`.
"""

from pathlib import Path
from typing import Any

Document = dict[str, Any]

# What is kept of a request's body to send it again.
KEPT_BODY_BYTES = 4 << 20
# Between the listeners inside Envoy: which cluster a held request is for, who counts it, and that nobody has seen it.
FOR_CLUSTER, HELD_BY, NOT_SENT = "x-serve-cluster", "x-serve-hold", "x-serve-not-sent"
TYPE = "type.googleapis.com/"

HTTP2 = {"max_concurrent_streams": 10_000, "initial_stream_window_size": 1 << 20, "initial_connection_window_size": 16 << 20}


def source(directory: Path, file: str) -> Document:
    return {"path_config_source": {"path": str(directory / file)}, "resource_api_version": "V3"}


def extension(name: str, kind: str, **fields: Any) -> Document:
    return {"name": name, "typed_config": {"@type": TYPE + kind, **fields}}


def listener(name: str, host: str, port: int, routes: Document, log_file: Path, header: Document | None = None) -> Document:
    """One address that clients know; `routes` is where its routes come from, `header` is set in each request before them."""
    log = extension(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=str(log_file),
        log_format={"json_format": _ACCESS_LOG},
    )
    connection = _connection(
        "clients",
        rds={"route_config_name": "main", "config_source": routes},
        early_header_mutation_extensions=[_set_early(header)] if header else [],
        # an edge's: what a client says with x-envoy-… is not obeyed
        use_remote_address=True,
        skip_xff_append=True,
        internal_address_config={"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        preserve_external_request_id=True,
        normalize_path=True,
        request_headers_timeout="10s",
        access_log=[log],
        local_reply_config=_local_replies(),
    )
    return {
        "@type": f"{TYPE}envoy.config.listener.v3.Listener",
        "name": name,
        "address": {"socket_address": {"address": host, "port_value": port}},
        # with it, two processes of one user would get half of the requests each, and neither would know
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [connection]}],
    }


def _set_early(header: Document) -> Document:
    kind = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return extension("envoy.http.early_header_mutation.header_mutation", kind, mutations=[{"append": header}])


def _connection(statistics: str, **fields: Any) -> Document:
    router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True)
    return extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=statistics,
        http_filters=[router],
        common_http_protocol_options={"idle_timeout": "3600s", "headers_with_underscores_action": "ALLOW"},
        http_protocol_options={"accept_http_10": True},
        http2_protocol_options=HTTP2,
        server_header_transformation="PASS_THROUGH",
        **fields,
    )


def hold_listener() -> Document:
    """Asks `try` until something was sent to an endpoint, at first after milliseconds, later about four times a second."""
    again = {
        "retry_on": "retriable-headers",
        "retriable_headers": [{"name": NOT_SENT, "present_match": True}],
        "num_retries": 1_000_000,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.5s"},
    }
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster_header": HELD_BY, "timeout": "0s", "idle_timeout": "0s", "retry_policy": again},
        "request_body_buffer_limit": KEPT_BODY_BYTES,
    }
    return _inside("hold", route, _local_replies())


def try_listener() -> Document:
    """Hands a request to a healthy endpoint, once, and marks the answer where there was none to hand it to."""
    to_endpoints = {"filter_metadata": {"envoy.lb": {"held": False}}}
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster_header": FOR_CLUSTER, "metadata_match": to_endpoints, "timeout": "0s", "idle_timeout": "0s"},
    }
    # no healthy endpoint, no connection, no such cluster (yet): nothing has been sent
    not_sent = {"response_flag_filter": {"flags": ["UH", "UF", "NC"]}}
    mark = {"filter": not_sent, "headers_to_add": [set_header(NOT_SENT, "1"), set_header("retry-after", "1")]}
    return _inside("try", route, _local_replies(mark))


def _inside(name: str, route: Document, replies: Document) -> Document:
    host = {"name": name, "domains": ["*"], "routes": [route]}
    connection = _connection(
        name,
        route_config={"name": name, "virtual_hosts": [host]},
        generate_request_id=False,
        stream_idle_timeout="0s",
        local_reply_config=replies,
    )
    return {"name": name, "internal_listener": {}, "filter_chains": [{"filters": [connection]}]}


_ACCESS_LOG = {
    "time": "%START_TIME%",
    "service": "%ROUTE_NAME%",
    "backend": "%UPSTREAM_CLUSTER%",
    "endpoint": "%UPSTREAM_HOST%",
    "method": "%REQ(:METHOD)%",
    "host": "%REQ(:AUTHORITY)%",
    "path": "%PATH(NQ)%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS%",
    "milliseconds": "%DURATION%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "flags": "%RESPONSE_FLAGS%",
    "why": "%RESPONSE_CODE_DETAILS%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
    "request_id": "%REQ(X-REQUEST-ID)%",
}


def _local_replies(*first: Document) -> Document:
    """The form of what Envoy itself answers: `{"error": …}`, plain text over gRPC, and when to come back after a 503."""
    plain = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}}
    is_grpc = {"header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}}
    ended = {"response_flag_filter": {"flags": ["UC", "UR", "LR"]}}
    mappers: list[Document] = []
    for mapper in (
        *first,
        {
            "filter": ended,
            "body": {"inline_string": "the predictor ended before it had answered"},
            "headers_to_add": [set_header("retry-after", "1")],
        },
        {
            "filter": _status(504),
            "body": {"inline_string": "no answer within the service's timeout"},
        },
        {
            # the body did not fit into what is kept to send it again
            "filter": _status(507),
            "status_code": 503,
            "body": {"inline_string": "no predictor is ready, and the body is too large to be kept until one is"},
            "headers_to_add": [set_header("retry-after", "1")],
        },
        {"filter": _status(503), "headers_to_add": [set_header("retry-after", "1")]},
        {"filter": _status(0, "GE")},
    ):
        both = {"and_filter": {"filters": [is_grpc, mapper["filter"]]}}
        mappers += [{**mapper, "filter": both, "body_format_override": plain}, mapper]
    return {"mappers": mappers, "body_format": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}}


def _status(code: int, operator: str = "EQ") -> Document:
    return {"status_code_filter": {"comparison": {"op": operator, "value": {"default_value": code, "runtime_key": "serve.none"}}}}


def set_header(name: str, value: str) -> Document:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
