"""What the verbs `deploy`, `promote` and `rollback` make of an InferenceService: objects in, objects out, pure."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployer.errors import Conflict, NotFound
from deployer.spec import API_VERSION, KIND, SHA256, TRUST_PICKLE, as_object, explicit, parse, trusts

KEPT = ("name", "namespace", "labels", "annotations", "resourceVersion")


@dataclass(frozen=True)
class Wish:
    """What `serve deploy` was told; None where it was not."""

    uri: str
    format: str
    canary: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    runtime: str | None = None
    trust_pickle: bool | None = None
    timeout: int | None = None
    sha256: str | None = None
    cpu: str | None = None
    """Of a replica, as Kubernetes writes it: what it asks for and may take."""
    memory: str | None = None


def deploy(old: Mapping[str, Any] | None, namespace: str, name: str, wish: Wish) -> dict[str, Any]:
    """A service that serves `wish.uri`: made, or changed and whatever else it says kept."""
    new: dict[str, Any] = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name, "namespace": namespace}}
    made = _bare(old) if old else new
    predictor = copy.deepcopy(made.get("spec", {}).get("predictor", {}))
    before = predictor.get("model", {})
    same_format = before.get("modelFormat", {}).get("name") == wish.format
    model = {k: v for k, v in before.items() if same_format or k not in ("runtime", "runtimeVersion", "protocolVersion")}
    model |= {"modelFormat": {"name": wish.format}, "storageUri": wish.uri}
    if wish.runtime:
        model["runtime"] = wish.runtime
    asked = {name: value for name, value in (("cpu", wish.cpu), ("memory", wish.memory)) if value is not None}
    if asked:
        said = model.get("resources", {})
        model["resources"] = said | {kind: {**said.get(kind, {}), **asked} for kind in ("requests", "limits")}
    predictor["model"] = model
    for field, value in (("minReplicas", wish.min_replicas), ("maxReplicas", wish.max_replicas), ("timeout", wish.timeout)):
        if value is not None:
            predictor[field] = value
    # the old most gives way to the new fewest; what was asked for in one breath has to fit together
    if wish.min_replicas and wish.max_replicas is None and predictor.get("maxReplicas", wish.min_replicas) < wish.min_replicas:
        del predictor["maxReplicas"]
    predictor.pop("canaryTrafficPercent", None)
    if wish.canary is not None and old:
        predictor["canaryTrafficPercent"] = wish.canary
    if wish.trust_pickle is not None:
        notes = made["metadata"].setdefault("annotations", {})
        notes[TRUST_PICKLE] = str(wish.trust_pickle).lower()
    if wish.sha256 is not None:
        made["metadata"].setdefault("annotations", {})[SHA256] = wish.sha256
    elif before.get("storageUri") != wish.uri:
        _unpin(made)
    return made | {"spec": {**made.get("spec", {}), "predictor": predictor}}


def promote(old: Mapping[str, Any], canary: str | None = None) -> dict[str, Any]:
    """Everything to the candidate: Conflict where there is none, or where several are and none is named."""
    service = parse(dict(old), formats=None)
    predictor, canaries = service.spec.predictor, service.spec.canary
    if not canaries:
        if predictor.canary_traffic_percent is None:
            raise Conflict(
                f"{_name(old)} has no canary to promote; `serve deploy MODEL --name {_name(old)} --canary 10` makes one"
            )
        _check_loads(old, old.get("status", {}).get("modelStatus", {}))
        made = _bare(old)
        del made["spec"]["predictor"]["canaryTrafficPercent"]
        return made
    names = [c.predictor.name or "" for c in canaries]
    chosen = canary or (names[0] if len(names) == 1 else "")
    if chosen not in names:
        raise Conflict(f"{_name(old)} has the canaries {', '.join(names)}; say which: serve promote {_name(old)} --canary NAME")
    told = {one.get("name"): one for one in old.get("status", {}).get("canaryStatuses", ())}
    _check_loads(old, told.get(chosen, {}).get("modelStatus", {}))
    # whole, with what its entry left to the stable predictor; as many replicas as that has, not the share of a canary
    counts = {"min_replicas": predictor.min_replicas, "max_replicas": predictor.max_replicas}
    won = explicit(canaries[names.index(chosen)].predictor.model_copy(update=counts))
    rest = tuple(c for c in canaries if c.predictor.name != chosen)
    changed = service.spec.model_copy(update={"predictor": won, "canary": rest})
    made = _bare(as_object(service.model_copy(update={"spec": changed})))
    _unpin(made)
    if not rest:
        made["spec"].pop("canary", None)
    return made


def _check_loads(old: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Conflict where the candidate can't serve: promoting it would give it nothing, and take the split away."""
    is_seen = old.get("status", {}).get("observedGeneration") == old["metadata"].get("generation")
    if is_seen and model.get("states", {}).get("targetModelState") == "FailedToLoad":
        failed = model.get("lastFailureInfo", {})
        why = ": ".join(t for t in (failed.get("reason"), failed.get("message")) if t)
        raise Conflict(
            f"the candidate of {_name(old)} can't serve{why and f': {why}'}; deploy another one, "
            f"or give it up: serve rollback {_name(old)}"
        )


