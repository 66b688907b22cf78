"""Real .onnx files, opened and run through the runtime, compared with onnxruntime itself and with numpy."""

import gzip
import json
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from predictors._onnx_errors import cleaned, run_error
from predictors._onnx_graph import parse, read_graph
from predictors._onnx_signature import matrix
from predictors.onnx import load
from server.errors import InvalidInput, ModelLoadError, NotSupported, ResourceExhausted, RuntimeFailed
from server.runtime import LoadOptions, ModelFile, Runtime
from server.tensors import DATATYPES, Tensor

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FLOAT, INT64, STRING, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL


def info(name: str, shape, type_: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, type_, shape)


def node(operator: str, inputs: str = "x", outputs: str = "y", domain: str = "", **attributes) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), domain=domain, **attributes)


def model(nodes, inputs, outputs, constants=(), opset: int = 21, ir: int = 10, domains=(("ai.onnx.ml", 3),)) -> onnx.ModelProto:
    nodes = [nodes] if isinstance(nodes, onnx.NodeProto) else nodes
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(constants))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*d) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, producer_name="tests", producer_version="1")


def constant(name: str, *values, shape=(-1,), dtype=np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype).reshape(shape), name)


def opened(path: Path, threads: int = 1, trust: bool = False, **extra: str) -> Runtime:
    extra = {name.replace("_", "-"): value for name, value in extra.items()}
    return load(ModelFile(path, "onnx", "onnx"), LoadOptions(threads=threads, trust_code=trust, extra=extra))


@pytest.fixture
def serve(tmp_path):
    """A function that writes a model and opens it with the runtime."""

    def save_and_open(made: onnx.ModelProto, **options) -> Runtime:
        path = tmp_path / "model.onnx"
        path.write_bytes(made.SerializeToString())
        return opened(path, **options)

    return save_and_open


def predict(runtime: Runtime, inputs: dict[str, object], outputs: list[str] | None = None) -> dict[str, np.ndarray]:
    """As the server calls it: checked inputs and chosen outputs."""
    signature = runtime.signatures[0]
    tensors = {name: Tensor.of(np.asarray(value)) for name, value in inputs.items()}
    return runtime.predict(signature, signature.check(tensors).arrays, signature.chosen_outputs(outputs), {})


def floats(*shape: int) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)


def texts(*values: bytes, shape=(-1,)) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


@pytest.mark.parametrize("name", ["mlp", "zipmap", "strings", "external"])
def test_an_example_is_batched_and_answers_its_own_sample(name):
    runtime = opened(EXAMPLES / f"{name}.onnx")
    signature = runtime.signatures[0]
    sample = runtime.sample(signature, 3)
    answer = predict(runtime, sample)
    assert signature.batched
    assert runtime.platform == "onnx_onnxv1"
    for spec in signature.outputs:
        assert len(answer[spec.name]) == 3
        assert answer[spec.name].dtype == DATATYPES[spec.datatype].dtype
    assert sum(f.stat().st_size for f in EXAMPLES.glob(f"{name}.*")) < 100_000


