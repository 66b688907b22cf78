"""What the process says of itself, on stderr: events with fields, one JSON object a line, or text for a person.

The standard library's logging under a thin coat: `log.info("model ready", model=name)`. What other libraries log comes
out in the same form. (Structured logging packages do the same, but load a terminal toolkit into every predictor: 8 MB.)
"""

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from functools import lru_cache
from typing import Any

import orjson


class EventLog:
    """An event is a constant text; what varies are its fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, exc_info: BaseException | None = None, **fields: Any) -> None:
        self._logger.error(event, exc_info=exc_info, extra={"fields": fields})

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._logger.exception(event, extra={"fields": fields})


log = EventLog("serveplane")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] | None = getattr(record, "fields", None)
    return {"logger": record.name} if fields is None else fields


def _traceback(record: logging.LogRecord) -> str:
    return "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info and record.exc_info[0] else ""


def timestamp(at: float) -> str:
    """Seconds of the epoch as UTC, to the millisecond: 2026-11-24T18:00:00.123Z."""
    return _timestamp(int(at * 1e3))


@lru_cache(maxsize=8)
def _timestamp(milliseconds: int) -> str:
    """Many lines are written in the same one."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:03}Z"


class JsonLines(logging.Formatter):
    """One object a line: timestamp (UTC), level, event, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": timestamp(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        if text := _traceback(record):
            line["exception"] = text
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half a surrogate pair, in an exception's text or a file's name
            return json.dumps(line, default=str)


class Text(logging.Formatter):
    """A line for a person; nothing in it moves the cursor or fakes another line."""

    def __init__(self, colours: bool) -> None:
        super().__init__()
        self._paint = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m"} if colours else {}

    def format(self, record: logging.LogRecord) -> str:
        said = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = defused(f"{clock}  {record.levelname.lower():7}  {record.getMessage()}  {said}").rstrip()
        if text := _traceback(record):
            # behind a bar, so that no line of an exception's text can pass for one of ours
            line += "".join(f"\n  | {defused(one)}" for one in text.splitlines())
        colour = self._paint.get(record.levelname)
        return f"{colour}{line}\x1b[0m" if colour else line


def defused(text: str) -> str:
    """The text with everything unprintable as a question mark."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class Sink:
    """A file descriptor that a thread of its own writes, so that nobody waits for a disk, a pipe or a terminal.

    Nobody fails with it either: what can't be written is dropped, and so is what comes while more than `room` bytes wait
    for a reader that has stopped reading; a line says how much once there is a reader again.
    """

    def __init__(self, fd: int, room: int = 8 << 20) -> None:
        self._fd, self._room = fd, room
        self._waiting: deque[bytes] = deque()
        self._bytes = self._dropped = 0
        self._changed = threading.Condition()
        self._idle = True
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, data: bytes) -> None:
        """Take whole lines, in order."""
        with self._changed:
            if self._bytes + len(data) > self._room:
                self._dropped += len(data)
                return
            self._waiting.append(data)
            self._bytes += len(data)
            self._idle = False
            self._changed.notify_all()

    def flush(self, seconds: float = 1.0) -> None:
        """Wait until all is written, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle = not (self._waiting or self._dropped)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._dropped)
                data, dropped = b"".join(self._waiting), self._dropped
                self._waiting.clear()
                self._bytes, self._dropped = len(data), 0
            if dropped:
                data += b'{"event":"log lines were dropped, nobody read them","bytes":%d}\n' % dropped
            write_all(self._fd, data)
            with self._changed:
                self._bytes = sum(map(len, self._waiting))


def write_all(fd: int, data: bytes) -> None:
    """Write what can be written: a full disk or a reader that has gone costs the log, and nothing else."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError:
        pass


def fail(text: str) -> int:
    """Say in one line why the process ends, and give its exit code."""
    write_all(2, f"serve: {text}\n".encode(errors="backslashreplace"))
    return 1


class _Lines(logging.Handler):
    """Log records as lines into a sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sink.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:  # as the standard library's own handlers do
            self.handleError(record)


def configure_logging(json: bool, sink: Sink, colours: bool = False) -> None:
    """Send every log record of the process to `sink`: ours from info up, other libraries' from warning up."""
    handler = _Lines(sink)
    handler.setFormatter(JsonLines() if json else Text(colours))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("serveplane").setLevel(logging.INFO)


def mend_standard_streams() -> None:
    """Put /dev/null where a process was started without stdin, stdout or stderr.

    Else their numbers go to the next sockets that are opened, and what is meant for the log is sent to a client.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            # the lowest free number, which is this one, is what it gets
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 (for as long as the process lives)
