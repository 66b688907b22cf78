"""Which runtime a path wants, by endings and first bytes; files are made here, and nothing is opened as a model."""

import bz2
import gzip
import io
import lzma
import pickle
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from predictors.formats import content_of, find, sniff
from server.errors import ModelLoadError
from server.runtime import ModelFile


def zip_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return buffer.getvalue()


def tar(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as archive:
        info = tarfile.TarInfo("model.onnx")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    return buffer.getvalue()


PICKLE = pickle.dumps({"coef": [1.0, 2.0]})
# ir_version 10, producer_name "skl2onnx"
ONNX = b"\x08\x0a\x12\x08skl2onnx" + b"\x00" * 20
SKOPS = zip_of("schema.json", "array.npy")
KERAS = zip_of("metadata.json", "config.json", "model.weights.h5")
HDF5 = b"\x89HDF\r\n\x1a\n" + b"\x00" * 20
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
XML = b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>'
CODE = b"class Model:\n    def predict(self, inputs):\n        return inputs\n"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


FILES = [
    ("model.skops", SKOPS, "skops", "sklearn"),
    ("model.joblib", PICKLE, "joblib", "sklearn"),
    ("model.joblib", zlib.compress(PICKLE), "joblib", "sklearn"),
    ("model.joblib", zlib.compress(PICKLE, 1), "joblib", "sklearn"),
    ("model.joblib", gzip.compress(PICKLE), "joblib", "sklearn"),
    ("model.joblib", lzma.compress(PICKLE), "joblib", "sklearn"),
    ("model.pkl", bz2.compress(PICKLE), "pickle", "sklearn"),
    ("model.pkl", PICKLE, "pickle", "sklearn"),
    ("model.pickle", pickle.dumps([1, 2], protocol=0), "pickle", "sklearn"),
    ("MODEL.PKL", PICKLE, "pickle", "sklearn"),
    ("model.onnx", ONNX, "onnx", "onnx"),
    ("model.onnx", b"\x3a\x05graph", "onnx", "onnx"),
    ("model.keras", KERAS, "keras", "tensorflow"),
    ("model.h5", HDF5, "h5", "tensorflow"),
    ("model.hdf5", HDF5, "h5", "tensorflow"),
    ("model.py", CODE, "python", "python"),
    ("model", PICKLE, "pickle", "sklearn"),
    ("blob.bin", ONNX, "onnx", "onnx"),
    ("download", SKOPS, "skops", "sklearn"),
]


@pytest.mark.parametrize(("name", "content", "format_", "runtime"), FILES)
def test_a_file_is_known_by_its_ending_and_first_bytes(
    tmp_path: Path, name: str, content: bytes, format_: str, runtime: str
) -> None:
    write(tmp_path, {name: content})
    assert find(tmp_path / name) == ModelFile(tmp_path / name, format_, runtime)
    assert find(tmp_path / name, runtime) == ModelFile(tmp_path / name, format_, runtime)


WRONG_FILES = [
    ("model.onnx", b"", ["empty file"]),
    ("model.onnx", LFS, ["Git LFS pointer", "git lfs pull"]),
    ("model.joblib", LFS, ["Git LFS pointer"]),
    ("model.onnx", HTML, ["web page"]),
    ("model.keras", XML, ["XML document"]),
    ("model.onnx", PICKLE, ["named like an onnx model", "a pickle", ".pkl"]),
    ("model.pkl", ONNX, ["ONNX", ".onnx"]),
    ("model.joblib", SKOPS, ["a skops file", ".skops"]),
    ("model.joblib", zip_of("a/model.pkl"), ["a zip archive", "unpack"]),
    ("model.skops", PICKLE, ["a pickle"]),
    ("model.skops", SKOPS[:40], ["truncated"]),
    ("model.keras", zip_of("archive/data.pkl", "archive/data/0"), ["PyTorch", "torch.onnx.export"]),
    ("model.keras", HDF5, ["HDF5", ".h5"]),
    ("model.h5", KERAS, ["a Keras model", ".keras"]),
    ("model.pkl", npy(), ["NumPy arrays"]),
    ("model.joblib", tar(compressed=True), ["a tar archive", "unpack"]),
    ("model.tar.gz", tar(compressed=True), ["a tar archive", "unpack"]),
    ("model.tar", tar(compressed=False), ["a tar archive"]),
    ("model.zip", zip_of("model/saved_model.pb"), ["a zip archive", "unpack"]),
    ("model.pt", zip_of("archive/data.pkl"), ["no runtime for PyTorch", "ONNX"]),
    ("model.safetensors", b"\x40\0\0\0\0\0\0\0" + b'{"a":1}', ["no runtime for safetensors", "ONNX"]),
    ("weights.bin", b"\x40\0\0\0\0\0\0\0" + b'{"a":1}', ["safetensors"]),
    ("model.bst", b"binf", ["no runtime for XGBoost", "ONNX"]),
    ("model.json", b'{"learner": {}}', ["JSON document", "XGBoost", "ONNX"]),
    ("frozen_graph.pb", b"\x0a\x10abc", ["frozen", "SavedModel", "tf2onnx"]),
    ("model.tflite", b"\x1c\0\0\0TFL3", ["not built"]),
    ("model.onnx", b"\x1c\0\0\0TFL3", ["TensorFlow Lite"]),
    ("model.weights.h5", HDF5, ["weights only", "model.save"]),
    ("notes.txt", b"remember the milk", ["not a model", "looked for: *.skops"]),
    ("modl.onnx", None, ["no model found", "did you mean 'model.onnx'"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), WRONG_FILES)
def test_a_file_that_is_no_model_is_named_with_what_it_is_and_what_to_do(
    tmp_path: Path, name: str, content: bytes | None, says: list[str]
) -> None:
    write(tmp_path, {name: content} if content is not None else {"model.onnx": ONNX})
    with pytest.raises(ModelLoadError) as caught:
        find(tmp_path / name)
    for part in [str(tmp_path / name), *says]:
        assert part in str(caught.value)


# files, runtime asked for -> the path found (relative), its format
FOLDERS = [
    ({"model.onnx": ONNX}, None, "model.onnx", "onnx"),
    ({"model.onnx": ONNX, "model.onnx.data": b"w", "README.md": b"hi", "config.json": b"{}"}, None, "model.onnx", "onnx"),
    ({"model.joblib": PICKLE, "x_test.npy": npy(), "requirements.txt": b"scikit-learn"}, None, "model.joblib", "joblib"),
    ({"model.joblib": PICKLE, ".model.onnx.swp": ONNX, ".git/model.onnx": ONNX}, None, "model.joblib", "joblib"),
    ({"model.pkl": PICKLE, "MLmodel": b"flavors:", "conda.yaml": b"", "train.py": CODE}, None, "model.pkl", "pickle"),
    ({"model.onnx": ONNX, "model.joblib": PICKLE}, "onnx", "model.onnx", "onnx"),
    ({"model.onnx": ONNX, "model.joblib": PICKLE}, "sklearn", "model.joblib", "joblib"),
    ({"model.keras": KERAS, "model.weights.h5": HDF5}, None, "model.keras", "keras"),
    ({"saved_model.pb": b"\x08\x01", "variables/variables.index": b"x", "keras_metadata.pb": b"x"}, None, "", "savedmodel"),
    ({"saved_model.pbtxt": b"meta_graphs {}"}, "tensorflow", "", "savedmodel"),
    ({"saved_model.pb": b"\x08\x01", "model.onnx": ONNX}, "onnx", "model.onnx", "onnx"),
    ({"1/saved_model.pb": b"\x08\x01", "2/saved_model.pb": b"\x08\x01"}, None, "2", "savedmodel"),
    ({"9/model.onnx": ONNX, "10/model.onnx": ONNX, "config.pbtxt": b""}, None, "10/model.onnx", "onnx"),
    ({"0001/model.joblib": PICKLE, "notes/a.onnx": ONNX}, None, "0001/model.joblib", "joblib"),
    ({"1/model.savedmodel/saved_model.pb": b"\x08\x01"}, None, "1/model.savedmodel", "savedmodel"),
    ({"export/saved_model.pb": b"\x08\x01", "README": b""}, None, "export", "savedmodel"),
    ({"model.py": CODE, "helpers.py": CODE, "__init__.py": b""}, None, "model.py", "python"),
    ({"forecaster.py": CODE}, None, "forecaster.py", "python"),
    ({"model.py": CODE, "model.joblib": PICKLE}, "python", "model.py", "python"),
    ({"model.py": CODE, "model.joblib": PICKLE}, "sklearn", "model.joblib", "joblib"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "runtime", "found", "format_"), FOLDERS)
def test_a_folder_has_one_model(tmp_path: Path, files: dict[str, bytes], runtime: str | None, found: str, format_: str) -> None:
    model = find(write(tmp_path, files), runtime)
    assert (model.path, model.format) == (tmp_path / found, format_)


WRONG_FOLDERS = [
    ({}, None, ["no model found", "it is empty", "looked for:", "*.onnx", "saved_model.pb"]),
    ({"README.md": b"hi"}, None, ["no model found", "README.md", "looked for:"]),
    ({"model.onnx": ONNX, "model.joblib": PICKLE}, None, ["several models: model.joblib, model.onnx", "--runtime"]),
    ({"a.joblib": PICKLE, "b.pkl": PICKLE}, "sklearn", ["several models: a.joblib, b.pkl"]),
    ({"model.py": CODE, "model.joblib": PICKLE}, None, ["several models: model.py, model.joblib"]),
    ({"a.py": CODE, "b.py": CODE}, None, ["several models: a.py, b.py"]),
    ({"model.joblib": PICKLE}, "onnx", ["no model found", "looked for: *.onnx"]),
    ({"model.pt": b"\x80\x02"}, None, ["model.pt", "no runtime for PyTorch"]),
    ({"graph.pb": b"\x0a\x10"}, None, ["graph.pb", "frozen"]),
    ({"model.tar.gz": tar(compressed=True)}, None, ["model.tar.gz is a tar archive", "unpack"]),
    ({"1/model.onnx": ONNX, "2/README": b""}, None, ["/2 (the highest version in"]),
    ({"saved_model.pb": LFS}, None, ["saved_model.pb", "Git LFS pointer"]),
    ({"1/saved_model.pb": b""}, None, ["1/saved_model.pb", "empty file"]),
    ({"model.onnx": LFS}, None, ["model.onnx", "Git LFS pointer"]),
    ({"model.onnx": ONNX}, "onx", ["no runtime is called 'onx'", "did you mean 'onnx'"]),
]  # fmt: skip


@pytest.mark.parametrize(("files", "runtime", "says"), WRONG_FOLDERS)
def test_a_folder_without_exactly_one_model_is_refused_with_what_it_holds(
    tmp_path: Path, files: dict[str, bytes], runtime: str | None, says: list[str]
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        find(write(tmp_path, files), runtime)
    for part in says:
        assert part in str(caught.value)


def test_a_class_may_be_named_after_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"model.py": CODE})
    assert find(tmp_path / "model.py:Model") == ModelFile(tmp_path / "model.py", "python:Model", "python")
    with pytest.raises(ModelLoadError, match="no such file"):
        find(tmp_path / "other.py:Model")


def test_a_saved_model_may_be_named_by_its_file(tmp_path: Path) -> None:
    write(tmp_path, {"saved_model.pb": b"\x08\x01"})
    assert find(tmp_path / "saved_model.pb") == ModelFile(tmp_path, "savedmodel", "tensorflow")


def test_a_file_for_another_runtime_than_the_one_asked_for_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"model.onnx": ONNX})
    with pytest.raises(ModelLoadError, match=r"is for the onnx runtime .* sklearn runtime was asked for"):
        find(tmp_path / "model.onnx", "sklearn")


