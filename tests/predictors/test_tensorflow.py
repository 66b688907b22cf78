"""SavedModels and Keras models, really saved and loaded; answers are compared with the models' own."""

import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from predictors._keras import custom_names, unique  # noqa: E402
from predictors._tensorflow_graph import first_line, newer_than  # noqa: E402
from predictors.tensorflow import as_serving_error, load, ordered  # noqa: E402
from server.errors import InvalidInput, ModelLoadError, NotSupported, ResourceExhausted, RuntimeFailed  # noqa: E402
from server.runtime import LoadOptions, ModelFile, Runtime  # noqa: E402
from server.tensors import Tensor  # noqa: E402

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
OPTIONS = LoadOptions(threads=1)


def saved_model(path: Path, options: LoadOptions = OPTIONS) -> Runtime:
    return load(ModelFile(path, "savedmodel", "tensorflow"), options)


def keras_model(path: Path, options: LoadOptions = OPTIONS) -> Runtime:
    return load(ModelFile(path, path.suffix[1:], "tensorflow"), options)


def answer(runtime: Runtime, signature_name: str = "", wanted: tuple[str, ...] | None = None, /, **inputs: Any) -> dict[str, Any]:
    signature = next(s for s in runtime.signatures if signature_name in ("", s.name))
    arrays = signature.check({n: Tensor.of(np.asarray(v)) for n, v in inputs.items()}).arrays
    return runtime.predict(signature, arrays, signature.chosen_outputs(wanted), {})


def specs(tensors: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(s.name, s.datatype, s.shape) for s in tensors]


