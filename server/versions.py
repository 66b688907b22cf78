"""Which versions of a model are wanted, and what labels mean: texts in, decisions out.  Nothing here looks at a disk.

A version is the text of a number ("3"); "" is the only version of a model that has none.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

# What TensorFlow Serving keeps a version in: 63 bits.
LARGEST_VERSION = 2**63 - 1
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class Policy:
    """Which of the versions that are there are wanted: the `newest` few, or all, or those that are named."""

    kind: Literal["latest", "all", "specific"] = "latest"
    newest: int = 1
    named: tuple[str, ...] = ()

    def choose(self, there: Iterable[str]) -> list[str]:
        """The wanted of these versions, the newest first."""
        ordered = sorted(there, key=age, reverse=True)
        if self.kind == "latest":
            return ordered[: self.newest]
        return ordered if self.kind == "all" else [v for v in ordered if v in self.named or not v]

    def __str__(self) -> str:
        if self.kind == "latest":
            return f"latest:{self.newest}"
        return self.kind if self.kind == "all" else f"specific:{','.join(self.named)}"


def age(version: str) -> int:
    """Sorts versions from old to new, one that is not numbered first."""
    return int(version) if version else -1


def number(name: str) -> str | None:
    """A folder's name as a version ("0042" is "42"), None where it is none."""
    if not (name.isascii() and name.isdecimal()) or len(name) > 40:
        return None
    value = int(name)
    return str(value) if value <= LARGEST_VERSION else None


def policy_of(text: str) -> Policy:
    """`latest`, `latest:2`, `all` or `specific:1,3`; ValueError says what was wanted."""
    kind, colon, rest = text.partition(":")
    if kind == "all" and not colon:
        return Policy("all")
    if kind == "latest" and (not colon or (number(rest) or "0") != "0"):
        return Policy("latest", int(rest) if colon else 1)
    if kind == "specific":
        named = [number(one.strip()) for one in rest.split(",")]
        if None not in named:
            return Policy("specific", 0, tuple(dict.fromkeys(one for one in named if one is not None)))
    raise ValueError(f"{text!r} is no version policy, expected latest, latest:2, all or specific:1,3")


def label_of(name: str, version: object) -> tuple[str, str]:
    """A label and its version; ValueError says what is wrong with them."""
    if not _LABEL.fullmatch(name) or name.isdecimal():
        raise ValueError(f"{name[:80]!r} is no label, expected letters, digits, '-', '_' and '.', and not digits alone")
    wanted = number(str(version)) if isinstance(version, int | str) and not isinstance(version, bool) else None
    if wanted is None:
        raise ValueError(f"label {name!r} points to {version!r}, expected a version's number")
    return name, wanted


def labels_of(texts: Iterable[str]) -> dict[str, str]:
    """Labels from texts such as `stable=1`; ValueError says what is wrong with which."""
    labels: dict[str, str] = {}
    for text in texts:
        name, equals, version = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is no label, expected NAME=VERSION, such as stable=1")
        if name in labels:
            raise ValueError(f"label {name!r} is given twice")
        labels.update([label_of(name, version)])
    return labels


def wanted(policy: Policy, labels: Mapping[str, str], there: Collection[str]) -> list[str]:
    """The versions of these to be served, the newest first: what the policy chooses, and what a label points to."""
    chosen = {*policy.choose(there), *(v for v in labels.values() if v in there)}
    return sorted(chosen, key=age, reverse=True)


def labels_now(asked: Mapping[str, str], now: Mapping[str, str], ready: Collection[str]) -> dict[str, str]:
    """Where labels point: to the version asked for once that is ready, and until then to where they pointed."""
    found = {label: version if version in ready else now.get(label, "") for label, version in asked.items()}
    return {label: version for label, version in found.items() if version in ready}


def unwanted(ready: Collection[str], wanted: Collection[str], labelled: Collection[str]) -> list[str]:
    """The ready versions to let go, the oldest first.

    For each that is wanted and not ready (it fails, or is still being copied) the newest of the others is kept, and the last
    one that is ready is never let go.  Nor is what a label points to.
    """
    missing = len([v for v in wanted if v not in ready])
    others = sorted((v for v in ready if v not in wanted and v not in labelled), key=age, reverse=True)
    stay = max(missing, 0 if len(others) < len(ready) else 1)
    return others[stay:][::-1]
