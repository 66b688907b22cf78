"""Content-Encoding both ways: what is understood, what is refused and how, and that nothing grows beyond the limit."""

import contextlib
import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest, RequestTooLarge, UnsupportedEncoding
from server.protocols.encoding import accepted, compress, decompress

LIMIT = 1000
TEXT = b"the same text again and again " * 10


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (TEXT, ""),
        (TEXT, "identity"),
        (gzip.compress(TEXT), "gzip"),
        (gzip.compress(TEXT), " GZip "),
        (gzip.compress(TEXT), "x-gzip"),
        (gzip.compress(TEXT), "identity, gzip"),
        (zlib.compress(TEXT), "deflate"),
        (zlib.compress(gzip.compress(TEXT)), "gzip, deflate"),
        (gzip.compress(zlib.compress(TEXT)), "deflate,gzip"),
    ],
)
def test_a_body_comes_out_as_it_was(body, encoding):
    assert decompress(body, encoding, LIMIT) == TEXT


@pytest.mark.parametrize(
    ("body", "encoding", "error", "text"),
    [
        (TEXT, "br", UnsupportedEncoding, "'br' is not supported; send one of: gzip, deflate"),
        (TEXT, "gzip, br", UnsupportedEncoding, "'br'"),
        (TEXT, "x" * 10_000, UnsupportedEncoding, "'" + "x" * 40 + "'"),
        (TEXT, "gzip," * 2000, UnsupportedEncoding, "2000 encodings on top of each other, the limit is 3"),
        (TEXT, "gzip", InvalidRequest, "not valid gzip"),
        (b"", "gzip", InvalidRequest, "ends in the middle"),
        (gzip.compress(TEXT)[:-3], "gzip", InvalidRequest, "ends in the middle"),
        (gzip.compress(TEXT) + b"more", "gzip", InvalidRequest, "4 bytes follow its end"),
        (zlib.compress(TEXT), "gzip", InvalidRequest, "not valid gzip"),
        (gzip.compress(TEXT), "deflate", InvalidRequest, "not valid deflate"),
        (gzip.compress(TEXT)[:-8] + b"\0" * 8, "gzip", InvalidRequest, "not valid gzip"),
        (gzip.compress(bytes(LIMIT + 1)), "gzip", RequestTooLarge, "more than 1000 bytes when decompressed"),
        (gzip.compress(gzip.compress(bytes(10**6))), "gzip, gzip", RequestTooLarge, "--max_body_bytes"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body, encoding, error, text):
    with pytest.raises(error) as raised:
        decompress(body, encoding, LIMIT)
    assert text in str(raised.value)


def test_the_limit_itself_is_allowed():
    assert decompress(gzip.compress(bytes(LIMIT)), "gzip", LIMIT) == bytes(LIMIT)


def test_a_bomb_costs_no_more_memory_than_the_limit():
    bomb = gzip.compress(gzip.compress(bytes(50 << 20), 1), 9)
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge):
            decompress(bomb, "gzip, gzip", 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("", ""),
        ("identity", ""),
        ("br, zstd", ""),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("gzip;q=0", ""),
        ("gzip;q=0, deflate", "deflate"),
        ("*", "gzip"),
        ("*;q=0", ""),
        ("gzip;q=0, *", "deflate"),
        ("gzip;q=high", ""),
        (",;,=", ""),
    ],
)
def test_the_encoding_of_an_answer_is_the_one_its_client_likes_best(header, chosen):
    assert accepted(header) == chosen


@given(st.binary(max_size=3000), st.sampled_from(["gzip", "deflate"]))
def test_what_is_compressed_can_be_decompressed(body, encoding):
    assert decompress(compress(body, encoding), encoding, 3000) == body


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "gzip, deflate", "br"]))
def test_any_bytes_are_a_body_or_an_error_of_ours(body, encoding):
    with contextlib.suppress(InvalidRequest, RequestTooLarge, UnsupportedEncoding):
        assert len(decompress(body, encoding, LIMIT)) <= LIMIT


@given(st.text(max_size=50))
def test_any_header_gives_an_encoding_that_we_have(header):
    assert accepted(header) in ("gzip", "deflate", "")
