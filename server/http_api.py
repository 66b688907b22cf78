"""The HTTP edge: routes, headers and bytes.  It decides nothing about models.

`Edge` answers inference routes itself, before any framework; all else (health, metadata, metrics, docs, mistakes) is a
FastAPI application.  Both ways call the same `Inference`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from server import docs, page, routes_repository, routes_tfs, routes_triton
from server.errors import DeadlineExceeded, InvalidRequest, RequestCancelled, RequestTooLarge, ServingError
from server.identity import identified
from server.inference import Answer, Asked, Call, Headers, Inference, error_answer, error_body, too_large
from server.life import EXTENSIONS, PRODUCT, VERSION, Life, index_entry
from server.models import State, Version, facts
from server.protocols import v2_json
from server.repository import Repository

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# After a refusal: how long what the client is still sending is read and dropped, so that it gets to read the answer.
LINGER_SECONDS = 2.0


class Edge:
    """The ASGI application: inference straight away, the rest by FastAPI."""

    def __init__(self, inference: Inference, life: Life, repository: Repository) -> None:
        self.inference, self.life = inference, life
        self._prefix = inference.settings.root_path.rstrip("/")
        self._fallback = create_api(inference, life, repository)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self.life.draining:
            send = _closing(send)
        if self._prefix:
            scope = _without_prefix(scope, self._prefix)
        if scope["method"] == "POST":
            target = inference_target(scope)
            if target is not None:
                answer = await answer_inference(self.inference, *target, scope, receive)
                await _send(send, answer, receive if answer.status == 413 and CLOSE in answer.headers else None)
                return
        elif scope["method"] == "HEAD":
            # the connection knows that it was HEAD, and leaves the body out
            scope = {**scope, "method": "GET"}
        scope = {**scope, "path": routes_tfs.canonical(scope["path"])}
        await self._fallback(scope, receive, _naming(send, scope, self.inference))


def inference_target(scope: Scope) -> tuple[str, str, str] | None:
    """(protocol, model, version or label) of an inference route, None for another path.

    Names are percent-decoded one by one.
    """
    path: str = scope["path"]
    if path.startswith("/v2/models/") and path.endswith("/infer"):
        protocol, prefix, suffix = "v2", "/v2/models/", "/infer"
    elif path.startswith("/v1/models/") and path.endswith(":predict"):
        protocol, prefix, suffix = "v1", "/v1/models/", ":predict"
    else:
        return None
    raw = scope.get("raw_path")
    if raw and b"%" in raw:
        path = raw.decode("latin-1")
        if scope.get("stripped"):
            path = path[scope["stripped"] :]
        path = path.replace("%3A", ":").replace("%3a", ":")
        if not (path.startswith(prefix) and path.endswith(suffix)):
            return None
    model, *rest = path[len(prefix) : -len(suffix)].split("/")
    if not model or not rest:
        return (protocol, unquote(model), "") if model else None
    if len(rest) != 2 or rest[0] not in ("versions", "labels") or not rest[1]:
        return None
    version = unquote(rest[1])
    # a label that could be a version's number is none, and is told so elsewhere
    return None if rest[0] == "labels" and version.isdecimal() else (protocol, unquote(model), version)


def _without_prefix(scope: Scope, prefix: str) -> Scope:
    path: str = scope["path"]
    if path == prefix or path.startswith(prefix + "/"):
        return {**scope, "path": path[len(prefix) :] or "/", "stripped": len(prefix)}
    return scope


CLOSE = (b"connection", b"close")


def _closing(send: Send) -> Send:
    """While draining, every answer asks its client to open a connection elsewhere."""

    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
        await send(message)

    return wrapped


def _naming(send: Send, scope: Scope, inference: Inference) -> Send:
    """Every answer says which request it is of."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")

    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if all(name != b"x-request-id" for name, _ in headers):
                headers.append((b"x-request-id", (identified(given) or inference.new_id()).encode()))
            message = {**message, "headers": headers}
        await send(message)

    return wrapped


async def _send(send: Send, answer: Answer, rest: Receive | None) -> None:
    """Send an answer; `rest` is what the client has still to send, read until it stops or the time is over.

    Closing a connection on a client that is sending resets it, and the client never reads why.
    """
    await send({"type": "http.response.start", "status": answer.status, "headers": _headers(answer)})
    await send({"type": "http.response.body", "body": answer.body, "more_body": rest is not None})
    if rest is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await rest()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})


