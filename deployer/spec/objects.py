"""JSON objects ↔ models.  Reading never stops at the first mistake: what can't be read is reported and left out, so that
the rules see the rest.

    object → `plain` → `take apart` (legacy keys, a pod's and a container's fields) → the model → `as_object` → object
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from deployer.errors import Mistake, SpecError, did_you_mean, show, under
from deployer.spec.annotations import SHA256
from deployer.spec.formats import LEGACY_KEYS
from deployer.spec.pods import CONTAINER_FIELDS, POD_FIELDS, wrong_type
from deployer.spec.schema import (
    SERVER_CONTAINER,
    Explainer,
    InferenceService,
    Metadata,
    Model,
    Part,
    Predictor,
    Transformer,
    completed,
)

M = TypeVar("M", bound=Part)
Loc = tuple[str | int, ...]

MAX_DEPTH = 50
MAX_VALUES = 20_000
MAX_MISTAKES = 100
COMPONENTS: Mapping[str, type[Part]] = {"predictor": Predictor, "transformer": Transformer, "explainer": Explainer}
# Bookkeeping of an API server that may come along with an object that was read from one.
_NOT_OURS = frozenset(("managedFields", "selfLink", "generateName", "deletionGracePeriodSeconds"))


@dataclass
class Read:
    """What reading found.  `legacy` maps the path of a `model` to the key that was written instead."""

    mistakes: list[Mistake] = field(default_factory=list)
    legacy: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, message: str) -> None:
        """SpecError at once where there are too many: the object is something else, and looking for hints takes time."""
        self.mistakes.append(Mistake(path, message))
        if len(self.mistakes) >= MAX_MISTAKES:
            raise SpecError([*self.as_written(self.mistakes), Mistake("", "there are more mistakes, which were not looked for")])

    def as_written(self, mistakes: Iterable[Mistake]) -> list[Mistake]:
        """The mistakes with the paths that the person wrote, each once."""
        renamed = []
        for mistake in mistakes:
            path = mistake.path
            for model, key in self.legacy.items():
                if path == model or path.startswith((f"{model}.", f"{model}[")):
                    path = model.removesuffix("model") + key + path[len(model) :]
            renamed.append(Mistake(path, mistake.message))
        return list(dict.fromkeys(renamed))


def read_service(raw: object) -> tuple[InferenceService, Read]:
    """The service as far as it can be read, and what could not be."""
    found = Read()
    top = read_top(raw, found)
    spec = top.get("spec")
    if isinstance(spec, dict):
        top["spec"] = spec = dict(spec)
        for name, kind in COMPONENTS.items():
            if isinstance(spec.get(name), dict):
                spec[name] = _component(spec[name], kind, f"spec.{name}", found)
        if isinstance(spec.get("canary"), list):
            spec["canary"] = [_canary(one, f"spec.canary[{at}]", found) for at, one in enumerate(spec["canary"])]
    service = fill(InferenceService, top, found)
    canaries = tuple(completed(one, service.spec.predictor) for one in service.spec.canary)
    if canaries:
        service = service.model_copy(update={"spec": service.spec.model_copy(update={"canary": canaries})})
    return service, found


def read_top(raw: object, found: Read) -> dict[str, Any]:
    """The top level of any object of the API, copied and free of nulls, without status and bookkeeping.

    SpecError where it can't be read at all.
    """
    plain = _plain(raw, found)
    whole = [mistake for mistake in found.mistakes if mistake.path == ""]
    if not isinstance(plain, dict) and not whole:
        whole = [Mistake("", f"found {show(raw)}, wanted an object with apiVersion, kind, metadata and spec")]
    if whole:
        raise SpecError(dict.fromkeys(whole))
    top: dict[str, Any] = plain
    top.pop("status", None)
    metadata = top.get("metadata")
    if isinstance(metadata, dict):
        if "generateName" in metadata and "name" not in metadata:
            found.add(
                "metadata.name", "missing: generateName is not supported, because applying twice would make two; give a name"
            )
        top["metadata"] = {key: value for key, value in metadata.items() if key not in _NOT_OURS}
    return top


def _plain(raw: object, found: Read) -> Any:
    """A copy of a JSON value without nulls in objects (absent and null are the same to the API); what is no JSON is reported."""
    left = MAX_VALUES

    def copy(value: object, path: str, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            return None
        if depth > MAX_DEPTH:
            found.add("", f"the object is nested more than {MAX_DEPTH} deep, at {path[:100]}")
            return None
        if isinstance(value, dict):
            copied = {}
            for key, one in value.items():
                if not isinstance(key, str) or not _encodable(key):
                    found.add(path, f"found the key {show(key)}, wanted text: put it in quotes")
                elif one is not None or path.endswith(("labels", "annotations")):
                    copied[key] = copy(one, under(path, key), depth + 1)
            return copied
        if isinstance(value, list | tuple):
            return [copy(one, under(path, at), depth + 1) for at, one in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            found.add(path, f"found {value}, wanted a finite number")
            return None
        if isinstance(value, str) and not _encodable(value):
            found.add(path, "holds half a surrogate pair, which is no text")
            return None
        if value is None or isinstance(value, str | int | float):
            return value
        found.add(path, f"found a {type(value).__name__}, wanted a JSON value")
        return None

    copied = copy(raw, "", 0)
    if left < 0:
        found.add("", f"the object has more than {MAX_VALUES} values")
    return copied


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _canary(raw: object, path: str, found: Read) -> object:
    if isinstance(raw, dict) and isinstance(raw.get("predictor"), dict):
        return {**raw, "predictor": _component(raw["predictor"], Predictor, f"{path}.predictor", found)}
    return raw


def _component(raw: dict[str, Any], kind: type[Part], path: str, found: Read) -> dict[str, Any]:
    """A component's own fields, with those of a pod gathered under `pod`, and a framework's key written as `model`."""
    own = aliases(kind) - {"pod"}
    keys = LEGACY_KEYS if kind is Predictor else ()
    taken: dict[str, Any] = {}
    pod: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "maxReplicas" and value == 0 and not isinstance(value, bool):
            continue  # KServe's way of saying "unset"
        if name in own:
            taken[name] = value
        elif name in POD_FIELDS:
            pod[name] = value
        elif name not in keys:
            hint = did_you_mean(name, (*own, *POD_FIELDS, *keys))
            if kind is Predictor and name in aliases(Model):
                hint = "; it belongs to its model, one level down"
            found.add(under(path, name), f"{_named(kind)} has no such field{hint}")
    if pod:
        taken["pod"] = pod
    if kind is Predictor:
        _framework_key(raw, taken, path, found)
    if isinstance(taken.get("model"), dict):
        taken["model"] = _model(taken["model"], path, found)
    containers = taken.get("containers")
    if "model" not in taken and isinstance(containers, list) and containers and isinstance(containers[0], dict):
        first, *others = containers
        if not others or not first.get("name"):
            # a container that is alone, or has no name and comes first, is the server: KServe names it so
            taken["containers"] = [{**first, "name": SERVER_CONTAINER}, *others]
    return taken


def _framework_key(raw: dict[str, Any], taken: dict[str, Any], path: str, found: Read) -> None:
    """The first of KServe's older keys (`sklearn: {storageUri: …}`) becomes `taken["model"]`."""
    given = [key for key in raw if key in LEGACY_KEYS]
    if not given:
        return
    first, *more = ["model", *given] if "model" in raw else given
    for key in more:
        found.add(
            under(path, key),
            f"stands beside {first}, and a predictor serves one model; keep one of them, {_as_model(key, raw[key])}",
        )
    if first == "model":
        return
    found.legacy[f"{path}.model"] = first
    value = raw[first]
    if not isinstance(value, dict):
        found.add(f"{path}.model", wrong_type(value, dict))
        return
    if "modelFormat" in value:
        found.add(
            f"{path}.{first}.modelFormat",
            f"the key {first!r} says the format already; use model instead of it, or leave this out",
        )
    taken["model"] = {**value, "modelFormat": {"name": first}}


