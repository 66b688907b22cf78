"""The eighteen kinds of models that can't be served, by `python -m server` for real: one line says what and what to do.

All are started at once, a few at a time; each model is made by a script here.
"""

import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Bad:
    """`says` are all in the one line; `make` writes what there is at `model`, in an empty folder.

    `code` 0: it is served, and says so while it starts.
    """

    number: int
    what: str
    says: tuple[str, ...]
    model: str = "model"
    files: tuple[tuple[str, object], ...] = ()
    flags: tuple[str, ...] = ()
    code: int = 1


def relu(opset: int = 21, ir: int = 10, op: str = "Relu") -> bytes:
    floats = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", floats[:1], floats[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return made.SerializeToString()


def external() -> bytes:
    """A model whose weights are in a file that is not there."""
    made = onnx.load(EXAMPLES / "external.onnx", load_external_data=False)
    return made.SerializeToString()


def zipped(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "."), text)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.add(EXAMPLES / "mlp.onnx", "model/mlp.onnx")
    return out.getvalue()


def keras(version: str, **layer: object) -> bytes:
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}
    return zipped(
        metadata__json=json.dumps({"keras_version": version}),
        config__json=json.dumps(config),
        model__weights__h5="\x89HDF\r\n\x1a\n",
    )


def pickled(text: bytes) -> bytes:
    """A pickle of an object of a module and class, such as b"module\\nClass"."""
    return b"\x80\x02c" + text + b"\n)\x81q\x00."


def python(text: str) -> bytes:
    return f"import numpy as np\nclass Model:\n    inputs = [{{'name': 'x', 'datatype': 'FP32', 'shape': [-1, 2]}}]\n    def predict(self, inputs):\n        {text}\n".encode()


IRIS = (EXAMPLES / "iris.joblib").read_bytes()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>"
MANY = (
    Bad(1, "no such path", ("no model found at", "absent.skops", "no such file or folder"), "absent.skops"),
    Bad(1, "a name with a mistake", ("no model found at", "did you mean 'model.onnx'?"), "modle.onnx", (("model.onnx", relu()),)),
    Bad(1, "an empty folder", ("no model found at", "it is empty", "looked for:"), ".", ()),
    Bad(2, "two models", ("holds several models", "a.onnx", "b.joblib", "name one of them"), ".", (("a.onnx", relu()), ("b.joblib", IRIS))),
    Bad(3, "cut short, ONNX", ("model.onnx", "as ONNX", "size 30 bytes", "copy or export it again"), "model.onnx", (("model.onnx", relu()[:30]),)),
    Bad(3, "cut short, joblib", ("model.joblib", "300 bytes", "copy or save it again"), "model.joblib", (("model.joblib", IRIS[:300]),)),
    Bad(3, "of no bytes", ("model.onnx", "an empty file", "copy or download it again"), "model.onnx", (("model.onnx", b""),)),
    Bad(3, "cut short, zip", ("model.skops", "a zip file whose end is missing", "truncated"), "model.skops", (("model.skops", zipped(a="b" * 99)[:40]),)),
    Bad(3, "another file than the one meant", ("sha256",), f"model.onnx#sha256={'0' * 64}", (("model.onnx", relu()),)),
    Bad(4, "a pointer of Git LFS", ("model.onnx", "a Git LFS pointer", "git lfs pull"), "model.onnx", (("model.onnx", LFS),)),
    Bad(4, "a web page", ("model.skops", "a web page", "download the raw file"), "model.skops", (("model.skops", PAGE),)),
    Bad(4, "a zip of a folder", ("model.zip", "a zip archive", "unpack it"), "model.zip", (("model.zip", zipped(a="b")),)),
    Bad(4, "a tar", ("model.tar.gz", "a tar archive", "unpack it"), "model.tar.gz", (("model.tar.gz", tarred()),)),
    Bad(5, "a pickle named .onnx", ("model.onnx", "its content is a pickle", ".pkl"), "model.onnx", (("model.onnx", pickle.dumps({})),)),
    Bad(5, "ONNX named .skops", ("model.skops", "ONNX", ".onnx"), "model.skops", (("model.skops", relu()),)),
    Bad(6, "a module that is not here", ("model.pkl", "'no_such_package'", "pip install no_such_package"), "model.pkl", (("model.pkl", pickled(b"no_such_package.sub\nThing")),)),
    Bad(6, "a class of a script", ("model.pkl", "'Thing' from the script that saved it (__main__)", "module of its own"), "model.pkl", (("model.pkl", pickled(b"__main__\nThing")),)),
    Bad(7, "a pickle that is not trusted", ("model.joblib", "can run any code", "skops.io.dump", "--trust-pickle"), "model.joblib", (("model.joblib", IRIS),), ("--trust_pickle=false",)),
    Bad(7, "Python that is not trusted", ("model.py", "Python code", "--trust-pickle"), "model.py", (("model.py", python("return 1")),), ("--trust_pickle=false",)),
    Bad(8, "of another version", ("model.joblib", "scikit-learn 0.1.0", "pip install"), "model.joblib", (("model.joblib", "another version"),), ("--strict_versions",)),
    Bad(9, "unfitted", ("model.pkl", "not fitted"), "model.pkl", (("model.pkl", "unfitted"),)),
    Bad(9, "no estimator", ("model.pkl", "dict"), "model.pkl", (("model.pkl", pickle.dumps({"a": 1})),)),
    Bad(10, "an opset to come", ("model.onnx", "opset 99 of domain ai.onnx", "onnxruntime"), "model.onnx", (("model.onnx", relu(opset=99)),)),
    Bad(10, "an IR to come", ("model.onnx", "IR version 99", "reads up to"), "model.onnx", (("model.onnx", relu(ir=99)),)),
    Bad(10, "an operator that is none", ("model.onnx", "operator Foo of domain ai.onnx (opset 21) is unknown"), "model.onnx", (("model.onnx", relu(op="Foo")),)),
    Bad(10, "weights that are not here", ("model.onnx", "external.weights", "there is no such file", "copy it into"), "model.onnx", (("model.onnx", external()),)),
    Bad(11, "a frozen graph", ("frozen.pb", "TensorFlow 1's frozen form", "SavedModel"), "frozen.pb", (("frozen.pb", b"\n\x04node"),)),
    Bad(12, "a Lambda layer", ("model.keras", "Lambda layers (f)", "run unchecked", "model.export(folder)"), "model.keras", (("model.keras", keras("3.9.0", class_name="Lambda", config={"name": "f"}, name="f")),)),
    Bad(13, "a provider that is none", ("no execution provider is called 'cdua'", "did you mean", "known:"), "model.onnx", (("model.onnx", relu()),), ("--runtime_option=providers=cdua",)),
    Bad(13, "a GPU that is not here", ("CUDAExecutionProvider was asked for and is not available",), "model.onnx", (("model.onnx", relu()),), ("--runtime_option=providers=cuda,cpu",), 0),
    Bad(14, "larger than the memory", ("model.onnx is 16.0 GB", "this process may use 12.3 GB of memory", "more memory"), "model.onnx", (("model.onnx", 16_000_000_000),)),
    Bad(15, "a scheme that is not known", ("ftp",), "ftp://host/model.onnx"),
    Bad(15, "a server that is not there", ("http://127.0.0.1:9/model.onnx",), "http://127.0.0.1:9/model.onnx"),
    Bad(15, "a link to what only this machine may read", ("169.254.169.254",), "http://169.254.169.254/model.onnx"),
    Bad(17, "a model that fails on made-up rows", ("does not take made-up inputs", "ValueError: no"), "model.py", (("model.py", python("raise ValueError('no')")),), (), 0),
    Bad(18, "a name with a slash", ("--model_name", "a/b"), "model.onnx", (("model.onnx", relu()),), ("--model_name=a/b",), 2),
)  # fmt: skip
# of TensorFlow's there is one of each here, since each costs its import; more are in tests/predictors/test_tensorflow.py
ELSEWHERE = {16: "half-copied versions are the repository's: nothing of one is served before it is whole"}