class Many(tf.Module):
    """One signature for each thing that a signature can be."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(np.arange(12, dtype=np.float32).reshape(4, 3) / 10)
        numbers = tf.constant([1, 2], tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(["a", "b"]), numbers), -1)

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x"), tf.TensorSpec((), tf.float32, name="scale")])
    def scaled(self, x, scale=tf.constant(2.0)):  # noqa: B008  # this is how a signature gets a default
        return {"scores": x @ self.weights * scale, "rows": tf.shape(x)[0]}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="s")])
    def strings(self, s):
        return {"upper": tf.strings.upper(s), "id": self.table.lookup(s), "first": s[0]}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="any")])
    def unknown(self, any):
        return {"sum": tf.reduce_sum(any), "same": any}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32, name="i"), tf.TensorSpec((None, None), tf.float32, name="x")])
    def values(self, i, x):
        return {"gathered": tf.gather(tf.range(5), i), "threes": tf.reshape(x, (-1, 3))}

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.bfloat16, name="b"), tf.TensorSpec((None,), tf.float16, name="h")])
    def halves(self, b, h):
        return {"b": b * 2, "h": h * 2}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.bool, name="p"), tf.TensorSpec((2,), tf.uint8, name="u")])
    def small(self, p, u):
        return {"not": tf.logical_not(p), "u": u + tf.constant(1, tf.uint8)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.complex64, name="c")])
    def complex(self, c):
        return {"abs": tf.abs(c)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, name="x")])
    def checked(self, x):
        with tf.control_dependencies([tf.debugging.assert_positive(x, message="x must be positive")]):
            return {"y": tf.sqrt(x)}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory):
    """The runtime of a SavedModel with all of `Many`, and the module itself."""
    module, path = Many(), tmp_path_factory.mktemp("many")
    names = ("scaled", "strings", "unknown", "values", "halves", "small", "complex", "checked")
    tf.saved_model.save(module, str(path), signatures={n: getattr(module, n) for n in names})
    return saved_model(path), module


@pytest.fixture(scope="module")
def functional():
    """A Keras model with two inputs and three outputs, two of them from the same layer."""
    age, code = keras.Input((2,), name="age"), keras.Input((), dtype="int32", name="code")
    shared = keras.layers.Dense(3, name="shared")
    emb = keras.layers.Embedding(5, 2, name="emb")(code)
    norm = keras.layers.BatchNormalization(name="norm")(age)
    return keras.Model([age, code], [shared(age), shared(norm), emb])


# SavedModels


def test_the_example_has_two_signatures_and_answers_as_tensorflow_itself() -> None:
    runtime = saved_model(EXAMPLES / "two-signatures")
    assert runtime.platform == "tensorflow_savedmodel"
    assert runtime.properties["tensorflow_version"] == tf.__version__
    assert runtime.properties["tags"] == "serve"
    assert any("only serve ones you trust" in w for w in runtime.warnings)
    default, strings = runtime.signatures
    assert (default.name, strings.name) == ("serving_default", "strings")
    assert specs(default.inputs) == [("x", "FP32", (-1, 4))]
    assert specs(default.outputs) == [("scores", "FP32", (-1, 3)), ("species", "BYTES", (-1,))]
    assert default.batched
    assert strings.batched
    x = np.array([[5.0, 3.4, 1.5, 0.2], [6.6, 3.0, 5.6, 2.0]], np.float32)
    loaded = tf.saved_model.load(str(EXAMPLES / "two-signatures"))
    direct = loaded.signatures["serving_default"](x=tf.constant(x))
    result = answer(runtime, x=x)
    np.testing.assert_array_equal(result["scores"], direct["scores"].numpy())
    assert result["species"].tolist() == [b"setosa", b"virginica"]
    found = answer(runtime, "strings", name=np.array([b" Setosa", b"ROSE"], object))
    assert (found["index"].tolist(), found["normal"].tolist()) == ([0, -1], [b"setosa", b"rose"])


def test_without_a_default_signature_the_first_by_name_is_and_a_warning_lists_them(many) -> None:
    runtime, _ = many
    assert [s.name for s in runtime.signatures] == ["checked", "halves", "scaled", "small", "strings", "unknown", "values"]
    assert any("no serving_default; checked is the default of: checked, halves" in w for w in runtime.warnings)


def test_a_signature_of_types_that_no_protocol_has_is_left_out_with_a_warning(many) -> None:
    assert any("signature 'complex': tensor 'c' is of type complex64" in w for w in many[0].warnings)


def test_a_default_of_the_signature_makes_its_input_optional(many) -> None:
    runtime, module = many
    signature = next(s for s in runtime.signatures if s.name == "scaled")
    assert [(s.name, s.optional) for s in signature.inputs] == [("scale", True), ("x", False)]
    assert not signature.batched
    x = np.ones((2, 4), np.float32)
    for given in ({}, {"scale": np.float32(3)}):
        result = answer(runtime, "scaled", x=x, **given)
        np.testing.assert_array_equal(result["scores"], module.scaled(x, *given.values())["scores"].numpy())
        assert result["rows"].shape == ()
        assert result["rows"] == 2


def test_only_the_requested_outputs_are_given(many) -> None:
    assert list(answer(many[0], "scaled", ("rows",), x=np.ones((2, 4), np.float32))) == ["rows"]


def test_strings_are_bytes_in_and_out(many) -> None:
    result = answer(many[0], "strings", s=np.array([b"a", b"\xff\x00", "ü".encode()], object))
    assert result["upper"].tolist() == [b"A", b"\xff\x00", "ü".encode()]
    assert result["id"].tolist() == [1, -1, -1]
    assert (result["first"].shape, result["first"].item()) == ((), b"a")
    assert all(result[n].dtype == object for n in ("upper", "first"))


def test_a_tensor_of_unknown_rank_takes_any_shape(many) -> None:
    runtime, _ = many
    spec = next(s for s in runtime.signatures if s.name == "unknown").inputs[0]
    assert (spec.shape, spec.unknown_rank) == ((-1,), True)
    assert runtime.properties["unknown_rank"] == "any, same"
    for shape in ((1,), (3,), (2, 1, 2)):
        result = answer(runtime, "unknown", any=np.ones(shape, np.float32))
        assert (result["sum"].item(), result["same"].shape) == (np.ones(shape).sum(), shape)


def test_halves_keep_their_datatypes(many) -> None:
    runtime, _ = many
    signature = next(s for s in runtime.signatures if s.name == "halves")
    assert [s.datatype for s in (*signature.inputs, *signature.outputs)] == ["BF16", "FP16", "BF16", "FP16"]
    inputs = {"b": np.ones((1, 2), np.float32), "h": np.array([1.5], np.float16)}
    result = runtime.predict(signature, inputs, signature.defaults, {})
    assert (result["b"].dtype, result["b"].tolist()) == (np.float32, [[2, 2]])
    assert (result["h"].dtype, result["h"].tolist()) == (np.float16, [3])


def test_a_fixed_first_dimension_means_no_batches(many) -> None:
    batched = {s.name: s.batched for s in many[0].signatures}
    assert batched == {
        "checked": True,
        "halves": True,
        "scaled": False,
        "small": False,
        "strings": False,
        "unknown": False,
        "values": True,
    }


@pytest.mark.parametrize(
    ("name", "inputs", "says"),
    [
        ("values", {"i": np.array([9], np.int32), "x": np.ones((1, 3), np.float32)}, r"^indices\[0\] = 9 is not in \[0, 5\)$"),
        ("values", {"i": np.array([1], np.int32), "x": np.ones((1, 2), np.float32)}, r"^Input to reshape is a tensor with 2 "),
        ("checked", {"x": np.array([-1], np.float32)}, "x must be positive"),
        ("strings", {"s": np.zeros(0, object)}, "slice index 0 of dimension 0 out of bounds"),
    ],
)
def test_values_that_the_graph_refuses_are_the_requests_fault_in_one_clean_line(many, name: str, inputs, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        answer(many[0], name, **inputs)
    for noise in ("\n", "{{", "Op:", "Graph execution"):
        assert noise not in str(caught.value)


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_no_batch_size_makes_the_model_trace_again(many, rows: int) -> None:
    runtime, module = many
    x = np.random.default_rng(rows).random((rows, 4), np.float32)
    np.testing.assert_allclose(answer(runtime, "scaled", x=x)["scores"], module.scaled(x)["scores"].numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "Graph execution error:\n\nDetected at node Add defined at (most recent call last):\n<stack traces unavailable>\n"
            "Incompatible shapes: [2,3] vs. [4]\n\t [[{{node Add}}]] [Op:__inference_f_21]",
            "Incompatible shapes: [2,3] vs. [4]",
        ),
        (
            "Graph execution error:\n\nDetected at node Add defined at (most recent call last):\n"
            '  File "model.py", line 3, in call\n\n'
            "required broadcastable shapes\n\t [[{{node Add}}]] [Op:__inference_f_21]",
            "required broadcastable shapes",
        ),
        (
            "2 root error(s) found.\n  (0) INVALID_ARGUMENT:  bad value 3\n\t [[{{node a}}]]\n"
            "  (1) INVALID_ARGUMENT:  other\n0 successful",
            "bad value 3",
        ),
        (
            "{{function_node __wrapped__AddV2}} Incompatible shapes: [2] vs. [3] [Op:AddV2] name: ",
            "Incompatible shapes: [2] vs. [3]",
        ),
        ("one line", "one line"),
        ("", ""),
        (" \n\t [[{{node a}}]]", "[[{{node a}}]]"),
    ],
)
def test_the_sentence_of_an_error_is_found_in_its_wrapping(message: str, line: str) -> None:
    assert first_line(message) == line


@pytest.mark.parametrize(
    ("error", "expected", "says"),
    [
        (tf.errors.InvalidArgumentError(None, None, "bad index"), InvalidInput, "bad index"),
        (ValueError("Failed to convert\nmore"), InvalidInput, "Failed to convert"),
        (TypeError("wrong type"), InvalidInput, "wrong type"),
        (tf.errors.UnimplementedError(None, None, "no such kernel"), NotSupported, "no such kernel"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM"), ResourceExhausted, "out of memory: OOM"),
        (tf.errors.FailedPreconditionError(None, None, "no table"), RuntimeFailed, "FailedPreconditionError: no table"),
        (tf.errors.InternalError(None, None, "bug"), RuntimeFailed, "InternalError: bug"),
    ],
)
def test_only_errors_about_values_are_blamed_on_the_request(error: Exception, expected: type, says: str) -> None:
    translated = as_serving_error(tf, error)
    assert type(translated) is expected
    assert says in str(translated)


def test_several_threads_get_their_own_answers(many) -> None:
    runtime, module = many
    batches = [np.full((1 + i % 5, 4), i, np.float32) for i in range(200)]
    with ThreadPoolExecutor(4) as executor:
        results = list(executor.map(lambda x: answer(runtime, "scaled", x=x)["scores"], batches))
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_allclose(result, batch @ module.weights.numpy() * 2, rtol=1e-5)


def saved(path: Path, **signatures: Any) -> Path:
    module = tf.Module()
    module.functions = signatures
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


@tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, name="x")])
def double(x):
    return {"y": x * 2}


def test_an_only_signature_is_the_default_and_its_only_input_takes_usual_names(tmp_path: Path) -> None:
    runtime = saved_model(saved(tmp_path / "m", twice=double))
    assert [s.name for s in runtime.signatures] == ["twice"]
    assert not any("several" in w for w in runtime.warnings)
    assert answer(runtime, inputs=np.ones(2, np.float32))["y"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b", "serving_default", "a", "__saved_model_init_op"], ["serving_default", "a", "b"]),
        (["b", "a"], ["a", "b"]),
        (["__saved_model_init_op"], []),
    ],
)
def test_the_default_signature_comes_first(names: list[str], expected: list[str]) -> None:
    assert ordered(dict.fromkeys(names)) == expected


def test_a_saved_model_as_text_is_read(tmp_path: Path) -> None:
    from google.protobuf import text_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = saved(tmp_path / "m", twice=double)
    proto = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    (path / "saved_model.pbtxt").write_text(text_format.MessageToString(proto))
    (path / "saved_model.pb").unlink()
    assert answer(saved_model(path), x=np.ones(1, np.float32))["y"].tolist() == [2]


def change_proto(path: Path, change: Any) -> Path:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    proto = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    change(proto)
    (path / "saved_model.pb").write_bytes(proto.SerializeToString())
    return path


def second_graph(proto: Any) -> None:
    proto.meta_graphs.add().CopyFrom(proto.meta_graphs[0])
    proto.meta_graphs[0].meta_info_def.tags[:] = ["train"]
    proto.meta_graphs[1].meta_info_def.tags[:] = ["serve", "gpu"]


def sparse_input(proto: Any) -> None:
    info = proto.meta_graphs[0].signature_def["twice"].inputs["x"]
    info.ClearField("name")
    info.coo_sparse.values_tensor_name = "v:0"


def unknown_op(proto: Any) -> None:
    for node in proto.meta_graphs[0].graph_def.library.function[0].node_def:
        if node.op == "Mul":
            node.op = "MyMul"
    for function in proto.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            node.op = {"Mul": "MyMul"}.get(node.op, node.op)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.meta_graphs[0].signature_def.clear(), ["no signatures", "tags: serve", "signatures=", "model.export"]),
        (second_graph, ["no graph tagged 'serve'", "train | gpu,serve", "tags="]),
        (lambda p: p.meta_graphs.clear(), ["holds no graph", "frozen GraphDef"]),
        (sparse_input, ["'x' is sparse"]),
        (unknown_op, ["needs the op 'MyMul'", "op-library"]),
    ],
)
def test_a_saved_model_that_can_not_be_served_says_why(tmp_path: Path, change: Any, says: list[str]) -> None:
    path = change_proto(saved(tmp_path / "m", twice=double), change)
    with pytest.raises(ModelLoadError) as caught:
        saved_model(path)
    for part in says:
        assert part in str(caught.value)


def test_a_graph_may_be_chosen_by_its_tags(tmp_path: Path) -> None:
    path = change_proto(saved(tmp_path / "m", twice=double), second_graph)
    with pytest.raises(ModelLoadError, match=r"no graph tagged 'cpu'; it has: train \| gpu,serve"):
        saved_model(path, LoadOptions(extra={"tags": "cpu"}))
    # TensorFlow itself loads only the first graph of a file that tf.saved_model.save wrote
    change_proto(path, lambda p: p.meta_graphs.pop(1))
    assert saved_model(path, LoadOptions(extra={"tags": "train"})).properties["tags"] == "train"


@pytest.mark.parametrize(("content", "says"), [(b"\xff" * 50, "can't read"), (b"", "holds no graph")])
def test_a_damaged_saved_model_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(ModelLoadError, match=says):
        saved_model(tmp_path)


def test_missing_variables_are_named(tmp_path: Path) -> None:
    module = Many()
    tf.saved_model.save(module, str(tmp_path), signatures={"scaled": module.scaled})
    (tmp_path / "variables" / "variables.index").unlink()
    with pytest.raises(ModelLoadError, match=r"can't load the SavedModel .*variables.*copied whole"):
        saved_model(tmp_path)


def test_a_model_saved_by_a_newer_tensorflow_says_so_if_it_does_not_load(tmp_path: Path) -> None:
    def newer(proto: Any) -> None:
        unknown_op(proto)
        proto.meta_graphs[0].meta_info_def.tensorflow_version = "99.1.0"

    with pytest.raises(ModelLoadError, match=r"MyMul.*saved by TensorFlow 99\.1\.0"):
        saved_model(change_proto(saved(tmp_path / "m", twice=double), newer))


def test_a_model_of_tensorflow_1_is_served(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 2), name="x")
        weights = v1.get_variable("w", initializer=np.array([[1.0], [2.0]], np.float32))
        y = tf.matmul(x, weights)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "v1"), {"input": x}, {"y": y})
    runtime = saved_model(tmp_path / "v1")
    assert specs(runtime.signatures[0].inputs) == [("input", "FP32", (-1, 2))]
    assert answer(runtime, input=np.array([[1, 2]], np.float32))["y"].tolist() == [[5]]


# Keras


def test_the_example_keras_model_keeps_its_names_and_answers_as_keras_itself() -> None:
    runtime = keras_model(EXAMPLES / "tiny.keras")
    signature = runtime.signatures[0]
    assert (runtime.platform, signature.name, signature.batched) == ("keras_keras", "serving_default", True)
    assert specs(signature.inputs) == [("features", "FP32", (-1, 4))]
    assert specs(signature.outputs) == [("probability", "FP32", (-1, 1))]
    assert runtime.properties["keras_version"] == keras.__version__
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    direct = keras.saving.load_model(EXAMPLES / "tiny.keras")(x, training=False).numpy()
    np.testing.assert_allclose(answer(runtime, features=x)["probability"], direct, rtol=1e-5)
    np.testing.assert_array_equal(answer(runtime, input_1=x)["probability"], answer(runtime, features=x)["probability"])
    assert (np.abs(x[direct[:, 0] > 0.9]) ** 2).sum(1).min() > (x[direct[:, 0] < 0.1] ** 2).sum(1).mean()


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_several_inputs_and_outputs_keep_their_layers_names(functional, tmp_path: Path, ending: str) -> None:
    functional.save(tmp_path / f"model{ending}")
    runtime = keras_model(tmp_path / f"model{ending}")
    signature = runtime.signatures[0]
    assert runtime.platform == f"keras_{ending[1:]}"
    assert specs(signature.inputs) == [("age", "FP32", (-1, 2)), ("code", "INT32", (-1,))]
    assert [s.name for s in signature.outputs] == ["shared", "shared_1", "emb"]
    age, code = np.ones((3, 2), np.float32), np.array([1, 2, 3], np.int32)
    direct = functional([age, code], training=False)
    result = answer(runtime, age=age, code=code)
    for got, want in zip(result.values(), direct, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-5)


def test_a_model_of_dicts_is_named_by_its_keys(tmp_path: Path) -> None:
    a, b = keras.Input((2,), name="b_in"), keras.Input((2,), name="a_in")
    out = {"sum": keras.layers.Add()([a, b]), "difference": keras.layers.Subtract()([a, b])}
    keras.Model({"b_in": a, "a_in": b}, out).save(tmp_path / "m.keras")
    result = answer(keras_model(tmp_path / "m.keras"), b_in=np.full((1, 2), 5, np.float32), a_in=np.full((1, 2), 3, np.float32))
    assert {n: v.tolist() for n, v in result.items()} == {"difference": [[2, 2]], "sum": [[8, 8]]}


def test_a_sequential_model_and_text_are_served(tmp_path: Path) -> None:
    vectorize = keras.layers.TextVectorization(vocabulary=["good", "bad"], output_sequence_length=2, name="tokens")
    keras.Sequential([keras.Input((), dtype="string", name="text"), vectorize]).save(tmp_path / "m.keras")
    runtime = keras_model(tmp_path / "m.keras")
    assert specs(runtime.signatures[0].inputs) == [("text", "BYTES", (-1,))]
    assert answer(runtime, text=np.array([b"bad good", b"x"], object))["tokens"].tolist() == [[3, 2], [1, 0]]


def test_a_fixed_batch_size_is_kept(tmp_path: Path) -> None:
    keras.Sequential([keras.Input(batch_shape=(2, 3), name="x"), keras.layers.Dense(1)]).save(tmp_path / "m.keras")
    signature = keras_model(tmp_path / "m.keras").signatures[0]
    assert (signature.inputs[0].shape, signature.batched) == ((2, 3), False)


def test_an_exported_keras_model_is_served(functional, tmp_path: Path) -> None:
    functional.export(tmp_path / "exported", verbose=False)
    runtime = saved_model(tmp_path / "exported")
    assert [s.name for s in runtime.signatures] == ["serving_default", "serve"]
    age, code = np.ones((2, 2), np.float32), np.array([1, 2], np.int32)
    signature = runtime.signatures[0]
    by_type = {s.datatype: s.name for s in signature.inputs}
    result = answer(runtime, **{by_type["FP32"]: age, by_type["INT32"]: code})
    direct = [t.numpy() for t in functional([age, code], training=False)]
    assert sorted(np.round(v, 4).tolist() for v in result.values()) == sorted(np.round(v, 4).tolist() for v in direct)


class Triple(keras.layers.Layer):
    def call(self, x):
        return x * 3


custom_objects = {"Triple": Triple}
not_a_dict = 3


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_custom_objects_are_named_and_may_be_given(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"m{ending}"
    keras.Sequential([keras.Input((2,), name="x"), Triple(name="t")]).save(path)
    with pytest.raises(ModelLoadError, match=r"not part of Keras: Triple.*custom-objects="):
        keras_model(path)
    monkeypatch.setitem(sys.modules, "my_layers", sys.modules[__name__])
    options = {"custom-objects": "my_layers:custom_objects"}
    with pytest.raises(ModelLoadError, match="trust"):
        keras_model(path, LoadOptions(extra=options))
    runtime = keras_model(path, LoadOptions(extra=options, trust_code=True))
    assert answer(runtime, x=np.ones((1, 2), np.float32))["t"].tolist() == [[3, 3]]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("no_such_module:x", "ModuleNotFoundError"),
        ("my_layers:nothing", "AttributeError"),
        ("my_layers:not_a_dict", "int, not a dict"),
        ("", "ValueError"),
    ],
)
def test_custom_objects_that_can_not_be_had_are_named(option: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_layers", sys.modules[__name__])
    with pytest.raises(ModelLoadError, match=says):
        keras_model(EXAMPLES / "tiny.keras", LoadOptions(trust_code=True, extra={"custom-objects": option}))


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("trust", [False, True])
def test_lambda_layers_are_refused_by_name(tmp_path: Path, ending: str, trust: bool) -> None:
    path = tmp_path / f"m{ending}"
    inner = keras.Sequential([keras.layers.Lambda(lambda x: x * 2, name="twice")], name="inner")
    keras.Sequential([keras.Input((2,)), inner]).save(path)
    with pytest.raises(ModelLoadError, match=r"Lambda layers \(twice\).*model\.export"):
        keras_model(path, LoadOptions(trust_code=trust))


def rewrite(path: Path, **changed: bytes) -> Path:
    """The zip file with some members' contents changed (`config` for config.json), or left out where empty."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    members |= {f"{n}.json": content for n, content in changed.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if content:
                archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"config": b"", "metadata": b"{}"}, "can't read .* as a Keras model"),
        ({"config": b"{"}, "can't read .* as a Keras model"),
        ({"config": b'{"class_name": "Functional", "module": "keras.nowhere", "config": {}}'}, "can't load"),
        (
            {"config": b'{"class_name": "FromTheFuture", "module": "keras.layers"}', "metadata": b'{"keras_version": "9.1.0"}'},
            r"saved by Keras 9\.1\.0, and this is Keras 3.*pip install 'keras>=9\.1\.0'",
        ),
    ],
)
def test_a_keras_file_that_does_not_load_says_why(tmp_path: Path, changed: dict[str, bytes], says: str) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes((EXAMPLES / "tiny.keras").read_bytes())
    with pytest.raises(ModelLoadError, match=says):
        keras_model(rewrite(path, **changed))


