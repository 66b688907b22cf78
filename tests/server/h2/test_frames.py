import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.h2 import frames
from server.h2.frames import Code, ConnectionFault


@given(st.dictionaries(st.integers(8, 2**16 - 1), st.integers(0, 2**32 - 1), max_size=5))
def test_settings_come_back(values):
    sent = frames.settings(values)
    length, flags, stream = frames.HEAD.unpack(sent[:9])
    assert (length, flags, stream) == ((len(sent) - 9) << 8 | frames.SETTINGS, 0, 0)
    assert frames.read_settings(sent[9:]) == list(values.items())


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (frames.ENABLE_PUSH, 2, Code.PROTOCOL_ERROR),
        (frames.INITIAL_WINDOW_SIZE, 2**31, Code.FLOW_CONTROL_ERROR),
        (frames.MAX_FRAME_SIZE, 2**14 - 1, Code.PROTOCOL_ERROR),
        (frames.MAX_FRAME_SIZE, 2**24, Code.PROTOCOL_ERROR),
    ],
)
def test_a_setting_that_can_not_be_is_an_error_of_the_connection(name, value, code):
    with pytest.raises(ConnectionFault) as raised:
        frames.read_settings(struct.pack(">HI", name, value))
    assert raised.value.code is code


@given(st.binary(min_size=0, max_size=100), st.integers(1, 40), st.booleans())
def test_a_header_block_is_cut_into_frames_of_the_peers_size(block, largest, ends):
    sent, parts, flags = frames.header_frames(5, block, ends, largest), [], []
    while sent:
        head, flag, stream = frames.HEAD.unpack(sent[:9])
        assert stream == 5
        assert head & 0xFF == (frames.CONTINUATION if parts else frames.HEADERS)
        parts.append(sent[9 : 9 + (head >> 8)])
        flags.append(flag)
        sent = sent[9 + (head >> 8) :]
    assert b"".join(parts) == block
    assert max(map(len, parts)) <= largest
    assert [bool(f & frames.END_HEADERS) for f in flags] == [False] * (len(flags) - 1) + [True]
    assert bool(flags[0] & frames.END_STREAM) == ends


@pytest.mark.parametrize(("padded", "plain"), [(b"\0ab", b"ab"), (b"\2ab\0\0", b"ab"), (b"\0", b""), (b"\2\0\0", b"")])
def test_padding_is_taken_off(padded, plain):
    assert frames.unpadded(padded) == plain


@pytest.mark.parametrize("padded", [b"", b"\1", b"\3ab"])
def test_padding_longer_than_its_frame_is_an_error(padded):
    with pytest.raises(ConnectionFault) as raised:
        frames.unpadded(padded)
    assert raised.value.code is Code.PROTOCOL_ERROR
