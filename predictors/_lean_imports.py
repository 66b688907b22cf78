"""Importing scikit-learn and skops without the parts that no prediction needs.

Beside a bare server, loading a small model from a skops file took 134 MB and 1.8 s with plain imports, and 60 MB and 0.7 s
like this.  What is left out, and about what that saves (scikit-learn 1.9, scipy 1.17, skops 0.16):

    pandas                     30 MB   imported only to be compared with; a model that needs DataFrames loads it
    scipy.stats                25 MB   imported by name all over scikit-learn, called by hardly any predictor
    sklearn.all_estimators()   20 MB   skops imports all of scikit-learn to list what to trust; here it asks by name
    other parts of scipy       12 MB   integrals, splines, rotations, linear programs
    ensembles, for skops        5 MB   one private class, whose name is enough
    numpy.f2py                  4 MB   a Fortran compiler's front
    rich                        4 MB   bars that show how training goes on

Nothing is taken away: whoever touches a deferred module in earnest gets the real one, loaded then.  What is deferred goes by
the module that imports, and not by a moment in time, so that other threads' imports are not affected.
"""

import contextlib
import importlib
import inspect
import itertools
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

# Deferred module -> the names that scikit-learn and scipy import from it and do nothing with until they call them (chi2 is
# asked for its methods).  Any other name, and any other importer, gets the real module at once.
DEFERRED: dict[str, frozenset[str]] = {
    "numpy.f2py": frozenset(),
    "scipy.integrate": frozenset({"trapezoid"}),
    "scipy.interpolate": frozenset({"BSpline"}),
    "scipy.linalg.interpolative": frozenset({"interp_decomp"}),
    "scipy.optimize._highspy._highs_wrapper": frozenset({"_highs_wrapper"}),
    "scipy.optimize._linprog_highs": frozenset({"_highs_to_scipy_status_message", "_linprog_highs"}),
    "scipy.optimize._shgo": frozenset({"shgo"}),
    "scipy.spatial.transform": frozenset(),
    "scipy.stats": frozenset({"chi2", "gmean", "rankdata", "spearmanr"}),
}

# (module, who imports it): an import that may fail, because it says so itself.  rich draws the progress of training.  The
# three of pandas compare values with pandas.NA or keep the module for later; while nobody has loaded pandas, no value can
# be pandas.NA.
REFUSED = frozenset(
    {
        ("pandas", "sklearn.utils.fixes"),
        ("pandas", "sklearn.utils._mask"),
        ("pandas", "sklearn.utils._missing"),
        ("rich", "sklearn.callback._progressbar"),
        ("sklearn.ensemble", "skops.io._trusted_types"),
    }
)
# what sklearn.utils.all_estimators leaves out
_NEVER_PUBLIC = frozenset({"conftest", "estimator_checks", "experimental", "externals", "setup", "tests"})
_TRUSTED_BY_NAME = "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper"

_lock = threading.Lock()


class DeferredModule(ModuleType):
    """Stands in `sys.modules` for a module until somebody needs it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        # empty, so that the import of a submodule comes to `LeanFinder`
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        # asked by the import system and by warnings of every module they meet
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} is not loaded yet and has no {name!r}")
        if name in DEFERRED[self.__name__] and _importing(_caller()):
            return DeferredObject(self, name)
        return getattr(self.real(), name)

    def __dir__(self) -> Iterable[str]:
        return dir(self.real())

    def real(self) -> ModuleType:
        with _lock:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


class DeferredObject:
    """A function of a deferred module, or an object with methods, that loads the module when it is used."""

    def __init__(self, module: DeferredModule, name: str) -> None:
        self.__module, self.__name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.__module.real(), self.__name)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(getattr(self.__module.real(), self.__name), name)


class _Found(Loader):
    """Gives the import system a module that is in `sys.modules` already, where it would execute it a second time.

    The import system notices that the module has come, and then goes by the module's own `__spec__`; so that is ours for
    that long.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module, self.own = module, module.__spec__
        self.spec = module.__spec__ = ModuleSpec(module.__name__, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own


class LeanFinder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if (name, _caller().f_globals.get("__name__")) in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r} (not loaded for a prediction)", name=name)
        parent = sys.modules.get(name.rpartition(".")[0])
        if not isinstance(parent, DeferredModule):
            return None
        # the import system asked for a submodule of a stand-in, and would not notice that loading the real parent has
        # loaded the submodule too
        parent.real()
        if name in sys.modules:
            return _Found(sys.modules[name]).spec
        return PathFinder.find_spec(name, sys.modules[parent.__name__].__path__)


