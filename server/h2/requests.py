"""What a header block asks for, once it is a request at all (RFC 9113 §8).  Pure."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from server.h2.frames import Code, StreamFault
from server.h2.hpack import Field

_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
# They are about one connection, which in HTTP/2 frames are.
_FORBIDDEN = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_NOT_IN_VALUES = re.compile(rb"[\0\r\n]")


class Request(NamedTuple):
    """`headers` without the pseudo-headers, repeated ones joined; `length` is what `content-length` promises."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    length: int | None


def read_request(fields: Sequence[Field]) -> Request:
    """StreamFault where the fields are not those of a request."""
    pseudo: dict[bytes, bytes] = {}
    headers: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] == b":":
            if headers or name not in _PSEUDO or name in pseudo:
                raise StreamFault(Code.PROTOCOL_ERROR)
            pseudo[name] = value
        else:
            _check(name, value)
            headers[name] = headers[name] + b", " + value if name in headers else value
    path = pseudo.get(b":path", b"")
    if not path or b":method" not in pseudo or b":scheme" not in pseudo:
        raise StreamFault(Code.PROTOCOL_ERROR)
    return Request(pseudo[b":method"], path, headers, _length(headers.get(b"content-length")))


def check_trailers(fields: Sequence[Field]) -> None:
    """StreamFault where the fields may not follow a body."""
    for name, value in fields:
        _check(name, value)


@lru_cache(maxsize=1024)
def _check(name: bytes, value: bytes) -> None:
    unfit = not _NAME.fullmatch(name) or name in _FORBIDDEN or _NOT_IN_VALUES.search(value)
    if unfit or (name == b"te" and value.lower() != b"trailers"):
        raise StreamFault(Code.PROTOCOL_ERROR)


def _length(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise StreamFault(Code.PROTOCOL_ERROR)
    return int(text)
