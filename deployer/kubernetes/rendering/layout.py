"""Which Deployment carries which revision, and how many of the requests its Service gets: one step, pure.

There is one stable Deployment, and Kubernetes rolls it: capacity never dips, because a roll takes no pod away before another
is ready.  A candidate has a Deployment of its own.  When a candidate wins, the stable Deployment is rolled to the candidate's
template while the split still stands; then it gets all requests; then the candidate's Deployment goes.

Level-triggered like everything else: the step's own outcome as the next one's arguments changes nothing more.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from deployer.kubernetes.kinds import REVISION
from deployer.observed import History
from deployer.plan import Plan, RevisionPlan

# What a label's value and a Service's name have room for.
LONGEST = 63

Role = Literal["stable", "candidate"]


@dataclass(frozen=True)
class Workload:
    """A Deployment, and the Service and autoscaler that have its name."""

    name: str
    revision: str
    number: int
    template: Mapping[str, Any]
    min_replicas: int
    max_replicas: int
    role: Role
    canary: str = ""
    """The name of its entry in `spec.canary`; "" where it has none."""


@dataclass(frozen=True)
class Share:
    workload: str
    percent: int


@dataclass(frozen=True)
class SeenDeployment:
    """A Deployment as it is; `replicas` counts the pods of its template before this one, too."""

    revision: str
    replicas: int = 0
    updated: int = 0
    ready: int = 0
    available: int = 0
    current: bool = True
    """These numbers are of its newest template."""
    alone: bool = False
    """There are pods of it, and none of another revision: its template may have changed otherwise, by a label for instance."""
    others: frozenset[str] = frozenset()
    """Of the revisions that its pods are of, those that are not its own, by their label."""

    @property
    def is_rolled(self) -> bool:
        """Whether all that runs of it is of its revision."""
        return self.alone or (self.current and self.updated > 0 and self.updated == self.replicas)


@dataclass(frozen=True)
class Layout:
    workloads: tuple[Workload, ...] = ()
    """What is rendered; the stable one first."""
    shares: tuple[Share, ...] = ()
    """The stable one first; sums to 100, or is empty where there is nothing to run."""
    retained: tuple[str, ...] = ()
    """Workloads that stay as they are for now: not rendered, and what has their name is not to be removed."""


def stable_name(service: str, predictor: str = "") -> str:
    """`predictor` is `spec.predictor.name`."""
    return f"{service}-{predictor}-predictor" if predictor else f"{service}-predictor"


def candidate_name(stable: str) -> str:
    return short(f"{stable}-canary")


def canary_name(service: str, canary: str) -> str:
    """Of an entry of `spec.canary`."""
    return f"{service}-{canary}-predictor"


def short(name: str) -> str:
    """The name, or one that is as unlike any other, where it is too long for a label or a Service."""
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def seen_deployment(raw: Mapping[str, Any]) -> SeenDeployment:
    """What there is of a Deployment, from the object that the cluster has."""
    meta, status = raw.get("metadata") or {}, raw.get("status") or {}
    template = ((raw.get("spec") or {}).get("template") or {}).get("metadata") or {}
    return SeenDeployment(
        str((template.get("annotations") or {}).get(REVISION) or (template.get("labels") or {}).get(REVISION, "")),
        int(status.get("replicas") or 0),
        int(status.get("updatedReplicas") or 0),
        int(status.get("readyReplicas") or 0),
        int(status.get("availableReplicas") or 0),
        int(status.get("observedGeneration") or 0) >= int(meta.get("generation") or 0),
    )


def weights(shares_now: Mapping[str, int], seen: Mapping[str, SeenDeployment], history: History) -> dict[str, int]:
    """Percent by revision, for `Observed.weights`.

    A Deployment that is being rolled counts for the revision that it had: pods of both answer.  What was rolled out last may be
    what it is being rolled to, since a candidate with a Deployment of its own is promoted before the stable one has it.
    """
    before = (history.rolled_out, history.previous)
    found: dict[str, int] = {}
    for name, percent in shares_now.items():
        one = seen.get(name)
        if one is None or not percent:
            continue
        old = next((revision for revision in before if revision and short(revision) in one.others), history.rolled_out)
        revision = one.revision if one.is_rolled or not old else old
        found[revision] = found.get(revision, 0) + percent
    return found


def layout(
    service_name: str,
    plan: Plan,
    seen: Mapping[str, SeenDeployment],
    shares_now: Mapping[str, int],
    predictor_name: str = "",
    lately: Collection[str] = (),
) -> Layout:
    """`seen` are the Deployments of this service's predictors, `shares_now` is what its routes say, in percent.

    `lately` are workloads that the routes led to until a few seconds ago: proxies may not know yet, so they stay.
    """
    revisions = {one.name: one for one in plan.revisions}
    if plan.stopped or not revisions:
        return Layout()
    _, latest, percent = plan.asked[0] if plan.asked else ("", "", 100)
    before = plan.traffic[0].revision if plan.traffic else latest
    target = latest if percent == 100 and latest else before
    home = stable_name(service_name, predictor_name)
    candidates: list[tuple[Workload, int]] = []
    if latest in revisions and latest != target:
        candidates.append((_workload(candidate_name(home), revisions[latest], "candidate"), percent))
    for name, revision, share in plan.asked[1:]:
        if revision in revisions:
            candidates.append((_workload(canary_name(service_name, name), revisions[revision], "candidate", name), share))
    stable = _workload(home, revisions[target], "stable")
    wanted = {home, *(one.name for one, _ in candidates)}
    forebears = {
        name: one
        for name, one in sorted(seen.items())
        if name not in wanted
        and one.available
        and shares_now.get(name, 0)
        # a candidate that is being rolled has no share: this is the stable one of before
        and (one.revision in (*revisions, plan.history.previous) or not one.is_rolled)
    }
    # who takes over has to be as large as who has carried the load until now
    enough = max([stable.min_replicas, *(min(one.available, stable.max_replicas) for one in forebears.values())])
    if forebears and not _carries(seen.get(home), target, enough):
        stable = replace(stable, min_replicas=enough)
    else:
        forebears = {}
    # the first revision: a gateway learns a route later than we, and there is nobody whom it could mislead
    first = (Share(stable.name, 100), *(Share(one.name, 0) for one, _ in candidates))
    shares = _shares(plan, stable, candidates, forebears, seen, shares_now) if plan.traffic else first
    routed = {share.workload for share in shares if share.percent}
    left = [name for name in sorted(seen) if name not in wanted]
    return Layout(
        (stable, *(one for one, _ in candidates)),
        shares,
        tuple(name for name in left if name in routed or name in lately or shares_now.get(name, 0)),
    )


def _workload(name: str, revision: RevisionPlan, role: Role, canary: str = "") -> Workload:
    sizes = revision.min_replicas, revision.max_replicas
    return Workload(name, revision.name, revision.number, revision.template, *sizes, role, canary)


def _carries(seen: SeenDeployment | None, revision: str, replicas: int) -> bool:
    """Whether nothing but this revision runs of a Deployment, and enough of it."""
    return seen is not None and seen.revision == revision and seen.is_rolled and seen.available >= replicas


def _shares(
    plan: Plan,
    stable: Workload,
    candidates: list[tuple[Workload, int]],
    forebears: Mapping[str, SeenDeployment],
    seen: Mapping[str, SeenDeployment],
    shares_now: Mapping[str, int],
) -> tuple[Share, ...]:
    """What the plan gives a revision, for each Deployment that carries it; what is left is the stable one's."""
    planned = {one.revision: one.percent for one in plan.traffic}
    given: dict[str, int] = {}
    for one, asked in candidates:
        is_ready = _carries(seen.get(one.name), one.revision, 1)
        # no more than was asked for: a plan that routes round the stable revision does not know its Deployment's other pods
        given[one.name] = min(asked, planned.get(one.revision, 0)) if is_ready else 0
    rest = 100 - sum(given.values())
    old: dict[str, int] = {}
    for name in forebears:
        old[name] = min(rest, shares_now[name])
        rest -= old[name]
    now = seen.get(stable.name)
    if rest and (now is None or not now.available):
        # nobody is there yet: whoever has answered until now goes on
        serving = [name for name, one in seen.items() if one.available and shares_now.get(name, 0)]
        if heir := next((name for name in (*old, *given, *sorted(serving)) if name in serving), ""):
            part = given if heir in given else old
            part[heir] = part.get(heir, 0) + rest
            rest = 0
    return tuple(Share(name, part) for name, part in {stable.name: rest, **given, **old}.items())
