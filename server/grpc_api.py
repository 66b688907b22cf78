"""The gRPC edge: Open Inference, health and reflection.  Messages in, messages out; it decides nothing about models."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from server.errors import InvalidRequest, ModelLoadError, ServingError
from server.inference import Inference, error_text
from server.life import EXTENSIONS, PRODUCT, VERSION, Life, index_entry
from server.models import State, facts
from server.protocols import _pb, v2_grpc
from server.protocols.status import status_of

HEALTH = "grpc.health.v1.Health"
# A status' text is a header, and clients refuse more than 8 KiB of headers.
LONGEST_DETAILS = 7000
_PATH = f"/{_pb.SERVICE}/ModelInfer"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

Method = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class GrpcEdge:
    """One gRPC server in the process's event loop."""

    def __init__(self, inference: Inference, life: Life) -> None:
        self._inference, self._registry, self._life = inference, inference.registry, life
        self._server: grpc.aio.Server | None = None
        # Watch answers again when readiness changes
        self._changed = asyncio.Condition()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that it got.  ModelLoadError where the port is taken."""
        limit = self._inference.settings.max_body_bytes
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(self._inference.settings.reuse_port)),
            ]
        )
        server.add_generic_rpc_handlers((self._open_inference(), self._health(), Reflection()))
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

    def not_serving(self) -> None:
        """Tell who watches health that readiness has changed."""

        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._notifying = asyncio.ensure_future(notify())

    def _open_inference(self) -> Any:
        handlers = {}
        for name, (request, response) in _pb.METHODS.items():
            method = getattr(self, f"_{name}", None)
            if method is not None:
                handlers[name] = grpc.unary_unary_rpc_method_handler(
                    _answering(method, request), response_serializer=response.SerializeToString
                )
        return grpc.method_handlers_generic_handler(_pb.SERVICE, handlers)

    async def _ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        metadata = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
        return await self._inference.grpc(request, _PATH, context.time_remaining(), metadata.get("x-request-id", ""))

    async def _ServerLive(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return _pb.message("ServerLiveResponse")(live=True)

    async def _ServerReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return _pb.message("ServerReadyResponse")(ready=self._life.is_ready())

    async def _ModelReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        found = self._registry.find(request.name, request.version)
        return _pb.message("ModelReadyResponse")(ready=found.state is State.READY)

    async def _ServerMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return v2_grpc.server_metadata(PRODUCT, VERSION, EXTENSIONS)

    async def _ModelMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        handle = self._registry.ready(request.name, request.version)
        versions = [v.version for v in self._registry.versions(request.name) if v.version]
        signature = handle.signature
        return v2_grpc.model_metadata(
            handle.name, versions, handle.runtime.platform, signature.inputs, signature.outputs, facts(handle)
        )

    async def _RepositoryIndex(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        entries = [index_entry(v) for v in self._registry.all_versions() if v.state is State.READY or not request.ready]
        return v2_grpc.repository_index((e["name"], e.get("version", ""), e["state"], e["reason"]) for e in entries)

    def _health(self) -> Any:
        request, response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        codec = {"request_deserializer": request.FromString, "response_serializer": response.SerializeToString}
        return grpc.method_handlers_generic_handler(
            HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check, **codec),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **codec),
            },
        )

    def _health_of(self, service: str) -> Any:
        """The status of a known service name (ours, health's own, a model's), None for another."""
        if service in self._registry.names():
            ready = not self._life.draining and self._registry.find(service).state is State.READY
        elif service in ("", _pb.SERVICE):
            ready = self._life.is_ready()
        else:
            return None
        return _SERVING if ready else _NOT_SERVING

    async def _check(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        status = self._health_of(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def _watch(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        unknown, last = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, None
        while True:
            status = self._health_of(request.service)
            status = unknown if status is None else status
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait(), 1.0)
                except TimeoutError:
                    continue


def _answering(method: Method, message: Any) -> Method:
    """The method, from a message's bytes, with its ServingErrors as gRPC statuses."""

    async def answer(sent: bytes, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(_parsed(message, sent), context)
        except ServingError as error:
            return await _abort(context, error)

    return answer


def _parsed(message: Any, sent: bytes) -> Any:
    try:
        return message.FromString(sent)
    except DecodeError:
        raise InvalidRequest(f"the request is not a valid {message.DESCRIPTOR.full_name}") from None


async def _abort(context: grpc.aio.ServicerContext, error: ServingError) -> NoReturn:
    trailing = (("retry-after", str(max(1, round(error.retry_after)))),) if error.retry_after is not None else ()
    text = error_text(error)
    if 3 * len(text.encode()) > LONGEST_DETAILS:  # each byte of other scripts than ASCII travels as three
        text = f"{text[: LONGEST_DETAILS // 12]}…"
    await context.abort(grpc.StatusCode[status_of(error).grpc], text, trailing)
    raise AssertionError("abort raises")


class Reflection(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc is untyped
    """Lists the services and hands out their descriptors: ours from our private pool, health's from the default one.

    The library for it is imported when somebody asks: few do, and it is 6 MB in every predictor.
    """

    # v1 and v1alpha are the same messages under two names
    SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

    def __init__(self) -> None:
        self._handler: Any = None

    def service(self, call: Any) -> Any:
        if call.method not in [f"/{service}/ServerReflectionInfo" for service in self.SERVICES]:
            return None
        if self._handler is None:
            self._handler = self._make()
        return self._handler

    def _make(self) -> Any:
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        _pb.POOL.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
        servicer = reflection.aio.ReflectionServicer((_pb.SERVICE, HEALTH, *self.SERVICES), pool=_pb.POOL)
        return grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
