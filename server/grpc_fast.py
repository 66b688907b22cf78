"""gRPC on our own HTTP/2: `--grpc_engine=fast`.  The calls are `grpc_calls`'; this carries their bytes.

A unary call is a header block that was seen before, one message, one answer that goes out in one piece.  Streams of messages
(health's Watch, reflection) are carried too, at leisure.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import quote

from server.batcher import aside
from server.errors import DeadlineExceeded, InvalidRequest, NotSupported, RequestTooLarge, RuntimeFailed, ServingError
from server.grpc_calls import GrpcCalls, Refusal, Streaming, Told, Unary, refusal
from server.h2 import hpack
from server.h2.connection import Connection, Limits
from server.h2.frames import Code
from server.h2.requests import Request
from server.h2.sending import EARNED_BY_AN_ANSWER, STREAM_WINDOW, Outbox, Stream
from server.identity import identified
from server.log import log
from server.protocols import encoding
from server.sockets import listen
from server.work import Work

# At once on one connection; more wait on the client's side.
STREAMS = 1024
# Bytes of unfinished messages on one connection, in messages of the largest size.
HELD_MESSAGES = 4
# A client is told of room for more where that is so much of a window.
WORTH_TELLING = STREAM_WINDOW // 4
# An idle connection is kept, but not that of a peer that has gone without a word: asked after 60 s, given up after 60 more.
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
# Beyond this many seconds a deadline is none.
_LONGEST_TIMEOUT = 1e8
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PREFIX = struct.Struct(">BI")
# What gRPC's HTTP/2 mapping leaves as it is in a status' text.
_PLAIN = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")
CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_CONTENT_TYPE = (b"content-type", b"application/grpc")
_BEGIN = hpack.encode([(b":status", b"200"), _CONTENT_TYPE])
_BEGIN_WITH = {
    coding: hpack.encode([(b":status", b"200"), _CONTENT_TYPE, (b"grpc-encoding", coding.encode())])
    for coding in ("gzip", "deflate")
}
_ACCEPTED = (b"grpc-accept-encoding", b"identity, deflate, gzip")
_OK = hpack.encode([(b"grpc-status", b"0")])
# what says who a call is
NAMING = (b"x-request-id", b"traceparent", b"tracestate")


class Head(NamedTuple):
    """What a call's header block says.  `refused` where that is enough to answer; `status` where it is not gRPC at all."""

    unary: Unary | None
    streaming: Streaming | None
    timeout: float | None
    encoding: str
    answer_encoding: str
    request_id: str
    refused: ServingError | None
    status: int = 200
    bodiless: bool = False
    # the trailers of a call that went well
    end: bytes = _OK


class Message(NamedTuple):
    """One of many, without its prefix."""

    data: bytes
    compressed: bool


class CallStream(Stream):
    """A call: what has come of its message, or of its messages, and who works on it."""

    body: bytearray | None = None
    messages: "asyncio.Queue[Message | None] | None" = None
    # bytes of messages that nobody has taken yet, and whether a message has been sent, where there are many
    held, begun = 0, False
    task: "Work | asyncio.Task[None] | None" = None
    # when the headers came, where there is a deadline
    since = 0.0


