"""`--trace_sample`: spans by OpenTelemetry's own classes in memory, and over a socket as a collector gets them."""

import asyncio
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.identity import identified
from server.spans import Tracing, described
from server.telemetry import Record
from server.tensors import Timing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, LEFT_OUT = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
PATH = "/v2/models/faults/infer"
CALL = "/inference.GRPCInferenceService/ModelInfer"


def record(code=200, path=PATH, version="", error="", request_id="one", rows=3):
    protocol, method = ("v2", "infer") if isinstance(code, int) else ("grpc", "ModelInfer")
    return Record("faults", version, protocol, method, code, path, 0.01, request_id, rows, 20, 30, error=error)


HTTP = {"http.request.method": "POST", "url.scheme": "http"}
RPC = {"rpc.system.name": "grpc", "rpc.method": CALL[1:]}


@pytest.mark.parametrize(
    ("given", "name", "attributes", "failed"),
    [
        (record(), "POST /v2/models/{model}/infer", {**HTTP, "http.response.status_code": 200, "url.path": PATH}, False),
        (record(version="3"), "POST /v2/models/{model}/infer", {"serveplane.model.version": "3", "serveplane.rows": 3}, False),
        (record(path="/v2/models/m/versions/3/infer"), "POST /v2/models/{model}/versions/{version}/infer", {}, False),
        (record(path="/v1/models/m/labels/canary:predict"), "POST /v1/models/{model}/labels/{label}:predict", {}, False),
        (
            record(path="/v1/models/m:predict"),
            "POST /v1/models/{model}:predict",
            {"http.route": "/v1/models/{model}:predict"},
            False,
        ),
        # a name may be anything, once it is decoded
        (record(path="/v2/models/a/b:c/d/infer"), "POST /v2/models/{model}/infer", {}, False),
        (record(404, error="ModelNotFound"), "POST /v2/models/{model}/infer", {"http.response.status_code": 404}, False),
        (record(500, error="RuntimeFailed"), "POST /v2/models/{model}/infer", {"error.type": "RuntimeFailed"}, True),
        (record(503, error="ModelNotReady"), "POST /v2/models/{model}/infer", {"error.type": "ModelNotReady"}, True),
        (record("OK", CALL), CALL[1:], {**RPC, "rpc.response.status_code": "OK"}, False),
        (record("NOT_FOUND", CALL, error="ModelNotFound"), CALL[1:], {"rpc.response.status_code": "NOT_FOUND"}, False),
        (record("INTERNAL", CALL, error="RuntimeFailed"), CALL[1:], {**RPC, "error.type": "RuntimeFailed"}, True),
    ],
)
def test_a_requests_span_is_described_by_the_conventions(given, name, attributes, failed):
    found = described(given)
    assert (found[0], found[2]) == (name, failed)
    assert attributes.items() <= found[1].items()
    assert ("error.type" in found[1]) == failed


def in_memory(records, share=0.0):
    """The spans that are made of records, and the records as the next one sees them."""

    class Next:
        def __init__(self):
            self.seen = []
            self.write = self.seen.append

        def flush(self):
            pass

    kept, then = InMemorySpanExporter(), Next()

    async def trace():
        tracing = Tracing(SimpleSpanProcessor(kept), share, "1.2.3", then)
        for one in records:
            tracing.write(one)
        tracing.flush()
        tracing.close()

    asyncio.run(trace())
    return kept.get_finished_spans(), then.seen


def ran(request_id):
    return record(request_id=request_id)._replace(seconds=0.5, timing=Timing(0.1, 0.2, 8, 0.0))


