"""Each limit at its edge and one past it, over real sockets.  docs/limits.md is the table of them.

Limits that have tests of their own beside what they limit are listed at the end.
"""

import gzip
import json
import struct
import zlib
from pathlib import Path

import grpc
import pytest

from server.h2 import frames
from server.h2.frames import DATA, END_STREAM, Code, frame
from server.settings import Settings
from tests.hostile import grpc_cases, v1_cases, v2_cases
from tests.hostile.protocols import Case, given, is_a_test, message, tensor, v2
from tests.server.test_grpc_fast import Wire as H2Wire
from tests.server.test_grpc_fast import message as framed
from tests.server.test_grpc_fast import status

HERE = Path(__file__).parent
LIMIT = 8192
FLAGS = "--model_name=table", f"--max_body_bytes={LIMIT}", "--max_header_bytes=4096", "--max_headers=20", "--max_url_bytes=1000"
INFER, PREDICT = "/v2/models/table/infer", "/v1/models/table:predict"
BODY = v2(tensor("features", "FP32", [1, 4], [5, 0, 0, 0]))
MESSAGE = grpc_cases.typed()


@pytest.fixture(scope="module")
def narrow(serve, lane):
    """A server with narrow limits, by either way through the edges."""
    with serve(f"{HERE}/models/table.py:Quick", *FLAGS, *lane) as server:
        yield server


@pytest.fixture(scope="module")
def fast(serve):
    with serve(f"{HERE}/models/table.py:Quick", *FLAGS, "--receive_timeout=2") as server:
        yield server


def head(size: int = 0, count: int = 3, url: int = 0) -> bytes:
    """A request's head of so many bytes or headers, or with a URL of so many bytes."""
    path = INFER.encode()
    if url:
        path += b"?" + b"x" * (url - len(path) - 1)
    lines = [b"POST %b HTTP/1.1" % path, b"host: a", b"content-length: %d" % len(BODY)]
    lines += [b"x-%d: y" % n for n in range(count - 2)]
    # what counts is what is in it, and four bytes around each header
    found = len(path) + sum(len(line) + 2 for line in lines[1:])
    if size:
        lines[-1] += b"y" * (size - found)
    return b"\r\n".join([*lines, b"", b""])


HEADS = [
    ("all of its bytes", head(size=4096), 200, ""),
    ("a byte too many", head(size=4097), 431, "the request's headers are more than 4096 bytes (--max_header_bytes)"),
    ("all of its headers", head(count=20), 200, ""),
    ("a header too many", head(count=21), 431, "the request has 21 headers, the limit is 20 (--max_headers)"),
    ("all of its URL", head(url=1000), 200, ""),
    ("a URL too long", head(url=1001), 414, "the URL is 1001 bytes, the limit is 1000 (--max_url_bytes)"),
]


@pytest.mark.parametrize(("what", "sent", "code", "text"), HEADS, ids=[one[0] for one in HEADS])
@pytest.mark.parametrize("piece", [1 << 20, 500, 7])
def test_a_head_is_bounded_however_it_comes(narrow, wire, what, sent, code, text, piece):
    with wire(narrow.http) as connection, wire(narrow.http) as other:
        for at in range(0, len(sent), piece):
            connection.send_raw(sent[at : at + piece])
        connection.send_raw(BODY)
        answer = connection.read()
        # whoever is told by the time that it is too large may be cut off before all is read
        assert answer.status in ((code, 0) if piece == 7 and code != 200 else (code,))
        if answer.status not in (0, 200):
            assert (answer.error, answer.headers["connection"], connection.read().status) == (text, "close", 0)
        assert other.ask("POST", INFER, BODY).status == 200


def chunked(pieces: int) -> bytes:
    lines = b"POST /v2/models/table/infer HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    blanks = [b"1\r\n \r\n"] * (pieces - 1)
    return lines + b"".join(blanks) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(("pieces", "code"), [(65_535, 200), (65_536, 413), (1_000_000, 413)])
