"""V2 JSON and its binary extension: what is understood, what is refused with which words, and that nothing is lost."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.errors import InvalidInput, InvalidRequest, NotSupported
from server.protocols import json_values, v2_json
from server.tensors import DATATYPES, InferResponse, Tensor


def body(data, datatype="FP32", shape=None, **more):
    tensor = {"name": "x", "shape": list(np.shape(data)) if shape is None else shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [{**tensor, **more}]}).encode()


def only(raw, **options):
    request, _ = v2_json.decode("m", raw, **options)
    return request.inputs["x"].array


GOOD = [
    ("flat data", body([1, 2.5, 3, 4], shape=[2, 2]), [[1, 2.5], [3, 4]]),
    ("nested data", body([[1, 2.5], [3, 4]]), [[1, 2.5], [3, 4]]),
    ("pretty-printed", json.dumps(json.loads(body([[1.5], [2]])), indent=2).encode(), [[1.5], [2]]),
    ("rank 0", b'{"inputs":[{"name":"x","shape":[],"datatype":"FP32","data":[7]}]}', 7.0),
    ("rank 0 without a list", b'{"inputs":[{"name":"x","shape":[],"datatype":"FP32","data":7}]}', 7.0),
    ("no rows", body([], shape=[0, 4]), np.zeros((0, 4)).tolist()),
    ("integers for floats", body([1, 2]), [1.0, 2.0]),
    ("whole floats for integers", body([1.0, 2.0], "INT32"), [1, 2]),
    ("the datatype in lower case", body([1], "int8"), [1]),
    ("booleans", body([True, False], "BOOL"), [True, False]),
    ("strings", body(["a", "", "é", '"data"'], "BYTES"), [b"a", b"", "é".encode(), b'"data"']),
    ("nested strings", body([["a"], ["b"]], "BYTES"), [[b"a"], [b"b"]]),
    ("the largest unsigned", body([2**64 - 1], "UINT64"), [2**64 - 1]),
    ("half precision", body([0.5], "FP16"), [0.5]),
    ("unknown fields", body([1.0], colour="red"), [1.0]),
]


@pytest.mark.parametrize(("raw", "want"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_a_good_request_is_understood(raw, want):
    assert only(raw).tolist() == want


@pytest.mark.parametrize("token", ["NaN", "null"])
def test_missing_numbers_are_nan(token):
    array = only(b'{"inputs":[{"name":"x","shape":[3],"datatype":"FP64","data":[1.0,%s,-Infinity]}]}' % token.encode())
    assert math.isnan(array[1])
    assert array[2] == -math.inf


def test_a_missing_string_is_none():
    assert only(body(["a", None], "BYTES")).tolist() == [b"a", None]


def test_tokens_that_are_not_json_are_refused_where_json_is_strict():
    with pytest.raises(InvalidInput, match="strict-json"):
        v2_json.decode("m", b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":[NaN]}]}', None, True)


X = '{"name":"x","shape":[1],"datatype":"FP32","data":[1]}'
BAD = [
    ("1: not JSON", b'{"inputs": [', "not valid JSON.*byte 12"),
    ("2: empty", b"", "empty"),
    ("2: blanks", b"  \n", "empty"),
    ("3: a list", b"[1]", "expected a JSON object, got a list"),
    ("3: a number", b"3", "expected a JSON object, got a number"),
    ("4: deep", b"[" * 10_000, "nested deeper than 64"),
    ("4: deep in data", body([[1]]).replace(b"[[1]]", b"[" * 5000 + b"]" * 5000), "nested deeper"),
    ("9: not UTF-8", b'{"inputs": "\xff"}', "not UTF-8: byte 12"),
    ("9: half a surrogate", body(["?"], "BYTES").replace(b"?", b"\\ud800"), "surrogate"),
    ("10: a key twice", f'{{"inputs":[{X[:-1]},"data":[2]}}]}}'.encode(), "duplicate key 'data'"),
    ("10: inputs twice", f'{{"inputs":[{X}],"inputs":[{X}]}}'.encode(), "duplicate key 'inputs'"),
    ("11: no inputs", b"{}", "missing 'inputs'"),
    ("11: null inputs", b'{"inputs":null}', "'inputs' is a null"),
    ("11: inputs an object", b'{"inputs":{}}', "'inputs' is a object|'inputs' is an? object"),
    ("11: empty inputs", b'{"inputs":[]}', "empty"),
    ("15: an input twice", f'{{"inputs":[{X},{X}]}}'.encode(), "'x' is given twice"),
    ("17: an unknown datatype", body([1], "FLOAT32"), "unknown datatype 'FLOAT32'; did you mean 'FP32'"),
    ("17: another", body([1], "string"), "did you mean 'BYTES'"),
    ("19: too few", body([1, 2, 3], shape=[2, 2]), r"shape \[2, 2\] needs 4 values, data has 3"),
    ("20: ragged", body([1]).replace(b"[1]}", b"[[1,2],[3]]}"), "not rectangular"),
    ("20: mixed depth", body([1]).replace(b"[1]}", b"[1,[2]]}"), "not rectangular"),
    ("21: nested otherwise", body([[1, 2], [3, 4]], shape=[4, 1]), r"nested as \[2, 2\], but shape says \[4, 1\]"),
    ("22: a negative dimension", body([1], shape=[-1]), "-1"),
    ("23: an overflowing shape", body([1], shape=[2**40, 2**40]), "more elements than any memory holds"),
    ("25: a dimension 2.0", body([1, 2], shape=[2.0]), "2.0"),
    ("25: a dimension '2'", body([1, 2], shape=["2"]), "'2'"),
    ("25: a dimension true", body([1], shape=[True]), "True"),
    ("25: shape a number", body([1], shape=1), "shape is a number"),
    ("30: out of range", body([300], "UINT8"), r"300 at element 0 is out of range for UINT8 \(0 to 255\)"),
    ("30: negative unsigned", body([-1], "UINT32"), "-1 at element 0 is out of range"),
    ("30: beyond 64 bits", body([2**64], "INT64"), "out of range for INT64"),
    ("31: a fraction", body([0, 1.5], "INT32"), "expected an integer .* at element 1, got the number 1.5"),
    ("32: overflows", body([1e39]), "overflows FP32"),
    ("33: NaN for an integer", body([1], "INT32").replace(b"[1]}", b"[NaN]}"), "expected an integer"),
    ("33: null for an integer", body([None], "INT32"), "expected an integer .* got the null"),
    ("34: a string for a number", body(["3.5"]), "expected a number .* got the string"),
    ("35: a boolean for a number", body([True]), "expected a number .* got the boolean true"),
    ("35: a number for a boolean", body([1], "BOOL"), "expected true or false"),
    ("53: id a number", f'{{"id":1,"inputs":[{X}]}}'.encode(), "id is a number, expected a string"),
    ("51: a nested parameter", f'{{"parameters":{{"a":{{}}}},"inputs":[{X}]}}'.encode(), "parameter 'a' is a dict"),
    ("51: a reserved parameter", f'{{"parameters":{{"triton_a":1}},"inputs":[{X}]}}'.encode(), "reserved"),
    ("52: timeout negative", f'{{"parameters":{{"timeout":-5}},"inputs":[{X}]}}'.encode(), "-5; it must be"),
    ("52: timeout a fraction", f'{{"parameters":{{"timeout":1.5}},"inputs":[{X}]}}'.encode(), "1.5; it must be"),
    ("no name", b'{"inputs":[{"shape":[1],"datatype":"FP32","data":[1]}]}', "needs a name"),
    ("no shape", b'{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}', "'x' has no shape"),
    ("no data", b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}', "exactly one of data and binary_data_size, got neither"),
    ("an input a number", b'{"inputs":[1]}', r"inputs\[0\] is a number"),
    ("an output without a name", f'{{"inputs":[{X}],"outputs":[{{}}]}}'.encode(), r"outputs\[0\] needs a name"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "text"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_request_is_refused_with_a_text_that_says_where(raw, text):
    with pytest.raises(InvalidRequest, match=text):
        v2_json.decode("m", raw)


def binary(head, tail, length=None):
    text = json.dumps(head).encode()
    return text + tail, str(len(text) if length is None else length)


def tensor(size, datatype="FP32", shape=(2,), **more):
    return {"name": "x", "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}, **more}


def test_binary_data_is_a_view_of_the_body_in_input_order():
    head = {"inputs": [tensor(8), {**tensor(2, "BOOL"), "name": "y"}]}
    raw, length = binary(head, struct.pack("<ff", 1.5, -2.0) + b"\1\0")
    request, _ = v2_json.decode("m", raw, length)
    assert request.inputs["x"].array.tolist() == [1.5, -2.0]
    assert request.inputs["y"].array.tolist() == [True, False]
    assert not request.inputs["x"].array.flags.owndata


BAD_BINARY = [
    ("39: too short for the shape", {"inputs": [tensor(7)]}, b"1234567", None, "7"),
    ("43: more than there is", {"inputs": [tensor(8)]}, b"1234", None, "only 4 bytes"),
    ("43: left over", {"inputs": [tensor(8)]}, b"123456789", None, "1 bytes of binary data are left over"),
    (
        "43: beside data",
        {"inputs": [tensor(8, data=[1, 2])]},
        b"12345678",
        None,
        "exactly one of .* got data and binary_data_size",
    ),
    ("43: a boolean size", {"inputs": [tensor(True)]}, b"12345678", None, "binary_data_size is True"),
    ("36: an element past the end", {"inputs": [tensor(6, "BYTES", (1,))]}, b"\5\0\0\0ab", None, "element 0"),
    ("36: trailing bytes", {"inputs": [tensor(6, "BYTES", (1,))]}, b"\1\0\0\0ab", None, "BYTES|bytes"),
    ("42: not a number", {"inputs": [tensor(8)]}, b"12345678", "abc", "'abc', expected"),
    ("42: negative", {"inputs": [tensor(8)]}, b"12345678", "-1", "'-1', expected"),
    ("42: beyond the body", {"inputs": [tensor(8)]}, b"12345678", "10000", "'10000', expected"),
    ("42: in the middle of the JSON", {"inputs": [tensor(8)]}, b"12345678", "10", "not valid JSON"),
]


@pytest.mark.parametrize(("head", "tail", "length", "text"), [b[1:] for b in BAD_BINARY], ids=[b[0] for b in BAD_BINARY])
def test_bad_binary_data_is_refused(head, tail, length, text):
    raw, found = binary(head, tail, length)
    with pytest.raises(InvalidRequest, match=text):
        v2_json.decode("m", raw, found)


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_shared_memory_is_not_offered(where):
    document = json.loads(body([1.0]))
    if where == "inputs":
        document["inputs"][0] = tensor(0) | {"parameters": {"shared_memory_region": "r"}}
    else:
        document["outputs"] = [{"name": "y", "parameters": {"shared_memory_region": "r"}}]
    with pytest.raises(NotSupported, match="shared.memory"):
        v2_json.decode("m", json.dumps(document).encode())


@pytest.mark.parametrize(
    ("more", "binary_names"),
    [
        ({}, []),
        ({"parameters": {"binary_data_output": True}}, ["a", "b"]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}],
            },
            ["b"],
        ),
        ({"outputs": [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]}, ["a"]),
    ],
)
def test_each_output_is_written_as_it_was_asked_for(more, binary_names):
    _, wanted = v2_json.decode("m", json.dumps({**json.loads(body([1.0])), **more}).encode())
    assert [n for n in ("a", "b") if wanted.is_binary(n)] == binary_names


def test_the_id_timeout_and_outputs_of_a_request_are_kept():
    raw = json.dumps({**json.loads(body([1.0])), "id": "7", "parameters": {"timeout": 1500}, "outputs": [{"name": "y"}]}).encode()
    request, _ = v2_json.decode("m", raw)
    assert (request.id, request.timeout, request.outputs) == ("7", 0.0015, ["y"])


def arrays(datatype):
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    if datatype == "BYTES":
        return shapes.flatmap(
            lambda s: st.lists(st.text(), min_size=math.prod(s), max_size=math.prod(s)).map(lambda v: texts(v, s))
        )
    dtype = DATATYPES[datatype].dtype
    return hnp.arrays(dtype, shapes)


def texts(values, shape):
    array = np.empty(len(values), object)
    array[:] = [v.encode("utf-8", "surrogatepass").decode("utf-8", "ignore").encode() for v in values]
    return array.reshape(shape)


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d != "BF16"])
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "nested"])
@given(data=st.data())
def test_what_an_answer_says_a_request_would_be_read_as(datatype, flat, data):
    """JSON out and JSON in are inverse for every datatype, rank and special value."""
    array = data.draw(arrays(datatype))
    text, length = v2_json.encode(InferResponse("m", "", {"x": Tensor(datatype, array)}), v2_json.Wanted())
    assert length is None
    document = json.loads(text)
    out = document["outputs"][0]
    if not flat:
        out["data"] = np.array(out["data"], object).reshape(out["shape"]).tolist()
        if not isinstance(out["data"], list):
            out["data"] = [out["data"]]
    back = only(json.dumps({"inputs": [out]}).encode())
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("datatype", list(DATATYPES))
@given(data=st.data())
def test_binary_out_and_binary_in_are_inverse_bit_for_bit(datatype, data):
    array = data.draw(arrays("UINT16" if datatype == "BF16" else datatype))
    if datatype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
        if np.isnan(array).any():  # a quiet bit may be set on the way
            array = np.nan_to_num(array)
    text, length = v2_json.encode(InferResponse("m", "", {"x": Tensor(datatype, array)}), v2_json.Wanted(binary=True))
    document = json.loads(text[:length])
    raw, found = binary({"inputs": document["outputs"]}, text[length:])
    back = only(raw, header_length=found)
    assert back.shape == array.shape
    assert back.tolist() == array.tolist() if datatype == "BYTES" else back.tobytes() == np.ascontiguousarray(array).tobytes()


numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=3))


@given(
    datatype=st.sampled_from([d for d in DATATYPES if d != "BF16"]),
    values=st.lists(st.one_of(numbers, st.lists(numbers, max_size=3)), max_size=4),
)
def test_the_fast_way_and_the_exact_way_never_disagree(datatype, values):
    """Where the fast way answers, the exact way gives the same; it never takes what the exact way refuses."""
    kind = DATATYPES[datatype]
    fast = json_values.fast_array(json.dumps(values).encode(), kind)
    if fast is not None:
        exact = json_values.exact_array(json.loads(json.dumps(values)), kind, "x")
        assert fast.dtype == exact.dtype
        assert fast.shape == exact.shape
        assert np.array_equal(fast, exact, equal_nan=kind.dtype.kind == "f")


LONG = 30_000


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("FP64", [n / 7 for n in range(LONG)]),
        ("FP32", [[n / 7, None, -n] for n in range(LONG)]),
        ("INT64", [[[n], [-n]] for n in range(LONG)]),
        ("BOOL", [[n % 3 == 0, True] for n in range(LONG)]),
        ("BYTES", [f"text {n}" for n in range(LONG)]),
        ("BYTES", [[f"],[{n}", '"'] for n in range(LONG)]),
        ("BYTES", [f',"a\\",\\"],{n},' for n in range(LONG)]),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (" ,\n\t", ":")])
def test_a_long_array_is_the_same_when_it_is_read_in_pieces(kind, values, separators):
    text = json.dumps(values, separators=separators).encode()
    assert len(text) > json_values.LARGE
    fast, exact = json_values.fast_array(text, DATATYPES[kind]), json_values.exact_array(values, DATATYPES[kind], "x")
    assert fast.shape == exact.shape
    assert fast.dtype == exact.dtype
    assert np.array_equal(fast, exact, equal_nan=kind[:2] == "FP")


@pytest.mark.parametrize(
    "text",
    [
        b"[%b,]" % b",".join([b"1.5"] * 100_000),
        b"[%b, ]" % b",".join([b"1.5"] * 100_000),
        b"[%b,1]" % (b" " * 300_000),
        b"[%b,,%b]" % (b",".join([b"1.5"] * 100_000), b"1"),
        b"[%b,[1,2,3],[1,2]]" % b",".join([b"[1,2]"] * 60_000),
        b"[%b,1]" % b",".join([b"[1,2]"] * 60_000),
        b"[%b" % b",".join([b"1.5"] * 100_000),
    ],
)
def test_a_long_array_that_is_none_is_left_to_the_exact_way(text):
    assert json_values.fast_array(text, DATATYPES["FP64"]) is None


def test_bytes_that_are_no_text_are_refused_in_json_and_point_to_binary():
    output = Tensor("BYTES", texts(["a"], (1,)))
    output.array[0] = b"\xff"
    with pytest.raises(InvalidRequest, match="not UTF-8.*binary_data"):
        v2_json.encode(InferResponse("m", "", {"y": output}), v2_json.Wanted())


@pytest.mark.parametrize(("strict", "want"), [(False, b"[0.1,NaN,Infinity,-Infinity]"), (True, b"[0.1,null,null,null]")])
def test_numbers_that_are_not_finite_are_tokens_or_null(strict, want):
    array = np.array([0.1, np.nan, np.inf, -np.inf], np.float32)
    text, _ = v2_json.encode(InferResponse("m", "", {"y": Tensor("FP32", array)}), v2_json.Wanted(), strict)
    assert want in text
