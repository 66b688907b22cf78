"""TFRecord files: length, its checksum, bytes, their checksum, again and again.  The checksums are CRC-32C, masked."""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from server.tensors import Array

_HEAD, _FOOT = struct.Struct("<QI"), struct.Struct("<I")
_POLYNOMIAL, _ALL = 0x82F63B78, 0xFFFFFFFF
# Longer bytes are worked on in so many lanes at once, by numpy.
_LANES, _SHORT = 1024, 4096


class Record(NamedTuple):
    """`wrong` says what is the matter with a record; its bytes are then not to be used."""

    data: bytes
    wrong: str = ""


def records(file: BinaryIO, size: int, largest: int) -> Iterator[Record]:
    """The records of a file of `size` bytes.  Where it can't be told where the next one begins, the wrong one is the last.

    No more is read than is there, whatever a length claims, and no record of more than `largest` bytes.
    """
    at = 0
    while at < size:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            yield Record(b"", f"the file ends {len(head)} bytes into a record's head, at byte {at}")
            return
        length, check = _HEAD.unpack(head)
        if masked(crc32c(head[:8])) != check:
            yield Record(b"", f"the checksum of its length is wrong, at byte {at}: this is no TFRecord file, or a damaged one")
            return
        left = size - at - _HEAD.size - _FOOT.size
        if length > left:
            yield Record(b"", f"it has {length} bytes by its head, and the file {max(0, left)} more: it was cut short")
            return
        if length > largest:
            yield Record(b"", f"it has {length} bytes, the limit is {largest}")
            return
        data = file.read(length)
        (check,) = _FOOT.unpack(file.read(_FOOT.size))
        at += _HEAD.size + length + _FOOT.size
        yield Record(data) if masked(crc32c(data)) == check else Record(b"", "its checksum is wrong: it is damaged")


def masked(crc: int) -> int:
    """As TFRecord stores a checksum, so that the checksum of bytes that hold one is of use."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ALL


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli)."""
    state, at = _ALL, 0
    if len(data) > _SHORT:
        state, at = _by_lanes(data)
    for byte in memoryview(data)[at:]:
        state = _TABLE[(state ^ byte) & 0xFF] ^ state >> 8
    return state ^ _ALL


def _by_lanes(data: bytes) -> tuple[int, int]:
    """The state after as many bytes as lanes of the same length hold, and how many these are.

    A checksum's state is linear in the state before and in the bytes.  So each lane begins at zero, and what a state
    becomes over one lane's length is told by what its 32 bits become over as many zeros: they run along as lanes.
    """
    length = len(data) // _LANES
    columns = np.zeros((length, _LANES + 32), np.uint32)
    columns[:, :_LANES] = np.frombuffer(data, np.uint8, length * _LANES).reshape(_LANES, length).T
    table = np.array(_TABLE, np.uint32)
    states: Array = np.concatenate([np.zeros(_LANES, np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)])
    for column in columns:
        states = table[(states ^ column) & 0xFF] ^ states >> 8
    becomes = [int(v) for v in states[_LANES:]]
    state = _ALL
    for lane in states[:_LANES].tolist():
        moved = lane
        for bit in range(32):
            if state >> bit & 1:
                moved ^= becomes[bit]
        state = moved
    return state, length * _LANES