def test_spans_of_a_request_have_its_times_its_trace_and_its_parent(monkeypatch):
    monkeypatch.setattr("server.spans.time.time", lambda: 1000.0)
    monkeypatch.setattr("server.spans.time.monotonic", lambda: 0.25)
    (request, queue, predict), _ = in_memory([ran(identified("one", SAMPLED, "a=b"))])
    assert [s.name for s in (request, queue, predict)] == ["POST /v2/models/{model}/infer", "queue", "predict"]
    assert [s.kind for s in (request, queue, predict)] == [SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.INTERNAL]
    assert {s.context.trace_id for s in (request, queue, predict)} == {int(TRACE, 16)}
    assert {s.context.trace_state.to_header() for s in (request, queue, predict)} == {"a=b"}
    assert request.parent.span_id == int(SPAN, 16)
    assert request.parent.is_remote
    assert queue.parent == predict.parent == request.context
    assert len({s.context.span_id for s in (request, queue, predict)}) == 3
    times = [(s.start_time / 1e9, s.end_time / 1e9) for s in (request, queue, predict)]
    assert times == [pytest.approx(pair) for pair in ((999.5, 1000.0), (999.65, 999.75), (999.75, 999.95))]
    assert predict.attributes == {"serveplane.batch.rows": 8}
    assert request.attributes["serveplane.request.id"] == "one"
    assert request.resource.attributes["service.name"] == "serveplane"
    assert request.resource.attributes["service.version"] == "1.2.3"


@pytest.mark.parametrize(
    ("share", "parent", "sampled"),
    [
        (0.0, SAMPLED, True),
        (0.0, LEFT_OUT, False),
        (0.0, "", False),
        (1.0, LEFT_OUT, False),
        (1.0, "", True),
        (1.0, "junk", True),
    ],
)
def test_a_caller_decides_for_its_trace_and_the_share_for_all_others(share, parent, sampled):
    spans, (seen,) = in_memory([ran(identified("one", parent))], share)
    assert len(spans) == (3 if sampled else 0)
    if sampled and parent != SAMPLED:
        assert spans[0].parent is None
    # what is written in the access log is the trace that was sent
    traced = getattr(seen.request_id, "trace", None)
    assert (traced is not None) == (sampled or parent == LEFT_OUT)
    if sampled:
        assert traced.trace_id == f"{spans[0].context.trace_id:032x}"


def test_the_share_is_a_share():
    spans, seen = in_memory([record()] * 4000, 0.25)
    assert 800 < len(spans) < 1200
    assert len(seen) == 4000
    assert len({span.context.trace_id for span in spans}) == len(spans)


def test_who_we_are_is_for_the_environment_to_say(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "iris")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=9,team=flowers")
    (span,), _ = in_memory([record()], 1.0)
    wanted = {"service.name": "iris", "service.version": "9", "team": "flowers"}
    assert wanted.items() <= span.resource.attributes.items()


class Collector:
    """OTLP over HTTP, on a port of its own: `spans` by name, `sent` as it came."""

    def __init__(self) -> None:
        self.sent, self.headers, self.paths = [], [], []
        collector = self

        class Exchange(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.sent.append(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
                collector.headers.append(dict(self.headers.items()))
                collector.paths.append(self.path)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Exchange)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_address[1]}",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=flowers",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    @property
    def spans(self):
        return [span for one in self.sent for r in one.resource_spans for s in r.scope_spans for span in s.spans]

    def of(self, trace_id: str):
        return [span for span in self.spans if span.trace_id.hex() == trace_id]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def collecting():
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()


def rows(*values):
    return {"inputs": [{"name": "x", "shape": [len(values), 1], "datatype": "FP64", "data": list(values)}]}


def message(value):
    given = pb.ModelInferRequest.InferInputTensor(name="x", shape=[1, 1], datatype="FP64", contents={"fp64_contents": [value]})
    return pb.ModelInferRequest(model_name="faults", inputs=[given])


def trace(n: int) -> str:
    return f"{n:032x}"


def traced(n: int, flags="01") -> str:
    return f"00-{trace(n)}-{n:016x}-{flags}"


