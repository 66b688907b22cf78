"""What belongs to a model that lies on this machine: which files are copied with the one that a person names.

A file alone is not always a model: a Python class reads what lies beside it, an ONNX graph may keep its weights in other
files, a SavedModel is a folder.  Nothing here opens a pipe or a device, or follows a link out of the folder.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from server.errors import FetchFailed

CHUNK = 1 << 20
MAX_FILES = 10_000
# A folder that is copied because a Python class lies in it may hold much else.
MAX_NEIGHBOURS_BYTES = 2 << 30
# FICLONE: the new file shares the blocks of the old one until either is written to
_CLONE = 0x40049409
_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
# key "location" and the beginning of its value, as protobuf writes the entry of a map
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x1f])")


@dataclass(frozen=True)
class Chosen:
    """`files` are paths below `root`, sorted.  `name` is what to serve: a folder's name, a file, or model.py:Class."""

    root: Path
    files: tuple[str, ...]
    name: str
    size: int

    is_folder: bool = False


def choose(path: Path) -> Chosen:
    """The files to copy for a model at a path; FetchFailed where there is no model that can be read."""
    code = re.fullmatch(r"(.+\.py)(:[A-Za-z_]\w*)?", path.name)
    if code and not path.is_dir() and not (code[2] and _there(path)):
        return _code(path.with_name(code[1]), path.name)
    status = _status(path)
    if stat.S_ISDIR(status.st_mode):
        return _folder(path, path.resolve().name, is_folder=True)
    if not stat.S_ISREG(status.st_mode):
        raise no_file(path)
    if not status.st_size:
        raise FetchFailed("Unreadable", f"{path} is empty (0 bytes)", "copy or download it again")
    if path.name in _SAVED_MODEL:
        return _folder(path.parent, path.name, is_folder=False)
    files = {path.name: status.st_size, **(_weights(path) if path.suffix.lower() == ".onnx" else {})}
    return Chosen(path.parent, tuple(sorted(files)), path.name, sum(files.values()))


def no_file(path: Path) -> FetchFailed:
    return FetchFailed(
        "Unreadable", f"{path} is neither a file nor a folder (a pipe, a socket or a device)", "name the model's file"
    )


def no_one_checksum(name: str) -> FetchFailed:
    what = f"{name} is a file and others beside it, which have no one checksum"
    return FetchFailed("ChecksumMismatch", what, "name their folder, or leave the checksum out")


def _there(path: Path) -> bool:
    return os.path.lexists(path)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        if path.is_symlink() and isinstance(error, FileNotFoundError):
            what = f"{path} is a link to {os.readlink(path)}, and nothing is there"
            raise FetchFailed("NotFound", what, "copy the file it should lead to") from error
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            what = f"no model found at {path}: there is no such file or folder"
            raise FetchFailed("NotFound", what, "check its spelling; a relative path starts in the current folder") from error
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> FetchFailed:
    return FetchFailed("Unreadable", f"can't read {path}: {error.strerror or error}", "check its permissions")


def _code(file: Path, name: str) -> Chosen:
    """A Python file with all that lies beside it, which its class may import or open."""
    if not stat.S_ISREG(_status(file).st_mode):
        raise no_file(file)
    chosen = _folder(file.parent, name, is_folder=False)
    if chosen.size > MAX_NEIGHBOURS_BYTES:
        what = f"{file.parent} holds {chosen.size} bytes, which would all be copied as {file.name}'s neighbours"
        raise FetchFailed("TooLarge", what, "put the class and what it needs into a folder of its own")
    return chosen


def _folder(folder: Path, name: str, *, is_folder: bool) -> Chosen:
    """Everything in a folder but what is hidden, compiled, or an environment of Python."""
    root = folder.resolve()
    files: dict[str, int] = {}
    for relative, status in _walk(root, root, frozenset()):
        files[relative] = status.st_size
        if len(files) > MAX_FILES:
            raise FetchFailed("TooLarge", f"{folder} holds more than {MAX_FILES} files", "put the model into a folder of its own")
    if not any(files.values()):
        raise FetchFailed("Unreadable", f"the folder {folder} holds no files with anything in them", "name the model's folder")
    return Chosen(root, tuple(sorted(files)), name, sum(files.values()), is_folder)