async def answer_inference(
    inference: Inference, protocol: str, model: str, version: str, scope: Scope, receive: Receive
) -> Answer:
    """Read the body, infer, and stop caring when the client hangs up."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    settings = inference.settings
    call = Call(Asked.of((protocol, model, version), scope["path"], headers))
    try:
        call.body = await read_body(receive, headers, settings.max_body_bytes, settings.receive_timeout)
    except ServingError as error:
        return _identified(closing(inference.refused(call, error)), call)
    if inference.answers_at_once(model, version, len(call.body)):
        answer = await inference.rest(call)
    else:
        answer = await _unless_gone(inference.rest(call), receive)
    return _identified(answer, call)


def _identified(answer: Answer, call: Call) -> Answer:
    header = (b"x-request-id", call.request_id.encode("latin-1", "replace"))
    return answer._replace(headers=[*answer.headers, header])


def _headers(answer: Answer) -> Headers:
    return [*answer.headers, (b"content-length", b"%d" % len(answer.body))]


def closing(answer: Answer) -> Answer:
    """The answer to a request that has not been read to its end, so that the connection can't be used again."""
    return answer._replace(headers=[*answer.headers, CLOSE])


async def read_body(receive: Receive, headers: dict[str, str], limit: int, timeout: float) -> bytes:
    """The whole body, within a size and a time; RequestTooLarge before anything is read where the length says so.

    RequestCancelled where the client closed the connection before the request had come in whole.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large(int(length), limit)
    try:
        async with asyncio.timeout(timeout):
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                body: bytes = message.get("body", b"")
                if len(body) > limit:
                    raise too_large(len(body), limit)
                return body
            parts, size = [], 0
            while True:
                if message["type"] == "http.disconnect":
                    raise RequestCancelled("the client has gone")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise RequestTooLarge(f"the body is more than {limit} bytes, which is the limit (--max_body_bytes)")
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await receive()
    except TimeoutError:
        raise DeadlineExceeded(f"the request's body did not arrive within {timeout:g} s") from None


async def _unless_gone(answering: Any, receive: Receive) -> Answer:
    """The answer, or 499 as soon as the client closes the connection: what it asked for is then not computed."""
    task = asyncio.ensure_future(answering)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        answer: Answer = await task
        return answer
    except asyncio.CancelledError:
        if not watcher.done():  # it is we who are cancelled, not the request
            raise
        return Answer(499, [], b"")
    finally:
        watcher.cancel()


def create_api(inference: Inference, life: Life, repository: Repository) -> FastAPI:
    """Every route that is not an inference, and those too for the fast way switched off and for the OpenAPI page."""
    api = FastAPI(title="Serveplane", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    routes_triton.add_routes(api, inference)
    _add_health(api, inference, life)
    _add_metadata(api, inference)
    _add_inference(api, inference)
    routes_tfs.add(api, inference, lambda r: _whole(r, inference))
    routes_repository.add(api, inference, repository, read_body)
    _add_errors(api)

    @api.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    @api.get("/monitoring/prometheus/metrics", include_in_schema=False)
    async def metrics() -> Response:
        page, content_type = inference.metrics.page(inference.in_flight)
        return Response(page, media_type=content_type)

    if inference.settings.enable_docs_url:
        docs.add_pages(api, inference.registry, inference.settings.root_path.rstrip("/"))
        page.add_routes(api, inference.registry, life)
    return api


async def _whole(request: Request, inference: Inference) -> bytes:
    settings = inference.settings
    return await read_body(request.receive, dict(request.headers), settings.max_body_bytes, settings.receive_timeout)


def _answered(ok: bool, **body: object) -> Response:
    return docs.answer(body, 200 if ok else 503)


def _add_health(api: FastAPI, inference: Inference, life: Life) -> None:
    registry, with_page = inference.registry, inference.settings.enable_docs_url

    @api.get("/", tags=["server"])
    async def root(request: Request) -> Response:
        if with_page and page.is_wanted(request.headers.get("accept", "")):
            return page.answer()
        return docs.answer({"status": "alive"})

    @api.get("/v2/health/live", tags=["health"])
    async def live() -> Response:
        return _answered(True, live=True)

    @api.get("/v2/health/ready", tags=["health"], responses={503: docs.READINESS[503]})
    async def ready() -> Response:
        is_ready = life.is_ready()
        return _answered(is_ready, live=True, ready=is_ready)

    @api.get("/v2/models/{model}/ready", tags=["health"], responses=docs.READINESS)
    async def model_ready(model: str) -> Response:
        return _readiness(registry.find(model))

    @api.get("/v2/models/{model}/versions/{version}/ready", tags=["health"], responses=docs.READINESS)
    async def version_ready(model: str, version: str) -> Response:
        return _readiness(registry.find(model, version))

    @api.get("/v2/models/{model}/labels/{label}/ready", tags=["health"], responses=docs.READINESS)
    async def label_ready(model: str, label: str) -> Response:
        return _readiness(registry.labelled(model, label))


def _readiness(found: Version) -> Response:
    is_ready = found.state is State.READY
    return _answered(is_ready, name=found.name, ready=is_ready)


def _add_metadata(api: FastAPI, inference: Inference) -> None:
    registry = inference.registry

    @api.get("/v2", tags=["server"])
    @api.get("/v2/", include_in_schema=False)
    async def server_metadata() -> Response:
        return docs.answer({"name": PRODUCT, "version": VERSION, "extensions": EXTENSIONS})

    @api.get("/v2/models", tags=["models"])
    async def models() -> Response:
        return docs.answer({"models": registry.names()})

    @api.get("/v1/models", tags=["models"])
    async def v1_models() -> Response:
        return docs.answer({"models": registry.names()})

    @api.get("/v2/models/{model}", tags=["models"], responses=docs.ERRORS)
    async def model_metadata(model: str) -> Response:
        return metadata(model)

    @api.get("/v2/models/{model}/versions/{version}", tags=["models"], responses=docs.ERRORS)
    async def version_metadata(model: str, version: str) -> Response:
        return metadata(model, version)

    @api.get("/v2/models/{model}/labels/{label}", tags=["models"], responses=docs.ERRORS)
    async def label_metadata(model: str, label: str) -> Response:
        return metadata(model, registry.labelled(model, label).version)

    def metadata(model: str, version: str = "") -> Response:
        handle = registry.ready(model, version)
        versions = [v.version for v in registry.versions(model) if v.handle is not None]
        signature = handle.signature
        return docs.answer(
            v2_json.metadata(model, versions, handle.runtime.platform, signature.inputs, signature.outputs, facts(handle))
        )

    @api.post("/v2/repository/index", tags=["models"], responses=docs.INDEX_ERRORS, openapi_extra=docs.INDEX_BODY)
    @api.post("/v2/repository/{repository}/index", include_in_schema=False)
    async def repository_index(request: Request) -> Response:
        body = await _whole(request, inference)
        asked = docs.loads(body) if body.strip() else {}
        if not isinstance(asked, dict) or not isinstance(asked.get("ready", False), bool):
            raise InvalidRequest('expected {"ready": true or false}, or nothing')
        shown = [v for v in registry.all_versions() if v.state is State.READY or not asked.get("ready")]
        return docs.answer([index_entry(v) for v in shown])


def _add_inference(api: FastAPI, inference: Inference) -> None:
    async def infer(protocol: str, model: str, version: str, request: Request) -> Response:
        answer = await answer_inference(inference, protocol, model, version, request.scope, request.receive)
        response = Response(answer.body, answer.status)
        response.raw_headers = _headers(answer)
        return response

    v2: dict[str, Any] = {"tags": ["inference"], "responses": docs.INFER_ANSWERS, "openapi_extra": docs.V2_BODY}

    @api.post("/v2/models/{model}/infer", **v2)
    async def v2_infer(request: Request, model: str) -> Response:
        return await infer("v2", model, "", request)

    @api.post("/v2/models/{model}/versions/{version}/infer", **v2)
    async def v2_infer_version(request: Request, model: str, version: str) -> Response:
        return await infer("v2", model, version, request)

    @api.post("/v2/models/{model}/labels/{label}/infer", **v2)
    async def v2_infer_label(request: Request, model: str, label: str) -> Response:
        return await infer("v2", model, inference.registry.labelled(model, label).version, request)

    @api.post("/v1/models/{model}:predict", tags=["inference"], responses=docs.INFER_ANSWERS, openapi_extra=docs.V1_BODY)
    async def v1_predict(request: Request, model: str) -> Response:
        return await infer("v1", model, "", request)

    v1: dict[str, Any] = {"tags": ["inference"], "responses": docs.INFER_ANSWERS, "openapi_extra": docs.V1_BODY}

    @api.post("/v1/models/{model}/versions/{version}:predict", **v1)
    async def v1_predict_version(request: Request, model: str, version: str) -> Response:
        return await infer("v1", model, version, request)

    @api.post("/v1/models/{model}/labels/{label}:predict", **v1)
    async def v1_predict_label(request: Request, model: str, label: str) -> Response:
        return await infer("v1", model, inference.registry.labelled(model, label).version, request)


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(ServingError)
    async def serving_error(request: Request, error: ServingError) -> Response:
        answer = error_answer(error)
        if isinstance(error, RequestTooLarge | DeadlineExceeded):
            answer = closing(answer)
        response = Response(answer.body, answer.status)
        response.raw_headers = _headers(answer)
        return response

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        text = str(error.detail)
        if error.status_code == 405:
            text = f"method {request.method} is not allowed here"
        return Response(error_body(text), error.status_code, media_type="application/json", headers=error.headers)

    @api.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return Response(error_body("internal error"), 500, media_type="application/json")

    @api.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return Response(error_body("; ".join(str(e["msg"]) for e in error.errors())), 400, media_type="application/json")
