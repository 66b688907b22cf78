"""Signatures: what fits a model, what is refused with which words, and what is widened without loss."""

import numpy as np
import pytest

from server.errors import InvalidInput
from server.tensors import DATATYPES, Signature, Tensor, TensorSpec, datatype, datatype_of, synthetic

SIGNATURE = Signature(
    "s",
    (TensorSpec("sepal_length", "FP32", (-1, 4)), TensorSpec("scale", "FP64", (-1,), optional=True)),
    (TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 3))),
    defaults=("label",),
)


def f32(*shape):
    return Tensor.of(np.ones(shape, np.float32))


BAD = [
    ("13: an unknown name", {"sepal_lenght": f32(1, 4)}, "unknown input 'sepal_lenght'; did you mean 'sepal_length'"),
    ("14: missing", {"scale": Tensor.of(np.ones(1))}, "missing input 'sepal_length'; the model expects: sepal_length FP32"),
    ("18: another datatype", {"sepal_length": Tensor.of(np.ones((1, 4)))}, "is FP64, the model expects FP32"),
    ("18: lossy integers", {"sepal_length": Tensor.of(np.ones((1, 4), np.int64))}, "is INT64, the model expects FP32"),
    ("35: booleans", {"sepal_length": Tensor.of(np.ones((1, 4), bool))}, "is BOOL, the model expects FP32"),
    ("26: a fixed dimension", {"sepal_length": f32(2, 5)}, r"has shape \[2, 5\], the model expects \[-1, 4\]"),
    ("26: no batch", {"sepal_length": f32(4)}, r"has shape \[4\], the model expects \[-1, 4\]; did you mean \[1, 4\]"),
    ("26: too deep", {"sepal_length": f32(1, 1, 4)}, r"has shape \[1, 1, 4\]"),
    ("27: other rows", {"sepal_length": f32(2, 4), "scale": Tensor.of(np.ones(3))}, "'sepal_length' has 2 rows, 'scale' has 3"),
]


@pytest.mark.parametrize(("inputs", "text"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_inputs_that_do_not_fit_are_named(inputs, text):
    with pytest.raises(InvalidInput, match=text):
        SIGNATURE.check(inputs)


def test_inputs_that_fit_come_back_with_their_rows_and_without_a_copy():
    array = np.ones((3, 4), np.float32)
    checked = SIGNATURE.check({"sepal_length": Tensor.of(array)})
    assert checked.rows == 3
    assert checked.arrays["sepal_length"] is array


@pytest.mark.parametrize(
    ("have", "want"),
    [("FP32", "FP64"), ("INT8", "INT64"), ("UINT8", "INT16"), ("INT32", "FP64"), ("BF16", "FP32"), ("FP16", "FP32")],
)
def test_numbers_are_widened_where_no_value_can_change(have, want):
    signature = Signature("s", (TensorSpec("x", want, (-1,)),), (TensorSpec("y", want, (-1,)),))
    values = np.array([0, 1, 100], DATATYPES[have].dtype)
    checked = signature.check({"x": Tensor(have, values)})
    assert checked.arrays["x"].dtype == DATATYPES[want].dtype
    assert checked.arrays["x"].tolist() == [0, 1, 100]


@pytest.mark.parametrize(("spec", "given", "shape"), [((-1,), (3, 1), (3,)), ((-1, 1), (3,), (3, 1))])
def test_a_column_is_taken_flat_or_as_one_wide(spec, given, shape):
    signature = Signature("s", (TensorSpec("x", "FP32", spec, column=True),), (TensorSpec("y", "FP32", (-1,)),))
    assert signature.check({"x": f32(*given)}).arrays["x"].shape == shape


def test_true_and_false_are_numbers_to_a_column_and_to_nothing_else():
    def check(column):
        signature = Signature("s", (TensorSpec("x", "FP64", (-1,), column=column),), (TensorSpec("y", "FP32", (-1,)),))
        return signature.check({"x": Tensor.of(np.array([True, False]))}).arrays["x"]

    assert check(column=True).dtype == np.float64
    assert check(column=True).tolist() == [1, 0]
    with pytest.raises(InvalidInput, match="'x' is BOOL, the model expects FP64"):
        check(column=False)


def texts(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return Tensor("BYTES", array)


@pytest.mark.parametrize("nullable", [True, False])
def test_a_missing_string_is_taken_only_where_the_model_knows_missing_values(nullable):
    signature = Signature("s", (TensorSpec("x", "BYTES", (-1,), nullable=nullable),), (TensorSpec("y", "FP32", (-1,)),))
    if nullable:
        assert signature.check({"x": texts(b"a", None)}).rows == 2
    else:
        with pytest.raises(InvalidInput, match="null at element 1"):
            signature.check({"x": texts(b"a", None)})


def test_usual_names_are_taken_for_an_unnamed_tensor_but_not_twice():
    spec = TensorSpec("x", "FP32", (-1, 4), aliases=("input-0",))
    signature = Signature("s", (spec,), (TensorSpec("y", "FP32", (-1,)),))
    assert list(signature.check({"input-0": f32(1, 4)}).arrays) == ["x"]
    with pytest.raises(InvalidInput, match="given twice"):
        signature.check({"input-0": f32(1, 4), "x": f32(1, 4)})


@pytest.mark.parametrize(("asked", "got"), [(None, ("label",)), ([], ("label",)), (["probabilities"], ("probabilities",))])
def test_the_defaults_are_answered_unless_outputs_are_named(asked, got):
    assert SIGNATURE.chosen_outputs(asked) == got


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (["lable"], "unknown output 'lable'; did you mean 'label'.*the model has: label, probabilities"),
        (["label", "label"], "requested twice"),
    ],
)
def test_outputs_that_do_not_exist_or_repeat_are_refused(asked, text):
    with pytest.raises(InvalidInput, match=text):
        SIGNATURE.chosen_outputs(asked)


def test_every_datatype_and_its_numpy_dtype_name_each_other():
    for name, kind in DATATYPES.items():
        if name != "BF16":
            assert datatype_of(kind.dtype) == name
        assert datatype(name.lower()) is kind


@pytest.mark.parametrize("name", list(DATATYPES))
def test_made_up_values_fit_their_spec(name):
    spec = TensorSpec("x", name, (-1, 2, -1))
    signature = Signature("s", (spec,), (TensorSpec("y", "FP32", (-1,)),))
    assert signature.check({"x": Tensor(name, synthetic(spec, 5))}).rows == 5
