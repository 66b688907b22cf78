"""What can go wrong while deploying, in words for the person who deploys.

DeployerError
├── SpecError     a manifest can't be carried out as written; holds every mistake in it, each with its path
├── NoRuntime     no runtime serves what the manifest asks for
├── NotFound      there is no such object
└── Conflict      the object is not (or no longer) what the caller thought
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

NoRuntimeReason = Literal["NoSupportingRuntime", "RuntimeNotRecognized", "RuntimeDisabled"]


class DeployerError(Exception):
    """`str(error)` is the text that a person reads: what was found, what was wanted, what to do."""


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong with an object.  `path` leads to it as the person wrote it: `spec.predictor.minReplicas`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def under(path: str, key: str | int) -> str:
    """The path of what stands under a key or an index; a key with dots and slashes, as annotations have, is put in brackets."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if re.fullmatch(r"[\w-]+", key):
        return f"{path}.{key}" if path else key
    return f'{path}["{key[:100]}"]'


class SpecError(DeployerError):
    """All mistakes of one object (or one file); `str(error)` has a line for each."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


class NoRuntime(DeployerError):
    """`reason` is the word that KServe puts in `status.modelStatus.lastFailureInfo.reason`."""

    def __init__(self, message: str, reason: NoRuntimeReason) -> None:
        super().__init__(message)
        self.reason: NoRuntimeReason = reason


class NotFound(DeployerError):
    pass


class Conflict(DeployerError):
    pass


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    if len(name) > 100:  # comparing takes as long as the name
        return ""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def show(value: object) -> str:
    """A value out of a manifest, as a message names it: short, and as the person wrote it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return repr(value) if len(value) <= 60 else f"{value[:57]!r}… ({len(value)} characters)"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"an object with {', '.join(map(repr, list(value)[:3]))}" if value else "an empty object"
        case _:
            text = str(value) if not isinstance(value, int) or value.bit_length() < 1000 else "a huge number"
            return text if len(text) <= 60 else f"{text[:57]}…"
