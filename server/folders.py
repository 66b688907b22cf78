"""What lies in a folder: one model, the versions of one, or a repository of several; and what has changed since the last look.

Deciding is pure: a tree of names goes in, or two listings.  `tree` and `listing` are the looks themselves; they take as long
as the disk takes.
"""

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from server.models import State
from server.versions import number

# A folder's names; None for a file, and for what lies deeper than anybody looked.
Tree = Mapping[str, "Tree | None"]

# Files that people lay beside models: a folder with one of these is not yet a model.
BESIDE = (".config", ".json", ".md", ".pbtxt", ".sha256", ".txt", ".yaml", ".yml")
# What names end in while something is on its way.
_PASSING = (".tmp", ".part", ".partial", "~")


class Shape(enum.Enum):
    MODEL = "one model"
    VERSIONS = "the versions of one model"
    REPOSITORY = "models in folders of their own, with their versions"


def shape(tree: Tree) -> Shape:
    """What a folder with these names is.  What is neither versions nor a repository is one model, or its mistake."""
    if _is_versions(tree):
        return Shape.VERSIONS
    if not _holds_model(tree) and any(_is_versions(inner) for name, inner in tree.items() if inner and is_name(name)):
        return Shape.REPOSITORY
    return Shape.MODEL


def models_in(tree: Tree) -> list[str]:
    """The names of the models of a repository."""
    return sorted(name for name, inner in tree.items() if inner and is_name(name) and _is_versions(inner))


def is_name(name: str) -> bool:
    """Whether a folder's name may be a model's: nothing hidden, and nothing that is on its way."""
    return not name.startswith((".", "_")) and not name.endswith(_PASSING) and name != "lost+found"


def _is_versions(tree: Tree) -> bool:
    return any(inner is not None and number(name) for name, inner in tree.items()) and not _holds_model(tree)


def _holds_model(tree: Tree) -> bool:
    """Whether a file here is a model's, as far as its name tells."""
    files = [name.lower() for name, inner in tree.items() if inner is None and is_name(name)]
    return any(("." in name and not name.endswith(BESIDE)) or name == "saved_model.pbtxt" for name in files)


def tree(folder: Path, depth: int = 2) -> Tree:
    """The names in a folder and so many levels below.  OSError where it can't be read; what is below and can't be is empty."""
    found: dict[str, Tree | None] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                found[entry.name] = None
                continue
            found[entry.name] = {}
            if depth and is_name(entry.name):
                try:
                    found[entry.name] = tree(Path(entry.path), depth - 1)
                except OSError:
                    continue
    return found


class Listing(NamedTuple):
    """A version's folder, or its one file, as a look finds it: two that are equal have nothing changed between them."""

    path: str
    # (relative path, bytes, nanoseconds of the last change)
    files: tuple[tuple[str, int, int], ...]


def listing(path: Path) -> Listing:
    """All that lies below, but for what is hidden and for caches.  What vanishes meanwhile is left out."""
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in names:
            if not name.startswith("."):
                try:
                    stat = os.stat(os.path.join(folder, name))
                except OSError:
                    continue
                files.append((os.path.relpath(os.path.join(folder, name), path), stat.st_size, stat.st_mtime_ns))
    # of "model.py:Class" the file
    file = path if path.exists() else Path(str(path).rpartition(":")[0])
    if not files and file.is_file():
        stat = file.stat()
        files.append(("", stat.st_size, stat.st_mtime_ns))
    return Listing(str(path), tuple(sorted(files)))


def versions_in(base: Path) -> dict[str, Listing]:
    """The versions of a model and what lies in each; the one version "" where the path is a model itself.

    Folders whose names are no numbers are nobody's business.  OSError where the path can't be read.
    """
    if not base.is_dir() or shape(tree(base, 1)) is not Shape.VERSIONS:
        return {"": listing(base)}
    found: dict[str, Listing] = {}
    for name in sorted(os.listdir(base), key=len):
        version = number(name)
        # of "7" and "007" the shorter
        if version is not None and version not in found and (base / name).is_dir():
            found[version] = listing(base / name)
    return found


@dataclass(frozen=True)
class Look:
    """What the last look saw of a version, and what was there when it was last loaded, or tried.

    `early`: that was at the first look of all, when nobody could tell whether it was being written.
    """

    listing: Listing
    tried: Listing | None = None
    early: bool = False

    def seen(self, now: Listing) -> "Look":
        return replace(self, listing=now, early=self.early and self.tried != now)


def is_due(state: State | None, before: Look | None, now: Listing, *, at_once: bool = False) -> bool:
    """Whether a wanted version is to be loaded: for the first time, again because it failed, or because it was loaded early.

    Only what is the same in two looks is taken for whole.  `at_once`: there is no time for a second look, or somebody asks.
    """
    if not (now.files or at_once):
        return False
    tried = before.tried if before else None
    settled = at_once or (before is not None and before.listing == now)
    if state is State.READY:
        return settled and tried is not None and tried != now and (at_once or (before is not None and before.early))
    if state is State.FAILED:
        return at_once or (settled and tried != now)
    return settled and state not in (State.LOADING, State.WARMING)
