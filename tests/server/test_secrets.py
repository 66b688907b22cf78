"""What is nobody's business stays where it was: canaries in every place that holds secrets, and a search of all that is written.

A canary is named after its place, so that a failure says what leaked.  Where it may be is said too: an error quotes to its own
caller what that caller sent, and a model's own exception is logged as it is.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.app import model_name
from tests import buckets
from tests.conftest import EXAMPLES
from tests.server.storage.origin import Origin

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"
MODEL = (EXAMPLES / "mlp.onnx").read_bytes()
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAtest",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-key",
    "AWS_SESSION_TOKEN": "canary-aws-token",
    "GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "canary-google"}',
    "AZURE_STORAGE_ACCESS_KEY": "canary-azure-key",
    "AZURE_CLIENT_SECRET": "canary-azure-client",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:canary-otel-userinfo@127.0.0.1:9/?key=canary-otel-query",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20canary-otel-header",
    "OTEL_BSP_SCHEDULE_DELAY": "20",
    "DATABASE_URL": "postgres://user:canary-environment@db/",
}
HEADERS = {
    "authorization": "Bearer canary-authorization",
    "proxy_authorization": "Basic canary-proxy-authorization",
    "cookie": "session=canary-cookie",
    "x_api_key": "canary-api-key",
    "x_forwarded_access_token": "canary-access-token",
}
METADATA = (
    ("authorization", "Bearer canary-metadata"),
    ("x-api-key", "canary-metadata-key"),
    ("token-bin", b"canary-metadata-bin"),
)
QUERY = "?token=canary-request-query&X-Amz-Signature=canary-request-signature"


PLACES = set(re.findall(r"canary-[a-z-]*[a-z]", repr((ENVIRONMENT, HEADERS, METADATA, QUERY)))) | {
    "canary-body",
    "canary-proxy",
    "canary-signature",
    "canary-token",
    "canary-userinfo",
}


def canaries(text: str | bytes) -> set[str]:
    """The places whose canaries are in a text, also where something has percent-encoded them."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    plain = unquote(text)
    return {place for place in PLACES if place in text or place in plain}


def written(folder) -> str:
    """The names and the contents of all files in a folder."""
    found = []
    for root, folders, files in os.walk(folder):
        found += [os.path.join(root, name) for name in folders + files]
        for name in files:
            with open(os.path.join(root, name), "rb") as file:
                found.append(file.read().decode("latin-1"))
    return "\n".join(found)


@pytest.fixture
def origin():
    server = Origin()
    yield server
    server.close()


def signed(origin, path: str, *answers) -> str:
    """A URI with a password, a signature and a token, whose server answers so."""
    bare = origin.give(path, *answers).replace("http://", "http://user:canary-userinfo@")
    return f"{bare}?X-Amz-Signature=canary-signature&sig=canary-token"


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 26\r\n\r\nbad signature for the user"
ELSEWHERE = (
    b"HTTP/1.1 302 Found\r\nlocation: http://user:canary-userinfo@169.254.169.254/x?sig=canary-token\r\ncontent-length: 0\r\n\r\n"
)
SHORT = HEAD % (len(MODEL), MODEL[:100])
CASES = {
    "a good one": ("/m.onnx", (HEAD % (len(MODEL), MODEL),), (), 0),
    "not there": ("/m.onnx", (NOT_FOUND,), (), 1),
    "not allowed": ("/m.onnx", (FORBIDDEN,), (), 1),
    "redirected to where clouds keep credentials": ("/m.onnx", (ELSEWHERE,), (), 1),
    "of another checksum": ("/m.onnx", (HEAD % (len(MODEL), MODEL),), ("0" * 64,), 1),
    "no archive": ("/m.tar.gz", (HEAD % (9, b"no tar.gz"),), (), 1),
}


def environment(tmp_path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(buckets.VARIABLES) and not k.lower().endswith("_proxy")}
    return kept | ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")} | more


