"""TensorFlow Serving's routes but for `:predict`: status, metadata, classify and regress, for versions and labels too.

KServe's V1 clients ask for the same status, so one answer is for both.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from server import classify, docs
from server.batcher import aside
from server.errors import ServingError
from server.inference import Asked, Inference
from server.models import State
from server.protocols import tfs, tfs_rest

PROTOCOL = "tfs"
# The whole body of a request, within the limits of size and time.
Read = Callable[[Request], Awaitable[bytes]]
_MODEL = "/v1/models/{model}"
_WHICH = {"": False, "/versions/{version}": False, "/labels/{version}": True}
# TensorFlow Serving matches its paths whatever the case of their letters.
_PATH = re.compile(r"(?i)(/v1/models/)([^/]+?)(/versions/|/labels/)?((?(3)[^/]+?))(/metadata|:(?:predict|classify|regress))?")


def canonical(path: str) -> str:
    """A path of TensorFlow Serving's with its own words in lower case, names as they are; other paths as they are."""
    found = _PATH.fullmatch(path)
    if found is None:
        return path
    models, model, kind, version, method = found.groups(default="")
    return f"{models.lower()}{model}{kind.lower()}{version}{method.lower()}"


def add(api: FastAPI, inference: Inference, read: Read) -> None:
    for which, by_label in _WHICH.items():
        _add_telling(api, inference, which, by_label)
        for name, method in (("classify", tfs.CLASSIFY), ("regress", tfs.REGRESS)):
            _add_method(api, inference, read, f"{_MODEL}{which}:{name}", method, by_label)


def _add_telling(api: FastAPI, inference: Inference, which: str, by_label: bool) -> None:
    registry, shown = inference.registry, not which

    # without these, GET …/models/m:predict would ask about a model "m:predict"
    for name in ("predict", "classify", "regress"):
        api.add_api_route(f"{_MODEL}{which}:{name}", not_post, methods=["GET", "PUT", "DELETE", "PATCH"], include_in_schema=False)

    @api.get(f"{_MODEL}{which}/metadata", tags=["models"], responses=docs.ERRORS, include_in_schema=shown)
    async def metadata(request: Request, model: str) -> Response:
        asked = _asked(request, model, by_label)
        try:
            handle = classify.ready(registry, asked)
        except ServingError as error:
            raise _worded(inference, asked, error) from error
        return docs.answer(tfs_rest.metadata(handle.name, handle.version, handle.runtime.signatures))

    @api.get(f"{_MODEL}{which}", tags=["models"], responses=docs.READINESS, include_in_schema=shown)
    async def status(request: Request, model: str) -> Response:
        asked = _asked(request, model, by_label)
        try:
            parts = classify.parts(registry, asked)
            is_ready = classify.found(registry, asked).state is State.READY
        except ServingError as error:
            raise _worded(inference, asked, error) from error
        # TensorFlow Serving's own is 200 whatever the state, and KServe's clients go by this one
        return docs.answer(tfs_rest.status(model, is_ready, parts), 200 if is_ready else 503)


async def not_post() -> Response:
    raise HTTPException(405, headers={"Allow": "POST"})


def _add_method(api: FastAPI, inference: Inference, read: Read, path: str, method: str, by_label: bool) -> None:
    settings, name = inference.settings, method.rpartition("/")[2]
    told: Any = tfs_rest.classified if method == tfs.CLASSIFY else tfs_rest.regressed

    @api.post(
        path,
        tags=["inference"],
        responses=docs.INFER_ANSWERS,
        openapi_extra=docs.EXAMPLES_BODY,
        include_in_schema="{version}" not in path,
    )
    async def answer(request: Request, model: str) -> Response:
        asked = _asked(request, model, by_label)
        head = Asked.of((PROTOCOL, model, asked.version), request.url.path, dict(request.headers))
        with inference.recorded(PROTOCOL, name, head.path, head.request_id, model, over_http=True) as entry:
            try:
                if head.wrong is not None:
                    raise head.wrong
                handle = classify.ready(inference.registry, asked)
                body = await read(request)
                entry.bytes_in = len(body)
                if head.encoding:
                    body = await inference.decompressed(body, head.encoding)
                sent = await aside(inference.executor, len(body), tfs_rest.rows, body)
                given = classify.Given(sent.examples, sent.signature_name, head.timeout, len(body))
                found = await classify.METHODS[method](inference, handle, given, entry)
            except ServingError as error:
                raise _worded(inference, asked, error) from error
            text = await aside(inference.executor, len(body), told, found.told, settings.strict_json)
            entry.bytes_out = len(text)
            return Response(text, media_type="application/json", headers={"x-request-id": entry.request_id})


def _asked(request: Request, model: str, by_label: bool) -> tfs.Asked:
    return tfs.Asked(model, request.path_params.get("version", ""), "", by_label)


def _worded(inference: Inference, asked: tfs.Asked, error: ServingError) -> ServingError:
    return tfs.worded(error, asked, asked.model in inference.registry.names())
