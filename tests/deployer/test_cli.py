"""The `serve` command as a person types it: what it prints where, and with which code it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"


def serve(*arguments, timeout=120, **options):
    command = [sys.executable, "-P", "-m", "deployer.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False, **options
    )


WRONG = [
    ("no command", [], 2, ""),
    ("an unknown command", ["rnu"], 2, "No such command"),
    ("no model", ["run"], 2, "MODEL"),
    ("an unknown option", ["run", "m.onnx", "--runtim", "onnx"], 2, "--runtime"),
    ("a port that is none", ["run", "m.onnx", "--http-port", "99999"], 2, "65535"),
    ("no workers", ["run", "m.onnx", "--workers", "0"], 2, "--workers"),
    ("nothing there", ["run", "/nowhere/m.onnx", "--http-port=0", "--grpc-port=0"], 1, "no model found at /nowhere/m.onnx"),
    ("nothing to deploy", ["deploy", "/nowhere/m.onnx"], 1, "no model found at /nowhere/m.onnx"),
    ("no such cluster", ["get", "--target", "kubernetes", "--context", "nowhere"], 1, "no cluster to talk to"),
    (
        "an ingress that is no URL",
        ["predict", "iris", "--target", "kubernetes", "--gateway", "127.0.0.1:1"],
        2,
        "http://127.0.0.1:1",
    ),
    ("a context of this machine", ["get", "--context", "x"], 2, "--target kubernetes"),
    ("a name that is none", ["deploy", EXAMPLES / "iris.skops", "--name", "Two Words"], 2, "'two-words' would do"),
    ("a time that is none", ["deploy", EXAMPLES / "iris.skops", "--timeout", "soon"], 2, "30s, 2m or 1h"),
    ("a time that is no number", ["deploy", EXAMPLES / "iris.skops", "--timeout", "nan"], 2, "30s, 2m or 1h"),
    ("a time before now", ["deploy", EXAMPLES / "iris.skops", "--timeout=-5s"], 2, "30s, 2m or 1h"),
    ("a model for a manifest", ["apply", "-f", EXAMPLES / "iris.skops"], 2, "not text in UTF-8"),
    ("nothing to apply", ["apply", "-f", "/nowhere.yaml"], 2, "can't be read"),
    ("nothing to delete", ["delete"], 2, "name a service"),
    ("nothing to check", ["check", "/nowhere/m.onnx"], 1, "no model found at /nowhere/m.onnx"),
    (
        "a scheme that is not built",
        ["run", "hf://owner/m.onnx", "--http-port=0", "--grpc-port=0"],
        1,
        "Hugging Face hub is not built",
    ),
    ("a pickle that is not trusted", ["check", EXAMPLES / "iris.joblib", "--no-trust-pickle"], 1, "--trust-pickle"),
]


@pytest.mark.parametrize(("arguments", "code", "text"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_mistake_ends_with_its_code_and_a_text_without_a_traceback(arguments, code, text):
    done = serve(*arguments)
    assert done.returncode == code
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


HOMES = [
    ("too long for a socket", "/tmp/" + "h" * 90, "SERVEPLANE_HOME moves it"),
    ("not to be made", "/proc/nowhere", "/proc/nowhere: No such file or directory; SERVEPLANE_HOME moves"),
    ("a file", __file__, "SERVEPLANE_HOME moves"),
]


@pytest.mark.parametrize(("home", "text"), [h[1:] for h in HOMES], ids=[h[0] for h in HOMES])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["get"], 1), (["deploy", EXAMPLES / "iris.skops"], 1), (["platform", "up"], 1), (["doctor"], 1), (["platform", "down"], 0)],
    ids=["get", "deploy", "up", "doctor", "down"],
)
def test_a_state_directory_that_can_t_be_used_is_told_with_what_to_do(arguments, code, home, text):
    done = serve(*arguments, env={**os.environ, "SERVEPLANE_HOME": home})
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert text in done.stdout + done.stderr or code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["status", "iris"], 3, "--target kubernetes"),
        (["predict", "iris"], 3, "no InferenceService 'iris'"),
        (["logs", "iris"], 3, "no InferenceService 'iris'"),
        (["rollback", "iris"], 3, "no InferenceService 'iris'"),
        (["delete", "iris"], 3, "no InferenceService 'iris'"),
        (["get"], 0, "no services here"),
    ],
)
def test_a_look_at_what_is_not_there_starts_nothing(arguments, code, text, tmp_path):
    home = tmp_path / "home"
    done = serve(*arguments, env={**os.environ, "SERVEPLANE_HOME": str(home)})
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert not (home / "supervisor.lock").exists()


def test_the_machines_doctor_says_that_it_looks_at_no_cluster(tmp_path):
    done = serve("doctor", env={**os.environ, "SERVEPLANE_HOME": str(tmp_path / "h"), "SERVE_TARGET": "kubernetes"})
    assert "this machine" in done.stderr


def test_output_that_can_t_be_written_ends_with_a_line_that_says_so():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-P", "-m", "deployer.cli", "render", "-f", EXAMPLES / "manifests" / "iris.yaml"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("model", ["iris.skops", "mlp.onnx", "python/model.py"])
def test_check_tells_what_a_model_is(model):
    done = serve("check", EXAMPLES / model)
    assert done.returncode == 0, done.stderr
    for word in ("runtime", "inputs", "outputs", "load", "1 row", "memory"):
        assert word in done.stdout


def test_check_prints_one_json_object_for_programs():
    found = json.loads(serve("check", EXAMPLES / "mlp.onnx", "-o", "json").stdout)
    assert found["ok"]
    assert found["platform"] == "onnx_onnxv1"
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}]
    assert set(found["latency_ms"]) == {"1", "8", "64"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("import os; os._exit(7)", "exit code 7"),
        ("import sys; sys.exit(3)", "model.py"),
        ("raise ValueError('bad weights')", "bad weights"),
    ],
)
def test_a_model_that_ends_its_process_is_a_finding(tmp_path, body, text):
    (tmp_path / "model.py").write_text(
        f"class M:\n    def predict(self, inputs): ...\n    def load(self, path):\n        {body}\n"
    )
    done = serve("check", tmp_path / "model.py")
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_model_prints_while_it_loads_does_not_spoil_the_report(tmp_path):
    code = "print('hello')\nclass M:\n    def predict(self, inputs): return {'y': inputs['x']}\n"
    (tmp_path / "model.py").write_text(code)
    done = serve("check", tmp_path / "model.py", "-o", "json")
    assert json.loads(done.stdout)["ok"]


def test_a_directory_full_of_misleading_names_changes_nothing(tmp_path):
    for name in ("server", "predictors", "deployer", "numpy", "typer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('wrong file')\n")
    done = serve("check", EXAMPLES / "mlp.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_run_becomes_the_predictor_and_its_stdout_is_the_ready_line_alone(tmp_path):
    code = "print('hello')\nclass M:\n    def predict(self, inputs): return {'y': inputs['x']}\n"
    (tmp_path / "model.py").write_text(code)
    command = [sys.executable, "-P", "-m", "deployer.cli", "run", "model.py", "--http-port=0", "--grpc-port=0", "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path) as process:
        said = json.loads(process.stdout.readline())
        running = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
    assert process.returncode == 0
    assert running[1:4] == [b"-P", b"-m", b"server"]
    assert {"name", "runtime", "http", "grpc", "inputs", "outputs"} <= set(said)


def test_what_would_be_made_on_a_cluster_has_the_route_and_says_what_is_left_out():
    done = serve("render", "-f", EXAMPLES / "manifests" / "iris.yaml", "--target", "kubernetes")
    assert "VirtualService" in {one["kind"] for one in yaml.safe_load_all(done.stdout)}
    assert "ControllerRevision" in done.stderr


def test_the_version_is_one_word():
    assert serve("version").stdout.strip().count(".") == 2
    assert serve("--version").stdout == serve("version").stdout


def test_every_example_manifest_is_rendered_with_what_would_run():
    done = serve("render", "-f", EXAMPLES / "manifests")
    assert done.returncode == 0, done.stderr
    found = list(yaml.safe_load_all(done.stdout))
    services = [
        text for text in (p.read_text() for p in (EXAMPLES / "manifests").glob("*.yaml")) if "kind: InferenceService" in text
    ]
    assert len(found) >= len(services)
    iris = next(one for one in found if one["object"]["metadata"]["name"] == "iris")
    (command,) = iris["local"].values()
    assert command[1:4] == ["-P", "-m", "server"]
    assert any(one["plan"]["problems"] for one in found), "the manifest with containers of its own can't run here"
