"""A user's class: real files, really imported."""

import asyncio
import gc
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predictors.python import load
from server.errors import InvalidInput, ModelLoadError, RuntimeFailed
from server.runtime import LoadOptions, ModelFile, Runtime
from server.tensors import OpenSignature, Signature, Tensor

EXAMPLE = Path(__file__).parents[2] / "examples" / "python" / "model.py"
DECLARED = """
class Model:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    outputs = [{"name": "y", "datatype": "%s", "shape": %s}]
    def predict(self, inputs):
        import numpy as np, decimal
        return %s
"""


@pytest.fixture
def load_code(tmp_path: Path):
    """Load a class from its source text; what was loaded is closed at the end."""
    opened = []

    def load_it(code: str, name: str = "", folder: str = "model", file: str = "model.py", **siblings: str) -> Runtime:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        for stem, text in siblings.items():
            (path / f"{stem}.py").write_text(textwrap.dedent(text))
        (path / file).write_text(textwrap.dedent(code))
        found = ModelFile(path / file, f"python:{name}" if name else "python", "python")
        opened.append(load(found, LoadOptions(trust_code=True)))
        return opened[-1]

    yield load_it
    for runtime in opened:
        runtime.close()


def answer(runtime: Runtime, outputs: tuple[str, ...] | None = None, parameters: Any = None, **inputs: Any) -> dict[str, Any]:
    """What the runtime gives for checked inputs, as the server asks for it."""
    signature = runtime.signatures[0]
    arrays = signature.check({n: Tensor.of(np.asarray(v)) for n, v in inputs.items()}).arrays
    result: Any = runtime.predict(signature, arrays, signature.chosen_outputs(outputs), parameters or {})
    return asyncio.run(result) if runtime.is_async else result


X = np.array([[1, 2], [3, 4]], np.float32)


def test_the_example_scores_texts() -> None:
    runtime = load(ModelFile(EXAMPLE, "python:Sentiment", "python"), LoadOptions(trust_code=True))
    signature = runtime.signatures[0]
    assert (signature.batched, runtime.platform, runtime.is_async, runtime.concurrency) == (True, "python_class", False, 4)
    assert runtime.properties == {"class": "model.py:Sentiment"}
    texts = np.array([b"a great day", b"not good", "schön".encode(), b""], object)
    result = answer(runtime, text=texts)
    assert result["score"].tolist() == pytest.approx([1.0, -2 / 3, 0, 0])
    assert result["words"].tolist() == [3, 2, 1, 0]
    assert (result["score"].dtype, result["words"].dtype) == (np.float32, np.int64)
    sample = runtime.sample(signature, 5)
    assert answer(runtime, ("words",), text=sample["text"])["words"].shape == (5,)
    with pytest.raises(InvalidInput, match="not UTF-8"):
        answer(runtime, text=np.array([b"\xff"], object))
    runtime.close()


