"""What the controller asks of a shell.  `deployer/local` and `deployer/kubernetes` each are one."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from deployer.observed import Observed
from deployer.plan import Abilities, Plan
from deployer.runtimes import ServingRuntime


class Platform(Protocol):
    """Keys are "namespace/name".  Every verb may be called from several threads, for one key by one at a time."""

    def watch(self, changed: Callable[[str], None]) -> None:
        """Call `changed` with a key whenever something of that service may have changed; once for every service at first."""

    def get(self, key: str) -> dict[str, Any] | None:
        """The object as it was applied, with `metadata` and the status written last; None where it is gone."""

    def runtimes(self, namespace: str) -> Sequence[ServingRuntime]:
        """What users installed for a namespace, and for all."""

    @property
    def abilities(self) -> Abilities: ...

    def observe(self, key: str) -> Observed: ...

    def apply(self, key: str, plan: Plan) -> None:
        """Have it so: start what is missing, route, and end what is not planned.  Does not wait for any of it."""

    def report(self, key: str, status: dict[str, Any]) -> None:
        """Keep the status, where it differs from what is kept."""

    def delete(self, key: str) -> None:
        """The service is gone: end and remove whatever was its own."""
