"""gRPC methods of Triton's extensions: configuration, statistics, settings, shared memory.  Bytes in, bytes out."""

from collections.abc import Callable
from typing import Any

from server import triton
from server.inference import Inference
from server.protocols import _pb
from server.protocols.triton import message
from server.triton import TritonCalls

Answer = Callable[[Any], Any]

_REFUSED = {
    "TraceSetting": triton.TRACE,
    "SystemSharedMemoryRegister": triton.SHARED_MEMORY,
    "CudaSharedMemoryStatus": triton.SHARED_MEMORY,
    "CudaSharedMemoryRegister": triton.SHARED_MEMORY,
    "CudaSharedMemoryUnregister": triton.SHARED_MEMORY,
}
# Nothing is ever registered: there is nothing to list, and nothing left to do for who wants it gone.
_EMPTY = ("SystemSharedMemoryStatus", "SystemSharedMemoryUnregister")


def methods(inference: Inference) -> dict[str, tuple[Any, Answer]]:
    """By name: the class of the request, and from a request to the message that answers it.  They raise ServingError."""
    calls = TritonCalls(inference)

    def config(request: Any) -> Any:
        return message("ModelConfigResponse", {"config": calls.config(request.name, request.version)})

    def statistics(request: Any) -> Any:
        return message("ModelStatisticsResponse", calls.statistics(request.name, request.version))

    def log_settings(request: Any) -> Any:
        if request.settings:
            triton.refuse(triton.LOGGING)
        response = _pb.message("LogSettingsResponse")()
        for name, value in calls.log_settings().items():
            kind = {bool: "bool_param", int: "uint32_param"}.get(type(value), "string_param")
            setattr(response.settings[name], kind, value)
        return response

    own = {"ModelConfig": config, "ModelStatistics": statistics, "LogSettings": log_settings}
    return {
        **{name: (_pb.METHODS[name][0], method) for name, method in own.items()},
        # of what is not offered nothing is read, so that any message will do
        **{name: (_pb.message("ServerLiveRequest"), _refusing(text)) for name, text in _REFUSED.items()},
        **{name: (_pb.message("ServerLiveRequest"), lambda _: _pb.message("ServerLiveRequest")()) for name in _EMPTY},
    }


def _refusing(text: str) -> Answer:
    def refuse(request: Any) -> None:
        triton.refuse(text)

    return refuse
