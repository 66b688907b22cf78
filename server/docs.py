"""The OpenAPI description and the /docs page.  Nothing is fetched from elsewhere: Swagger's files come with a package.

Next to the generic routes, each loaded model has paths of its own with its real tensor names and an example that works.
"""

from pathlib import Path
from typing import Any

import orjson
import swagger_ui_bundle
from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi

from server.errors import InvalidRequest, ModelNotFound
from server.example import v1_request, v2_request
from server.models import ModelHandle, Registry
from server.tensors import DATATYPES

_ERROR = {
    "description": "An error",
    "content": {
        "application/json": {"schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}}
    },
}
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 404, 503), _ERROR)
_TENSORS = {"type": "object", "required": ["outputs"], "properties": {"outputs": {}}}
INFER_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer", "content": {"application/json": {"schema": {"type": "object"}}}},
    **dict.fromkeys((400, 404, 413, 415, 429, 500, 501, 503, 504), _ERROR),
}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_INPUT = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "data": {"type": "array", "items": {}},
        "parameters": _PARAMETERS,
    },
}
_OUTPUT = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS}}
_V2_SCHEMA = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "items": _INPUT, "minItems": 1},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
_V1_SCHEMA = {
    "type": "object",
    "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    "properties": {
        "instances": {"type": "array", "items": {}, "minItems": 1},
        "inputs": {},
        "signature_name": {"type": "string"},
    },
}


def _body(schema: dict[str, Any], example: Any = None, required: bool = True) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": schema}
    if example is not None:
        media["example"] = example
    return {"requestBody": {"required": required, "content": {"application/json": media}}}


V2_BODY = _body(_V2_SCHEMA)
V1_BODY = _body(_V1_SCHEMA)
INDEX_BODY = _body({"type": "object", "properties": {"ready": {"type": "boolean"}}}, required=False)


def dumps(document: object) -> bytes:
    return orjson.dumps(document)


def loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"request body is not valid JSON: {error}") from None


def describe(api: FastAPI, registry: Registry) -> dict[str, Any]:
    """The OpenAPI document, with the models that are ready now."""
    document = get_openapi(
        title=api.title,
        version=api.version,
        routes=api.routes,
        description="Open Inference V2 and KServe V1 over the models below.",
    )
    for version in registry.all_versions():
        if version.handle is not None:
            document["paths"].update(_model_paths(version.handle))
    return document


def _model_paths(handle: ModelHandle) -> dict[str, Any]:
    answers = {str(code): answer for code, answer in INFER_ANSWERS.items()}
    tag = f"model {handle.name}"

    def post(summary: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"post": {"tags": [tag], "summary": summary, "responses": answers, **body}}

    return {
        f"/v2/models/{handle.name}/infer": post(f"Infer with {handle.name} (V2)", _body(_V2_SCHEMA, v2_request(handle))),
        f"/v1/models/{handle.name}:predict": post(f"Predict with {handle.name} (V1)", _body(_V1_SCHEMA, v1_request(handle))),
    }


def add_pages(api: FastAPI, registry: Registry) -> None:
    assets = Path(swagger_ui_bundle.swagger_ui_path)
    shown = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(dumps(describe(api, registry)), media_type="application/json")

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Serveplane",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon-32x32.png",
        )

    @api.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in shown:
            raise ModelNotFound(f"there is no page docs/{name[:80]}")
        return Response((assets / name).read_bytes(), media_type=shown[name])
