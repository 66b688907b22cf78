"""Tensors as raw bytes, the way Open Inference's gRPC and its REST binary extension both carry them.

Row-major, little-endian, without padding; a BYTES element is preceded by its length in four bytes.  Only bytes and
arrays in here: neither JSON nor protobuf, and nothing about requests.
"""

import struct
import sys
from collections.abc import Sequence

import numpy as np

from server.errors import InvalidInput, RuntimeFailed
from server.tensors import DATATYPES, Array, Datatype, Tensor, element_count

MAX_RANK = 16
# Inputs, and requested outputs, of one request.
MAX_TENSORS = 1024
# What numpy can index with eight-byte elements; a zero elsewhere in the shape does not excuse the other dimensions.
_MAX_ELEMENTS = sys.maxsize // 8
_LENGTH = struct.Struct("<I")


def checked_shape(name: str, shape: Sequence[object]) -> tuple[int, ...]:
    """A request's shape as integers that an array can have; InvalidInput otherwise.  Nothing is allocated."""
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"input {name!r} has {len(shape)} dimensions, at most {MAX_RANK} are accepted")
    dims: list[int] = []
    extent = 1
    for dim in shape:
        if type(dim) is not int or dim < 0:
            raise InvalidInput(f"input {name!r} has shape {list(shape)}; every dimension must be an integer of 0 or more")
        dims.append(dim)
        extent *= dim or 1
    if extent > _MAX_ELEMENTS:
        raise InvalidInput(f"input {name!r} has shape {dims}, which is more elements than any memory holds")
    return tuple(dims)


def tensor_from_raw(name: str, datatype: Datatype, shape: tuple[int, ...], buffer: bytes | memoryview) -> Tensor:
    """The tensor in a buffer of exactly its size, as a read-only view wherever the bytes already are the array.

    `shape` comes from `checked_shape`.  InvalidInput where the buffer does not hold that many elements.
    """
    count = element_count(shape)
    size = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
    if not datatype.itemsize:
        return Tensor(datatype.name, _bytes_elements(name, shape, count, bytes(buffer)))
    if size != count * datatype.itemsize:
        raise InvalidInput(
            f"input {name!r} of shape {list(shape)} and datatype {datatype.name}"
            f" needs {count * datatype.itemsize} bytes, got {size}"
        )
    if datatype.name == "BF16":
        return Tensor("BF16", _from_bf16(np.frombuffer(buffer, "<u2")).reshape(shape))
    if datatype.name == "BOOL":
        _check_bools(name, buffer)
    array: Array = np.ndarray(shape, datatype.dtype, buffer)
    if type(buffer) is not bytes:  # `bytes` are aligned and read-only; a slice of a larger body may be neither
        array = array if array.flags.aligned else array.copy()
        array.flags.writeable = False
    return Tensor(datatype.name, array)


def raw_from_tensor(name: str, tensor: Tensor) -> bytes:
    """The bytes of an output; None among BYTES becomes an empty element.

    RuntimeFailed where the array is not what its datatype says.
    """
    wanted, array = DATATYPES[tensor.datatype], tensor.array
    if not wanted.itemsize:
        return _bytes_raw(name, array)
    if array.dtype != wanted.dtype:
        if array.dtype.newbyteorder("=") != wanted.dtype:
            raise RuntimeFailed(f"output {name!r} should be {wanted.name}, but the model gave an array of {array.dtype}")
        array = array.astype(wanted.dtype)
    if wanted.name == "BF16":
        array = _to_bf16(array)
    return array.tobytes()


def _check_bools(name: str, buffer: bytes | memoryview) -> None:
    octets = np.frombuffer(buffer, np.uint8)
    if octets.max(initial=0) > 1:
        at = int((octets > 1).argmax())
        raise InvalidInput(f"input {name!r} is BOOL, whose bytes are 0 or 1; element {at} is {octets[at]}")


def _from_bf16(halves: Array) -> Array:
    """BF16 is the upper half of an FP32."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _to_bf16(array: Array) -> Array:
    """The nearest BF16, the even one of two equally near; a NaN stays one, with what fits of its payload."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    upper = bits >> 16
    rounded = (bits + (np.uint32(0x7FFF) + (upper & 1))) >> 16
    nans = np.where(upper & 0x7F, upper, upper | 0x40)
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, nans, rounded).astype("<u2")


def _bytes_elements(name: str, shape: tuple[int, ...], count: int, data: bytes) -> Array:
    if count * _LENGTH.size > len(data):
        raise InvalidInput(
            f"input {name!r} of shape {list(shape)} needs {count} BYTES elements,"
            f" and {len(data)} bytes have no room for the {count * _LENGTH.size} bytes of their lengths"
        )
    elements: list[bytes] = []
    append, length_at, at = elements.append, _LENGTH.unpack_from, 0
    try:
        for _ in range(count):
            start = at + 4
            at = start + length_at(data, at)[0]
            append(data[start:at])
    except struct.error:
        at = -1
    if at != len(data):  # looked at once, after the walk: a slice past the end is short, never an error
        raise InvalidInput(f"input {name!r}: {_bytes_fault(data, count)}")
    array = np.empty(count, object)
    array[:] = elements
    array.flags.writeable = False
    return array.reshape(shape)


def _bytes_fault(data: bytes, count: int) -> str:
    """What is wrong with length-prefixed elements that do not fill their buffer exactly."""
    at = 0
    for index in range(count):
        left = len(data) - at - _LENGTH.size
        if left < 0:
            return f"BYTES element {index} at offset {at} needs a 4-byte length, but only {len(data) - at} bytes are left"
        length = _LENGTH.unpack_from(data, at)[0]
        if length > left:
            return f"BYTES element {index} at offset {at} claims {length} bytes, but only {left} are left"
        at += _LENGTH.size + length
    return f"{len(data) - at} unexpected bytes at offset {at}, after the last of {count} BYTES elements"


def _bytes_raw(name: str, array: Array) -> bytes:
    parts: list[bytes] = []
    for at, value in enumerate(array.ravel().tolist()):
        element = element_bytes(name, at, value) if type(value) is not bytes else value
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def element_bytes(name: str, at: int, value: object) -> bytes:
    """A BYTES output's element; None is an empty one.  RuntimeFailed where it is no text."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RuntimeFailed(f"output {name!r} is BYTES, but the model gave {type(value).__name__} as element {at}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise RuntimeFailed(f"output {name!r}: element {at} can't be written as UTF-8 ({error.reason})") from error