class CallConnection(Connection):
    """One client's calls."""

    stream_class = CallStream

    def __init__(self, edge: "FastGrpcEdge") -> None:
        settings = edge.calls.inference.settings
        held = HELD_MESSAGES * settings.max_body_bytes
        super().__init__(Limits(STREAMS, settings.receive_timeout, settings.send_timeout, held), edge.outbox)
        self._edge, self._calls = edge, edge.calls
        self._largest, self._seconds = settings.max_body_bytes, settings.receive_timeout
        self._granted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        connected = transport.get_extra_info("socket")
        for level, name, value in _KEEP_ALIVE:
            connected.setsockopt(level, name, value)
        edge = self._edge
        edge.connections.add(self)
        if len(edge.connections) > edge.most:
            self.fail(Code.ENHANCE_YOUR_CALM, f"there are {edge.most} connections, which is the limit (--limit_connections)")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._edge.left(self)

    # what comes

    def head_of(self, request: Request, too_large: bool) -> Head:
        return read_head(request, too_large, self._calls)

    def opened(self, stream: CallStream) -> None:
        head: Head = stream.head
        if head.timeout is not None:
            stream.since = self._loop.time()
        if head.status != 200:
            self._answer_http(stream, head)
        elif head.refused is not None:
            self._refuse(stream, refusal(head.refused, head.request_id))
        elif head.streaming is not None:
            stream.messages = asyncio.Queue()
            stream.task = self._loop.create_task(self._converse(stream, head.streaming))
            if stream.ended:
                stream.messages.put_nowait(None)
        elif stream.ended:
            self._refuse(stream, refusal(InvalidRequest("the call has ended without a message")))

    def received(self, stream: CallStream, data: bytes) -> None:
        if stream.messages is not None:
            self._received_of_many(stream, stream.head, stream.messages, data)
        elif stream.head.status != 200:
            self._answer_http(stream, stream.head)
        elif stream.body is None and stream.ended:
            self._complete_message(stream, data)
        else:
            body = stream.body = stream.body or bytearray()
            body += data
            if stream.ended:
                self._complete_message(stream, bytes(body))
            elif len(body) >= _PREFIX.size:
                self._make_room(stream, body, self._largest)

    def _make_room(self, stream: CallStream, body: bytearray, largest: int) -> bool:
        """Let the client send the whole of a message whose beginning is here; False where it is told that it is too large."""
        length = _PREFIX.unpack_from(body)[1]
        if length > largest:
            self._end_call(stream, _too_large(length, largest))
            return False
        more = length + _PREFIX.size - len(body) - stream.room
        if more <= 0:
            return True
        if self._granted + more > HELD_MESSAGES * self._largest:
            text = f"this connection has {self._granted} bytes of messages under way; send fewer at once"
            self._end_call(stream, RequestTooLarge(text))
            return False
        self.grant(stream, more)
        return True

    def _complete_message(self, stream: CallStream, body: bytes) -> None:
        """All is here: have it answered."""
        head: Head = stream.head
        try:
            if len(body) < _PREFIX.size:
                raise InvalidRequest("the call has ended without a message")
            compressed, length = _PREFIX.unpack_from(body)
            if length != len(body) - _PREFIX.size:
                raise InvalidRequest(f"the message should be {length} bytes, and {len(body) - _PREFIX.size} came")
            if length > self._largest:
                raise _too_large(length, self._largest)
            _check_compressed(head, compressed)
        except ServingError as error:
            self._refuse(stream, refusal(error))
            return
        stream.body = None
        stream.task = Work(self._call(stream, head, body[_PREFIX.size :], bool(compressed)))

    def grant(self, stream: Stream, more: int) -> None:
        super().grant(stream, more)
        self._granted += more

    def gone(self, stream: CallStream) -> None:
        if stream.task is not None:
            stream.task.cancel()

    def given_back(self, granted: int) -> None:
        self._granted -= granted

    def unread(self, stream: CallStream) -> None:
        text = f"this connection has {self._unsent} bytes of answers that are not read; read them, or ask for fewer at once"
        self._refuse(stream, refusal(RequestTooLarge(text)))

    def late(self, stream: CallStream) -> None:
        if stream.task is None if stream.messages is None else stream.body:
            self._end_call(stream, DeadlineExceeded(f"the request's message did not arrive within {self._seconds:g} s"))

    # what goes

    async def _call(self, stream: CallStream, head: Head, message: bytes, compressed: bool) -> None:
        """One unary call, from its message to its end."""
        timeout = head.timeout
        try:
            if timeout is not None:
                timeout -= self._loop.time() - stream.since
            if compressed:
                message = await self._inflated(head, message)
            assert head.unary is not None
            answer = await head.unary(message, Told(timeout, head.request_id))
            if compressed and head.answer_encoding and len(answer) >= encoding.SMALLEST:
                coding, squeezed = head.answer_encoding, 1
                answer = await aside(self._edge.executor, len(answer), encoding.compress, answer, coding)
                begin = _BEGIN_WITH[coding]
            else:
                begin, squeezed = _BEGIN, 0
        except ServingError as error:
            self._refuse(stream, refusal(error, head.request_id))
        except Exception as error:
            self._failed(stream, error)
        else:
            if stream.id in self._streams:
                self.answer(stream, begin, _PREFIX.pack(squeezed, len(answer)) + answer, head.end)

    async def _inflated(self, head: Head, message: bytes) -> bytes:
        executor, most = self._edge.executor, len(message) * encoding.MOST_EXPANSION
        try:
            plain: bytes = await aside(executor, most, encoding.decompress, message, head.encoding, self._largest)
        except RequestTooLarge:
            raise _too_large(None, self._largest) from None
        return plain

    def _refuse(self, stream: CallStream, end: Refusal) -> None:
        if stream.id in self._streams:
            self.answer_without_body(stream, hpack.encode([(b":status", b"200"), _CONTENT_TYPE, *_trailers(end)]))

    def _failed(self, stream: CallStream, error: Exception) -> None:
        """A bug of ours: the caller still gets an end, and we the traceback."""
        head: Head = stream.head
        log.error("internal error", exc_info=error, path="gRPC", request_id=head.request_id)
        self._refuse(stream, refusal(RuntimeFailed("internal error"), head.request_id))

    def _answer_http(self, stream: CallStream, head: Head) -> None:
        """To a client that does not speak gRPC, in words, once it has had its say."""
        if not stream.ended and stream.room > STREAM_WINDOW // 2:
            return
        text = b"" if head.bodiless else b"this port speaks gRPC: POST with content-type application/grpc\n"
        fields = [(b":status", b"%d" % head.status), (b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
        if head.bodiless:
            self.answer_without_body(stream, hpack.encode(fields))
        else:
            self.begin(stream, hpack.encode(fields))
            self.send(stream, text)
            self.end(stream, b"")

    # calls of many messages

    def _received_of_many(self, stream: CallStream, head: Head, messages: "asyncio.Queue[Message | None]", data: bytes) -> None:
        assert head.streaming is not None
        body = stream.body = stream.body or bytearray()
        if not body:
            # each message has its own time to come
            stream.looks = 0
        body += data
        while len(body) >= _PREFIX.size:
            compressed, length = _PREFIX.unpack_from(body)
            try:
                _check_compressed(head, compressed)
            except ServingError as error:
                self._end_call(stream, error)
                return
            stop = _PREFIX.size + length
            if len(body) < stop or length > head.streaming.largest:
                if not self._make_room(stream, body, head.streaming.largest):
                    return
                break
            messages.put_nowait(Message(bytes(memoryview(body)[_PREFIX.size : stop]), bool(compressed)))
            stream.held += stop
            stream.looks = 0
            del body[:stop]
        if not stream.ended:
            return
        if body:
            self._end_call(stream, InvalidRequest(f"the stream has ended {len(body)} bytes into a message"))
        else:
            messages.put_nowait(None)

    async def _messages(self, stream: CallStream) -> AsyncIterator[bytes]:
        assert stream.messages is not None
        while (message := await stream.messages.get()) is not None:
            data = message.data
            yield await self._inflated(stream.head, data) if message.compressed else data
            self._taken(stream, len(data) + _PREFIX.size)

    def _taken(self, stream: CallStream, size: int) -> None:
        """A message is somebody else's now: there is room for as much again."""
        stream.held -= size
        if stream.ended:
            return
        back = min(size, stream.granted)
        stream.granted -= back
        self.given_back(back)
        more = STREAM_WINDOW - stream.held - len(stream.body or b"") - stream.room
        if more >= WORTH_TELLING:
            self.grant(stream, more)

    async def _converse(self, stream: CallStream, streaming: Streaming) -> None:
        try:
            async with (
                asyncio.timeout(stream.head.timeout),
                contextlib.aclosing(streaming.method(self._messages(stream))) as answers,
            ):
                async for answer in answers:
                    if not stream.begun:
                        stream.begun = True
                        self.begin(stream, _BEGIN)
                    self.send(stream, _PREFIX.pack(0, len(answer)) + answer)
                    self._patience.earn(EARNED_BY_AN_ANSWER)
                    await self.all_sent(stream)
        except TimeoutError:
            self._end_conversation(stream, DeadlineExceeded("the deadline has passed"))
        except ServingError as error:
            self._end_conversation(stream, error)
        except Exception as error:
            log.error("internal error", exc_info=error, path="gRPC")
            self._end_conversation(stream, RuntimeFailed("internal error"))
        else:
            if not stream.begun:
                self.begin(stream, _BEGIN)
            self.end(stream, stream.head.end)

    def _end_conversation(self, stream: CallStream, error: ServingError) -> None:
        if stream.begun and stream.id in self._streams:
            self.end(stream, hpack.encode(_trailers(refusal(error, stream.head.request_id))))
        else:
            self._refuse(stream, refusal(error, stream.head.request_id))

    def _end_call(self, stream: CallStream, error: ServingError) -> None:
        """End a call for what its client has sent, whoever works on it."""
        if stream.task is not None:
            stream.task.cancel()
        self._end_conversation(stream, error)


class FastGrpcEdge:
    """The listening side: one for a process."""

    def __init__(self, calls: GrpcCalls) -> None:
        self.calls = calls
        self.executor, self.outbox = calls.inference.executor, Outbox()
        self.connections: set[CallConnection] = set()
        self.most = calls.inference.settings.limit_connections
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that it got.  ModelLoadError where the port is taken."""
        listener = listen("gRPC", host, port, self.calls.inference.settings.reuse_port)
        self._server = await asyncio.get_running_loop().create_server(lambda: CallConnection(self), sock=listener)
        return int(listener.getsockname()[1])

    async def stop(self, grace: float) -> None:
        """GOAWAY to every client; what runs may finish within `grace` seconds."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self.connections):
            connection.drain()
        self._told_if_empty()
        try:
            async with asyncio.timeout(grace):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.fail(Code.NO_ERROR, "the server has ended")

    def left(self, connection: CallConnection) -> None:
        self.connections.discard(connection)
        self._told_if_empty()

    def _told_if_empty(self) -> None:
        if not self.connections:
            self._empty.set()
        else:
            self._empty.clear()


def read_head(request: Request, too_large: bool, calls: GrpcCalls) -> Head:
    """What a request asks of the calls there are.  Whatever it says, it is answered."""
    headers = request.headers
    status = _http_status(request)
    timeout: float | None = None
    refused: ServingError | None = None
    coding = headers.get(b"grpc-encoding", b"identity").decode("latin-1")
    path = request.path.decode("latin-1")
    unary, streaming = calls.unary.get(path), calls.streaming.get(path)
    try:
        if too_large:
            raise RequestTooLarge("the call's metadata is too large")
        if unary is None and streaming is None:
            raise NotSupported(f"unknown method {path[:200]}")
        if coding not in ("identity", "gzip", "deflate"):
            raise NotSupported(f"grpc-encoding {coding[:40]!r} is not supported; send one of: identity, deflate, gzip")
        timeout = _timeout(headers.get(b"grpc-timeout"))
    except ServingError as error:
        # it is kept with the header block, and its frames would be with it
        refused = error.with_traceback(None)
    request_id = identified(*[headers.get(name, b"").decode("latin-1") for name in NAMING])
    wanted = [one.strip() for one in headers.get(b"grpc-accept-encoding", b"").decode("latin-1").split(",")]
    return Head(
        unary=unary,
        streaming=streaming,
        timeout=timeout,
        encoding="" if coding == "identity" else coding,
        answer_encoding=coding if coding in wanted and coding in _BEGIN_WITH else "",
        request_id=request_id,
        refused=refused,
        status=status,
        bodiless=request.method == b"HEAD",
        end=hpack.encode([(b"grpc-status", b"0"), (b"x-request-id", request_id.encode())]) if request_id else _OK,
    )


def _check_compressed(head: Head, flag: int) -> None:
    if flag > 1 or (flag and not head.encoding):
        raise InvalidRequest("the message is marked as compressed, and no grpc-encoding says how")


def _http_status(request: Request) -> int:
    """200 where it is a gRPC call, else the HTTP status of what is wrong with it."""
    if request.method != b"POST":
        return 405
    kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip()
    return 200 if kind in (b"application/grpc", b"application/grpc+proto") else 415


def _timeout(text: bytes | None) -> float | None:
    """Seconds of a grpc-timeout such as "20m"; InvalidRequest where it is none."""
    if text is None:
        return None
    unit = _UNITS.get(text[-1:].decode("latin-1"))
    if unit is None or not text[:-1].isdigit() or len(text) > 9:
        raise InvalidRequest(f"grpc-timeout is {text[:20].decode('latin-1')!r}, expected up to eight digits and a unit")
    return min(int(text[:-1]) * unit, _LONGEST_TIMEOUT)


def _trailers(end: Refusal) -> list[hpack.Field]:
    fields = [(b"grpc-status", b"%d" % CODES.index(end.code)), (b"grpc-message", quote(end.details, _PLAIN).encode())]
    if end.retry_after is not None:
        fields.append((b"retry-after", b"%d" % end.retry_after))
    if end.request_id:
        fields.append((b"x-request-id", end.request_id.encode()))
    if end.code == "UNIMPLEMENTED":
        fields.append(_ACCEPTED)
    return fields


def _too_large(length: int | None, limit: int) -> RequestTooLarge:
    found = "" if length is None else f"{length} "
    return RequestTooLarge(f"received message larger than max ({found}vs. {limit}); the limit is --max_body_bytes")
