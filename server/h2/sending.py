"""The half of an HTTP/2 connection that writes: answers by streams, as fast as the peer's windows and its reading allow.

A peer that does not read is not read from either, so that nothing piles up.
"""

import asyncio
from typing import Any, NamedTuple

from server.h2 import frames
from server.h2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    INITIAL_WINDOW,
    SMALLEST_FRAME,
    Code,
    frame,
)
from server.h2.patience import Patience

# What the peer may send on a stream before anyone has looked at it.
STREAM_WINDOW = 1 << 18
EARNED_BY_AN_ANSWER = 2
# A frame of an answer larger than this has earned the window update that makes room for the next.
EARNING_FRAME = 4096
# Streams that we have ended and whose peer may not know yet.
KEPT_ENDED = 1024


class Opening(NamedTuple):
    """What a header block comes to: the subclass' reading of it, and the length of the body that it promises."""

    head: Any
    length: int | None


class Stream:
    """One request and its answer.  `head` is what `head_of` made of the headers; the rest is the connection's."""

    # What most streams never change is theirs by class: a stream is made for every request.
    # how often the peer was looked at before it had said all
    looks = 0
    # what it may still send, and how much of that was granted beyond the first window
    room, granted = STREAM_WINDOW, 0
    # what waits for the peer's window, and what follows it (None while more is to come)
    rest: bytearray | None = None
    trailers: bytes | None = None
    # how much of it waited when it was last looked at, and how often that has not changed since
    unread, unread_looks = 0, 0
    # is waiting for all to be sent
    sent: asyncio.Future[None] | None = None

    def __init__(self, number: int, opening: Opening, window: int, ended: bool) -> None:
        self.id = number
        self.head, self.length = opening
        # what we may still send
        self.window = window
        # whether the peer has said all
        self.ended = ended


