"""Not to wait for ever: a socket's own time-out starts anew with each byte, and a server may send bytes that lead nowhere."""

import http.client
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

_NEVER = float("inf")


def _end(stream: socket.socket) -> None:
    with suppress(OSError):
        # not the method of an SSLSocket, which would take its state away from under the thread that reads
        socket.socket.shutdown(stream, socket.SHUT_RDWR)


@contextmanager
def cut_off(stream: socket.socket, seconds: float) -> Generator[None]:
    """End the connection unless the block is done in time.  TimeoutError."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        _end(stream)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if not late.is_set():
            raise
        raise TimeoutError from error
    finally:
        timer.cancel()
    # http.client takes the end of the connection for the end of the head
    if late.is_set():
        raise TimeoutError


class Watch:
    """`with watch:` around each of many reads is `cut_off` around each, with one thread for all of them.

    What lies between chunks or behind the last, http.client reads to its end within one read, however much of it there is.
    """

    def __init__(self, stream: socket.socket, seconds: float) -> None:
        self.seconds = seconds
        self._stream, self._due, self._late = stream, _NEVER, False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        # a read that begins while this waits is due when this has waited, or later
        while not self._closed.wait(max(0.0, min(self.seconds, self._due - time.monotonic()))):
            if time.monotonic() >= self._due:
                self._late = True
                _end(self._stream)
                return

    def __enter__(self) -> None:
        self._due = time.monotonic() + self.seconds

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._due = _NEVER
        if self._late and (error is None or isinstance(error, OSError | http.client.HTTPException)):
            raise TimeoutError from error

    def close(self) -> None:
        self._closed.set()
