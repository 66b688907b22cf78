"""One HTTP/2 connection, from the server's side: what comes, what a peer may not do to us, and how it ends.

A subclass says what requests are about (`head_of`, `opened`, `received`, `gone`, `late`) and answers them by what it has
from `sending`.  Flow control bounds what is held for a stream; who wants more than the first window asks for it (`grant`).
"""

import asyncio
from typing import Any, NamedTuple

from server.h2 import frames
from server.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEAD,
    HEADERS,
    INITIAL_WINDOW,
    LARGEST_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SMALLEST_FRAME,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Code,
    ConnectionFault,
    StreamFault,
    frame,
)
from server.h2.hpack import Decoder
from server.h2.requests import Request, check_trailers, read_request
from server.h2.sending import STREAM_WINDOW, Opening, Outbox, Sending, Stream

MAX_FRAME = SMALLEST_FRAME
# The connection's window only has to stay out of the way: what is held is bounded stream by stream.
CONNECTION_WINDOW = 1 << 24
# Header lists up to here are answered, longer ones end the connection (clients stop at 8 to 16 KiB by themselves).
HEADER_LIST = 16 * 1024
LARGEST_HEADER_LIST = 64 * 1024
# Blocks that are looked up instead of decoded; their number and size bound what a peer can make us keep.
KEPT_BLOCKS, KEPT_BLOCK = 64, 1024
# The peer's time to go on is counted in looks at it.
LOOKS = 4
# A peer that is told of the end has so long to say that it has heard.
DRAIN_SECONDS = 1.0
_DRAIN_PING = b"draining"


class Limits(NamedTuple):
    """`streams` at once on one connection; `seconds` that a peer has to go on with what it has begun.

    `unread_seconds` that it may leave an answer where it is, and `unsent` bytes of answers that may wait for it.
    """

    streams: int
    seconds: float
    unread_seconds: float = 30.0
    unsent: int = 1 << 28


