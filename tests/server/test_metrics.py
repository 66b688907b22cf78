"""The page of metrics under our names and under others': after known traffic, and under names that nobody has heard of."""

import math
import re

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.aliases import CANONICAL
from server.errors import ServingError
from server.protocols.status import status_of
from tests.conftest import ROOT

PATH = "/v2/models/faults/infer"
COMPAT = "triton,tfs,kserve"


def rows(*values):
    return {"inputs": [{"name": "x", "shape": [len(values), 1], "datatype": "FP64", "data": list(values)}]}


def message(value, name="faults"):
    given = pb.ModelInferRequest.InferInputTensor(name="x", shape=[1, 1], datatype="FP64", contents={"fp64_contents": [value]})
    return pb.ModelInferRequest(model_name=name, inputs=[given])


class Page:
    """A page as Prometheus' parser reads it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The only sample that is called exactly so and has exactly these labels."""
        assert re.search(rf"^{name}[ {{]", self.text, re.MULTILINE)
        # to the parser every counter has this ending, whether it is written or not
        (found,) = [s.value for s in self.samples if s.name in (name, f"{name}_total") and s.labels == labels]
        return found

    def sum(self, name: str, **labels: str) -> float:
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())


def page(server, path="/metrics") -> Page:
    return Page(httpx.get(f"{server.http}{path}").raise_for_status().text)


def use(server, wire) -> None:
    """Nine answered requests of 1 + 1 + 1 + 2 + 2 + 2 + 1 + 1 + 1 rows, and seven that failed."""
    with wire(server.http) as connection, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(3):
            assert connection.ask("POST", "/v1/models/faults:predict", {"instances": [[1]]}).status == 200
            assert connection.ask("POST", PATH, rows(1, 2)).status == 200
            assert stub.ModelInfer(message(1)).model_name == "faults"
        assert connection.ask("POST", PATH, rows(-1)).status == 500
        assert connection.ask("POST", PATH, rows(-1)).status == 500
        assert connection.ask("POST", PATH, b"{").status == 400
        assert connection.ask("POST", PATH, rows(1), x_request_timeout="0.0000001").status == 504
        assert connection.ask("POST", "/v2/models/other/infer", rows(1)).status == 404
        for value, code in ((-1, grpc.StatusCode.INTERNAL), (-2, grpc.StatusCode.INVALID_ARGUMENT)):
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(message(value))
            assert refused.value.code() is code


@pytest.fixture(scope="module", params=["one process", "two workers"])
def seen(request, serve, models, wire, lane):
    workers = ("--workers", "2") if request.param == "two workers" else ()
    with serve(f"{models}/faults.py:Faults", "--metrics_compat", COMPAT, *workers, *lane) as server:
        use(server, wire)
        yield page(server)


OF = {"model": "faults", "version": ""}
TRITON = {"model": "faults", "version": "1"}
TFS = {"model_name": "faults"}


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("serve_request_rows_total", OF, 12),
        ("serve_request_errors_total", {**OF, "protocol": "v2", "reason": "RuntimeFailed"}, 2),
        ("serve_request_errors_total", {**OF, "protocol": "v2", "reason": "InvalidRequest"}, 1),
        ("serve_request_errors_total", {**OF, "protocol": "v2", "reason": "DeadlineExceeded"}, 1),
        ("serve_request_errors_total", {**OF, "protocol": "grpc", "reason": "RuntimeFailed"}, 1),
        ("serve_request_errors_total", {**OF, "protocol": "grpc", "reason": "InvalidInput"}, 1),
        ("serve_request_errors_total", {"model": "unknown", "version": "", "protocol": "v2", "reason": "ModelNotFound"}, 1),
        ("serve_queue_duration_seconds_count", OF, 9),
        ("nv_inference_request_success", TRITON, 9),
        ("nv_inference_request_failure", {**TRITON, "reason": "BACKEND"}, 3),
        ("nv_inference_request_failure", {**TRITON, "reason": "REJECTED"}, 1),
        ("nv_inference_request_failure", {**TRITON, "reason": "CANCELED"}, 0),
        ("nv_inference_request_failure", {**TRITON, "reason": "OTHER"}, 2),
        ("nv_inference_count", TRITON, 12),
        # nine answered and four that the model refused, one after the other
        ("nv_inference_exec_count", TRITON, 13),
        ("nv_inference_pending_request_count", TRITON, 0),
        ("nv_inference_compute_input_duration_us", TRITON, 0),
        (":tensorflow:serving:request_count", {**TFS, "status": "OK"}, 9),
        (":tensorflow:serving:request_count", {**TFS, "status": "INTERNAL"}, 3),
        (":tensorflow:serving:request_count", {**TFS, "status": "INVALID_ARGUMENT"}, 2),
        (":tensorflow:serving:request_count", {**TFS, "status": "DEADLINE_EXCEEDED"}, 1),
        (":tensorflow:serving:request_latency_count", {**TFS, "API": "Predict", "entrypoint": "REST"}, 6),
        (":tensorflow:serving:request_latency_count", {**TFS, "API": "Predict", "entrypoint": "GRPC"}, 3),
        (":tensorflow:serving:runtime_latency_count", {**TFS, "API": "Predict", "runtime": "serveplane"}, 13),
        (":tensorflow:serving:request_example_count_total", {"model": "faults"}, 12),
        (":tensorflow:serving:batching_session:queuing_latency_count", {"thread_pool_name": "faults"}, 9),
        ("request_predict_seconds_count", TFS, 12),
        ("model_infer_request_success_total", OF, 9),
        ("model_infer_request_failure_total", OF, 6),
        ("model_infer_request_duration_count", OF, 9),
    ],
)
def test_known_traffic_is_counted_under_every_name(seen, name, labels, value):
    assert seen(name, **labels) == value


