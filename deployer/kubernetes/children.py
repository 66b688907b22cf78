"""Writes the objects of services where they are not as they should be, and removes those that should not be.

An object is left alone while its annotation has the digest of what would be applied and it says all of that: in the steady
state nothing is sent.  Where the API server keeps something in a way of its own, that is remembered; where somebody else
changes what is ours, it is put back, once a second at most.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deployer.kubernetes import applied
from deployer.kubernetes.api import Absent, Api, ApiError, Refused, Stale
from deployer.kubernetes.cache import Store
from deployer.kubernetes.kinds import (
    APPLIED,
    BY_NAME,
    DEPLOYMENT,
    DESTINATION_RULE,
    HPA,
    MANAGER,
    OPTIONAL,
    ROUTES,
    SCALED_OBJECT,
    Kind,
    kind_of,
)
from deployer.spec import AUTOSCALER_CLASS

log = logging.getLogger(__name__)
Object = dict[str, Any]
REPAIR_SECONDS = 1.0
REFUSED_SECONDS = 20.0
"""How long what was refused is not tried again while it is the same."""
# The owner of a Deployment's replicas where an autoscaler sets them and has not done so yet.
SCALE_MANAGER = "serveplane-scale"
OWNS_REPLICAS = "ownsReplicas"
ENDING = "because it is being terminated"
"""Of a namespace, in the API server's words."""


Concern = Literal["pods", "scaler", "route"]
SCALERS = (HPA.name, SCALED_OBJECT.name)
_INSTEAD = "choose another ingress"
_OTHER_SCALER = f"choose another autoscaler by the annotation {AUTOSCALER_CLASS}"


@dataclass(frozen=True)
class Refusal:
    """An object that the API server does not take, in its words."""

    kind: str
    name: str
    message: str
    at: float
    """Unix seconds."""
    is_new: bool
    """It was not refused like this before."""

    @property
    def concerns(self) -> Concern:
        if self.kind in [kind.name for kind in (*ROUTES, DESTINATION_RULE)]:
            return "route"
        return "scaler" if self.kind in SCALERS else "pods"


@dataclass
class _Memory:
    """What is known of one object besides the object."""

    accepted: tuple[str, str] = ("", "")
    """Digests of what was applied, and of what the API server made otherwise."""
    applied_at: float = -REPAIR_SECONDS
    refused: str = ""
    """Digest of what was refused, …"""
    refused_text: str = ""
    refused_at: float = 0.0
    """… when, in Unix seconds, …"""
    tried_at: float = 0.0
    """… and when it was tried last, on the monotonic clock."""


