"""What several verbs take: their options, the client they talk to, and the manifests that -f names."""

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deployer import spec
from deployer.cli.output import Form, say
from deployer.client import Client
from deployer.errors import SpecError
from deployer.local import state
from deployer.local.client import LocalClient


class Where(StrEnum):
    local = "local"
    kubernetes = "kubernetes"


def seconds(text: str | float) -> float:
    """ "30", "30s", "2m", "1h" in seconds; typer.BadParameter for anything else, and for what is no time to wait."""
    if isinstance(text, float):  # a default
        return text
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number = text[:-1] if text[-1:] in units else text
    try:
        found = float(number) * units.get(text[-1:], 1.0)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise typer.BadParameter(f"{text!r} is no time; write 30s, 2m or 1h")
    return found


Namespace = Annotated[
    str,
    typer.Option("--namespace", "-n", help="The services' namespace; by default the context's, or default.", show_default=False),
]
Output = Annotated[Form, typer.Option("--output", "-o", help="What is printed on stdout.")]
TargetOption = Annotated[Where, typer.Option("--target", envvar="SERVE_TARGET", help="Where it runs.")]
Context = Annotated[
    str, typer.Option("--context", help="A context of the kubeconfig, with --target kubernetes.", show_default=False)
]
Gateway = Annotated[
    str,
    typer.Option(
        "--gateway",
        envvar="SERVE_GATEWAY",
        metavar="URL",
        help="The cluster's ingress, such as http://10.0.0.7; by default requests go through the API server.",
        show_default=False,
    ),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is Ready.")]
Timeout = Annotated[float, typer.Option("--timeout", parser=seconds, metavar="TIME", help="How long to wait: 30s, 5m.")]
Service = Annotated[str, typer.Argument(metavar="NAME", help="The service's name.", show_default=False)]
Files = Annotated[
    list[str], typer.Option("--filename", "-f", help="A manifest, a folder of them, or - for stdin.", show_default=False)
]


def client_for(target: Where, context: str = "", gateway: str = "") -> Client:
    if target is Where.kubernetes:
        if gateway and not gateway.startswith(("http://", "https://")):
            raise typer.BadParameter(f"found {gateway!r}, wanted a URL: write http://{gateway}", param_hint="--gateway")
        # not for those who stay on this machine: the libraries for a cluster take their time
        from deployer.kubernetes.client import ClusterClient

        return ClusterClient(context, gateway)
    for flag, value in (("--context", context), ("--gateway", gateway)):
        if value:
            raise typer.BadParameter("there is none on this machine; it goes with --target kubernetes", param_hint=flag)
    return LocalClient(state.find(), lambda text: say(text, "dim"))


def documents(name: str) -> list[dict[str, Any]]:
    if name == "-":
        return spec.documents(sys.stdin.read(), "stdin")
    path = Path(name)
    files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json")) if path.is_dir() else [path]
    found: list[dict[str, Any]] = []
    for one in files:
        try:
            found += spec.documents(one.read_text(), str(one))
        except OSError as error:
            raise SpecError([spec.Mistake(str(one), f"can't be read: {error.strerror}")]) from None
        except UnicodeDecodeError:
            raise SpecError([spec.Mistake(str(one), "is no manifest: it is not text in UTF-8")]) from None
    return found


def is_runtime(raw: dict[str, Any]) -> bool:
    return raw.get("kind") in ("ServingRuntime", "ClusterServingRuntime")


def placed(raw: dict[str, Any], namespace: str) -> dict[str, Any]:
    meta = raw.get("metadata")
    return {**raw, "metadata": {"namespace": namespace, **meta}} if isinstance(meta, dict) else raw
