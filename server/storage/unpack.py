"""Archives → names and bytes, without trust: nothing is written here, and no name that comes out leads anywhere but down.

tarfile and zipfile read the formats; which members may exist, how many, how large and under which names is decided here,
before their bytes are read.
"""

import errno
import gzip
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

from server.errors import FetchFailed

MAX_MEMBERS = 10_000
# An archive may grow this many times; small ones of zeros may always grow to FREE_GROWTH bytes.
MAX_RATIO = 100
FREE_GROWTH = 1 << 20
CHUNK = 1 << 20
# tarfile reads a header's long names and attributes in one piece, whatever size it says they have.
_LONGEST_HEADER = 8 << 20
# What 10,000 names need in a zip's list of members, which zipfile reads in one piece.
_LONGEST_DIRECTORY = 4 << 20
# Names, padding and attributes that a tar may have beside its files.
_TAR_OVERHEAD = 64 << 20

_ENDINGS = re.compile(r"(?i)\.(zip|tar|tar\.gz|tgz)$")
_OTHERS = re.compile(r"(?i)\.(tar\.[a-z0-9]{1,4}|tbz2?|txz|tzst|7z|rar)$")

Member = tuple[str, Iterator[bytes]]


def is_archive(name: str) -> bool:
    """Whether a file of this name is unpacked; FetchFailed for kinds of archives that are not."""
    if _ENDINGS.search(name):
        return True
    if other := _OTHERS.search(name):
        raise _bad(f"{name}: an archive that ends in {other[0]} is not unpacked", "pack the model as .tar.gz, .tar or .zip")
    return False


def stem(name: str) -> str:
    """The archive's name without its ending."""
    return _ENDINGS.sub("", name) or "model"


def members(archive: Path, name: str, max_bytes: int) -> Iterator[Member]:
    """The archive's files in its order: a relative path and its bytes, which must be read before the next is asked for.

    FetchFailed (BadArchive, TooLarge) where it is damaged, or anything in it is not a file or folder with a plain name
    inside; that may be found out after some members came.  `name` is for messages.
    """
    packed = archive.stat().st_size
    limit = _Limit(name, max_bytes, max(FREE_GROWTH, MAX_RATIO * packed))
    opened = _zip_members if zipfile_like(archive) else _tar_members
    with limit.undamaged():
        yield from opened(archive, limit)


_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, struct.error),
    *(ValueError, OverflowError, IndexError, KeyError, RecursionError, NotImplementedError),
)