def test_the_mlp_example_answers_what_onnxruntime_and_numpy_compute():
    from sklearn.datasets import load_breast_cancer

    data, target = load_breast_cancer(return_X_y=True)
    x = data.astype(np.float32)
    y = predict(opened(EXAMPLES / "mlp.onnx"), {"x": x})["y"]
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(EXAMPLES / "mlp.onnx").graph.initializer}
    hidden = np.maximum(np.maximum(x @ weights["w0"] + weights["b0"], 0) @ weights["w1"] + weights["b1"], 0)
    logits = hidden @ weights["w2"] + weights["b2"]
    expected = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(y, expected / expected.sum(1, keepdims=True), atol=1e-4)
    direct = onnxruntime.InferenceSession(EXAMPLES / "mlp.onnx", providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
    np.testing.assert_allclose(y, direct, atol=1e-6)
    assert (y.argmax(1) == target).mean() > 0.95


def test_the_weights_beside_the_external_example_are_used():
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    answer = predict(opened(EXAMPLES / "external.onnx"), {"pixels": data.astype(np.float32)})
    assert (answer["probabilities"].argmax(1) == target).mean() > 0.95


def test_the_strings_example_takes_bytes_and_answers_text():
    runtime = opened(EXAMPLES / "strings.onnx")
    inputs = {
        "plan": texts(b"pro", b"free", shape=(2, 1)),
        "country": texts(b"DE", "Côte d’Ivoire".encode(), shape=(2, 1)),
        "months": np.array([[59], [1]], np.float32),
    }
    answer = predict(runtime, inputs)
    assert answer["label"].tolist() == ["stays", "leaves"]
    assert json.loads(runtime.properties["classes"]) == ["leaves", "stays"]
    assert answer["probabilities"][0, 1] > 0.5 > answer["probabilities"][1, 1]


def test_the_script_makes_the_examples_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["onnx_models.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "make" / "onnx_models.py"), run_name="__main__")
    assert (tmp_path / "external.weights").stat().st_mode & 0o444 == 0o444
    for name in ("mlp", "zipmap", "strings", "external"):
        made, kept = opened(tmp_path / f"{name}.onnx"), opened(EXAMPLES / f"{name}.onnx")
        assert made.signatures == kept.signatures
        sample = made.sample(made.signatures[0], 2)
        for output, array in predict(made, sample).items():
            other = predict(kept, sample)[output]
            assert array.tolist() == other.tolist() if array.dtype == object else np.allclose(array, other, atol=1e-3)


@pytest.mark.parametrize(
    ("type_", "datatype"),
    [
        (getattr(TensorProto, name), datatype)
        for name, datatype in {
            "FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BOOL": "BOOL", "STRING": "BYTES",
            "INT8": "INT8", "INT16": "INT16", "INT32": "INT32", "INT64": "INT64",
            "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64",
        }.items()
    ],
)  # fmt: skip
def test_every_type_that_the_wire_has_goes_through_unchanged(serve, type_, datatype):
    runtime = serve(model(node("Identity"), [info("x", ["N", 2], type_)], [info("y", ["N", 2], type_)]))
    dtype = DATATYPES[datatype].dtype
    x = (
        texts(b"a\0b", "é😀".encode(), b"", b"c", shape=(2, 2))
        if datatype == "BYTES"
        else np.array([[0, 1], [2, 3]]).astype(dtype)
    )
    y = predict(runtime, {"x": x})["y"]
    assert runtime.signatures[0].inputs[0].datatype == runtime.signatures[0].outputs[0].datatype == datatype
    assert y.dtype == dtype
    assert y.tolist() == ([["a\0b", "é😀"], ["", "c"]] if datatype == "BYTES" else x.tolist())


@pytest.mark.parametrize("name", ["BFLOAT16", "FLOAT8E4M3FN"])
def test_a_type_that_the_wire_lacks_is_refused_by_the_tensors_name(serve, name):
    type_ = getattr(TensorProto, name)
    with pytest.raises(ModelLoadError, match=r"model\.onnx has the input 'x' of type tensor\(" + name.lower()):
        serve(model(node("Identity"), [info("x", ["N", 2], type_)], [info("y", ["N", 2], type_)]))
    with pytest.raises(ModelLoadError, match="output 'y' of type"):
        serve(model(node("Cast", to=type_), [info("x", ["N", 2])], [info("y", ["N", 2], type_)]))


@pytest.mark.parametrize(
    ("value", "operator"),
    [
        (helper.make_tensor_sequence_value_info("x", FLOAT, ["N", 3]), node("ConcatFromSequence", axis=0)),
        (
            helper.make_value_info("x", helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, []))),
            node("DictVectorizer", domain="ai.onnx.ml", string_vocabulary=["a", "b", "c"]),
        ),
    ],
)
def test_lists_and_dicts_as_inputs_are_refused(serve, value, operator):
    with pytest.raises(ModelLoadError, match=r"input 'x' of type (seq|map)"):
        serve(model(operator, [value], [info("y", None)]))


def test_a_sparse_output_is_refused_in_one_line(serve):
    sparse = helper.make_value_info("y", helper.make_sparse_tensor_type_proto(FLOAT, [3, 3]))
    with pytest.raises(ModelLoadError, match=r"cannot read .*model\.onnx as ONNX: [^\n]*sparse_tensor[^\n]*$"):
        serve(model(node("Identity"), [info("x", [3, 3])], [sparse]))


@pytest.mark.parametrize(
    ("shape_in", "shape_out", "operator", "batched", "reason"),
    [
        (["N", 3], ["N", 3], "Identity", True, ""),
        ([None, 3], [None, 3], "Identity", True, ""),
        (["unk__6", 3], ["unk__7", 3], "Identity", True, ""),
        (["N", 3], None, "Identity", True, ""),
        ([1, 3], [1, 3], "Identity", False, "input 'x' has a fixed first dimension ([1, 3])"),
        ([], [], "Identity", False, "input 'x' is a scalar"),
        (None, None, "Identity", False, "input 'x' has no known shape"),
        (["N", 3], ["M"], "Unique", False, "the first dimensions of 'x' ('N') and 'y' ('M') count different things"),
        (["N", 3], [], "ReduceSum", False, "output 'y' is a scalar"),
    ],
)
def test_rows_are_joined_only_where_all_first_dimensions_are_free_and_alike(
    serve, shape_in, shape_out, operator, batched, reason
):
    attributes = {"keepdims": 0} if operator == "ReduceSum" else {}
    runtime = serve(model(node(operator, **attributes), [info("x", shape_in)], [info("y", shape_out)]))
    assert runtime.signatures[0].batched is batched
    assert reason in " ".join(runtime.warnings)
    assert bool(runtime.warnings) is not batched


