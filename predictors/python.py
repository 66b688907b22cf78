"""A user's own Python class as a model: import it from its file, call it, and make tensors of whatever it returns.

    class Model:
        inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]      # optional: without, any inputs are taken
        outputs = [{"name": "y", "datatype": "FP32", "shape": [-1]}]        # optional: without, whatever predict returns
        batched = True          # rows do not depend on each other, so requests may be joined; default False
        concurrency = 2         # calls of predict at once; default 4, and 64 for `async def predict`

        def load(self, folder): ...                     # optional; called once, may be async
        def predict(self, inputs, parameters): ...      # `parameters` may be left out; may be async
        def sample(self, rows): ...                     # optional: inputs for warm-up and examples
        def close(self): ...                            # optional

A request that does not fit is told so by raising `server.errors.InvalidInput`; any other exception is the model's fault.
An async `load` runs in an event loop of its own, so what belongs to a loop (an HTTP session) is made in `predict`.

Sibling modules can be imported relatively (`from .features import scale`), which is private to the model, or by their
bare name, which is looked up last, so that they shadow nothing: the folder is put at the end of `sys.path`, only while
its model is the one loaded last.
"""

import asyncio
import importlib.util
import inspect
import itertools
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from server.errors import InvalidInput, ModelLoadError, RuntimeFailed
from server.runtime import LoadOptions, ModelFile, Runtime
from server.tensors import DATATYPES, Array, OpenSignature, Signature, TensorSpec, datatype, datatype_of, did_you_mean

SPEC_KEYS = ("name", "datatype", "shape", "optional", "nullable")
# The name of a result that comes without one.
UNNAMED_OUTPUT = "output"
_PACKAGE = "_serveplane_model_"
_numbers = itertools.count(1)
_importing = threading.Lock()


def load(found: ModelFile, options: LoadOptions) -> Runtime:
    """Import the class, make an instance and call its `load`, all in this thread.  ModelLoadError names file and line."""
    path = found.path.resolve()
    if not options.trust_code:
        raise ModelLoadError(
            f"{path} is Python code, which can do anything this process can", "allow it with --trust-pickle if you trust it"
        )
    if options.extra:
        raise ModelLoadError(f"the python runtime has no option {next(iter(options.extra))!r}", "leave --runtime-option out")
    module = _import(path)
    try:
        chosen = _class_in(module, found.format.partition(":")[2], path)
        instance = _started(chosen, path)
        signature = signature_of(chosen, path)
        asynchronous = inspect.iscoroutinefunction(instance.predict)
        return (AsyncPythonRuntime if asynchronous else PythonRuntime)(instance, module, signature)
    except BaseException:
        _forget(module)
        raise


class PythonRuntime(Runtime):
    """An instance of the user's class whose `predict` is a plain function."""

    platform = "python_class"

    def __init__(self, instance: Any, module: ModuleType, signature: Signature) -> None:
        self._instance, self._module = instance, module
        file = Path(str(module.__file__))
        self._predict: Callable[..., Any] = instance.predict
        self._passes_parameters = "parameters" in inspect.signature(instance.predict).parameters
        self.signatures = (signature,)
        self.concurrency = _concurrency(instance, 64 if self.is_async else 4, file)
        self.properties = {"class": f"{file.name}:{type(instance).__name__}"}
        if isinstance(signature, OpenSignature):
            undeclared = [name for name, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)) if not specs]
            self.properties |= {"signature": f"open: the class declares no {' and no '.join(undeclared)}"}

    def predict(
        self, signature: Signature, inputs: dict[str, Array], outputs: tuple[str, ...], parameters: Mapping[str, Any]
    ) -> dict[str, Array]:
        returned = self._call(inputs, parameters)
        if inspect.isawaitable(returned):
            if inspect.iscoroutine(returned):
                returned.close()
            raise RuntimeFailed("predict returned an awaitable; declare it with `async def`")
        return results(returned, signature, outputs)

    def _call(self, inputs: dict[str, Array], parameters: Mapping[str, Any]) -> Any:
        # Whether an array is a view of the request depends on batching, and users write into their arguments.
        own = {name: array if array.flags.writeable else array.copy() for name, array in inputs.items()}
        return self._predict(own, parameters=parameters) if self._passes_parameters else self._predict(own)

    def sample(self, signature: Signature, rows: int, seed: int = 0) -> dict[str, Array]:
        if not hasattr(self._instance, "sample"):
            return super().sample(signature, rows, seed)
        values = self._instance.sample(rows)
        if not isinstance(values, Mapping):
            raise RuntimeFailed(f"sample returned {_kind(values)}, expected a dict of arrays by input name")
        specs = {s.name: s for s in signature.inputs}
        arrays = {str(n): tensor(v, specs.get(n), f"sample returned input {n!r}") for n, v in values.items()}
        return {n: _encoded(a) if a.dtype == object else a for n, a in arrays.items()}

    def close(self) -> None:
        for name in ("close", "unload"):
            end = getattr(self._instance, name, None)
            if callable(end):
                _wait(end())
                break
        _forget(self._module)


