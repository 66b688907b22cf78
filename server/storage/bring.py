"""A model into a folder, whole or not at all: from a server, a bucket or this machine, packed or not."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from server.errors import FetchFailed
from server.storage import addresses, local_files, objects, stores, unpack, variables
from server.storage.addresses import shown
from server.storage.area import Area, Progress, alone, unwritable
from server.storage.download import Offer, Patience, retrieve
from server.storage.uri import MAX_BYTES, MAX_SECONDS, Source, check, parse

INCOMING = ".incoming-"
# What is out of sight is called: one file as it came, and what will be shown.
_PACKED, _MODEL = "download", "model"


@dataclass(frozen=True)
class Fetched:
    """What `get` has put into its folder.

    `path` is what to serve: a file, a folder, or model.py:Class.  `name` is its name, an archive's without the ending.
    `digest` ("sha256:…") tells the content: of one file as sha256sum has it, of several as the sha256 of sha256sum's
    lines, sorted by path.  `size` is in bytes.  `etag` is the server's, or of all that was listed; empty without.
    """

    path: Path
    name: str
    digest: str
    size: int
    etag: str = ""


@dataclass(frozen=True)
class Options:
    """`max_bytes` holds for what is downloaded, and again for what is unpacked; `max_seconds` for all of it together.

    `etag` is of a copy that is here already.  Without `private` an http(s) server has to be a public one.
    """

    max_bytes: int = MAX_BYTES
    max_seconds: float = MAX_SECONDS
    sha256: str = ""
    etag: str = ""
    progress: Progress = lambda done, total: None
    patience: Patience = Patience()
    private: bool = True


_DEFAULT = Options()


@dataclass(frozen=True)
class _Job:
    """What is brought from where (`name`, for messages) to where; `staging` is a folder out of sight."""

    source: Source
    name: str
    directory: Path
    staging: Path
    options: Options
    deadline: float

    def area(self, folder: str = "", total: int | None = None, progress: Progress = lambda done, total: None) -> Area:
        root, limit = self.staging / folder, self.options.max_bytes
        return Area(root, self.directory, self.name, limit, total, progress, self.deadline)


def get(uri: str, directory: Path, options: Options = _DEFAULT) -> Fetched | None:
    """Put the model at `uri` into `directory`, which is made if need be; None where `options.etag` is still the server's.

    FetchFailed says why not, and then nothing of it is there.  Files of the same names are replaced, others left alone.
    A single file appears at once; of several each does.
    """
    uri, environ = stores.named(uri, os.environ)
    source = parse(uri)
    source = replace(source, sha256=options.sha256.lower() or source.sha256)
    deadline = time.monotonic() + options.max_seconds
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(directory))
            for left in directory.glob(f"{INCOMING}*"):
                shutil.rmtree(left, ignore_errors=True)
            staging = Path(tempfile.mkdtemp(prefix=INCOMING, dir=directory))
        except OSError as error:
            raise unwritable(directory, error) from error
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        job = _Job(source, shown(source.uri), directory, staging, options, deadline)
        if source.path is not None:
            return _from_here(replace(job, name=str(source.path)), source.path)
        if source.is_in_bucket or stores.is_azure(source.uri, environ):
            return _from_bucket(job, environ)
        return _from_server(job, environ)


def _from_server(job: _Job, environ: Mapping[str, str]) -> Fetched | None:
    packed = job.staging / _PACKED

    def take(offer: Offer) -> tuple[str, str, str]:
        _fits(offer.total, job)
        # a kind of archive that is not unpacked is refused before its bytes come
        unpack.is_archive(offer.name)
        with contextlib.suppress(FileNotFoundError):
            packed.unlink()
        area = job.area(total=offer.total, progress=job.options.progress)
        found = area.write(packed.name, offer.chunks)
        if not area.size:
            raise FetchFailed("DownloadFailed", f"{job.name} is empty (0 bytes)", "upload the file again")
        return offer.name, found, offer.etag

    # a copy with that etag may not be the one with this checksum
    etag = "" if job.source.sha256 else job.options.etag
    headers = variables.headers(addresses.parse(job.source.uri).host, environ)
    options = job.options
    taken = retrieve(
        job.source.uri,
        take,
        etag=etag,
        headers=headers,
        patience=options.patience,
        deadline=job.deadline,
        private=options.private,
    )
    if taken is None:
        return None
    name, found, etag = taken
    return replace(_opened(job, packed, name, found), etag=etag)


def _from_bucket(job: _Job, environ: Mapping[str, str]) -> Fetched | None:
    # its library is loaded where there is something for it to do
    from server.storage import buckets

    store = stores.locate(job.source.uri, buckets.with_profile(environ))
    with buckets.opened(store, job.options.patience) as bucket:
        plan = objects.plan(store, bucket.listing(), variables.patterns(environ))
        if job.options.etag == plan.etag != "" and not job.source.sha256:
            return None
        _fits(plan.size, job)
        # an archive is one too where it is all that a folder holds
        is_one = len(plan.items) == 1 and (not plan.is_folder or unpack.is_archive(plan.items[0].path))
        area = job.area("" if is_one else _MODEL, plan.size, job.options.progress)
        with bucket.contents(plan.items) as contents:
            for item, chunks in contents:
                area.write(_PACKED if is_one else item.path, chunks)
    if is_one:
        name = plan.items[0].path.rpartition("/")[2]
        return replace(_opened(job, area.root / _PACKED, name, area.digests[_PACKED]), etag=plan.etag)
    check(job.source.sha256, area.digest().removeprefix("sha256:"), job.name)
    area.publish()
    return Fetched(job.directory, plan.name, area.digest(), area.size, plan.etag)


def _opened(job: _Job, packed: Path, name: str, found: str) -> Fetched:
    """What one downloaded file is: an archive's content, or itself.  `found` is its sha256."""
    check(job.source.sha256, found, job.name)
    if unpack.is_archive(name):
        return _unpacked(job, packed, unpack.stem(name))
    area = job.area(_MODEL)
    area.move(packed, name, found)
    area.publish()
    return Fetched(job.directory / name, name, f"sha256:{found}", area.size)