def test_a_batch_that_is_also_an_inner_dimension_is_not_joined(serve):
    nodes = [node("Transpose", "x", "t"), node("MatMul", "x t", "y")]
    runtime = serve(model(nodes, [info("x", ["N", 3])], [info("y", ["N", "N"])]))
    assert not runtime.signatures[0].batched
    assert runtime.warnings == (
        "requests are not batched: 'N' is more than the first dimension of 'y', so rows depend on each other",
    )
    np.testing.assert_array_equal(predict(runtime, {"x": floats(2, 3)})["y"], floats(2, 3) @ floats(2, 3).T)


def test_scalars_and_tensors_of_any_rank_go_through(serve):
    scalar = serve(model(node("Identity"), [info("x", [])], [info("y", [])]))
    assert predict(scalar, {"x": np.float32(3)})["y"].shape == ()
    unranked = serve(model(node("Identity"), [info("x", None)], [info("y", None)]))
    assert unranked.signatures[0].inputs[0].unknown_rank
    for shape in ((2,), (2, 3), (1, 2, 3)):
        assert predict(unranked, {"x": floats(*shape)})["y"].shape == shape


def test_inputs_that_share_a_named_dimension_must_agree_about_it(serve):
    made = model(
        [node("Identity", "a", "p"), node("Identity", "b", "q")],
        [info("a", ["batch", "length"]), info("b", ["batch", 2, "length"])],
        [info("p", ["batch", "length"]), info("q", ["batch", 2, "length"])],
    )
    runtime = serve(made)
    assert json.loads(runtime.properties["symbolic_dims"])["b"] == ["batch", 2, "length"]
    assert predict(runtime, {"a": floats(1, 5), "b": floats(1, 2, 5)})["p"].shape == (1, 5)
    with pytest.raises(InvalidInput, match="'length': dimension 1 of 'a' is 5, dimension 2 of 'b' is 4"):
        predict(runtime, {"a": floats(1, 5), "b": floats(1, 2, 4)})


def test_a_sample_has_equal_sizes_for_dimensions_of_one_name(serve):
    made = model(node("MatMul", "a b"), [info("a", ["n", "k"]), info("b", ["k", "m"])], [info("y", ["n", "m"])])
    runtime = serve(made)
    sample = runtime.sample(runtime.signatures[0], 2)
    assert predict(runtime, sample)["y"].shape == (2, 1)


def test_an_initialiser_that_is_also_an_input_may_be_overridden(serve):
    made = model(
        node("Add", "x b"),
        [info("x", ["N", 3]), info("b", ["N", 3])],
        [info("y", ["N", 3])],
        [constant("b", 1, 2, 3, shape=(1, 3))],
    )
    made.graph.input[1].CopyFrom(info("b", [1, 3]))
    runtime = serve(made)
    assert [(s.name, s.optional) for s in runtime.signatures[0].inputs] == [("x", False), ("b", True)]
    assert "optional input 'b' has a fixed first dimension" in runtime.warnings[0]
    assert predict(runtime, {"x": floats(1, 3)})["y"].tolist() == [[1, 3, 5]]
    assert predict(runtime, {"x": floats(1, 3), "b": floats(1, 3) * 10})["y"].tolist() == [[0, 11, 22]]
    assert list(runtime.sample(runtime.signatures[0], 1)) == ["x"]


def test_an_input_of_an_optional_type_may_be_left_out(serve):
    optional = helper.make_value_info("x", helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["N", 3])))
    runtime = serve(model(node("OptionalHasElement"), [optional], [info("y", [], BOOL)]))
    assert runtime.signatures[0].inputs[0].optional
    assert predict(runtime, {})["y"].tolist() is False
    assert predict(runtime, {"x": floats(2, 3)})["y"].tolist() is True


def test_misaligned_transposed_and_read_only_inputs_are_taken(serve):
    runtime = serve(model(node("Identity"), [info("x", ["N", 3])], [info("y", ["N", 3])]))
    misaligned = np.frombuffer(b"\0" + floats(2, 3).tobytes(), np.float32, offset=1).reshape(2, 3)
    assert not misaligned.flags.aligned
    assert not misaligned.flags.writeable
    assert predict(runtime, {"x": misaligned})["y"].tolist() == floats(2, 3).tolist()
    assert predict(runtime, {"x": floats(3, 2).T})["y"].tolist() == floats(3, 2).T.tolist()


