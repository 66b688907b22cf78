"""From a service's spec and what was seen of it to what should be: pure, and the same again when asked again.

A `Plan` is all that a shell is told.  What can't be planned (no runtime fits, a model can't be had) is a `Problem` in
the plan and not an exception: whatever serves already goes on serving.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deployer import names, rollout, runtimes
from deployer.errors import NoRuntime, SpecError
from deployer.observed import History, ModelSeen, Observed, RevisionSeen
from deployer.runtimes import ServingRuntime
from deployer.spec import (
    MIRROR_PERCENT,
    ROUTE_HEADER,
    STOP,
    TRUST_PICKLE,
    InferenceService,
    Predictor,
    explicit,
    pinned,
    predictor_object,
    quantity,
    trusts,
)

DEFAULT_TIMEOUT = 60.0


@dataclass(frozen=True)
class Abilities:
    """What a platform can do with a revision, as far as planning has to know."""

    refuses: Callable[[Mapping[str, Any]], str] = lambda container: ""
    """Of a container, as Kubernetes has it: why the platform can't run it, and what to do; "" where it can."""
    fetches: bool = True
    """Models are brought to the platform before a revision is named, which then stands for their content."""
    pods: bool = False
    """Everything that a spec says of pods has an effect."""


@dataclass(frozen=True)
class Problem:
    """Why a part of the spec can't be carried out; `reason` is one of KServe's failure reasons, or one of ours."""

    reason: str
    message: str
    final: bool
    """Nothing but another spec mends it."""