def test_durations_are_the_same_in_every_unit(seen):
    answered = sum(seen.sum("serve_request_duration_seconds_sum", model="faults", code=code) for code in ("200", "OK"))
    assert seen("nv_inference_request_duration_us", **TRITON) == pytest.approx(answered * 1e6)
    assert seen.sum(":tensorflow:serving:request_latency_sum") == pytest.approx(answered * 1e6)
    assert seen("model_infer_request_duration_sum", **OF) == pytest.approx(answered)
    compute = seen("serve_request_compute_seconds_total", **OF)
    # it sleeps for two milliseconds
    assert 9 * 0.002 < compute < seen("serve_compute_duration_seconds_sum", **OF)
    assert seen("nv_inference_compute_infer_duration_us", **TRITON) == pytest.approx(compute * 1e6)


@pytest.mark.parametrize(
    ("ours", "other", "scale"),
    [
        ("serve_queue_duration_seconds", ":tensorflow:serving:batching_session:queuing_latency", 1e6),
        ("serve_compute_duration_seconds", ":tensorflow:serving:runtime_latency", 1e6),
        ("serve_request_duration_seconds", ":tensorflow:serving:request_latency", 1e6),
        ("serve_request_duration_seconds", "request_predict_seconds", 1),
    ],
)
def test_a_histogram_keeps_its_buckets_under_another_name(seen, ours, other, scale):
    def edges(name):
        return sorted({float(s.labels["le"]) for s in seen.samples if s.name == f"{name}_bucket"})

    assert edges(other) == pytest.approx([edge * scale for edge in edges(ours)])
    for labels in {tuple(sorted((k, v) for k, v in s.labels.items())) for s in seen.samples if s.name == f"{other}_count"}:
        within = [s for s in seen.samples if s.name == f"{other}_bucket" and dict(labels).items() <= s.labels.items()]
        counts = [s.value for s in sorted(within, key=lambda s: float(s.labels["le"]))]
        assert counts == sorted(counts)
        assert counts[-1] == seen(f"{other}_count", **dict(labels))


def test_buckets_of_a_requests_parts_begin_at_a_tenth_of_a_millisecond(seen):
    for name in ("serve_queue_duration_seconds", "serve_compute_duration_seconds"):
        edges = sorted(float(s.labels["le"]) for s in seen.samples if s.name == f"{name}_bucket")
        assert (edges[0], edges[1], edges[-1]) == (0.0001, 0.0002, math.inf)
        assert 50 < edges[-2] < 60
    assert {s.labels["le"] for s in seen.samples if s.name == "serve_batch_rows_bucket"} >= {"1.0", "2.0", "4096.0"}


def test_what_the_other_servers_do_not_count_is_not_under_their_names(seen):
    theirs = [s for s in seen.samples if not s.name.startswith(("serve_", "process_", "python_"))]
    assert theirs
    assert "unknown" not in {label for s in theirs for label in s.labels.values()}


def test_every_name_is_there_once_and_says_what_it_is(seen):
    # what the parser makes families of, by the lines that say of what type they are
    names = re.findall(r"^# TYPE (\S+) ", seen.text, re.MULTILINE)
    assert len(names) == len(set(names))
    assert all(family.documentation for family in seen.families)
    assert all(family.type != "unknown" for family in seen.families)


def test_the_page_says_what_runs_and_what_its_processes_use(seen):
    (built,) = [s for s in seen.samples if s.name == "serve_build_info"]
    assert built.value == 1
    assert set(built.labels) == {"version", "python"}
    for name in (
        "cpu_seconds_total",
        "resident_memory_bytes",
        "virtual_memory_bytes",
        "open_fds",
        "max_fds",
        "start_time_seconds",
    ):
        assert seen(f"process_{name}") > 0
    assert seen("serve_requests_in_flight") == 0


