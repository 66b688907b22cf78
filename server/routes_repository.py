"""HTTP routes of Triton's model repository extension that change something: load and unload."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response

from server import docs
from server.inference import Inference
from server.repository import Repository, no_parameters

# Reads a request's body: (receive, headers, most bytes, seconds).
ReadBody = Callable[[Any, dict[str, str], int, float], Awaitable[bytes]]


def add(api: FastAPI, inference: Inference, repository: Repository, read_body: ReadBody) -> None:
    settings = inference.settings

    async def parameters(request: Request) -> dict[str, Any]:
        body = await read_body(request.receive, dict(request.headers), settings.max_body_bytes, settings.receive_timeout)
        return docs.parameters(body)

    @api.post("/v2/repository/models/{model}/load", tags=["models"], responses=docs.CONTROL_ERRORS, openapi_extra=docs.LOAD_BODY)
    @api.post("/v2/repository/{repository_name}/models/{model}/load", include_in_schema=False)
    async def load(request: Request, model: str) -> Response:
        repository.check_control()
        no_parameters(await parameters(request), ())
        await repository.load(model)
        return Response()

    @api.post(
        "/v2/repository/models/{model}/unload", tags=["models"], responses=docs.CONTROL_ERRORS, openapi_extra=docs.LOAD_BODY
    )
    @api.post("/v2/repository/{repository_name}/models/{model}/unload", include_in_schema=False)
    async def unload(request: Request, model: str) -> Response:
        repository.check_control()
        no_parameters(await parameters(request), ("unload_dependents",))
        await repository.unload(model)
        return Response()
