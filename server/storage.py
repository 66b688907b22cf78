"""A model's URI → a path on this machine.  Local paths and file:// for now; other schemes are refused by name."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from server.errors import ModelLoadError


def fetch(uri: str) -> Path:
    """The local path of a model; ModelLoadError for a scheme that is not built."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return Path(uri).expanduser()
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise ModelLoadError(f"{uri} names the host {parts.netloc!r}", "a file URI has three slashes: file:///path/to/model")
        return Path(unquote(parts.path))
    raise ModelLoadError(
        f"{uri}: the scheme {scheme}:// is not supported yet", "download the model and give its path, or a file:// URI"
    )