def _as_model(key: str, value: object) -> str:
    version = " (its version goes to modelFormat.version)" if isinstance(value, dict) and "runtimeVersion" in value else ""
    return f"best as model with modelFormat.name {key!r}{version}"


def _model(raw: dict[str, Any], path: str, found: Read) -> dict[str, Any]:
    own = aliases(Model) - {"container"}
    if raw.get("name") in ("", SERVER_CONTAINER):  # KServe's SDK always sends one
        raw = {name: value for name, value in raw.items() if name != "name"}
    taken = {name: value for name, value in raw.items() if name in own}
    container = {name: value for name, value in raw.items() if name in CONTAINER_FIELDS and name != "name"}
    for name in raw.keys() - own - container.keys():
        if name == "name":
            found.add(
                f"{path}.model.name",
                "a container's name may not be given here: it is kserve-container; the service's name is metadata.name, "
                "the format's is modelFormat.name",
            )
        else:
            hint = did_you_mean(name, (*own, *CONTAINER_FIELDS))
            if name in aliases(Predictor) - {"pod"}:
                hint = "; it belongs to the predictor, one level up"
            found.add(under(f"{path}.model", name), f"a model has no such field{hint}")
    return {**taken, "container": container} if container else taken


def aliases(kind: type[BaseModel]) -> set[str]:
    """The names of a model's fields in a manifest."""
    return {info.alias or name for name, info in kind.model_fields.items()}


