"""What of a bucket belongs to a model: pure, from a listing to the files that it becomes and the pieces they come in.

A model at `models/iris` is the object of exactly that key, or what lies below `models/iris/`; never `models/iris-2`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from server.errors import FetchFailed
from server.storage.local_files import MAX_FILES
from server.storage.stores import Store
from server.storage.unpack import safe_name
from server.storage.variables import ALL, Patterns

# Bytes that are asked for at once, and held in memory until they are written.
PART = 4 << 20


@dataclass(frozen=True)
class Listed:
    """An object as its store tells of it; `etag` is empty where it has none."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Item:
    """An object and the relative path of the file that it becomes."""

    object: Listed
    path: str


@dataclass(frozen=True)
class Part:
    """Bytes from `start` up to `end` of an object."""

    object: Listed
    start: int
    end: int

    @property
    def is_whole(self) -> bool:
        return self.end - self.start == self.object.size


@dataclass(frozen=True)
class Plan:
    """`items` are in the order of their paths, `size` is in bytes.  `etag` is another one whenever anything in it is; empty
    where the store does not tell."""

    items: tuple[Item, ...]
    name: str
    is_folder: bool
    size: int
    etag: str


def plan(store: Store, listing: Sequence[Listed], wanted: Patterns = ALL) -> Plan:
    """The files of the model that `store` names among these objects, of a folder those that are wanted.

    FetchFailed where there is none that can be had.
    """
    named = (one for one in listing if one.key == store.key and not store.is_folder)
    whole = next((one for one in named if one.size or len(listing) == 1), None)
    if whole is not None:
        if not whole.size:
            raise FetchFailed("DownloadFailed", f"{store} is empty (0 bytes)", "upload the file again")
        name = store.key.rpartition("/")[2]
        items = [Item(whole, _path(store, whole, name))]
    else:
        name = store.key.rpartition("/")[2] or store.bucket
        found = list(_below(store, listing))
        items = [item for item in found if wanted.keep(item.path)]
        if found and not items:
            what = f"{store} holds {len(found)} objects, and {wanted} leave none of them"
            raise FetchFailed("NotFound", what, "correct the patterns, or leave them out")
    if not items:
        missing = "lies below it" if store.is_folder else "has that key, or lies below it"
        raise FetchFailed("NotFound", f"there is nothing at {store}: no object {missing}", "check its spelling")
    if len(items) > MAX_FILES:
        what = f"{store} holds more than {MAX_FILES} objects"
        raise FetchFailed("TooLarge", what, "put the model into a folder of its own, or pack it as .tar.gz")
    size = sum(item.object.size for item in items)
    if not size:
        raise FetchFailed("DownloadFailed", f"{store} holds no objects with anything in them", "upload the model again")
    items.sort(key=lambda item: item.path)
    return Plan(tuple(items), name, whole is None, size, _etag(items))


def _below(store: Store, listing: Sequence[Listed]) -> Iterator[Item]:
    prefix = f"{store.key}/" if store.key else ""
    folders = {key[:at] for key in (one.key for one in listing) for at, c in enumerate(key) if c == "/"}
    for one in listing:
        # consoles make an empty object for a folder, and a store may tell of more than it was asked for
        if not one.key.startswith(prefix) or (not one.size and one.key in folders):
            continue
        path = _path(store, one, one.key.removeprefix(prefix))
        # as with a folder that lies here
        if not any(part.startswith(".") or part == "__pycache__" for part in path.split("/")):
            yield Item(one, path)


def _path(store: Store, one: Listed, relative: str) -> str:
    try:
        path = safe_name(relative)
        if not path:
            raise ValueError("it is no name")
    except ValueError as error:
        what = f"{store} holds an object whose key can't be a file's name ({one.key[:100]!r}): {error}"
        raise FetchFailed("DownloadFailed", what, "give the object a plain name") from error
    return path


def _etag(items: Sequence[Item]) -> str:
    if not all(item.object.etag for item in items):
        return ""
    lines = "".join(f"{item.object.size} {item.object.etag} {item.path}\n" for item in items)
    return f'"{hashlib.sha256(lines.encode()).hexdigest()}"'


def parts(one: Listed) -> tuple[Part, ...]:
    """The pieces in which an object is asked for, in order; none of what is empty."""
    return tuple(Part(one, start, min(start + PART, one.size)) for start in range(0, one.size, PART))