@pytest.mark.parametrize(
    ("datatype", "shape", "returned", "expected"),
    [
        ("FP32", [-1], "{'y': inputs['x'].sum(axis=1)}", np.array([3, 7], np.float32)),
        ("FP32", [-1], "inputs['x'].sum(axis=1)", np.array([3, 7], np.float32)),
        ("FP32", [-1], "[1, 2]", np.array([1, 2], np.float32)),
        ("FP32", [-1], "(1.5, 2.5)", np.array([1.5, 2.5], np.float32)),
        ("FP64", [-1, 1], "[[1], [2]]", np.array([[1], [2]], np.float64)),
        ("UINT8", [-1], "[1, 255]", np.array([1, 255], np.uint8)),
        ("INT32", [-1], "[True, False]", np.array([1, 0], np.int32)),
        ("BOOL", [-1], "inputs['x'][:, 0] > 2", np.array([False, True])),
        ("FP32", [], "3.5", np.array(3.5, np.float32)),
        ("FP32", [-1], "np.array([1, 2], '>f4')", np.array([1, 2], np.float32)),
        ("FP32", [-1], "[]", np.array([], np.float32)),
        ("BYTES", [-1], "['a', 'b']", np.array(["a", "b"], object)),
        ("BYTES", [-1], "[b'a\\0', b'b']", np.array([b"a\0", b"b"], object)),
        ("BYTES", [-1], "['a', None]", np.array(["a", None], object)),
        ("BYTES", [-1], "np.array(['a', 'bc'])", np.array(["a", "bc"], object)),
        ("BYTES", [1, 2], "[['a', 'b']]", np.array([["a", "b"]], object)),
        ("BYTES", [], "'text'", np.array("text", object)),
        ("BF16", [-1], "[1.0]", np.array([1], np.float32)),
    ],
)
def test_what_predict_returns_becomes_the_declared_tensor(
    load_code, datatype: str, shape: list[int], returned: str, expected: np.ndarray
) -> None:
    result = answer(load_code(DECLARED % (datatype, shape, returned)), x=X)
    assert list(result) == ["y"]
    assert result["y"].dtype == expected.dtype
    assert result["y"].shape == expected.shape
    assert result["y"].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("datatype", "shape", "returned", "says"),
    [
        ("FP32", [-1], "None", "predict returned NoneType, expected a dict of arrays, an array or a list"),
        ("FP32", [-1], "{1.0, 2.0}", "predict returned set"),
        ("FP32", [-1], "(i for i in [1])", "predict returned generator"),
        ("FP32", [-1], "{'z': [1]}", "predict returned no output 'y'; it returned: z"),
        ("FP32", [-1], "{'y': None}", "predict returned output 'y' as NoneType"),
        ("FP32", [-1], "['a']", "predict returned output 'y' as BYTES, declared is FP32"),
        ("BYTES", [-1], "[1]", "predict returned output 'y' as INT64, declared is BYTES"),
        ("INT64", [-1], "[1.5]", "predict returned output 'y' as FP64, declared is INT64"),
        ("UINT8", [-1], "[256]", "values beyond the declared UINT8"),
        ("INT32", [-1], "[2**40]", "values beyond the declared INT32"),
        ("FP32", [-1, 3], "[[1, 2]]", "shape [1, 2], declared is [-1, 3]"),
        ("FP32", [-1], "1.0", "shape [], declared is [-1]"),
        ("FP32", [-1], "[[1], [2, 3]]", "a list that is no array"),
        ("BYTES", [-1], "[['a'], ['b', 'c']]", "among them list"),
        ("BYTES", [-1], "np.array([decimal.Decimal(1)], object)", "among them Decimal"),
        ("FP32", [-1], "np.array([1j])", "dtype complex128"),
        ("FP32", [-1], "np.array(['2024-01-01'], 'datetime64[D]')", "dtype datetime64[D]"),
    ],
)
def test_a_result_that_does_not_fit_is_the_models_fault_and_says_how(
    load_code, datatype: str, shape: list[int], returned: str, says: str
) -> None:
    with pytest.raises(RuntimeFailed) as caught:
        answer(load_code(DECLARED % (datatype, shape, returned)), x=X)
    assert says in str(caught.value)


def test_a_class_that_declares_nothing_takes_and_gives_anything(load_code) -> None:
    runtime = load_code("class M:\n def predict(self, inputs): return {'n': len(inputs), **inputs}")
    signature = runtime.signatures[0]
    assert isinstance(signature, OpenSignature)
    assert not signature.batched
    assert runtime.properties["signature"] == "open: the class declares no inputs and no outputs"
    result = answer(runtime, a=np.arange(3), b=np.array([[b"x"]], object))
    assert result["n"] == 2
    assert result["a"].tolist() == [0, 1, 2]
    assert result["b"].tolist() == [[b"x"]]
    assert list(answer(runtime, ("a",), a=np.arange(3))) == ["a"]
    with pytest.raises(InvalidInput, match=r"unknown output 'nn'.* the model gave: n, a"):
        answer(runtime, ("nn",), a=np.arange(3))


def test_a_single_result_without_a_declared_name_is_called_output(load_code) -> None:
    runtime = load_code("class M:\n def predict(self, inputs): return inputs['a'] * 2")
    assert {n: v.tolist() for n, v in answer(runtime, a=[1, 2]).items()} == {"output": [2, 4]}