class Connection(Sending):
    stream_class: type[Stream] = Stream

    def __init__(self, limits: Limits, outbox: Outbox) -> None:
        super().__init__(outbox)
        self._limits = limits
        self._most_unsent = limits.unsent
        self._timer: asyncio.TimerHandle | None = None
        self._timer_of_drain: asyncio.TimerHandle | None = None
        # looks for which the peer has not gone on
        self._waited = 0
        # of reading: bytes of a frame that is not complete, and how many it takes; a header block in several frames
        self._kept, self._wanted = bytearray(), len(PREFACE)
        self._greeted = self._settled = False
        self._block: bytearray | None = None
        self._block_of, self._block_ends = 0, False
        self._unread = 0
        # of headers
        self._decoder = Decoder(LARGEST_HEADER_LIST)
        self._openings: dict[bytes, Opening] = {}
        self._last = 0
        self._draining = False

    # for subclasses

    def head_of(self, request: Request, too_large: bool) -> Any:
        """What the application makes of a request; the same headers may be given only once.  StreamFault to reset it."""
        raise NotImplementedError

    def opened(self, stream: Any) -> None:
        """Headers have come; `stream.ended` where nothing follows."""
        raise NotImplementedError

    def received(self, stream: Any, data: bytes) -> None:
        """A piece of the body has come, the last one where `stream.ended`; it may be empty then."""
        raise NotImplementedError

    def late(self, stream: Any) -> None:
        """The body should be here by now."""
        raise NotImplementedError

    # a connection's life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a TCP or Unix socket's
        self._write(
            frames.settings(
                {
                    frames.HEADER_TABLE_SIZE: 0,
                    frames.MAX_CONCURRENT_STREAMS: self._limits.streams,
                    frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                    frames.MAX_HEADER_LIST_SIZE: HEADER_LIST,
                }
            )
            + frames.window_update(0, CONNECTION_WINDOW - INITIAL_WINDOW)
        )
        self._timer = self._loop.call_later(self._limits.seconds / LOOKS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._out.clear()
        for timer in (self._timer, self._timer_of_drain):
            if timer is not None:
                timer.cancel()
        self._forget_all()

    def drain(self) -> None:
        """Take what the peer sends before it hears of it, answer that, and close."""
        if not self._draining and not self._closed:
            self._draining = True
            # a first GOAWAY for all streams to come, and the true one when the peer must have seen it (RFC 9113 §6.8)
            self._write(frames.goaway(LARGEST_WINDOW, Code.NO_ERROR) + frame(PING, 0, 0, _DRAIN_PING))
            self._timer_of_drain = self._loop.call_later(DRAIN_SECONDS, self._refuse_new)

    def _refuse_new(self) -> None:
        if not self._refusing:
            self._refusing = True
            self._write(frames.goaway(self._last, Code.NO_ERROR))
            self._close_if_done()

    def fail(self, code: Code, text: str) -> None:
        """Tell the peer why, and close."""
        if not self._closed:
            self._write(frames.goaway(self._last, code, text))
            self._closed = True
            self._forget_all()
            self.flush()
            self.transport.close()

    def _look(self) -> None:
        """From time to time: has the peer left something unfinished for too long?"""
        self._timer = self._loop.call_later(self._limits.seconds / LOOKS, self._look)
        waits = self._paused or self._closed or self._kept or self._block is not None or not self._settled
        self._waited = self._waited + 1 if waits else 0
        if self._waited > LOOKS:
            self.transport.abort()
            return
        for stream in list(self._streams.values()):
            if not stream.ended:
                stream.looks += 1
                if stream.looks > LOOKS:
                    self.late(stream)
        for stream in list(self._blocked.values()):
            self._look_at_unread(stream)

    def _look_at_unread(self, stream: Stream) -> None:
        """Its answer waits for the peer's window: has the peer made room since?"""
        left = len(stream.rest or b"")
        stream.unread_looks = stream.unread_looks + 1 if left == stream.unread else 0
        stream.unread = left
        if stream.unread_looks * self._limits.seconds / LOOKS >= self._limits.unread_seconds:
            self.reset(stream, Code.CANCEL)

    def resume_writing(self) -> None:
        self._waited = 0
        super().resume_writing()

    # reading

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        if self._kept:
            self._kept += data
            if len(self._kept) < self._wanted:
                return
            data = bytes(self._kept)
            self._kept.clear()
        self._reading = True
        try:
            used = self._read(data)
        except ConnectionFault as fault:
            self.fail(fault.code, str(fault))
            return
        finally:
            self._reading = False
            self.flush()
        if used:
            self._waited = 0
        if used < len(data):
            self._kept += memoryview(data)[used:]

    def _read(self, data: bytes) -> int:
        """Take the complete frames; how many bytes that was."""
        at, end = 0, len(data)
        if not self._greeted:
            at = len(PREFACE)
            if data[:at] != PREFACE[:end]:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "this is not HTTP/2; this port speaks gRPC")
            if end < at:
                return 0
            self._greeted = True
        unpack, self._wanted = HEAD.unpack_from, HEAD.size
        while end - at >= 9:
            head, flags, number = unpack(data, at)
            length, kind, number = head >> 8, head & 0xFF, number & 0x7FFFFFFF
            if length > MAX_FRAME:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a frame of {length} bytes, the largest is {MAX_FRAME}")
            stop = at + 9 + length
            if stop > end:
                self._wanted = 9 + length
                break
            payload = data[at + 9 : stop]
            at = stop
            try:
                if self._block is not None or not self._settled:
                    self._in_order(kind, number)
                if kind == DATA:
                    self._data(number, flags, payload)
                elif kind == HEADERS and flags == END_HEADERS and number & 1:
                    # nearly every request begins so
                    self._complete(number, payload, False)
                elif kind == HEADERS:
                    self._headers(number, flags, payload)
                else:
                    self._other(kind, number, flags, payload)
            except StreamFault as fault:
                self._fault(number, fault.code)
            if self._closed:
                return end
        return at

    def _in_order(self, kind: int, number: int) -> None:
        if not self._settled and kind != SETTINGS:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._block is not None and (kind != CONTINUATION or number != self._block_of):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "another frame in the middle of a header block")

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        self._unread += len(payload)
        if self._unread >= CONNECTION_WINDOW // 2:
            self._write(frames.window_update(0, self._unread))
            self._unread = 0
        stream = self._streams.get(number)
        if stream is None:
            self._data_of_none(number, flags)
            return
        if stream.ended:
            raise StreamFault(Code.STREAM_CLOSED)
        stream.room -= len(payload)
        if stream.room < 0:
            raise StreamFault(Code.FLOW_CONTROL_ERROR)
        if flags & PADDED:
            payload = frames.unpadded(payload)
        if flags & END_STREAM:
            stream.ended = True
        elif not payload:
            self._patience.spend()
        if stream.length is not None:
            stream.length -= len(payload)
            if stream.length < 0 or (stream.ended and stream.length):
                raise StreamFault(Code.PROTOCOL_ERROR)
        self.received(stream, payload)

    def _data_of_none(self, number: int, flags: int) -> None:
        if not number or not self._was_opened(number):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"DATA on stream {number}, which is not open")
        if number not in self._ended:
            raise StreamFault(Code.STREAM_CLOSED)
        self._patience.spend()
        if flags & END_STREAM:
            del self._ended[number]

    def _headers(self, number: int, flags: int, payload: bytes) -> None:
        if not number & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"HEADERS on stream {number}")
        if flags & PADDED:
            payload = frames.unpadded(payload)
        if flags & WITH_PRIORITY:
            dependency, payload = payload[:5], payload[5:]
            _check_dependency(number, dependency)
        if flags & END_HEADERS:
            self._complete(number, payload, bool(flags & END_STREAM))
        else:
            self._block, self._block_of, self._block_ends = bytearray(payload), number, bool(flags & END_STREAM)

    def _continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._patience.spend()
        self._block += payload
        if len(self._block) > LARGEST_HEADER_LIST:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"a header block of more than {LARGEST_HEADER_LIST} bytes")
        if flags & END_HEADERS:
            block, self._block = bytes(self._block), None
            self._complete(self._block_of, block, self._block_ends)

    def _complete(self, number: int, block: bytes, ended: bool) -> None:
        """A whole header block: a request's, or what follows its body."""
        stream = self._streams.get(number)
        if stream is not None:
            self._trailers(stream, block, ended)
        elif number <= self._last:
            self._decoder.decode(block)
            self._headers_of_none(number, ended)
        else:
            self._last = number
            if len(self._streams) >= self._limits.streams:
                self._decoder.decode(block)
                raise StreamFault(Code.REFUSED_STREAM)
            opening = self._openings.get(block) or self._opening(block)
            if self._refusing:
                if not ended:
                    self._remember(number)
                return
            stream = self._streams[number] = self.stream_class(number, opening, self._stream_window, ended)
            if ended and stream.length:
                raise StreamFault(Code.PROTOCOL_ERROR)
            self.opened(stream)

    def _opening(self, block: bytes) -> Opening:
        decoder = self._decoder
        was_stateless = not decoder.table_size
        fields, size = decoder.decode(block)
        request = read_request(fields)
        opening = Opening(self.head_of(request, size > HEADER_LIST), request.length)
        if was_stateless and not decoder.table_size and len(block) <= KEPT_BLOCK:
            if len(self._openings) >= KEPT_BLOCKS:
                self._openings.clear()
            self._openings[block] = opening
        return opening

    def _trailers(self, stream: Stream, block: bytes, ended: bool) -> None:
        fields = self._decoder.decode(block).fields
        if stream.ended:
            raise StreamFault(Code.STREAM_CLOSED)
        check_trailers(fields)
        if not ended or stream.length:
            raise StreamFault(Code.PROTOCOL_ERROR)
        stream.ended = True
        self.received(stream, b"")

    def _headers_of_none(self, number: int, ended: bool) -> None:
        if number in self._ended:
            self._patience.spend()
            if ended:
                del self._ended[number]
        elif number == self._last:
            raise ConnectionFault(Code.STREAM_CLOSED, f"HEADERS on stream {number}, which is closed")
        else:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"HEADERS on stream {number} after stream {self._last}")

    def _other(self, kind: int, number: int, flags: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._window_update(number, frames.number(payload, "WINDOW_UPDATE") & LARGEST_WINDOW)
        elif kind == CONTINUATION:
            self._continuation(flags, payload)
        elif kind == RST_STREAM:
            frames.number(payload, "RST_STREAM")
            self._rst_stream(number)
        elif kind == PRIORITY:
            self._patience.spend()
            if not number:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "PRIORITY on stream 0")
            _check_dependency(number, payload)
        elif kind in (SETTINGS, PING, GOAWAY):
            if number:
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"a frame of kind {kind} on stream {number}")
            {SETTINGS: self._settings, PING: self._ping, GOAWAY: self._goaway}[kind](flags, payload)
        elif kind == PUSH_PROMISE:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
        else:  # an extension that we do not know
            self._patience.spend()

    def _window_update(self, number: int, more: int) -> None:
        self._patience.spend()
        if not number:
            if not more:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self._window += more
            if self._window > LARGEST_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "the connection's window is too large")
        else:
            if not self._was_opened(number):
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {number}, which was never open")
            if not more:
                raise StreamFault(Code.PROTOCOL_ERROR)
            stream = self._streams.get(number)
            if stream is None:
                return
            stream.window += more
            if stream.window > LARGEST_WINDOW:
                raise StreamFault(Code.FLOW_CONTROL_ERROR)
        if self._blocked:
            self._pump()

    def _rst_stream(self, number: int) -> None:
        self._patience.spend()
        if not number or not self._was_opened(number):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"RST_STREAM on stream {number}, which was never open")
        self._ended.pop(number, None)
        stream = self._streams.get(number)
        if stream is not None:
            stream.ended = True
            self._forget(stream)

    def _settings(self, flags: int, payload: bytes) -> None:
        self._patience.spend()
        if flags & ACK:
            if payload:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS with ACK and payload")
            return
        self._settled = True
        for name, value in frames.read_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                self._change_windows(value)
            elif name == frames.MAX_FRAME_SIZE:
                self._largest_frame = value
        self._write(frame(SETTINGS, ACK, 0))
        self._pump()

    def _change_windows(self, size: int) -> None:
        """A new first window counts for open streams too, and may take back what they had (RFC 9113 §6.9.2)."""
        more, self._stream_window = size - self._stream_window, size
        for stream in self._streams.values():
            stream.window += more
            if stream.window > LARGEST_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"the window of stream {stream.id} is too large")

    def _ping(self, flags: int, payload: bytes) -> None:
        self._patience.spend()
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        if not flags & ACK:
            self._write(frame(PING, ACK, 0, payload))
        elif self._draining and payload == _DRAIN_PING:
            self._refuse_new()

    def _goaway(self, flags: int, payload: bytes) -> None:
        if len(payload) < 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        # it is about streams that we would open; the client closes when it has its answers
        self._patience.spend()

    def _was_opened(self, number: int) -> bool:
        return bool(number & 1) and number <= self._last

    def _fault(self, number: int, code: Code) -> None:
        stream = self._streams.get(number)
        if stream is None:
            self._write(frames.rst_stream(number, code))
            if number == self._last:
                self._remember(number)
        else:
            self.reset(stream, code)
        # making us reset what it has opened costs a peer what doing it itself does
        try:
            self._patience.spend()
        except ConnectionFault as fault:
            self.fail(fault.code, str(fault))


def _check_dependency(number: int, payload: bytes) -> None:
    """StreamFault where PRIORITY's five bytes are not five, or make a stream depend on itself; no more is made of them."""
    if len(payload) != 5:
        raise StreamFault(Code.FRAME_SIZE_ERROR)
    if int.from_bytes(payload[:4], "big") & LARGEST_WINDOW == number:
        raise StreamFault(Code.PROTOCOL_ERROR)
