"""V1 JSON: rows and columns in, predictions and outputs out."""

import json

import numpy as np
import pytest

from server.errors import InvalidInput, InvalidRequest
from server.protocols import v1
from server.tensors import InferResponse, OpenSignature, Signature, Tensor, TensorSpec

ONE = Signature("one", (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1,)),))
SCALARS = Signature("scalars", (TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1,)),))
TEXT = Signature("text", (TensorSpec("t", "BYTES", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
TABLE = Signature(
    "table",
    (
        TensorSpec("age", "FP64", (-1,), column=True),
        TensorSpec("city", "BYTES", (-1,), nullable=True, column=True),
        TensorSpec("floor", "INT64", (-1,), column=True),
    ),
    (TensorSpec("y", "FP32", (-1,)),),
)


def choose(signature):
    return lambda names, named: signature


def read(signature, document):
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    request, form = v1.decode("m", raw, choose(signature))
    return {name: t.array.tolist() for name, t in request.inputs.items()}, form.columns


NAN = float("nan")
GOOD = [
    ("rows", ONE, {"instances": [[1, 2], [3, 4.5]]}, {"x": [[1, 2], [3, 4.5]]}, False),
    ("rows and a field nobody knows", ONE, {"instances": [[1, 2]], "colour": 1}, {"x": [[1, 2]]}, False),
    ("rows as objects", ONE, {"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}, {"x": [[1, 2], [3, 4]]}, False),
    ("one number a row", SCALARS, {"instances": [1, 2]}, {"x": [[1], [2]]}, False),
    ("columns", ONE, {"inputs": [[1, 2]]}, {"x": [[1, 2]]}, True),
    ("columns by name", ONE, {"inputs": {"x": [[1, 2]]}}, {"x": [[1, 2]]}, True),
    ("strings", TEXT, {"instances": ["a", "é"]}, {"t": [b"a", "é".encode()]}, False),
    ("binary strings", TEXT, {"instances": [{"b64": "AAH/"}, "b"]}, {"t": [b"\x00\x01\xff", b"b"]}, False),
    (
        "a table's rows by name",
        TABLE,
        {"instances": [{"age": 3, "city": "x", "floor": 1}, {"floor": 2, "age": 4.5, "city": None}]},
        {"age": [3.0, 4.5], "city": [b"x", None], "floor": [1, 2]},
        False,
    ),
    (
        "a table's rows by position",
        TABLE,
        {"instances": [[3, "x", 1]]},
        {"age": [3.0], "city": [b"x"], "floor": [1]},
        False,
    ),
    (
        "a table's true and false",
        TABLE,
        {"instances": [{"age": True, "city": "x", "floor": 1}, {"age": False, "city": "y", "floor": 2}]},
        {"age": [True, False], "city": [b"x", b"y"], "floor": [1, 2]},
        False,
    ),
    (
        "a table's columns",
        TABLE,
        {"inputs": {"age": [3], "city": ["x"], "floor": [1.0]}},
        {"age": [3.0], "city": [b"x"], "floor": [1]},
        True,
    ),
]


@pytest.mark.parametrize(("signature", "document", "inputs", "columns"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_a_good_request_is_understood(signature, document, inputs, columns):
    assert read(signature, document) == (inputs, columns)


BAD = [
    ("1: not JSON", ONE, b'{"instances": [', "not valid JSON"),
    ("2: empty", ONE, b"", "empty"),
    ("3: a list", ONE, [1], "expected a JSON object, got a list"),
    ("11: neither", ONE, {"instance": [[1, 2]]}, "neither; did you mean 'instances'"),
    ("12: both", ONE, {"instances": [[1, 2]], "inputs": [[1, 2]]}, "got both"),
    ("28: no rows", ONE, {"instances": []}, "instances is empty"),
    ("11: null", ONE, {"instances": None}, "instances is a null"),
    ("20: ragged", ONE, {"instances": [[1, 2], [3]]}, "not rectangular: row 1"),
    ("34: a string for a number", ONE, {"instances": [["a", 2]]}, "expected a number"),
    ("33: null for an integer", TABLE, {"instances": [[1, "x", None]]}, r"instances \(floor\): expected an integer"),
    ("a row of another width", TABLE, {"instances": [[1, "x"]]}, r"instances\[0\] has 2 values, the model has 3 inputs"),
    ("a value for a table's row", TABLE, {"instances": [3]}, r"instances\[0\] is a number, expected an object"),
    (
        "a row without a column",
        TABLE,
        {"instances": [{"age": 1, "city": "x", "floor": 1}, {"age": 1}]},
        r"instances\[1\] has no 'city'",
    ),
    ("objects and values", ONE, {"instances": [{"x": [1, 2]}, [1, 2]]}, r"instances\[1\] is a list, but other rows are objects"),
    ("38: bad base64", TEXT, {"instances": [{"b64": "a"}]}, "not base64"),
    ("38: base64 for a number", ONE, {"instances": [[{"b64": "AA=="}, 1]]}, "expected a number"),
    ("a column's value for many inputs", TABLE, {"inputs": [1]}, "expected an object with the inputs age, city, floor"),
    ("a bad filter", ONE, {"instances": [[1, 2]], "output_filter": "y"}, "output_filter must be a list"),
    ("10: instances twice", ONE, b'{"instances":[[1,2]],"instances":[[1,2]]}', "duplicate key 'instances'"),
]


@pytest.mark.parametrize(("signature", "document", "text"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_request_is_refused_with_a_text_that_says_where(signature, document, text):
    with pytest.raises(InvalidRequest, match=text):
        read(signature, document)


def test_an_unknown_column_is_named_by_the_signature():
    request, _ = v1.decode("m", b'{"instances":[{"agee":1,"city":"x","floor":1}]}', choose(TABLE))
    with pytest.raises(InvalidInput, match="unknown input 'agee'; did you mean 'age'"):
        TABLE.check(request.inputs)


def texts(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


OPEN = OpenSignature("open", (), (), batched=False)


@pytest.mark.parametrize(
    ("document", "name", "kind", "values"),
    [
        ({"instances": [[1, 2]]}, "instances", "INT64", [[1, 2]]),
        ({"instances": [{"a": 1.5}]}, "a", "FP64", [1.5]),
        ({"inputs": {"t": ["x"]}}, "t", "BYTES", [b"x"]),
        ({"inputs": [True]}, "inputs", "BOOL", [True]),
    ],
)
def test_a_model_that_declares_nothing_gets_what_the_json_says(document, name, kind, values):
    request, _ = v1.decode("m", json.dumps(document).encode(), choose(OPEN))
    tensor = request.inputs[name]
    assert (tensor.datatype, tensor.array.tolist()) == (kind, values)


ANSWERS = [
    ("numbers", {"y": np.array([1.5, 2], np.float32)}, False, {"predictions": [1.5, 2.0]}),
    ("labels", {"y": texts("a", b"b")}, False, {"predictions": ["a", "b"]}),
    ("several outputs", {"y": np.array([1, 2]), "p": np.array([[0.5], [1]])}, False, {"predictions": [{"y": 1, "p": [0.5]}, {"y": 2, "p": [1.0]}]}),
    ("C's long long", {"y": np.array([1], np.longlong), "p": np.array([0.5], np.float32)}, False, {"predictions": [{"y": 1, "p": 0.5}]}),
    ("a NaN in a row", {"y": np.array([1]), "p": np.array([np.inf], np.float32)}, False, {"predictions": [{"y": 1, "p": np.inf}]}),
    ("columns", {"y": np.array([1, 2])}, True, {"outputs": [1, 2]}),
    ("columns, several", {"y": np.array([1]), "p": np.array(2)}, True, {"outputs": {"y": [1], "p": 2}}),
    ("bytes by name", {"img_bytes": texts(b"\xff")}, False, {"predictions": [{"b64": "/w=="}]}),
]  # fmt: skip


@pytest.mark.parametrize(("outputs", "columns", "want"), [a[1:] for a in ANSWERS], ids=[a[0] for a in ANSWERS])
def test_an_answer_has_the_form_of_its_request(outputs, columns, want):
    response = InferResponse("m", "", {name: Tensor.of(array) for name, array in outputs.items()})
    assert json.loads(v1.encode(response, v1.Form(columns))) == want


def test_rows_can_not_be_made_of_outputs_without_common_rows():
    response = InferResponse("m", "", {"y": Tensor.of(np.array([1, 2])), "p": Tensor.of(np.array([1]))})
    with pytest.raises(InvalidRequest, match="no common rows"):
        v1.encode(response, v1.Form())
