"""What this server says of itself, in any protocol: its name, what it offers, whether it wants traffic, its models' states."""

from typing import Any

from server.models import Registry, State, Version

EXTENSIONS = [
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
]
_IN_TRITONS_WORDS = {
    State.READY: "READY",
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.DRAINING: "UNLOADING",
}
PRODUCT = "serveplane"
VERSION = "0.1.0"


class Life:
    """Whether this process wants traffic; the edges ask, `app` decides."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.draining = False

    def is_ready(self) -> bool:
        return not self.draining and self._registry.is_ready()

    def models(self) -> list[dict[str, Any]]:
        """The models of this process, their versions' states, and where labels point."""
        registry = self._registry
        return [
            {"name": name, "versions": [_state(v) for v in registry.versions(name)], "labels": registry.labels(name)}
            for name in sorted(registry.names())
        ]


def _state(version: Version) -> dict[str, str]:
    return {"version": version.version, "state": version.state.value, "reason": version.reason}


def index_entry(version: Version) -> dict[str, str]:
    """Triton's words for the states of a model."""
    state = _IN_TRITONS_WORDS.get(version.state, "UNAVAILABLE")
    entry = {"name": version.name, "version": version.version, "state": state, "reason": version.reason}
    return entry if version.version else {k: v for k, v in entry.items() if k != "version"}
