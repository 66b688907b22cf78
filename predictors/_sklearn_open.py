"""A skops, joblib or pickle file → the object in it, and what a person should know about it.

Trust is decided here, before a byte that could run is read.  What the object can do is for `predictors/sklearn.py`.
"""

import importlib
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictors import _lean_imports, _pickle_scan
from server.errors import ModelLoadError
from server.runtime import LoadOptions, ModelFile

_lean_imports.install()

import joblib  # noqa: E402
import sklearn  # noqa: E402
from sklearn.exceptions import InconsistentVersionWarning  # noqa: E402

# skops asks about every numpy.dtype, which is data, and which a fitted SimpleImputer holds.
_HARMLESS = ("numpy.dtype",)
# scikit-learn follows the indices in a tree without looking, so that a forged one can crash the process or worse; skops and
# this runtime therefore want a word before they load one.
_TREES = ("sklearn.tree._tree.Tree", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor")
_LIBRARIES = ("numpy.", "scipy.", "sklearn.")


@dataclass(frozen=True)
class Opened:
    model: Any
    warnings: tuple[str, ...]
    # the version of scikit-learn that wrote the file
    made_with: str

    @property
    def runs_with(self) -> str:
        return str(sklearn.__version__)

    @property
    def mismatch(self) -> bool:
        return self.made_with != self.runs_with


def open_model(found: ModelFile, options: LoadOptions) -> Opened:
    """The object in a model file; ModelLoadError says why not."""
    if found.format == "skops":
        return _opened(found, lambda: _open_skops(found.path, options), ())
    if not options.trust_code:
        raise ModelLoadError(
            f"{found.path} is a {found.format} file, and one of those can run any code when it is opened",
            "save the model with skops.io.dump instead, or, if you trust whoever made the file, start with --trust-pickle",
        )
    text = f"{found.path.name} is a {found.format} file, which runs code when it is opened; prefer skops: skops.io.dump(model, …)"
    suspicious = _pickle_scan.suspicious_globals(found.path)
    notes = [text]
    if suspicious:
        notes.append(f"{found.path.name} names {', '.join(suspicious)}, which no scikit-learn model needs")
    # joblib opens plain pickles too, and compressed ones, whatever their ending
    return _opened(found, lambda: joblib.load(found.path), tuple(notes))


def _opened(found: ModelFile, read: Callable[[], Any], notes: tuple[str, ...]) -> Opened:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = read()
        except ModelLoadError:
            raise
        except Exception as error:
            raise _explained(found, error) from error
    versions = [w.message for w in caught if isinstance(w.message, InconsistentVersionWarning)]
    made_with = str(versions[0].original_sklearn_version) if versions else str(sklearn.__version__)
    others = dict.fromkeys(_first_line(w.message) for w in caught if not isinstance(w.message, InconsistentVersionWarning))
    if versions:
        notes = (*notes, version_note(found.path, made_with))
    return Opened(model, (*notes, *others), made_with)


def version_note(path: Path, made_with: str) -> str:
    return (
        f"{path.name} was saved with scikit-learn {made_with} and runs with {sklearn.__version__}, which may give other"
        f" results; to have the same: pip install scikit-learn=={made_with}"
    )


def _open_skops(path: Path, options: LoadOptions) -> Any:
    """The object in a skops file that holds trusted types only.

    Those are skops' own; types that `trusted-types` names; and, in a file that may run code, all of the libraries', which
    is less than a pickle from the same place could do.
    """
    skops = _lean_imports.skops_io()
    with zipfile.ZipFile(path) as archive:
        schema = json.loads(archive.read("schema.json"))
    types = set(_type_names(schema))
    _lean_imports.trust_estimators(t for t in types if t.startswith("sklearn."))
    named = [t.strip() for t in options.extra.get("trusted-types", "").split(",") if t.strip()]
    libraries = _LIBRARIES if options.trust_code else ()
    allowed = [*_HARMLESS, *named, *(t for t in types if t.startswith(libraries))]
    try:
        return skops.load(path, trusted=allowed)
    except importlib.import_module("skops.io.exceptions").UntrustedTypesFoundException as error:
        untrusted = [t for t in skops.get_untrusted_types(file=path) if t not in allowed]
        forged = "" if set(untrusted).isdisjoint(_TREES) else " (a forged tree can crash the server, or worse)"
        raise ModelLoadError(
            f"{path} holds types that are not known to be safe: {', '.join(untrusted)}{forged}",
            f"if you trust whoever made the file: --runtime-option trusted-types={','.join([*named, *untrusted])}",
        ) from error


def _type_names(node: Any) -> Iterator[str]:
    """The dotted names of all types in a skops schema."""
    todo = [node]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if isinstance(node.get("__module__"), str):
                yield f"{node['__module__']}.{node.get('__class__')}"
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)


def _explained(found: ModelFile, error: Exception) -> ModelLoadError:
    """What went wrong while a file was opened, for the person who has the file."""
    path, made_with = found.path, _version_in(found)
    if isinstance(error, ModuleNotFoundError):
        return _missing_module(path, str(error.name), made_with)
    # pickle's two ways to say it
    missing = re.match(r"Can't get attribute '(?P<name>[^']+)' on <module '(?P<module>[^']+)'", str(error)) or re.match(
        r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'", str(error)
    )
    if missing and missing["module"] in ("__main__", "__mp_main__"):
        return ModelLoadError(
            f"{path} needs {missing['name']!r} from the script that saved it (__main__), which is not here",
            "move it into a module of its own, save the model again, and install that module where the server runs",
        )
    of_contents = isinstance(error, AttributeError | KeyError | TypeError | ValueError)
    if of_contents and made_with not in (None, sklearn.__version__):
        return ModelLoadError(
            f"{path} was saved with scikit-learn {made_with}, and {sklearn.__version__} can't open it: {_first_line(error)}",
            _install(made_with),
        )
    if missing:
        return ModelLoadError(
            f"{path} needs {missing['name']!r} from {missing['module']!r}, which is not there",
            "install the version of that package that the model was saved with",
        )
    return ModelLoadError(
        f"cannot read {path} ({path.stat().st_size} bytes) as {found.format}: {type(error).__name__}: {_first_line(error)}",
        "the file is corrupt, cut short, or of another kind; copy or save it again",
    )


def _missing_module(path: Path, name: str, made_with: str | None) -> ModelLoadError:
    if name.startswith("sklearn."):
        text = f"{path} needs {name}, which scikit-learn {sklearn.__version__} does not have"
        return ModelLoadError(text, _install(made_with) if made_with else "save the model again with this version")
    return ModelLoadError(
        f"{path} needs the Python module {name!r}, which is not installed", f"run: pip install {name.partition('.')[0]}"
    )


def _install(made_with: str | None) -> str:
    return f"install the version that made it: pip install scikit-learn=={made_with}"


def _version_in(found: ModelFile) -> str | None:
    """The version of scikit-learn that a file which can't be opened names itself."""
    if found.format != "skops":
        return _pickle_scan.sklearn_version(found.path)
    try:
        with zipfile.ZipFile(found.path) as archive:
            schema = archive.read("schema.json")
    except (OSError, KeyError, zipfile.BadZipFile):
        return None
    version = re.search(rb'"_sklearn_version": \{[^{}]*"content": "\\"([0-9][^"\\]*)', schema)
    return version[1].decode() if version else None


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
