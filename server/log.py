"""What the process says of itself, on stderr: events with fields, one JSON object a line, or text for a person.

The standard library's logging under a thin coat: `log.info("model ready", model=name)`. What other libraries log comes
out in the same form. (Structured logging packages do the same, but load a terminal toolkit into every predictor: 8 MB.)
"""

import json
import logging
import sys
import time
import traceback
from typing import Any, TextIO

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


class JsonLines(logging.Formatter):
    """One object a line: timestamp (UTC), level, event, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z"
        line = {"timestamp": stamp, "level": record.levelname.lower(), "event": record.getMessage(), **_fields(record)}
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


def configure_logging(json: bool, stream: TextIO = sys.stderr) -> None:
    """Send every log record of the process to `stream`: ours from info up, other libraries' from warning up."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if json else Text(stream.isatty()))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("serveplane").setLevel(logging.INFO)