@pytest.fixture(scope="module")
def happened(serve, models, wire, lane):
    """What a collector got of a server's life, the answers' headers, and the access log's lines by request id."""
    answers = {}

    def use(server):
        with wire(server.http) as connection:
            # a head is the same as the one before but for what names the request: three times to be known, and to be kept
            for n in range(1, 9):
                answers[n] = connection.ask("POST", PATH, rows(n), traceparent=traced(n), x_request_id=f"http-{n}")
            answers[9] = connection.ask("POST", PATH, rows(9), traceparent=traced(9), tracestate="vendor=1")
            answers[10] = connection.ask("POST", PATH, rows(10), traceparent=traced(10, "00"), x_request_id="http-10")
            answers[11] = connection.ask("POST", PATH, rows(11), x_request_id="http-11")
            answers[12] = connection.ask("POST", PATH, rows(-1), traceparent=traced(12), x_request_id="http-12")
            answers[13] = connection.ask("POST", PATH, rows(13), traceparent="nonsense", x_request_id="http-13")
        with grpc.insecure_channel(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for n in range(21, 24):
                _, call = stub.ModelInfer.with_call(
                    message(n), metadata=(("traceparent", traced(n)), ("x-request-id", f"grpc-{n}"))
                )
                answers[n] = dict(call.initial_metadata()) | dict(call.trailing_metadata())
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(message(-1), metadata=(("traceparent", traced(24)),))
            answers[24] = dict(refused.value.trailing_metadata())

    with collecting() as collector:
        with serve(f"{models}/faults.py:Faults", "--trace_sample", "0", *lane, env=collector.environment) as server:
            use(server)
            assert server.stop() == 0
            lines = [json.loads(line) for line in server.stderr.splitlines()]
        yield collector, answers, {line["request_id"]: line for line in lines if line["event"] == "request"}


def test_each_request_of_a_sampled_trace_has_its_spans_under_its_own_parent(happened):
    collector, *_ = happened
    for n in (*range(1, 10), *range(21, 24)):
        request, queue, predict = collector.of(trace(n))
        assert request.parent_span_id.hex() == f"{n:016x}"
        assert request.name == ("POST /v2/models/{model}/infer" if n < 20 else CALL[1:])
        assert queue.parent_span_id == predict.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= queue.start_time_unix_nano <= predict.start_time_unix_nano
        assert queue.end_time_unix_nano <= predict.start_time_unix_nano + 1000
        assert predict.end_time_unix_nano <= request.end_time_unix_nano
        assert predict.end_time_unix_nano - predict.start_time_unix_nano >= 2_000_000


def test_a_tracestate_goes_with_its_trace(happened):
    collector, *_ = happened
    assert {span.trace_state for span in collector.of(trace(9))} == {"vendor=1"}
    assert {span.trace_state for span in collector.of(trace(8))} == {""}


def test_what_is_not_sampled_has_no_spans(happened):
    collector, *_ = happened
    assert {int(span.trace_id.hex(), 16) for span in collector.spans} == {*range(1, 10), 12, *range(21, 25)}


@pytest.mark.parametrize(("n", "error"), [(12, "RuntimeFailed"), (24, "RuntimeFailed")])
def test_a_failure_is_one_span_with_its_kind(happened, n, error):
    collector, *_ = happened
    (span,) = collector.of(trace(n))
    said = {a.key: a.value.string_value for a in span.attributes}
    assert (span.status.code, said["error.type"]) == (StatusCode.ERROR.value, error)


def test_spans_come_as_the_environment_says(happened):
    collector, *_ = happened
    assert set(collector.paths) == {"/v1/traces"}
    assert {headers["x-tenant"] for headers in collector.headers} == {"flowers"}
    (resource,) = {one.resource_spans[0].resource.SerializeToString() for one in collector.sent}
    assert b"serveplane" in resource


def test_the_access_log_names_the_trace_where_there_is_one(happened):
    *_, lines = happened
    assert {f"http-{n}": lines[f"http-{n}"].get("trace_id") for n in (1, 8, 10, 11, 12, 13)} == {
        "http-1": trace(1),
        "http-8": trace(8),
        "http-10": trace(10),
        "http-11": None,
        "http-12": trace(12),
        "http-13": None,
    }
    assert lines["grpc-22"]["trace_id"] == trace(22)
    # a request that has no other name is called by its trace
    assert lines[f"{trace(9)}-{9:016x}"]["trace_id"] == trace(9)
    assert lines[f"{trace(24)}-{24:016x}"]["code"] == "INTERNAL"


def test_an_answer_says_whose_it_is_and_nothing_of_its_trace(happened):
    _, answers, _ = happened
    for n in range(1, 9):
        assert answers[n].headers["x-request-id"] == f"http-{n}"
    assert answers[12].headers["x-request-id"] == "http-12"
    assert answers[22]["x-request-id"] == "grpc-22"
    assert answers[24]["x-request-id"] == f"{trace(24)}-{24:016x}"
    for answer in answers.values():
        assert not {"traceparent", "tracestate"} & set(getattr(answer, "headers", answer))


def test_a_request_without_a_trace_begins_one_and_the_access_log_says_which(serve, models, wire, lane):
    with (
        collecting() as collector,
        serve(f"{models}/sums.py:Sums", "--trace_sample", "1", *lane, env=collector.environment) as server,
    ):
        with wire(server.http) as connection:
            for n in range(20):
                body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [n, n]}]}
                assert connection.ask("POST", "/v2/models/sums/infer", body).status == 200
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.stderr.splitlines()]
    begun = {line["trace_id"] for line in lines if line["event"] == "request"}
    assert len(begun) == 20
    assert {span.trace_id.hex() for span in collector.spans} == begun
    assert len(collector.spans) == 60
    assert not [span for span in collector.spans if span.name.startswith("POST") and span.parent_span_id]


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_access_log_names_a_trace_without_any_tracing(serve, models, wire, lane, form):
    with serve(f"{models}/sums.py:Sums", "--log_format", form, *lane) as server:
        with wire(server.http) as connection:
            for n in range(1, 7):
                assert (
                    connection.ask("POST", "/v2/models/sums/infer", b"{", traceparent=traced(n), x_request_id=f"r{n}").status
                    == 400
                )
            for _ in range(4):
                connection.ask("POST", "/v2/models/sums/infer", b"{", traceparent=traced(99), x_request_id="again")
        assert server.stop() == 0
        lines = [line for line in server.stderr.splitlines() if "InvalidRequest" in line]
    assert len(lines) == 10
    for line, n in zip(lines, (*range(1, 7), 99, 99, 99, 99), strict=True):
        assert (f'"trace_id":"{trace(n)}"' if form == "json" else f"trace {trace(n)}") in line


def test_a_collector_that_is_not_there_holds_nobody_up(serve, models, wire, until):
    nowhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with serve(f"{models}/sums.py:Sums", "--trace_sample", "1", env=nowhere) as server:
        with wire(server.http) as connection:
            for _ in range(200):
                assert connection.ask("POST", "/v2/models/sums/infer", b"{").status == 400
        until(lambda: "spans could not be sent" in server.stderr, "a line about the collector")
        assert server.stop() == 0
        # many batches, and one line about them
        assert server.stderr.count("spans could not be sent") == 1
        assert "Traceback" not in server.stderr


def test_without_the_package_the_process_says_what_to_install(serve, models, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry.sdk'] = None\n")
    wanted = r"--trace_sample needs OpenTelemetry, which is not installed; run: pip install 'serveplane\[telemetry\]'"
    with pytest.raises(RuntimeError, match=wanted):
        serve(f"{models}/sums.py:Sums", "--trace_sample", "1", env={"PYTHONPATH": str(tmp_path)}).__enter__()


def test_without_the_flag_nothing_of_it_is_imported():
    code = "import sys, server.app; print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