def test_weights_alone_are_no_model(functional, tmp_path: Path) -> None:
    functional.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ModelLoadError, match="weights without the model"):
        keras_model(tmp_path / "m.weights.h5")


def test_a_keras_model_without_declared_inputs_is_refused(tmp_path: Path) -> None:
    keras.Sequential([keras.layers.Dense(2)]).save(tmp_path / "m.keras")
    with pytest.raises(ModelLoadError, match=r"inputs are not declared.*model\.export"):
        keras_model(tmp_path / "m.keras")


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["a", "b"], ["a", "b"]), (["a", "a", "a"], ["a", "a_1", "a_2"]), (["a", "a_1", "a"], ["a", "a_1", "a_2"])],
)
def test_names_are_made_unique(names: list[str], expected: list[str]) -> None:
    assert unique(names) == expected


def test_only_foreign_objects_of_a_config_are_custom() -> None:
    old = {"class_name": "Mine", "config": {"name": "m", "initializer": {"class_name": "GlorotUniform", "config": {}}}}
    new = {"class_name": "X", "module": "pkg.layers", "registered_name": "pkg>X", "config": {"name": "x"}}
    dense = {"class_name": "Dense", "module": "keras.layers", "registered_name": None, "config": {"name": "d"}}
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [old, new, dense, old]}}
    assert custom_names(config, keras.layers) == ["Mine", "pkg>X"]


