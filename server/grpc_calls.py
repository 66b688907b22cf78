"""What is answered over gRPC, by path: Open Inference, TensorFlow Serving, health, reflection.  Bytes of messages in, and out.

The calls of one process, whichever engine carries them (`grpc_fast`, `grpc_api`); it decides nothing about models.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from server import grpc_repository, grpc_stream, grpc_tfs, grpc_triton
from server.errors import InvalidRequest, ModelNotFound, ServingError
from server.grpc_stream import Streams
from server.inference import Inference, error_text
from server.life import EXTENSIONS, PRODUCT, VERSION, Life, index_entry
from server.models import State, facts
from server.protocols import _pb, v2_grpc
from server.protocols.status import status_of
from server.repository import Repository

HEALTH = "grpc.health.v1.Health"
# v1 and v1alpha are the same messages under two names
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
# A status' text is a header, and clients refuse more than 8 KiB of headers.
LONGEST_DETAILS = 7000
# Messages that name a service, or ask for a description.
LARGEST_NAME = 64 * 1024
_INFER = f"/{_pb.SERVICE}/ModelInfer"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Told(NamedTuple):
    """What comes with a call beside its messages.  `timeout` is in seconds from now, None for none."""

    timeout: float | None
    request_id: str


class Refusal(NamedTuple):
    """How a call ends that can't be answered: a code of grpc.StatusCode, a text, and seconds until a retry may help."""

    code: str
    details: str
    retry_after: int | None
    request_id: str = ""


Unary = Callable[[bytes, Told], Awaitable[bytes]]


class Streaming(NamedTuple):
    """A method with many messages both ways, each of what comes of at most so many bytes."""

    method: Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes, None]]
    largest: int


