import struct
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidInput, RuntimeFailed
from server.protocols.raw import checked_shape, raw_from_tensor, tensor_from_raw
from server.tensors import DATATYPES, Tensor, element_count

FIXED = [d for d in DATATYPES.values() if d.itemsize]
shapes = st.lists(st.integers(0, 4), max_size=5).map(tuple)


def bytes_raw(*elements):
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


@pytest.mark.parametrize(
    "shape",
    [(), (0,), (1,), (3, 0, 2), (1,) * 16, (2**40, 2**19), (0, 2**59)],
)
def test_shapes_that_an_array_can_have_are_accepted_unchanged(shape):
    assert checked_shape("x", list(shape)) == shape


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([-1, 4], "shape [-1, 4]; every dimension must be an integer of 0 or more"),
        ([2, 4.0], "shape [2, 4.0]; every dimension"),
        (["2"], "shape ['2']; every dimension"),
        ([True], "shape [True]; every dimension"),
        ([None], "shape [None]; every dimension"),
        ([1] * 17, "17 dimensions, at most 16"),
        ([2**40, 2**40], "more elements than any memory holds"),
        ([0, 2**62], "more elements than any memory holds"),
        ([10**30], "more elements than any memory holds"),
    ],
)
def test_other_shapes_are_refused_with_the_inputs_name(shape, said):
    with pytest.raises(InvalidInput) as error:
        checked_shape("x", shape)
    assert "input 'x'" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("datatype", FIXED, ids=lambda d: d.name)
@given(shape=shapes, data=st.data())
def test_a_tensor_of_any_bits_comes_back_as_the_same_bytes(datatype, shape, data):
    size = element_count(shape) * datatype.itemsize
    if datatype.name == "BOOL":
        raw = bytes(data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))
    else:
        raw = data.draw(st.binary(min_size=size, max_size=size))
    tensor = tensor_from_raw("x", datatype, shape, raw)
    assert tensor.datatype == datatype.name
    assert (tensor.array.shape, tensor.array.dtype) == (shape, datatype.dtype)
    assert raw_from_tensor("y", tensor) == raw


@given(shape=shapes, data=st.data())
def test_bytes_elements_come_back_whatever_is_in_them(shape, data):
    count = element_count(shape)
    elements = data.draw(st.lists(st.one_of(st.binary(max_size=9), st.just(b"\0\xff")), min_size=count, max_size=count))
    raw = bytes_raw(*elements)
    tensor = tensor_from_raw("x", DATATYPES["BYTES"], shape, memoryview(raw))
    assert tensor.array.shape == shape
    assert tensor.array.ravel().tolist() == elements
    assert raw_from_tensor("y", tensor) == raw


@pytest.mark.parametrize(
    ("datatype", "raw", "values"),
    [
        ("BOOL", b"\0\1", [False, True]),
        ("UINT16", b"\x01\x02", [0x0201]),
        ("INT8", b"\xff", [-1]),
        ("INT64", b"\xfe" + b"\xff" * 7, [-2]),
        ("FP16", b"\x00\x3e", [1.5]),
        ("BF16", b"\xc0\x3f\x80\xff", [1.5, -np.inf]),
        ("FP32", b"\0\0\xc0\x3f\0\0\x80\x7f", [1.5, np.inf]),
        ("FP64", b"\0\0\0\0\0\0\xf8\xbf", [-1.5]),
        ("BYTES", b"\x02\0\0\0a\0\0\0\0\0", [b"a\0", b""]),
    ],
)
def test_raw_bytes_are_little_endian(datatype, raw, values):
    tensor = tensor_from_raw("x", DATATYPES[datatype], (len(values),), raw)
    assert tensor.array.tolist() == values
    assert raw_from_tensor("y", tensor) == raw


@pytest.mark.parametrize("datatype", ["INT32", "FP64", "BOOL"])
def test_a_bytes_buffer_is_viewed_and_not_copied(datatype):
    raw = bytes(6 * DATATYPES[datatype].itemsize)
    array = tensor_from_raw("x", DATATYPES[datatype], (2, 3), raw).array
    assert np.shares_memory(array, np.frombuffer(raw, np.uint8))
    assert not array.flags.writeable


