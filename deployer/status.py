"""A service's status, derived from what was planned and what was seen: KServe's form, one function, no memory of its own.

`previous` is the status written last; only the times of changes are taken from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from deployer.observed import Failure, Observed, RevisionSeen
from deployer.plan import Plan, Problem, Target
from deployer.spec import InferenceService

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
INVALID_SPEC = ("NoSupportingRuntime", "RuntimeNotRecognized", "RuntimeDisabled", "InvalidPredictorSpec")


def derive(service: InferenceService, plan: Plan, observed: Observed, previous: Mapping[str, Any], now: float) -> dict[str, Any]:
    if plan.stopped:
        why = "stopped by the annotation serving.kserve.io/stop"
        conditions = [("Stopped", TRUE, "Stopped", why)]
        conditions += [(kind, FALSE, "Stopped", why) for kind in ("PredictorReady", "IngressReady", "Ready")]
        return _status(service, conditions, previous, now, {"deploymentMode": "Standard"})
    predictor = _predictor(plan, observed)
    canaries = _canaries(plan, observed)
    ingress = _ingress(plan, observed)
    needed = [predictor, ingress, *([_summary(canaries)] if canaries else [])]
    worst = next((c for state in (FALSE, UNKNOWN) for c in needed if c[1] == state), None)
    ready = ("Ready", *worst[1:]) if worst else ("Ready", TRUE, "", "")
    fields: dict[str, Any] = {"deploymentMode": "Standard"}
    if observed.url:
        fields |= {"url": observed.url, "address": {"url": observed.address}}
    runtime = _asked(plan, observed)
    if runtime:
        fields["clusterServingRuntimeName"] = runtime.template["runtime"]
    fields["components"] = {"predictor": _component(plan, observed)}
    fields["modelStatus"] = _model_status(plan, observed)
    if canaries:
        fields["canaryStatuses"] = canaries
    conditions = [("Stopped", FALSE, "", ""), *needed, ready]
    return _status(service, conditions, previous, now, fields)


def _status(
    service: InferenceService,
    conditions: Sequence[tuple[str, str, str, str]],
    previous: Mapping[str, Any],
    now: float,
    fields: dict[str, Any],
) -> dict[str, Any]:
    before = {c["type"]: c for c in previous.get("conditions", ())}
    made = []
    for kind, state, reason, message in sorted(conditions):
        old = before.get(kind)
        since = old["lastTransitionTime"] if old and old["status"] == state else timestamp(now)
        one = {"type": kind, "status": state, "lastTransitionTime": since}
        made.append(one | ({"reason": reason} if reason else {}) | ({"message": message} if message else {}))
    return {"observedGeneration": service.metadata.generation, "conditions": made, **fields}


def timestamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _asked(plan: Plan, observed: Observed) -> RevisionSeen | None:
    """The revision of `spec.predictor`, once it is there."""
    return observed.revision(plan.asked[0][1]) if plan.asked and plan.asked[0][1] else None


def _predictor(plan: Plan, observed: Observed) -> tuple[str, str, str, str]:
    kind = "PredictorReady"
    if plan.problems:
        first = plan.problems[0]
        return kind, FALSE, first.reason, first.message
    latest = _asked(plan, observed)
    if latest is None or any(observed.models[uri].state == "fetching" for uri in plan.fetch if uri in observed.models):
        return kind, UNKNOWN, "ModelFetching", fetching(plan, observed)
    fewest = next((r.min_replicas for r in plan.revisions if r.name == latest.name), 1)
    if stuck := _stuck(plan, observed, latest):
        return kind, FALSE, stuck.reason, stuck.message
    if latest.ready >= fewest and _settled(plan, latest.name):
        return (kind, FALSE, observed.lacking.reason, observed.lacking.message) if observed.lacking else (kind, TRUE, "", "")
    if latest.failure and latest.ready < fewest:
        return kind, FALSE, latest.failure.reason, latest.failure.message
    return kind, UNKNOWN, "Starting", f"revision {latest.name}: {latest.ready} of {fewest} replicas are ready"


def _settled(plan: Plan, latest: str) -> bool:
    """Whether the requests go where the spec wants them, as far as its main predictor is concerned."""
    _, _, percent = plan.asked[0]
    rest = 100 - sum(p for _, _, p in plan.asked[1:])
    routed = sum(t.percent for t in plan.traffic if t.revision == latest)
    return routed > 0 or percent == 0 or rest == 0


def _stuck(plan: Plan, observed: Observed, latest: RevisionSeen) -> Failure | None:
    """Why the requests don't come to the newest revision although enough of it is ready: of a promotion, what takes the stable
    one's place can't start."""
    wanted = next((t.percent for t in plan.traffic if t.revision == latest.name), 0)
    return latest.failure if observed.weights and observed.weights.get(latest.name, 0) < wanted else None


def fetching(plan: Plan, observed: Observed) -> str:
    for uri in plan.fetch:
        seen = observed.models.get(uri)
        if seen and seen.state == "fetching":
            part = f"{seen.done / 1e6:.1f}" + (f" of {seen.total / 1e6:.1f} MB" if seen.total else " MB")
            return f"fetching {uri}: {part}"
    return "fetching the model"


def _ingress(plan: Plan, observed: Observed) -> tuple[str, str, str, str]:
    kind = "IngressReady"
    if observed.route_error:
        return kind, FALSE, "TrafficNotConfigured", observed.route_error
    wanted = {t.revision: t.percent for t in plan.traffic if t.percent}
    if not wanted:
        return kind, UNKNOWN, "NoReadyRevision", "there is no ready revision to route to"
    if wanted != {name: percent for name, percent in observed.weights.items() if percent}:
        shares = ", ".join(f"{name} has {percent} %" for name, percent in observed.weights.items() if percent)
        return kind, UNKNOWN, "Routing", f"the routes are being changed{shares and f': {shares} of the requests so far'}"
    return kind, TRUE, "", ""


def _canaries(plan: Plan, observed: Observed) -> list[dict[str, Any]]:
    weights = {t.revision: t.percent for t in plan.traffic}
    made = []
    for name, revision, percent in plan.asked[1:]:
        seen = observed.revision(revision) if revision else None
        ready = bool(seen and seen.ready and (weights.get(revision, 0) or not percent))
        made.append({"name": name, "ready": ready, "trafficPercent": weights.get(revision, 0)} | _states(seen))
    return made


def _states(seen: RevisionSeen | None) -> dict[str, Any]:
    if seen is None:
        return {}
    return {"modelStatus": {"states": {"activeModelState": _state(seen), "targetModelState": _state(seen)}}}


def _state(seen: RevisionSeen) -> str:
    return "Loaded" if seen.ready else "FailedToLoad" if seen.failure else "Loading"


def _summary(canaries: Sequence[Mapping[str, Any]]) -> tuple[str, str, str, str]:
    late = [c["name"] for c in canaries if not c["ready"]]
    if late:
        return "CanaryPredictorReady", FALSE, "CanariesNotReady", f"not ready: {', '.join(late)}"
    return "CanaryPredictorReady", TRUE, "AllCanariesReady", ""


def _component(plan: Plan, observed: Observed) -> dict[str, Any]:
    latest = plan.asked[0][1] if plan.asked else ""
    traffic = [
        {"revisionName": t.revision, "percent": t.percent, "latestRevision": t.revision == latest, "tag": t.tag}
        for t in _routed(plan, observed)
    ]
    history = plan.history
    revisions = {
        "latestCreatedRevision": history.created,
        "latestReadyRevision": history.ready,
        "latestRolledoutRevision": history.rolled_out,
        "previousRolledoutRevision": history.previous,
    }
    component: dict[str, Any] = {"traffic": traffic} | {name: value for name, value in revisions.items() if value}
    return component | ({"url": observed.url} if observed.url else {})


def _routed(plan: Plan, observed: Observed) -> Sequence[Target]:
    """What is routed, of what is planned and of what had the requests before and has some yet."""
    now = {name: percent for name, percent in observed.weights.items() if percent}
    if sum(now.values()) != 100 or not plan.traffic:
        return plan.traffic
    planned = {t.revision for t in plan.traffic}
    left = [Target(name, percent, "prev") for name, percent in now.items() if name not in planned]
    return (*left, *(replace(t, percent=now.get(t.revision, 0)) for t in plan.traffic))


def _model_status(plan: Plan, observed: Observed) -> dict[str, Any]:
    latest = _asked(plan, observed)
    fewest = next((r.min_replicas for r in plan.revisions if latest and r.name == latest.name), 1)
    active = next((observed.revision(t.revision) for t in _routed(plan, observed) if t.percent), None)
    failed = _failure(plan, latest)
    loaded = latest and latest.ready >= fewest and not _stuck(plan, observed, latest)
    target = "Loaded" if loaded else "FailedToLoad" if failed else "Loading" if latest else "Pending"
    transition = "UpToDate" if target == "Loaded" else "InProgress"
    if failed and target != "Loaded":
        transition = "InvalidSpec" if failed["reason"] in INVALID_SPEC else "BlockedByFailedLoad"
    states = {"activeModelState": _state(active) if active else "", "targetModelState": target}
    copies = {"totalCopies": sum(r.ready for r in observed.revisions), "failedCopies": int(target == "FailedToLoad")}
    status: dict[str, Any] = {"transitionStatus": transition, "states": states, "copies": copies}
    return status | ({"lastFailureInfo": failed} if failed and target != "Loaded" else {})


def _failure(plan: Plan, latest: RevisionSeen | None) -> dict[str, Any] | None:
    if plan.problems:
        first: Problem = plan.problems[0]
        return {"reason": first.reason, "message": first.message}
    if latest is None or latest.failure is None:
        return None
    failure = latest.failure
    info: dict[str, Any] = {"reason": failure.reason, "message": failure.message, "modelRevisionName": latest.name}
    info |= {"time": timestamp(failure.at), "location": failure.location}
    return info | ({"exitCode": failure.exit_code} if failure.exit_code is not None else {})
