"""The local platform's models, by content: each is kept once, whatever it is called, and never changes.

    DIR/models/<sha256>/…       what was fetched: a file, a file with its neighbours, or a folder
    DIR/incoming/…              what is being fetched; what a dead process left here is swept away
    DIR/uris/<hash>.json        what a remote URI gave last, so that its server is asked for something newer only

A process of its own fetches each model (`python -m server.storage`): it can be ended at any moment, also while it hangs on
a dead network drive, and what it runs out of is not the supervisor's.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployer.errors import DeployerError
from server.settings import inherited

Progress = Callable[[int, int | None], None]

MAX_BYTES = 10 << 30
# How soon a cancelled fetch is noticed, in seconds.
LOOK_EVERY = 0.1
# What a fetching process may take to end once it has closed its stdout, in seconds.
LAST_WORDS = 5.0
_REMOTE = re.compile("(?:https?|s3|gs|az)://", re.I)


@dataclass(frozen=True)
class Model:
    """A model in the cache.  `digest` is "sha256:…", `path` what a predictor is given as --model_dir, `size` in bytes."""

    uri: str
    digest: str
    path: Path
    size: int


class FetchError(DeployerError):
    """A model could not be had.  `reason` is one word, as `server.errors.FetchReason` has them, or "Cancelled"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(eq=False)
class _Flight:
    """A fetch that is under way, and all who want to know of it."""

    watching: list[Progress] = field(default_factory=list)
    landed: threading.Event = field(default_factory=threading.Event)
    model: Model | None = None
    error: BaseException | None = None

    def progress(self, done: int, total: int | None) -> None:
        for watcher in tuple(self.watching):
            watcher(done, total)


