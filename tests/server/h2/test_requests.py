import pytest

from server.h2.frames import Code, StreamFault
from server.h2.requests import check_trailers, read_request

GOOD = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b":authority", b"host")]


def test_a_request_is_its_method_path_headers_and_length():
    found = read_request([*GOOD, (b"te", b"trailers"), (b"a", b"1"), (b"content-length", b"12"), (b"a", b"2")])
    assert found == (b"POST", b"/a/b", {b"te": b"trailers", b"a": b"1, 2", b"content-length": b"12"}, 12)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        GOOD[1:],
        [GOOD[0], *GOOD[2:]],
        [*GOOD[:2], GOOD[3]],
        [*GOOD[:2], (b":path", b"")],
        [*GOOD, GOOD[0]],
        [*GOOD, (b":status", b"200")],
        [*GOOD, (b":other", b"")],
        [*GOOD[:3], (b"a", b""), GOOD[3]],
        [*GOOD, (b"A", b"")],
        [*GOOD, (b"", b"")],
        [*GOOD, (b"a b", b"")],
        [*GOOD, (b"a", b"1\r\nb: 2")],
        [*GOOD, (b"a", b"\0")],
        [*GOOD, (b"te", b"gzip")],
        [*GOOD, (b"connection", b"close")],
        [*GOOD, (b"transfer-encoding", b"chunked")],
        [*GOOD, (b"content-length", b"-1")],
        [*GOOD, (b"content-length", b"1, 2")],
        [*GOOD, (b"content-length", b"9" * 5000)],
    ],
)
def test_what_is_no_request_is_a_protocol_error_of_its_stream(fields):
    with pytest.raises(StreamFault) as raised:
        read_request(fields)
    assert raised.value.code is Code.PROTOCOL_ERROR


@pytest.mark.parametrize(("fields", "fine"), [([], True), ([(b"a", b"b")], True), (GOOD[:1], False), ([(b"Big", b"")], False)])
def test_trailers_are_headers_without_a_method(fields, fine):
    if fine:
        check_trailers(fields)
    else:
        with pytest.raises(StreamFault):
            check_trailers(fields)