def test_a_string_that_is_not_utf8_is_told_with_its_place(serve):
    runtime = serve(model(node("Identity"), [info("x", ["N", 2], STRING)], [info("y", ["N", 2], STRING)]))
    with pytest.raises(InvalidInput, match="input 'x' is not UTF-8 at element 3: invalid start byte"):
        predict(runtime, {"x": texts(b"a", b"b", b"c", b"\xff", shape=(2, 2))})


def test_only_the_outputs_asked_for_are_answered_in_their_order(serve):
    nodes = [node("Neg", "x", "p"), node("Abs", "x", "q")]
    runtime = serve(model(nodes, [info("x", ["N"])], [info("p", ["N"]), info("q", ["N"])]))
    assert list(predict(runtime, {"x": floats(2)}, ["q"])) == ["q"]
    assert {k: v.tolist() for k, v in predict(runtime, {"x": floats(2)}, ["q", "p"]).items()} == {"q": [0, 1], "p": [0, -1]}


def test_no_rows_get_empty_outputs_without_a_run():
    answer = predict(opened(EXAMPLES / "zipmap.onnx"), {"X": floats(0, 4)})
    assert {k: (v.shape, v.dtype) for k, v in answer.items()} == {
        "output_label": ((0,), np.int64),
        "output_probability": ((0, 3), np.float32),
    }


@pytest.mark.parametrize(
    ("shape_in", "shape_out"), [(["N", "C"], ["N", "C"]), ([None, None], [None, None]), (["N", 3], ["M", 3])]
)
def test_no_rows_are_refused_where_the_answers_shape_is_not_known(serve, shape_in, shape_out):
    made = model(node("Reshape", "x s"), [info("x", shape_in)], [info("y", shape_out)], [constant("s", 0, -1, dtype=np.int64)])
    runtime = serve(made)
    with pytest.raises(InvalidInput, match="input 'x' is empty"):
        predict(runtime, {"x": floats(0, 3)})


def test_an_inner_dimension_of_zero_reaches_the_model(serve):
    made = model(node("Concat", "past x", axis=1), [info("past", ["N", "T"]), info("x", ["N", 1])], [info("y", ["N", "U"])])
    assert predict(serve(made), {"past": floats(2, 0), "x": floats(2, 1)})["y"].shape == (2, 1)


def zipmap(**labels) -> onnx.ModelProto:
    key = STRING if "classlabels_strings" in labels else INT64
    of_row = helper.make_map_type_proto(key, helper.make_tensor_type_proto(FLOAT, []))
    output = helper.make_value_info("y", helper.make_sequence_type_proto(of_row))
    return model(node("ZipMap", domain="ai.onnx.ml", **labels), [info("x", ["N", "C"])], [output])


@pytest.mark.parametrize("labels", [["b", "a", "c"], [20, 3, 100], ["only"]])
def test_zipmaps_dicts_become_a_matrix_with_the_columns_of_the_model(serve, labels):
    key = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"
    runtime = serve(zipmap(**{key: labels}))
    x = floats(4, len(labels))
    y = predict(runtime, {"x": x})["y"]
    assert runtime.signatures[0].outputs[0].shape == (-1, len(labels))
    assert (y.dtype, y.tolist()) == (np.float32, x.tolist())
    assert json.loads(runtime.properties["classes"]) == labels
    assert any("ZipMap" in w for w in runtime.warnings)


def test_zipmap_of_the_example_equals_the_dicts_of_onnxruntime():
    from sklearn.datasets import load_iris

    x = load_iris().data.astype(np.float32)
    runtime = opened(EXAMPLES / "zipmap.onnx")
    answer = predict(runtime, {"X": x})
    session = onnxruntime.InferenceSession(EXAMPLES / "zipmap.onnx", providers=["CPUExecutionProvider"])
    labels, rows = session.run(None, {"X": x})
    assert answer["output_label"].tolist() == labels.tolist()
    np.testing.assert_array_equal(answer["output_probability"], np.array([[r[0], r[1], r[2]] for r in rows], np.float32))


