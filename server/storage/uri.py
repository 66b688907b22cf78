"""What a model's URI names: pure, from text to a `Source`."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from server.errors import FetchFailed
from server.storage.addresses import shown

# What a model may be at most where nobody says otherwise: bytes, and seconds to bring them.
MAX_BYTES = 10 << 30
MAX_SECONDS = 7200.0
BUCKETS = ("s3", "gs", "az")
_OTHERWISE = "download the model and give its path, or a file://, http(s)://, s3://, gs:// or az:// URI"
_HDFS = ("fetching from HDFS is not built", _OTHERWISE)
_NOT_BUILT = {
    "hf": (
        "fetching from the Hugging Face hub is not built",
        "download the model (hf download OWNER/MODEL --local-dir DIR) and give DIR, or put it into a bucket",
    ),
    "pvc": (
        "a PersistentVolumeClaim is mounted by Kubernetes, and never fetched",
        "deploy to a cluster, or give the model's path",
    ),
    "oci": ("a container image is pulled by Kubernetes, and never fetched here", "deploy to a cluster, or give the model's path"),
    "hdfs": _HDFS,
    "webhdfs": _HDFS,
    "modelscope": ("fetching from the ModelScope hub is not built", _OTHERWISE),
}


@dataclass(frozen=True)
class Source:
    """A URI taken apart.  `path` is what lies here, None for what a server has; `sha256` is in lower-case hex, empty where not
    given."""

    uri: str
    path: Path | None
    sha256: str = ""

    @property
    def is_in_bucket(self) -> bool:
        return self.path is None and self.uri.partition("://")[0].lower() in BUCKETS


def parse(uri: str) -> Source:
    """ModelLoadError for a URI that names nothing here; whether it is there is not looked at.

    A fragment `#sha256=HEX` is the checksum that the file (an archive before it is unpacked) or the folder has to have.
    """
    checksum = re.fullmatch(r"(.*)#sha256=([0-9A-Fa-f]{64})", uri, re.S)
    bare, sha256 = (checksum[1], checksum[2].lower()) if checksum else (uri, "")
    scheme, separator, _ = bare.partition("://")
    scheme = scheme.lower()
    if not separator:
        return Source(bare, Path(bare).expanduser(), sha256)
    if scheme == "file":
        parts = urlsplit(bare)
        if parts.netloc not in ("", "localhost"):
            raise FetchFailed(
                "UnsupportedScheme",
                f"{shown(uri)} names the host {parts.netloc.rpartition('@')[2]!r}",
                "a file URI has three slashes: file:///path/to/model",
            )
        return Source(bare, Path(unquote(parts.path)), sha256)
    if scheme in ("http", "https", *BUCKETS):
        if "#sha256=" in bare:
            raise FetchFailed("ChecksumMismatch", f"{shown(uri)} has a #sha256= that is no checksum", "give 64 hex digits")
        if scheme in BUCKETS and "@" in bare.partition("://")[2].partition("/")[0]:
            what, remedy = f"{shown(uri)} has something before an @", "credentials come from the environment, never from a URI"
            raise FetchFailed("UnsupportedScheme", what, remedy)
        return Source(bare, None, sha256)
    what, remedy = _NOT_BUILT.get(scheme, (f"the scheme {scheme[:40]}:// is not known", _OTHERWISE))
    raise FetchFailed("UnsupportedScheme", f"{shown(uri)}: {what}", remedy)


def check(wanted: str, found: str, source: str) -> None:
    """ChecksumMismatch where a checksum was wanted and another found."""
    if wanted and wanted != found:
        raise FetchFailed(
            "ChecksumMismatch",
            f"{shown(source)} has the sha256 {found}, and {wanted} was wanted",
            "it was changed or damaged on the way: get it from where the checksum is from",
        )