def zipfile_like(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def safe_name(name: str) -> str:
    """A member's name as a relative path, NFC; ValueError where it could mean another place, or nothing at all."""
    if not name or name.startswith("/") or re.search(r"[\x00-\x1f\\]|^[A-Za-z]:|[\ud800-\udfff]", name):
        raise ValueError("it is absolute, or holds characters that are no part of a name")
    parts = [part for part in unicodedata.normalize("NFC", name).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError("it leads up")
    if len(name.encode()) > 1000 or any(len(part.encode()) > 250 for part in parts):
        raise ValueError("it is too long")
    return "/".join(parts)


class _Limit:
    """What an archive may still hold; every member is counted before it is read."""

    def __init__(self, name: str, max_bytes: int, growth: int) -> None:
        self.name, self._max_bytes, self._growth = name, max_bytes, growth
        self._members, self._bytes = 0, 0
        self._seen: set[str] = set()

    @property
    def stream(self) -> int:
        return min(self._max_bytes, self._growth) + _TAR_OVERHEAD

    def path(self, name: str, size: int, is_folder: bool) -> str:
        """The relative path of the next member."""
        self._members += 1
        if self._members > MAX_MEMBERS:
            self.refuse(f"holds more than {MAX_MEMBERS} members", "pack the model's files only")
        try:
            path = safe_name(name)
        except ValueError as error:
            shown = repr(name if len(name) <= 100 else f"{name[:100]}…")
            self.refuse(f"holds a member with the name {shown}: {error}", "pack it again with plain relative names")
        if is_folder:
            return path
        if not path or path in self._seen:
            self.refuse(f"holds {path!r} twice" if path else "holds a file without a name", "pack it again")
        self._seen.add(path)
        self._count(size)
        return path

    def _count(self, size: int) -> None:
        if size < 0:
            self.refuse("holds a file of negative size", "pack it again")
        self._bytes += size
        if self._bytes > self._max_bytes:
            raise FetchFailed(
                "TooLarge", f"{self.name} unpacks to more than {self._max_bytes} bytes", "raise the limit if that is right"
            )
        if self._bytes > self._growth:
            self.refuse(f"grows more than {MAX_RATIO} times when unpacked, as archives do that are made to fill disks", "")

    @contextmanager
    def undamaged(self) -> Iterator[None]:
        """What the libraries say of bytes that are not what they should be, as BadArchive."""
        try:
            yield
        except _DAMAGE as error:
            what = f"{self.name} is damaged, or no archive: {str(error) or type(error).__name__}"
            raise _bad(what, "copy it again, or pack it again") from error
        except OSError as error:
            # zipfile looks for a member before the file's beginning where its list says so
            if error.errno != errno.EINVAL:
                raise
            raise _bad(
                f"{self.name} is damaged: it names a place outside of itself", "copy it again, or pack it again"
            ) from error

    def refuse(self, what: str, remedy: str) -> NoReturn:
        raise _bad(f"{self.name} {what}", remedy)


def _bad(what: str, remedy: str) -> FetchFailed:
    return FetchFailed("BadArchive", what, remedy)


def _zip_members(archive: Path, limit: _Limit) -> Iterator[Member]:
    with archive.open("rb") as file:
        tail_size = min(archive.stat().st_size, 22 + 76 + (1 << 16))
        file.seek(-tail_size, 2)
        if directory_size(file.read()) > _LONGEST_DIRECTORY:
            limit.refuse("has too long a list of members", "pack the model's files only")
        with zipfile.ZipFile(file) as opened:
            # all are checked before the first is written
            entries = [(info, _zip_path(info, limit)) for info in opened.infolist()]
            for info, path in entries:
                if not info.is_dir():
                    with opened.open(info) as member:
                        yield path, _pieces(member, limit)


def directory_size(tail: bytes) -> int:
    """Bytes of a zip's list of members, from the end of the file, read as zipfile reads it; 0 where there is none."""
    end = len(tail) - 22
    if end < 0 or tail[end : end + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return 0
    (size,) = struct.unpack_from("<L", tail, end + 12)
    if end >= 76 and tail[end - 20 : end - 16] == b"PK\x06\x07" and tail[end - 76 : end - 72] == b"PK\x06\x06":
        (size,) = struct.unpack_from("<Q", tail, end - 76 + 40)
    return int(size)


def _zip_path(info: zipfile.ZipInfo, limit: _Limit) -> str:
    path = limit.path(info.filename, info.file_size, info.is_dir())
    if info.flag_bits & 0x1:
        limit.refuse(f"is encrypted ({path})", "pack it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        limit.refuse(f"compresses {path} in a way that is not read here", "pack it with plain deflate")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        limit.refuse(f"holds a link or a device ({path})", "pack files and folders only")
    return path


def _tar_members(archive: Path, limit: _Limit) -> Iterator[Member]:
    with archive.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source = _Bounded(gzip.GzipFile(fileobj=raw) if packed else raw, limit)
        with tarfile.open(fileobj=source, mode="r:") as opened:  # type: ignore[call-overload]  # read, seek and tell will do
            for member in opened:
                path = limit.path(member.name, member.size, member.isdir())
                if member.isdir():
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                    limit.refuse(f"holds a link, a device or a sparse file ({path})", "pack files and folders only")
                content = opened.extractfile(member)
                assert content is not None
                yield path, _pieces(content, limit)
            # tarfile stops at a header that it can't read as if that were the end, which is a block of zeros
            if len(source.last) < tarfile.BLOCKSIZE or any(source.last):
                limit.refuse("is damaged: its end is missing", "copy or pack it again")
        while source.read(CHUNK):
            pass  # so that gzip's checksum is checked


class _Bounded:
    """A stream that is read forwards, up to a limit, and never in pieces that fill the memory."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, limit: _Limit) -> None:
        self._stream, self._limit = stream, limit
        self.last = b""

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            self._limit.refuse(f"has a header of {size} bytes", "pack it again with plain names")
        self.last = self._stream.read(size)
        self._check(self._stream.tell())
        return self.last

    def seek(self, position: int) -> None:
        self._check(position)
        self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self, position: int) -> None:
        if position > self._limit.stream:
            self._limit.refuse("is much larger than the files in it", "pack it again")


def _pieces(file: IO[bytes], limit: _Limit) -> Iterator[bytes]:
    with limit.undamaged():
        while piece := file.read(CHUNK):
            yield piece
