"""The scikit-learn runtime: a fitted estimator in a skops, joblib or pickle file → predictions.

Opening files is in `_sklearn_open.py`, the input's columns in `_sklearn_schema.py`, the outputs in `_sklearn_outputs.py`,
faster ways to the same answers in `_sklearn_fast.py`.
scikit-learn itself is imported by `_sklearn_open.py`, leanly, and pandas only for a model that needs DataFrames.
"""

import json
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

from predictors import _sklearn_fast, _sklearn_onnx
from predictors._sklearn_fast import Faster
from predictors._sklearn_inputs import feed, input_specs, sample
from predictors._sklearn_open import Opened, open_model, version_note
from predictors._sklearn_outputs import METHODS, Output, guessed_output, outputs_of, tensor
from predictors._sklearn_schema import Schema, fitted, leading, nested, schema_of
from predictors._sklearn_shortcut import Method
from server.errors import InvalidInput, ModelLoadError
from server.runtime import LoadOptions, ModelFile, Runtime
from server.tensors import Array, Signature

TRIAL_ROWS = 2
# rows in one call for which a faster method has to give what the model gives
TRIED_ROWS = (1, 2, 50)
# Whose ValueError or TypeError is about the values: these modules of scikit-learn, and its functions called check…,
# validate… or assert….
_VALIDATION = re.compile(
    r"sklearn\.(utils\.(_encode|_mask|validation)|preprocessing\._(encoders|label|target_encoder)|impute\._\w+"
    r"|feature_extraction\.text)$"
)
_CHECK = re.compile(r"_*(check|validate|assert)_")

_loading = threading.Lock()


class SklearnRuntime(Runtime):
    def __init__(
        self, model: Any, schema: Schema, trial: "Trial", signatures: tuple[Signature, ...], methods: dict[str, Method]
    ) -> None:
        """`methods` are used in place of the model's own of these names."""
        self.signatures = signatures
        self._schema, self._positive = schema, trial.positive
        self._feeds = {s.name: feed(s.name, schema) for s in signatures}
        self._outputs = {o.spec.name: o for o in trial.outputs}
        self._methods = {o.method: getattr(model, o.method) for o in trial.outputs} | methods

    def predict(
        self, signature: Signature, inputs: dict[str, Array], outputs: tuple[str, ...], parameters: Mapping[str, Any]
    ) -> dict[str, Array]:
        x = self._feeds[signature.name](inputs)
        try:
            if len(outputs) == 1:
                output = self._outputs[outputs[0]]
                return {outputs[0]: tensor(output, self._methods[output.method](x))}
            wanted = [self._outputs[name] for name in outputs]
            # each method once, though a multi-output model has several outputs of one
            results = {method: self._methods[method](x) for method in dict.fromkeys(o.method for o in wanted)}
            return {o.spec.name: tensor(o, results[o.method]) for o in wanted}
        except (ValueError, TypeError) as error:
            if about_values(error):
                raise InvalidInput(str(error).strip().partition("\n")[0]) from error
            raise

    def sample(self, signature: Signature, rows: int, seed: int = 0) -> dict[str, Array]:
        return sample(signature, self._schema, rows, seed, self._positive)


# what --runtime-option may name
OPTIONS = ("accelerate", "string-columns", "trusted-types")
# what is used in place of scikit-learn's own code: what gives the same bits; what comes near them; nothing
ACCELERATE = ("exact", "onnx", "off")


@dataclass(frozen=True)
class Trial:
    """What a call with made-up rows told: the outputs, `predict` first, and whether each row has one of each."""

    outputs: tuple[Output, ...]
    batched: bool
    positive: bool
    note: str = ""


def load(found: ModelFile, options: LoadOptions) -> Runtime:
    """Open a fitted estimator; ModelLoadError says what is wrong with the file and what to do."""
    for name in options.extra:
        if name not in OPTIONS:
            raise ModelLoadError(f"the sklearn runtime has no option {name!r}", f"it has: {', '.join(OPTIONS)}")
    accelerate = options.extra.get("accelerate", "exact")
    if accelerate not in ACCELERATE:
        raise ModelLoadError(f"the option accelerate is {accelerate!r}", f"give one of: {', '.join(ACCELERATE)}")
    # while a file is opened and tried, warnings are caught, which is for the whole process
    with _loading:
        opened = open_model(found, options)
        model = opened.model
        if options.strict_versions and opened.mismatch:
            raise ModelLoadError(version_note(found.path, opened.made_with), "or start without --strict-versions")
        refuse_unservable(found.path, model)
        threadpoolctl.threadpool_limits(limits=options.threads)
        own = settle(model)
        schema = schema_of(model, options.extra.get("string-columns", "").split(","))
        if schema.frame and own and not schema.has_text and not _looks_at_frames(model):
            schema = replace(schema, frame=False)
            forget_names(model)
        trial = try_out(found.path, opened, schema)
        signatures = _signatures(schema, trial)
        faster = {} if accelerate == "off" or trial.note else _exact(model, schema, trial, signatures)
        warning = ""
        if accelerate == "onnx":
            faster, warning = _near(found.path, model, schema, trial, signatures[0], faster)
    runtime = SklearnRuntime(model, schema, trial, signatures, in_use(faster))
    runtime.platform = f"sklearn_{found.format}"
    runtime.properties = _properties(found, opened)
    if faster:
        runtime.properties["answered_by"] = _sklearn_fast.summary(faster)
        runtime.notes = (f"who answers: {runtime.properties['answered_by']}",)
    runtime.warnings = tuple(w for w in (*opened.warnings, trial.note, warning) if w)
    # scikit-learn's own estimators do not change when they predict; nobody knows of others
    runtime.concurrency = options.threads if own else 1
    return runtime