def write(folder: Path, name: str, content: object) -> None:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, int):
        # a hole: of that size, and on no disk
        with path.open("wb") as file:
            file.truncate(content)
    else:
        import joblib
        from sklearn.linear_model import LinearRegression

        model = LinearRegression()
        if content == "another version":
            model.fit([[0], [1]], [0, 1])
            raw = pickle.dumps(model, 2)
            import sklearn

            path.write_bytes(_with_version(raw, sklearn.__version__))
        else:
            joblib.dump(model, path)


def _with_version(raw: bytes, version: str) -> bytes:
    """A pickle that says it was made by version 0.1.0."""
    was, now = version.encode(), b"0.1.0"
    at = raw.index(was)
    # protocol 2 writes a text's length before it, in four bytes
    assert raw[at - 4 : at] == len(was).to_bytes(4, "little")
    return raw[: at - 4] + len(now).to_bytes(4, "little") + now + raw[at + len(was) :]


def started(bad: Bad, folder: Path) -> tuple[int, str]:
    """The exit code and what was said; 0 where it is served, which then ends."""
    for name, content in bad.files:
        write(folder, name, content)
    uri = bad.model if "://" in bad.model else str(folder) if bad.model == "." else f"{folder}/{bad.model}"
    flags = ["--http_port=0", "--grpc_port=0", "--output=json", "--drain_delay=0", *bad.flags]
    # what is mapped is bounded, as a container's memory is: 12 GB
    limited = 'ulimit -v 12000000; exec "$@"'
    command = ["bash", "-c", limited, "bash", sys.executable, "-P", "-m", "server", "--model_dir", uri, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
    try:
        if process.stdout.readline():
            process.terminate()
            return 0, process.communicate(timeout=60)[1]
        return process.wait(60), process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict[Bad, Future]:
    with ThreadPoolExecutor(2) as pool:
        yield {bad: pool.submit(started, bad, tmp_path_factory.mktemp("bad")) for bad in MANY}


@pytest.mark.parametrize("bad", MANY, ids=lambda bad: f"M{bad.number}-{bad.what}")
def test_a_model_that_can_not_be_served_is_named_with_what_to_do(ends, bad):
    code, said = ends[bad].result()
    assert code == bad.code, said
    for text in bad.says:
        assert text in said
    assert "Traceback" not in said
    if code == 1:
        assert said.startswith("serve: ")
        assert said.count("\n") == 1


def test_every_number_is_tried_or_said_to_be_elsewhere():
    assert {bad.number for bad in MANY} | set(ELSEWHERE) == set(range(1, 19))


def test_a_name_for_urls_is_made_of_a_files_name(serve, tmp_path):
    """Number 18: what a URL or Kubernetes would not take becomes a dash."""
    (tmp_path / "my model (2).onnx").write_bytes(relu())
    with serve(tmp_path / "my model (2).onnx") as server:
        assert server.name == "my-model--2"