def fill(kind: type[M], raw: dict[str, Any], found: Read) -> M:
    """The model of an object; where something can't be read it is reported, left out, and the rest is read."""
    told: set[Loc] = set()
    while True:
        try:
            return kind.model_validate(raw)
        except ValidationError as error:
            problems = error.errors(include_url=False)
        at = {_within(raw, one["loc"]): one for one in problems if one["type"] != "default_factory_not_called"}
        for loc in (one for one in at if one not in told):
            found.add(_path(loc), _message(kind, loc, at[loc]))
        # longest first, so that what holds a mistake is still there when the mistake is taken out; where an empty object in
        # the place of a list's item is wrong too, the list goes
        for loc in sorted({loc[:-1] if loc in told else loc for loc in at}, key=len, reverse=True):
            raw = _without(raw, loc) if loc else {}
        told |= at.keys()


def _within(raw: object, loc: Loc) -> Loc:
    """The part of a location that leads through the object: pydantic adds names of the types that it tried."""
    for at, key in enumerate(loc):
        inside = range(len(raw)) if isinstance(raw, list) else raw if isinstance(raw, dict) else ()
        if key not in inside:
            return loc[:at]
        raw = raw[key]  # type: ignore[index]
    return loc


def _without(raw: Any, loc: Loc) -> Any:
    """A copy of the object without what is at a location; an item of a list makes place for an empty object, to keep numbers."""
    key, *rest = loc
    if isinstance(raw, list):
        return [(_without(one, tuple(rest)) if rest else {}) if at == key else one for at, one in enumerate(raw)]
    if rest:
        return {**raw, key: _without(raw[key], tuple(rest))}
    return {name: value for name, value in raw.items() if name != key}


def _path(loc: Loc) -> str:
    path = ""
    for key in loc:
        path = under(path, key)
    return path


def _message(kind: type[BaseModel], loc: Loc, problem: Any) -> str:
    where, info = _field_at(kind, loc)
    found, wrong = problem["input"], problem["type"]
    meaning = f" ({info.description})" if info is not None and info.description else ""
    match wrong:
        case "extra_forbidden":
            known = sorted(aliases(where))
            hint = did_you_mean(str(loc[-1]), known) or f"; known: {', '.join(known)}"
            return f"{_named(where)} has no such field{hint}"
        case "literal_error":
            choices = [str(one) for one in _choices(info)]
            hint = did_you_mean(found, choices) if isinstance(found, str) else ""
            return f"found {show(found)}, wanted {_or(choices)}{meaning}{hint}"
        case "greater_than_equal" | "less_than_equal":
            return f"found {show(found)}, wanted {_range(info)}{meaning}"
        case "string_too_short":
            return f"is empty{meaning}; give it a value or leave it out"
        case _ if (wanted := _WANTED.get(wrong)) is not None:
            return wrong_type(found, wanted) + meaning
        case _:
            return f"found {show(found)}: {problem['msg']}{meaning}"