def test_dicts_whose_labels_the_file_does_not_tell_are_ordered_by_key(serve):
    """Here the ZipMap node is inside a function of the model, so no node that writes the output has labels."""
    made = zipmap(classlabels_strings=["b", "a", "c"])
    inner = node("ZipMap", "a", "b", domain="ai.onnx.ml", classlabels_strings=["b", "a", "c"])
    made.functions.append(helper.make_function("com.acme", "Probability", ["a"], ["b"], [inner], made.opset_import[:]))
    made.opset_import.append(helper.make_opsetid("com.acme", 1))
    made.graph.node[0].CopyFrom(node("Probability", domain="com.acme"))
    runtime = serve(made)
    assert runtime.signatures[0].outputs[0].shape == (-1, -1)
    assert predict(runtime, {"x": floats(1, 3)})["y"].tolist() == [[1, 0, 2]]
    with pytest.raises(InvalidInput, match="is empty"):
        predict(runtime, {"x": floats(0, 3)})


def test_a_row_of_other_classes_is_the_models_fault():
    with pytest.raises(RuntimeFailed, match="a row of the model's output 'y' has no value for class 'b'"):
        matrix("y", [{"a": 1.0, "b": 2.0}, {"a": 1.0}], [])


def test_a_list_of_tensors_is_stacked_where_the_shapes_are_equal(serve):
    made = model(
        node("SplitToSequence", "x n", axis=0),
        [info("x", ["N", 3]), info("n", [], INT64)],
        [helper.make_tensor_sequence_value_info("y", FLOAT, None)],
    )
    runtime = serve(made)
    assert not runtime.signatures[0].batched
    assert predict(runtime, {"x": floats(4, 3), "n": np.int64(2)})["y"].tolist() == floats(2, 2, 3).tolist()
    with pytest.raises(NotSupported, match=r"output 'y' is a list of tensors of different shapes, \[1, 3\] and \[2, 3\]"):
        predict(runtime, {"x": floats(3, 3), "n": np.int64(2)})


def test_an_optional_output_that_is_there_is_answered(serve):
    output = helper.make_value_info("y", helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["N", 3])))
    runtime = serve(model(node("Optional"), [info("x", ["N", 3])], [output]))
    assert predict(runtime, {"x": floats(2, 3)})["y"].tolist() == floats(2, 3).tolist()


ANY = ["N", "M"]


@pytest.mark.parametrize(
    ("operator", "weights", "x", "said"),
    [
        (
            node("MatMul", "x w"),
            constant("w", *range(6), shape=(3, 2)),
            floats(2, 5),
            "MatMul node: Compute MatMul dimension mismatch",
        ),
        (node("Gemm", "x w"), constant("w", *range(6), shape=(3, 2)), floats(2, 5), "Gemm node: GEMM: Dimension mismatch"),
        (node("Add", "x w"), constant("w", *range(6), shape=(3, 2)), floats(2, 5), "Add node: Attempting to broadcast an axis"),
        (
            node("Reshape", "x w"),
            constant("w", 1, 3, dtype=np.int64),
            floats(2, 5),
            "Reshape node: The input tensor cannot be reshaped",
        ),
        (node("Concat", "x w", axis=0), constant("w", *range(6), shape=(3, 2)), floats(2, 5), "Concat node"),
        (
            node("Gather", "w x"),
            constant("w", 1, 2, 3),
            np.array([[9]]),
            "Gather node: indices element out of data bounds, idx=9",
        ),
        (node("Cast", to=FLOAT), None, texts(b"no number", shape=(1, 1)), "Cast node: stod"),
        (
            node("OneHotEncoder", domain="ai.onnx.ml", cats_strings=["a"], zeros=0),
            None,
            texts(b"q", shape=(1, 1)),
            "OneHotEncoder node: Unknown Category",
        ),
    ],
    ids=lambda v: v.op_type if isinstance(v, onnx.NodeProto) else "",
)
def test_inputs_that_the_model_cannot_compute_with_are_the_callers_fault(serve, operator, weights, x, said, capfd):
    type_in = {"f": FLOAT, "i": INT64, "O": STRING}[x.dtype.kind]
    runtime = serve(model(operator, [info("x", ANY, type_in)], [info("y", None)], [weights] if weights else []))
    with pytest.raises(InvalidInput) as caught:
        predict(runtime, {"x": x})
    text = str(caught.value)
    assert said in text
    assert "\n" not in text
    assert "onnxruntime" not in text.lower()
    assert capfd.readouterr() == ("", "")


def test_a_request_that_needs_too_much_memory_exhausts_resources(serve):
    runtime = serve(model(node("ConstantOfShape"), [info("x", ["K"], INT64)], [info("y", None)]))
    with pytest.raises(ResourceExhausted, match="out of memory"):
        predict(runtime, {"x": np.array([1 << 24, 1 << 24])})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : plain", "plain"),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions\n index: 1 Got: 4\n",
            "Got invalid dimensions index: 1 Got: 4",
        ),
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Foo node. Name:'f/1' "
            "Status Message: /src/a/b.cc:12 void ns::C<int>::Run(std::function<void(int)>, bool) const a == b was false. "
            "It broke.\n"
            "Stacktrace:\n0x1",
            "Foo node 'f/1': It broke.",
        ),
    ],
)
def test_an_error_text_is_told_in_one_line_without_source_places(text, said):
    assert cleaned(text) == said