@dataclass(frozen=True)
class RevisionPlan:
    name: str
    number: int
    hash: str
    template: Mapping[str, Any]
    min_replicas: int
    max_replicas: int
    scale_metric: str = ""
    """KServe's `scaleMetric`, "" where the platform may choose."""
    scale_target: int = 0
    timeout: float = DEFAULT_TIMEOUT
    predictor: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The predictor of the spec that it was first made of, to go back to; empty for a revision that was there already."""


@dataclass(frozen=True)
class Target:
    """A share of the requests, in percent.  `tag` is KServe's: "latest" and "prev", or the canary's name."""

    revision: str
    percent: int
    tag: str


@dataclass(frozen=True)
class HeaderMatch:
    """Requests that carry `header: value` go to `revision`."""

    header: str
    value: str
    revision: str


@dataclass(frozen=True)
class Plan:
    namespace: str
    name: str
    revisions: tuple[RevisionPlan, ...] = ()
    """What has to run; whatever else runs for this service is to be drained and ended."""
    traffic: tuple[Target, ...] = ()
    """What is routed now; the stable revision first."""
    fetch: tuple[str, ...] = ()
    """URIs of models that have to be on the platform."""
    history: History = History()
    asked: tuple[tuple[str, str, int], ...] = ()
    """(canary's name or "", revision or "", percent) of every predictor of the spec, the main one first."""
    problems: tuple[Problem, ...] = ()
    timeout: float = DEFAULT_TIMEOUT
    header_matches: tuple[HeaderMatch, ...] = ()
    mirror: tuple[str, int] | None = None
    """(revision, percent): a copy of that share of the requests goes there too, its answers to nobody."""
    stopped: bool = False


@dataclass(frozen=True)
class Wanted:
    """One predictor of the spec as a revision, or why there is none (yet)."""

    template: Mapping[str, Any] | None
    hash: str = ""
    fetch: str = ""
    problem: Problem | None = None
    predictor: Mapping[str, Any] = field(default_factory=dict)


def plan(
    service: InferenceService,
    observed: Observed,
    installed: Sequence[ServingRuntime] = (),
    abilities: Abilities = Abilities(),
) -> Plan:
    """`installed` are the runtimes of users; `abilities` are the platform's."""
    service = pinned(service)
    meta, spec = service.metadata, service.spec
    here = Plan(meta.namespace, meta.name, history=observed.history, timeout=float(spec.predictor.timeout or DEFAULT_TIMEOUT))
    if meta.annotations.get(STOP) == "true":
        return Plan(meta.namespace, meta.name, history=observed.history, timeout=here.timeout, stopped=True)

    def wanted(predictor: Predictor) -> Wanted:
        return want(service, predictor, observed, installed, abilities)

    main = wanted(spec.predictor)
    canaries = [(c.predictor.name or "", c.traffic_percent, wanted(c.predictor)) for c in spec.canary]
    book = _Book(meta.name, observed.revisions)
    latest = book.name(main)
    asked = [(name, book.name(one), percent) for name, percent, one in canaries]
    ask = rollout.Ask(latest, spec.predictor.canary_traffic_percent, tuple(rollout.Candidate(*a) for a in asked))
    sizes = _sizes(service, latest, asked, observed.history)
    alive = frozenset(r.name for r in observed.revisions if r.ready)
    step = rollout.step(ask, observed.history, _ready(observed, sizes), observed.weights, alive)
    tags = {revision: name for name, revision, _ in asked} | ({latest: "latest"} if latest else {})
    traffic = tuple(Target(revision, percent, tags.get(revision, "prev")) for revision, percent in step.traffic)
    everything = [main, *(one for _, _, one in canaries)]
    candidate = next((t.revision for t in reversed(traffic) if len(traffic) > 1), "")
    return Plan(
        meta.namespace,
        meta.name,
        tuple(_with_scale(book.plan(name, *sizes.get(name, sizes[""])), spec.predictor) for name in step.keep),
        traffic,
        tuple(dict.fromkeys(w.fetch for w in everything if w.fetch)),
        step.history,
        (("", latest, 100 if ask.percent is None else ask.percent), *asked),
        tuple(w.problem for w in everything if w.problem),
        here.timeout,
        _header_matches(meta.annotations.get(ROUTE_HEADER), candidate),
        (candidate, int(meta.annotations[MIRROR_PERCENT])) if candidate and MIRROR_PERCENT in meta.annotations else None,
    )


def want(
    service: InferenceService,
    predictor: Predictor,
    observed: Observed,
    installed: Sequence[ServingRuntime],
    abilities: Abilities,
) -> Wanted:
    """The template of `predictor`: whatever of it would change the process that serves, and nothing else."""
    model = predictor.model
    uri = (model.storage_uri if model else None) or ""
    runtime = None
    if model is not None:
        try:
            runtime = runtimes.choose(predictor, installed)
        except NoRuntime as error:
            gone = _gone(observed, installed)
            text = f"{error}{gone and f'; what serves was made by the runtime {gone!r}, which is gone: install it again'}"
            return Wanted(None, problem=Problem(error.reason, text, final=True))
    try:
        merged = runtimes.merge(runtime, service, predictor)
    except SpecError as error:
        return Wanted(None, problem=Problem("InvalidPredictorSpec", str(error), final=True))
    why = abilities.refuses(merged.container)
    if not why and not uri and not abilities.pods:
        why = "no model: spec.predictor.model.storageUri is empty; name a file, a folder or a URI"
    if why:
        return Wanted(None, problem=Problem("InvalidPredictorSpec", why, final=True))
    seen = observed.models.get(uri) if abilities.fetches else ModelSeen("fetched")
    failure = seen.failure if seen else None
    problem = Problem(failure.reason, failure.message, final=False) if failure else None
    if seen is None or (abilities.fetches and not seen.digest):
        return Wanted(None, fetch=uri, problem=problem)
    template: dict[str, Any] = {
        "runtime": runtime.name if runtime else "",
        "format": model.model_format.name if model else "",
        "uri": uri,
        "digest": seen.digest,
        "container": merged.container,
        "trustCode": trusts(predictor, service.metadata.annotations.get(TRUST_PICKLE)),
        "timeout": float(predictor.timeout or DEFAULT_TIMEOUT),
    }
    if abilities.pods:
        template["containers"], template["pod"] = list(merged.containers), dict(merged.pod)
        template |= {"labels": _told("labels", service, runtime, predictor)}
        template |= {"annotations": _told("annotations", service, runtime, predictor), **_stored(predictor)}
    else:
        template["memory"] = _memory(predictor)
    written = predictor_object(predictor if predictor is service.spec.predictor else explicit(predictor))
    return Wanted(template, hash_of(template), uri if abilities.fetches else "", problem, written)


def _gone(observed: Observed, installed: Sequence[ServingRuntime]) -> str:
    """The runtime of what was rolled out last, where it is not there any more; "" where it is, and where there was none."""
    served = observed.revision(observed.history.rolled_out)
    name = str(served.template.get("runtime", "")) if served else ""
    return "" if name in {one.name for one in (*installed, *runtimes.BUILTIN)} else name


def hash_of(template: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _told(what: str, service: InferenceService, runtime: ServingRuntime | None, predictor: Predictor) -> dict[str, str]:
    """A pod's labels or annotations: the runtime's, where neither the service nor the predictor says otherwise."""
    said: Mapping[str, str] = getattr(service.metadata, what)
    base: Mapping[str, str] = getattr(runtime.spec, what) if runtime else {}
    return {**{key: value for key, value in base.items() if key not in said}, **getattr(predictor, what)}


def _stored(predictor: Predictor) -> dict[str, Any]:
    """Where the models are, other than by one URI.  What is not said is not there: it would be a new revision of everybody."""
    store = predictor.model.storage if predictor.model else None
    made: dict[str, Any] = {}
    if store is not None:
        said = {"key": store.key, "path": store.path, "parameters": dict(store.parameters)}
        made["storage"] = {name: value for name, value in said.items() if value}
    if predictor.storage_uris:
        made["storageUris"] = [{"uri": one.uri, "mountPath": one.mount_path} for one in predictor.storage_uris]
    return made


def _memory(predictor: Predictor) -> int | None:
    """Bytes that a replica may hold, where the user says so: a runtime's default is for pods."""
    limits = (predictor.model.container if predictor.model else {}).get("resources", {}).get("limits", {})
    return int(quantity(limits["memory"])) if "memory" in limits else None


class _Book:
    """The revisions there are and the ones this plan adds, by the hash of their template."""

    def __init__(self, service: str, seen: Iterable[RevisionSeen]) -> None:
        self._service = service
        self._by_name = {r.name: RevisionPlan(r.name, r.number, r.hash, r.template, 0, 0) for r in seen}

    def name(self, wanted: Wanted) -> str:
        if wanted.template is None:
            return ""
        for one in self._by_name.values():
            if one.hash == wanted.hash:
                return one.name
        number = 1 + max((one.number for one in self._by_name.values()), default=0)
        name = names.revision(self._service, number)
        new = RevisionPlan(name, number, wanted.hash, wanted.template, 0, 0, predictor=wanted.predictor)
        self._by_name[name] = new
        return name

    def plan(self, name: str, low: int, high: int) -> RevisionPlan:
        return replace(self._by_name[name], min_replicas=low, max_replicas=high)


def _with_scale(revision: RevisionPlan, predictor: Predictor) -> RevisionPlan:
    metric, target = str(predictor.scale_metric or ""), int(predictor.scale_target or 0)
    return replace(revision, scale_metric=metric, scale_target=target, timeout=float(predictor.timeout or DEFAULT_TIMEOUT))


def _sizes(
    service: InferenceService, latest: str, asked: Sequence[tuple[str, str, int]], history: History
) -> dict[str, tuple[int, int]]:
    """Fewest and most replicas by revision, "" for any other: a candidate's are scaled by its share."""
    main = service.spec.predictor
    low = max(1, main.min_replicas or 1)
    high = max(low, main.max_replicas or low)
    sizes = {"": (low, high)}
    percent = main.canary_traffic_percent
    if latest and percent is not None and percent < 100 and latest != history.rolled_out:
        sizes[latest] = (_share(low, percent), _share(high, percent))
    for (_, revision, share), canary in zip(asked, service.spec.canary, strict=True):
        own = canary.predictor.min_replicas
        fewest = own if own else _share(low, share)
        if revision and revision != latest:
            sizes[revision] = (fewest, max(fewest, _share(high, share)))
    return sizes


def _share(replicas: int, percent: int) -> int:
    return max(1, math.ceil(replicas * percent / 100))


def _ready(observed: Observed, sizes: Mapping[str, tuple[int, int]]) -> frozenset[str]:
    """Revisions with as many ready replicas as they are to have at least."""
    return frozenset(r.name for r in observed.revisions if r.ready >= sizes.get(r.name, sizes[""])[0])


def _header_matches(annotation: str | None, candidate: str) -> tuple[HeaderMatch, ...]:
    if not annotation or not candidate:
        return ()
    header, _, value = annotation.partition("=")
    return (HeaderMatch(header.strip().lower(), value.strip(), candidate),)
