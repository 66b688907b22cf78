"""Model formats and URI schemes: their names, what here can serve or fetch them, and how a URI tells its format."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from urllib.parse import urlsplit

# Formats that a runtime of ours serves.
SERVED = ("sklearn", "onnx", "tensorflow", "python")
# Keys that stand under `predictor` for a format, from before there was `model`.
LEGACY_KEYS = ("sklearn", "xgboost", "lightgbm", "tensorflow", "onnx", "pytorch", "triton", "huggingface", "pmml", "paddle")
# What a manifest may name without a runtime of the user's own: some other runtime may be installed for it later.
FORMATS = tuple(dict.fromkeys((*SERVED, *LEGACY_KEYS, "mlflow", "tensorrt", "openvino_ir", "autogluon", "vllm")))
PROTOCOLS = ("v1", "v2", "grpc-v1", "grpc-v2")
SPEAKS_V2 = frozenset(("onnx", "triton", "huggingface"))

_OF_ENDING = {
    **dict.fromkeys((".skops", ".joblib", ".pkl", ".pickle"), "sklearn"),
    ".onnx": "onnx",
    **dict.fromkeys((".keras", ".h5", ".hdf5"), "tensorflow"),
    ".py": "python",
}
_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")


@dataclass(frozen=True)
class Scheme:
    """`local`: whether the platform on one machine fetches it."""

    name: str
    local: bool
    called: str


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        name: Scheme(name, local, called)
        for name, local, called in (
            ("", True, "an absolute path"),
            ("file", True, "a file of this machine"),
            ("http", True, "a web server"),
            ("https", True, "a web server"),
            ("s3", True, "S3 and compatible stores"),
            ("gs", True, "Google Cloud Storage"),
            ("az", True, "Azure Blob Storage"),
            ("hf", False, "the Hugging Face hub"),
            ("pvc", False, "a PersistentVolumeClaim"),
            ("oci", False, "a container image"),
            ("oci+native", False, "a container image, as a volume"),
            ("oci+fetch", False, "a container image, pulled"),
            ("hdfs", False, "HDFS"),
            ("webhdfs", False, "HDFS over HTTP"),
            ("modelscope", False, "the ModelScope hub"),
        )
    }
)


def scheme_of(uri: str) -> str:
    """`s3` of `s3://bucket/model`, in lower case; empty for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return found[1].lower() if found else ""


def not_local(uri: str) -> str:
    """Why the platform on one machine can't fetch this URI, and what to do; empty where it can."""
    scheme = SCHEMES.get(scheme_of(uri))
    if scheme is None or scheme.local:
        return ""
    return (
        f"{uri}: fetching from {scheme.called} ({scheme.name}://) is not supported yet on this platform; "
        "download the model and give its path, or a URI with http(s)://, s3://, gs:// or az://"
    )


def format_of(uri: str, names: Iterable[str] = ()) -> str | None:
    """The model format that a URI's ending tells; `names` are the files inside where it is a folder.

    None where nothing tells, and where several files tell different things.
    """
    told = _of_name(_file_name(uri))
    if told is not None:
        return told
    files = [PurePosixPath(name).name for name in names]
    if any(name in _SAVED_MODEL for name in files):
        return "tensorflow"
    # code beside a model is not one, unless it is called model.py
    found = {_of_name(name) for name in files if not name.endswith(".py") or name == "model.py"} - {None}
    found = found or {_of_name(name) for name in files} - {None}
    return found.pop() if len(found) == 1 else None


def ending_of(uri: str) -> str:
    """`.onnx` of `s3://b/model.onnx`, in lower case; empty for none, and for what is no ending, as in `/models/v1.2`."""
    ending = PurePosixPath(_file_name(uri)).suffix.lower()
    return ending if re.fullmatch(r"\.[a-z]\w*", ending) else ""


def _file_name(uri: str) -> str:
    path = uri
    if scheme_of(uri):
        try:
            path = urlsplit(uri).path
        except ValueError:  # an address with half a bracket: what it is wrong about is told elsewhere
            return ""
    return path.rstrip("/").rpartition("/")[2]


def _of_name(name: str) -> str | None:
    name = re.sub(r"(?<=\.py):[A-Za-z_]\w*$", "", name)
    if name in _SAVED_MODEL:
        return "tensorflow"
    return None if name.endswith(".weights.h5") else _OF_ENDING.get(PurePosixPath(name).suffix.lower())