def test_a_failure_that_is_not_about_the_inputs_is_left_to_the_server():
    failed = "Non-zero status code returned while running Foo node. Name:'' Status Message: it broke"
    text = f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {failed}"
    assert run_error(text, invalid_argument=False) is None
    assert isinstance(run_error(text, invalid_argument=True), InvalidInput)


def whole() -> bytes:
    return (EXAMPLES / "mlp.onnx").read_bytes()


def zipped(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "z", "w") as archive:
        archive.writestr("schema.json", "{}")
    return (folder / "z").read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda _: b"", "empty"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
        (lambda _: b"<!DOCTYPE html><html>sign in</html>", "web page"),
        (lambda _: b'{"error": "not found"}', "JSON"),
        (lambda _: gzip.compress(whole()), "gzip"),
        (zipped, "skops"),
        (lambda _: b"\x80\x04\x95\x00", "pickle"),
        (lambda _: b"hello, this is a note", "protobuf"),
        (lambda _: b"\x08\x08", "no graph in it"),
        (lambda _: whole()[:-1], "cut short"),
        (lambda _: whole()[:3000], "cut short"),
        (lambda _: whole()[:20], "cut short"),
        (lambda _: whole() + b"\xff", "cut short"),
        (lambda _: bytes(range(256)) * 4, "damaged"),
        (lambda _: b"\x3a\x00", "as ONNX"),
    ],
)
def test_a_file_that_is_no_model_is_refused_in_one_line_that_names_it(tmp_path, content, said, capfd):
    path = tmp_path / "my model.onnx"
    path.write_bytes(content(tmp_path))
    with pytest.raises(ModelLoadError) as caught:
        opened(path)
    text = str(caught.value)
    assert f"cannot read {path} as ONNX: " in text
    assert said in text
    assert "\n" not in text
    assert capfd.readouterr() == ("", "")


def test_subgraphs_nested_without_end_are_refused(tmp_path):
    graph = b""
    for _ in range(3000):
        for tag in (0x32, 0x2A, 0x0A):  # attribute.g, node.attribute, graph.node
            graph = bytes([tag]) + varint(len(graph)) + graph
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x3a" + varint(len(graph)) + graph)
    with pytest.raises(ModelLoadError, match="nested too deeply"):
        opened(path)


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda: model(node("Foo"), [info("x", ANY)], [info("y", ANY)]),
            ["operator Foo of domain ai.onnx (opset 21) is unknown to onnxruntime"],
        ),
        (
            lambda: model(node("Foo", domain="com.acme"), [info("x", ANY)], [info("y", ANY)], domains=[("com.acme", 7)]),
            ["operator Foo of domain com.acme (opset 7)", "custom-ops=/path"],
        ),
        (
            lambda: model(
                node("Foo", domain="com.microsoft"), [info("x", ANY)], [info("y", ANY)], domains=[("com.microsoft", 1)]
            ),
            ["operator Foo of domain com.microsoft (opset 1)", "install an onnxruntime"],
        ),
        (
            lambda: model(node("Relu"), [info("x", ANY)], [info("y", ANY)], opset=99),
            ["opset 99 of domain ai.onnx", f"onnxruntime {onnxruntime.__version__} knows opsets of ai.onnx up to "],
        ),
        (
            lambda: model(node("Scaler", domain="ai.onnx.ml"), [info("x", ANY)], [info("y", ANY)], domains=[("ai.onnx.ml", 99)]),
            ["opset 99 of domain ai.onnx.ml"],
        ),
        (
            lambda: model(node("Relu"), [info("x", ANY)], [info("y", ANY)], ir=99),
            ["IR version 99", f"onnxruntime {onnxruntime.__version__} reads up to "],
        ),
        (
            lambda: model(node("Identity"), [info("x", ANY, TensorProto.INT4)], [info("y", ANY, TensorProto.INT4)]),
            ["no implementation of Identity (since opset 21)"],
        ),
        (
            lambda: model(node("Relu"), [info("x", ANY, TensorProto.COMPLEX64)], [info("y", ANY, TensorProto.COMPLEX64)]),
            ["tensor(complex64)"],
        ),
    ],
)
def test_what_the_installed_onnxruntime_lacks_is_named_with_versions(serve, made, said, capfd):
    with pytest.raises(ModelLoadError) as caught:
        serve(made())
    text = str(caught.value)
    assert [s for s in said if s not in text] == [], text
    assert "\n" not in text
    assert "/onnxruntime" not in text
    assert capfd.readouterr() == ("", "")