@pytest.mark.parametrize("runtime", ["sklearn", "onnx"])
def test_the_runtime_decides_about_a_file_that_tells_nothing(tmp_path: Path, runtime: str) -> None:
    write(tmp_path, {"model.dat": b"\x3a\x99\x01 no magic"})
    assert find(tmp_path / "model.dat", runtime).runtime == runtime


def test_a_symbolic_link_is_followed_as_kubernetes_mounts_files(tmp_path: Path) -> None:
    write(tmp_path, {"..data/model.onnx": ONNX})
    (tmp_path / "model.onnx").symlink_to("..data/model.onnx")
    assert find(tmp_path) == ModelFile(tmp_path / "model.onnx", "onnx", "onnx")


@pytest.mark.parametrize("length", range(40))
def test_any_beginning_of_a_file_has_a_kind(tmp_path: Path, length: int) -> None:
    for content in (PICKLE, ONNX, SKOPS, KERAS, HDF5, LFS, HTML, XML, CODE, tar(compressed=True)):
        assert sniff(content[:length])
        (tmp_path / "file").write_bytes(content[:length])
        assert content_of(tmp_path / "file")


def test_finding_a_model_imports_no_framework(tmp_path: Path) -> None:
    write(tmp_path, {"model.skops": SKOPS})
    code = (
        "import sys; from pathlib import Path; from predictors.formats import find; find(Path(sys.argv[1]));"
        "print(sorted({'sklearn', 'onnx', 'onnxruntime', 'tensorflow', 'keras', 'joblib', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
