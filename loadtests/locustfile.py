"""Closed-loop load on a model, over every protocol it has, with a verdict.

    locust -f loadtests/locustfile.py --headless -u 8 -t 30s --host http://127.0.0.1:8080 --model iris --grpc-host 127.0.0.1:8081
    locust -f loadtests/locustfile.py … V2User GrpcUser          only these protocols

Each user sends its next request when it has the answer to the one before, so a slow server is asked less: `openloop` is for
latency at a rate.  The model's own metadata says what a request looks like.  `serve loadtest NAME` runs this.
"""

import logging

from locust import LoadTestShape, events

from loadtests import payloads, users
from loadtests.shapes import KINDS, Load, users_at
from loadtests.verdict import Figures, Limits, shortcomings

log = logging.getLogger("loadtest")
POOL = 64
"""Different requests that a user goes through."""


class V1User(users.HttpUser):
    protocol = "v1"


class V2User(users.HttpUser):
    protocol = "v2"


class V2BinaryUser(users.HttpUser):
    protocol = "v2-binary"


class GrpcUser(users.GrpcUser):
    pass


class TfsUser(users.HttpUser):
    protocol = "tfs"


class TfsGrpcUser(users.GrpcUser):
    protocol = "tfs-grpc"


class Shape(LoadTestShape):
    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        wanted = users_at(Load(options.load, options.num_users or 1, options.run_time or float("inf")), self.get_run_time())
        return None if wanted is None else (wanted, max(wanted, 1))


@events.init_command_line_parser.add_listener
def _options(parser) -> None:
    add = parser.add_argument_group("the model and what is wanted").add_argument
    add("--model", default="", help="the model's name")
    add("--grpc-host", default="", help="host:port of gRPC; without it no user speaks gRPC")
    add("--prefix", default="", help="the path under which the service is")
    add("--header", action="append", default=[], help="NAME: VALUE, with every request; several times")
    add("--rows", type=int, default=1, help="rows of each request")
    add("--seed", type=int, default=7, help="of the requests' values")
    add("--load", choices=KINDS, default="constant", help="how the number of users goes")
    add("--example", default="", help="a file with a V2 request that the model takes: where its texts are from")
    add("--p99", type=float, help="milliseconds within which 99 %% have to be answered")
    add("--max-failures", type=float, default=0.0, help="the share of requests that may fail")
    add("--min-rate", type=float, help="requests a second that there have to be")


@events.init.add_listener
def _prepare(environment, **_) -> None:
    options = environment.parsed_options
    if not options.model:
        raise SystemExit("locust: which model? --model NAME")
    headers = payloads.read_headers(options.header)
    try:
        signature = payloads.ask_signature(options.host + options.prefix, options.model, headers, options.example)
    except payloads.Unusable as error:
        raise SystemExit(f"locust: {error}") from None
    pool = payloads.pool(signature, POOL, options.rows, options.seed)
    lower = {name.lower(): value for name, value in headers.items()}
    kept = [one for one in environment.user_classes if issubclass(one, users.HttpUser) or options.grpc_host]
    others = [one for one in kept if not one.protocol.startswith("tfs")]
    if others and len(others) < len(kept) and not payloads.speaks_tfs(options.host + options.prefix, options.model, headers):
        log.warning("the service does not speak TensorFlow Serving, so no user does")
        kept = others
    for one in kept:
        one.signature, one.more = signature, headers
        if issubclass(one, users.HttpUser):
            one.prefix = options.prefix
            one.requests = [payloads.BODIES[one.protocol](signature, arrays) for arrays in pool]
        else:
            one.address, one.authority = options.grpc_host, lower.get("host", "")
            one.more = {name: value for name, value in lower.items() if name != "host"}
            one.requests = [users.MESSAGES[one.protocol](signature, arrays) for arrays in pool]
    environment.user_classes = kept


@events.quitting.add_listener
def _judge(environment, **_) -> None:
    options, total = environment.parsed_options, environment.stats.total
    figures = Figures(
        total.num_requests,
        total.num_failures,
        total.total_rps,
        *(float(total.get_response_time_percentile(share) or 0) for share in (0.5, 0.95, 0.99)),
        float(total.max_response_time),
    )
    missed = list(shortcomings(figures, Limits(options.max_failures, options.p99, options.min_rate)))
    for line in missed:
        log.error("falls short: %s", line)
    environment.process_exit_code = 1 if missed else 0
