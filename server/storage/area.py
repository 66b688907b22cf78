"""Where a model is put together: a folder that is filled out of sight, and then shown."""

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from server.errors import FetchFailed
from server.storage import local_files

Progress = Callable[[int, int | None], None]
FOREVER = float("inf")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time, until it ends or is killed; where a file system can't lock, they have to agree otherwise."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def unwritable(folder: Path, error: OSError) -> FetchFailed:
    """What an error of writing below a folder means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchFailed("DiskFull", f"there is no space left in {folder}", "make room, and try again")
    if error.errno == errno.EFBIG:
        return FetchFailed("DiskFull", f"a file in {folder} may not grow so large", "raise this process's limit (ulimit -f)")
    return FetchFailed(
        "Unwritable", f"{folder} can't be written: {error.strerror or error}", "check its permissions and its disk"
    )


# A fresh folder takes every name, but not two that exclude each other (a file and a folder), or what it can't spell.
_NAMES = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ)


class Area:
    """A folder that is filled out of sight: all that goes in is counted and hashed, and on the disk before it is shown.

    `source` and `place`, where it will be shown, are for messages; `digests` are the files' sha256 in hex, by relative path.
    After `deadline`, of the monotonic clock in seconds, nothing more is taken.
    """

    def __init__(
        self,
        root: Path,
        place: Path,
        source: str,
        max_bytes: int,
        total: int | None = None,
        progress: Progress = lambda done, total: None,
        deadline: float = FOREVER,
    ) -> None:
        self.root, self.source, self.size = root, source, 0
        self._place = place
        self.digests: dict[str, str] = {}
        self._max_bytes, self._total, self._progress, self._deadline = max_bytes, total, progress, deadline

    def write(self, relative: str, chunks: Iterable[bytes]) -> str:
        """A new file with these bytes; its sha256.  Read-only, as a model never changes."""
        target, hashed = self.root / relative, hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
        except OSError as error:
            if error.errno in _NAMES:
                what = f"{self.source} holds {relative!r}, which can't lie beside the rest of it ({error.strerror})"
                raise FetchFailed("BadArchive", what, "pack it again") from error
            raise unwritable(self._place, error) from error
        with open(handle, "wb", buffering=0) as file:
            for chunk in chunks:
                self._count(len(chunk))
                hashed.update(chunk)
                try:
                    # a raw file may take less than it was given
                    view = memoryview(chunk)
                    while view:
                        view = view[file.write(view) :]
                except OSError as error:
                    raise unwritable(self._place, error) from error
                self._progress(self.size, self._total)
        self.digests[relative] = hashed.hexdigest()
        return self.digests[relative]

    def _count(self, more: int) -> None:
        self.size += more
        if self.size > self._max_bytes:
            what = f"{self.source} has more than the {self._max_bytes} bytes that are allowed"
            raise FetchFailed("TooLarge", what, "raise the limit if that is right")
        if time.monotonic() > self._deadline:
            what = f"{self.source} was not here when the time for it was over, after {self.size} bytes"
            raise FetchFailed("DownloadFailed", what, "try again, or give it more (--max-seconds)")

    def copy(self, origin: Path, relative: str) -> None:
        """A copy of a local file, sharing its blocks where the file system can; FetchFailed where it changes meanwhile."""
        with local_files.opened(origin) as file:
            before = os.fstat(file.fileno())
            target = self.root / relative
            if local_files.clone(file, target):
                self._count(before.st_size)
                self.digests[relative] = local_files.sha256(target)
                self._progress(self.size, self._total)
            else:
                self.write(relative, local_files.pieces(file, origin))
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise FetchFailed("Unreadable", f"{origin} changed while it was copied", "try again once it is written")

    def move(self, file: Path, relative: str, sha256: str) -> None:
        self.root.mkdir(exist_ok=True)
        self.size += file.stat().st_size
        file.rename(self.root / relative)
        self.digests[relative] = sha256

    def digest(self, *, prefix: str = "", kind: str = "") -> str:
        """Of all files under a prefix together; `kind` keeps a folder apart from the same files as a model's neighbours."""
        lines = {p.removeprefix(prefix): sha256 for p, sha256 in self.digests.items() if p.startswith(prefix)}
        return f"sha256:{local_files.sha256_of_lines(lines, kind)}"

    def publish(self) -> None:
        """Rename all that is in here into its place, over what has these names there."""
        try:
            for folder, _, files in os.walk(self.root):
                for name in files:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            for entry in sorted(self.root.iterdir()):
                shown = self._place / entry.name
                if os.path.lexists(shown) and (shown.is_dir() or entry.is_dir()):
                    shown.rename(self.root.parent / f"old-{entry.name}")
                entry.replace(shown)
            _sync(self._place)
        except OSError as error:
            raise unwritable(self._place, error) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