def roll_back(
    old: Mapping[str, Any], revisions: Sequence[Mapping[str, Any]], to: str | None = None
) -> tuple[dict[str, Any], str]:
    """The service as an earlier revision had it, and that revision's name.

    `to` is a revision's name, or its number.
    Without it: a candidate is given up; where there is none, it is the revision that was rolled out before.
    """
    made = _bare(old)
    component = old.get("status", {}).get("components", {}).get("predictor", {})
    stable, before = component.get("latestRolledoutRevision"), component.get("previousRolledoutRevision")
    known = {r["name"]: r for r in revisions}
    wanted = to or (stable if _has_candidate(old, known.get(stable)) else before)
    if wanted and wanted.isdecimal():
        wanted = next((r["name"] for r in revisions if r.get("number") == int(wanted)), wanted)
    if not wanted:
        raise Conflict(f"{_name(old)} has no earlier revision to go back to")
    if wanted not in known:
        raise NotFound(f"{_name(old)} has no revision {wanted!r}; it has {', '.join(known) or 'none'}")
    predictor = {**made["spec"]["predictor"], **copy.deepcopy(known[wanted]["predictor"])}
    for field in ("minReplicas", "maxReplicas"):
        if field in made["spec"]["predictor"]:
            predictor[field] = made["spec"]["predictor"][field]
    predictor.pop("canaryTrafficPercent", None)
    made["spec"] = {k: v for k, v in made["spec"].items() if k != "canary"} | {"predictor": predictor}
    _trust_as(made, known[wanted].get("template", {}))
    _unpin(made)
    return made, wanted


def _has_candidate(old: Mapping[str, Any], rolled_out: Mapping[str, Any] | None) -> bool:
    """Whether giving something up leads to the revision that was rolled out last.

    What was promoted may be asked for less than all: then the requests are the one before's, and there is none.
    """
    predictor, status = old["spec"]["predictor"], old.get("status", {})
    component = status.get("components", {}).get("predictor", {})
    created = component.get("latestCreatedRevision")
    if old["spec"].get("canary"):
        return True
    if created != component.get("latestRolledoutRevision"):
        return bool(created)
    if "canaryTrafficPercent" not in predictor or status.get("observedGeneration") == old["metadata"].get("generation"):
        return False
    # nobody has looked at this spec yet, and what the status says is of another
    return _served(predictor) != _served((rolled_out or {}).get("predictor", {}))


def _served(predictor: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in predictor.items() if k not in ("canaryTrafficPercent", "minReplicas", "maxReplicas")}


def _trust_as(made: dict[str, Any], template: Mapping[str, Any]) -> None:
    """Have what may run code be what it was for a revision; the annotation is left out where it says nothing else."""
    notes, trusted = made["metadata"].get("annotations") or {}, template.get("trustCode")
    predictor = parse({k: v for k, v in made.items() if k != "status"}, formats=None).spec.predictor
    if trusted is None or trusts(predictor, notes.get(TRUST_PICKLE)) == trusted:
        return
    kept = {k: v for k, v in notes.items() if k != TRUST_PICKLE}
    said = {} if trusts(predictor, None) == trusted else {TRUST_PICKLE: str(trusted).lower()}
    made["metadata"]["annotations"] = kept | said


def _unpin(made: Mapping[str, Any]) -> None:
    """The checksum is of a model that is not the predictor's any more; a revision's own stands in its URI."""
    made["metadata"].get("annotations", {}).pop(SHA256, None)


def _bare(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a user says of an object, without what the platform says; with its version, so that no other's change is lost."""
    made = copy.deepcopy({k: v for k, v in raw.items() if k != "status"})
    made["metadata"] = {k: v for k, v in made["metadata"].items() if k in KEPT}
    return made


def _name(raw: Mapping[str, Any]) -> str:
    return str(raw["metadata"]["name"])
