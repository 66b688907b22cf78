"""TensorFlow's TensorProto ↔ tensors: its values as bytes (`tensor_content`) or in the field of their datatype.

Answers carry typed values, because clients that were written by hand read `float_val` and know no `tensor_content`.  Most of
their bytes are put together here: what protobuf packs is, for floats and booleans, just what an array holds.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from server.errors import InvalidInput, RequestTooLarge
from server.protocols import _pb
from server.protocols.raw import checked_shape, element_bytes, raw_from_tensor, tensor_from_raw
from server.protocols.varints import varint, varints
from server.tensors import DATATYPES, Array, Datatype, Tensor, element_count

_TensorProto = _pb.message("TensorProto", "tensorflow")
_DTYPES = _pb.POOL.FindEnumTypeByName("tensorflow.DataType")


class Carried(NamedTuple):
    """How TensorFlow calls a datatype, and the field of a TensorProto for its values."""

    dtype: str
    field: str

    @property
    def number(self) -> int:
        return int(_DTYPES.values_by_name[self.dtype].number)


CARRIED = {
    "BOOL": Carried("DT_BOOL", "bool_val"),
    "UINT8": Carried("DT_UINT8", "int_val"),
    "UINT16": Carried("DT_UINT16", "int_val"),
    "UINT32": Carried("DT_UINT32", "uint32_val"),
    "UINT64": Carried("DT_UINT64", "uint64_val"),
    "INT8": Carried("DT_INT8", "int_val"),
    "INT16": Carried("DT_INT16", "int_val"),
    "INT32": Carried("DT_INT32", "int_val"),
    "INT64": Carried("DT_INT64", "int64_val"),
    "FP16": Carried("DT_HALF", "half_val"),
    "BF16": Carried("DT_BFLOAT16", "half_val"),
    "FP32": Carried("DT_FLOAT", "float_val"),
    "FP64": Carried("DT_DOUBLE", "double_val"),
    "BYTES": Carried("DT_STRING", "string_val"),
}
_DATATYPE_OF = {carried.number: name for name, carried in CARRIED.items()}
_PACKED_AS_THEY_ARE = ("BOOL", "FP32", "FP64")


def tensor_of(name: str, proto: Any, most_bytes: int) -> Tensor:
    """An input; `tensor_content` is not copied.  InvalidInput names what is malformed.

    RequestTooLarge where values that are left out, which repeat the last one, come to more than `most_bytes`.
    """
    if proto.dtype not in _DATATYPE_OF:
        found = _DTYPES.values_by_number.get(proto.dtype)
        served = ", ".join(c.dtype for c in CARRIED.values())
        raise InvalidInput(f"input {name!r} has the dtype {found.name if found else proto.dtype}, expected one of: {served}")
    kind = DATATYPES[_DATATYPE_OF[proto.dtype]]
    shape_proto = proto.tensor_shape
    if shape_proto.unknown_rank:
        raise InvalidInput(f"input {name!r} has a shape of unknown rank; a value has one, send its dimensions")
    shape = checked_shape(name, [dim.size for dim in shape_proto.dim])
    content = proto.tensor_content
    if not content:
        return _typed(name, kind, shape, proto, most_bytes)
    if kind.name == "BYTES":
        raise InvalidInput(f"input {name!r} is DT_STRING with tensor_content; send its values in string_val")
    return tensor_from_raw(name, kind, shape, content)


def _typed(name: str, kind: Datatype, shape: tuple[int, ...], proto: Any, most_bytes: int) -> Tensor:
    field = CARRIED[kind.name].field
    values = getattr(proto, field)
    given, count = len(values), element_count(shape)
    if given > count:
        raise InvalidInput(f"input {name!r} of shape {list(shape)} has room for {count} values, {field} has {given}")
    if not given:
        _refuse_another_field(name, kind, field, proto)
    # a reference for each text, and the text itself only once
    size = (count - given) * (kind.itemsize or 8)
    if size > most_bytes:
        raise RequestTooLarge(
            f"input {name!r} of shape {list(shape)} has {given} values, and with the last of them repeated it is more than"
            f" {most_bytes} bytes, which is the limit (--max_body_bytes)"
        )
    array = _array(name, kind, values)
    if given < count:
        filled = np.empty(count, array.dtype)
        filled[:given] = array
        filled[given:] = array[-1] if given else b"" if kind.name == "BYTES" else 0
        array = filled
    return Tensor(kind.name, array.reshape(shape))


def _refuse_another_field(name: str, kind: Datatype, field: str, proto: Any) -> None:
    """Without any value a tensor is all zeros; values in the field of another datatype are a mistake."""
    others = [d.name for d, _ in proto.ListFields() if d.name.endswith("_val")]
    if others:
        raise InvalidInput(f"input {name!r} is {CARRIED[kind.name].dtype} and needs {field}, but {', '.join(others)} is set")


def _array(name: str, kind: Datatype, values: Any) -> Array:
    elements = values[:]
    if kind.name == "BYTES":
        texts = np.empty(len(elements), object)
        texts[:] = elements
        return texts
    halves = CARRIED[kind.name].field == "half_val"
    dtype = np.dtype("<u2") if halves else kind.dtype
    if CARRIED[kind.name].field not in ("int_val", "half_val"):
        return np.array(elements, dtype)
    wide = np.array(elements, np.int64)
    limits = np.iinfo(dtype)
    outside = np.flatnonzero((wide < limits.min) | (wide > limits.max))
    if outside.size:
        at = int(outside[0])
        what = "the bits of a half" if halves else kind.name
        raise InvalidInput(f"input {name!r}: element {at} is {elements[at]}, {what} goes from {limits.min} to {limits.max}")
    array = wide.astype(dtype)
    return tensor_from_raw(name, kind, array.shape, array.tobytes()).array if halves else array


def proto_bytes(name: str, tensor: Tensor) -> bytes:
    """An output as the bytes of a TensorProto; RuntimeFailed where the array is not what its datatype says."""
    array, kind = tensor.array, tensor.datatype
    head, tag = _head(kind, array.shape), _tag(kind)
    if not array.size:
        return head
    if kind == "BYTES":
        parts = [head]
        for at, value in enumerate(array.ravel().tolist()):
            text = element_bytes(name, at, value)
            parts += tag, varint(len(text)), text
        return b"".join(parts)
    packed = raw_from_tensor(name, tensor)
    if kind not in _PACKED_AS_THEY_ARE:
        packed = varints(np.frombuffer(packed, "<u2" if kind in ("FP16", "BF16") else array.dtype.newbyteorder("<")))
    return b"".join((head, tag, varint(len(packed)), packed))


@lru_cache(maxsize=1024)
def _head(kind: str, shape: tuple[int, ...]) -> bytes:
    message = _TensorProto(dtype=CARRIED[kind].number)
    for n in shape:
        message.tensor_shape.dim.add(size=n)
    # a scalar's shape has no dimensions, which is not the same as no shape
    message.tensor_shape.SetInParent()
    head: bytes = message.SerializeToString()
    return head


@lru_cache(maxsize=32)
def _tag(kind: str) -> bytes:
    number = _TensorProto.DESCRIPTOR.fields_by_name[CARRIED[kind].field].number
    return varint(number << 3 | 2)
