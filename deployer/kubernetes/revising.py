"""Keeps the revisions of services as ControllerRevisions: each with its template, and the predictor that it came from."""

from typing import Any

from deployer import spec
from deployer.kubernetes.api import Api, ApiError, Stale
from deployer.kubernetes.cache import Store
from deployer.kubernetes.children import controller
from deployer.kubernetes.kinds import CONTROLLER_REVISION
from deployer.kubernetes.rendering import labels
from deployer.kubernetes.rendering.settings import Settings
from deployer.plan import Plan

Object = dict[str, Any]
KEPT_REVISIONS = 10


def revise(api: Api, store: Store, settings: Settings, key: str, service: spec.InferenceService, plan: Plan) -> None:
    """Make what the plan has and `store` has not, and remove the oldest of those that nobody needs."""
    meta = service.metadata
    stored = {one["metadata"]["name"]: one for one in store.of(key) if controller(one) == meta.uid}
    of_canary = {revision: name for name, revision, _ in plan.asked[1:]}
    for one in plan.revisions:
        if one.name in stored:
            continue
        data = {"hash": one.hash, "template": dict(one.template), "predictor": _predictor(service, of_canary.get(one.name))}
        made: Object = {"apiVersion": CONTROLLER_REVISION.api_version, "kind": CONTROLLER_REVISION.name}
        made |= {"metadata": labels.metadata(settings, service, one.name), "data": data, "revision": one.number}
        try:
            store.put(api.create(CONTROLLER_REVISION.path(meta.namespace), made))
        except Stale:
            store.put(api.get(CONTROLLER_REVISION.path(meta.namespace, one.name)))
            raise ApiError(f"revision {one.name} is there already; looking again") from None
    used = {one.name for one in plan.revisions} | set(vars(plan.history).values())
    spare = sorted((one for name, one in stored.items() if name not in used), key=lambda one: int(one.get("revision") or 0))
    for old in spare[: max(0, len(spare) - KEPT_REVISIONS)]:
        api.delete(CONTROLLER_REVISION.path(meta.namespace, old["metadata"]["name"]), old["metadata"]["uid"])
        store.drop(old)


def _predictor(service: spec.InferenceService, canary: str | None) -> Object:
    """What a rollback puts back: of a canary with what its entry left to the stable predictor."""
    found = next(
        (one.predictor for one in service.spec.canary if canary and one.predictor.name == canary), service.spec.predictor
    )
    changed = service.spec.model_copy(update={"predictor": spec.explicit(found) if canary else found, "canary": ()})
    made: Object = spec.as_object(service.model_copy(update={"spec": changed}))["spec"]["predictor"]
    return made
