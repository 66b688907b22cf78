"""What a predictor says on stdout once it is ready: one JSON line for programs, or a page for a person."""

import os
import sys
from collections.abc import Sequence
from typing import BinaryIO

import orjson

from server.example import curl
from server.models import ModelHandle
from server.settings import Settings
from server.tensors import TensorSpec


def _reachable(host: str) -> str:
    """An address that a client on this machine can use for what we listen on."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def ready_line(settings: Settings, handle: ModelHandle, http_port: int, grpc_port: int) -> bytes:
    """name, runtime, http, grpc, inputs, outputs as one line of JSON."""
    host, signature = _reachable(settings.host), handle.signature
    return orjson.dumps(
        {
            "name": handle.name,
            "runtime": handle.runtime.platform.split("_")[0],
            "platform": handle.runtime.platform,
            "http": f"http://{host}:{http_port}{settings.root_path}",
            "grpc": f"{host}:{grpc_port}" if grpc_port else None,
            "inputs": [i.as_json() for i in signature.inputs],
            "outputs": [o.as_json() for o in signature.outputs],
            "warnings": list(handle.runtime.warnings),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def page(settings: Settings, handle: ModelHandle, http_port: int, grpc_port: int) -> str:
    """The same for a person: what goes in, what comes out, and a request to paste."""
    host, signature = _reachable(settings.host), handle.signature
    address = f"http://{host}:{http_port}{settings.root_path}"
    lines = [f"\n  {handle.name} is ready ({handle.runtime.platform})\n"]
    lines += _table("inputs", signature.inputs) + _table("outputs", signature.outputs, signature.defaults)
    lines += [f"  HTTP     {address}" + (f"   docs {address}/docs" if settings.enable_docs_url else "")]
    lines += [f"  gRPC     {host}:{grpc_port}"] if grpc_port else []
    lines += ["", "  Try it:", "", f"  {curl(handle, address)}", "", "  Ctrl-C stops it.", ""]
    return "\n".join(lines)


def _table(title: str, specs: Sequence[TensorSpec], defaults: Sequence[str] = ()) -> list[str]:
    width = max((len(s.name) for s in specs), default=0)
    rows = []
    for at, spec in enumerate(specs):
        asked = "   when asked for" if defaults and spec.name not in defaults else ""
        shape = f"[{', '.join('rows' if i == 0 and n == -1 else str(n) for i, n in enumerate(spec.shape))}]"
        rows.append(f"  {title if not at else '':8} {spec.name:{width}}  {spec.datatype} {shape}{asked}")
    return [*rows, ""]


def own_stdout() -> BinaryIO:
    """stdout for the announcement alone: what models and frameworks print from here on goes to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(stdout, "wb")


def ready(out: BinaryIO, settings: Settings, handle: ModelHandle, http_port: int, grpc_port: int) -> None:
    if settings.output == "json":
        out.write(ready_line(settings, handle, http_port, grpc_port))
    elif settings.output == "text":
        out.write(page(settings, handle, http_port, grpc_port).encode() + b"\n")
    out.flush()
