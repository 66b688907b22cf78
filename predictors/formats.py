"""Which model lies at a path, and which runtime it wants: told by endings and first bytes.

Nothing here opens a model or imports a framework; a zip file's list of members is as far as it looks.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from server.errors import ModelLoadError
from server.runtime import ModelFile
from server.tensors import did_you_mean


@dataclass(frozen=True)
class Format:
    """`contents` are the kinds of content (the keys of CONTENTS) that a file with one of these endings may have."""

    name: str
    runtime: str
    endings: tuple[str, ...]
    contents: frozenset[str]


COMPRESSED = ("gzip", "zlib", "xz", "bzip2", "lzma", "lz4")
FORMATS = tuple(
    Format(name, runtime, endings, frozenset(contents))
    for name, runtime, endings, contents in (
        ("skops", "sklearn", (".skops",), ("skops",)),
        ("joblib", "sklearn", (".joblib",), ("pickle", "unknown", *COMPRESSED)),
        ("pickle", "sklearn", (".pkl", ".pickle"), ("pickle", "unknown", *COMPRESSED)),
        # protobuf has no magic bytes: what is nothing else may be ONNX
        ("onnx", "onnx", (".onnx",), ("onnx", "unknown")),
        ("keras", "tensorflow", (".keras",), ("keras",)),
        ("h5", "tensorflow", (".h5", ".hdf5"), ("hdf5",)),
        ("python", "python", (".py",), ("unknown",)),
    )
)
OF_ENDING = {ending: f for f in FORMATS for ending in f.endings}
OF_NAME = {f.name: f for f in FORMATS}
# Names of contents that some format stands for, for files whose ending says nothing.
OF_CONTENT = {"skops": "skops", "pickle": "pickle", "onnx": "onnx", "keras": "keras", "hdf5": "h5"}
RUNTIMES = ("sklearn", "onnx", "tensorflow", "python")
SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")


@dataclass(frozen=True)
class Content:
    """What first bytes told: what it is called, and what to do about a model file that turns out to be that."""

    called: str
    remedy: str


_UNPACK = "unpack it and name the model inside"
CONTENTS = {
    "empty": Content("an empty file", "copy or download it again"),
    "lfs": Content("a Git LFS pointer, not the file it stands for", "run `git lfs pull` where it was cloned, and copy it again"),
    "html": Content("a web page", "download the raw file: the address gave a page, often a login or an error"),
    "xml": Content("an XML document", "open it in a text editor: storage services answer errors in this form"),
    "json": Content("a JSON document", "name the model file itself"),
    "tar": Content("a tar archive", _UNPACK),
    "zip": Content("a zip archive", _UNPACK),
    "7z": Content("a 7-Zip archive", _UNPACK),
    "zstd": Content("zstandard-compressed data", "decompress it first"),
    "damaged zip": Content("the beginning of a zip file whose end is missing", "it is truncated: copy or download it again"),
    "numpy": Content("NumPy arrays", "save the fitted model itself, not only its numbers"),
    "torch": Content("a PyTorch file", "export it with torch.onnx.export(model, example, 'model.onnx')"),
    "safetensors": Content("a safetensors file, which holds weights only", "export the whole model to ONNX"),
    "tflite": Content("a TensorFlow Lite model", "there is no runtime for it: serve the SavedModel that it was converted from"),
    "parquet": Content("a Parquet table", "name the model, not its data"),
    "skops": Content("a skops file", "rename it so that it ends in .skops"),
    "keras": Content("a Keras model", "rename it so that it ends in .keras"),
    "hdf5": Content("an HDF5 file", "rename it so that it ends in .h5 if it is a Keras model"),
    "pickle": Content("a pickle", "rename it so that it ends in .pkl, or in .joblib if joblib.dump wrote it"),
    "onnx": Content("what looks like an ONNX model", "rename it so that it ends in .onnx"),
    "unknown": Content("nothing that is recognised", "check that it is the right file, and whole"),
    **{name: Content(f"{name}-compressed data", "decompress it first") for name in COMPRESSED},
}

_ONNX = "; convert it to ONNX and serve that"
NO_RUNTIME = {
    **dict.fromkeys((".pt", ".pth", ".torchscript", ".mar"), f"there is no runtime for PyTorch files{_ONNX} (torch.onnx.export)"),
    ".safetensors": f"there is no runtime for safetensors, which hold weights only{_ONNX}",
    **dict.fromkeys((".bst", ".ubj", ".xgb"), f"there is no runtime for XGBoost files{_ONNX} (onnxmltools)"),
    ".cbm": f"there is no runtime for CatBoost files{_ONNX} (save_model(…, format='onnx'))",
    ".lgb": f"there is no runtime for LightGBM files{_ONNX} (onnxmltools)",
    ".pmml": f"there is no runtime for PMML{_ONNX}",
    ".mlmodel": f"there is no runtime for Core ML{_ONNX}",
    ".gguf": "there is no runtime for language models in GGUF",
    ".ckpt": "a checkpoint holds weights only; export the model (model.export(folder), or torch.onnx.export)",
    ".tflite": "TensorFlow Lite support is not built; serve the SavedModel that it was converted from",
    ".pb": "a bare GraphDef (.pb) is TensorFlow 1's frozen form and has no signatures; export it again as a SavedModel, "
    "for example with tf.compat.v1.saved_model.simple_save, or convert it with tf2onnx",
}  # fmt: skip


def find(path: Path, runtime: str | None = None) -> ModelFile:
    """The one model at a path: a file, a folder with one, a SavedModel, a folder of numbered versions, `model.py:Class`.

    ModelLoadError where there is none, several that `runtime` does not decide between, or a file that is not what its
    name says.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise ModelLoadError(
            f"no runtime is called {runtime!r}{did_you_mean(runtime, RUNTIMES)}", f"these are built in: {', '.join(RUNTIMES)}"
        )
    file, class_name = _split_class(path)
    if file.is_dir():
        return _in_folder(file, runtime, file)
    if not file.exists():
        raise ModelLoadError(f"no model found at {path}: there is no such file or folder{_near(file)}")
    if file.name in SAVED_MODEL:
        return _with_runtime(_saved_model(file.parent), runtime)
    found = _of_file(file, class_name, runtime)
    return _with_runtime(found, runtime)