class Children:
    """Safe for threads, as long as each service is in one hand at a time."""

    def __init__(
        self,
        api: Api,
        stores: Mapping[Kind, Store],
        is_absent: Callable[[Kind], bool],
        later: Callable[[str, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`later` has a service looked at again after some seconds."""
        self._api, self._stores, self._is_absent, self._later, self._clock = api, stores, is_absent, later, clock
        self._lock = threading.Lock()
        self._memory: dict[str, dict[tuple[str, str], _Memory]] = {}
        self._deleted: dict[str, set[str]] = {}

    def forget(self, key: str) -> None:
        with self._lock:
            self._memory.pop(key, None)
            self._deleted.pop(key, None)

    def apply(self, key: str, uid: str, objects: Sequence[Object], first_size: Mapping[str, int]) -> list[Refusal]:
        """In their order, but no route before everything that it may lead to is there.

        `first_size` are the replicas that a Deployment starts with where an autoscaler sets them from then on.  Raises
        ApiError, after all that can be done, where something could not and may be another time.
        """
        refusals: list[Refusal] = []
        trouble: ApiError | None = None
        for raw in objects:
            kind = kind_of(raw)
            if kind in ROUTES and (trouble or any(one.concerns == "pods" for one in refusals)):
                continue
            try:
                refusal = self._apply(key, uid, kind, raw, first_size.get(raw["metadata"]["name"], 1))
            except ApiError as error:
                trouble = trouble or error
                continue
            if refusal:
                refusals.append(refusal)
        if trouble:
            raise trouble
        return refusals

    def prune(self, key: str, uid: str, keep: Iterable[Object], retained: Collection[str]) -> None:
        """Remove what is the service's and not in `keep`; nothing of the workloads in `retained`."""
        wanted = {(kind_of(raw), raw["metadata"]["name"]) for raw in keep}
        with self._lock:
            deleted = self._deleted.setdefault(key, set())
        for kind in BY_NAME.values():
            for raw in self._stores[kind].of(key):
                meta = raw["metadata"]
                is_ours = controller(raw) == uid and (kind, meta["name"]) not in wanted
                if not is_ours or meta["uid"] in deleted or "deletionTimestamp" in meta or _workload(raw) in retained:
                    continue
                log.info("%s: removing %s %s", key, kind.name, meta["name"])
                # it may be gone, or be another one that has its name now
                with contextlib.suppress(Absent, Stale):
                    self._api.delete(kind.path(meta["namespace"], meta["name"]), meta["uid"])
                deleted.add(meta["uid"])

    def _apply(self, key: str, uid: str, kind: Kind, raw: Object, first_size: int) -> Refusal | None:
        meta = raw["metadata"]
        name, wanted = meta["name"], applied.digest(raw)
        with self._lock:
            memory = self._memory.setdefault(key, {}).setdefault((kind.name, name), _Memory())
        if memory.refused == wanted and self._clock() < memory.tried_at + REFUSED_SECONDS:
            return Refusal(kind.name, name, memory.refused_text, memory.refused_at, False)
        if kind in OPTIONAL and self._is_absent(kind):
            instead = _OTHER_SCALER if kind.name in SCALERS else _INSTEAD
            text = f"the cluster has no kind {kind.name} ({kind.api_version}); install what defines it, or {instead}"
            return self._refuse(memory, kind, name, wanted, text)
        live = self._stores[kind].get(f"{meta['namespace']}/{name}")
        if live is not None and self._is_so(key, kind, raw, wanted, live, memory):
            memory.refused = ""
            return None
        if live is None:
            live = self._api.find(kind.path(meta["namespace"], name))
        if live is not None and controller(live) != uid:
            owner = next((one for one in live["metadata"].get("ownerReferences") or () if one.get("controller")), None)
            mine = meta["ownerReferences"][0]
            is_old = owner is not None and (owner["kind"], owner["name"]) == (mine["kind"], mine["name"])
            if is_old or "deletionTimestamp" in live["metadata"]:
                raise ApiError(f"{kind.name} {name} of the service that had this name before is still being removed")
            whose = f"{owner['kind']} {owner['name']}" if owner else "somebody else"
            text = f"there is a {kind.name} {name!r} already, and it is {whose}'s; remove it, or give the service another name"
            return self._refuse(memory, kind, name, wanted, text)
        return self._send(memory, kind, raw, wanted, live, first_size)

    def _is_so(self, key: str, kind: Kind, raw: Object, wanted: str, live: Object, memory: _Memory) -> bool:
        """Whether there is nothing to do now."""
        if (live["metadata"].get("annotations") or {}).get(APPLIED) != wanted:
            return False
        found = applied.differences(raw, live)
        if not found or memory.accepted == (wanted, applied.digest(found)):
            return True
        if (pause := memory.applied_at + REPAIR_SECONDS - self._clock()) > 0:
            self._later(key, pause)
            return True
        log.info("%s: %s %s was changed by another: %s", key, kind.name, raw["metadata"]["name"], ", ".join(list(found)[:5]))
        return False

    def _send(
        self, memory: _Memory, kind: Kind, raw: Object, wanted: str, live: Object | None, first_size: int
    ) -> Refusal | None:
        meta = raw["metadata"]
        path = kind.path(meta["namespace"], meta["name"])
        marked = {**raw, "metadata": {**meta, "annotations": {**(meta.get("annotations") or {}), APPLIED: wanted}}}
        leaves_replicas = kind == DEPLOYMENT and "replicas" not in raw["spec"]
        memory.tried_at = memory.applied_at = self._clock()
        try:
            if leaves_replicas and live is not None and owns_replicas(live):
                # not named any more they would be one: who scales from here on has them first
                self._api.apply(path, _sized(raw, int(live["spec"].get("replicas", 1))), SCALE_MANAGER)
            answer = self._api.apply(path, marked)
            if leaves_replicas and live is None and first_size > 1:
                answer = self._api.apply(path, _sized(raw, first_size), SCALE_MANAGER)
        except Refused as error:
            return self._refuse(memory, kind, meta["name"], wanted, str(error))
        self._stores[kind].put(answer)
        memory.accepted = (wanted, applied.digest(applied.differences(raw, answer)))
        memory.refused = ""
        return None

    def _refuse(self, memory: _Memory, kind: Kind, name: str, wanted: str, text: str) -> Refusal:
        line = " ".join(text.split())
        is_new = (memory.refused, memory.refused_text) != (wanted, line)
        memory.refused, memory.refused_text, memory.tried_at = wanted, line, self._clock()
        if ENDING in line:
            # nobody waits for it any more, and no Event can be written there
            memory.refused_at, is_new = time.time(), False
        elif is_new:
            memory.refused_at = time.time()
            log.warning("%s %s: %s", kind.name, name, line)
        return Refusal(kind.name, name, line, memory.refused_at, is_new)


def controller(raw: Mapping[str, Any]) -> str:
    """The uid of the object that owns this one, "" where none does."""
    return next((one["uid"] for one in raw["metadata"].get("ownerReferences") or () if one.get("controller")), "")


def owns_replicas(deployment: Mapping[str, Any]) -> bool:
    """Whether the controller's own applying set `spec.replicas`; `trim` keeps the answer where it drops the evidence."""
    if OWNS_REPLICAS in deployment:
        return bool(deployment[OWNS_REPLICAS])
    return any(
        one.get("manager") == MANAGER
        and one.get("operation") == "Apply"
        and "f:replicas" in ((one.get("fieldsV1") or {}).get("f:spec") or {})
        for one in deployment["metadata"].get("managedFields") or ()
    )


def trim(kind: Kind) -> Callable[[Object], Object]:
    """What is kept of an object: all but who manages which field, which is larger than the rest."""

    def trimmed(raw: Object) -> Object:
        meta = {key: value for key, value in raw["metadata"].items() if key not in ("managedFields", "selfLink")}
        kept = {**raw, "apiVersion": kind.api_version, "kind": kind.name, "metadata": meta}
        return kept | ({OWNS_REPLICAS: owns_replicas(raw)} if kind == DEPLOYMENT else {})

    return trimmed


def _sized(raw: Object, replicas: int) -> Object:
    meta = {key: raw["metadata"][key] for key in ("name", "namespace")}
    return {"apiVersion": raw["apiVersion"], "kind": raw["kind"], "metadata": meta, "spec": {"replicas": replicas}}


def _workload(raw: Mapping[str, Any]) -> str:
    """The Deployment that an object belongs to, by KServe's label, and else by its name."""
    return str((raw["metadata"].get("labels") or {}).get("app", "")).removeprefix("isvc.") or str(raw["metadata"]["name"])