class AsyncPythonRuntime(PythonRuntime):
    """An instance whose `predict` is a coroutine function."""

    is_async = True

    async def predict(  # type: ignore[override]  # `is_async` tells the caller to await it
        self, signature: Signature, inputs: dict[str, Array], outputs: tuple[str, ...], parameters: Mapping[str, Any]
    ) -> dict[str, Array]:
        return results(await self._call(inputs, parameters), signature, outputs)


class _ModelFolders:
    """The folder of the newest living model is the last entry of `sys.path`, and no other model's folder is on it.

    Two versions of a model each have a `helpers.py`: when the newer one comes, the older one's modules leave
    `sys.modules` (it keeps the objects that it imported), and when the newer one goes, they may come back.
    """

    def __init__(self) -> None:
        self._living: list[tuple[str, str]] = []
        self._imported_before: frozenset[str] = frozenset()
        self._appended = ""

    def push(self, package: str, folder: str) -> None:
        self._hide()
        self._living.append((package, folder))
        self._show()

    def drop(self, package: str) -> None:
        if all(package != p for p, _ in self._living):
            return
        self._hide()
        self._living = [(p, f) for p, f in self._living if p != package]
        self._show()

    def _show(self) -> None:
        if self._living and self._living[-1][1] not in sys.path:
            self._appended = self._living[-1][1]
            sys.path.append(self._appended)
        self._imported_before = frozenset(sys.modules)

    def _hide(self) -> None:
        if self._living:
            folder = Path(self._living[-1][1])
            for name in [n for n in sys.modules if n.partition(".")[0] not in self._imported_before and _lies_in(n, folder)]:
                del sys.modules[name]
        if self._appended in sys.path:
            sys.path.remove(self._appended)
        self._appended = ""


def _lies_in(name: str, folder: Path) -> bool:
    """Whether the top-level package of a loaded module was found directly in that folder."""
    file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
    return file is not None and folder in (Path(file).parent, Path(file).parent.parent if Path(file).stem == "__init__" else None)


_folders = _ModelFolders()


def _import(path: Path) -> ModuleType:
    """The file as a module of a private package whose `__path__` is its folder."""
    package = ModuleType(f"{_PACKAGE}{next(_numbers)}")
    package.__path__ = [str(path.parent)]
    name = f"{package.__name__}.{path.stem if path.stem.isidentifier() else 'model'}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelLoadError(f"{path} can't be imported as Python code", "name a .py file")
    module = importlib.util.module_from_spec(spec)
    with _importing:
        _folders.push(package.__name__, str(path.parent))
        sys.modules[package.__name__], sys.modules[name] = package, module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        _forget(module)
        if isinstance(error, ModuleNotFoundError) or not isinstance(error, Exception | SystemExit):
            raise
        raise _failed("importing it", path, error) from error
    return module


def _forget(module: ModuleType) -> None:
    package = module.__name__.partition(".")[0]
    with _importing:
        _folders.drop(package)
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            del sys.modules[name]


def _class_in(module: ModuleType, name: str, path: Path) -> type[Any]:
    """The named class, or the file's only one with a `predict` method."""
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    fitting = [c for c in own if callable(getattr(c, "predict", None)) and not inspect.isabstract(c)]
    if name:
        chosen = getattr(module, name, None)
        if not inspect.isclass(chosen):
            classes = ", ".join(c.__name__ for c in own) or "none"
            raise ModelLoadError(
                f"{path} has no class {name!r}{did_you_mean(name, [c.__name__ for c in own])}; its classes: {classes}"
            )
        if not callable(getattr(chosen, "predict", None)):
            raise ModelLoadError(f"class {name} in {path} has no predict method", "add `def predict(self, inputs)`")
        return chosen
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ModelLoadError(f"{path} defines no class with a predict method", "add one with `def predict(self, inputs)`")
    names = ", ".join(c.__name__ for c in fitting)
    raise ModelLoadError(
        f"{path} defines several classes with a predict method: {names}", f"name one: {path.name}:{fitting[0].__name__}"
    )