def test_declared_inputs_are_checked_where_outputs_are_open(load_code) -> None:
    runtime = load_code(
        "class M:\n inputs = [{'name': 'x', 'datatype': 'int64', 'shape': [2]}]\n def predict(self, inputs): return inputs['x']"
    )
    assert runtime.properties["signature"] == "open: the class declares no outputs"
    assert answer(runtime, x=[1, 2])["output"].tolist() == [1, 2]
    with pytest.raises(InvalidInput, match=r"has shape \[3\]"):
        answer(runtime, x=[1, 2, 3])


@pytest.mark.parametrize("inputs", [(), ("x",)])
def test_an_open_signature_understands_any_names_only_where_inputs_are_open(load_code, inputs: tuple[str, ...]) -> None:
    declared = [{"name": n, "datatype": "FP32", "shape": [-1]} for n in inputs]
    signature = load_code(f"class M:\n inputs = {declared}\n def predict(self, inputs): return 1").signatures[0]
    assert signature.takes(["other"]) is not bool(inputs)
    assert signature.takes(["x"])


def test_parameters_are_passed_to_a_predict_that_wants_them(load_code) -> None:
    runtime = load_code("class M:\n def predict(self, inputs, parameters=None): return inputs['x'] * parameters['factor']")
    assert answer(runtime, None, {"factor": 3}, x=[1, 2])["output"].tolist() == [3, 6]


def test_predict_may_write_into_its_inputs_and_the_request_keeps_its_bytes(load_code) -> None:
    runtime = load_code("class M:\n def predict(self, inputs):\n  inputs['x'] += 1\n  return inputs['x']")
    request = np.frombuffer(np.array([1, 2], np.int64).tobytes(), np.int64)
    assert answer(runtime, x=request)["output"].tolist() == [2, 3]
    assert request.tolist() == [1, 2]


def test_async_load_and_predict_are_awaited(load_code) -> None:
    runtime = load_code("""
        import asyncio
        class M:
            async def load(self, folder):
                await asyncio.sleep(0)
                self.factor = len(list(folder.glob("*.py")))
            async def predict(self, inputs):
                await asyncio.sleep(0)
                return {"y": inputs["x"] * self.factor}
    """)
    assert (runtime.is_async, runtime.concurrency) == (True, 64)
    assert asyncio.iscoroutinefunction(runtime.predict)
    assert answer(runtime, x=[5])["y"].tolist() == [5]


def test_an_async_load_works_where_a_loop_is_running(load_code) -> None:
    code = "class M:\n async def load(self): self.k = 2\n def predict(self, inputs): return inputs['x'] * self.k"

    async def within_a_loop() -> Runtime:
        return load_code(code)

    assert answer(asyncio.run(within_a_loop()), x=[5])["output"].tolist() == [10]


def test_a_plain_predict_that_returns_a_coroutine_is_told_to_be_async(load_code) -> None:
    runtime = load_code("""
        async def work(x): return x
        class M:
            def predict(self, inputs): return work(inputs["x"])
    """)
    with pytest.raises(RuntimeFailed, match="async def"):
        answer(runtime, x=[1])


@pytest.mark.parametrize("error", ["ValueError", "KeyError", "ZeroDivisionError"])
def test_an_exception_of_the_code_is_the_models_own(load_code, error: str) -> None:
    runtime = load_code(f"class M:\n def predict(self, inputs): raise {error}('oh')")
    with pytest.raises(eval(error)):
        answer(runtime, x=[1])


def test_invalid_input_is_how_the_code_refuses_a_request(load_code) -> None:
    runtime = load_code("""
        from server.errors import InvalidInput
        class M:
            def predict(self, inputs): raise InvalidInput("x must be positive")
    """)
    with pytest.raises(InvalidInput, match="x must be positive"):
        answer(runtime, x=[1])


@pytest.mark.parametrize("name", ["close", "unload"])
@pytest.mark.parametrize("prefix", ["", "async "])
def test_closing_calls_the_class(load_code, tmp_path: Path, name: str, prefix: str) -> None:
    mark = tmp_path / "closed"
    runtime = load_code(f"""
        import pathlib
        class M:
            def predict(self, inputs): return 1
            {prefix}def {name}(self): pathlib.Path({str(mark)!r}).touch()
    """)
    assert not mark.exists()
    runtime.close()
    assert mark.exists()