def _split_class(path: Path) -> tuple[Path, str]:
    """`model.py:Class` as a file and a class name (empty where none is given)."""
    name = re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", path.name)
    if name is None or path.exists():
        return path, ""
    return path.with_name(name[1]), name[2]


def _near(path: Path) -> str:
    folder = path.parent
    return did_you_mean(path.name, [p.name for p in _visible(folder)]) if folder.is_dir() else ""


def _with_runtime(found: ModelFile, runtime: str | None) -> ModelFile:
    if runtime is not None and found.runtime != runtime:
        raise ModelLoadError(
            f"{found.path} is for the {found.runtime} runtime ({found.format}), and the {runtime} runtime was asked for",
            f"leave the choice of runtime out, or name a model that {runtime} can open",
        )
    return found


def _of_file(path: Path, class_name: str, runtime: str | None) -> ModelFile:
    ending = path.suffix.lower()
    content = content_of(path)
    wanted = OF_ENDING.get(ending)
    if wanted is None:
        return _of_unknown_ending(path, content, runtime)
    if content not in wanted.contents:
        raise _not_as_named(path, wanted, content)
    if wanted.name == "h5" and path.name.endswith(".weights.h5"):
        raise ModelLoadError(f"{path} holds a Keras model's weights only", "save the whole model: model.save('model.keras')")
    name = f"python:{class_name}" if class_name else wanted.name
    return ModelFile(path, name, wanted.runtime)


def _not_as_named(path: Path, wanted: Format, content: str) -> ModelLoadError:
    found = CONTENTS[content]
    kind = f"{'an' if wanted.name in ('onnx', 'h5') else 'a'} {wanted.name} model"
    return ModelLoadError(f"{path} is named like {kind}, but its content is {found.called}", found.remedy)


def _of_unknown_ending(path: Path, content: str, runtime: str | None) -> ModelFile:
    ending = path.suffix.lower()
    if ending in NO_RUNTIME:
        raise ModelLoadError(f"{path} can't be served: {NO_RUNTIME[ending]}")
    if content == "json" and ending == ".json":
        raise ModelLoadError(
            f"{path} is a JSON document and not a model that a runtime here opens",
            "convert an XGBoost model to ONNX and serve that",
        )
    if content in OF_CONTENT:
        found = OF_NAME[OF_CONTENT[content]]
        return ModelFile(path, found.name, found.runtime)
    if content == "unknown" and runtime in ("onnx", "sklearn"):
        return ModelFile(path, {"onnx": "onnx", "sklearn": "pickle"}[runtime], runtime)
    known = f"looked for: {_looked_for(runtime)}"
    raise ModelLoadError(
        f"{path} is not a model: its content is {CONTENTS[content].called}", f"{CONTENTS[content].remedy}; {known}"
    )


def _in_folder(folder: Path, runtime: str | None, named: Path) -> ModelFile:
    """`named` is what the person named, where `folder` is a version inside it."""
    if runtime in (None, "tensorflow") and _is_saved_model(folder):
        return _saved_model(folder)
    entries = _visible(folder)
    candidates = _candidates(entries, runtime)
    if len(candidates) == 1:
        only = candidates[0]
        return _saved_model(only) if only.is_dir() else _of_file(only, "", runtime)
    if candidates:
        raise ModelLoadError(
            f"{folder} holds several models: {', '.join(p.name for p in candidates)}",
            "name one of them, or choose its runtime with --runtime",
        )
    versions = [p for p in entries if _is_version(p)]
    if versions and folder == named:
        return _in_folder(max(versions, key=lambda p: int(p.name)), runtime, named)
    raise _nothing_in(folder, named, entries, runtime)


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__")))


