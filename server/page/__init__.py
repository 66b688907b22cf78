"""The page at `/` for a person with a browser: what is served, a form that sends real requests, and live figures.

Its sources lie beside this file as they are written, and are put into one document, which asks nobody but its own server and
for nothing but what programs ask for: the page and its script are always of one version, wherever a canary sends the next
request, and no path in front of it has to be known.  What a model calls itself is never in that document: its script fetches
names as JSON, and shows them as text.
"""

import asyncio
import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from server.example import v2_request
from server.life import VERSION, Life
from server.models import ModelHandle, Registry, Version, facts
from server.tensors import Signature, TensorSpec

_FOLDER = Path(__file__).parent
# one scope, in the order in which one builds on another
_SCRIPTS = ("element.js", "values.js", "figures.js", "charts.js", "form.js", "answer.js", "main.js")


def is_wanted(accept: str) -> bool:
    """Whether a client that sends this `Accept` is a browser that shows pages: HTML by name, which `*/*` is not."""
    media, _, quality = next((a for a in accept.lower().split(",") if a.strip().startswith("text/html")), "").partition(";q=")
    return bool(media) and quality.strip() not in ("0", "0.0", "0.00", "0.000")


@cache
def _document() -> tuple[bytes, dict[str, str]]:
    """The page and its headers, which let its own script and style run and no other, by their hashes."""
    style = (_FOLDER / "page.css").read_text()
    script = "\n".join((_FOLDER / name).read_text() for name in _SCRIPTS)
    html = (_FOLDER / "page.html").read_text().replace("/* page.css */", style).replace("/* the scripts */", script)
    allowed = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "content-security-policy": "; ".join(f"{what} {whence}" for what, whence in allowed.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "vary": "accept",
    }
    return html.encode(), headers


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def answer() -> Response:
    html, headers = _document()
    return Response(html, media_type="text/html", headers=headers)


def add_routes(api: FastAPI, registry: Registry, life: Life) -> None:
    """What the page's script asks for beyond what any client may: all models at once, and a request to begin with."""

    @api.get("/page/models", include_in_schema=False)
    async def models() -> Response:
        return _json(describe(registry, life))

    @api.get("/page/sample", include_in_schema=False)
    async def sample(request: Request) -> Response:
        asked = request.query_params
        handle = registry.ready(asked.get("model", ""), asked.get("version", ""))
        signature = handle.signature_for(None, asked.get("signature"))
        # an image is a million numbers, and a class of somebody's may take its time
        return _json(await asyncio.to_thread(_sample, handle, signature))


def describe(registry: Registry, life: Life) -> dict[str, Any]:
    """What is served now, ready or not."""
    return {
        "version": VERSION,
        "ready": life.is_ready(),
        "models": [_model(version) for version in registry.all_versions()],
    }


def _model(version: Version) -> dict[str, Any]:
    known = {"name": version.name, "version": version.version, "state": version.state, "reason": version.reason}
    handle = version.handle
    if handle is None:
        return known
    properties = facts(handle)
    del properties["signatures"]
    return {
        **known,
        "runtime": properties.pop("runtime"),
        "batching": properties.pop("batching"),
        "properties": properties,
        "signatures": [_signature(signature) for signature in handle.runtime.signatures],
    }


def _signature(signature: Signature) -> dict[str, Any]:
    return {
        "name": signature.name,
        "batched": signature.batched,
        "inputs": [_input(spec) for spec in signature.inputs],
        "outputs": [spec.as_json() for spec in signature.outputs],
        "defaults": list(signature.defaults),
    }


def _input(spec: TensorSpec) -> dict[str, Any]:
    return {**spec.as_json(), "optional": spec.optional, "nullable": spec.nullable}


def _sample(handle: ModelHandle, signature: Signature) -> dict[str, Any]:
    """`inputs` as V2 has them, of one made-up row; none, and why, where a model's own samples fail."""
    try:
        return v2_request(handle, signature=signature)
    except Exception as error:
        return {"inputs": [], "reason": f"no sample could be made: {type(error).__name__}: {error}"[:300]}


def _json(document: object) -> Response:
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