@pytest.mark.parametrize(("declared", "expected"), [("concurrency = 1", 1), ("", 4), ("concurrency = 16", 16)])
def test_the_class_decides_how_many_calls_run_at_once(load_code, declared: str, expected: int) -> None:
    assert load_code(f"class M:\n {declared}\n def predict(self, inputs): return 1").concurrency == expected


def test_the_only_class_with_predict_is_the_model(load_code) -> None:
    code = """
        import abc
        from collections import OrderedDict
        class Base(abc.ABC):
            @abc.abstractmethod
            def predict(self, inputs): ...
        class Config: pass
        class Doubler(Base):
            def predict(self, inputs): return inputs["x"] * 2
    """
    assert load_code(code).properties["class"] == "model.py:Doubler"


def test_the_named_class_is_the_model_even_if_imported(load_code) -> None:
    two = "class A:\n def predict(self, inputs): return 1\nclass B(A): pass"
    assert load_code(two, "A").properties["class"] == "model.py:A"
    assert load_code(two, "B").properties["class"] == "model.py:B"
    assert answer(load_code("from .parts import A", "A", parts=two), x=[1])["output"] == 1


NAMED = "class {0}:\n def predict(self, inputs): return 1\n"


def class_a(*body: str) -> str:
    """A class with these lines and an empty predict."""
    return "class A:\n" + "".join(f" {line}\n" for line in (*body, "def predict(self, inputs): pass"))


X_OF_2 = "{'name': 'x', 'datatype': 'FP32', 'shape': [2]}"
BROKEN = [
    ("x = 1", "", ["no class with a predict method"]),
    (NAMED.format("A") + NAMED.format("B"), "", ["several classes with a predict method: A, B", "model.py:A"]),
    (NAMED.format("Forecaster"), "Forecastr", ["no class 'Forecastr'", "did you mean 'Forecaster'"]),
    ("class A: pass", "A", ["class A", "no predict method"]),
    ("class A:\n  def predict(self inputs): pass", "", ["model.py:2", "SyntaxError"]),
    ("import numpy\n\nx = 1 / 0", "", ["model.py:3", "ZeroDivisionError: division by zero"]),
    ("raise SystemExit(3)", "", ["model.py:1", "SystemExit: 3"]),
    (class_a("def __init__(self, name): pass"), "", ["A()", "TypeError", "'name'"]),
    (class_a("def load(self, folder):", "  open(folder / 'w.bin')"), "", ["A.load()", "model.py:3", "FileNotFoundError"]),
    (class_a("async def load(self, folder): raise OSError('disk\\ngone')"), "", ["model.py:2: OSError: disk"]),
    (class_a("batched = True"), "", ["is batched", "not both declared"]),
    (class_a("batched = 1"), "", ["A.batched", "True or False"]),
    (class_a("concurrency = 0"), "", ["A.concurrency", "1 or more"]),
    (class_a("inputs = {'x': 'FP32'}"), "", ["A.inputs", "dict", "make it a list"]),
    (
        class_a("inputs = [{'name': 'x', 'dtype': 'FP32', 'shape': [1]}]"),
        "",
        ["A.inputs", "[0]", "'dtype'", "did you mean 'datatype'"],
    ),
    (class_a("inputs = [{'name': 'x', 'datatype': 'FP32'}]"), "", ["lacks 'shape'"]),
    (class_a("inputs = [{'name': 'x', 'datatype': 'float', 'shape': [1]}]"), "", ["unknown datatype 'float'", "FP32"]),
    (class_a("inputs = [{'name': 'x', 'datatype': 'FP32', 'shape': [None]}]"), "", ["shape [None]", "-1"]),
    (class_a("inputs = [{'name': 1, 'datatype': 'FP32', 'shape': [1]}]"), "", ["name 1"]),
    (class_a(f"inputs = [{X_OF_2}, {X_OF_2}]"), "", ["a name twice"]),
    (class_a(f"inputs = outputs = [{X_OF_2}]", "batched = True"), "", ["'x' has no free first dimension"]),
]