def test_the_page_of_the_docs_names_every_metric_there_is_and_no_other(seen):
    docs = (ROOT / "docs" / "observability.md").read_text()
    tables = "\n".join(line for line in docs.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`((?:serve_|nv_|:tensorflow|request_|model_infer)[\w:]+)`", tables)) - {"request_id"}
    there = set(re.findall(r"^# TYPE (\S+) ", seen.text, re.MULTILINE))
    # a first failure makes these
    there |= {"serve_model_load_failures_total", "serve_rejected_total", "serve_batch_fallback_total"}
    assert named == {name for name in there if not name.endswith("_created") and not name.startswith(("process_", "python_"))}


def test_two_workers_processes_are_added_up_on_both_their_pages(serve, models):
    with serve(f"{models}/sums.py:Sums") as one, serve(f"{models}/sums.py:Sums", "--workers", "2") as two:
        alone, together = page(one), page(two)
    assert together("process_resident_memory_bytes") > 1.5 * alone("process_resident_memory_bytes")
    assert together("process_max_fds") == alone("process_max_fds")


def test_tensorflow_servings_page_is_where_its_users_look_for_it(serve, models):
    with serve(f"{models}/sums.py:Sums", "--metrics_compat", "tfs") as server:
        httpx.post(f"{server.http}/v1/models/sums:predict", json={"instances": [[1, 2]]}).raise_for_status()
        found = page(server, "/monitoring/prometheus/metrics")
        assert found(":tensorflow:serving:request_count", model_name="sums", status="OK") == 1
        assert not [s for s in found.samples if s.name.startswith(("nv_", "request_predict", "model_infer"))]


def test_without_the_flag_there_are_our_names_only(serve, models):
    with serve(f"{models}/sums.py:Sums") as server:
        assert {s.name.split("_")[0] for s in page(server).samples} == {"serve", "process", "python"}


def test_an_unknown_server_is_refused_by_name(serve, models):
    with pytest.raises(RuntimeError, match="'ovms' is none of triton, tfs, kserve"):
        serve(f"{models}/sums.py:Sums", "--metrics_compat", "triton,ovms").__enter__()


def test_ten_thousand_names_that_nobody_has_heard_of_make_a_handful_of_series(serve, models, wire, lane):
    """Names of models, versions, paths, methods and requests: whatever a client chooses."""
    with serve(f"{models}/sums.py:Sums", "--metrics_compat", COMPAT, "--access_log=false", *lane) as server:
        body = b'{"inputs": []}'
        paths = [
            "/v2/models/random-{}/infer",
            "/v1/models/random-{}:predict",
            "/v2/models/sums/versions/{}/infer",
            "/v2/models/x/versions/{}/infer",
        ]
        with wire(server.http) as connection:
            for path in paths:
                connection.ask("POST", path.format("first"), body)
            connection.ask("GET", "/random-first")
        with grpc.insecure_channel(server.grpc) as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            other = channel.unary_unary("/random.first/Method")
            for call in (ask, other):
                with pytest.raises(grpc.RpcError):
                    call(message(1, "random-first").SerializeToString())
            before = page(server)
            with wire(server.http) as connection:
                for at in range(0, 10_000, 50):
                    for n in range(at, at + 50):
                        connection.send("POST", paths[n % 4].format(n), body, x_request_id=f"id-{n}")
                    assert {connection.read().status for _ in range(50)} == {404}
                for n in range(200):
                    assert connection.ask("GET", f"/random-{n}").status == 404
            calls = [ask.future(message(1, f"random-{n}").SerializeToString()) for n in range(1_000)]
            calls += [channel.unary_unary(f"/random.n{n}/Method").future(b"") for n in range(200)]
            assert {call.code() for call in calls} == {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}
        after = page(server)
        assert after.sum("serve_request_duration_seconds_count", model="unknown") == 7_500 + 1_000 + 4
        assert len(after.samples) == len(before.samples)
        assert "random" not in after.text


def test_the_names_of_statuses_are_those_that_errors_have():
    """TensorFlow Serving's names for HTTP statuses agree with the table of errors, wherever one status is one code."""

    def every(kind):
        yield kind
        for one in kind.__subclasses__():
            yield from every(one)

    codes: dict[int, set[str]] = {}
    for kind in every(ServingError):
        http, code = status_of(kind(""))
        codes.setdefault(http, set()).add(code)
    assert {str(http) for http in codes} <= set(CANONICAL)
    assert all(CANONICAL[str(http)] in found for http, found in codes.items())
