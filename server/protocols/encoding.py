"""Content-Encoding of HTTP bodies, both ways: gzip and deflate (which is zlib's framing).  Pure, bounded."""

import zlib

from server.errors import InvalidRequest, RequestTooLarge, UnsupportedEncoding

# zlib's window parameter for each framing
_WINDOW = {"gzip": 31, "deflate": 15}
SUPPORTED = "gzip, deflate"
# Deflate makes at most so many bytes of one.
MOST_EXPANSION = 1032
# One is what clients use; each costs as much as the limit on the body allows.
MOST_ENCODINGS = 3
# Below this a compressed answer saves nothing worth the CPU.
SMALLEST = 1024


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The body as it was before `Content-Encoding`; RequestTooLarge as soon as it passes `limit` bytes."""
    encodings = [e for e in (e.strip().lower() for e in encoding.split(",")) if e not in ("", "identity")]
    if len(encodings) > MOST_ENCODINGS:
        raise UnsupportedEncoding(f"the body has {len(encodings)} encodings on top of each other, the limit is {MOST_ENCODINGS}")
    for one in reversed(encodings):
        window = _WINDOW.get(one.removeprefix("x-"))
        if window is None:
            raise UnsupportedEncoding(f"Content-Encoding {one[:40]!r} is not supported; send one of: {SUPPORTED}")
        body = _inflate(body, one, window, limit)
    return body


def _inflate(body: bytes, encoding: str, window: int, limit: int) -> bytes:
    inflater = zlib.decompressobj(window)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not valid {encoding}: {error}") from None
    if len(plain) > limit:
        raise RequestTooLarge(f"the body is more than {limit} bytes when decompressed; the limit is --max_body_bytes")
    if not inflater.eof:
        raise InvalidRequest(f"the body is not valid {encoding}: it ends in the middle")
    if inflater.unused_data:
        raise InvalidRequest(f"the body is not valid {encoding}: {len(inflater.unused_data)} bytes follow its end")
    return plain


def accepted(header: str) -> str:
    """The encoding to answer with for an `Accept-Encoding`: "gzip", "deflate" or "" for none."""
    weights: dict[str, float] = {}
    for entry in header.split(","):
        name, _, rest = entry.strip().partition(";")
        weight = 1.0
        if rest.strip().startswith("q="):
            try:
                weight = float(rest.strip()[2:])
            except ValueError:
                weight = 0.0
        weights[name.strip().lower()] = weight
    best = max(_WINDOW, key=lambda e: weights.get(e, weights.get("*", 0.0)))
    return best if weights.get(best, weights.get("*", 0.0)) > 0 else ""


def compress(body: bytes, encoding: str) -> bytes:
    """The body in an encoding that `accepted` gave."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, _WINDOW[encoding])
    return deflater.compress(body) + deflater.flush()
