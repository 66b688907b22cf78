"""The Kubernetes shell: carries out a plan with objects of the cluster's API.  Decides nothing that a plan decides.

All that is read is read from memory, which watches keep as the API server has it.  What lives on lives in the cluster:
revisions as ControllerRevisions, history in the status, the split on the route itself.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deployer import spec
from deployer.errors import SpecError
from deployer.kubernetes import accounts, children, events, pods, seeing
from deployer.kubernetes.api import Api, ApiError, Refused, Stale
from deployer.kubernetes.cache import Reflector, Store
from deployer.kubernetes.children import Children, Refusal, controller
from deployer.kubernetes.kinds import (
    CHILDREN,
    CLUSTER_SERVING_RUNTIME,
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    INFERENCE_SERVICE,
    OPTIONAL,
    OWNER,
    POD,
    REVISION,
    ROUTED,
    ROUTES,
    SERVICE,
    SERVICE_ACCOUNT,
    SERVING_RUNTIME,
    Kind,
    kind_of,
)
from deployer.kubernetes.rendering import objects, route
from deployer.kubernetes.rendering.layout import Layout, layout, weights
from deployer.kubernetes.rendering.settings import CONFIG_MAP as CONFIG_NAME
from deployer.kubernetes.rendering.settings import Settings, parse_config
from deployer.kubernetes.revising import revise
from deployer.observed import Failure, Observed
from deployer.plan import Abilities, Plan
from deployer.runtimes import ServingRuntime, parse_runtime

log = logging.getLogger(__name__)
Object = dict[str, Any]
SETTLE_SECONDS = 5.0
"""How long what was routed to stays after the routes were changed: proxies learn it a little later."""
REPAIR_SECONDS = 1.0
LEARN_SECONDS = 0.3
"""For how long what gets ready is not said to be: a gateway learns of its pods that much later than we, at most."""
SLOW_SECONDS = 10.0
EVERY = "*"


class ClusterPlatform:
    """The verbs of `platform.Platform`.  `start` fills the caches; nothing is written before `watch`."""

    def __init__(self, api: Api, namespaces: Sequence[str] = (), config_namespace: str = "kserve") -> None:
        """`namespaces` are the only ones that are looked at; none: those of the ConfigMap, or else all."""
        self._api, self._namespaces, self._config_namespace = api, tuple(namespaces), config_namespace
        self._settings = Settings()
        self._changed: Callable[[str], None] = lambda key: None
        self._reflectors: list[Reflector] = []
        self._later_keys: set[str] = set()
        self._lock = threading.Lock()
        self._told: dict[str, _Told] = {}
        self._parsed: dict[str, tuple[list[Any], spec.InferenceService]] = {}
        self._runtimes: dict[tuple[str, str], ServingRuntime | None] = {}
        self._refusals: dict[str, _Refused] = {}
        self._unrouted: dict[str, dict[str, int]] = {}
        self._left: dict[str, dict[str, float]] = {}
        self._since: dict[str, float] = {}
        self.reconciles = 0
        self.is_synced = False
        """Whether `start` is through: all that there is is known."""

        def owned(kind: Kind) -> Store:
            return Store(kind, children.trim(kind), _owner_by(OWNER))

        self._services = Store(INFERENCE_SERVICE, children.trim(INFERENCE_SERVICE), _key)
        self._namespaced_runtimes = Store(SERVING_RUNTIME, children.trim(SERVING_RUNTIME), _namespace)
        self._cluster_runtimes = Store(CLUSTER_SERVING_RUNTIME, children.trim(CLUSTER_SERVING_RUNTIME), lambda raw: EVERY)
        self._config = Store(CONFIG_MAP, children.trim(CONFIG_MAP), lambda raw: EVERY)
        self._service_accounts = Store(SERVICE_ACCOUNT, accounts.trim, _namespace)
        self._pods = Store(POD, pods.trim, _owner_by(SERVICE))
        self._revisions = owned(CONTROLLER_REVISION)
        self._stores = {kind: owned(kind) for kind in CHILDREN}
        self._accounts = accounts.Accounts(api, self._service_accounts)
        self._children = Children(api, self._stores, self._is_absent, self._later)

    # caches

    def start(self, ended: threading.Event | None = None) -> bool:
        """Fill the caches, however long the API server takes; False where `ended` was set before that."""
        self._reflect(self._config, self._configure, self._config_namespace, fieldSelector=f"metadata.name={CONFIG_NAME}")
        if not self._wait_synced(ended):
            return False
        for namespace in self._namespaces or self._settings.namespaces or (None,):
            self._reflect(self._services, self._wake, namespace)
            self._reflect(self._namespaced_runtimes, self._wake, namespace)
            self._reflect(self._service_accounts, self._wake, namespace)
            self._reflect(self._pods, self._wake, namespace, labelSelector=REVISION)
            for store in (self._revisions, *self._stores.values()):
                self._reflect(store, self._wake, namespace, optional=store.kind in OPTIONAL, labelSelector=OWNER)
        self._reflect(self._cluster_runtimes, self._wake, None, optional=bool(self._namespaces))
        self.is_synced = self._wait_synced(ended)
        return self.is_synced

    def stop(self) -> None:
        for reflector in self._reflectors:
            reflector.stop()

    @property
    def trouble(self) -> dict[str, str]:
        """What can't be watched now, by kind."""
        return {one.store.kind.plural: one.trouble for one in self._reflectors if one.trouble}

    @property
    def cached(self) -> dict[str, int]:
        return {one.kind.plural: len(one) for one in {id(r.store): r.store for r in self._reflectors}.values()}

    @property
    def restarts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for one in self._reflectors:
            found[one.store.kind.plural] = found.get(one.store.kind.plural, 0) + one.restarts
        return found

    @property
    def services(self) -> dict[str, int]:
        """How many there are by the status of their condition Ready."""
        found: dict[str, int] = {"True": 0, "False": 0, "Unknown": 0}
        for raw in self._services.all():
            conditions = seeing.conditions(raw.get("status"))
            state = next((one.get("status") for one in conditions if one.get("type") == "Ready"), "Unknown")
            found[state if state in found else "Unknown"] += 1
        return found

    @property
    def broken(self) -> str:
        """Why this process should be started anew, "" where it should not."""
        dead = [one.store.kind.plural for one in self._reflectors if not one.is_alive]
        return f"nothing watches {', '.join(dead)} any more" if dead else ""

    @property
    def settings(self) -> Settings:
        return self._settings

    def _reflect(
        self,
        store: Store,
        changed: Callable[[Iterable[str]], None],
        namespace: str | None,
        *,
        optional: bool = False,
        **selectors: str,
    ) -> None:
        one = Reflector(self._api, store, changed, namespace=namespace, optional=optional, back=self.look_again, **selectors)
        self._reflectors.append(one)
        one.start()

    def _wait_synced(self, ended: threading.Event | None) -> bool:
        for one in self._reflectors:
            began = time.monotonic()
            while not one.wait_synced(0.5):
                if ended is not None and ended.is_set():
                    return False
                if time.monotonic() > began + SLOW_SECONDS:
                    log.warning("%s can't be read yet: %s", one.store.kind.plural, one.trouble or "no answer")
                    began = time.monotonic()
        return True

    def _is_absent(self, kind: Kind) -> bool:
        mine = [one for one in self._reflectors if one.store.kind == kind]
        return bool(mine) and all(one.is_absent for one in mine)

    def _configure(self, told: Iterable[str]) -> None:
        raw = self._config.get(f"{self._config_namespace}/{CONFIG_NAME}")
        try:
            self._settings = parse_config((raw or {}).get("data") or {})
        except SpecError as error:
            text = "; ".join(str(error).splitlines())
            log.error("ConfigMap %s/%s: %s; what it said before still holds", self._config_namespace, CONFIG_NAME, text)
            return
        self.look_again()

    def _wake(self, told: Iterable[str]) -> None:
        """`told` has keys of services, "namespace/*" for all of one and "*" for all."""
        keys: set[str] = set()
        for one in told:
            if one.endswith(EVERY):
                prefix = one.removesuffix(EVERY)
                keys |= {key for raw in self._services.all() if (key := _key(raw)).startswith(prefix)}
            else:
                keys.add(one)
        for key in keys:
            self._changed(key)

    def _later(self, key: str, seconds: float) -> None:
        with self._lock:
            if key in self._later_keys:
                return
            self._later_keys.add(key)

        def ring() -> None:
            with self._lock:
                self._later_keys.discard(key)
            self._changed(key)

        timer = threading.Timer(seconds, ring)
        timer.daemon = True
        timer.start()

    def look_again(self) -> None:
        """At every service: something may have happened that nobody told of, or could not be done for a while."""
        self._wake([EVERY])

    # the verbs of a platform

    def watch(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self.look_again()

    def get(self, key: str) -> Object | None:
        self.reconciles += 1
        return self._told_service(key)

    def runtimes(self, namespace: str) -> Sequence[ServingRuntime]:
        """One that can't be read is none: whoever names it is told that there is no such runtime."""
        raws = [*self._namespaced_runtimes.of(f"{namespace}/{EVERY}"), *self._cluster_runtimes.all()]
        return [found for raw in sorted(raws, key=_key) if (found := self._runtime(raw))]

    def notices(self, service: spec.InferenceService) -> Sequence[spec.Notice]:
        """What the service says, and has no effect on this cluster."""
        return objects.notes(self._settings, service)

    @property
    def abilities(self) -> Abilities:
        return Abilities(fetches=False, pods=True)

    def observe(self, key: str) -> Observed:
        raw = self._told_service(key)
        if raw is None:
            return Observed()
        uid, status = raw["metadata"]["uid"], raw.get("status") or {}
        deployments = self._mine(DEPLOYMENT, key, uid)
        stored = [one for one in self._revisions.of(key) if controller(one) == uid]
        of_pods, now = self._pods.of(key), time.time()
        revisions = seeing.revisions(stored, deployments, of_pods, now)
        if rest := pods.patience(of_pods, now):
            self._later(key, rest)
        refused = self._refusals.get(key, _NOTHING_REFUSED)
        revisions = tuple(replace(one, failure=refused.failures.get(one.name) or one.failure) for one in revisions)
        history = seeing.history(status, (one.name for one in revisions))
        seen = seeing.seen_deployments(deployments, of_pods)
        shares = self._shares_now(key, uid, status, seen)
        service = self._parse(key, raw)
        url, address = route.url(self._settings, service), route.address(service)
        error = refused.route or seeing.route_trouble(self._routes(key), uid)
        known = {one.name for one in revisions}
        routed = {name: percent for name, percent in weights(shares, seen, history).items() if name in known}
        return Observed(revisions, {}, routed, history, url, address, error, refused.scaler)

    def apply(self, key: str, plan: Plan) -> None:
        raw = self._told_service(key)
        if raw is None:
            return
        uid, status = raw["metadata"]["uid"], raw.get("status") or {}
        service = self._parse(key, raw)
        revise(self._api, self._revisions, self._settings, key, service, plan)
        seen = seeing.seen_deployments(self._mine(DEPLOYMENT, key, uid), self._pods.of(key))
        now = self._shares_now(key, uid, status, seen)
        lately = self._lately(key, now, seen)
        laid = layout(plan.name, plan, seen, now, service.spec.predictor.name or "", lately)
        wanted = [_marked(one, laid) for one in objects.render(self._settings, service, plan, laid, self._accounts.seen)]
        sizes = {one.name: one.min_replicas for one in laid.workloads}
        refusals = self._children.apply(key, uid, wanted, sizes)
        self._unrouted[key] = {one.workload: one.percent for one in laid.shares if one.percent}
        self._note(key, raw, plan, laid, wanted, refusals)
        self._remember_left(key, now, laid)
        self._children.prune(key, uid, wanted, laid.retained)
        if laid.retained:
            self._later(key, SETTLE_SECONDS)

    def report(self, key: str, status: Object) -> None:
        raw = self._service(key)
        if raw is None:
            return
        uid, there = raw["metadata"]["uid"], raw.get("status") or {}
        told = self._told.get(key)
        told = told if told and told.uid == uid else None
        before = told.wanted if told else there
        wanted = self._whole(raw, seeing.steady(status, before), before)
        if wanted == there or (told and (told.wanted, told.found) == (wanted, there)):
            # as it should be, or as the API server keeps it
            self._told[key] = _Told(uid, wanted, there, told.at if told else 0.0)
            return
        if told and told.wanted == wanted and (pause := told.at + REPAIR_SECONDS - time.monotonic()) > 0:
            self._later(key, pause)
            return
        if (rest := self._unlearned(key, before, wanted)) > 0:
            self._later(key, rest)
            return
        meta = raw["metadata"]
        operations = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "add", "path": "/status", "value": wanted},
        ]
        answer = self._api.patch(INFERENCE_SERVICE.path(meta["namespace"], meta["name"]) + "/status", operations)
        self._services.put(answer)
        self._told[key] = _Told(uid, wanted, answer.get("status") or {}, time.monotonic())
        for event in events.transitions(raw, before, wanted):
            self._tell(event)
        if wanted.get("observedGeneration") != before.get("observedGeneration"):
            self._tell_notices(key, raw)

    def delete(self, key: str) -> None:
        """What it owns goes with it, by its owner references; only what is known of it is left to forget."""
        self._children.forget(key)
        for memory in (self._told, self._parsed, self._refusals, self._unrouted, self._left, self._since):
            memory.pop(key, None)

    # parts of them

    def _told_service(self, key: str) -> Object | None:
        """What the status said when this process wrote it last is what it says: nobody else's word counts for it."""
        raw = self._service(key)
        if raw is None:
            return None
        told = self._told.get(key)
        return {**raw, "status": told.wanted} if told and told.uid == raw["metadata"]["uid"] else raw

    def _service(self, key: str) -> Object | None:
        raw = self._services.get(key)
        return None if raw is None or "deletionTimestamp" in raw["metadata"] else raw

    def _mine(self, kind: Kind, key: str, uid: str) -> list[Object]:
        """A service's objects of a kind; not those of one that had its name before."""
        return [one for one in self._stores[kind].of(key) if controller(one) == uid]

    def _routes(self, key: str) -> list[Object]:
        return [one for kind in ROUTES for one in self._stores[kind].of(key)]

    def _parse(self, key: str, raw: Object) -> spec.InferenceService:
        """SpecError where it is wrong; read once while nothing but the status changes."""
        meta = raw["metadata"]
        mark = [meta["uid"], meta.get("generation"), meta.get("labels"), meta.get("annotations")]
        known = self._parsed.get(key)
        if known is None or known[0] != mark:
            known = (mark, spec.parse(raw, formats=None))
            self._parsed[key] = known
        return known[1]

    def _runtime(self, raw: Object) -> ServingRuntime | None:
        mark = (raw["metadata"]["uid"], raw["metadata"]["resourceVersion"])
        if mark not in self._runtimes:
            try:
                self._runtimes[mark] = parse_runtime(raw)
            except SpecError as error:
                log.warning("%s %s: %s", raw["kind"], _key(raw), "; ".join(str(error).splitlines()))
                self._runtimes[mark] = None
            if len(self._runtimes) > 1000:
                self._runtimes.clear()
        return self._runtimes.get(mark)

    def _shares_now(self, key: str, uid: str, status: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, int]:
        found = seeing.shares_of_routes(self._routes(key), uid)
        if found is not None:
            return found
        known = self._unrouted.get(key)
        return seeing.shares_of_status(status, seen) if known is None else known

    def _lately(self, key: str, now: Mapping[str, int], seen: Mapping[str, Any]) -> list[str]:
        """Workloads that requests may still come to.  A process that has just begun does not know, and waits for all."""
        moment = time.monotonic()
        left = self._left.setdefault(key, {name: moment for name in seen if not now.get(name)})
        return [name for name, since in left.items() if moment < since + SETTLE_SECONDS]

    def _remember_left(self, key: str, before: Mapping[str, int], laid: Layout) -> None:
        after = {one.workload: one.percent for one in laid.shares}
        for name, percent in before.items():
            if percent and not after.get(name):
                self._left[key][name] = time.monotonic()

    def _note(
        self, key: str, raw: Object, plan: Plan, laid: Layout, wanted: Sequence[Object], refusals: Sequence[Refusal]
    ) -> None:
        """What could not be had, for `observe`: of a Deployment it is its revision's failure."""
        revisions = {one.name: one.revision for one in laid.workloads}
        latest = plan.asked[0][1] if plan.asked else ""
        failures: dict[str, Failure] = {}
        of_route, lacking = "", None
        for one in refusals:
            text = f"{one.kind} {one.name} was refused: {one.message}"
            match one.concerns:
                case "route":
                    of_route = of_route or text
                case "scaler":
                    lacking = lacking or Failure("AutoscalerNotConfigured", text, one.at)
                case "pods":
                    failures.setdefault(revisions.get(one.name, latest), Failure("InvalidPredictorSpec", text, one.at))
            if one.is_new:
                self._tell(events.refused(raw, text, one.at))
        if not of_route and sum(one.percent > 0 for one in laid.shares) > 1 and not any(kind_of(one) in ROUTES for one in wanted):
            of_route = (
                "requests can't be split without an ingress; choose istio or gateway-api in the ConfigMap, or promote the canary"
            )
        self._refusals[key] = _Refused(failures, of_route, lacking)

    def _whole(self, raw: Object, status: Object, before: Mapping[str, Any]) -> Object:
        """What the loop does not know: a status that is about a spec which can't be carried out is about this generation,
        and a service that is stopped keeps its history."""
        if any(one["type"] == "Ready" and one.get("reason") == "InvalidSpec" for one in status["conditions"]):
            status = {**status, "observedGeneration": raw["metadata"].get("generation", 0)}
        if "components" not in status:
            known = (one["metadata"]["name"] for one in self._revisions.of(_key(raw)))
            if kept := seeing.told(seeing.history(before, known)):
                status = {**status, "components": {"predictor": kept}}
        return status

    def _unlearned(self, key: str, before: Mapping[str, Any], wanted: Object) -> float:
        """Seconds until a gateway has heard of what makes the service ready; 0 where it has, and where there is none."""
        if self._settings.ingress == "none" or not seeing.is_ready(wanted) or seeing.is_ready(before):
            self._since.pop(key, None)
            return 0.0
        return self._since.setdefault(key, time.monotonic()) + LEARN_SECONDS - time.monotonic()

    def _tell_notices(self, key: str, raw: Object) -> None:
        """Once for a generation, and not at all for one that can't be read: its condition says why."""
        try:
            noticed = self.notices(self._parse(key, raw))
        except SpecError:
            return
        if noticed:
            self._tell(events.noticed(raw, noticed, time.time()))

    def _tell(self, event: Object) -> None:
        try:
            self._api.create(EVENT.path(event["metadata"]["namespace"]), event)
        except Stale:
            pass  # told already
        except (Refused, ApiError) as error:
            log.warning("an event was not written: %s", error)


