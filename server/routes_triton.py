"""Routes of Triton's extensions: configuration, statistics, settings, shared memory.  Inference has its own way."""

from typing import Any

from fastapi import FastAPI, Response

from server import docs, triton
from server.inference import Inference
from server.triton import TritonCalls


def add_routes(api: FastAPI, inference: Inference) -> None:
    calls = TritonCalls(inference)
    models: dict[str, Any] = {"tags": ["models"], "responses": docs.ERRORS}

    # before the routes of one model, so that none is called "stats"
    @api.get("/v2/models/stats", tags=["models"])
    async def all_statistics() -> Response:
        return docs.answer(calls.statistics("", ""))

    @api.get("/v2/models/{model}/stats", **models)
    async def statistics(model: str) -> Response:
        return docs.answer(calls.statistics(model, ""))

    @api.get("/v2/models/{model}/versions/{version}/stats", **models)
    async def version_statistics(model: str, version: str) -> Response:
        return docs.answer(calls.statistics(model, version))

    @api.get("/v2/models/{model}/config", **models)
    async def config(model: str) -> Response:
        return docs.answer(calls.config(model, ""))

    @api.get("/v2/models/{model}/versions/{version}/config", **models)
    async def version_config(model: str, version: str) -> Response:
        return docs.answer(calls.config(model, version))

    @api.get("/v2/logging", tags=["server"])
    async def log_settings() -> Response:
        return docs.answer(calls.log_settings())

    # nothing is ever registered, so there is nothing to list, and nothing is left to do for who wants it gone
    @api.get("/v2/systemsharedmemory/status", include_in_schema=False)
    @api.get("/v2/systemsharedmemory/region/{region}/status", include_in_schema=False)
    async def shared_memory(region: str = "") -> Response:
        return docs.answer([])

    @api.post("/v2/systemsharedmemory/unregister", include_in_schema=False)
    @api.post("/v2/systemsharedmemory/region/{region}/unregister", include_in_schema=False)
    async def unregister(region: str = "") -> Response:
        return Response()

    for text, paths in _REFUSED.items():
        for method, path in paths:
            api.add_api_route(path, _refusing(text), methods=[method], include_in_schema=False)


_REFUSED = {
    triton.TRACE: [
        (method, path) for method in ("GET", "POST") for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting")
    ],
    triton.LOGGING: [("POST", "/v2/logging")],
    triton.SHARED_MEMORY: [
        ("POST", "/v2/systemsharedmemory/region/{region}/register"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/cudasharedmemory/region/{region}/status"),
        ("POST", "/v2/cudasharedmemory/region/{region}/register"),
        ("POST", "/v2/cudasharedmemory/unregister"),
        ("POST", "/v2/cudasharedmemory/region/{region}/unregister"),
    ],
}


def _refusing(text: str) -> Any:
    async def refuse() -> None:
        triton.refuse(text)

    return refuse