def test_microsofts_own_operators_are_there(serve):
    made = model(node("Gelu", domain="com.microsoft"), [info("x", ANY)], [info("y", ANY)], domains=[("com.microsoft", 1)])
    assert predict(serve(made), {"x": floats(1, 2)})["y"] == pytest.approx(np.array([[0, 0.8413447]]), abs=1e-5)


def with_external(folder: Path, location: str, length: int = 24, inside: str = "") -> Path:
    """x @ w, where the 24 bytes of w are elsewhere; `inside` a Constant node of an If's branch where that is wanted."""
    weights = TensorProto(name="w", data_type=FLOAT, dims=[3, 2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        weights.external_data.add(key=key, value=value)
    if inside:
        branch = helper.make_graph([node("Constant", "", "w", value=weights)], "branch", [], [info("w", [3, 2])])
        nodes = [node("If", "c", "v", then_branch=branch, else_branch=branch), node("MatMul", "x v", "y")]
        made = model(nodes, [info("x", ["N", 3])], [info("y", ["N", 2])], [constant("c", True, shape=(), dtype=bool)])
    else:
        made = model(node("MatMul", "x w"), [info("x", ["N", 3])], [info("y", ["N", 2])], [weights])
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path):
    """A model's folder with a good file of weights in it, and one outside."""
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    for file in (tmp_path / "secret.bin", inside / "w.bin", inside / "sub" / "w.bin"):
        floats(3, 2).tofile(file)
    (inside / "link.bin").symlink_to("../secret.bin")
    (inside / "good-link.bin").symlink_to("sub/w.bin")
    return inside


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin", "good-link.bin"])
def test_weights_inside_the_models_folder_are_read(folder, location):
    runtime = opened(with_external(folder, location))
    assert predict(runtime, {"x": floats(1, 3)})["y"].tolist() == (floats(1, 3) @ floats(3, 2)).tolist()


@pytest.mark.parametrize("inside", ["", "subgraph"])
@pytest.mark.parametrize(
    ("location", "length", "said"),
    [
        ("../secret.bin", 24, "may lead out of the model's folder"),
        ("sub/../../secret.bin", 24, "may lead out of the model's folder"),
        ("{absolute}", 24, "may lead out of the model's folder"),
        ("link.bin", 24, "a link that leads out of the model's folder"),
        ("missing.bin", 24, "there is no such file"),
        ("sub", 24, "there is no such file"),
        ("w.bin", 4000, "which has 24 bytes where at least 4000 are needed"),
        ("w.bin", -1, "negative"),
        ("*/_ORT_MEM_ADDR_/*", 24, "there is no such file"),
    ],
)
def test_weights_outside_missing_or_cut_short_are_refused_by_name(folder, location, length, said, inside):
    location = location.format(absolute=folder / "w.bin")
    with pytest.raises(ModelLoadError) as caught:
        opened(with_external(folder, location, length, inside))
    text = str(caught.value)
    assert said in text
    assert repr(location) in text
    assert "'w'" in text


def test_a_download_cache_of_links_side_by_side_is_one_folder(folder, tmp_path):
    shutil.move(with_external(folder, "w.bin"), folder / "blob")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.onnx").symlink_to(folder / "blob")
    (snapshot / "w.bin").symlink_to(folder / "sub" / "w.bin")
    assert predict(opened(snapshot / "model.onnx"), {"x": floats(1, 3)})["y"].tolist() == (floats(1, 3) @ floats(3, 2)).tolist()


def test_the_reader_finds_what_the_onnx_package_finds():
    for path in sorted(EXAMPLES.glob("*.onnx")):
        found, proto = read_graph(path), onnx.load(path, load_external_data=False)
        assert found.ir_version == proto.ir_version
        assert found.opsets == {o.domain or "ai.onnx": o.version for o in proto.opset_import}
        assert found.producer == f"{proto.producer_name} {proto.producer_version}".strip()
        assert {(d, o) for d, ops in found.operators.items() for o in ops} == {
            (n.domain or "ai.onnx", n.op_type) for n in proto.graph.node
        }
        external = {t.name: t.external_data[0].value for t in proto.graph.initializer if t.external_data}
        assert {t.name: t.location for t in found.external} == external


def test_whatever_bytes_are_damaged_the_reader_raises_nothing_but_value_errors():
    random = np.random.default_rng(0)
    good = (EXAMPLES / "strings.onnx").read_bytes()
    told = []
    for _ in range(2000):
        content = bytearray(good)
        for at in random.integers(0, len(content), 3):
            content[at] = random.integers(0, 256)
        try:
            parse(memoryview(content))
        except ValueError as error:
            told.append(str(error))
    assert 0 < len(told) < 2000
    assert [text for text in told if "\n" in text] == []


def test_the_reader_looks_into_subgraphs_and_functions():
    branch = helper.make_graph([node("Scaler", "", "s", domain="ai.onnx.ml")], "branch", [], [info("s", None)])
    made = model(node("If", "x", "y", then_branch=branch, else_branch=branch), [info("x", [], BOOL)], [info("y", None)])
    opsets = [helper.make_opsetid("", 21)]
    made.functions.append(helper.make_function("com.acme", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], opsets))
    found = parse(memoryview(made.SerializeToString()))
    assert found.operators == {"ai.onnx": {"If", "Add"}, "ai.onnx.ml": {"Scaler"}}
    assert found.functions == {("com.acme", "Twice")}
    assert found.unranked == {"y"}


