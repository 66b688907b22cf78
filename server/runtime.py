"""What a runtime is: the code for one framework, as the server sees it.  Runtimes live in `predictors/`.

The server finds a runtime by name through the entry points of the group `serveplane.runtimes`; each names a function
`load(found: ModelFile, options: LoadOptions) -> Runtime`.  `serveplane.formats` names the functions
`find(path, runtime) -> ModelFile` that tell which runtime a path on disk wants.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from server.class_labels import FILE, ClassLabels, class_labels_of
from server.errors import ModelLoadError
from server.settings import memory_budget
from server.tensors import Array, Signature, synthetic


@dataclass(frozen=True)
class ModelFile:
    """A model on disk: what to open (a file or a folder), its format ("skops", "onnx", …) and the runtime for it."""

    path: Path
    format: str
    runtime: str


@dataclass(frozen=True)
class LoadOptions:
    """What a runtime is told when it loads.

    `threads` is the CPU budget of the process, from its cgroup's quota.  `trust_code`: the model's file may run code
    when it is opened (pickle, a Python class); granted for a local path that a person named, or by a flag.
    """

    threads: int = 1
    trust_code: bool = False
    strict_versions: bool = False
    # further settings of one runtime, as `--runtime-option NAME=VALUE` gives them
    extra: Mapping[str, str] = field(default_factory=dict)


class Runtime(abc.ABC):
    """A loaded model.  `predict` may be called from several threads at once, at most `concurrency` of them."""

    # "<project>_<format>", as Open Inference's metadata has it
    platform: str = ""
    # the first is the default; the others are chosen by name, or by the names of a request's inputs
    signatures: tuple[Signature, ...] = ()
    # names of classes, found at load
    labels: ClassLabels = ClassLabels()
    # facts for the metadata: versions, classes, free text
    properties: Mapping[str, str] = {}
    # what a person should know: a version mismatch, a pickle
    warnings: tuple[str, ...] = ()
    # what a person may want to know: what was found out and done at load
    notes: tuple[str, ...] = ()
    concurrency: int = 1
    # `predict` is a coroutine function, run in the event loop
    is_async: bool = False

    @abc.abstractmethod
    def predict(
        self, signature: Signature, inputs: dict[str, Array], outputs: tuple[str, ...], parameters: Mapping[str, Any]
    ) -> dict[str, Array]:
        """The named outputs for inputs that `signature.check` has let pass (read-only views of the caller's bytes).

        Raises InvalidInput where the values are what is wrong (the framework's own input validation), and anything
        else where the model is.  Outputs have the dtypes of their specs; BYTES outputs may hold str.
        """

    def sample(self, signature: Signature, rows: int, seed: int = 0) -> dict[str, Array]:
        """Inputs that the model should accept, for warm-up, self tests and the example a user pastes."""
        return {s.name: synthetic(s, rows, seed + i) for i, s in enumerate(signature.inputs) if not s.optional}

    def close(self) -> None:  # noqa: B027 (nothing to give back is the usual case)
        """Give back what the garbage collector would not."""


def find_model(path: Path, runtime: str | None = None) -> ModelFile:
    """The model at a path; ModelLoadError where there is none, or more than one and `runtime` does not decide."""
    finders = [e.load() for e in entry_points(group="serveplane.formats")]
    if not finders:
        raise ModelLoadError("no runtimes are installed", "install the project itself, for example with ./scripts/install")
    errors = []
    for find in finders:
        try:
            found: ModelFile = find(path, runtime)
            return found
        except ModelLoadError as error:
            errors.append(error)
    raise errors[0]


def load_runtime(found: ModelFile, options: LoadOptions) -> Runtime:
    """Open a model with its runtime, in the calling thread; ModelLoadError says what is wrong and what to do."""
    known = {e.name: e for e in entry_points(group="serveplane.runtimes")}
    if found.runtime not in known:
        raise ModelLoadError(f"there is no runtime {found.runtime!r}", f"choose one of: {', '.join(sorted(known))}")
    _check_memory(found.path)
    try:
        load: Callable[[ModelFile, LoadOptions], Runtime] = known[found.runtime].load()
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"{found.path} needs the {found.runtime} runtime, and the Python package {error.name!r} is not installed",
            f"run: pip install 'serveplane[{found.runtime}]'",
        ) from error
    try:
        runtime = load(found, options)
        runtime.labels = class_labels_of(found.path, runtime.properties)
        return runtime
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{FILE} beside {found.path} is not UTF-8", "write it anew, a class's name a line") from error
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"{found.path} needs the Python package {error.name!r}, which is not installed", f"run: pip install {error.name}"
        ) from error


def _check_memory(path: Path) -> None:
    """ModelLoadError where a model's files alone are more than the process may use: it would be killed while it loads."""
    budget = memory_budget()
    if budget is None or not path.exists():
        return
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
    if size > budget:
        raise ModelLoadError(
            f"{path} is {size / 1e9:.1f} GB, and this process may use {budget / 1e9:.1f} GB of memory",
            "give it more memory than that, or serve a smaller model",
        )
