"""`serve loadtest`: load on a service, by users of every protocol or at a constant rate, with a verdict as the exit code."""

import json
import math
import subprocess
import sys
import tempfile
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from deployer.cli.looking import example_request
from deployer.cli.options import Context, Gateway, Namespace, Service, TargetOption, Where, client_for, seconds
from deployer.cli.output import errors, say
from deployer.client import Endpoints
from deployer.errors import DeployerError


class Protocol(StrEnum):
    v1 = "v1"
    v2 = "v2"
    v2_binary = "v2-binary"
    grpc = "grpc"
    tfs = "tfs"
    tfs_grpc = "tfs-grpc"


class Shape(StrEnum):
    constant = "constant"
    steps = "steps"
    spike = "spike"
    soak = "soak"


USERS = {
    Protocol.v1: "V1User",
    Protocol.v2: "V2User",
    Protocol.v2_binary: "V2BinaryUser",
    Protocol.grpc: "GrpcUser",
    Protocol.tfs: "TfsUser",
    Protocol.tfs_grpc: "TfsGrpcUser",
}


def loadtest(
    name: Service,
    users: Annotated[int, typer.Option(min=1, help="Users at the most; each waits for its answer before it asks again.")] = 8,
    duration: Annotated[float, typer.Option(parser=seconds, metavar="TIME", help="How long: 30s, 5m.")] = 30.0,
    protocol: Annotated[
        list[Protocol] | None, typer.Option(help="Several times for several; by default all.", show_default=False)
    ] = None,
    load: Annotated[Shape, typer.Option(help="How the number of users goes.")] = Shape.constant,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Requests a second, come what may, instead of users: for latency at a rate.", show_default=False
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each request.")] = 1,
    p99: Annotated[float | None, typer.Option(help="Milliseconds that 99 % have to be answered in.", show_default=False)] = None,
    max_failures: Annotated[float, typer.Option(min=0, max=1, help="The share of requests that may fail.")] = 0.0,
    min_rate: Annotated[float | None, typer.Option(help="Requests a second that there have to be.", show_default=False)] = None,
    report: Annotated[
        Path | None, typer.Option(help="An HTML page with charts; by default loadtest-NAME.html.", show_default=False)
    ] = None,
    namespace: Namespace = "",
    target: TargetOption = Where.local,
    context: Context = "",
    gateway: Gateway = "",
) -> None:
    """Put load on a service; exit 1 where it fails, or is slower than was asked for."""
    with errors():
        page = report or Path(f"loadtest-{name}.html")
        if not page.absolute().parent.is_dir():
            raise DeployerError(f"--report: there is no folder {page.absolute().parent}")
        client = client_for(target, context, gateway)
        service = client.get(namespace or client.namespace, name)
        ends = client.endpoints(service)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as example:
            json.dump(example_request(client, service), example)
            example.flush()
            ask = (
                _by_users(ends, name, users, duration, protocol or [], load)
                if rate is None
                else _at_rate(ends, name, rate, duration, protocol or [])
            )
            ask += ["--rows", str(rows), "--max-failures", str(max_failures), "--html", str(page), "--example", example.name]
            ask += [part for key, value in ends.headers.items() for part in ("--header", f"{key}: {value}")]
            for flag, limit in (("--p99", p99), ("--min-rate", min_rate)):
                ask += [] if limit is None else [flag, str(limit)]
            code = subprocess.run([sys.executable, "-P", *ask], check=False).returncode
        say(f"report: {page}", "dim")
        if code:
            raise typer.Exit(1)


def _by_users(ends: Endpoints, name: str, users: int, duration: float, protocols: list[Protocol], load: Shape) -> list[str]:
    if find_spec("locust") is None or find_spec("tritonclient") is None:
        raise DeployerError(
            "locust is not installed; run: pip install locust 'tritonclient[grpc]' (here: scripts/install loadtests)"
        )
    url = urlsplit(ends.url)
    command = ["-m", "locust", "-f", str(_folder() / "locustfile.py"), "--headless", "--only-summary", "--load", load]
    command += ["-u", str(users), "-t", f"{math.ceil(duration)}s", "--host", f"{url.scheme}://{url.netloc}", "--prefix", url.path]
    return [*command, "--grpc-host", ends.grpc, "--model", name, *(USERS[one] for one in protocols)]


def _at_rate(ends: Endpoints, name: str, rate: float, duration: float, protocols: list[Protocol]) -> list[str]:
    protocol, *more = protocols or [Protocol.v2]
    if more or protocol in (Protocol.grpc, Protocol.tfs_grpc):
        raise typer.BadParameter(
            "at a rate one of v1, v2, v2-binary, tfs; gRPC is asked by users, without --rate", param_hint="--protocol"
        )
    return ["-m", "loadtests.rate", ends.url, name, "--rate", str(rate), "--seconds", str(duration), "--protocol", protocol]


def _folder() -> Path:
    found = find_spec("loadtests")
    if found is None or not found.submodule_search_locations:
        raise DeployerError("this installation has no load tests; install serveplane from its wheel or from a checkout")
    return Path(found.submodule_search_locations[0])
