"""From what the cluster says of a service's objects to what was observed: pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from deployer.kubernetes import pods
from deployer.kubernetes.children import controller
from deployer.kubernetes.kinds import REVISION, ROUTED
from deployer.kubernetes.rendering.labels import selector
from deployer.kubernetes.rendering.layout import SeenDeployment, Share, seen_deployment, short
from deployer.observed import History, RevisionSeen

Object = Mapping[str, Any]


def revisions(
    stored: Iterable[Object], deployments: Sequence[Object], of_pods: Sequence[Object], now: float
) -> tuple[RevisionSeen, ...]:
    """In the order of their numbers; `stored` are ControllerRevisions, those that no revision can be read from are left out."""
    found = (_revision(one, deployments, of_pods, now) for one in stored)
    return tuple(sorted((one for one in found if one), key=lambda one: one.number))


def _revision(stored: Object, deployments: Sequence[Object], of_pods: Sequence[Object], now: float) -> RevisionSeen | None:
    data, name = stored.get("data"), stored["metadata"]["name"]
    if not isinstance(data, dict) or not isinstance(data.get("template"), dict) or not isinstance(data.get("hash"), str):
        return None
    mine = [one for one in of_pods if (one["metadata"].get("labels") or {}).get(REVISION) == short(name)]
    carrying = [one for one in deployments if seen_deployment(one).revision == name]
    failure = pods.failure(mine, carrying, now)
    if failure:
        failure = replace(failure, message=pods.of_the_model(failure.message, str(data["template"].get("uri") or "")))
    return RevisionSeen(
        name,
        int(stored.get("revision") or 0),
        data["hash"],
        data["template"],
        sum(int((one.get("spec") or {}).get("replicas") or 0) for one in carrying),
        sum(map(pods.is_ready, mine)),
        sum(map(pods.is_alive, mine)),
        failure,
    )


def seen_deployments(deployments: Iterable[Object], of_pods: Iterable[Object]) -> dict[str, SeenDeployment]:
    """Those of predictors, by name."""
    revisions: dict[str, set[str]] = {}
    for pod in of_pods:
        labels = pod["metadata"].get("labels") or {}
        if not pods.is_leaving(pod):
            revisions.setdefault(labels.get("app", ""), set()).add(labels.get(REVISION, ""))
    found = {}
    for one in deployments:
        if (one["metadata"].get("labels") or {}).get("component") == "predictor":
            name, seen = one["metadata"]["name"], seen_deployment(one)
            there, own = revisions.get(selector(name)["app"], set()), {short(seen.revision)}
            found[name] = replace(seen, alone=there == own, others=frozenset(there - own))
    return found


def history(status: Mapping[str, Any], known: Iterable[str]) -> History:
    """As the status has it; a revision that is not there any more is none."""
    predictor = _object(_object(status.get("components")).get("predictor"))
    names = set(known)

    def named(field: str) -> str:
        value = predictor.get(field)
        return value if isinstance(value, str) and value in names else ""

    return History(
        named("latestCreatedRevision"),
        named("latestReadyRevision"),
        named("latestRolledoutRevision"),
        named("previousRolledoutRevision"),
    )


def told(history: History) -> dict[str, str]:
    """The fields of the status that `history` reads."""
    names = {
        "latestCreatedRevision": history.created,
        "latestReadyRevision": history.ready,
        "latestRolledoutRevision": history.rolled_out,
        "previousRolledoutRevision": history.previous,
    }
    return {field: name for field, name in names.items() if name}


def routed(shares: Iterable[Share]) -> str:
    """The annotation that a route has: who gets how much."""
    return json.dumps({one.workload: one.percent for one in shares}, sort_keys=True)


def shares_of_routes(routes: Iterable[Object], uid: str) -> dict[str, int] | None:
    """Percent by workload, as the routes say; None where there is no route."""
    for route in routes:
        text = (route["metadata"].get("annotations") or {}).get(ROUTED)
        if controller(route) != uid or text is None:
            continue
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict) and all(isinstance(one, int) for one in value.values()):
            return value
    return None


def shares_of_status(status: Mapping[str, Any], deployments: Mapping[str, SeenDeployment]) -> dict[str, int]:
    """Where nothing routes but the Services themselves: by the revisions that the status names."""
    traffic = _object(_object(status.get("components")).get("predictor")).get("traffic")
    found: dict[str, int] = {}
    for one in traffic if isinstance(traffic, list) else ():
        percent, revision = _object(one).get("percent"), _object(one).get("revisionName")
        carriers = [name for name, seen in deployments.items() if seen.revision == revision]
        if carriers and isinstance(percent, int) and percent:
            found[carriers[0]] = found.get(carriers[0], 0) + percent
    return found


def route_trouble(routes: Iterable[Object], uid: str) -> str:
    """What a gateway says is wrong with a route, "" where it says nothing."""
    for route in routes:
        if controller(route) != uid:
            continue
        generation = int(route["metadata"].get("generation") or 0)
        for parent in _object(route.get("status")).get("parents") or ():
            for condition in parent.get("conditions") or ():
                is_about_this = int(condition.get("observedGeneration") or generation) >= generation
                if condition.get("type") in ("Accepted", "ResolvedRefs") and condition.get("status") == "False" and is_about_this:
                    gateway = _object(parent.get("parentRef")).get("name", "the gateway")
                    return f"{gateway} does not take the route: {condition.get('message') or condition.get('reason')}"
    return ""


def steady(status: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The status, with a condition's time of change where it has changed and the old one where it has not."""
    old = {one["type"]: one for one in before.get("conditions") or () if isinstance(one, dict) and "type" in one}
    made = []
    for one in status.get("conditions") or ():
        was = old.get(one["type"])
        same = was is not None and was.get("status") == one["status"] and was.get("lastTransitionTime")
        made.append(one | {"lastTransitionTime": was["lastTransitionTime"]} if was and same else one)
    return {**status, "conditions": made}


def conditions(status: Any) -> list[Mapping[str, Any]]:
    """Those of a status that may be anything."""
    found = _object(status).get("conditions")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def is_ready(status: Any) -> bool:
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions(status))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