_WANTED: Mapping[str, type] = {
    "string_type": str,
    "int_type": int,
    "int_from_float": int,
    "bool_type": bool,
    **dict.fromkeys(("tuple_type", "list_type"), list),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), dict),
}


def _field_at(kind: type[BaseModel], loc: Loc) -> tuple[type[BaseModel], FieldInfo | None]:
    """The model that the last name of a location belongs to, and its field if it has one of that name."""
    where, info = kind, None
    for key in loc:
        if isinstance(key, int):
            continue
        if info is not None:
            inner = _model_in(info.annotation)
            if inner is None:
                return where, info
            where = inner
        info = next((one for name, one in where.model_fields.items() if (one.alias or name) == key), None)
        if info is None:
            break
    return where, info


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _model_in(one)) is not None), None)


def _choices(info: FieldInfo | None) -> tuple[Any, ...]:
    def flat(annotation: Any) -> Iterable[Any]:
        for one in get_args(annotation):
            if get_args(one):
                yield from flat(one)
            elif isinstance(one, str):
                yield one

    return tuple(flat(info.annotation)) if info is not None else ()


def _range(info: FieldInfo | None) -> str:
    bounds: dict[str, int] = {}

    def collect(items: Iterable[Any]) -> None:
        for one in items:
            for name in ("ge", "le"):
                if hasattr(one, name):
                    bounds[name] = getattr(one, name)
            collect(getattr(one, "metadata", ()))
            collect(getattr(one, "__metadata__", ()))

    if info is not None:
        collect((info, *get_args(info.annotation)))
    low = bounds.get("ge", 0)
    return f"a whole number from {low} to {bounds['le']}" if "le" in bounds else f"a whole number, {low} or more"


def _or(choices: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(choices[:-1]), *choices[-1:])))


def _named(kind: type[BaseModel]) -> str:
    if kind is Metadata:
        return "metadata"
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in kind.__name__).strip()
    words = {"inference service": "an InferenceService", "spec": "the spec"}.get(words, words)
    return words if words.startswith(("an ", "the ")) else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def as_object(service: InferenceService) -> dict[str, Any]:
    """The canonical object of a service: the modern fields, in the order of the schema, without defaults nobody gave."""
    dumped = service.model_dump(mode="json", by_alias=True, exclude_unset=True)
    result = {"apiVersion": service.api_version, "kind": service.kind, **dumped}
    spec = result.get("spec", {})
    for name in COMPONENTS:
        if name in spec:
            spec[name] = _flat(spec[name])
    for one in spec.get("canary", ()):
        if "predictor" in one:
            one["predictor"] = _flat(one["predictor"])
    return result


def pinned(service: InferenceService) -> InferenceService:
    """With the checksum that an annotation gives at the end of the predictor's URI, where it could have been written too.

    There it goes along with the predictor, to a revision and back.
    """
    sha256, predictor = service.metadata.annotations.get(SHA256, ""), service.spec.predictor
    uri = predictor.model.storage_uri if predictor.model else None
    if not sha256 or not uri or "#sha256=" in uri:
        return service
    assert predictor.model is not None
    model = predictor.model.model_copy(update={"storage_uri": f"{uri}#sha256={sha256.lower()}"})
    spec = service.spec.model_copy(update={"predictor": predictor.model_copy(update={"model": model})})
    return service.model_copy(update={"spec": spec})


def predictor_object(predictor: Predictor) -> dict[str, Any]:
    """One predictor as `as_object` has it."""
    return _flat(predictor.model_dump(mode="json", by_alias=True, exclude_unset=True))


def _flat(component: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_component`."""
    model = component.get("model")
    if model is not None:
        component["model"] = {**{k: v for k, v in model.items() if k != "container"}, **model.get("container", {})}
    return {**{k: v for k, v in component.items() if k != "pod"}, **component.get("pod", {})}
