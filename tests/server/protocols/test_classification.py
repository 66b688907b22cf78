"""The best classes of an output, as Triton's clients read them."""

import numpy as np
import pytest

from server.class_labels import ClassLabels, class_labels_of
from server.errors import InvalidInput, InvalidRequest, ModelLoadError
from server.protocols.classification import classified, count_of
from server.runtime import LoadOptions, find_model, load_runtime
from server.tensors import InferResponse, Tensor

NAMES = ("cat", "dog", "owl")
BEST = [
    ("floats", [[0.1, 0.7, 0.2]], 2, [["0.700000:1:dog", "0.200000:2:owl"]]),
    ("all of them", [[0.1, 0.7, 0.2]], 99, [["0.700000:1:dog", "0.200000:2:owl", "0.100000:0:cat"]]),
    ("rows", [[3, 1, 2], [1, 2, 3]], 1, [["3:0:cat"], ["3:2:owl"]]),
    ("equal ones as they come", [[5, 7, 7]], 3, [["7:1:dog", "7:2:owl", "5:0:cat"]]),
    ("equal ones of floats", [[0.5, 0.5, 0.5]], 3, [["0.500000:0:cat", "0.500000:1:dog", "0.500000:2:owl"]]),
    ("no number last", [[np.nan, -np.inf, 1.0]], 3, [["1.000000:2:owl", "-inf:1:dog", "nan:0:cat"]]),
    ("other counts have no names", [[1, 2]], 1, [["2:1"]]),
    ("one number a row", [4, 6], 2, [["4:0"], ["6:0"]]),
    ("classes in two dimensions", [[[1, 9], [3, 4]]], 2, [["9:1", "4:3"]]),
    ("no rows", np.zeros((0, 3)), 2, []),
    ("large whole numbers", np.array([[2**63 - 1, 2**63 - 2]]), 1, [["9223372036854775807:0"]]),
    ("unsigned", np.array([[0, 2**64 - 1]], "u8"), 1, [["18446744073709551615:1"]]),
    ("true and false", np.array([[False, True]]), 1, [["1:1"]]),
    ("halves", np.array([[0.5, 1.5]], "f2"), 1, [["1.500000:1"]]),
]


def response(array, **more):
    return InferResponse(
        "m", "", {"y": Tensor.of(np.asarray(array)), "z": Tensor.of(np.zeros(1))}, labels=ClassLabels(NAMES), **more
    )


@pytest.mark.parametrize(("array", "count", "texts"), [b[1:] for b in BEST], ids=[b[0] for b in BEST])
def test_the_largest_come_first_with_their_index_and_name(array, count, texts):
    found = classified(response(array), {"y": count}).outputs
    assert found["y"].datatype == "BYTES"
    assert [[text.decode() for text in row] for row in found["y"].array.tolist()] == texts
    assert found["z"].datatype == "FP64"


def test_without_a_batch_the_whole_output_is_of_classes():
    found = classified(response([0.25, 0.75, 0.5], batched=False), {"y": 2}).outputs["y"].array
    assert found.tolist() == [b"0.750000:1:dog", b"0.500000:2:owl"]


def test_texts_have_no_largest():
    with pytest.raises(InvalidInput, match="output 'y' is BYTES, and only numbers have a largest one"):
        classified(response(np.array([[b"a"]], object)), {"y": 1})


@pytest.mark.parametrize("value", [-1, "2", 2.0, True, None, [1]])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(InvalidRequest, match="expected how many classes are wanted"):
        count_of("y", value)


@pytest.mark.parametrize(
    ("facts", "file", "found"),
    [
        ({}, None, ClassLabels()),
        ({"classes": '["a", "b"]'}, None, ClassLabels(("a", "b"))),
        ({"classes": "[0, 1, 2]"}, None, ClassLabels(("0", "1", "2"))),
        ({"classes": '[["a"], ["b", "c"]]'}, None, ClassLabels()),
        ({"classes": '{"y": ["a", "b"], "z": [1]}'}, None, ClassLabels(by_output={"y": ("a", "b"), "z": ("1",)})),
        ({"classes": '["a", "b"]'}, "cat\ndog \r\nowl\n", ClassLabels(NAMES, in_file=True)),
        ({}, "naïve: ☃\n", ClassLabels(("naïve: ☃",), in_file=True)),
    ],
)
def test_names_are_those_of_the_file_or_else_of_the_model(tmp_path, facts, file, found):
    model = tmp_path / "model.onnx"
    if file is not None:
        (tmp_path / "labels.txt").write_text(file, "utf-8", newline="")
    assert class_labels_of(model, facts) == class_labels_of(tmp_path, facts) == found


def test_a_file_of_names_that_is_no_text_is_said_at_load(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "model.py").write_text("class Model:\n    def predict(self, inputs):\n        return inputs\n")
    found = find_model(tmp_path / "model.py")
    with pytest.raises(ModelLoadError, match=r"labels\.txt beside .* is not UTF-8"):
        load_runtime(found, LoadOptions(trust_code=True))