@dataclass(frozen=True)
class _Told:
    """The status that was written, how the API server keeps it, and when (on the monotonic clock)."""

    uid: str
    wanted: Object
    found: Object
    at: float


@dataclass(frozen=True)
class _Refused:
    """What the API server did not take: by revision, of the routes, and of what scales them."""

    failures: Mapping[str, Failure]
    route: str
    scaler: Failure | None


_NOTHING_REFUSED = _Refused({}, "", None)


def _key(raw: Mapping[str, Any]) -> str:
    meta = raw["metadata"]
    return f"{meta.get('namespace', '')}/{meta['name']}"


def _namespace(raw: Mapping[str, Any]) -> str:
    """All services of the object's namespace, as `_wake` has it."""
    return f"{raw['metadata'].get('namespace', '')}/{EVERY}"


def _owner_by(label: str) -> Callable[[Object], str]:
    def owner(raw: Object) -> str:
        meta = raw["metadata"]
        name = (meta.get("labels") or {}).get(label, "")
        return f"{meta.get('namespace', '')}/{name}" if name else ""

    return owner


def _marked(raw: Object, laid: Layout) -> Object:
    """A route says who gets how much in a way that is read back."""
    if kind_of(raw) not in ROUTES:
        return raw
    meta = raw["metadata"]
    return {**raw, "metadata": {**meta, "annotations": {**(meta.get("annotations") or {}), ROUTED: seeing.routed(laid.shares)}}}
