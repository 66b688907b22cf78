"""Reads a pickle without running it: which globals it names, and which scikit-learn made it.

An aid for a warning text and no gate: whoever wants to hide from it can.  It looks for the byte patterns that picklers
write, and not for well-formed opcodes, because joblib puts raw arrays between them.
"""

import bz2
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

_MODULES = [
    "asyncio",
    "builtins",
    "code",
    "commands",
    "ctypes",
    "ftplib",
    "http",
    "importlib",
    "marshal",
    "nt",
    "os",
    "pickle",
    "posix",
    "pty",
    "runpy",
    "shutil",
    "smtplib",
    "socket",
    "subprocess",
    "sys",
    "telnetlib",
    "urllib",
    "webbrowser",
]
_BUILTINS = frozenset(["__import__", "breakpoint", "compile", "delattr", "eval", "exec", "input", "open", "setattr"])

# GLOBAL is "c<module>\n<name>\n"; STACK_GLOBAL (0x93) takes two strings, each a SHORT_BINUNICODE (0x8c) or BINUNICODE (X)
# and mostly memoized at once (0x94, or q and r with an index)
_STRING = rb"(?:\x8c.|X.\x00\x00\x00)%s(?:\x94|q.|r....)?"
_MODULE = rb"((?:" + "|".join(_MODULES).encode() + rb")(?:\.[a-z.]+)?)"
_NAME = rb"([A-Za-z_][\w.]{0,60})"
_GLOBALS = (
    re.compile(rb"c" + _MODULE + rb"\n" + _NAME + rb"\n"),
    re.compile(_STRING % _MODULE + _STRING % _NAME + rb"\x93", re.DOTALL),
)
_VERSION = re.compile(
    _STRING % rb"_sklearn_version" + _STRING % rb"([0-9]+(?:[.][0-9]+)+(?:[.]?(?:a|b|dev|post|rc)[0-9]+)?)", re.DOTALL
)

_CHUNK, _OVERLAP, _LIMIT = 1 << 20, 512, 64 << 20


class _Decompressor(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


# joblib's `compress`, by the first bytes
_COMPRESSED: tuple[tuple[bytes, Callable[[], _Decompressor]], ...] = (
    (b"x", lambda: zlib.decompressobj()),
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ", lzma.LZMADecompressor),
    (b"\x5d\x00", lzma.LZMADecompressor),
)


def suspicious_globals(path: Path) -> tuple[str, ...]:
    """Names like "os.system" that a pickle asks for and a model does not need, sorted; of its first 64 MiB."""
    names = set()
    for window in _windows(path):
        for match in itertools.chain.from_iterable(pattern.finditer(window) for pattern in _GLOBALS):
            module, name = match[1].decode(), match[2].decode()
            if module not in ("__builtin__", "builtins") or name in _BUILTINS:
                names.add(f"{module}.{name}")
    return tuple(sorted(names))


def sklearn_version(path: Path) -> str | None:
    """The version of scikit-learn that wrote a pickle, where its first 64 MiB say so."""
    return next((m[1].decode() for window in _windows(path) if (m := _VERSION.search(window))), None)


def _windows(path: Path) -> Iterator[bytes]:
    """The file's plain bytes in overlapping pieces; ends early where it can't be decompressed."""
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        decompress = next((make().decompress for magic, make in _COMPRESSED if start.startswith(magic)), bytes)
        tail, done = b"", 0
        while done < _LIMIT and (piece := file.read(_CHUNK)):
            try:
                window = tail + decompress(piece)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
                return
            yield window
            tail, done = window[-_OVERLAP:], done + len(window)
