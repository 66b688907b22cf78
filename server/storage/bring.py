"""A model into a folder, whole or not at all: from a server or from this machine, packed or not."""

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from server.errors import FetchFailed
from server.storage import local_files, unpack
from server.storage.addresses import shown
from server.storage.area import Area, Progress, alone, unwritable
from server.storage.download import Offer, Patience, retrieve
from server.storage.uri import Source, check, parse

MAX_BYTES = 10 << 30
INCOMING = ".incoming-"


@dataclass(frozen=True)
class Fetched:
    """What `get` has put into its folder.

    `path` is what to serve: a file, a folder, or model.py:Class.  `name` is its name, an archive's without the ending.
    `digest` ("sha256:…") tells the content: of one file as sha256sum has it, of several as the sha256 of sha256sum's
    lines, sorted by path.  `size` is in bytes.  `etag` is the server's, empty without.
    """

    path: Path
    name: str
    digest: str
    size: int
    etag: str = ""


@dataclass(frozen=True)
class Options:
    """`max_bytes` holds for what is downloaded, and again for what is unpacked; `etag` is of a copy that is here already."""

    max_bytes: int = MAX_BYTES
    sha256: str = ""
    etag: str = ""
    progress: Progress = lambda done, total: None
    patience: Patience = Patience()


_DEFAULT = Options()


def get(uri: str, directory: Path, options: Options = _DEFAULT) -> Fetched | None:
    """Put the model at `uri` into `directory`, which is made if need be; None where `options.etag` is still the server's.

    FetchFailed says why not, and then nothing of it is there.  Files of the same names are replaced, others left alone.
    A single file appears at once; of several each does.
    """
    source = parse(uri)
    source = replace(source, sha256=options.sha256.lower() or source.sha256)
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
        if source.path is None:
            return _from_server(source, directory, staging, options)
        return _from_here(source, source.path, directory, staging, options)


def _from_server(source: Source, directory: Path, staging: Path, options: Options) -> Fetched | None:
    packed = staging / "download"
    uri = shown(source.uri)

    def take(offer: Offer) -> tuple[str, str, str]:
        _fits(offer.total, staging, options.max_bytes, uri)
        unpacked = unpack.is_archive(offer.name)
        with contextlib.suppress(FileNotFoundError):
            packed.unlink()
        area = Area(staging, directory, uri, options.max_bytes, offer.total, options.progress)
        found = area.write(packed.name, offer.chunks)
        if not area.size:
            raise FetchFailed("DownloadFailed", f"{uri} is empty (0 bytes)", "upload the file again")
        return offer.name if not unpacked else f"{unpack.stem(offer.name)}/", found, offer.etag

    # a copy with that etag may not be the one with this checksum
    etag = "" if source.sha256 else options.etag
    taken = retrieve(source.uri, take, etag=etag, patience=options.patience)
    if taken is None:
        return None
    name, found, etag = taken
    check(source.sha256, found, uri)
    area = Area(staging / "model", directory, uri, options.max_bytes)
    if name.endswith("/"):
        return replace(_unpacked(packed, name[:-1], area, directory, options.max_bytes), etag=etag)
    area.move(packed, name, found)
    area.publish()
    return Fetched(directory / name, name, f"sha256:{found}", area.size, etag)


def _from_here(source: Source, path: Path, directory: Path, staging: Path, options: Options) -> Fetched:
    chosen = local_files.choose(path)
    _fits(chosen.size, staging, options.max_bytes, str(path))
    if source.sha256 and (chosen.is_folder or len(chosen.files) > 1):
        raise FetchFailed(
            "ChecksumMismatch", f"{path} is more than one file, which has no one checksum", "pack it, or leave it out"
        )
    unpacked = not chosen.is_folder and unpack.is_archive(chosen.name)
    root = staging / ("packed" if unpacked else "model")
    area = Area(root, directory, str(path), options.max_bytes, chosen.size, options.progress)
    for relative in chosen.files:
        area.copy(chosen.root / relative, relative)
    if source.sha256:
        check(source.sha256, area.digests[chosen.name], source.uri)
    if unpacked:
        inside = Area(staging / "model", directory, str(path), options.max_bytes)
        return _unpacked(area.root / chosen.name, unpack.stem(chosen.name), inside, directory, options.max_bytes)
    area.publish()
    if chosen.is_folder:
        return Fetched(directory, chosen.name, area.digest(), area.size)
    digest = area.digest(kind="files\n") if len(chosen.files) > 1 else f"sha256:{area.digests[chosen.files[0]]}"
    return Fetched(directory / chosen.name, chosen.name, digest, area.size)


def _unpacked(packed: Path, name: str, area: Area, directory: Path, max_bytes: int) -> Fetched:
    for member, pieces in unpack.members(packed, area.source, max_bytes):
        area.write(member, pieces)
    if not area.digests:
        raise FetchFailed("BadArchive", f"{area.source} holds no files", "pack it again")
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


def _fits(size: int | None, folder: Path, max_bytes: int, source: str) -> None:
    """FetchFailed, before anything is written, where so many bytes are too many."""
    if size is None:
        return
    if size > max_bytes:
        raise FetchFailed(
            "TooLarge", f"{source} has {size} bytes, and {max_bytes} are allowed", "raise the limit if that is right"
        )
    free = shutil.disk_usage(folder).free
    if size > free:
        raise FetchFailed(
            "DiskFull", f"{source} has {size} bytes, and {folder.parent} has {free} left", "make room, and try again"
        )
