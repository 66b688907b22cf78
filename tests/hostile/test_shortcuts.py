"""Requests that look like earlier ones take shortcuts.  Whatever looks like one and is none has the answer of the long way.

Two servers of one model get the same bytes: one with its shortcuts, which good requests have opened, and one without: its
heads are parsed by a library, and requests that each have an encoding of their own are not planned.
"""

import gzip
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from tests.hostile.protocols import binary, sized
from tests.server.conftest import Wire

X = b'{"inputs":[{"name":"features","datatype":"FP32","shape":[1,4],"data":%b}]}'
FLAT = b'{"inputs":[{"name":"features","datatype":"FP32","shape":[1,4],"data":%b}]}'
ROWS = b'{"instances":%b}'
TWO_ROWS = b'{"inputs":[{"name":"features","datatype":"FP32","shape":[2,4],"data":%b}]}'
WITH_ID = b'{"id":"7","inputs":[{"name":"features","shape":[1,4],"datatype":"FP32","data":%b}],"outputs":[{"name":"total"}]}'
V2, V1 = "/v2/models/table/infer", "/v1/models/table:predict"
FRAMES = {
    "V2": (V2, X, b"[[1.5, 2, 3, 4]]"),
    "flat": (V2, FLAT, b"[1.5, 2, 3, 4]"),
    "two rows": (V2, TWO_ROWS, b"[[1.5, 2, 3, 4], [5, 6, 7, 8]]"),
    "id": (V2, WITH_ID, b"[[1.5, 2, 3, 4]]"),
    "V1": (V1, ROWS, b"[[1.5, 2, 3, 4]]"),
}

# what stands where the numbers of an earlier request were
NUMBERS = [
    b"[[1e999, 2, 3, 4]]",
    b"[[-1e999, 2, 3, 4]]",
    b"[[1e39, 2, 3, 4]]",
    b"[[3.4028235e38, 2, 3, 4]]",
    b"[[3.4028236e38, 2, 3, 4]]",
    b"[[3.40282357e38, 2, 3, 4]]",
    b"[[-0, 2, 3, 4]]",
    b"[[-0.0, -0.0, -0.0, -0.0]]",
    b"[[1e-400, 0, 0, 0]]",
    b"[[00, 2, 3, 4]]",
    b"[[01, 2, 3, 4]]",
    b"[[1_0, 2, 3, 4]]",
    b"[[0x10, 2, 3, 4]]",
    b"[[.5, 2, 3, 4]]",
    b"[[5., 2, 3, 4]]",
    b"[[+5, 2, 3, 4]]",
    b"[[1e, 2, 3, 4]]",
    b"[[1E5, 2e+1, 3e-1, 4e0]]",
    b"[[NaN, 2, 3, 4]]",
    b"[[nan, 2, 3, 4]]",
    b"[[Infinity, 2, 3, 4]]",
    b"[[-Infinity, 2, 3, 4]]",
    b"[[null, 2, 3, 4]]",
    b"[[true, 2, 3, 4]]",
    b'[["1", 2, 3, 4]]',
    b"[[{}, 2, 3, 4]]",
    b"[[[1], 2, 3, 4]]",
    b"[[9223372036854775807, 2, 3, 4]]",
    b"[[9223372036854775808, 2, 3, 4]]",
    b"[[18446744073709551616, 2, 3, 4]]",
    b"[[-9223372036854775809, 2, 3, 4]]",
    b"[[" + b"9" * 400 + b", 2, 3, 4]]",
    b"[[" + b"9" * 5000 + b", 2, 3, 4]]",
    b"[[0." + b"1" * 500 + b", 2, 3, 4]]",
    b"[[16777217, 33554433, 0.1, 1e-46]]",
    "[[\u0661, 2, 3, 4]]".encode(),
    "[[1\u00a0, 2, 3, 4]]".encode(),
    b"[[\xff, 2, 3, 4]]",
    b"[[1\x00, 2, 3, 4]]",
    b"[[1\x0b, 2, 3, 4]]",
    b"\t[\r\n[ 1.5 ,2 , 3,4 ] ]\n",
    b"[[1.5, 2, 3, 4],]",
    b"[[1.5, 2, 3, 4,]]",
    b"[[1.5, 2, 3, 4]",
    b"[[1.5, 2, 3, 4]]]",
    b"[[1.5, 2, 3]]",
    b"[[1.5, 2, 3, 4, 5]]",
    b"[[1.5, 2], [3, 4]]",
    b"[[1.5], [2], [3], [4]]",
    b"[[1.5, 2, 3], [4]]",
    b"[[[1.5, 2, 3, 4]]]",
    b"[1.5, 2, 3, 4]",
    b"1.5",
    b"[]",
    b"[[]]",
    b"",
    b"[[1.5, 2, 3, 4]] [[5, 6, 7, 8]]",
    b"[[1.5, 2, 3, 4]], [[5, 6, 7, 8]]",
    b'[[1.5, 2, 3, 4]],"data":[[5, 6, 7, 8]]',
    b'[[1.5, 2, 3, 4]],"instances":[[5, 6, 7, 8]]',
    b'[[1.5, 2, 3, 4] ],"x":[[5, 6, 7, 8]]',
    b'[[1.5, 2, 3, 4]],"shape":[4,1]',
    b'[[1.5, 2, 3, 4]],"parameters":{"binary_data_size":16}',
    b'[[1.5, 2, 3, 4]],"d\\u0061ta":[[5, 6, 7, 8]]',
    b"/**/[[1.5, 2, 3, 4]]",
    b"\xef\xbb\xbf[[1.5, 2, 3, 4]]",
    b"[[1.5, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]",
]