def test_a_function_of_the_model_itself_needs_no_library(serve):
    made = model(node("Twice", domain="com.acme"), [info("x", ANY)], [info("y", ANY)], domains=[("com.acme", 1)])
    made.functions.append(
        helper.make_function("com.acme", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], made.opset_import[:1])
    )
    assert predict(serve(made), {"x": floats(1, 2)})["y"].tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"provider": "cuda"}, "no option 'provider'; did you mean 'providers'?"),
        ({"providers": "cudda"}, "no execution provider is called 'cudda'; did you mean 'cuda'?"),
        ({"concurrency": "0"}, "concurrency of the onnx runtime is '0'"),
        ({"concurrency": "many"}, "concurrency of the onnx runtime is 'many'"),
        ({"custom_ops": "/nowhere.so"}, "needs the library /nowhere.so, which is native code; allow it with --trust-pickle"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(extra, said):
    with pytest.raises(ModelLoadError) as caught:
        opened(EXAMPLES / "mlp.onnx", **extra)
    assert said in str(caught.value)


def test_a_provider_that_is_not_there_falls_back_visibly():
    runtime = opened(EXAMPLES / "mlp.onnx", providers="cuda,cpu")
    assert runtime.properties["providers"] == "CPUExecutionProvider"
    assert runtime.warnings[0].startswith(
        "CUDAExecutionProvider was asked for and is not available, so CPUExecutionProvider is used"
    )
    assert len(runtime.warnings) == 1


def test_concurrency_is_one_unless_it_is_asked_for():
    assert opened(EXAMPLES / "mlp.onnx", threads=4).concurrency == 1
    assert opened(EXAMPLES / "mlp.onnx", threads=4, concurrency="2").concurrency == 2


def test_a_trusted_library_of_custom_operators_is_registered(tmp_path):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    marker, library = tmp_path / "called", tmp_path / "ops.so"
    source = f'#include <stdio.h>\nvoid *RegisterCustomOps(void *a, void *b) {{ fclose(fopen("{marker}", "w")); return 0; }}\n'
    (tmp_path / "ops.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "ops.c"], check=True)
    opened(EXAMPLES / "mlp.onnx", trust=True, custom_ops=str(library))
    assert marker.exists()
    with pytest.raises(ModelLoadError, match="there is no library of custom operators at"):
        opened(EXAMPLES / "mlp.onnx", trust=True, custom_ops=f"{library}.gone")
    with pytest.raises(ModelLoadError, match="as ONNX"):
        opened(EXAMPLES / "mlp.onnx", trust=True, custom_ops=str(EXAMPLES / "mlp.onnx"))


@pytest.mark.parametrize("trust", [False, True])
def test_operators_of_onnxruntime_extensions_need_the_package_and_trust(serve, trust):
    domain = "ai.onnx.contrib"
    made = model(
        node("StringUpper", domain=domain), [info("x", ["N"], STRING)], [info("y", ["N"], STRING)], domains=[(domain, 1)]
    )
    try:
        import onnxruntime_extensions  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ModelLoadError, match="pip install onnxruntime-extensions" if trust else "native code"):
            serve(made, trust=trust)
        return
    if not trust:
        with pytest.raises(ModelLoadError, match="native code"):
            serve(made)
        return
    assert predict(serve(made, trust=True), {"x": texts(b"abc")})["y"].tolist() == ["ABC"]


def test_serving_does_not_import_the_onnx_package():
    code = (
        "import sys; from pathlib import Path; from predictors.onnx import load; from server.runtime import *\n"
        f"load(ModelFile(Path({str(EXAMPLES / 'zipmap.onnx')!r}), 'onnx', 'onnx'), LoadOptions())\n"
        "sys.exit('onnx' in sys.modules or 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