class Outbox:
    """Lets connections write once for all they say in one turn of the event loop: most of a write is the kernel's part."""

    def __init__(self) -> None:
        self._connections: list[Sending] = []
        self._loop = asyncio.get_running_loop()

    def add(self, connection: "Sending") -> None:
        if not self._connections:
            self._loop.call_soon(self._send)
        self._connections.append(connection)

    def _send(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.flush()


class Sending(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, outbox: Outbox) -> None:
        self._loop, self._outbox = asyncio.get_running_loop(), outbox
        self._streams: dict[int, Stream] = {}
        self._ended: dict[int, None] = {}
        self._patience = Patience(self._loop.time)
        # what goes out with this turn, and whether it does so by itself because we are reading
        self._out: list[bytes] = []
        self._reading = False
        # the peer's settings, and the streams whose answers wait for its windows
        self._window = self._stream_window = INITIAL_WINDOW
        self._largest_frame = SMALLEST_FRAME
        self._blocked: dict[int, Stream] = {}
        # bytes of answers that wait, of all streams, and how many may before another is refused
        self._unsent, self._most_unsent = 0, 1 << 28
        self._paused = False
        # no new streams; nothing at all any more
        self._refusing = self._closed = False

    def gone(self, stream: Any) -> None:
        """Nobody waits for the answer any more."""
        raise NotImplementedError

    def unread(self, stream: Any) -> None:
        """There is an answer, but no room for another that the peer does not read."""
        raise NotImplementedError

    def given_back(self, granted: int) -> None:
        """A stream has ended to which so much was granted."""

    def grant(self, stream: Stream, more: int) -> None:
        """Let the peer send so much more than the first window of a stream."""
        stream.room += more
        stream.granted += more
        self._write(frames.window_update(stream.id, more))

    def answer(self, stream: Stream, head: bytes, body: bytes, trailers: bytes) -> None:
        """Answer as a whole: header blocks before and behind a body."""
        size = len(body)
        if size <= stream.window and size <= self._window and size <= self._largest_frame and not self._paused:
            number = stream.id
            self._window -= size
            if not self._out and len(self._streams) > 1:
                self._flush_later()
            self._out += (
                HEAD.pack(len(head) << 8 | HEADERS, END_HEADERS, number),
                head,
                HEAD.pack(size << 8 | DATA, 0, number),
                body,
                HEAD.pack(len(trailers) << 8 | HEADERS, END_HEADERS | END_STREAM, number),
                trailers,
            )
            self._finish(stream)
        elif self._unsent + size > self._most_unsent and self._unsent:
            self.unread(stream)
        else:
            self.begin(stream, head)
            self.send(stream, body)
            self.end(stream, trailers)

    def answer_without_body(self, stream: Stream, block: bytes) -> None:
        self._write(frames.header_frames(stream.id, block, True, self._largest_frame))
        self._finish(stream)

    def begin(self, stream: Stream, head: bytes) -> None:
        self._write(frames.header_frames(stream.id, head, False, self._largest_frame))

    def send(self, stream: Stream, data: bytes) -> None:
        """Send as fast as the peer lets us; `all_sent` waits for that."""
        self._unsent += len(data)
        if stream.rest:
            stream.rest += data
        else:
            stream.rest = bytearray(data)
            self._blocked[stream.id] = stream
        self._pump()

    def end(self, stream: Stream, trailers: bytes) -> None:
        """The end behind all that was sent; no trailers are empty ones."""
        stream.trailers = trailers
        self._blocked[stream.id] = stream
        self._pump()

    async def all_sent(self, stream: Stream) -> None:
        if stream.rest:
            stream.sent = self._loop.create_future()
            await stream.sent

    def reset(self, stream: Stream, code: Code) -> None:
        self._write(frames.rst_stream(stream.id, code))
        self._forget(stream)

    def pause_writing(self) -> None:
        self._paused = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self.transport.resume_reading()
        self._pump()

    def _write(self, data: bytes) -> None:
        if not self._closed:
            if not self._out:
                self._flush_later()
            self._out.append(data)

    def _flush_later(self) -> None:
        if not self._reading:
            self._outbox.add(self)

    def flush(self) -> None:
        """Give the transport what was written in this turn."""
        if self._out:
            self.transport.write(b"".join(self._out))
            self._out.clear()

    def _pump(self) -> None:
        """Send what the windows allow, a frame a stream in turn."""
        progress = True
        while progress:
            # not `any` of a generator: each gets its turn
            progress = max([self._send_some(stream) for stream in list(self._blocked.values())], default=False)

    def _send_some(self, stream: Stream) -> bool:
        """One frame of what waits; whether anything could be done."""
        if self._paused:
            return False
        rest = stream.rest
        if rest:
            size = min(len(rest), stream.window, self._window, self._largest_frame)
            if size <= 0:
                return False
            stream.window -= size
            self._window -= size
            self._unsent -= size
            self._write(frame(DATA, 0, stream.id, bytes(memoryview(rest)[:size])))
            # at once, so that the transport says when it is enough
            self.flush()
            del rest[:size]
            if size > EARNING_FRAME:
                self._patience.earn(1)
        if not rest:
            stream.rest = None
            del self._blocked[stream.id]
            if stream.sent is not None and not stream.sent.done():
                stream.sent.set_result(None)
            if stream.trailers is not None:
                if stream.trailers:
                    self._write(frames.header_frames(stream.id, stream.trailers, True, self._largest_frame))
                else:
                    self._write(frame(DATA, END_STREAM, stream.id))
                self._finish(stream)
        return True

    # streams' ends

    def _finish(self, stream: Stream) -> None:
        """All is answered."""
        self._patience.earn(EARNED_BY_AN_ANSWER)
        del self._streams[stream.id]
        if not stream.ended:
            # the rest of the request is not wanted (RFC 9113 §8.1)
            self._write(frames.rst_stream(stream.id, Code.NO_ERROR))
            self._remember(stream.id)
        if stream.granted:
            self.given_back(stream.granted)
        if not self._streams and not self._reading:
            # nobody here is left to wait for, so what is to be written need not wait for the end of the turn either
            self.flush()
        if self._refusing:
            self._close_if_done()

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.id]
        self._blocked.pop(stream.id, None)
        if stream.rest:
            self._unsent -= len(stream.rest)
        if not stream.ended:
            self._remember(stream.id)
        if stream.sent is not None:
            stream.sent.cancel()
        if stream.granted:
            self.given_back(stream.granted)
        self.gone(stream)
        if self._refusing:
            self._close_if_done()

    def _remember(self, number: int) -> None:
        if len(self._ended) >= KEPT_ENDED:
            del self._ended[next(iter(self._ended))]
        self._ended[number] = None

    def _forget_all(self) -> None:
        for stream in list(self._streams.values()):
            self._forget(stream)

    def _close_if_done(self) -> None:
        if not self._streams and not self._closed:
            self._closed = True
            self.flush()
            self.transport.close()