def _started(chosen: type[Any], path: Path) -> Any:
    doing = f"{chosen.__name__}()"
    try:
        instance = chosen()
        start = getattr(instance, "load", None)
        if callable(start):
            doing = f"{chosen.__name__}.load()"
            _wait(start(path.parent) if inspect.signature(start).parameters else start())
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise _failed(doing, path, error) from error
    return instance


def _wait(value: Any) -> Any:
    """The value, or the result of an awaitable: in another thread, since this one may have a running loop."""
    if not inspect.isawaitable(value):
        return value

    async def result(awaitable: Awaitable[Any]) -> Any:
        return await awaitable

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(lambda: asyncio.run(result(value))).result()


def _failed(doing: str, path: Path, error: BaseException) -> ModelLoadError:
    """One line: what was being done, the last line of the user's own folder that was running, and the exception."""
    where = str(path)
    if isinstance(error, SyntaxError) and error.filename:
        where, text = f"{error.filename}:{error.lineno}", error.msg
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(path.parent)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else where
        text = next(iter(str(error).splitlines()), "")
    return ModelLoadError(f"{doing} failed at {where}: {type(error).__name__}{f': {text}' if text else ''}")


def signature_of(chosen: type[Any], path: Path) -> Signature:
    """The signature that the class declares with `inputs`, `outputs` and `batched`; open where it declares none."""
    inputs, outputs = (
        _specs(getattr(chosen, name, None), f"{chosen.__name__}.{name} in {path}") for name in ("inputs", "outputs")
    )
    batched = getattr(chosen, "batched", False)
    if not isinstance(batched, bool):
        raise ModelLoadError(f"{chosen.__name__}.batched in {path} is {batched!r}", "make it True or False")
    if not batched:
        return (Signature if inputs and outputs else OpenSignature)("serving_default", inputs, outputs, batched=False)
    fixed = [s.name for s in (*inputs, *outputs) if s.shape[:1] != (-1,)]
    if fixed or not (inputs and outputs):
        what = f"{fixed[0]!r} has no free first dimension" if fixed else "its inputs and outputs are not both declared"
        raise ModelLoadError(
            f"{chosen.__name__} in {path} is batched, and {what}",
            "declare both with shapes that start with -1, or drop `batched`",
        )
    return Signature("serving_default", inputs, outputs, batched=True)


def _specs(declared: object, what: str) -> tuple[TensorSpec, ...]:
    if declared is None:
        return ()
    if not isinstance(declared, list | tuple) or not all(isinstance(d, Mapping) for d in declared):
        raise ModelLoadError(
            f"{what} is {_kind(declared)}", 'make it a list like [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]'
        )
    specs = tuple(_spec(d, f"{what}[{i}]") for i, d in enumerate(declared))
    names = [s.name for s in specs]
    if len(set(names)) != len(names):
        raise ModelLoadError(f"{what} has a name twice: {', '.join(names)}", "give each tensor a name of its own")
    return specs


def _spec(declared: Mapping[Any, Any], what: str) -> TensorSpec:
    unknown = [k for k in declared if k not in SPEC_KEYS]
    missing = [k for k in SPEC_KEYS[:3] if k not in declared]
    if unknown or missing:
        problem = (
            f"has an unknown key {unknown[0]!r}{did_you_mean(str(unknown[0]), SPEC_KEYS)}" if unknown else f"lacks {missing[0]!r}"
        )
        raise ModelLoadError(f"{what} {problem}", f"its keys are: {', '.join(SPEC_KEYS)}")
    name, shape = declared["name"], declared["shape"]
    if not isinstance(name, str) or not name:
        raise ModelLoadError(f"{what} has the name {name!r}", "make it a text")
    if not isinstance(shape, list | tuple) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= -1 for n in shape):
        raise ModelLoadError(f"{what} has the shape {shape!r}", "make it a list of integers, with -1 for a free dimension")
    try:
        found = datatype(declared["datatype"])
    except InvalidInput as error:
        raise ModelLoadError(f"{what}: {error}") from error
    optional, nullable = (bool(declared.get(k, False)) for k in SPEC_KEYS[3:])
    return TensorSpec(name, found.name, tuple(shape), optional=optional, nullable=nullable)


