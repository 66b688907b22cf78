"""What this server says of itself, in any protocol: its name, what it offers, whether it wants traffic, its models' states."""

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
PRODUCT = "serveplane"
VERSION = "0.1.0"


class Life:
    """Whether this process wants traffic; the edges ask, `app` decides."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.draining = False

    def is_ready(self) -> bool:
        return not self.draining and self._registry.is_ready()


def index_entry(version: Version) -> dict[str, str]:
    """Triton's words for the states of a model."""
    state = {State.READY: "READY", State.LOADING: "LOADING", State.WARMING: "LOADING"}.get(version.state, "UNAVAILABLE")
    entry = {"name": version.name, "version": version.version, "state": state, "reason": version.reason}
    return entry if version.version else {k: v for k, v in entry.items() if k != "version"}
