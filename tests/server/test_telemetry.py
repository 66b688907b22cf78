"""What is seen of a server from outside: metrics and their labels, the access log, the log; and what never gets into them."""

import json
import os
import re
import subprocess
import sys
from typing import NamedTuple

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.log import Sink

PATH = "/v2/models/faults/infer"
AT = r"\d\d:\d\d:\d\d"
SECRETS = "Bearer s3cret", "session=s3cret"


def body(*rows):
    return {"inputs": [{"name": "x", "shape": [len(rows), 1], "datatype": "FP64", "data": list(rows)}]}


def message(value, **more):
    given = pb.ModelInferRequest.InferInputTensor(name="x", shape=[1, 1], datatype="FP64", contents={"fp64_contents": [value]})
    return pb.ModelInferRequest(model_name="faults", inputs=[given], **more)


class Seen(NamedTuple):
    """What was to be seen of a server: the samples of /metrics, and stderr."""

    metrics: dict[str, float]
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stderr.removesuffix("\n").split("\n")


@pytest.fixture(scope="module", params=["json", "text"])
def form(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def happened(serve, models, lane, wire, metrics):
    """By log format, what is seen of a server to which all of this has happened."""

    def happen(form: str) -> Seen:
        with serve(f"{models}/faults.py:Faults", *lane, "--log_format", form) as server:
            with wire(server.http) as connection, grpc.insecure_channel(server.grpc) as channel:
                use(connection, service_pb2_grpc.GRPCInferenceServiceStub(channel))
                found = metrics(server)
            assert server.stop() == 0
            return Seen(found, server.stderr)

    def use(connection, stub):
        def ask(path, sent, **headers):
            return connection.ask("POST", path, sent, authorization=SECRETS[0], cookie=SECRETS[1], **headers)

        ask(PATH, body(1, 2, 3), x_request_id="good")
        ask(PATH, body(-1), x_request_id="raised")
        ask(PATH, body(-8), x_request_id="forged")
        ask(PATH, b"{", x_request_id="nonsense")
        ask("/v1/models/faults:predict", {"instances": [[1]]}, x_request_id="first-version")
        ask("/v2/models/%0a%7B%22event%22%3A%22request%22%7D%1b[2J%e2%80%ae/infer", b"", x_request_id="odd\tid \xe4")
        ask(f"/v2/models/{'n' * 5000}/infer", b"", x_request_id="i" * 3000)
        stub.ModelInfer(message(5, id="by-grpc"), metadata=(("authorization", SECRETS[0]),))
        for n in range(300):
            ask(f"/v2/models/random-{n}/infer", body(1))
            ask(f"/v2/models/faults/versions/{n}/infer", body(1))

    return {form: happen(form) for form in ("json", "text")}


@pytest.fixture(scope="module")
def seen(happened, form):
    return happened[form]


@pytest.fixture(scope="module")
def found(happened):
    return happened["json"].metrics


@pytest.fixture(scope="module")
def requests(happened):
    """The access log's lines by request id."""
    lines = [json.loads(line) for line in happened["json"].lines]
    return {line["request_id"]: line for line in lines if line["event"] == "request"}


def names(found) -> set[str]:
    return {re.match(r"\w+", key)[0] for key in found}


def test_every_metric_has_its_name_and_unit(found):
    histograms = ("request_duration_seconds", "queue_duration_seconds", "compute_duration_seconds", "batch_rows")
    gauges = (
        "requests_in_flight",
        "queue_rows",
        "model_state",
        "model_load_seconds",
        "model_memory_bytes",
        "event_loop_lag_seconds",
    )
    counters = "request_bytes", "response_bytes", "batch_fallback"
    wanted = {f"serve_{h}_{part}" for h in histograms for part in ("bucket", "count", "sum")}
    wanted |= {f"serve_{g}" for g in gauges} | {f"serve_{c}_total" for c in counters}
    assert wanted <= names(found)
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= names(found)


@pytest.mark.parametrize(
    ("sample", "value"),
    [
        ('serve_request_duration_seconds_count{code="200",method="infer",model="faults",protocol="v2",version=""}', 1),
        ('serve_request_duration_seconds_count{code="200",method="infer",model="faults",protocol="v1",version=""}', 1),
        ('serve_request_duration_seconds_count{code="500",method="infer",model="faults",protocol="v2",version=""}', 2),
        ('serve_request_duration_seconds_count{code="400",method="infer",model="faults",protocol="v2",version=""}', 1),
        ('serve_request_duration_seconds_count{code="404",method="infer",model="faults",protocol="v2",version=""}', 300),
        ('serve_request_duration_seconds_count{code="404",method="infer",model="unknown",protocol="v2",version=""}', 302),
        ('serve_request_duration_seconds_count{code="OK",method="ModelInfer",model="faults",protocol="grpc",version=""}', 1),
        ('serve_batch_rows_sum{model="faults",version=""}', 7),
        ('serve_queue_duration_seconds_count{model="faults",version=""}', 3),
        ('serve_compute_duration_seconds_count{model="faults",version=""}', 5),
        ('serve_model_state{model="faults",state="READY",version=""}', 1),
        ('serve_model_state{model="faults",state="LOADING",version=""}', 0),
        ("serve_requests_in_flight", 0),
        ('serve_queue_rows{model="faults",version=""}', 0),
    ],
)
def test_what_happened_is_counted_where_it_belongs(found, sample, value):
    assert found[sample] == value


def test_labels_hold_the_names_of_loaded_models_only(found):
    labelled = [dict(re.findall(r'(\w+)="([^"]*)"', key)) for key in found]
    assert {labels["model"] for labels in labelled if "model" in labels} == {"faults", "unknown"}
    assert {labels["version"] for labels in labelled if "model" in labels and "version" in labels} == {""}


def test_buckets_go_from_half_a_millisecond_to_a_minute(found):
    edges = {float(m[1]) for key in found if (m := re.search(r'serve_request_duration.*le="([\d.]+)"', key))}
    assert min(edges) == 0.0005
    assert 60 < max(edges) < 120


def test_a_line_of_the_access_log_says_what_was_asked_and_where_the_time_went(requests):
    line = requests["good"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert {"ms", "queue_ms", "compute_ms", "batch_rows", "bytes_out"} <= set(line)
    assert line["ms"] >= line["compute_ms"] > 0
    wanted = {"protocol": "v2", "method": "infer", "path": PATH, "model": "faults", "version": "", "code": 200, "rows": 3}
    assert wanted.items() <= line.items()
    assert line["bytes_in"] == len(json.dumps(body(1, 2, 3)))
    assert requests["by-grpc"].items() >= {"protocol": "grpc", "method": "ModelInfer", "code": "OK", "rows": 1}.items()
    assert requests["first-version"].items() >= {"protocol": "v1", "code": 200, "path": "/v1/models/faults:predict"}.items()


@pytest.mark.parametrize(
    ("number", "code", "error"),
    [("raised", 500, "RuntimeFailed"), ("nonsense", 400, "InvalidRequest"), ("odd?id ?", 404, "ModelNotFound")],
)
def test_a_line_of_an_error_names_its_kind(requests, number, code, error):
    assert (requests[number]["code"], requests[number]["error"], requests[number]["rows"]) == (code, error, 0)


def test_there_is_one_line_for_each_request(requests):
    assert len(requests) == 8 + 600


def test_what_clients_choose_is_cut_to_a_length(requests):
    line = requests["i" * 256]
    assert len(line["path"]) == 1024
    assert line["model"] == "unknown"


def test_every_line_is_one_json_object_or_a_line_without_control_characters(seen, form):
    for line in seen.lines:
        if form == "json":
            assert isinstance(json.loads(line), dict)
        else:
            assert line.isprintable(), line
            # a person's line begins with the time, a traceback's with a bar
            assert re.match(r"\d\d:\d\d:\d\d  |  \| ", line), line


def test_nobody_can_fake_a_line_or_move_the_cursor(seen):
    assert not [line for line in seen.lines if line.startswith(('{"event":"request"', "forged"))]
    assert "\x1b" not in seen.stderr


def test_the_models_own_failure_is_in_the_log_with_its_traceback(seen):
    assert "secret of the model" in seen.stderr
    assert "faults.py" in seen.stderr
    assert "Logging error" not in seen.stderr


def test_secrets_of_the_headers_are_nowhere(seen):
    assert "s3cret" not in seen.stderr


@pytest.mark.parametrize(
    "line",
    [
        rf"{AT}  200  +[\d.]+ ms  v2 {PATH}  model faults  queue [\d.]+  compute [\d.]+  batch 3  rows 3  bytes \d+ \d+  id good",
        rf"{AT}  404  +[\d.]+ ms  v2 /v2/models/random-7/infer  model unknown  rows 0  bytes \d+ \d+  id [\w-]+  ModelNotFound",
        rf"{AT}  OK  +[\d.]+ ms  grpc /inference.GRPCInferenceService/ModelInfer  model faults  queue .*  id by-grpc",
    ],
)
def test_a_line_for_people_has_code_time_protocol_and_path(happened, line):
    assert [one for one in happened["text"].lines if re.fullmatch(line, one)]


def test_the_access_log_can_be_switched_off(serve, models, wire):
    with serve(f"{models}/sums.py:Sums", "--access_log=false") as server:
        with wire(server.http) as connection:
            assert connection.ask("POST", "/v2/models/sums/infer", b"").status == 400
        assert server.stop() == 0
        assert '"event":"request"' not in server.stderr


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", "0<&-", "0<&- 2>&-", "2> >(exit)"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_log_that_can_not_be_written_costs_no_request_and_no_orderly_end(serve, models, wire, redirect, workers):
    with serve(f"{models}/faults.py:Faults", "--workers", workers, redirect=redirect) as server:
        with wire(server.http) as connection:
            statuses = [connection.ask("POST", PATH, body(value)).status for value in (1, -1, 1) * 20]
        assert statuses == [200, 500, 200] * 20
        assert server.stop() == 0


def test_a_log_that_nobody_reads_holds_up_no_request_and_says_what_it_dropped(serve, models, wire, tmp_path):
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDWR)
    try:
        with serve(f"{models}/faults.py:Faults", "--log_format=json", redirect=f"2>{tmp_path}/log") as server:
            with wire(server.http) as connection:
                for n in range(300):
                    assert connection.ask("POST", f"/v2/models/{'n' * 1000}/infer", x_request_id=str(n)).status == 404
                assert connection.ask("POST", PATH, body(1)).status == 200
            assert server.stop() == 0
    finally:
        os.close(reader)


def test_a_process_without_stdout_serves_and_ends_as_usual(models, tmp_path):
    command = [sys.executable, "-P", "-m", "server", f"--model_dir={models}/sums.py:Sums", "--trust_pickle", "--output=json"]
    command += ["--http_port=0", "--grpc_port=0", "--drain_delay=0"]
    closed = subprocess.Popen(["bash", "-c", 'exec "$@" >&-', "bash", *command], stderr=subprocess.PIPE, text=True)
    said = closed.stderr.readline()
    while "model ready" not in said:
        said = closed.stderr.readline()
        assert said
    closed.terminate()
    assert closed.wait(30) == 0
    closed.stderr.close()
    full = subprocess.run(["bash", "-c", 'exec "$@" >/dev/full', "bash", *command], stderr=subprocess.PIPE, text=True, timeout=60)
    assert full.returncode == 1
    assert "serve: can't say on stdout that the model is ready: No space left on device" in full.stderr.splitlines()


def test_what_does_not_fit_is_dropped_and_said_once_there_is_a_reader_again():
    out, into = os.pipe()
    sink = Sink(into, room=300_000)
    with os.fdopen(out) as reader:
        for _ in range(50):
            sink.write(b"x" * 9_999 + b"\n")
        lines = [reader.readline()]
        while lines[-1][0] == "x":
            lines.append(reader.readline())
    os.close(into)
    notice = json.loads(lines.pop())
    assert notice == {"event": "log lines were dropped, nobody read them", "bytes": 500_000 - sum(map(len, lines))}
    assert set(map(len, lines)) == {10_000}


@pytest.mark.parametrize(("share", "answered"), [("0.25", 10), ("1", 40), ("0", 0)])
def test_a_share_of_what_was_answered_has_lines_and_all_that_failed(serve, models, wire, share, answered):
    with serve(f"{models}/sums.py:Sums", "--access_log_sample", share, "--log_format", "json") as server:
        path = f"/v2/models/{server.name}/infer"
        with wire(server.http) as connection:
            for _ in range(40):
                assert (
                    connection.ask(
                        "POST", path, {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}]}
                    ).status
                    == 200
                )
            for _ in range(3):
                assert connection.ask("POST", path, {"inputs": []}).status == 400
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.stderr.splitlines() if '"event":"request"' in line]
        assert [sum(line["code"] == code for line in lines) for code in (200, 400)] == [answered, 3]
