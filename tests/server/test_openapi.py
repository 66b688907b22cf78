"""The OpenAPI description tells the truth about a running server, and its page needs nobody but the server."""

import re

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from server import docs

GETS = (
    "/",
    "/metrics",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/models/{model}/metadata",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/logging",
    "/v2/models",
    "/v2/models/stats",
    "/v2/models/{model}",
    "/v2/models/{model}/config",
    "/v2/models/{model}/labels/{label}",
    "/v2/models/{model}/labels/{label}/ready",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/stats",
    "/v2/models/{model}/versions/{version}",
    "/v2/models/{model}/versions/{version}/config",
    "/v2/models/{model}/versions/{version}/ready",
    "/v2/models/{model}/versions/{version}/stats",
)
POSTS = (
    "/v1/models/sums:predict",
    "/v1/models/{model}:classify",
    "/v1/models/{model}/labels/{label}:predict",
    "/v1/models/{model}/versions/{version}:predict",
    "/v1/models/{model}:predict",
    "/v1/models/{model}:regress",
    "/v2/models/sums/infer",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/labels/{label}/infer",
    "/v2/models/{model}/versions/{version}/infer",
    "/v2/repository/index",
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
)


@pytest.fixture(scope="module")
def document(sums, wire):
    with wire(sums.http) as connection:
        return connection.ask("GET", "/openapi.json").json


@pytest.fixture(scope="module")
def described(sums):
    return schemathesis.openapi.from_url(f"{sums.http}/openapi.json")


@pytest.mark.parametrize("path", [*GETS, *POSTS])
def test_whatever_the_description_allows_or_forbids_is_answered_as_it_says(described, path):
    operation = described[path]["GET" if path in GETS else "POST"]

    @settings(max_examples=10, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def check(case):
        # a JSON schema can't say that a tensor's shape fits its data and its model, so what it allows may be 400
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()


def test_every_route_of_the_protocol_is_described(document):
    assert set(document["paths"]) == {*GETS, *POSTS}
    for path, operations in document["paths"].items():
        assert list(operations) == ["get" if path in GETS else "post"]
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert {p["in"] for p in operation.get("parameters", ())} <= {"path"}
            assert [p["name"] for p in operation.get("parameters", ())] == re.findall(r"{(\w+)}", path)


@pytest.mark.parametrize("path", ["/v2/models/sums/infer", "/v1/models/sums:predict"])
def test_the_example_of_a_model_is_a_request_that_works(sums, wire, document, path):
    example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    with wire(sums.http) as connection:
        assert connection.ask("POST", path, example).status == 200


def test_the_packaged_page_can_show_this_version_of_openapi(document):
    assert document["openapi"].startswith("3.0.")
    assert document["openapi"] == docs.OPENAPI


def test_the_page_and_its_parts_come_from_the_server_alone(sums, wire):
    with wire(sums.http) as connection:
        page = connection.ask("GET", "/docs")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        html = page.body.decode()
        parts = re.findall(r'(?:src|href)="([^"]+)"', html) + re.findall(r"url: '([^']+)'", html)
        assert sorted(parts) == ["docs/favicon-32x32.png", "docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "openapi.json"]
        for part in parts:
            found = connection.ask("GET", f"/{part}")
            assert found.status == 200
            assert found.body
    assert not re.findall(r"https?://|//[a-z]", html)
    # without this the page sends the server's address to a public service that judges OpenAPI documents
    assert '"validatorUrl": null' in html


def test_the_page_is_right_behind_a_path_and_for_any_model_name(serve, models, wire):
    with serve(f"{models}/sums.py:Sums", "--root_path=/serving/a/b/", "--model_name=50% {odd} näme") as server:
        prefix = server.http[server.http.index("/serving") :]
        with wire(server.http) as connection:
            document = connection.ask("GET", f"{prefix.rstrip('/')}/openapi.json").json
            assert document["servers"] == [{"url": "/serving/a/b"}]
            path = next(p for p in document["paths"] if p.startswith("/v2/models/50") and p.endswith("/infer"))
            assert path == "/v2/models/50%25%20%7Bodd%7D%20n%C3%A4me/infer"
            example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
            answer = connection.ask("POST", f"/serving/a/b{path}", example)
            assert (answer.status, answer.json["model_name"]) == (200, "50% {odd} näme")


def test_the_page_can_be_switched_off(serve, models, wire):
    with serve(f"{models}/sums.py:Sums", "--enable_docs_url=false") as server, wire(server.http) as connection:
        for path in ("/docs", "/openapi.json", "/docs/swagger-ui.css"):
            assert connection.ask("GET", path).status == 404
