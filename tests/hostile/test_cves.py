"""What happened to other servers, as vectors that must do nothing here: the rows that apply to a model server.

Each names what was attacked there, and where the same is tried here: a test by module and name.  Rows about programs that we
are not (dashboards, job APIs, notebook platforms) are left out by their reason.
"""

import pytest

from tests.hostile.protocols import is_a_test

SHORTCUTS, LIMITS, CATALOGUE, SLOW, MODELS = (
    f"tests.hostile.{name}" for name in ("test_shortcuts", "test_limits", "test_catalogue", "test_slow", "test_bad_models")
)
TOLD, BESIDE = "test_a_bad_request_is_told_what_is_wrong", "test_a_bad_request_is_not_felt_by_those_beside_it"
UNPACK, DOWNLOAD = "tests.server.storage.test_unpack", "tests.server.storage.test_download"
# id: what was done there, and the tests of it here
ROWS = {
    "Triton CVE-2025-23319, 23320, 23334": ("an error's text told an internal name, shared memory took it", [(CATALOGUE, TOLD), ("tests.server.protocols.test_v2_json", None)]),
    "Triton CVE-2025-23310, 23311": ("millions of tiny chunks grew the stack", [(LIMITS, "test_a_body_has_no_more_chunks_than_a_server_can_count_quickly"), (CATALOGUE, TOLD)]),
    "Triton PR 8172": ("JSON nested without end", [(LIMITS, "test_what_a_request_says_is_bounded"), (CATALOGUE, TOLD)]),
    "Triton PR 8570": ("the limit was on what came, not on what it became", [(LIMITS, "test_a_compressed_body_is_bounded_by_what_it_becomes"), (LIMITS, "test_bombs_cost_no_more_memory_than_the_limit")]),
    "Triton PR 8676, 7787": ("a shape's product wrapped around", [(LIMITS, "test_what_a_request_says_is_bounded"), (CATALOGUE, TOLD)]),
    "Triton CVE-2025-33201": ("a huge payload", [("tests.server.test_http", "test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent")]),
    "Triton CVE-2026-24208, 24209, CVE-2023-31036": ("a name or a version led to files", [(CATALOGUE, TOLD), ("tests.server.test_http", "test_what_is_not_there_is_404_and_says_what_is")]),
    "Triton a550e3cd0, CVE-2024-0087, 0095": ("secrets and forged lines in the log", [("tests.server.test_telemetry", None), ("tests.server.test_isolation", "test_among_200_at_once_each_gets_its_own_answer_and_the_bad_their_own_errors")]),
    "TorchServe CVE-2023-43654": ("models from anywhere, registered by anyone", [("tests.hostile.test_cves", "test_no_route_registers_a_model_from_an_address"), (DOWNLOAD, "test_a_redirect_leads_to_no_place_it_should_not")]),
    "TorchServe CVE-2023-48299, CVE-2024-35198, 35199": ("zip slip", [(UNPACK, "test_archives_of_any_names_never_write_outside")]),
    "BentoML CVE-2024-2912, CVE-2025-27520, CVE-2025-32375": ("a pickle in a request", [("tests.hostile.test_cves", "test_a_pickle_in_a_request_is_not_opened")]),
    "BentoML CVE-2026-27905": ("a tar's link led out of the folder", [(UNPACK, "test_a_bad_archive_leaves_nothing")]),
    "BentoML CVE-2024-9056": ("a multipart boundary", [("tests.hostile.test_cves", "test_there_is_no_multipart")]),
    "MLflow CVE-2023-1177, 6831, CVE-2024-1558, 1560, CVE-2025-11201": ("paths that were decoded twice", [(CATALOGUE, TOLD), ("tests.hostile.test_cves", "test_no_path_leads_to_a_file")]),
    "MLflow CVE-2026-0596": ("a model's address in a shell's line", [("tests.hostile.test_cves", "test_a_models_path_is_no_shells_line")]),
    "MLflow CVE-2024-37052 to 37060": ("loading a model runs it", [(MODELS, "test_a_model_that_can_not_be_served_is_named_with_what_to_do"), ("tests.predictors.test_sklearn", "test_a_pickle_is_not_opened_without_trust")]),
    "MLflow GHSA-h7x2-h6g9-p789": ("a model's address asked what only the server may", [(DOWNLOAD, "test_the_metadata_address_is_refused_in_the_users_own_uri_too"), (DOWNLOAD, "test_a_public_server_can_not_send_us_to_a_nearer_one")]),
    "Keras CVE-2025-1550, 8747, CVE-2026-1462": ("a model's layers ran code though they were not to", [("tests.predictors.test_tensorflow", "test_lambda_layers_are_refused_by_name")]),
    "skops CVE-2025-54886": ("what was no zip was opened as a pickle", [(MODELS, "test_a_model_that_can_not_be_served_is_named_with_what_to_do"), ("tests.predictors.test_sklearn", "test_skops_files_load_with_known_types_only")]),
    "picklescan CVE-2025-1716, 10155 to 10157": ("a scan is no boundary", [("tests.predictors.test_sklearn", "test_a_pickle_is_not_opened_without_trust")]),
    "ONNX CVE-2022-25882, CVE-2024-27318": ("weights outside the model's folder", [("tests.predictors.test_onnx", "test_weights_outside_missing_or_cut_short_are_refused_by_name")]),
    "Starlette CVE-2024-47874, CVE-2025-54121, 62727": ("forms and ranges", [("tests.hostile.test_cves", "test_there_is_no_multipart"), ("tests.hostile.test_cves", "test_ranges_are_not_looked_at")]),
    "Starlette CVE-2026-48710": ("the Host header was believed", [("tests.hostile.test_cves", "test_nothing_is_made_of_a_host_header")]),
    "uvicorn 157, xinference 5213, granian 508": ("no deadline for a request", [(SLOW, "test_500_slow_clients_are_cut_off_and_good_ones_answered_beside_them"), (SLOW, "test_a_body_that_stops_is_answered_when_its_time_is_over")]),
    "grpc-go CVE-2026-33186": ("a method's path that was read in two ways", [("tests.hostile.test_cves", "test_a_method_has_one_spelling"), (CATALOGUE, TOLD)]),
    "HTTP/2 CVE-2023-44487": ("rapid reset", [("tests.server.test_grpc_fast", "test_rapid_resets_end_their_own_connection_and_touch_no_other")]),
    "HTTP/2 CVE-2024-27316, 30255": ("CONTINUATION without end", [("tests.server.h2.test_connection", "test_header_blocks_do_not_grow_for_ever")]),
}  # fmt: skip
LEFT_OUT = {
    "Triton CVE-2026-24207": "there is no authorisation in a predictor that one of its doors could forget: it is the gateway's",
    "BentoML CVE-2026-33744, 44345": "nothing here makes images of what a spec says",
    "Ray CVE-2023-48022, Kubeflow": "there is no job API and no dashboard",
    "Argo CVE-2026-40886": "a controller's: tests/deployer",
    "KServe, Seldon, MinIO": "no advisory about serving",
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_tried(row):
    """Its tests are there; that they pass, they say themselves."""
    what, tests = ROWS[row]
    assert what
    assert all(is_a_test(module, name) for module, name in tests)


@pytest.mark.parametrize(
    "path", ["/v2/repository/models/evil/load", "/models?url=http://10.0.0.1/x.mar", "/v1/models", "/v2/models/evil"]
)
def test_no_route_registers_a_model_from_an_address(catalogue_servers, wire, path):
    body = {"url": "http://10.0.0.1/x", "parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}
    with wire(catalogue_servers["Table"].http) as connection:
        answer = connection.ask("POST", path, body)
        assert answer.status in (403, 404, 405, 501)
        assert connection.ask("GET", "/v2/models").json["models"] == ["table"]


@pytest.mark.parametrize("kind", ["application/vnd.bentoml+pickle", "application/octet-stream", "application/x-python-pickle"])
def test_a_pickle_in_a_request_is_not_opened(catalogue_servers, wire, tmp_path, kind):
    proof = tmp_path / "opened"
    evil = b"cposix\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR."
    with wire(catalogue_servers["Table"].http) as connection:
        for path in ("/v1/models/table:predict", "/v2/models/table/infer", "/v2/repository/index"):
            answer = connection.ask("POST", path, evil, content_type=kind)
            assert (answer.status, "JSON" in answer.error) == (400, True)
    assert not proof.exists()


def test_there_is_no_multipart(catalogue_servers, wire):
    body = b"--x\r\ncontent-disposition: form-data; name=a\r\n\r\n" + b"\r\n" * 10_000
    with wire(catalogue_servers["Table"].http) as connection:
        for path in ("/v1/models/table:predict", "/v2/models/table/infer"):
            assert connection.ask("POST", path, body, content_type="multipart/form-data; boundary=" + "x" * 3000).status == 400


def test_ranges_are_not_looked_at(catalogue_servers, wire):
    with wire(catalogue_servers["Table"].http) as connection:
        answer = connection.ask("GET", "/docs", range="bytes=" + ",".join(f"{n}-" for n in range(2000)))
        assert answer.status in (200, 206, 416)
        assert connection.ask("GET", "/v2/health/live").status == 200


@pytest.mark.parametrize("host", ["evil.example", "a/../b", "evil.example/v2/health/live?", "[::1]:x", "\x7f", ""])
def test_nothing_is_made_of_a_host_header(catalogue_servers, wire, host):
    """Neither a route nor a link."""
    with wire(catalogue_servers["Table"].http) as connection:
        connection.send_raw(b"GET /openapi.json HTTP/1.1\r\nhost: %b\r\n\r\n" % host.encode())
        answer = connection.read()
        assert answer.status in (200, 400)
        assert not host or host.encode() not in answer.body


@pytest.mark.parametrize(
    "way", ["../", "..%2f", "%2e%2e/", "%252e%252e%252f", "..\\", "..%5c", "..%00/", "..;/", "....//", "%c0%ae%c0%ae/"]
)
@pytest.mark.parametrize("start", ["/docs/", "/v2/models/", "/v1/models/", "/", "/v2/models/table/versions/"])
def test_no_path_leads_to_a_file(catalogue_servers, wire, start, way):
    with wire(catalogue_servers["Table"].http) as connection:
        answer = connection.ask("GET", start + way * 8 + "etc/passwd")
        assert answer.status in (400, 404)
        assert b"root:" not in answer.body


@pytest.mark.parametrize("name", ["$(touch proof)", "; touch proof;", "`touch proof`", "| touch proof", "a\n touch proof"])
def test_a_models_path_is_no_shells_line(tmp_path, monkeypatch, name):
    from tests.conftest import running

    with pytest.raises(RuntimeError, match="was not served"), running(f"{name}.onnx", cwd=tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "inference.GRPCInferenceService/ModelInfer",
        "//inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService//ModelInfer",
        "/inference.GRPCInferenceService/ModelInfer/",
        "/inference.GRPCInferenceService/ModelInfer?a",
        "/inference.GRPCInferenceService/%4dodelInfer",
        "/INFERENCE.GRPCInferenceService/ModelInfer",
        "/x/../inference.GRPCInferenceService/ModelInfer",
    ],
)
def test_a_method_has_one_spelling(catalogue_servers, path):
    from tests.hostile import grpc_cases
    from tests.hostile.protocols import Case

    one = Case("", "UNIMPLEMENTED", "", grpc_cases.typed(), path=path)
    end = grpc_cases.PROTOCOL.end(grpc_cases.PROTOCOL.begin(catalogue_servers["Table"], one))
    assert end.code == "UNIMPLEMENTED"