FLAGS = "--model_name=table", "--max_body_bytes=262144", "--receive_timeout=0.4"
MODEL = f"{Path(__file__).parent}/models/table.py:Quick"


@pytest.fixture(scope="module")
def short_way(serve):
    with serve(MODEL, *FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def long_way(serve):
    with serve(MODEL, *FLAGS, "--http_fast=false") as server:
        yield server


@pytest.fixture
def short(short_way):
    with Wire(short_way.http) as connection:
        yield connection


@pytest.fixture
def long(long_way):
    with Wire(long_way.http) as connection:
        yield connection


def told(answer) -> tuple:
    """What two servers have to agree about; an answer's numbers by their bits."""
    if answer.status != 200 or b"NaN" not in answer.body:
        return answer.status, re.sub(rb"request id \S+", b"", answer.body)
    return answer.status, re.sub(rb"-?NaN", b"NaN", answer.body)


def opened(connection, path: str, frame: bytes, good: bytes) -> None:
    """Let the server learn the frame; the last of these is answered by plan."""
    for n in range(4):
        assert connection.ask("POST", path, frame % good.replace(b"1.5", b"%d.5" % n)).status == 200


@pytest.mark.parametrize("numbers", NUMBERS, ids=range(len(NUMBERS)))
@pytest.mark.parametrize("frame", FRAMES)
def test_other_numbers_in_a_known_frame_are_read_as_if_it_were_not_known(short, long, frame, numbers):
    path, around, good = FRAMES[frame]
    body = around % numbers
    opened(short, path, around, good)
    # compressed, a body is not looked up
    wanted = told(long.ask("POST", path, gzip.compress(body), content_encoding="gzip"))
    for _ in range(3):
        assert told(short.ask("POST", path, body)) == wanted
    assert short.ask("POST", path, around % good).status == 200


def test_seeded_numbers_in_known_frames_are_read_as_if_they_were_not_known(short, long):
    """1500 bodies: a good one with a few bytes changed anywhere, put in, or left out."""
    chance = random.Random(11)
    pieces = [
        *b'0 1 9 . , - + e E [ ] { } " : n u l t r \\ _ \x00 \xff \n'.split(),
        b" ",
        b"\n",
        b"1e99",
        b"null",
        b"]]",
        b'"data":',
    ]
    for _ in range(1500):
        path, around, good = FRAMES[chance.choice(list(FRAMES))]
        body = bytearray(around % good)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(body))
            body[at : at + chance.choice([0, 1, 1, 2])] = chance.choice(pieces)
        body = bytes(body)
        assert short.ask("POST", path, around % good).status == 200
        wanted = told(long.ask("POST", path, gzip.compress(body), content_encoding="gzip"))
        assert told(short.ask("POST", path, body)) == wanted, body


@pytest.mark.parametrize(
    "tail", [b"", b"\0" * 15, b"\0" * 17, b"\xff" * 16, np.array([np.nan, 1, 2, 3], np.float32).tobytes()], ids=range(5)
)
def test_other_bytes_behind_known_json_are_read_as_if_it_were_not_known(short, long, tail):
    frame, header = binary(sized("features", "FP32", [1, 4], 16))
    for n in range(4):
        assert short.ask("POST", V2, frame + bytes([n] * 16), **header).status == 200
    wanted = told(long.ask("POST", V2, gzip.compress(frame + tail), content_encoding="gzip", **header))
    assert told(short.ask("POST", V2, frame + tail, **header)) == wanted


BODY = X % b"[[1, 2, 3, 4]]"
HEAD = b"POST /v2/models/table/infer HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n" % len(BODY)
OTHER = X % b"[[5, 6, 7, 8]]"
SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n"

