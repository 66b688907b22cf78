"""What a request is called by its headers, and which trace it is of: tables of what comes and what is made of it."""

import pytest

from server.http_fast import names_it_once, without_id, without_trace
from server.identity import LONGEST_ID, LONGEST_STATE, Trace, TracedId, identified, parse_trace, trace_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (f"00-{TRACE}-{SPAN}-01", Trace(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", Trace(TRACE, SPAN, False)),
        # flags that are not known yet are let be
        (f"00-{TRACE}-{SPAN}-ff", Trace(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-02", Trace(TRACE, SPAN, False)),
        (f" 00-{TRACE}-{SPAN}-01 ", Trace(TRACE, SPAN, True)),
        # a later version may say more, behind a dash
        (f"01-{TRACE}-{SPAN}-01", Trace(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", Trace(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01.what", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE[1:]}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}0-01", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"0-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE[:-1]}g-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-01\n", Trace(TRACE, SPAN, True)),
        ("", None),
        ("-" * 10_000, None),
    ],
)
def test_a_traceparent_is_taken_as_the_standard_says(header, wanted):
    assert parse_trace(header) == wanted


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("a" * LONGEST_STATE, "a" * LONGEST_STATE),
        ("a" * (LONGEST_STATE + 1), ""),
        ("a=\x1b[2J", ""),
        ("a=ä", ""),
    ],
)
def test_a_tracestate_is_kept_where_it_is_of_bounded_length_and_printable(state, kept):
    assert parse_trace(f"00-{TRACE}-{SPAN}-01", state).state == kept


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("abc-123", "abc-123"),
        ("", ""),
        (" spaced ", "spaced"),
        ("odd\tid \xe4\x1b[2J", "odd?id ??[2J"),
        ("i" * LONGEST_ID, "i" * LONGEST_ID),
        ("i" * (LONGEST_ID + 1), "i" * LONGEST_ID),
    ],
)
def test_an_id_is_printable_and_of_bounded_length(text, wanted):
    assert identified(text) == wanted
    assert trace_of(identified(text)) is None


def test_a_request_with_a_trace_and_no_id_is_called_by_its_trace():
    parent = f"00-{TRACE}-{SPAN}-01"
    assert identified("", parent) == f"{TRACE}-{SPAN}"
    assert identified("mine", parent, "a=b") == "mine"
    assert trace_of(identified("mine", parent, "a=b")) == Trace(TRACE, SPAN, True, "a=b")
    assert type(identified("mine", "nonsense")) is str


def head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in ("POST /v2/models/m/infer HTTP/1.1", "host: h", *lines, "")).encode("latin-1")


@pytest.mark.parametrize(
    ("lines", "left", "wanted"),
    [
        ((), (), ("", None)),
        (("x-request-id: one",), ("x-request-id: ",), ("one", None)),
        (("X-Request-Id: one", "a: b"), ("X-Request-Id: ", "a: b"), ("one", None)),
        (("traceparent: 00-T-S-01",), ("traceparent: ",), ("T-S", Trace(TRACE, SPAN, True))),
        (
            ("Traceparent: 00-T-S-00", "x-request-id: one", "Tracestate: a=b,c=d"),
            ("Traceparent: ", "x-request-id: ", "Tracestate: "),
            ("one", Trace(TRACE, SPAN, False, "a=b,c=d")),
        ),
        # what is no traceparent is none when the parser reads it, either
        (("traceparent: nonsense", "x-request-id: one"), ("traceparent: ", "x-request-id: "), ("one", None)),
        # these are for the parser
        (("TraceParent: 00-T-S-01",), ("TraceParent: 00-T-S-01",), ("", None)),
        (("traceparent: 00-T-S-01\xe4",), ("traceparent: 00-T-S-01\xe4",), ("", None)),
        (("x-request-id: a b",), ("x-request-id: a b",), ("", None)),
        ((f"x-request-id: {'i' * 257}",), (f"x-request-id: {'i' * 257}",), ("", None)),
        ((f"x-request-id: {'i' * 256}",), ("x-request-id: ",), ("i" * 256, None)),
    ],
)
def test_what_each_request_has_another_of_is_taken_out_of_its_head(lines, left, wanted):
    def told(line: str) -> str:
        return line.replace("00-T-S-", f"00-{TRACE}-{SPAN}-")

    rest, request_id = without_trace(head(*map(told, lines)))
    name, trace = wanted
    assert (rest, request_id) == (head(*map(told, left)), name.replace("T-S", f"{TRACE}-{SPAN}"))
    assert trace_of(request_id) == trace
    if not any("race" in line for line in lines):
        assert without_id(head(*lines)) == (rest, request_id)


@pytest.mark.parametrize(
    ("lines", "once"),
    [
        ((), True),
        (("x-request-id: one",), True),
        (("X-Request-Id: one", "traceparent: 00-T-S-01", "tracestate: a=b"), True),
        (("x-request-id: one", "X-REQUEST-ID: two"), False),
        (("x-request-id: one", "x-request-id:two"), False),
        (("traceparent: 00-T-S-01", "Traceparent: 00-T-S-00"), False),
        (("tracestate: a=b", "tracestate: c=d"), False),
    ],
)
def test_a_head_is_kept_without_what_names_its_request_where_nothing_is_named_twice(lines, once):
    """Of two headers of one name the parser takes the last, and the first is what is taken out."""
    assert names_it_once(without_trace(head(*lines))[0]) == once


def test_an_id_that_knows_its_trace_is_text_like_any_other():
    named = TracedId("one", Trace(TRACE, SPAN, True))
    assert (named, f"{named}!", {named: 1}["one"], type(named[:2])) == ("one", "one!", 1, str)