def _from_here(job: _Job, path: Path) -> Fetched:
    chosen = local_files.choose(path)
    _fits(chosen.size, job)
    if job.source.sha256 and len(chosen.files) > 1 and not chosen.is_folder:
        raise local_files.no_one_checksum(job.name)
    unpacked = not chosen.is_folder and unpack.is_archive(chosen.name)
    area = job.area("packed" if unpacked else _MODEL, chosen.size, job.options.progress)
    for relative in chosen.files:
        area.copy(chosen.root / relative, relative)
    if job.source.sha256:
        found = area.digest().removeprefix("sha256:") if chosen.is_folder else area.digests[chosen.name]
        check(job.source.sha256, found, job.source.uri)
    if unpacked:
        return _unpacked(job, area.root / chosen.name, unpack.stem(chosen.name))
    area.publish()
    if chosen.is_folder:
        return Fetched(job.directory, chosen.name, area.digest(), area.size)
    digest = area.digest(kind="files\n") if len(chosen.files) > 1 else f"sha256:{area.digests[chosen.files[0]]}"
    return Fetched(job.directory / chosen.name, chosen.name, digest, area.size)


def _unpacked(job: _Job, packed: Path, name: str) -> Fetched:
    area, directory = job.area(_MODEL), job.directory
    for member, pieces in unpack.members(packed, job.name, job.options.max_bytes):
        area.write(member, pieces)
    if not area.digests:
        raise FetchFailed("BadArchive", f"{job.name} holds no files", "pack it again")
    packed.unlink()
    area.publish()
    # an archive of one folder is that folder; what file managers add beside it does not count
    tops = {member.partition("/")[0] for member in area.digests if not member.startswith((".", "__MACOSX/"))}
    only = next(iter(tops)) if len(tops) == 1 else ""
    inner = directory / only if only and only not in area.digests else directory
    # a folder of numbered versions is one too, whose name is not that of its only version
    if inner.name.isdecimal():
        inner = directory
    prefix = "" if inner == directory else f"{only}/"
    return Fetched(inner, name if inner == directory else only, area.digest(prefix=prefix), area.size)


def _fits(size: int | None, job: _Job) -> None:
    """FetchFailed, before anything is written, where so many bytes are too many."""
    if size is None:
        return
    limit = job.options.max_bytes
    if size > limit:
        raise FetchFailed("TooLarge", f"{job.name} has {size} bytes, and {limit} are allowed", "raise the limit if that is right")
    free = shutil.disk_usage(job.staging).free
    if size > free:
        what = f"{job.name} has {size} bytes, and {job.directory} has {free} left"
        raise FetchFailed("DiskFull", what, "make room, and try again")
