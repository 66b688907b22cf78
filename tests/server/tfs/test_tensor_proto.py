"""TensorProtos: TensorFlow writes what we read, and reads what we write."""

from contextlib import suppress

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2

from server.errors import InvalidInput, RequestTooLarge, RuntimeFailed, ServingError
from server.protocols import _pb
from server.protocols.tensor_proto import CARRIED, proto_bytes, tensor_of
from server.protocols.varints import varints
from server.tensors import DATATYPES, Tensor

TensorProto = tensor_pb2.TensorProto
MOST = 1 << 20


def ours(proto: TensorProto):
    return _pb.message("TensorProto", "tensorflow").FromString(proto.SerializeToString())


def read(proto: TensorProto, most: int = MOST) -> Tensor:
    return tensor_of("x", ours(proto), most)


def shape(*dims):
    return tensor_shape_pb2.TensorShapeProto(dim=[{"size": n} for n in dims])


def texts(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


ARRAYS = {
    "BOOL": np.array([[True, False], [False, True]]),
    **{n: np.array([0, 1, np.iinfo(n.lower()).max], n.lower()) for n in ("UINT8", "UINT16", "UINT32", "UINT64")},
    **{
        n: np.array([[np.iinfo(n.lower()).min], [-1], [np.iinfo(n.lower()).max]], n.lower())
        for n in ("INT8", "INT16", "INT32", "INT64")
    },
    "FP16": np.array([0.1, -65504, np.inf, np.nan], np.float16),
    "FP32": np.array([[0.1, np.finfo(np.float32).max], [-np.inf, np.nan]], np.float32),
    "FP64": np.array([0.1, 1e308, 5e-324, np.nan]),
    "BYTES": texts(b"plain", "naïve ☃".encode(), b"", b"a\0b\xff"),
}


def dtype_of(name):
    return types_pb2.DataType.Value(CARRIED[name].dtype)


@pytest.mark.parametrize("name", ARRAYS)
def test_what_tensorflow_packs_is_read_as_it_was(name):
    tensor = read(tf.make_tensor_proto(ARRAYS[name]))
    assert (tensor.datatype, tensor.array.dtype) == (name, DATATYPES[name].dtype)
    np.testing.assert_array_equal(tensor.array, ARRAYS[name])


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("of_shape", [(-1,), (0,), ()], ids=["as it is", "empty", "a scalar"])
def test_what_is_written_is_read_by_tensorflow_and_by_us(name, of_shape):
    array = ARRAYS[name].ravel()[:1].reshape(()) if of_shape == () else ARRAYS[name] if of_shape == (-1,) else ARRAYS[name][:0]
    sent = TensorProto.FromString(proto_bytes("y", Tensor(name, array)))
    assert sent.dtype == dtype_of(name)
    assert not sent.tensor_content
    found = tf.make_ndarray(sent)
    assert found.shape == array.shape
    np.testing.assert_array_equal(found.astype(array.dtype), array)
    np.testing.assert_array_equal(read(sent).array, array)


@pytest.mark.parametrize("name", [n for n in ARRAYS if n != "BYTES"])
def test_values_in_the_field_of_their_datatype_are_read(name):
    proto = TensorProto.FromString(proto_bytes("y", Tensor(name, ARRAYS[name])))
    assert len(getattr(proto, CARRIED[name].field)) == ARRAYS[name].size
    np.testing.assert_array_equal(read(proto).array, ARRAYS[name])


def test_bfloat16_is_read_and_written_both_ways():
    value = tf.constant([1.5, -2.0, 3.140625], tf.bfloat16)
    packed = tf.make_tensor_proto(value.numpy())
    for proto in (
        packed,
        TensorProto(dtype=dtype_of("BF16"), tensor_shape=shape(3), half_val=value.numpy().view(np.uint16).tolist()),
    ):
        tensor = read(proto)
        assert (tensor.datatype, tensor.array.tolist()) == ("BF16", [1.5, -2.0, 3.140625])
        assert tf.make_ndarray(TensorProto.FromString(proto_bytes("y", tensor))).astype(float).tolist() == [1.5, -2.0, 3.140625]


@pytest.mark.parametrize(
    ("proto", "want"),
    [
        (TensorProto(dtype=1, tensor_shape=shape(2, 2), float_val=[1, 2]), [[1, 2], [2, 2]]),
        (TensorProto(dtype=2, tensor_shape=shape(3), double_val=[7]), [7, 7, 7]),
        (TensorProto(dtype=9, tensor_shape=shape(2)), [0, 0]),
        (TensorProto(dtype=7, tensor_shape=shape(2)), [b"", b""]),
        (TensorProto(dtype=7, tensor_shape=shape(3), string_val=[b"a", b"b"]), [b"a", b"b", b"b"]),
        (TensorProto(dtype=10, tensor_shape=shape(2), bool_val=[True]), [True, True]),
        (TensorProto(dtype=19, tensor_shape=shape(2), half_val=[0x3C00]), [1.0, 1.0]),
        (TensorProto(dtype=3, int_val=[5]), 5),
    ],
)
def test_values_that_are_left_out_are_the_last_one_as_tensorflow_has_it(proto, want):
    assert read(proto).array.tolist() == want
    if proto.dtype != 7 or proto.string_val:
        assert tf.io.parse_tensor(proto.SerializeToString(), proto.dtype).numpy().tolist() == want


BAD = [
    ("no dtype", TensorProto(tensor_shape=shape(1)), "dtype DT_INVALID, expected one of: DT_BOOL"),
    ("complex", TensorProto(dtype=8, tensor_shape=shape(1)), "dtype DT_COMPLEX64"),
    ("a resource", TensorProto(dtype=20), "dtype DT_RESOURCE"),
    ("one of the future", TensorProto(dtype=99), "dtype 99"),
    ("unknown rank", TensorProto(dtype=1, tensor_shape={"unknown_rank": True}), "unknown rank"),
    ("22: a negative dimension", TensorProto(dtype=1, tensor_shape=shape(-1)), "every dimension must be"),
    ("23: a product that overflows", TensorProto(dtype=1, tensor_shape=shape(2**40, 2**40)), "more elements than any memory"),
    ("too many values", TensorProto(dtype=1, tensor_shape=shape(1), float_val=[1, 2]), "room for 1 values, float_val has 2"),
    ("39: too few bytes", TensorProto(dtype=1, tensor_shape=shape(2), tensor_content=b"1234567"), "needs 8 bytes, got 7"),
    (
        "40: another field",
        TensorProto(dtype=1, tensor_shape=shape(1), double_val=[1]),
        "DT_FLOAT and needs float_val, but double_val is set",
    ),
    ("texts as content", TensorProto(dtype=7, tensor_shape=shape(1), tensor_content=b"a"), "send its values in string_val"),
    (
        "30: out of range",
        TensorProto(dtype=4, tensor_shape=shape(2), int_val=[1, 256]),
        "element 1 is 256, UINT8 goes from 0 to 255",
    ),
    ("30: below it", TensorProto(dtype=6, tensor_shape=shape(1), int_val=[-129]), "element 0 is -129, INT8"),
    ("more bits than a half has", TensorProto(dtype=19, tensor_shape=shape(1), half_val=[65536]), "the bits of a half"),
    ("not quite a boolean", TensorProto(dtype=10, tensor_shape=shape(1), tensor_content=b"\2"), "whose bytes are 0 or 1"),
]


@pytest.mark.parametrize(("proto", "text"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_is_no_tensor_is_refused_with_its_name_and_what_is_wrong(proto, text):
    with pytest.raises(InvalidInput, match="input 'x'") as raised:
        read(proto)
    assert text in str(raised.value)


@pytest.mark.parametrize(("name", "values"), [("FP64", {"double_val": [1.0]}), ("FP64", {}), ("BYTES", {"string_val": [b"a"]})])
def test_a_huge_shape_of_few_values_is_refused_before_there_is_memory_for_it(name, values):
    count = MOST // 8
    fits = TensorProto(dtype=dtype_of(name), tensor_shape=shape(count), **values)
    assert read(fits).array.size == count
    with pytest.raises(RequestTooLarge, match="--max_body_bytes"):
        read(TensorProto(dtype=dtype_of(name), tensor_shape=shape(count + 2), **values))
    with pytest.raises(RequestTooLarge):
        read(TensorProto(dtype=dtype_of(name), tensor_shape=shape(10**15), **values))


def test_an_output_that_is_not_what_its_datatype_says_is_the_models_fault():
    with pytest.raises(RuntimeFailed, match="output 'y' is BYTES, but the model gave int as element 1"):
        proto_bytes("y", Tensor("BYTES", texts("a", 1)))
    with pytest.raises(RuntimeFailed, match="output 'y' should be FP32"):
        proto_bytes("y", Tensor("FP32", np.array([1])))


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_integers_are_packed_as_protobuf_packs_them(values):
    packed = TensorProto(int64_val=values).SerializeToString()
    assert packed.endswith(varints(np.array(values, np.int64)))
    assert TensorProto(int64_val=TensorProto.FromString(packed).int64_val) == TensorProto(int64_val=values)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_tensor_or_refused(data):
    message = _pb.message("TensorProto", "tensorflow")
    try:
        proto = message.FromString(data)
    except DecodeError:
        return
    with suppress(ServingError):
        tensor_of("x", proto, MOST)
