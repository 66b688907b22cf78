"""What a model's URI names: pure, from text to a `Source`."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from server.errors import FetchFailed
from server.storage.addresses import shown


@dataclass(frozen=True)
class Source:
    """A URI taken apart.  `path` is what lies here, None for http(s); `sha256` is in lower-case hex, empty where not given."""

    uri: str
    path: Path | None
    sha256: str = ""


def parse(uri: str) -> Source:
    """ModelLoadError for a URI that names nothing here; whether it is there is not looked at.

    A fragment `#sha256=HEX` is the checksum that the file (an archive before it is unpacked) has to have.
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
    if scheme in ("http", "https"):
        if "#sha256=" in bare:
            raise FetchFailed("ChecksumMismatch", f"{shown(uri)} has a #sha256= that is no checksum", "give 64 hex digits")
        return Source(bare, None, sha256)
    raise FetchFailed(
        "UnsupportedScheme",
        f"{shown(uri)}: the scheme {scheme[:40]}:// is not supported yet",
        "download the model and give its path, or a file:// or http(s):// URI",
    )


def check(wanted: str, found: str, source: str) -> None:
    """ChecksumMismatch where a checksum was wanted and another found."""
    if wanted and wanted != found:
        raise FetchFailed(
            "ChecksumMismatch",
            f"{shown(source)} has the sha256 {found}, and {wanted} was wanted",
            "it was changed or damaged on the way: get it from where the checksum is from",
        )