class Cache:
    """Safe for threads, and for processes that share the folder.  `max_bytes` is of one model, not of all."""

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self._directory, self._max_bytes = directory, max_bytes
        self._flights: dict[str, _Flight] = {}
        self._lock = threading.Lock()

    def fetch(self, uri: str, progress: Progress = lambda done, total: None, cancelled: threading.Event | None = None) -> Model:
        """The model at `uri` as it is now; blocks until it is here.  FetchError says why it is not.

        Who asks for a URI that is being fetched waits for that fetch.  `progress(bytes, total or None)` is called in the
        thread that fetches; `cancelled` ends this caller's wait, and the fetch if nobody else wants it.
        """
        cancelled = cancelled or threading.Event()
        while True:
            with self._lock:
                flight = self._flights.get(uri)
                mine = flight is None
                if flight is None:
                    flight = self._flights[uri] = _Flight()
                flight.watching.append(progress)
            try:
                if mine:
                    return self._lead(uri, flight, cancelled)
                while not flight.landed.wait(LOOK_EVERY):
                    if cancelled.is_set():
                        raise _cancelled(uri)
            finally:
                with self._lock:
                    flight.watching.remove(progress)
            if flight.model is not None:
                return flight.model
            # another's change of mind is not ours: fetch it ourselves
            if isinstance(flight.error, FetchError) and flight.error.reason != "Cancelled":
                raise FetchError(flight.error.reason, flight.error.message)
            if flight.error is not None and not isinstance(flight.error, FetchError):
                raise flight.error

    def _lead(self, uri: str, flight: _Flight, cancelled: threading.Event) -> Model:
        try:
            flight.model = self._fetch(uri, flight.progress, cancelled)
            return flight.model
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[uri]
            flight.landed.set()

    def path(self, digest: str, name: str) -> Path | None:
        """What to serve of a model that is here, by its name (or its URI's last part); None where it is not here.

        Where the model is one file or one folder, that is found under any name, as an archive's differs from its content's.
        """
        if not re.fullmatch("sha256:[0-9a-f]{64}", digest):
            return None
        entry = self._entry(digest)
        for called in (name, re.split("[?#]", name, maxsplit=1)[0]):
            if _held(entry, called):
                return entry / called
        things = _things(entry)
        return things[0] if len({os.stat(thing).st_ino for thing in things}) == 1 else None

    def size(self) -> int:
        """Bytes of all models; a file with several names counts once."""
        return _bytes_in(self._directory / "models")

    def remove_unused(self, keep: set[str], older_than: float) -> int:
        """Remove models whose digest is not in `keep` and which nobody has fetched for `older_than` seconds; the bytes freed.

        Sweeps up too what processes that are gone were fetching.
        """
        freed = 0
        with contextlib.suppress(OSError):
            (self._directory / "incoming").mkdir(parents=True, exist_ok=True)
        for entry in _listed(self._directory / "models"):
            if f"sha256:{entry.name}" in keep:
                continue
            with contextlib.suppress(OSError), self._alone():
                if time.time() - entry.stat().st_mtime >= older_than:
                    size = _bytes_in(entry)
                    # out of sight at once: half a model is never found
                    entry.rename(Path(tempfile.mkdtemp(dir=self._directory / "incoming")) / entry.name)
                    freed += size
        for left in _listed(self._directory / "incoming"):
            with contextlib.suppress(OSError), contextlib.ExitStack() as lock:
                with self._alone():
                    lock.enter_context(_held_lock(left, wait=False))
                shutil.rmtree(left, ignore_errors=True)
        for record in _listed(self._directory / "uris"):
            with contextlib.suppress(OSError):
                if not self._entry(str(_read(record).get("digest"))).exists():
                    record.unlink()
        return freed

    # one fetch

    def _fetch(self, uri: str, progress: Progress, cancelled: threading.Event) -> Model:
        known = self._known(uri)
        if model := self._pinned(uri):
            return model
        try:
            (self._directory / "models").mkdir(parents=True, exist_ok=True, mode=0o700)
            (self._directory / "uris").mkdir(exist_ok=True)
            with self._incoming() as incoming:
                told = self._run(uri, incoming, known.get("etag", ""), progress, cancelled)
                if "reason" in told:
                    raise FetchError(told["reason"], told["message"])
                if told.get("unchanged"):
                    model = self._again(uri, known)
                    # removed since it was looked up
                    return model or self._fetch(uri, progress, cancelled)
                path = self._store(incoming, Path(told["path"]), told["name"], told["digest"])
            model = Model(uri, told["digest"], path, told["size"])
            if told["etag"]:
                self._remember(uri, model, told["etag"])
            return model
        except OSError as error:
            raise _unwritable(self._directory, error) from error

    @contextlib.contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A fresh folder that is held by a lock, so that others know that we are alive; gone afterwards."""
        above = self._directory / "incoming"
        above.mkdir(exist_ok=True)
        with self._alone():
            mine = Path(tempfile.mkdtemp(dir=above))
            lock = contextlib.ExitStack()
            lock.enter_context(_held_lock(mine, wait=True))
        with lock:
            try:
                yield mine
            finally:
                shutil.rmtree(mine, ignore_errors=True)

    def _run(self, uri: str, incoming: Path, etag: str, progress: Progress, cancelled: threading.Event) -> dict[str, Any]:
        """Run the process that fetches; the last thing it told."""
        command = [sys.executable, "-P", "-m", "server.storage", "-", str(incoming / "model"), "--progress"]
        command += [f"--max-bytes={self._max_bytes}", *([f"--etag={etag}"] if etag else [])]
        process = _started(command, incoming / "stderr")
        told: dict[str, Any] = {}
        try:
            assert process.stdin is not None
            # by stdin, because every user of a machine can read the arguments of its processes
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(os.fsencode(uri) + b"\n")
            for told in _lines(process, cancelled):
                if "done" in told:
                    progress(told["done"], told["total"])
            if not cancelled.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LAST_WORDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if cancelled.is_set() and not ("path" in told or "reason" in told):
            raise _cancelled(uri)
        if not told.keys() & {"path", "reason", "unchanged"}:
            raise FetchError("DownloadFailed", _end(code, incoming / "stderr"))
        return told

    def _store(self, incoming: Path, found: Path, name: str, digest: str) -> Path:
        """Move what was fetched to where its digest says, unless it is there; what to serve."""
        fresh = incoming / "entry"
        if found.is_dir():
            fresh.mkdir()
            found.rename(fresh / name)
        else:
            found.parent.rename(fresh)
        entry = self._entry(digest)
        with self._alone():
            try:
                fresh.rename(entry)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not _held(entry, name):
                    _call(entry, name)
            os.utime(entry)
            _sync(entry.parent)
        return entry / name

    def _entry(self, digest: str) -> Path:
        return self._directory / "models" / digest.removeprefix("sha256:")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Between a look at what is there and a change of it, no other thread or process changes it."""
        with _held_lock(self._directory, wait=True):
            yield

    # what remote URIs gave

    def _record(self, uri: str) -> Path:
        return self._directory / "uris" / f"{hashlib.sha256(os.fsencode(uri)).hexdigest()[:32]}.json"

    def _known(self, uri: str) -> dict[str, Any]:
        known = _read(self._record(uri)) if _REMOTE.match(uri) else {}
        return known if known and _held(self._entry(known["digest"]), known["name"]) else {}

    def _pinned(self, uri: str) -> Model | None:
        """What a remote URI with a checksum can only give, where it is here: no server is asked."""
        checksum = re.search("#sha256=([0-9a-f]{64})$", uri, re.I)
        if not checksum or not _REMOTE.match(uri):
            return None
        digest = f"sha256:{checksum[1].lower()}"
        path = self.path(digest, uri.partition("#")[0].partition("?")[0].rpartition("/")[2])
        known = path and {"digest": digest, "name": path.name, "size": _bytes_in(path.parent)}
        return self._again(uri, known) if known else None

    def _again(self, uri: str, known: dict[str, Any]) -> Model | None:
        entry = self._entry(known["digest"])
        with self._alone():
            if not _held(entry, known["name"]):
                return None
            os.utime(entry)
        return Model(uri, known["digest"], entry / known["name"], known["size"])

    def _remember(self, uri: str, model: Model, etag: str) -> None:
        known = {"digest": model.digest, "name": model.path.name, "size": model.size, "etag": etag}
        record = self._record(uri)
        handle, new = tempfile.mkstemp(dir=record.parent, suffix=".new")
        with open(handle, "w") as file:
            json.dump(known, file)
        os.rename(new, record)


