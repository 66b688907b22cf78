"""HTTP/2's frames and error codes: bytes ↔ values.  Pure."""

import enum
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(1, 7)
LARGEST_WINDOW = 2**31 - 1
SMALLEST_FRAME, LARGEST_FRAME = 2**14, 2**24 - 1
# What holds for both sides until a SETTINGS frame says otherwise.
INITIAL_WINDOW = 65535

# length << 8 | kind, flags, stream
HEAD = struct.Struct(">IBI")
NUMBER = struct.Struct(">I")
_SETTING = struct.Struct(">HI")
_GOAWAY = struct.Struct(">II")


class Code(enum.IntEnum):
    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):
    """The peer has done what no connection can go on after; the text is for whoever debugs it."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class StreamFault(Exception):
    """The peer has done what ends one stream and no other."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.name)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*one) for one in values.items()))


def window_update(stream: int, more: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, NUMBER.pack(more))


def rst_stream(stream: int, code: Code) -> bytes:
    return frame(RST_STREAM, 0, stream, NUMBER.pack(code))


def goaway(last: int, code: Code, text: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last, code) + text.encode())


def header_frames(stream: int, block: bytes, ends: bool, largest: int) -> bytes:
    """A header block as HEADERS and as many CONTINUATIONs as it takes."""
    flags = END_STREAM if ends else 0
    if len(block) <= largest:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    parts = [block[at : at + largest] for at in range(0, len(block), largest)]
    first, *between, last = parts
    return b"".join(
        [
            frame(HEADERS, flags, stream, first),
            *(frame(CONTINUATION, 0, stream, one) for one in between),
            frame(CONTINUATION, END_HEADERS, stream, last),
        ]
    )


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """(identifier, value) in the order sent; ConnectionFault for a value that the RFC forbids."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    values = list(_SETTING.iter_unpack(payload))
    for name, value in values:
        if name == ENABLE_PUSH and value > 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH is {value}")
        if name == INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE is {value}")
        if name == MAX_FRAME_SIZE and not SMALLEST_FRAME <= value <= LARGEST_FRAME:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE is {value}")
    return values


def unpadded(payload: bytes) -> bytes:
    """A PADDED frame's payload without its padding; ConnectionFault where that is longer than the frame."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(Code.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def number(payload: bytes, what: str) -> int:
    """The 31-bit number that is the whole payload of a WINDOW_UPDATE, or the code of a RST_STREAM."""
    if len(payload) != NUMBER.size:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes")
    value: int = NUMBER.unpack(payload)[0]
    return value