def _walk(folder: Path, root: Path, above: frozenset[Path]) -> Iterator[tuple[str, os.stat_result]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise _unreadable(folder, error) from error
    if any(e.name == "pyvenv.cfg" for e in entries) and folder != root:
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        path = Path(entry.path)
        if entry.is_symlink():
            _stays_inside(path, root)
        status = _status(path)
        if stat.S_ISDIR(status.st_mode):
            real = path.resolve()
            if real not in above:
                yield from _walk(path, root, above | {real})
        elif stat.S_ISREG(status.st_mode):
            yield str(path.relative_to(root)), status
        else:
            raise no_file(path)


def _stays_inside(link: Path, *roots: Path) -> Path:
    real = link.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        what = f"{link} is a link that leads out of the model's folder (to {real})"
        raise FetchFailed("Unreadable", what, "replace it by what it leads to, for example with cp -rL")
    return real


def _weights(model: Path) -> dict[str, int]:
    """The files that an ONNX model names as the places of its weights, with their sizes, where they are there.

    Whether all of them have to be is for the runtime to say, which can tell what else is called a location.  The folder
    that the model really lies in counts too: download caches hold links to files side by side.
    """
    roots = (model.parent.resolve(), model.resolve().parent)
    found: dict[str, int] = {}
    for location in _locations(model):
        plain = os.path.normpath(location)
        file = model.parent / plain
        if os.path.isabs(plain) or plain.startswith("..") or plain == "." or not file.is_file():
            continue
        found[plain] = _stays_inside(file, *roots).stat().st_size
    return found


def _locations(model: Path) -> set[str]:
    """The texts that stand as "location" in the file's tensors, found without reading all of protobuf."""
    found: set[str] = set()
    with opened(model) as file:
        rest = b""
        for piece in pieces(file, model):
            data = rest + piece
            for match in _LOCATION.finditer(data):
                length = match[1][0] if len(match[1]) == 1 else (match[1][0] & 0x7F) | match[1][1] << 7
                text = data[match.end() : match.end() + length]
                with contextlib.suppress(UnicodeDecodeError):
                    if len(text) == length and b"\0" not in text:
                        found.add(text.decode())
            # an entry may lie across two pieces
            rest = data[-4096:]
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A regular file for reading; FetchFailed where it is none by the time it is opened."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    with open(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise no_file(path)
        yield file


def pieces(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """The bytes of a file as large as it is now: one that somebody goes on writing to would have no end."""
    rest = os.fstat(file.fileno()).st_size
    try:
        while rest > 0 and (piece := file.read(min(CHUNK, rest))):
            rest -= len(piece)
            yield piece
    except OSError as error:
        raise _unreadable(path, error) from error


def clone(file: IO[bytes], target: Path) -> bool:
    """Make `target` a copy that shares the file's blocks; False, and nothing made, where the file system can't."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
    except OSError:
        return False
    try:
        fcntl.ioctl(handle, _CLONE, file.fileno())
    except OSError:
        target.unlink()
        return False
    finally:
        os.close(handle)
    return True


def sha256(path: Path) -> str:
    """In hex, of a file as sha256sum has it, of a folder as `sha256_of_lines` of its files; FetchFailed if it can't be read."""
    status = _status(path)
    if stat.S_ISDIR(status.st_mode):
        chosen = choose(path)
        return sha256_of_lines({relative: sha256(chosen.root / relative) for relative in chosen.files})
    if not stat.S_ISREG(status.st_mode):
        raise no_file(path)
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # an unbuffered file will do


def sha256_of_lines(digests: Mapping[str, str], kind: str = "") -> str:
    """The sha256, in hex, of what sha256sum prints of files by these relative paths, in the order of the paths' bytes."""
    named = sorted((path.encode(errors="surrogateescape"), found.encode()) for path, found in digests.items())
    lines = b"".join(b"%b  %b\n" % (found, path) for path, found in named)
    return hashlib.sha256(kind.encode() + lines).hexdigest()
