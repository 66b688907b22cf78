"""gRPC methods of Triton's model repository extension that change something: load and unload."""

from collections.abc import Awaitable, Callable
from typing import Any

from server.protocols import _pb
from server.repository import Repository, no_parameters


def methods(repository: Repository) -> dict[str, Callable[[Any], Awaitable[Any]]]:
    """By name: from a request's message to its answer's.  They raise ServingError."""

    async def load(request: Any) -> Any:
        repository.check_control()
        no_parameters(request.parameters, ())
        await repository.load(request.model_name)
        return _pb.message("RepositoryModelLoadResponse")()

    async def unload(request: Any) -> Any:
        repository.check_control()
        no_parameters(request.parameters, ("unload_dependents",))
        await repository.unload(request.model_name)
        return _pb.message("RepositoryModelUnloadResponse")()

    return {"RepositoryModelLoad": load, "RepositoryModelUnload": unload}