def _exact(model: Any, schema: Schema, trial: "Trial", signatures: Sequence[Signature]) -> dict[str, Faster]:
    """Faster ways for the model's methods, proven with made-up rows of each signature, alone and together."""
    rows = [(s, count) for s in signatures for count in TRIED_ROWS]
    samples = [feed(s.name, schema)(sample(s, schema, count, count, trial.positive)) for s, count in rows]
    # scikit-learn's own threads would wait for one another, a hundred times a call, where others use the processor too
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(limits=1, user_api="openmp"):
        warnings.simplefilter("ignore")
        return _sklearn_fast.faster(model, dict.fromkeys(o.method for o in trial.outputs), samples)


def _near(
    path: Path, model: Any, schema: Schema, trial: "Trial", signature: Signature, exact: Mapping[str, Faster]
) -> tuple[dict[str, Faster], str]:
    """A session of onnxruntime for the methods it can answer, the exact ways for the others, and what to warn of."""
    if exact and all(f.least for f in exact.values()):
        return dict(exact), ""
    own = {o.method: getattr(model, o.method) for o in trial.outputs} | in_use(exact)
    width = len(schema.columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if trial.note:
                raise _sklearn_onnx.Unfit("made-up rows do not fit it")
            drawn = feed(signature.name, schema)(sample(signature, schema, _sklearn_onnx.ROWS, 0, trial.positive))
            rows = [drawn, *_sklearn_onnx.learnt_rows(model, width), *_sklearn_onnx.sample_file(path, width)]
            made = _sklearn_onnx.converted(model, own, rows)
        except _sklearn_onnx.Unfit as reason:
            return dict(exact), f"accelerate=onnx is not used for {path.name}: {reason}"
    warning = f"accelerate=onnx changes labels of {path.name}: {made.found}" if made.found.labels else ""
    return dict(exact) | {name: Faster(made.how, method) for name, method in made.methods.items()}, warning


def in_use(found: Mapping[str, Faster]) -> dict[str, Method]:
    return {name: f.method for name, f in found.items() if f.method is not None}


def _signatures(schema: Schema, trial: Trial) -> tuple[Signature, ...]:
    outputs = tuple(o.spec for o in trial.outputs)
    defaults = tuple(o.spec.name for o in trial.outputs if o.method == trial.outputs[0].method)
    return tuple(Signature(name, specs, outputs, trial.batched, defaults) for name, specs in input_specs(schema).items())


def _properties(found: ModelFile, opened: Opened) -> dict[str, str]:
    facts = {
        "estimator": type(opened.model).__name__,
        "format": found.format,
        "sklearn_version": opened.runs_with,
        "model_sklearn_version": opened.made_with,
    }
    classes = fitted(opened.model, "classes_")
    if classes is not None:
        lists = [np.asarray(c).tolist() for c in classes] if isinstance(classes, list) else np.asarray(classes).tolist()
        facts["classes"] = json.dumps(lists, default=str)
    return facts


def about_values(error: Exception) -> bool:
    """Whether scikit-learn raised an error to say that it does not like the values it was given."""
    from sklearn.exceptions import NotFittedError

    trace, module = error.__traceback__, ""
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("sklearn.") and _CHECK.match(frame.f_code.co_name):
            return not isinstance(error, NotFittedError)
    return _VALIDATION.match(module) is not None


def refuse_unservable(path: Path, model: Any) -> None:
    """ModelLoadError where an object is not one fitted estimator that can answer for new rows."""
    kind = f"{type(model).__module__}.{type(model).__qualname__}".removeprefix("builtins.")
    want = "one fitted estimator with predict or transform is wanted"
    if isinstance(model, type):
        raise ModelLoadError(f"{path} holds the class {model.__qualname__}, and {want}", "save an instance that is fitted")
    if isinstance(model, dict | list | tuple):
        inside = [f"{k!r}: {type(v).__name__}" for k, v in (model.items() if isinstance(model, dict) else enumerate(model))]
        more = f" ({', '.join(inside[:5])}{', …' if len(inside) > 5 else ''})"
        raise ModelLoadError(f"{path} holds a {kind}{more}, and {want}", "put the parts into one Pipeline and save that")
    # a DataFrame has a transform too
    if not hasattr(model, "predict") and not (hasattr(model, "fit") and any(hasattr(model, m) for m in METHODS)):
        if hasattr(model, "fit_predict") or hasattr(model, "fit_transform"):
            fit = "fit_predict" if hasattr(model, "fit_predict") else "fit_transform"
            raise ModelLoadError(f"{path} holds a {kind}, which has {fit} only: it can't answer for rows it was not fitted on")
        raise ModelLoadError(f"{path} holds a {kind}, and {want}", "save the estimator itself")
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    tags = _input_tags(model)
    if tags is not None and tags.dict and not tags.two_d_array:
        raise ModelLoadError(
            f"{path} holds a {kind} that takes dicts, and tensors are all there is", "start with a ColumnTransformer"
        )
    if not type(model).__module__.startswith("sklearn."):
        # others may keep what they learnt in ways that the check does not know; the trial call will tell
        return
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise _unfitted(path, model) from error


def _unfitted(path: Path, model: Any) -> ModelLoadError:
    return ModelLoadError(f"{path} holds a {type(model).__name__} that is not fitted", "call fit before saving it")


def settle(model: Any) -> bool:
    """Make an estimator fit for serving, and tell whether all of it is scikit-learn's own code.

    One request is answered by one thread: a pool of threads costs more than it gains for few rows, and processes have
    no place in a server.  Steps that work in place would write into a request's tensors.
    """
    own = True
    for estimator in nested(model):
        own = own and type(estimator).__module__.startswith("sklearn.")
        if getattr(estimator, "n_jobs", None) not in (None, 1):
            estimator.n_jobs = 1
        if getattr(estimator, "copy", None) is False:
            estimator.copy = True
    return own


def _looks_at_frames(model: Any) -> bool:
    """Whether something in a model of scikit-learn's own parts looks at a DataFrame's columns, so that an array won't do."""
    return any(
        type(e).__name__ in ("ColumnTransformer", "FunctionTransformer") or getattr(e, "_sklearn_output_config", None)
        for e in nested(model)
    )


def forget_names(model: Any) -> None:
    """Let a model that was fitted on a DataFrame of numbers take arrays without a warning.

    It computes the same up to the last bit, a DataFrame costs 0.1 ms or more a request, and pandas 30 MB.
    """
    for estimator in nested(model):
        vars(estimator).pop("feature_names_in_", None)


def try_out(path: Path, opened: Opened, schema: Schema) -> Trial:
    """Call every method that a model has with made-up rows."""
    model, classes = opened.model, fitted(opened.model, "classes_")
    (name, specs), *_ = input_specs(schema).items()
    positive = bool(getattr(_input_tags(model), "positive_only", False))
    x = feed(name, schema)(sample(Signature(name, specs, ()), schema, TRIAL_ROWS, 0, positive))
    outputs: list[Output] = []
    batched, note = True, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in METHODS:
            if not callable(getattr(model, method, None)):
                continue
            try:
                result = getattr(model, method)(x)
            except Exception as error:
                if not outputs:
                    note = _untried(path, opened, method, error)
                    outputs.append(guessed_output(method, classes))
                continue
            parts = result if isinstance(result, list) else [result]
            batched = batched and all(np.shape(part)[:1] == (TRIAL_ROWS,) for part in parts)
            outputs += outputs_of(method, result, classes)
    return Trial(tuple(outputs), batched, positive, note)


def _untried(path: Path, opened: Opened, method: str, error: Exception) -> str:
    """What to say of a model whose default method fails for made-up rows; ModelLoadError where no values could help."""
    from sklearn.exceptions import NotFittedError

    if isinstance(error, NotFittedError):
        raise _unfitted(path, opened.model) from error
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, AttributeError) or opened.mismatch:
        remedy = version_note(path, opened.made_with) if opened.mismatch else "save it again from a working environment"
        raise ModelLoadError(f"{path} was opened, but {method} fails: {reason}", remedy) from error
    return f"{method} failed for a made-up row, so its output's shape is not known: {type(error).__name__}: {reason}"


def _input_tags(model: Any) -> Any:
    """What scikit-learn's tags say of the input, by the estimator that sees it first; None where there are no tags."""
    from sklearn.utils import get_tags

    try:
        return get_tags(leading(model)[-1]).input_tags
    except Exception:  # tags of somebody's class; they are a hint only
        return None