def test_a_body_has_no_more_chunks_than_a_server_can_count_quickly(catalogue_servers, wire, pieces, code):
    """The last of them, of no bytes, counts too."""
    with wire(catalogue_servers["Table"].http) as connection:
        connection.send_raw(chunked(pieces))
        answer = connection.read()
        # a client that goes on sending may not get to read it
        assert answer.status in ((code, 0) if pieces > 70_000 else (code,))
        if answer.status == 413:
            assert answer.error == "the body came in more than 65536 chunks, which is the limit; send larger ones"


def deep(levels: int) -> bytes:
    """A request with JSON nested so deep."""
    return b'{"inputs":[],"x":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def wide(inputs: int) -> bytes:
    return v2(*[tensor(str(n), "FP32", [1], [1]) for n in range(inputs)])


ROW_OF_TEXT = [f"{n:04d}" for n in range(4)]
# (what, path, body at the limit, body past it, what is said of the one, and of the other)
PAIRS = [
    ("depth, V2", INFER, deep(64), deep(65), "'inputs' is empty", "request body: JSON is nested deeper than 64"),
    ("depth, V1", PREDICT, deep(64), deep(65), "has shape [0]", "request body: JSON is nested deeper than 64"),
    ("rank, V2", INFER, v2(tensor("features", "FP32", [1] * 16, [1])), v2(tensor("features", "FP32", [1] * 17, [1])), "has shape", "has 17 dimensions, at most 16 are accepted"),
    ("rank, V1", PREDICT, b'{"instances":' + b"[" * 16 + b"1" + b"]" * 16 + b"}", b'{"instances":' + b"[" * 17 + b"1" + b"]" * 17 + b"}", "has shape", "is nested deeper than 16 dimensions"),
    ("claimed elements", INFER, v2(tensor("features", "FP32", [2**63 // 8 - 1], [1])), v2(tensor("features", "FP32", [2**63 // 8], [1])), "needs 1152921504606846975 values, data has 1", "which is more elements than any memory holds"),
    ("digits of a number", INFER, BODY.replace(b"[5,", b"[" + b"9" * 4300 + b","), BODY.replace(b"[5,", b"[" + b"9" * 4301 + b","), "the integer at element 0 overflows FP32", "Exceeds the limit (4300 digits)"),
    ("parameter timeout", INFER, v2(json.loads(BODY)["inputs"][0], parameters={"timeout": 2**63 - 1}), v2(json.loads(BODY)["inputs"][0], parameters={"timeout": 2**63}), "", "it must be an integer above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "path", "within", "past", "said_within", "said_past"), PAIRS, ids=[one[0] for one in PAIRS])
def test_what_a_request_says_is_bounded(narrow, wire, what, path, within, past, said_within, said_past):
    with wire(narrow.http) as connection:
        for body, said in ((within, said_within), (past, said_past)):
            answer = connection.ask("POST", path, body)
            assert (answer.status, said in answer.body.decode()) == (400 if said else 200, True), answer


def test_a_request_has_no_more_tensors_than_1024(catalogue_servers, wire):
    server = catalogue_servers["Table"]
    with wire(server.http) as connection:
        assert connection.ask("POST", INFER, wide(1024)).error.startswith("unknown input '0'")
        assert connection.ask("POST", INFER, wide(1025)).error == "'inputs' has 1025 entries, 1024 are allowed"
    for count, said in ((1024, "unknown input"), (1025, "1024 of each are allowed")):
        one = Case(
            "",
            "INVALID_ARGUMENT",
            said,
            message(*[given(str(n), "FP32", [1], fp32_contents=[1]) for n in range(count)], model="table"),
        )
        end = grpc_cases.PROTOCOL.end(grpc_cases.PROTOCOL.begin(server, one))
        assert (end.code, said in end.text) == ("INVALID_ARGUMENT", True)


PACK = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize(("size", "code"), [(LIMIT, 200), (LIMIT + 1, 413)])
@pytest.mark.parametrize("path", [INFER, PREDICT])
def test_a_compressed_body_is_bounded_by_what_it_becomes(narrow, wire, encoding, size, code, path):
    body = (BODY if path == INFER else v1_cases.GOOD).ljust(size)
    with wire(narrow.http) as connection:
        answer = connection.ask("POST", path, PACK[encoding](body), content_encoding=encoding)
        assert answer.status == code
        # as often encoded as is allowed
        assert (
            connection.ask("POST", path, PACK[encoding](PACK[encoding](body)), content_encoding=f"{encoding}, {encoding}").status
            == code
        )


@pytest.mark.parametrize("encoding", PACK)
def test_bombs_cost_no_more_memory_than_the_limit(fast, wire, metrics, encoding):
    """256 MB of zeros each, packed twice; a good client beside them is answered."""
    bomb = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    once = b"".join([bomb.compress(bytes(1 << 24)) for _ in range(16)] + [bomb.flush()])
    twice = PACK[encoding](once, 9)
    before = metrics(fast)["process_resident_memory_bytes"]
    with wire(fast.http) as connection, wire(fast.http) as other:
        for _ in range(4):
            answer = connection.ask("POST", INFER, twice, content_encoding=f"{encoding}, {encoding}")
            assert (answer.status, "--max_body_bytes" in answer.error) == (413, True)
            assert other.ask("POST", INFER, BODY).status == 200
    assert metrics(fast)["process_resident_memory_bytes"] - before < 20 << 20


def test_an_answer_is_compressed_for_who_asks_and_costs_him_nothing_else(narrow, wire):
    """The other way round there is no bomb: an answer is as large as the model makes it, compressed or not."""
    rows = 300
    body = v2(tensor("features", "UINT8", [rows, 4], [7] * rows * 4))
    with wire(narrow.http) as connection:
        plain = connection.ask("POST", INFER, body)
        packed = connection.ask("POST", INFER, body, accept_encoding="gzip;q=1e999, deflate;q=nan, *;q=-1, " + "br, " * 200)
        assert gzip.decompress(packed.body) == plain.body


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize(("size", "code"), [(LIMIT, "OK"), (LIMIT + 1, "RESOURCE_EXHAUSTED")])
def test_a_compressed_message_is_bounded_by_what_it_becomes(narrow, algorithm, size, code):
    """Filled up with a field that the message does not have, of bytes that vanish when they are compressed."""
    room = size - len(MESSAGE) - 4
    sent = MESSAGE + b"\xfa\x06" + bytes([room & 0x7F | 0x80, room >> 7]) + bytes(room)
    assert len(sent) == size
    with grpc.insecure_channel(narrow.grpc) as channel:
        call = channel.unary_unary(grpc_cases.INFER).future(sent, compression=algorithm, timeout=30)
        error = call.exception()
    assert (error.code().name if error else "OK") == code


@pytest.mark.parametrize(("size", "code"), [(LIMIT, "OK"), (LIMIT + 1, "RESOURCE_EXHAUSTED")])
def test_a_message_is_bounded(narrow, size, code):
    room = size - len(MESSAGE) - 4
    sent = MESSAGE + b"\xfa\x06" + bytes([room & 0x7F | 0x80, room >> 7]) + bytes(room)
    with grpc.insecure_channel(narrow.grpc) as channel:
        error = channel.unary_unary(grpc_cases.INFER).future(sent, timeout=30).exception()
    assert (error.code().name if error else "OK") == code


def test_metadata_is_bounded(fast):
    """16 KiB are answered, more is refused by its call, four times as much ends the connection."""
    with H2Wire(fast) as connection:
        assert status(connection.ask(1, framed(MESSAGE), x="y" * 15_000))[0] == "0"
        assert status(connection.ask(3, framed(MESSAGE), x="y" * 16_500))[0] == "8"
        assert status(connection.ask(5, framed(MESSAGE)))[0] == "0"


def test_streams_at_once_are_bounded(fast):
    with H2Wire(fast) as connection:
        for n in range(1024):
            connection.send(connection.headers(1 + 2 * n))
        connection.send(connection.headers(2049))
        answer = connection.answer(2049)
        assert answer.code is Code.REFUSED_STREAM
        # and the others are waited for as long as ever
        connection.send(frame(DATA, END_STREAM, 1, framed(MESSAGE)))
        assert status(connection.answer(1))[0] == "0"


def test_a_stream_whose_answer_is_not_read_is_reset(serve):
    """A client that opens no window would have its answers kept for it."""
    flags = "--model_name=table", "--receive_timeout=0.4", "--send_timeout=0.4"
    with serve(f"{HERE}/models/table.py:Quick", *flags) as server, H2Wire(server, initial_window_size=10) as connection:
        connection.send(connection.request(1, framed(MESSAGE)))
        answer = connection.answer(1)
        assert (answer.code, len(answer.body)) == (Code.CANCEL, 10)
        # the next one is read
        connection.send(connection.request(3, framed(MESSAGE)), frames.window_update(3, 10_000))
        assert status(connection.answer(3))[0] == "0"


def test_answers_that_wait_for_one_client_are_bounded(serve):
    """Four of the largest size; who asks for more is told to read."""
    rows = 1500
    large = framed(message(given("features", "FP32", [rows, 4]), raw=[bytes(16 * rows)], model="table"))
    with (
        serve(f"{HERE}/models/table.py:Quick", "--model_name=table", "--max_body_bytes=32768") as server,
        H2Wire(server, initial_window_size=0) as connection,
    ):
        for stream in range(1, 21, 2):
            connection.send(
                connection.headers(stream),
                frame(DATA, 0, stream, large[:16_000]),
                frame(DATA, END_STREAM, stream, large[16_000:]),
            )
        refused = []
        while len(refused) < 6 and connection.read():
            refused = [a for a in connection.answers.values() if a.trailers or a.headers.get("grpc-status")]
        assert {status(a)[0] for a in refused} == {"8"}
        assert "answers that are not read" in status(refused[0])[1].replace("%20", " ")
        # the others wait for their windows, and come whole
        for stream in range(1, 9, 2):
            connection.send(frames.window_update(stream, 1 << 20))
        connection.send(frames.window_update(0, 1 << 24))
        assert [status(connection.answer(stream))[0] for stream in range(1, 9, 2)] == ["0"] * 4


def test_texts_are_as_long_as_a_request_and_no_longer(catalogue_servers, wire):
    """A text has no limit of its own; what is quoted of it has."""
    with wire(catalogue_servers["Mixed"].http) as connection:
        text = "é" * 20_000
        one = v2(v2_cases.PAIR, v2_cases.COUNT, tensor("word", "BYTES", [1], [text]), outputs=[{"name": "raw"}])
        answer = connection.ask("POST", "/v2/models/mixed/infer", one)
        assert answer.json["outputs"][0]["data"] == [text]
        wrong = v2(v2_cases.PAIR, v2_cases.COUNT, tensor(text, "BYTES", [1], [text]))
        answer = connection.ask("POST", "/v2/models/mixed/infer", wrong)
        assert (answer.status, len(answer.error) < 2100) == (400, True)
    length = struct.pack("<I", 2**32 - 1)
    sent = message(
        given("pair", "FP32", [1, 2]),
        given("count", "UINT8", [1]),
        given("word", "BYTES", [1]),
        raw=[bytes(8), b"\0", length + b"a" * 9],
        model="mixed",
    )
    end = grpc_cases.PROTOCOL.end(grpc_cases.PROTOCOL.begin(catalogue_servers["Mixed"], Case("", "", "", sent)))
    assert (end.code, "claims 4294967295 bytes, but only 9 are left" in end.text) == ("INVALID_ARGUMENT", True)


def test_requests_that_wait_on_one_connection_are_bounded(serve, gate, server_models, wire, until):
    """A hundred behind the one that is being answered; who sends more is cut off, for an error would be another's answer."""
    with serve(f"{server_models}/gated.py:Gated", env=gate.environment) as server:
        one = v2(tensor("x", "INT64", [1, 1], [1000]))
        sent = b"POST /v2/models/gated/infer HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(one) + one
        live = b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n"
        for behind, answered in ((100, 101), (101, 0)):
            with wire(server.http) as connection:
                connection.send_raw(sent)
                with gate.held():
                    connection.send_raw(live * behind)
                    if not answered:
                        assert connection.read().status == 0
                assert [connection.read().status for _ in range(answered)] == [200] * answered


# limits that are tried beside what they limit: module and test
ELSEWHERE = {
    "HTTP body, at the limit and past it": "tests.server.test_http:test_a_body_may_be_as_large_as_the_limit_and_no_larger",
    "HTTP body, by what it says": "tests.server.test_http:test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent",
    "HTTP bomb": "tests.server.test_http:test_a_bomb_is_413_and_costs_no_memory",
    "HTTP connections": "tests.server.test_http:test_connections_beyond_the_limit_are_told_so_and_those_within_go_on",
    "HTTP body, deadline": "tests.server.test_http:test_a_body_that_does_not_come_is_answered_and_holds_up_nobody",
    "HTTP head, deadline": "tests.server.test_http:test_a_head_that_does_not_come_ends_the_connection",
    "HTTP answers that are not read, memory": "tests.server.test_http:test_a_client_that_asks_and_never_reads_does_not_fill_the_memory",
    "gRPC connections": "tests.server.test_grpc_fast:test_connections_beyond_the_limit_are_told_so_and_those_within_go_on",
    "gRPC messages, bombs, metadata": "tests.server.test_grpc_fast:test_a_call_is_answered_or_refused_in_grpcs_words",
    "gRPC messages, deadline": "tests.server.test_grpc_fast:test_a_message_that_does_not_come_is_waited_for_only_so_long",
    "gRPC messages under way": "tests.server.test_grpc_fast:test_unfinished_messages_on_one_connection_are_bounded",
    "gRPC rapid reset": "tests.server.test_grpc_fast:test_rapid_resets_end_their_own_connection_and_touch_no_other",
    "gRPC pings": "tests.server.test_grpc_fast:test_pings_that_are_not_read_end_their_own_connection_and_touch_no_other",
    "gRPC answers that are not read, memory": "tests.server.test_grpc_fast:test_who_asks_for_much_and_reads_nothing_is_let_go",
    "HTTP/2 floods of each kind": "tests.server.h2.test_connection:test_who_only_makes_work_is_told_to_calm_down",
    "HTTP/2 CONTINUATION flood": "tests.server.h2.test_connection:test_header_blocks_do_not_grow_for_ever",
    "HTTP/2 streams at once": "tests.server.h2.test_connection:test_streams_beyond_the_limit_are_refused_and_the_others_go_on",
    "queue": "tests.server.test_isolation:test_a_full_queue_is_429_with_a_time_to_try_again_and_those_in_it_are_served",
}


@pytest.mark.parametrize("limit", ELSEWHERE)
def test_a_limit_that_is_tried_elsewhere_is_tried_there(limit):
    module, _, name = ELSEWHERE[limit].partition(":")
    assert is_a_test(module, name)


def test_the_page_of_limits_has_every_setting_with_its_default():
    page = (HERE.parents[1] / "docs" / "limits.md").read_text()
    defaults = {
        "max_body_bytes": "64 MiB", "max_header_bytes": "64 KiB", "max_headers": "100", "max_url_bytes": "32 KiB", "receive_timeout": "30 s",
        "send_timeout": "30 s", "timeout_keep_alive": "65 s", "limit_connections": "1000", "timeout": "60 s",
    }  # fmt: skip
    units = {"MiB": 1 << 20, "KiB": 1 << 10}
    for name, said in defaults.items():
        number, _, unit = said.partition(" ")
        assert getattr(Settings(), name) == float(number) * units.get(unit, 1)
        assert any(f"| {said} | `--{name}` |" in line for line in page.splitlines()), name