@pytest.mark.parametrize(
    ("version", "than", "newer"),
    [
        ("3.16.0", "3.15.1", True),
        ("3.15.9", "3.15.1", False),
        ("2.9", "2.21.0", False),
        ("10.0", "9.9", True),
        ("", "3.15", False),
    ],
)
def test_versions_are_compared_by_their_first_two_numbers(version: str, than: str, newer: bool) -> None:
    assert newer_than(version, than) is newer


# The process


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelLoadError, match="'custom-object'; did you mean 'custom-objects'"):
        keras_model(EXAMPLES / "tiny.keras", LoadOptions(extra={"custom-object": "a:b"}))


def test_an_op_library_needs_trust_and_must_exist(tmp_path: Path) -> None:
    extra = {"op-library": str(tmp_path / "missing.so")}
    with pytest.raises(ModelLoadError, match="trust"):
        saved_model(EXAMPLES / "two-signatures", LoadOptions(extra=extra))
    with pytest.raises(ModelLoadError, match=r"can't load the op library .*missing\.so"):
        saved_model(EXAMPLES / "two-signatures", LoadOptions(extra=extra, trust_code=True))


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_"))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment)


LOAD = """
import os, sys
from pathlib import Path
from predictors.tensorflow import load
from server.runtime import LoadOptions, ModelFile
assert "tensorflow" not in sys.modules
def run(path, format):
    runtime = load(ModelFile(Path(path), format, "tensorflow"), LoadOptions(threads=2))
    signature = runtime.signatures[0]
    runtime.predict(signature, runtime.sample(signature, 2), signature.defaults, {})
    return runtime
"""


def test_serving_a_saved_model_imports_no_keras_prints_nothing_and_uses_the_given_threads() -> None:
    done = in_a_process(
        LOAD + "runtime = run('examples/two-signatures', 'savedmodel')\n"
        "import tensorflow as tf; config = tf.config.threading\n"
        "print(sorted({'keras', 'sklearn', 'pandas'} & set(sys.modules)), runtime.concurrency, end=' ')\n"
        "print(config.get_intra_op_parallelism_threads(), config.get_inter_op_parallelism_threads(), end=' ')\n"
        "print('TF_USE_LEGACY_KERAS' in os.environ)"
    )
    assert done.stdout.strip() == "[] 2 2 1 False"
    assert done.stderr == ""


def test_a_keras_model_can_be_loaded_after_a_saved_model_in_one_process() -> None:
    done = in_a_process(
        LOAD + "run('examples/two-signatures', 'savedmodel'); runtime = run('examples/tiny.keras', 'keras')\n"
        "import tensorflow as tf; print(runtime.platform, runtime.warnings, tf.keras.layers.Dense.__module__.partition('.')[0])"
    )
    assert done.stdout.strip() == "keras_keras () keras"
    assert done.stderr == ""
