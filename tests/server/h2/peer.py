"""The other side of a connection: frames as values, to be written and read by tests."""

from typing import NamedTuple

import hpack

from server.h2 import frames
from server.h2.frames import ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEAD, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame

HEADERS_OF_A_CALL = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/inference.GRPCInferenceService/ModelInfer"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> frames.Code:
        """Of a RST_STREAM or GOAWAY."""
        assert self.kind in (RST_STREAM, GOAWAY)
        return frames.Code(int.from_bytes(self.payload[-4:] if self.kind == RST_STREAM else self.payload[4:8], "big"))


def parsed(data: bytes) -> tuple[list[Frame], bytes]:
    """The complete frames, and what is left."""
    found = []
    while len(data) >= 9 and len(data) >= 9 + (data[0] << 16 | data[1] << 8 | data[2]):
        head, flags, stream = HEAD.unpack(data[:9])
        stop = 9 + (head >> 8)
        found.append(Frame(head & 0xFF, flags, stream, data[9:stop]))
        data = data[stop:]
    return found, data


class Answer(NamedTuple):
    """What a stream was answered with: headers, body, trailers; `code` where it was reset."""

    headers: dict
    body: bytes
    trailers: dict
    code: frames.Code | None


class Client:
    """Writes requests and puts answers together; `table` is the size of its dynamic table once it knows better."""

    def __init__(self) -> None:
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder(max_header_list_size=1 << 20)
        self.frames: list[Frame] = []
        self.answers: dict[int, Answer] = {}
        self.ended: set[int] = set()

    def hello(self, **settings: int) -> bytes:
        values = {getattr(frames, name.upper()): value for name, value in settings.items()}
        # as real clients do once they have seen the server's settings
        self.encoder.header_table_size = 0
        return PREFACE + frames.settings(values) + frame(SETTINGS, ACK, 0)

    def headers(self, stream: int, fields=(), end: bool = False, **more: str) -> bytes:
        said = [*(fields or HEADERS_OF_A_CALL), *((name.replace("_", "-"), value) for name, value in more.items())]
        return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, self.encoder.encode(said))

    def request(self, stream: int, body: bytes = b"", fields=(), **more: str) -> bytes:
        return self.headers(stream, fields, **more) + frame(DATA, END_STREAM, stream, body)

    def take(self, found: list[Frame]) -> None:
        for one in found:
            self.frames.append(one)
            if one.kind not in (HEADERS, DATA, RST_STREAM):
                continue
            was = self.answers.get(one.stream, Answer({}, b"", {}, None))
            if one.kind == HEADERS:
                fields = dict(self.decoder.decode(one.payload))
                was = was._replace(trailers=fields) if was.headers else was._replace(headers=fields)
            elif one.kind == DATA:
                was = was._replace(body=was.body + one.payload)
            else:
                was = was._replace(code=one.code)
            self.answers[one.stream] = was
            if one.kind == RST_STREAM or one.flags & END_STREAM:
                self.ended.add(one.stream)

    def of_kind(self, kind: int) -> list[Frame]:
        return [f for f in self.frames if f.kind == kind]
