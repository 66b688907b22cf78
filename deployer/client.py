"""What the command line asks of a platform.  `deployer/local` and `deployer/kubernetes` each have one.

Objects are those of the Kubernetes API.  All verbs raise DeployerErrors that say what went wrong: NotFound for what is not
there, SpecError for what is written wrongly, Conflict where it can't be so now.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from deployer.errors import NotFound
from deployer.spec.notices import Platform

Object = dict[str, Any]


class Replica(NamedTuple):
    """One predictor: a process, or a pod."""

    revision: str
    is_ready: bool


class Endpoints(NamedTuple):
    """Where many requests go: a URL with its path, headers that each needs, and host:port of gRPC."""

    url: str
    headers: dict[str, str]
    grpc: str


class Client(Protocol):
    platform: Platform
    namespace: str
    """Where a service is when nobody says."""

    def get(self, namespace: str, name: str) -> Object: ...

    def listed(self, namespace: str | None) -> list[Object]:
        """Of a namespace, or of all."""

    def apply(self, raw: Object, content: str = "") -> Object:
        """Make it, or have it say what `raw` says; Conflict where `raw` has a resourceVersion and somebody was faster.

        `content` says which content a model's URI stands for, where the platform keeps copies: "" what is there now, "known"
        what was found last, or what the revision of this name had.
        """

    def delete(self, namespace: str, name: str) -> Object:
        """The object as it was; requests in flight are still being answered."""

    def runs(self, namespace: str, name: str) -> bool:
        """Whether processes or pods of a service are left, also of a deleted one."""

    def revisions(self, namespace: str, name: str) -> list[Object]:
        """Each with `name`, `number`, `template` and the `predictor` that it was made of."""

    def replicas(self, namespace: str, name: str) -> list[Replica]: ...

    def install(self, raw: Object) -> Object:
        """A ServingRuntime or ClusterServingRuntime."""

    def uninstall(self, raw: Object) -> Object: ...

    def runtimes(self, namespace: str) -> list[Object]:
        """What users installed for a namespace and for all."""

    def ask(self, service: Mapping[str, Any], path: str, body: Any, headers: Mapping[str, str]) -> Any:
        """The JSON that a service answers to a POST of `body`, or to a GET where it is None."""

    def way(self, service: Mapping[str, Any]) -> str:
        """Where `ask` sends its requests, for a person."""

    def endpoints(self, service: Mapping[str, Any]) -> Endpoints: ...

    def logs(self, namespace: str, name: str, tail: int, follow: bool) -> Iterator[str]:
        """Lines, each behind the name of who wrote it; the last `tail` of each, all with 0; then on, as they are written."""


def absent(namespace: str, name: str) -> NotFound:
    return NotFound(f"there is no InferenceService {name!r} in namespace {namespace!r}")


def check_name(namespace: str, name: str) -> None:
    """NotFound for what nothing can be called, and what would be another path."""
    if not name:
        raise NotFound("there is no InferenceService with an empty name")
    for one in (namespace, name):
        if not re.fullmatch("[a-z0-9]([a-z0-9.-]*[a-z0-9])?", one):
            raise absent(namespace, name)
