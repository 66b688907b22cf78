"""What several verbs take: their options, the client they talk to, and the manifests that -f names."""

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deployer import spec
from deployer.cli.output import Form, say
from deployer.errors import DeployerError, SpecError
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


Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The services' namespace.")]
Output = Annotated[Form, typer.Option("--output", "-o", help="What is printed on stdout.")]
TargetOption = Annotated[Where, typer.Option("--target", help="Where it runs.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is Ready.")]
Timeout = Annotated[float, typer.Option("--timeout", parser=seconds, metavar="TIME", help="How long to wait: 30s, 5m.")]
Service = Annotated[str, typer.Argument(metavar="NAME", help="The service's name.", show_default=False)]
Files = Annotated[
    list[str], typer.Option("--filename", "-f", help="A manifest, a folder of them, or - for stdin.", show_default=False)
]


def client_for(target: Where) -> LocalClient:
    if target is Where.kubernetes:
        raise DeployerError("--target kubernetes is not built yet; without it the service runs on this machine")
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