def _candidates(entries: Iterable[Path], runtime: str | None) -> list[Path]:
    """The entries that are models of that runtime.  Code beside a model is not one, unless it is called model.py."""
    entries = list(entries)
    files = [p for p in entries if p.suffix.lower() in OF_ENDING and p.is_file() and not p.name.endswith(".weights.h5")]
    folders = [p for p in entries if p.is_dir() and _is_saved_model(p) and not _is_version(p)]
    of_runtime = [p for p in files if runtime in (None, OF_ENDING[p.suffix.lower()].runtime)]
    models = [p for p in of_runtime if p.suffix.lower() != ".py"] + (folders if runtime in (None, "tensorflow") else [])
    code = [p for p in of_runtime if p.suffix.lower() == ".py"]
    main = [p for p in code if p.name == "model.py"]
    return main + models if main or models else code


def _nothing_in(folder: Path, named: Path, entries: list[Path], runtime: str | None) -> ModelLoadError:
    for entry in entries:
        if entry.is_file() and entry.suffix.lower() in NO_RUNTIME:
            return ModelLoadError(f"{entry} can't be served: {NO_RUNTIME[entry.suffix.lower()]}")
    for entry in entries:
        if entry.is_file() and content_of(entry) in ("tar", "zip", "7z", "torch"):
            content = CONTENTS[content_of(entry)]
            return ModelLoadError(f"no model found at {folder}: {entry.name} is {content.called}", content.remedy)
    which = "" if folder == named else f" (the highest version in {named})"
    there = f"it holds {', '.join(p.name for p in entries[:8])}{' …' if len(entries) > 8 else ''}" if entries else "it is empty"
    return ModelLoadError(f"no model found at {folder}{which}: {there}", f"looked for: {_looked_for(runtime)}")


def _looked_for(runtime: str | None) -> str:
    endings = [f"*{e}" for f in FORMATS if runtime in (None, f.runtime) for e in f.endings]
    folders = [*SAVED_MODEL] if runtime in (None, "tensorflow") else []
    return ", ".join([*endings, *folders])


def _is_version(path: Path) -> bool:
    return path.name.isascii() and path.name.isdecimal() and path.is_dir()


def _is_saved_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED_MODEL)


def _saved_model(folder: Path) -> ModelFile:
    file = next(folder / name for name in SAVED_MODEL if (folder / name).is_file())
    content = content_of(file)
    if content in ("empty", "lfs", "html", "xml"):
        raise ModelLoadError(f"{file} is {CONTENTS[content].called}", CONTENTS[content].remedy)
    return ModelFile(folder, "savedmodel", "tensorflow")


def content_of(path: Path) -> str:
    """The kind of a file's content, a key of CONTENTS.  Reads its first bytes, and of a zip the list of members."""
    try:
        with path.open("rb") as file:
            head = file.read(8192)
    except OSError as error:
        raise ModelLoadError(f"can't read {path}: {error.strerror or error}", "check its permissions") from error
    kind = sniff(head)
    if kind != "zip":
        return kind
    try:
        with zipfile.ZipFile(path) as archive:
            return sniff_zip(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return "damaged zip"


_MAGIC = (
    (b"version https://git-lfs.github.com/spec/", "lfs"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"\x93NUMPY", "numpy"),
    (b"PAR1", "parquet"),
    (b"\x5d\x00\x00", "lzma"),
    *((bytes((0x78, level)), "zlib") for level in (0x01, 0x5E, 0x9C, 0xDA)),
    *((bytes((0x80, protocol)), "pickle") for protocol in (2, 3, 4, 5)),
)
_TEXTS: tuple[tuple[Callable[[bytes], object], str], ...] = (
    (re.compile(rb"(?i)<!doctype html|<html|<head").match, "html"),
    (re.compile(rb"<\?xml|<Error>").match, "xml"),
    (re.compile(rb"\{\s*[\"}]|\[\s*[\[{\"\d-]").match, "json"),
)


def sniff(head: bytes) -> str:
    """The kind of content that starts with these bytes, a key of CONTENTS ("zip" for every zip)."""
    if not head:
        return "empty"
    if head[257:262] == b"ustar":
        return "tar"
    if head[4:8] == b"TFL3":
        return "tflite"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return "tar" if kind == "gzip" and _gzip_holds_tar(head) else kind
    # safetensors: eight bytes of length, then a JSON object
    if head[8:10] == b'{"' and head[5:8] == b"\0\0\0":
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for matches, kind in _TEXTS:
        if matches(text):
            return kind
    # protobuf field 1 (ir_version) as a small number, then one of ModelProto's text fields
    if head[0] == 0x08 and len(head) > 2 and 3 <= head[1] <= 20 and head[2] in (0x12, 0x1A, 0x22, 0x3A):
        return "onnx"
    return "unknown"


def _gzip_holds_tar(head: bytes) -> bool:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 512)[257:262] == b"ustar"
    except zlib.error:
        return False


def sniff_zip(members: Iterable[str]) -> str:
    """What kind of zip has these members: a key of CONTENTS."""
    names = set(members)
    if {"config.json", "metadata.json"} <= names:
        return "keras"
    if "schema.json" in names:
        return "skops"
    if any(n.endswith("/data.pkl") for n in names):
        return "torch"
    if names and all(n.endswith(".npy") for n in names):
        return "numpy"
    return "zip"
