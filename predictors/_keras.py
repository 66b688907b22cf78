"""Opening Keras models (`.keras`, `.h5`) safely, with their own names for inputs and outputs.

Keras is imported inside the functions: only processes that serve such a model pay for it.
"""

import importlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from predictors._tensorflow_graph import DEFAULT_SIGNATURE, Opened, first_line, make_signature, newer_than, spec_of, trace
from server.errors import ModelLoadError
from server.runtime import LoadOptions, ModelFile
from server.tensors import Signature


def open_keras(tf: Any, found: ModelFile, options: LoadOptions) -> Opened:
    import keras

    config, saved_by = keras_config(found.path, found.format)
    lambdas = [str((node.get("config") or {}).get("name")) for node in nodes(config) if node["class_name"] == "Lambda"]
    if lambdas:
        raise ModelLoadError(
            f"{found.path} has Lambda layers ({', '.join(lambdas)}), whose Python code would run unchecked",
            "replace them with layer classes or keras.ops, or export the model where it was made: model.export(folder)",
        )
    custom = _custom_objects(options.extra.get("custom-objects"))
    model = _load_keras(keras, found.path, config, saved_by, custom)
    signature, body, types = _keras_signature(keras, model, found.path)
    traced = trace(tf, signature, body, types, {})
    properties = {"keras_version": keras.__version__, **({"saved_by_keras": saved_by} if saved_by else {})}
    return Opened(f"keras_{found.format}", (traced,), properties, (), model)


def keras_config(path: Path, kind: str) -> tuple[Any, str]:
    """The architecture in a Keras file, as JSON has it, and the version of Keras that wrote it."""
    try:
        if kind == "keras":
            with zipfile.ZipFile(path) as archive:
                version = json.loads(archive.read("metadata.json")).get("keras_version", "")
                return json.loads(archive.read("config.json")), str(version)
        import h5py  # type: ignore[import-untyped]

        with h5py.File(path, "r") as file:
            config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"can't read {path} as a Keras model: {first_line(str(error))}", "copy or save it again") from error
    if config is None:
        raise ModelLoadError(f"{path} holds weights without the model", "save the whole model: model.save('model.keras')")
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in (config, version)]
    return json.loads(texts[0]), texts[1]


def nodes(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every serialised object in a Keras config, at any depth."""
    if isinstance(config, dict):
        if "class_name" in config:
            yield config
        for value in config.values():
            yield from nodes(value)
    elif isinstance(config, list):
        for value in config:
            yield from nodes(value)


def _custom_objects(option: str | None) -> Mapping[str, Any]:
    if option is None:
        return {}
    module_name, _, name = option.partition(":")
    remedy = "give it as custom-objects=module:NAME, with the module on PYTHONPATH"
    try:
        objects = getattr(importlib.import_module(module_name), name or "custom_objects")
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelLoadError(f"can't get the custom objects {option!r}: {type(error).__name__}: {error}", remedy) from error
    if not isinstance(objects, Mapping):
        raise ModelLoadError(f"the custom objects {option!r} are {type(objects).__name__}, not a dict of classes by name", remedy)
    return objects


def _load_keras(keras: Any, path: Path, config: Any, saved_by: str, custom: Mapping[str, Any]) -> Any:
    try:
        return keras.saving.load_model(path, custom_objects=dict(custom), compile=False, safe_mode=True)
    except Exception as error:
        registered = {*custom, *keras.saving.get_custom_objects()}
        unknown = [n for n in custom_names(config, keras.layers) if not registered & {n, n.rpartition(">")[2]}]
        if unknown:
            raise ModelLoadError(
                f"{path} needs objects that are not part of Keras: {', '.join(unknown)}",
                "give a dict of them with --runtime-option custom-objects=module:NAME",
            ) from error
        if newer_than(saved_by, keras.__version__):
            raise ModelLoadError(
                f"{path} was saved by Keras {saved_by}, and this is Keras {keras.__version__}: {first_line(str(error))}",
                f"run: pip install 'keras>={saved_by}'",
            ) from error
        raise ModelLoadError(
            f"can't load {path}: {type(error).__name__}: {first_line(str(error))}",
            "try it with keras.saving.load_model(path, compile=False)",
        ) from error


def custom_names(config: Any, layers: Any) -> list[str]:
    """Names of the objects in a Keras config that Keras itself does not have."""
    names = []
    for node in nodes(config):
        if "module" in node:
            if node.get("registered_name") and not str(node["module"] or "").startswith("keras"):
                names.append(str(node["registered_name"]))
        # Keras 2's form, in .h5 files: layers have names, and what is no layer is looked up elsewhere.
        elif "name" in (node.get("config") or {}) and not hasattr(layers, node["class_name"]):
            names.append(str(node["class_name"]))
    return [n for n in dict.fromkeys(names) if n not in ("Functional", "Model", "Sequential")]


def _keras_signature(keras: Any, model: Any, path: Path) -> tuple[Signature, Callable[[tuple[Any, ...]], list[Any]], list[str]]:
    remedy = "export it where it was made: model.export(folder) writes a SavedModel"
    try:
        tensors, results = list(model.inputs), keras.tree.flatten(model.outputs)
    except (AttributeError, TypeError, ValueError):
        raise ModelLoadError(
            f"{path} is a {type(model).__name__} whose inputs are not declared (no Input layers)", remedy
        ) from None
    for tensor in (*tensors, *results):
        if getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False):
            raise ModelLoadError(
                f"{path} has the sparse or ragged tensor {tensor.name!r}, and only dense ones can be served", remedy
            )
    inputs = [spec_of(t.name, t.dtype, t.shape) for t in tensors]
    names = unique(_output_names(keras, model, len(results)))
    outputs = [spec_of(name, r.dtype, r.shape) for name, r in zip(names, results, strict=True)]
    # A Sequential has no `input`; a functional model is called with the structure that it was made with.
    structure = tensors[0] if isinstance(model, keras.Sequential) else model.input

    def body(flat: tuple[Any, ...]) -> list[Any]:
        returned = model(keras.tree.pack_sequence_as(structure, list(flat)), training=False)
        return list(keras.tree.flatten(returned))

    return make_signature(DEFAULT_SIGNATURE, inputs, outputs, alone=True), body, [t.dtype for t in tensors]


def _output_names(keras: Any, model: Any, count: int) -> list[str]:
    """The keys of a model that returns a dict, else the names of the layers that the outputs come from."""
    if isinstance(model, keras.Sequential):
        return [model.layers[-1].name]
    returned = model.output
    if isinstance(returned, Mapping) and len(returned) == count:
        return sorted(returned)
    return list(model.output_names)


def unique(names: Sequence[str]) -> list[str]:
    """The names with `_1`, `_2` … after those that came before."""
    given: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in given:
            number += 1
            candidate = f"{name}_{number}"
        given.append(candidate)
    return given
