"""What KServe's variables say but for which store it is: headers for a web server, and files of a folder to leave.  Pure."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from server.errors import FetchFailed

HEADERS = "-headers"
ALLOW, IGNORE = "STORAGE_ALLOW_PATTERNS", "STORAGE_IGNORE_PATTERNS"
# They say where a request ends, where it goes and what its answer may be, which is not theirs to say.
_OURS = {"connection", "content-length", "expect", "host", "range", "te", "trailer", "transfer-encoding", "upgrade"}
_OURS |= {"accept-encoding", "if-match", "if-modified-since", "if-none-match", "if-range"}


def headers(host: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The headers that requests to a host carry: a JSON object in the variable `HOST-headers`.

    FetchFailed where it is none, or has what can't be a header; what it holds is in no message, for it is a secret.
    """
    name = next((name for name in environ if name.lower() == f"{host.lower()}{HEADERS}"), "")
    if not environ.get(name):
        return {}
    try:
        said = json.loads(environ[name])
    except ValueError:
        said = None
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise _wrong(f"the variable {name} is no JSON object of texts", 'write {"Authorization": "…"}')
    for header, value in said.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", header) or header.lower() in _OURS:
            raise _wrong(f"the variable {name} has a header {header[:40]!r}, which can't be sent", "leave it out")
        if not re.fullmatch(r"[\x20-\x7e\t]*", value):
            raise _wrong(
                f"the variable {name} has a value for {header} that no header can have", "give it in plain ASCII, on one line"
            )
    return said


@dataclass(frozen=True)
class Patterns:
    """Of a folder's files those that any of `allow` fits (all where there is none) and none of `ignore`.

    A pattern is a shell's, of the path below the folder; its `*` goes over slashes too, and one that ends in `/` means what
    lies below.
    """

    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def keep(self, path: str) -> bool:
        return (not self.allow or _fits(path, self.allow)) and not _fits(path, self.ignore)

    def __str__(self) -> str:
        named = ((ALLOW, self.allow), (IGNORE, self.ignore))
        return " and ".join(f"{name} ({', '.join(patterns)[:100]})" for name, patterns in named if patterns)


ALL = Patterns()


def _fits(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)


def patterns(environ: Mapping[str, str]) -> Patterns:
    return Patterns(_listed(environ, ALLOW), _listed(environ, IGNORE))


def _listed(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    """A JSON list of texts, or texts between commas."""
    text = environ.get(name, "").strip()
    if not text.startswith("["):
        return tuple(one.strip() for one in text.split(",") if one.strip())
    try:
        listed = json.loads(text)
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise _wrong(f"the variable {name} is no JSON list of texts", 'write ["*.onnx", "labels/"], or *.onnx,labels/')
    return tuple(listed)


def _wrong(what: str, remedy: str) -> FetchFailed:
    return FetchFailed("DownloadFailed", what, remedy)