def run(tmp_path, *command: str, **more: str) -> subprocess.CompletedProcess:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-P", "-m", *command], capture_output=True, env=environment(tmp_path, **more), timeout=120, check=False
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", [(), ("--progress",)], ids=["text", "progress"])
def test_bringing_a_model_tells_nobody_its_uris_secrets(tmp_path, origin, case, form):
    path, answers, checksum, code = CASES[case]
    uri = signed(origin, path, *answers)
    more = [f"--sha256={checksum[0]}"] if checksum else []
    done = run(tmp_path, "server.storage", uri, str(tmp_path / "model"), *more, *form)
    assert done.returncode == code, done.stderr
    assert canaries(done.stdout + done.stderr + written(tmp_path).encode("latin-1")) == set()


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("http://user:canary@h/models/iris.skops?sig=canary", "iris"),
        ("https://h/download?token=canary", "download"),
        ("http://user:canary@h", "model"),
        ("http://user:canary@h/?sig=canary#canary", "model"),
        ("http://user:canary@[/iris.onnx", "iris"),
        ("http://user:ca/nary@h/iris.onnx", "iris"),
        ("http://h/iris/model.onnx?sig=canary", "iris"),
        ("s3://bucket/iris/", "iris"),
        ("examples/iris.skops", "iris"),
        ("model.py:Class", Path.cwd().name),
    ],
)
def test_a_models_name_is_made_of_its_path_alone(uri, name):
    assert model_name(uri) == name


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][3] == 1])
@pytest.mark.parametrize("command", ["server", "server.check"])
def test_a_server_that_can_not_be_started_says_why_without_its_uris_secrets(tmp_path, origin, case, command):
    path, answers, checksum, _ = CASES[case]
    uri = signed(origin, path, *answers) + (f"#sha256={checksum[0]}" if checksum else "")
    done = run(tmp_path, command, "--model_dir", uri, "--http_port=0", "--grpc_port=0", "--allow_private_addresses")
    assert done.returncode == 1 or b'"ok": false' in done.stdout
    assert canaries(done.stdout + done.stderr + written(tmp_path).encode("latin-1")) == set()
    assert b"http://" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("uri", "variables"),
    [
        ("http://127.0.0.1:9/m.onnx?sig=canary-token", {}),
        ("http://user:canary-userinfo@127.0.0.1:9", {}),
        ("http://user:canary-userinfo@[/m.onnx", {}),
        ("http://127.0.0.1:9/canary-not-a-secret/m.onnx?sig=canary-token", {"http_proxy": "http://user:canary-proxy@127.0.0.1:9"}),
        ("http://example.com/m.onnx?sig=canary-token", {"http_proxy": "socks5://user:canary-proxy@127.0.0.1:9"}),
        ("s3://user:canary-userinfo@bucket/m.onnx", {}),
        ("s3://bucket/m.onnx", {"AWS_ENDPOINT_URL": "http://user:canary-userinfo@127.0.0.1:9"}),
        ("s3://bucket/m.onnx", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
        ("gs://bucket/m.onnx", {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}),
        ("az://container/m.onnx", {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9"}),
        ("hf://user:canary-userinfo@owner/model?token=canary-token", {}),
    ],
)  # fmt: skip
def test_a_store_that_is_not_reached_is_named_without_secrets(tmp_path, uri, variables):
    done = run(tmp_path, "server.storage", uri, str(tmp_path / "model"), "--max-seconds=2", **variables)
    assert (done.returncode, bool(done.stderr)) == (1, True)
    assert canaries(done.stdout + done.stderr) == set()


def test_a_bucket_is_read_without_a_word_about_its_keys(tmp_path, s3_server):
    s3_server.put("models", {"m/model.onnx": MODEL})
    for uri in ("s3://models/m/", "s3://models/nothing/"):
        done = run(tmp_path, "server.storage", uri, str(tmp_path / uri[-4:-1]), "--progress", AWS_ENDPOINT_URL=s3_server.url)
        assert done.returncode == (0 if uri == "s3://models/m/" else 1)
        assert canaries(done.stdout + done.stderr + written(tmp_path).encode("latin-1")) == set()


def text_of(value: str) -> dict:
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": [value]}]}


@pytest.mark.parametrize("form", ["json", "text"])
def test_calls_that_go_well_and_calls_that_fail_leave_no_secret_anywhere(tmp_path, serve, wire, lane, origin, form, until):
    uri = signed(origin, "/m.onnx", HEAD % (len(MODEL), MODEL))
    (tmp_path / "tmp").mkdir()
    env = environment(tmp_path)
    flags = ("--log_format", form, "--trace_sample", "1", "--metrics_compat", "triton,tfs,kserve", "--runtime", "onnx", *lane)
    answers: list[bytes] = []
    with serve(uri, "--allow_private_addresses", *flags, env=env) as server:
        (tensor,) = server.info["inputs"]
        name, model, row = tensor["name"], server.name, [1.0] * tensor["shape"][1]
        good = {"inputs": [{"name": name, "shape": [1, len(row)], "datatype": tensor["datatype"], "data": row}]}
        infer = f"/v2/models/{model}/infer"
        with wire(server.http) as connection:
            for path, body in (
                (infer, good),
                (infer, good),
                (infer, good),
                (f"{infer}{QUERY}", good),
                (f"/v1/models/{model}:predict{QUERY}", {"instances": [row]}),
                (f"/v2/models/nobody/infer{QUERY}", good),
                (infer, b'{"canary-body"'),
                (infer, {**good, "canary-body": 1, "parameters": {"canary-body": "canary-body"}}),
                (infer, text_of("canary-body")),
                (f"/v1/models/{model}:predict", {"instances": [["canary-body"]]}),
                (infer, b""),
            ):
                for _ in range(3):
                    answer = connection.ask("POST", path, body, **HEADERS)
                    # its own caller may read what it sent
                    own = "canary-body" in repr(body)
                    answers.append((b"" if own else answer.body) + repr(answer.headers).encode())
            for method, path in (
                ("GET", "/"),
                ("GET", "/v2"),
                ("GET", f"/v2/models/{model}"),
                ("POST", "/v2/repository/index"),
                ("GET", "/v1/models"),
                ("GET", "/nowhere"),
                ("DELETE", infer),
                ("GET", "/docs"),
                ("GET", "/openapi.json"),
                ("GET", "/metrics"),
                ("GET", "/v2/health/ready"),
            ):
                answer = connection.ask(method, f"{path}{QUERY}", **HEADERS)
                answers.append(answer.body + repr(answer.headers).encode())
        with wire(server.http) as broken:
            broken.send_raw(b"GARBAGE canary-cookie\r\nauthorization: canary-authorization\r\n\r\n")
            answers.append(broken.read().body)
        with wire(server.http) as gone:
            gone.send("POST", infer, b"{", content_length="100", **HEADERS)
        with grpc.insecure_channel(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            given = pb.ModelInferRequest.InferInputTensor(
                name=name,
                shape=[1, len(row)],
                datatype=tensor["datatype"],
                contents={f"{tensor['datatype'].lower()}_contents": row},
            )
            _, call = stub.ModelInfer.with_call(pb.ModelInferRequest(model_name=model, inputs=[given]), metadata=METADATA)
            answers.append(repr((call.initial_metadata(), call.trailing_metadata())).encode())
            for message, ask in (
                (pb.ModelInferRequest(model_name="nobody"), stub.ModelInfer),
                (pb.ModelMetadataRequest(name="nobody"), stub.ModelMetadata),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    ask(message, metadata=METADATA)
                answers.append(repr((refused.value.details(), refused.value.trailing_metadata())).encode())
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/no.such/Method")(b"", metadata=METADATA)
            answers.append(repr(refused.value.details()).encode())
        until(lambda: "spans could not be sent" in server.stderr, "a word about the collector that is not there")
        page = httpx.get(f"{server.http}/metrics").text
        assert server.stop() == 0
        stderr = server.stderr
    assert "request" in stderr or "200" in stderr
    assert canaries(stderr) == set()
    assert canaries(json.dumps(server.info)) == set()
    assert canaries(page) == set()
    assert {found for answer in answers for found in canaries(answer)} == set()
    assert canaries(written(tmp_path)) == set()


def test_a_models_failure_is_logged_without_what_came_with_the_request(serve, models, wire):
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [-1]}], "id": "canary-body"}
    with serve(f"{models}/faults.py:Faults", "--log_format", "json", env=ENVIRONMENT) as server:
        with wire(server.http) as connection:
            for _ in range(3):
                answer = connection.ask("POST", "/v2/models/faults/infer", body, x_request_id="mine", **HEADERS)
                assert answer.status == 500
                assert canaries(answer.body) == set()
        assert server.stop() == 0
        failures = [line for line in map(json.loads, server.stderr.splitlines()) if line["event"] == "the model failed"]
        assert {line["request_id"] for line in failures} == {"mine"}
        assert all("ValueError" in line["exception"] for line in failures)
        assert canaries(server.stderr) == set()