def _started(command: list[str], stderr: Path) -> subprocess.Popen[bytes]:
    with stderr.open("wb") as file:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=inherited(),
                # a signal for the terminal's group is not for it, and all it starts ends with it
                start_new_session=True,
            )
        except OSError as error:
            what = f"the process that fetches models can't be started: {error.strerror}; look at this machine's limits"
            raise FetchError("DownloadFailed", what) from error


def _lines(process: subprocess.Popen[bytes], cancelled: threading.Event) -> Iterator[dict[str, Any]]:
    """The JSON objects that a process prints, until it closes its stdout or `cancelled` is set."""
    assert process.stdout is not None
    rest = b""
    with process.stdout as stdout, selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while not cancelled.is_set():
            if not selector.select(LOOK_EVERY):
                continue
            data = os.read(stdout.fileno(), 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def _end(code: int, stderr: Path) -> str:
    """What to say of a fetching process that ended without a word."""
    said = stderr.read_bytes()[-2000:].decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "it left no message")
    how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with exit code {code}"
    return f"the process that fetched the model ended {how}: {last[:300]}; try again, and look at this machine's memory and log"


def _cancelled(uri: str) -> FetchError:
    scheme, separator, rest = uri.partition("://")
    shown = f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}" if separator else uri
    return FetchError("Cancelled", f"fetching {shown} was cancelled")


def _unwritable(folder: Path, error: OSError) -> FetchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchError("DiskFull", f"there is no space left in {folder}; make room, and try again")
    return FetchError("Unwritable", f"{error.filename or folder} can't be written: {error.strerror}; check its permissions")


def _held(entry: Path, name: str) -> bool:
    """Whether an entry has a file or folder of this name, of which model.py:Class is a part of model.py."""
    if not name or "/" in name or name in (".", ".."):
        return False
    return (entry / name).exists() or (".py:" in name and (entry / name.rpartition(":")[0]).exists())


def _things(entry: Path) -> list[Path]:
    """What lies in an entry, but for what Python leaves beside a class."""
    return [thing for thing in _listed(entry) if thing.name != "__pycache__"]


def _call(entry: Path, name: str) -> None:
    """Give the one thing in an entry another name too."""
    known = _things(entry)[0]
    if known.is_dir():
        (entry / name).symlink_to(os.readlink(known) if known.is_symlink() else known.name)
    else:
        os.link(known, entry / name)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _bytes_in(folder: Path) -> int:
    sizes: dict[int, int] = {}
    for above, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(above, name))
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def _read(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text())
        return known if isinstance(known, dict) and {"digest", "name", "size", "etag"} <= known.keys() else {}
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def _held_lock(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process; BlockingIOError where another has it and we do not wait."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
