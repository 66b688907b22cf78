"""gRPC by the library: `--grpc_engine=grpcio`.  The calls are `grpc_calls`'; this carries their bytes.

Slower than `grpc_fast`, and what every other gRPC server in Python is made of: for whoever meets a client that the fast
engine does not understand.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from server.errors import ModelLoadError, ServingError
from server.grpc_calls import GrpcCalls, Streaming, Told, Unary, refusal
from server.identity import identified


class GrpcEdge(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc is untyped
    """One gRPC server in the process's event loop."""

    def __init__(self, calls: GrpcCalls) -> None:
        self._calls = calls
        self._server: grpc.aio.Server | None = None
        self._handlers = {path: grpc.unary_unary_rpc_method_handler(_unary(m)) for path, m in calls.unary.items()}
        self._handlers |= {path: grpc.stream_stream_rpc_method_handler(_streaming(m)) for path, m in calls.streaming.items()}

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that it got.  ModelLoadError where the port is taken."""
        settings = self._calls.inference.settings
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(settings.reuse_port)),
            ]
        )
        server.add_generic_rpc_handlers((self,))
        try:
            bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise ModelLoadError(f"gRPC can't listen on {host}:{port}", "choose another port with --grpc_port, or 0") from error
        await server.start()
        self._server = server
        return int(bound)

    async def stop(self, grace: float) -> None:
        """GOAWAY to every client; what runs may finish within `grace` seconds."""
        if self._server is not None:
            await self._server.stop(grace)


def _unary(method: Unary) -> Any:
    async def answer(sent: bytes, context: grpc.aio.ServicerContext) -> bytes:
        metadata = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
        request_id = identified(*[metadata.get(name, "") for name in ("x-request-id", "traceparent", "tracestate")])
        if request_id:
            context.set_trailing_metadata((("x-request-id", request_id),))
        try:
            return await method(sent, Told(context.time_remaining(), request_id))
        except ServingError as error:
            return await _abort(context, error, request_id)

    return answer


def _streaming(streaming: Streaming) -> Any:
    async def answer(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        try:
            async with contextlib.aclosing(streaming.method(messages)) as answers:
                async for one in answers:
                    yield one
        except ServingError as error:
            await _abort(context, error)

    return answer


async def _abort(context: grpc.aio.ServicerContext, error: ServingError, request_id: str = "") -> NoReturn:
    end = refusal(error, request_id)
    trailing = [("retry-after", str(end.retry_after))] if end.retry_after is not None else []
    if end.request_id:
        # its library takes text of no other class
        trailing.append(("x-request-id", str(end.request_id)))
    await context.abort(grpc.StatusCode[end.code], end.details, tuple(trailing))
    raise AssertionError("abort raises")
