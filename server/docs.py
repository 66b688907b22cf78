"""The OpenAPI description and the /docs page.  Nothing is fetched from elsewhere: Swagger's files come with a package.

Next to the generic routes, each loaded model has paths of its own with its real tensor names and an example that works.
"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

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
# 3.0: the packaged Swagger UI refuses to show 3.1
OPENAPI = "3.0.3"
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((404, 503), _ERROR)
INDEX_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 413, 504), _ERROR)
_NOT_READY = {"type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}}
READINESS: dict[int | str, dict[str, Any]] = {
    404: _ERROR,
    503: {"description": "Not ready", "content": {"application/json": {"schema": _NOT_READY}}},
}
INFER_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer", "content": {"application/json": {"schema": {"type": "object"}}}},
    **dict.fromkeys((400, 404, 413, 415, 429, 500, 501, 503, 504), _ERROR),
}
_PARAMETERS = {"type": "object", "additionalProperties": {"anyOf": [{"type": t} for t in ("string", "number", "boolean")]}}
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

_FEATURES = {"type": "object"}
_EXAMPLES_SCHEMA = {
    "type": "object",
    "required": ["examples"],
    "properties": {
        "signature_name": {"type": "string"},
        "context": _FEATURES,
        "examples": {"type": "array", "items": _FEATURES, "minItems": 1},
    },
}


def _body(schema: dict[str, Any], example: Any = None, required: bool = True) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": schema}
    if example is not None:
        media["example"] = example
    return {"requestBody": {"required": required, "content": {"application/json": media}}}


V2_BODY = _body(_V2_SCHEMA)
V1_BODY = _body(_V1_SCHEMA)
EXAMPLES_BODY = _body(_EXAMPLES_SCHEMA)
INDEX_BODY = _body({"type": "object", "properties": {"ready": {"type": "boolean"}}}, required=False)


LOAD_BODY = _body({"type": "object", "properties": {"parameters": {"type": "object"}}}, required=False)
CONTROL_ERRORS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Done; the body is empty"},
    **dict.fromkeys((400, 403, 404, 413, 501, 504), _ERROR),
}


def parameters(body: bytes) -> dict[str, Any]:
    """The parameters of a request whose body may be empty; InvalidRequest where they are no object."""
    asked = loads(body) if body.strip() else {}
    found = asked.get("parameters", {}) if isinstance(asked, dict) else None
    if not isinstance(found, dict):
        raise InvalidRequest('expected {"parameters": {…}}, or nothing')
    return found


def dumps(document: object) -> bytes:
    return orjson.dumps(document)


def answer(document: object, status: int = 200) -> Response:
    return Response(dumps(document), status, media_type="application/json")


def loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"request body is not valid JSON: {error}") from None


def describe(api: FastAPI, registry: Registry, root_path: str) -> dict[str, Any]:
    """The OpenAPI document, with the models that are ready now."""
    document = get_openapi(
        title=api.title,
        version=api.version,
        openapi_version=OPENAPI,
        routes=api.routes,
        description="Open Inference V2 and KServe V1 over the models below.",
        servers=[{"url": root_path or "/"}],
    )
    _leave_out_422(document)
    for version in registry.all_versions():
        if version.handle is not None:
            document["paths"].update(_model_paths(version.handle))
    return document


def _leave_out_422(document: dict[str, Any]) -> None:
    """FastAPI says that every route with parameters may answer 422; none of ours does."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    document.pop("components", None)


def _model_paths(handle: ModelHandle) -> dict[str, Any]:
    answers = {str(code): answer for code, answer in INFER_ANSWERS.items()}
    tag, name = f"model {handle.name}", quote(handle.name, safe="")

    def post(summary: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"post": {"tags": [tag], "summary": summary, "responses": answers, **body}}

    return {
        f"/v2/models/{name}/infer": post(f"Infer with {handle.name} (V2)", _body(_V2_SCHEMA, v2_request(handle))),
        f"/v1/models/{name}:predict": post(f"Predict with {handle.name} (V1)", _body(_V1_SCHEMA, v1_request(handle))),
    }


def add_pages(api: FastAPI, registry: Registry, root_path: str) -> None:
    assets = Path(swagger_ui_bundle.swagger_ui_path)
    shown = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(dumps(describe(api, registry, root_path)), media_type="application/json")

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Serveplane",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon-32x32.png",
            # by default the page asks a public validator about the address that it is served from
            swagger_ui_parameters={"validatorUrl": None},
        )

    @api.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in shown:
            raise ModelNotFound(f"there is no page docs/{name[:80]}")
        return Response((assets / name).read_bytes(), media_type=shown[name])