class GrpcCalls:
    """`unary` and `streaming`: the methods by path.  They raise ServingError."""

    def __init__(self, inference: Inference, life: Life, repository: Repository) -> None:
        self.repository = repository
        self.inference, self._registry, self._life = inference, inference.registry, life
        # Watch answers again when readiness changes
        self._changed = asyncio.Condition()
        self._reflection: Any = None
        self.unary: dict[str, Unary] = {_INFER: self._model_infer, f"/{HEALTH}/Check": self._check}
        for name, method in {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "RepositoryIndex": self._repository_index,
        }.items():
            self.unary[f"/{_pb.SERVICE}/{name}"] = _of_messages(_pb.METHODS[name][0], method)
        for name, (request, answer) in grpc_triton.methods(inference).items():
            self.unary[f"/{_pb.SERVICE}/{name}"] = _of_messages(request, answer)
        for name, waiting in grpc_repository.methods(repository).items():
            self.unary[f"/{_pb.SERVICE}/{name}"] = _of_waiting(_pb.METHODS[name][0], waiting)
        self.unary |= grpc_tfs.TfsCalls(inference, repository).unary
        self._streams, self._ending = Streams(inference), False
        self.streaming: dict[str, Streaming] = {
            grpc_stream.PATH: Streaming(self._streams.converse, inference.settings.max_body_bytes),
            f"/{HEALTH}/Watch": Streaming(self._watch, LARGEST_NAME),
        }
        for service in REFLECTION:
            self.streaming[f"/{service}/ServerReflectionInfo"] = Streaming(self._reflect, LARGEST_NAME)

    def readiness_changed(self) -> None:
        """Tell who watches health."""

        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._notifying = asyncio.ensure_future(notify())

    def end_streams(self) -> None:
        """Have streams of requests end once what is under way is answered, and those of health at once."""
        self._streams.end()
        self._ending = True
        self.readiness_changed()

    def _model_infer(self, sent: bytes, told: Told) -> Awaitable[bytes]:
        return self.inference.grpc(sent, _INFER, told.timeout, told.request_id)

    def _server_live(self, request: Any) -> Any:
        return _pb.message("ServerLiveResponse")(live=True)

    def _server_ready(self, request: Any) -> Any:
        return _pb.message("ServerReadyResponse")(ready=self._life.is_ready())

    def _model_ready(self, request: Any) -> Any:
        found = self._registry.find(request.name, request.version)
        return _pb.message("ModelReadyResponse")(ready=found.state is State.READY)

    def _server_metadata(self, request: Any) -> Any:
        return v2_grpc.server_metadata(PRODUCT, VERSION, EXTENSIONS)

    def _model_metadata(self, request: Any) -> Any:
        handle = self._registry.ready(request.name, request.version)
        versions = [v.version for v in self._registry.versions(request.name) if v.version and v.handle is not None]
        signature = handle.signature
        return v2_grpc.model_metadata(
            handle.name, versions, handle.runtime.platform, signature.inputs, signature.outputs, facts(handle)
        )

    def _repository_index(self, request: Any) -> Any:
        entries = [index_entry(v) for v in self._registry.all_versions() if v.state is State.READY or not request.ready]
        return v2_grpc.repository_index((e["name"], e.get("version", ""), e["state"], e["reason"]) for e in entries)

    def _health_of(self, service: str) -> Any:
        """The status of a known service name (ours, health's own, a model's), None for another."""
        if service in self._registry.names():
            ready = not self._life.draining and self._registry.find(service).state is State.READY
        elif service in ("", _pb.SERVICE, *grpc_tfs.SERVICES):
            ready = self._life.is_ready()
        else:
            return None
        return _SERVING if ready else _NOT_SERVING

    async def _check(self, sent: bytes, told: Told) -> bytes:
        service = _parsed(health_pb2.HealthCheckRequest, sent).service
        status = self._health_of(service)
        if status is None:
            raise ModelNotFound(f"unknown service {service!r}")
        return _bytes(health_pb2.HealthCheckResponse(status=status))

    async def _watch(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        service = _parsed(health_pb2.HealthCheckRequest, await anext(messages, b"")).service
        unknown, last = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, None
        while not self._ending:
            status = self._health_of(service)
            status = unknown if status is None else status
            if status != last:
                last = status
                yield _bytes(health_pb2.HealthCheckResponse(status=status))
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait(), 1.0)
                except TimeoutError:
                    continue

    async def _reflect(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        if self._reflection is None:
            # in a thread, because what is imported there takes longer than others may wait
            self._reflection = await asyncio.get_running_loop().run_in_executor(None, _reflection)
        request_class, servicer = self._reflection
        requests = (_parsed(request_class, sent) async for sent in messages)
        async for answer in servicer.ServerReflectionInfo(requests, None):
            yield _bytes(answer)


def refusal(error: ServingError, request_id: str = "") -> Refusal:
    """The end of a call that has failed so; `request_id` is what it is called by its head."""
    text = error_text(error)
    if 3 * len(text.encode(errors="replace")) > LONGEST_DETAILS:  # each byte of other scripts than ASCII travels as three
        text = f"{text[: LONGEST_DETAILS // 12]}…"
    retry_after = None if error.retry_after is None else max(1, round(error.retry_after))
    return Refusal(status_of(error).grpc, text, retry_after, error.request_id or request_id)


def _of_messages(request: Any, method: Callable[[Any], Any]) -> Unary:
    """The method, from bytes to bytes."""

    async def answer(sent: bytes, told: Told) -> bytes:
        return _bytes(method(_parsed(request, sent)))

    return answer


def _of_waiting(request: Any, method: Callable[[Any], Awaitable[Any]]) -> Unary:
    """The same for a method that takes its time."""

    async def answer(sent: bytes, told: Told) -> bytes:
        return _bytes(await method(_parsed(request, sent)))

    return answer


def _parsed(message: Any, sent: bytes) -> Any:
    try:
        return message.FromString(sent)
    except DecodeError:
        raise InvalidRequest(f"the request is not a valid {message.DESCRIPTOR.full_name}") from None


def _bytes(message: Any) -> bytes:
    sent: bytes = message.SerializeToString()
    return sent


def _reflection() -> tuple[Any, Any]:
    """The class of its requests, and what answers them: our services from our private pool, health's from the default one.

    The library for it is imported when somebody asks: few do, and it is 6 MB in every predictor.
    """
    from grpc_reflection.v1alpha import reflection, reflection_pb2

    _pb.POOL.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
    servicer = reflection.aio.ReflectionServicer((_pb.SERVICE, *grpc_tfs.SERVICES, HEALTH, *REFLECTION), pool=_pb.POOL)
    return reflection_pb2.ServerReflectionRequest, servicer
