"""What a request is called: its id, and the trace that it belongs to.

Both come from outside, and are cut to what may be written down and sent on.
"""

import re
from typing import NamedTuple

# Characters of an id that are kept, and of a tracestate.
LONGEST_ID, LONGEST_STATE = 256, 512
_UNPRINTABLE = re.compile(r"[^ -~]")
# W3C Trace Context: version, trace, parent, flags, and what later versions may add
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


class Trace(NamedTuple):
    """Where a request stands in a trace.  Ids are lower-case hex; `parent` is the caller's span, "" for the trace's first."""

    trace_id: str
    parent: str
    sampled: bool
    state: str = ""


class TracedId(str):
    """A request's id that knows its trace: it goes wherever ids go, and a request without a trace has nothing to carry."""

    __slots__ = ("trace",)

    trace: Trace

    def __new__(cls, text: str, trace: Trace) -> "TracedId":
        made = super().__new__(cls, text)
        made.trace = trace
        return made


def trace_of(request_id: str) -> Trace | None:
    return request_id.trace if type(request_id) is TracedId else None


def identified(text: str, traceparent: str = "", tracestate: str = "") -> str:
    """A request's id from the headers of these names ("" for those that did not come): printable ASCII of bounded length.

    "" where nothing names it.  A request that has a trace and no id is called by its trace.
    """
    text = _UNPRINTABLE.sub("?", text[:LONGEST_ID]).strip()
    trace = parse_trace(traceparent, tracestate) if traceparent else None
    return text if trace is None else TracedId(text or f"{trace.trace_id}-{trace.parent}", trace)


def parse_trace(traceparent: str, tracestate: str = "") -> Trace | None:
    """None for what the standard calls invalid: such a request begins a trace of its own."""
    found = _PARENT.fullmatch(traceparent.strip())
    if found is None:
        return None
    version, trace_id, parent, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not parent.strip("0"):
        return None
    fits = len(tracestate) <= LONGEST_STATE and not _UNPRINTABLE.search(tracestate)
    return Trace(trace_id, parent, bool(int(flags, 16) & _SAMPLED), tracestate.strip() if fits else "")
