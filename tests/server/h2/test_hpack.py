"""Header blocks between our codec and that of the hpack package, which most Python clients use."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.h2 import hpack as ours
from server.h2.frames import Code, ConnectionFault
from server.h2.hpack import Decoder, encode, huffman_codes, integer, unhuffman

texts = st.binary(max_size=40) | st.sampled_from([b"", b"/", b"POST", b"application/grpc", b"x" * 300])
names = st.sampled_from([name for name, _ in ours.STATIC]) | st.binary(min_size=1, max_size=20)
fields = st.lists(st.tuples(names, texts) | st.sampled_from(ours.STATIC), max_size=12)
PLENTY = 1 << 20


@given(st.lists(st.tuples(fields, st.booleans(), st.sampled_from([None, None, 0, 50, 4096])), max_size=8))
def test_what_another_encoder_has_said_is_understood_however_its_table_changes(blocks):
    encoder, decoder = hpack.Encoder(), Decoder(PLENTY)
    for said, huffman, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode(said, huffman=huffman)
        found = decoder.decode(block)
        assert found.fields == said
        assert found.size == sum(len(n) + len(v) + 32 for n, v in said)


@given(st.lists(fields, max_size=4))
def test_what_we_say_is_understood_and_leaves_no_trace(blocks):
    decoder = hpack.Decoder(max_header_list_size=PLENTY)
    for said in blocks:
        assert [(n, v) for n, v in decoder.decode(encode(said), raw=True)] == said
    assert len(decoder.header_table.dynamic_entries) == 0


@given(st.binary(max_size=300))
def test_any_text_survives_huffman(text):
    coded = hpack.Encoder().huffman_coder.encode(text)
    assert unhuffman(coded) == text


def test_every_symbol_has_the_code_of_the_rfc():
    from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

    assert huffman_codes() == {s: (REQUEST_CODES[s], REQUEST_CODES_LENGTH[s]) for s in range(257)}


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"\x80", "index 0"),
        (b"\xff\xff\x0f", "index 2174 of 61"),
        (b"\xbe", "index 62 of 61"),
        (b"\x7f\x00", "index 63"),
        (b"\x40", "in the middle"),
        (b"\x00\x03ab", "a string ends behind the block"),
        (b"\x00\x01a", "in the middle"),
        (b"\xff", "in the middle"),
        (b"\xff\xff\xff\xff\xff\xff\x7f", "an integer of too many bytes"),
        (b"\x88\x20", "behind a field"),
        (b"\x3f\xe2\x1f", "a table of 4097 bytes"),
        (b"\x00\x81\xff\x00", "padding"),
        (b"\x00\x82\x1f\xff\x00", "padding"),
        (b"\x00\x81\x18\x00", "padding"),
        (b"\x00\x84\xff\xff\xff\xff\x00", "end-of-string"),
    ],
)
def test_a_block_that_is_not_valid_is_a_compression_error(block, why):
    with pytest.raises(ConnectionFault, match=why) as raised:
        Decoder(PLENTY).decode(block)
    assert raised.value.code is Code.COMPRESSION_ERROR


def test_few_bytes_that_stand_for_many_are_too_much():
    decoder = Decoder(64 * 1024)
    value = b"x" * 4000
    decoder.decode(b"\x40\x01a\x7f" + bytes([0xA1, 0x1E]) + value)
    with pytest.raises(ConnectionFault, match="more than 65536 bytes") as raised:
        decoder.decode(b"\xbe" * 1000)
    assert raised.value.code is Code.ENHANCE_YOUR_CALM


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_arbitrary_bytes_are_a_block_or_a_fault_and_nothing_else(blocks):
    decoder = Decoder(PLENTY)
    for block in blocks:
        try:
            decoder.decode(block)
        except ConnectionFault:
            return


@given(st.integers(0, 2**28), st.integers(1, 8))
def test_integers_of_any_prefix_come_back(value, bits):
    coded = hpack.hpack.encode_integer(value, bits)
    assert integer(bytes(coded), 0, bits) == (value, len(coded))
    assert ours._number(value, bits, 0) == bytes(coded)