# what comes on a connection on which HEAD is known by its bytes
HEADS = {
    "a length too small": HEAD.replace(b"%d" % len(BODY), b"5") + b"\r\n" + BODY,
    "a length too large": HEAD.replace(b"%d" % len(BODY), b"999") + b"\r\n" + BODY,
    "a length of other digits": HEAD.replace(b"%d" % len(BODY), "\u0661".encode()) + b"\r\n" + BODY,
    "a length with a zero before it": HEAD.replace(b": %d" % len(BODY), b": 0%d" % len(BODY)) + b"\r\n" + BODY,
    "a length with a plus": HEAD.replace(b": %d" % len(BODY), b": +%d" % len(BODY)) + b"\r\n" + BODY,
    "a length with an underscore": HEAD.replace(b": %d" % len(BODY), b": 1_0") + b"\r\n" + BODY,
    "a length of 30 digits": HEAD.replace(b": %d" % len(BODY), b": " + b"9" * 30) + b"\r\n" + BODY,
    "an empty length": HEAD.replace(b": %d" % len(BODY), b": ") + b"\r\n" + BODY,
    "two lengths": HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    "two lengths, one of them 0": HEAD + b"Content-Length: 0\r\n\r\n" + BODY,
    "a list of lengths": HEAD.replace(b": %d" % len(BODY), b": %d, %d" % (len(BODY), len(BODY))) + b"\r\n" + BODY,
    "chunked, too": HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"0\r\n\r\n" + SMUGGLED,
    "chunked, in other letters": HEAD + b"Transfer-Encoding: CHUNKED\r\n\r\n" + b"0\r\n\r\n" + SMUGGLED,
    "chunked, misspelt": HEAD + b"transfer-encoding: xchunked\r\n\r\n" + BODY,
    "chunked, twice": HEAD.replace(b"content-length: %d" % len(BODY), b"transfer-encoding: chunked, chunked") + b"\r\n0\r\n\r\n",
    "chunked, and no more": HEAD.replace(b"content-length: %d" % len(BODY), b"transfer-encoding: chunked, identity")
    + b"\r\n0\r\n\r\n",
    "chunked behind a tab": HEAD + b"transfer-encoding:\tchunked\r\n\r\n" + b"0\r\n\r\n" + SMUGGLED,
    "a blank before the colon": HEAD + b"transfer-encoding : chunked\r\n\r\n" + BODY,
    "a vertical tab in a value": HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n" + BODY,
    "a folded line": HEAD + b"x: a\r\n transfer-encoding: chunked\r\n\r\n" + BODY,
    "a folded line at the beginning": HEAD.replace(b"host: a\r\n", b" host: a\r\n") + b"\r\n" + BODY,
    "a bare line feed": HEAD.replace(b"\r\n", b"\n") + b"\n" + BODY,
    "a blank line of line feeds": HEAD + b"x: a\n\n" + BODY,
    "a blank line of line feeds, and another": HEAD + b"x: a\n\n" + BODY[: len(BODY) - 4] + b"\r\n\r\n" + OTHER,
    "a bare carriage return": HEAD + b"x: a\rtransfer-encoding: chunked\r\n\r\n" + BODY,
    "a header without a name": HEAD + b": a\r\n\r\n" + BODY,
    "a header without a colon": HEAD + b"a\r\n\r\n" + BODY,
    "a NUL in a name": HEAD + b"x\0y: a\r\n\r\n" + BODY,
    "names in other letters": HEAD.upper()
    .replace(b"HTTP/1.1", b"HTTP/1.1")
    .replace(b"/V2/MODELS/TABLE/INFER", b"/v2/models/table/infer")
    + b"\r\n"
    + BODY,
    "no blank behind a colon": HEAD.replace(b": ", b":") + b"\r\n" + BODY,
    "tabs around a value": HEAD.replace(b": %d" % len(BODY), b":\t%d\t " % len(BODY)) + b"\r\n" + BODY,
    "HTTP/1.0": HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + BODY,
    "HTTP/0.9": HEAD.replace(b"HTTP/1.1", b"HTTP/0.9") + b"\r\n" + BODY,
    "HTTP/2.0": HEAD.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n" + BODY,
    "HTTP/1.11": HEAD.replace(b"HTTP/1.1", b"HTTP/1.11") + b"\r\n" + BODY,
    "a method in small letters": HEAD.replace(b"POST", b"post") + b"\r\n" + BODY,
    "blank lines before it": b"\r\n\r\n" + HEAD + b"\r\n" + BODY,
    "two blanks in the first line": HEAD.replace(b"POST ", b"POST  ") + b"\r\n" + BODY,
    "a tab in the first line": HEAD.replace(b"POST ", b"POST\t") + b"\r\n" + BODY,
    "an absolute URL": HEAD.replace(b" /v2", b" http://a/v2") + b"\r\n" + BODY,
    "an encoded path": HEAD.replace(b"table", b"t%61ble") + b"\r\n" + BODY,
    "a query": HEAD.replace(b"infer ", b"infer?a=/infer ") + b"\r\n" + BODY,
    "a fragment": HEAD.replace(b"infer ", b"infer#a ") + b"\r\n" + BODY,
    "a path in it": HEAD.replace(b"/infer", b"/../table/infer") + b"\r\n" + BODY,
    "upgrade to another protocol": HEAD + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n" + BODY,
    "upgrade without a body": HEAD.replace(b"POST", b"GET").replace(b"%d" % len(BODY), b"0")
    + b"connection: upgrade\r\nupgrade: x\r\n\r\n",
    "the end of the connection": HEAD + b"connection: close\r\n\r\n" + BODY + SMUGGLED,
    "an expectation": HEAD + b"expect: 100-continue\r\n\r\n" + BODY,
    "an expectation that is none": HEAD + b"expect: the-worst\r\n\r\n" + BODY,
    "a deadline that is none": HEAD + b"x-request-timeout: 1_0\r\n\r\n" + BODY,
    "two deadlines": HEAD + b"x-request-timeout: 5\r\nx-request-timeout: soon\r\n\r\n" + BODY,
    "two encodings": HEAD + b"content-encoding: gzip\r\ncontent-encoding: identity\r\n\r\n" + BODY,
    "two lengths of JSON": HEAD
    + b"inference-header-content-length: 5\r\ninference-header-content-length: %d\r\n\r\n" % len(BODY)
    + BODY,
    "JSON of another length": HEAD + b"inference-header-content-length: 10\r\n\r\n" + BODY,
    "another body of the same length": HEAD + b"\r\n" + OTHER,
    "a body of blank lines": HEAD + b"\r\n" + b"\r\n" * (len(BODY) // 2) + b" " * (len(BODY) % 2),
    "a request in the body": HEAD + b"\r\n" + SMUGGLED.ljust(len(BODY)),
    "a request behind the body": HEAD + b"\r\n" + BODY + SMUGGLED,
    "nonsense behind the body": HEAD + b"\r\n" + BODY + b"nonsense\r\n\r\n",
    "one id": HEAD + b"x-request-id: abc\r\n\r\n" + BODY,
    "two ids": HEAD + b"x-request-id: abc\r\nx-request-id: def\r\n\r\n" + BODY,
    "two ids, in other letters": HEAD + b"x-request-id: abc\r\nX-REQUEST-ID: def\r\n\r\n" + BODY,
    "two ids, the other way round": HEAD + b"X-REQUEST-ID: def\r\nx-request-id: abc\r\n\r\n" + BODY,
    "an empty id": HEAD + b"x-request-id: \r\n\r\n" + BODY,
    "an id of blanks": HEAD + b"x-request-id:    abc   \r\n\r\n" + BODY,
    "an id that is no word": HEAD + b"x-request-id: a b%0d%0ac\r\n\r\n" + BODY,
    "an id in a value": HEAD + b"x: x-request-id: abc\r\n\r\n" + BODY,
}


LAST = b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


def answers(server, sent: bytes, in_pieces: bool = False) -> list[tuple]:
    """All answers on a connection on which this came, and then a last request: what has to be the same of them."""
    with Wire(server.http) as connection:
        if in_pieces:
            for at in range(0, len(sent), 7):
                connection.send_raw(sent[at : at + 7])
        else:
            connection.send_raw(sent)
        found = [connection.read()]
        connection.send_raw(LAST)
        while found[-1].status:
            found.append(connection.read())
        if len(found) > 2 and found[-2].status == 400:
            # of nonsense behind a request the client is told only where the request has been answered before it came
            del found[-2]
        return [(a.status, re.sub(r"[0-9a-f]{8}-\d+", "…", a.headers.get("x-request-id", "")), told(a)[1]) for a in found]


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_is_nearly_a_known_one_is_read_as_if_it_were_not_known(short_way, long_way, head):
    for n in range(3):
        assert answers(short_way, HEAD + b"\r\n" + BODY.replace(b"1", b"%d" % n, 1))
    wanted = answers(long_way, HEADS[head])
    # the first time, the second, and from then on as what is known
    for _ in range(4):
        assert answers(short_way, HEADS[head]) == wanted
    assert answers(short_way, HEADS[head], in_pieces=True) == wanted
    assert json.loads(answers(short_way, HEAD + b"\r\n" + BODY)[0][2])["outputs"][0]["data"] == [10.0]


def test_a_body_behind_an_offer_of_another_protocol_is_never_a_request(short_way, wire):
    """The parser leaves it to that protocol; what came behind the head would be a request of its own."""
    smuggled = b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n"
    head = b"POST /v2/models/table/infer HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\ncontent-length: %d\r\n\r\n"
    with wire(short_way.http) as connection:
        connection.send_raw(head % len(smuggled))
        connection.send_raw(smuggled)
        answer = connection.read()
        assert (answer.status, "offers another protocol (upgrade)" in answer.error) == (400, True)
        assert connection.read().status == 0