@pytest.mark.parametrize(("code", "name", "says"), BROKEN)
def test_code_that_can_not_be_served_is_refused_in_one_line_that_says_where(
    load_code, code: str, name: str, says: list[str]
) -> None:
    before = set(sys.path)
    with pytest.raises(ModelLoadError) as caught:
        load_code(code, name)
    text = str(caught.value)
    assert "\n" not in text
    assert "model.py" in text
    for part in says:
        assert part in text
    assert set(sys.path) == before


def test_code_is_not_run_unless_it_is_trusted(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "model.py").write_text(f"open({str(mark)!r}, 'w')\n" + NAMED.format("A"))
    with pytest.raises(ModelLoadError, match="trust"):
        load(ModelFile(tmp_path / "model.py", "python", "python"), LoadOptions())
    assert not mark.exists()


def test_a_missing_package_is_left_to_be_named_by_the_server(load_code) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_code("import no_such_package")


READS_HELPER = """
    {0}
    class M:
        def predict(self, inputs): return helpers.factor * inputs["x"]
"""


@pytest.mark.parametrize("statement", ["import helpers", "from . import helpers"])
def test_two_models_may_have_helpers_of_the_same_name(load_code, statement: str) -> None:
    code = READS_HELPER.format(statement)
    first = load_code(code, folder="v1", helpers="factor = 1")
    second = load_code(code, folder="v2", helpers="factor = 2")
    assert [answer(r, x=[10])["output"].tolist() for r in (first, second)] == [[10], [20]]
    first.close()
    third = load_code(code, folder="v2", helpers="factor = 3000")
    assert [answer(r, x=[10])["output"].tolist() for r in (second, third)] == [[20], [30000]]


def test_a_helper_that_is_imported_late_is_the_models_own_as_long_as_it_is_the_newest(load_code) -> None:
    late = "class M:\n def predict(self, inputs):\n  import late_helper\n  return late_helper.number"
    first = load_code(late, folder="v1", late_helper="number = 1")
    assert answer(first, x=[0])["output"] == 1
    second = load_code(late, folder="v2", late_helper="number = 2")
    assert answer(second, x=[0])["output"] == 2
    second.close()
    assert answer(first, x=[0])["output"] == 1


def test_a_sibling_file_shadows_neither_numpy_nor_the_server(load_code) -> None:
    numpy, server = sys.modules["numpy"], sys.modules["server"]
    runtime = load_code(
        "import numpy, server.errors\nclass M:\n def predict(self, i): return numpy.float32(numpy.pi)", numpy="pi = 3", server=""
    )
    assert answer(runtime, x=[1])["output"] == np.float32(np.pi)
    runtime.close()
    assert (sys.modules["numpy"], sys.modules["server"]) == (numpy, server)


def test_closing_leaves_nothing_behind(load_code) -> None:
    path, modules = list(sys.path), set(sys.modules)
    runtime = load_code(READS_HELPER.format("import helpers"), helpers="factor = 1")
    runtime.close()
    gc.collect()
    assert sys.path == path
    assert set(sys.modules) - modules == set()


def test_a_folder_that_was_importable_before_stays_so(load_code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / "model")
    monkeypatch.setattr(sys, "path", [*sys.path, folder])
    load_code(READS_HELPER.format("import helpers"), helpers="factor = 1").close()
    assert folder in sys.path


def test_samples_of_the_class_are_used_and_checked(load_code) -> None:
    code = """
        class M:
            inputs = [{"name": "t", "datatype": "BYTES", "shape": [-1]}]
            def predict(self, inputs): return list(inputs["t"])
            def sample(self, rows): return %s
    """
    runtime = load_code(code % "{'t': ['é'] * rows}")
    assert runtime.sample(runtime.signatures[0], 2)["t"].tolist() == ["é".encode()] * 2
    runtime = load_code(code % "['a'] * rows")
    with pytest.raises(RuntimeFailed, match="sample returned list"):
        runtime.sample(runtime.signatures[0], 2)


def test_without_a_sample_of_its_own_declared_inputs_are_made_up(load_code) -> None:
    runtime = load_code(DECLARED % ("FP32", [-1, 2], "inputs['x']"))
    assert type(runtime.signatures[0]) is Signature
    assert runtime.sample(runtime.signatures[0], 3)["x"].shape == (3, 2)
