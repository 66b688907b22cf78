"""What a predictor says on stdout once it is ready: one JSON line for programs, or a page for a person."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from server.settings import Settings

if TYPE_CHECKING:  # the parent of several workers says this too, and needs no numpy
    from server.models import ModelHandle


def _reachable(host: str) -> str:
    """An address that a client on this machine can use for what we listen on."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def facts(
    settings: Settings,
    handle: "ModelHandle",
    http_port: int,
    grpc_port: int,
    curl: "Callable[[ModelHandle, str], str]",
    models: list[dict[str, Any]],
) -> dict[str, Any]:
    """What a program is told: of one model that is ready, and of all `models` how they are.

    `curl` makes a request to paste, and is null for a model that declares no inputs.
    """
    host, signature = _reachable(settings.host), handle.signature
    address = f"http://{host}:{http_port}{settings.root_path}"
    return {
        "name": handle.name,
        "runtime": handle.runtime.platform.split("_")[0],
        "platform": handle.runtime.platform,
        "http": address,
        "grpc": f"{host}:{grpc_port}" if grpc_port else None,
        "docs": f"{address}/docs" if settings.enable_docs_url else None,
        "inputs": [i.as_json() for i in signature.inputs],
        "outputs": [o.as_json() for o in signature.outputs],
        "default_outputs": list(signature.defaults),
        "curl": curl(handle, address) if signature.inputs else None,
        "warnings": list(handle.runtime.warnings),
        "models": models,
    }


def ready_line(told: dict[str, Any]) -> bytes:
    return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)


def page(told: dict[str, Any], workers: int = 1) -> bytes:
    """The same for a person: what goes in, what comes out, and a request to paste."""
    by = f", {workers} workers" if workers > 1 else ""
    lines = ["", f"  {told['name']} is ready ({told['platform']}{by})", "", *_models(told["models"])]
    lines += _table("inputs", told["inputs"]) + _table("outputs", told["outputs"], told["default_outputs"])
    lines += [f"  HTTP     {told['http']}" + (f"   with a page for browsers; docs {told['docs']}" if told["docs"] else "")]
    lines += [f"  gRPC     {told['grpc']}"] if told["grpc"] else []
    if told["curl"]:
        lines += ["", "  Try it:", "", f"  {told['curl']}"]
    else:
        lines += ["", "  The class declares no `inputs`, so there is no request to show; it takes tensors of any name."]
    return "\n".join([*lines, "", "  Ctrl-C stops it.", "", ""]).encode()


def _models(models: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each model where there are several, or versions, and for each that is not ready why."""
    lines: list[str] = []
    for model in models:
        ready = [v["version"] for v in model["versions"] if v["state"] == "READY"]
        labels = [f"{label}={version}" for label, version in model["labels"].items()]
        numbers = "  ".join(filter(None, [", ".join(filter(None, ready)), *labels]))
        lines.append(f"  {'' if lines else 'models':8} {model['name']}  {numbers or ('ready' if ready else 'not ready')}")
        failed = [v for v in model["versions"] if v["reason"]]
        lines += [f"  {'':8}   {v['version'] or model['name']}: {v['reason']}" for v in failed]
    alone = len(models) == 1 and [v["version"] for v in models[0]["versions"]] == [""]
    return [] if alone else [*lines, ""]


def _table(title: str, specs: Sequence[dict[str, Any]], defaults: Sequence[str] = ()) -> list[str]:
    width = max((len(s["name"]) for s in specs), default=0)
    rows = []
    for at, spec in enumerate(specs):
        asked = "   when asked for" if defaults and spec["name"] not in defaults else ""
        shape = f"[{', '.join('rows' if i == 0 and n == -1 else str(n) for i, n in enumerate(spec['shape']))}]"
        rows.append(f"  {title if not at else '':8} {spec['name']:{width}}  {spec['datatype']} {shape}{asked}")
    return [*rows, ""] if rows else []


def own_stdout() -> BinaryIO:
    """stdout for the announcement alone: what models and frameworks print from here on goes to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(stdout, "wb")


def ready(out: BinaryIO, output: str, told: dict[str, Any], workers: int = 1) -> None:
    """Write it in the form that was asked for."""
    if output != "none":
        out.write(ready_line(told) if output == "json" else page(told, workers))
    out.flush()
