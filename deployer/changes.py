"""What the verbs `deploy`, `promote` and `rollback` make of an InferenceService: objects in, objects out, pure."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployer.errors import Conflict, NotFound
from deployer.spec import API_VERSION, KIND


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
    predictor["model"] = model
    for field, value in (("minReplicas", wish.min_replicas), ("maxReplicas", wish.max_replicas), ("timeout", wish.timeout)):
        if value is not None:
            predictor[field] = value
    if wish.min_replicas and predictor.get("maxReplicas", wish.min_replicas) < wish.min_replicas:
        del predictor["maxReplicas"]
    predictor.pop("canaryTrafficPercent", None)
    if wish.canary is not None and old:
        predictor["canaryTrafficPercent"] = wish.canary
    if wish.trust_pickle is not None:
        notes = made["metadata"].setdefault("annotations", {})
        notes["serving.serveplane.dev/trust-pickle"] = str(wish.trust_pickle).lower()
    return made | {"spec": {**made.get("spec", {}), "predictor": predictor}}


def promote(old: Mapping[str, Any], canary: str | None = None) -> dict[str, Any]:
    """Everything to the candidate: Conflict where there is none, or where several are and none is named."""
    made = _bare(old)
    spec = made["spec"]
    entries = {c["predictor"].get("name", ""): c["predictor"] for c in spec.get("canary", [])}
    if not entries:
        if "canaryTrafficPercent" not in spec["predictor"]:
            raise Conflict(
                f"{_name(old)} has no canary to promote; `serve deploy MODEL --name {_name(old)} --canary 10` makes one"
            )
        del spec["predictor"]["canaryTrafficPercent"]
        return made
    chosen = canary or (next(iter(entries)) if len(entries) == 1 else "")
    if chosen not in entries:
        raise Conflict(f"{_name(old)} has the canaries {', '.join(entries)}; say which: serve promote {_name(old)} --canary NAME")
    rest = [c for c in spec["canary"] if c["predictor"].get("name") != chosen]
    spec["predictor"] = {**spec["predictor"], **entries[chosen]}
    spec["canary"] = rest
    if not rest:
        del spec["canary"]
    return made


def set_canary(old: Mapping[str, Any], percent: int) -> dict[str, Any]:
    made = _bare(old)
    made["spec"]["predictor"]["canaryTrafficPercent"] = percent
    return made


def roll_back(
    old: Mapping[str, Any], revisions: Sequence[Mapping[str, Any]], to: str | None = None
) -> tuple[dict[str, Any], str]:
    """The service as an earlier revision had it, and that revision's name.

    Without `to`: a candidate is given up; where there is none, it is the revision that was rolled out before.
    """
    made = _bare(old)
    component = old.get("status", {}).get("components", {}).get("predictor", {})
    stable, before = component.get("latestRolledoutRevision"), component.get("previousRolledoutRevision")
    created = component.get("latestCreatedRevision")
    is_candidate = "canaryTrafficPercent" in made["spec"]["predictor"] or (created and created != stable)
    wanted = to or (stable if is_candidate or made["spec"].get("canary") else before)
    known = {r["name"]: r for r in revisions}
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
    return made, wanted


def _bare(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a user says of an object, without what the platform says."""
    made = copy.deepcopy({k: v for k, v in raw.items() if k != "status"})
    made["metadata"] = {k: v for k, v in made["metadata"].items() if k in ("name", "namespace", "labels", "annotations")}
    return made


def _name(raw: Mapping[str, Any]) -> str:
    return str(raw["metadata"]["name"])
