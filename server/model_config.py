"""The models that a process is told to serve: from flags, from a configuration file, or from a client that reconfigures it.

A file is YAML, JSON, or TensorFlow Serving's text form of `model_config_list`.  What is wrong with it is said with the place.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import ModelLoadError
from server.tensors import did_you_mean
from server.text_proto import TextProtoError, parse
from server.versions import Policy, label_of, policy_of

_KEYS = ("name", "path", "versions", "labels", "runtime", "required")
_TFS_KEYS = ("name", "base_path", "model_platform", "model_version_policy", "version_labels")


class ConfigError(ModelLoadError):
    """What is configured can't be: the text says where the mistake is, what was found and what was wanted."""


@dataclass(frozen=True)
class ModelSpec:
    """One model to serve.  `path` is a folder of versions (or one model, which then has no version).

    `labels` point to versions.  Without a model that is `required` the process is not ready.
    """

    name: str
    path: Path
    policy: Policy = Policy()
    labels: Mapping[str, str] = field(default_factory=dict)
    runtime: str = ""
    required: bool = True


def checked(specs: Iterable[ModelSpec], where: str) -> tuple[ModelSpec, ...]:
    """The same models; ConfigError where a name is given twice, or is none."""
    seen: dict[str, ModelSpec] = {}
    for spec in specs:
        if not spec.name or "/" in spec.name:
            raise ConfigError(f"{where}: {spec.name!r} is no model's name", "choose one without a slash")
        if spec.name in seen:
            raise ConfigError(f"{where}: model {spec.name!r} is given twice", "give each model a name of its own")
        seen[spec.name] = spec
    return tuple(seen.values())


def read(path: Path) -> tuple[ModelSpec, ...]:
    """The models of a configuration file; ConfigError says what is wrong with it."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"can't read {path}: {reason}", "name a file of models with --model_config_file") from error
    return parsed(text, path)


def parsed(text: str, path: Path) -> tuple[ModelSpec, ...]:
    """The models of a file's text; relative paths in it are relative to its folder."""
    ending = path.suffix.lower()
    try:
        if ending == ".json":
            return _of_document(json.loads(text), path)
        if ending in (".yaml", ".yml"):
            return _of_document(_yaml(text), path)
        return _of_text_proto(parse(text), path)
    except ConfigError:
        raise
    except (json.JSONDecodeError, TextProtoError, ValueError) as error:
        kind = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}.get(ending, "a model_config_list in protobuf's text form")
        raise ConfigError(f"{path} is not {kind}: {error}") from error


def _yaml(text: str) -> Any:
    try:
        import yaml  # only for those who have such a file
    except ModuleNotFoundError:
        raise ConfigError("YAML needs the Python package 'yaml'", "run: pip install pyyaml, or write the file as JSON") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _of_document(document: Any, path: Path) -> tuple[ModelSpec, ...]:
    """`{models: [{name, path, versions, labels, runtime, required}, …]}`."""
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, list) or set(document) != {"models"}:
        raise ConfigError(f"{path}: expected `models:` and a list behind it, found {_shown(document)}")
    return checked([_of_entry(entry, f"{path}: models[{at}]", path.parent) for at, entry in enumerate(models)], str(path))


def _of_entry(entry: Any, where: str, folder: Path) -> ModelSpec:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected name and path, found {_shown(entry)}")
    _no_others(entry, _KEYS, where)
    labels = entry.get("labels") or {}
    if not isinstance(labels, dict):
        raise ConfigError(f"{where}: labels is {_shown(labels)}, expected versions by label, such as {{stable: 1}}")
    required = entry.get("required", True)
    if not isinstance(required, bool):
        raise ConfigError(f"{where}: required is {_shown(required)}, expected true or false")
    return ModelSpec(
        _text(entry, "name", where),
        _path(_text(entry, "path", where), where, folder),
        _valid(where, policy_of, str(entry.get("versions", "latest"))),
        dict(_valid(where, label_of, str(name), version) for name, version in labels.items()),
        _text(entry, "runtime", where, ""),
        required,
    )


def _of_text_proto(message: Mapping[str, list[Any]], path: Path) -> tuple[ModelSpec, ...]:
    _no_others(message, ("model_config_list",), str(path))
    lists = _messages(message, "model_config_list", str(path))
    configs = [c for one in lists for c in _messages(one, "config", f"{path}: model_config_list")]
    found = [_of_config(one, f"{path}: config[{at}]", path.parent) for at, one in enumerate(configs)]
    if not found:
        raise ConfigError(f"{path}: expected model_config_list {{ config {{ name: … base_path: … }} }}, found no config")
    return checked(found, str(path))


def _of_config(config: Any, where: str, folder: Path) -> ModelSpec:
    _no_others(config, _TFS_KEYS, where)
    policy = Policy()
    for one in _messages(config, "model_version_policy", where):
        _no_others(one, ("latest", "all", "specific"), f"{where}: model_version_policy")
        if "all" in one:
            policy = Policy("all")
        for specific in _messages(one, "specific", where):
            policy = _valid(where, policy_of, f"specific:{','.join(map(str, specific.get('versions', [])))}")
        for latest in _messages(one, "latest", where):
            policy = _valid(where, policy_of, f"latest:{latest.get('num_versions', [1])[-1]}")
    labels = dict(
        _valid(where, label_of, str(one.get("key", [""])[-1]), one.get("value", [""])[-1])
        for one in _messages(config, "version_labels", where)
    )
    one_each = {name: values[-1] for name, values in config.items()}
    return ModelSpec(_text(one_each, "name", where), _path(_text(one_each, "base_path", where), where, folder), policy, labels)


def _messages(message: Mapping[str, list[Any]], name: str, where: str) -> list[dict[str, list[Any]]]:
    for one in message.get(name, []):
        if not isinstance(one, dict):
            raise ConfigError(f"{where}: {name} is {_shown(one)}, expected {{ … }}")
    return list(message.get(name, []))


def _no_others(found: Iterable[Any], known: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in known:
            raise ConfigError(f"{where}: unknown field {key!r}{did_you_mean(str(key), known)}", f"known: {', '.join(known)}")


def _text(entry: Mapping[Any, Any], key: str, where: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or (not value and default is None):
        raise ConfigError(f"{where}: {key} is {_shown(value)}, expected a text")
    return value


def local_path(uri: str, folder: Path) -> Path:
    """The path that a model's place means, seen from a folder; ValueError where that is not on this machine."""
    bare = uri.removeprefix("file://")
    if "://" in bare:
        raise ValueError(f"{uri} is not on this machine; bring it here first (python -m server.storage URI FOLDER)")
    return folder / bare


def _path(text: str, where: str, folder: Path) -> Path:
    path: Path = _valid(where, local_path, text, folder)
    return path


def _valid(where: str, make: Callable[..., Any], *given: Any) -> Any:
    try:
        return make(*given)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)[:80]
