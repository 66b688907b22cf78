"""Integers as protobuf writes them, for messages that are put together by hand."""

import numpy as np

from server.tensors import Array


def varint(value: int) -> bytes:
    """A number of 0 or more as protobuf writes it."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varints(values: Array) -> bytes:
    """Integers as protobuf packs them: seven bits a byte, the lowest first; negative ones are their 64 bits."""
    words = values.astype(np.uint64 if values.dtype.kind == "u" else np.int64).view(np.uint64)
    largest = int(words.max(initial=0))
    if largest < 0x80:
        return words.astype(np.uint8).tobytes()
    places = np.arange(-(-largest.bit_length() // 7), dtype=np.uint64)
    sevens = (words[:, None] >> places * np.uint64(7)) & np.uint64(0x7F)
    # of each number, how many of its places are written: up to the last that is not zero
    used = np.maximum(1, ((sevens != 0) * (places + np.uint64(1))).max(axis=1))
    more = places < used[:, None] - 1
    octets: Array = (sevens | np.where(more, np.uint64(0x80), np.uint64(0))).astype(np.uint8)
    written: Array = octets[places < used[:, None]]
    return written.tobytes()