def _concurrency(instance: Any, default: int, path: Path) -> int:
    declared = getattr(instance, "concurrency", default)
    if not isinstance(declared, int) or isinstance(declared, bool) or declared < 1:
        raise ModelLoadError(
            f"{type(instance).__name__}.concurrency in {path} is {declared!r}", "make it an integer of 1 or more"
        )
    return declared


def results(returned: Any, signature: Signature, outputs: tuple[str, ...]) -> dict[str, Array]:
    """The requested outputs of what `predict` returned, in their declared datatypes; RuntimeFailed where they do not fit."""
    specs = {s.name: s for s in signature.outputs}
    if isinstance(returned, Mapping):
        given = dict(returned)
    elif not _is_tensor_like(returned):
        raise RuntimeFailed(f"predict returned {_kind(returned)}, expected a dict of arrays, an array or a list")
    elif len(specs) > 1:
        raise RuntimeFailed(f"predict returned {_kind(returned)}, expected a dict with: {', '.join(specs)}")
    else:
        given = {next(iter(specs), UNNAMED_OUTPUT): returned}
    wanted: Iterable[Any] = outputs or given
    for name in wanted:
        if name not in given:
            there = ", ".join(map(str, given)) or "nothing"
            if specs:
                raise RuntimeFailed(f"predict returned no output {name!r}; it returned: {there}")
            raise InvalidInput(f"unknown output {name!r}{did_you_mean(name, map(str, given))}; the model gave: {there}")
    return {str(n): tensor(given[n], specs.get(n), f"predict returned output {n!r}") for n in wanted}


def tensor(value: Any, spec: TensorSpec | None, what: str) -> Array:
    """The value as an array that Open Inference can express, of the spec's datatype and shape where there is one."""
    if not _is_tensor_like(value):
        raise RuntimeFailed(f"{what} as {_kind(value)}, expected an array or a list")
    array = _array(value, what)
    if array.dtype.kind in "OSUT":
        array = _strings(array, what)
    try:
        have = datatype_of(array.dtype)
    except KeyError:
        raise RuntimeFailed(f"{what} with dtype {array.dtype}, for which Open Inference has no datatype") from None
    if spec is None:
        return array.astype(DATATYPES[have].dtype, copy=False)
    if len(array.shape) != len(spec.shape) or any(w not in (-1, n) for n, w in zip(array.shape, spec.shape, strict=True)):
        raise RuntimeFailed(f"{what} with shape {list(array.shape)}, declared is {list(spec.shape)}")
    return _converted(array, spec, what)


def _is_tensor_like(value: object) -> bool:
    return isinstance(value, list | tuple | int | float | str | bytes) or hasattr(value, "__array__")


def _array(value: Any, what: str) -> Array:
    leaf = value
    while isinstance(leaf, list | tuple) and leaf:
        leaf = leaf[0]
    # As objects, because numpy's own strings drop trailing zero bytes.
    as_objects = isinstance(leaf, str | bytes) or leaf is None
    try:
        array: Array = np.asarray(value, dtype=object if as_objects else None)
    except ValueError as error:
        raise RuntimeFailed(f"{what} as a list that is no array: {next(iter(str(error).splitlines()), '')}") from error
    return array


def _strings(array: Array, what: str) -> Array:
    array = array.astype(object)
    for value in array.ravel().tolist():
        if not (isinstance(value, str | bytes) or value is None):
            raise RuntimeFailed(f"{what} as an array of objects, among them {_kind(value)}; expected numbers, texts or bytes")
    return array


def _encoded(array: Array) -> Array:
    """Texts as bytes, which is how requests bring them."""
    encoded = np.empty(array.shape, object)
    encoded.ravel()[:] = [v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()]
    return encoded


def _converted(array: Array, spec: TensorSpec, what: str) -> Array:
    """The array in the declared dtype where its values survive (floats may lose digits), else RuntimeFailed."""
    want = DATATYPES[spec.datatype].dtype
    if array.dtype == want:
        return array
    have, kinds = array.dtype.kind, {"f": "fiub", "i": "iub", "u": "iub", "b": "b", "O": "O"}
    # A list without elements is float64 to numpy, whatever was meant.
    if array.size == 0 or have in kinds[want.kind]:
        with np.errstate(over="ignore"):
            converted: Array = array.astype(want)
        if want.kind not in "iu" or np.array_equal(converted, array):
            return converted
        raise RuntimeFailed(f"{what} with values beyond the declared {spec.datatype}")
    raise RuntimeFailed(f"{what} as {datatype_of(array.dtype)}, declared is {spec.datatype}")


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"the class {value.__name__}" if isinstance(value, type) else name