def _importing(frame: FrameType) -> bool:
    """Whether a frame is the body of a module of scikit-learn or scipy, which is being imported."""
    return frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__", "").startswith(("sklearn.", "scipy."))


def _caller() -> FrameType:
    """The frame below the caller's, the import system's own left out."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame


def install() -> None:
    """Defer what is not loaded yet, from now on.  Again is harmless."""
    if any(isinstance(f, LeanFinder) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, LeanFinder())
    for name in DEFERRED:
        if name not in sys.modules:
            sys.modules[name] = DeferredModule(name)
    import numpy

    # numpy hands out its submodules by importing them, which finds the stand-in and asks numpy for it: without the
    # attribute that never ends
    numpy.f2py = sys.modules["numpy.f2py"]


def skops_io() -> ModuleType:
    """`skops.io`, imported without every module of scikit-learn; tell it what a file holds with `trust_estimators`."""
    if "skops.io" in sys.modules:
        return sys.modules["skops.io"]
    with _without_all_estimators(), _numeric_modules_only():
        skops = importlib.import_module("skops.io")
    _trusted().SKLEARN_INTERNAL_TYPE_NAMES.append(_TRUSTED_BY_NAME)
    return skops


def trust_estimators(names: Iterable[str]) -> None:
    """Put those of the names that skops trusts by itself on its list of estimators, which `skops_io` left empty."""
    known = _trusted().SKLEARN_ESTIMATOR_TYPE_NAMES
    known.extend(name for name in names if name not in known and is_public_estimator(name))


def is_public_estimator(name: str) -> bool:
    """Whether a dotted name is an estimator that scikit-learn shows to its users: the same ones skops trusts.

    Only public modules of scikit-learn are imported to find out, whatever the name asks for.
    """
    module, _, attribute = name.rpartition(".")
    parts = module.split(".")
    if parts[0] != "sklearn" or _NEVER_PUBLIC.intersection(parts) or attribute.startswith("_"):
        return False
    public = ".".join(itertools.takewhile(lambda part: not part.startswith("_"), parts))
    try:
        found = getattr(importlib.import_module(public), attribute, None)
    except ImportError:
        return False
    return (
        inspect.isclass(found)
        and issubclass(found, importlib.import_module("sklearn.base").BaseEstimator)
        and not inspect.isabstract(found)
        and f"{found.__module__}.{found.__qualname__}" == name
        and name != "sklearn.base.BaseEstimator"
    )


def _trusted() -> ModuleType:
    return importlib.import_module("skops.io._trusted_types")


@contextlib.contextmanager
def _without_all_estimators() -> Iterator[None]:
    utils: Any = importlib.import_module("sklearn.utils")
    real = utils.all_estimators
    utils.all_estimators = lambda type_filter=None: []
    try:
        yield
    finally:
        utils.all_estimators = real


@contextlib.contextmanager
def _numeric_modules_only() -> Iterator[None]:
    """Let skops look for a ufunc's home in numpy and scipy only.

    It asks every loaded module for each of 400 names, which takes 0.25 s and wakes whatever loads lazily.
    """
    utils: Any = _skops_utils()
    homes = {
        name: module
        for name, module in sys.modules.items()
        if name.startswith(("numpy", "scipy.special")) and not isinstance(module, DeferredModule)
    }
    utils.sys = SimpleNamespace(modules=homes)
    try:
        yield
    finally:
        utils.sys = sys


def _skops_utils() -> ModuleType:
    """`skops.io._utils` without the rest of `skops.io`, which imports it."""
    package = ModuleType("skops.io")
    spec = PathFinder.find_spec("skops.io", importlib.import_module("skops").__path__)
    package.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    sys.modules["skops.io"] = package
    try:
        return importlib.import_module("skops.io._utils")
    finally:
        del sys.modules["skops.io"]
