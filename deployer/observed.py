"""What a shell saw of one service.  Values only: a shell fills them in, the pure rooms read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Failure:
    """Why something is not as it should be, in one line for a person."""

    reason: str
    message: str
    at: float
    """Unix seconds."""
    location: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class ModelSeen:
    """A model on its way to this platform; `digest` names the content once it is there."""

    state: Literal["fetching", "fetched", "failed"]
    digest: str = ""
    done: int = 0
    total: int | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class RevisionSeen:
    """One immutable predictor template and what runs of it."""

    name: str
    number: int
    hash: str
    template: Mapping[str, Any]
    wanted: int = 0
    ready: int = 0
    alive: int = 0
    failure: Failure | None = None


@dataclass(frozen=True)
class History:
    """Revisions by what they have been; "" where there was none.  Kept in `status`, so that a restart changes nothing."""

    created: str = ""
    ready: str = ""
    rolled_out: str = ""
    previous: str = ""


@dataclass(frozen=True)
class Observed:
    revisions: tuple[RevisionSeen, ...] = ()
    models: Mapping[str, ModelSeen] = field(default_factory=dict)
    """By URI."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """Percent by revision, as routed now."""
    history: History = History()
    url: str = ""
    address: str = ""
    route_error: str = ""
    """Why the routes are not those of the last plan, in the proxy's words; "" where they are."""
    lacking: Failure | None = None
    """What a service that serves could not be given, such as its autoscaler."""

    def revision(self, name: str) -> RevisionSeen | None:
        return next((r for r in self.revisions if r.name == name), None)
