"""One pod out of two: the fields of a runtime's with those of a predictor's over them, as Kubernetes merges a patch.

Objects merge field by field; lists of things that have a name (or a path, or a port) merge by it; other lists are replaced,
but a server's `args`, which are added to the runtime's.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from deployer.errors import Mistake, SpecError, show, under
from deployer.spec.pods import quantity
from deployer.spec.schema import SERVER_CONTAINER, Metadata

T = TypeVar("T")

# By which field the items of a list are the same thing; a list under another name is replaced as a whole.
_KEYS: Mapping[str, str] = {
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "initContainers": "name",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}


@dataclass(frozen=True)
class MergedPod:
    """`container` is the server's, `containers` are those beside it, `pod` all other fields of the pod."""

    container: dict[str, Any]
    containers: tuple[dict[str, Any], ...]
    pod: dict[str, Any]


def merge_pod(
    base: Sequence[Mapping[str, Any]],
    base_pod: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]],
    own_pod: Mapping[str, Any],
    service: str,
) -> MergedPod:
    """Containers merge by name; each is told the service's name."""
    merged = {str(one.get("name")): dict(one) for one in base}
    for one in own:
        name = str(one.get("name"))
        merged[name] = _container(merged.get(name, {}), one)
    told = {name: _told(container, service) for name, container in merged.items()}
    server = told.pop(SERVER_CONTAINER, {})
    return MergedPod(server, tuple(told.values()), _objects(base_pod, own_pod))


def _container(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = _objects(base, own)
    if "args" in base and "args" in own:
        merged["args"] = [*base["args"], *own["args"]]
    if "resources" in base and "resources" in own:
        merged["resources"] = _resources(merged["resources"], own["resources"])
    return merged


def _resources(merged: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A request above its limit, because one of the two is the runtime's: the runtime's gives way."""
    requests, limits = dict(merged.get("requests", {})), dict(merged.get("limits", {}))
    for name in requests.keys() & limits.keys():
        if quantity(requests[name]) > quantity(limits[name]):
            if name in own.get("requests", {}):
                limits[name] = requests[name]
            else:
                requests[name] = limits[name]
    return {**merged, "requests": requests, "limits": limits}


def _told(container: Mapping[str, Any], service: str) -> dict[str, Any]:
    variable = {"name": "INFERENCE_SERVICE_NAME", "value": service}
    return {**container, "env": _named(container.get("env", []), [variable], "name", whole=True)}


def _objects(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in own.items():
        before = merged.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[name] = _objects(before, value)
        elif isinstance(before, list) and isinstance(value, list) and name == "volumes":
            # a volume has one source: two merged would have two
            merged[name] = _named(before, value, "name", whole=True)
        elif isinstance(before, list) and isinstance(value, list) and name in _KEYS:
            merged[name] = _named(before, value, _KEYS[name], whole=name == "env")
        else:
            merged[name] = value
    return merged


def _named(base: Sequence[Any], own: Sequence[Any], key: str, *, whole: bool) -> list[Any]:
    """`whole`: an item takes the place of its namesake, and is not merged into it."""
    merged = {_identity(one, key): one for one in base}
    for one in own:
        name = _identity(one, key)
        merged[name] = one if whole or name not in merged else _objects(merged[name], one)
    return list(merged.values())


def _identity(item: Any, key: str) -> Any:
    name = item.get(key) if isinstance(item, dict) else None
    return name if isinstance(name, str | int) else object()  # like no other


_PLACEHOLDER = re.compile(
    r"""\{\{-?\s*(?:
        \.(?P<field>Name|Namespace)
      | \.(?P<map>Labels|Annotations)\.(?P<key>\w+)
      | index\s+\.(?P<indexed>Labels|Annotations)\s+(?P<quote>["`])(?P<long>[^"`]+)(?P=quote)
    )\s*-?\}\}""",
    re.VERBOSE,
)


def expand(value: T, metadata: Metadata, path: str) -> T:
    """The value with the placeholders in its texts replaced; other braces stay as they are, and nothing is ever run.

    SpecError for a label or an annotation that is not there.
    """
    missing: list[Mistake] = []

    def replaced(found: re.Match[str]) -> str:
        if found["field"]:
            return metadata.name if found["field"] == "Name" else metadata.namespace
        kind, key = found["map"] or found["indexed"], found["key"] or found["long"]
        values = metadata.labels if kind == "Labels" else metadata.annotations
        if key not in values:
            where = f"metadata.{kind.lower()}"
            missing.append(
                Mistake(path, f"{found[0]} asks for {key!r}, and the service has no such entry in {where}; add it there")
            )
        return values.get(key, "")

    def walk(one: Any) -> Any:
        if isinstance(one, str):
            return _PLACEHOLDER.sub(replaced, one)
        if isinstance(one, dict):
            return {key: walk(inner) for key, inner in one.items()}
        return [walk(inner) for inner in one] if isinstance(one, list) else one

    result: T = walk(value)
    if missing:
        raise SpecError(dict.fromkeys(missing))
    return result


def unknown_placeholders(path: str, value: object) -> Iterator[tuple[str, str]]:
    """Path and text of everything in double braces that `expand` would leave as it is."""
    if isinstance(value, str):
        rest = _PLACEHOLDER.sub("", value)
        yield from ((path, show(found)) for found in re.findall(r"\{\{.*?\}\}", rest, re.DOTALL))
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from unknown_placeholders(under(path, key), one)
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from unknown_placeholders(under(path, at), one)