@pytest.mark.parametrize("start", range(8))
def test_a_slice_of_a_writable_body_gives_an_aligned_read_only_array(start):
    body = memoryview(bytearray(b"-" * start + np.array([1.5, -2.5]).tobytes()))
    array = tensor_from_raw("x", DATATYPES["FP64"], (2,), body[start:]).array
    assert array.tolist() == [1.5, -2.5]
    assert array.flags.aligned
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "said"),
    [
        ("FP32", (2, 4), bytes(31), "of shape [2, 4] and datatype FP32 needs 32 bytes, got 31"),
        ("FP32", (2, 4), bytes(33), "needs 32 bytes, got 33"),
        ("BF16", (2,), bytes(8), "datatype BF16 needs 4 bytes, got 8"),
        ("INT64", (), b"", "needs 8 bytes, got 0"),
        ("UINT8", (0, 4), b"\0", "needs 0 bytes, got 1"),
        ("FP32", (2**29, 2**29), bytes(16), "needs 1152921504606846976 bytes, got 16"),
        ("BOOL", (3,), b"\0\1\x07", "bytes are 0 or 1; element 2 is 7"),
        ("BYTES", (2,), bytes_raw(b"ab") + b"\x09\0\0\0c", "element 1 at offset 6 claims 9 bytes, but only 1 are left"),
        ("BYTES", (2,), bytes_raw(b"ab") + b"\x09\0", "element 1 at offset 6 needs a 4-byte length, but only 2 bytes are left"),
        ("BYTES", (2,), bytes_raw(b"abcd"), "element 1 at offset 8 needs a 4-byte length, but only 0 bytes are left"),
        ("BYTES", (1,), bytes_raw(b"a", b""), "4 unexpected bytes at offset 5, after the last of 1 BYTES elements"),
        ("BYTES", (0,), b"a", "1 unexpected bytes at offset 0, after the last of 0 BYTES elements"),
        ("BYTES", (2,), b"\xff\xff\xff\xff" + b"a" * 8, "element 0 at offset 0 claims 4294967295 bytes, but only 8 are left"),
        ("BYTES", (2**40,), bytes(8), "needs 1099511627776 BYTES elements, and 8 bytes have no room"),
    ],
)
def test_a_buffer_that_does_not_hold_the_tensor_is_refused_without_allocating_it(datatype, shape, raw, said):
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput) as error:
            tensor_from_raw("x", DATATYPES[datatype], shape, raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "input 'x'" in str(error.value)
    assert said in str(error.value)
    assert peak < 100_000


@given(st.binary(max_size=40), st.integers(0, 6))
def test_any_buffer_is_either_refused_or_holds_exactly_the_bytes_elements(raw, count):
    try:
        tensor = tensor_from_raw("x", DATATYPES["BYTES"], (count,), raw)
    except InvalidInput:
        return
    assert raw_from_tensor("y", tensor) == raw


def test_every_bf16_including_each_nan_comes_back_with_its_own_bits():
    raw = np.arange(2**16, dtype="<u2").tobytes()
    assert raw_from_tensor("y", tensor_from_raw("x", DATATYPES["BF16"], (2**16,), raw)) == raw


@pytest.mark.parametrize(
    ("single", "half"),
    [
        (0x3F808000, 0x3F80),  # half way, and the lower one is even
        (0x3F818000, 0x3F82),  # half way, and the upper one is even
        (0x3F808001, 0x3F81),
        (0x3F807FFF, 0x3F80),
        (0x80000000, 0x8000),
        (0x00000001, 0x0000),
        (0x7F7FFFFF, 0x7F80),  # nearer to what follows the largest
        (0xFF800000, 0xFF80),
        (0x7F800001, 0x7FC0),  # a NaN, although its upper half alone would be infinity
        (0xFFFFFFFF, 0xFFFF),
    ],
)
def test_fp32_is_rounded_to_bf16(single, half):
    assert bf16_bits(np.array([single], np.uint32).view(np.float32)) == [half]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_no_other_bf16_is_nearer_than_the_one_chosen(value):
    exact = Fraction(value)
    (bits,) = bf16_bits(np.array([value], np.float32))
    sign, magnitude = bits & 0x8000, bits & 0x7FFF
    for neighbour in {max(magnitude - 1, 0), min(magnitude + 1, 0x7F80)} - {magnitude}:
        mine, other = abs(exact - bf16_value(sign | magnitude)), abs(exact - bf16_value(sign | neighbour))
        assert mine < other or (mine == other and not magnitude & 1)


def bf16_bits(array):
    return np.frombuffer(raw_from_tensor("y", Tensor("BF16", array)), "<u2").tolist()


def bf16_value(bits):
    """The exact value, with infinity where the next number would be if the exponents went on."""
    exponent, fraction = (bits >> 7) & 0xFF, bits & 0x7F
    magnitude = Fraction(fraction if not exponent else fraction + 128) * Fraction(2) ** (max(exponent, 1) - 134)
    return -magnitude if bits & 0x8000 else magnitude


@pytest.mark.parametrize(
    ("array", "same"),
    [
        (np.arange(6, dtype=np.int32).reshape(2, 3).T, [0, 3, 1, 4, 2, 5]),
        (np.arange(6, dtype=np.int32)[::-2], [5, 3, 1]),
        (np.arange(3, dtype=">i4"), [0, 1, 2]),
        (np.array(7, np.int32), [7]),
        (np.empty((0, 3), np.int32), []),
    ],
    ids=["transposed", "stepped", "big-endian", "scalar", "empty"],
)
def test_outputs_are_written_in_row_major_order_however_they_lie_in_memory(array, same):
    assert raw_from_tensor("y", Tensor("INT32", array)) == np.array(same, "<i4").tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["é", ""]),
        np.array(["é", ""], object),
        np.array(["é".encode(), None], object),
        np.array(["é".encode(), b""]),
        np.array(["é", ""], np.dtypes.StringDType()),
        np.array([np.str_("é"), np.bytes_(b"")], object),
    ],
    ids=["unicode", "str", "bytes and None", "fixed bytes", "StringDType", "numpy scalars"],
)
def test_outputs_of_text_are_written_as_utf_8_whatever_array_holds_them(array):
    assert raw_from_tensor("y", Tensor("BYTES", array)) == bytes_raw("é".encode(), b"")


@pytest.mark.parametrize(
    ("datatype", "array", "said"),
    [
        ("FP32", np.zeros(1, np.float64), "output 'y' should be FP32, but the model gave an array of float64"),
        ("BF16", np.zeros(1, np.float16), "output 'y' should be BF16, but the model gave an array of float16"),
        ("INT64", np.array([1], object), "output 'y' should be INT64, but the model gave an array of object"),
        ("BYTES", np.array(["a", 3], object), "output 'y' is BYTES, but the model gave int as element 1"),
        ("BYTES", np.array(["\ud800"], object), "output 'y': element 0 can't be written as UTF-8"),
    ],
)
def test_an_output_that_is_not_what_its_datatype_says_is_the_models_fault(datatype, array, said):
    with pytest.raises(RuntimeFailed) as error:
        raw_from_tensor("y", Tensor(datatype, array))
    assert said in str(error.value)
