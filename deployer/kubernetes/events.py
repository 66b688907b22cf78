"""Which Events a change of status is worth: pure.  Only transitions are told, and each under a name of its own, so that one
which is written twice (after a restart, say) is there once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deployer.spec import Notice
from deployer.status import timestamp

NO_EFFECT = "NoEffect"
LEFT = "PreviousRevisionServes"
READY, NOT_READY, ROLLED_OUT = "InferenceServiceReady", "InferenceServiceNotReady", "RevisionRolledOut"


def transitions(service: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Events on `service`, of which `before` was the status and `after` is."""
    was, now = _ready(before), _ready(after)
    first = _rolled_out(before) == ""
    if _rolled_out(after) not in ("", _rolled_out(before)) and not first:
        text = f"revision {_rolled_out(after)} takes the place of {_rolled_out(before)}"
        yield _event(service, "Normal", ROLLED_OUT, text, str(now.get("lastTransitionTime", "")))
    if (share := _left_to_the_one_before(after)) and share != _left_to_the_one_before(before):
        yield _event(service, "Normal", LEFT, share, str(now.get("lastTransitionTime", "")))
    if now.get("status") == "True":
        if was.get("status") != "True":
            yield _event(service, "Normal", READY, f"{service['metadata']['name']} is ready", now["lastTransitionTime"])
    elif now.get("status") == "False" and (was.get("status"), was.get("reason")) != ("False", now.get("reason")):
        reason = now.get("reason") or NOT_READY
        if reason == "Stopped":
            yield _event(service, "Normal", reason, f"{service['metadata']['name']} is stopped", now["lastTransitionTime"])
        else:
            yield _event(service, "Warning", reason, now.get("message") or NOT_READY, now["lastTransitionTime"])
    elif was.get("status") == "True":
        text = now.get("message") or f"{service['metadata']['name']} is not ready any more"
        # what somebody asked for takes its time, and nothing is wrong with that
        is_asked = before.get("observedGeneration") != after.get("observedGeneration")
        kind = "Normal" if is_asked or now.get("reason") == "Routing" else "Warning"
        yield _event(service, kind, NOT_READY, text, str(now.get("lastTransitionTime", "")))


def noticed(service: Mapping[str, Any], notices: Iterable[Notice], at: float) -> dict[str, Any]:
    """What a generation of the service says without an effect, all of it in one Event, and once."""
    once = f"generation {service['metadata'].get('generation', 0)}"
    return _event(service, "Warning", NO_EFFECT, "; ".join(map(str, notices)), timestamp(at), once)


def refused(service: Mapping[str, Any], text: str, at: float) -> dict[str, Any]:
    """An object of the service was not taken."""
    return _event(service, "Warning", "ApplyRefused", text, timestamp(at))


def _event(service: Mapping[str, Any], kind: str, reason: str, text: str, at: str, once: str = "") -> dict[str, Any]:
    """`once` is what the same text is told once for; by default a time."""
    meta = service["metadata"]
    mark = hashlib.sha256("\0".join((meta["uid"], reason, text, once or at)).encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{mark}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": service["apiVersion"],
            "kind": service["kind"],
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
            "resourceVersion": meta.get("resourceVersion", ""),
        },
        "type": kind,
        "reason": reason,
        "message": text if len(text) <= 1000 else text[:999] + "…",
        "firstTimestamp": at or None,
        "lastTimestamp": at or None,
        "count": 1,
        "source": {"component": "serveplane"},
        "reportingComponent": "serveplane",
        "reportingInstance": "serveplane",
    }


def _ready(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})


def _left_to_the_one_before(status: Mapping[str, Any]) -> str:
    """Of a canaryTrafficPercent for what was rolled out already, which KServe takes for "back": what comes of it."""
    traffic = ((status.get("components") or {}).get("predictor") or {}).get("traffic") or ()
    shares = {one.get("tag"): (one.get("revisionName"), one.get("percent", 0)) for one in traffic}
    latest, percent = shares.get("latest", ("", 100))
    prev, rest = shares.get("prev", ("", 0))
    if not rest or latest != _rolled_out(status) or len(shares) != 2:
        return ""
    left = f"canaryTrafficPercent leaves it {percent} %, and {prev}, the one before, gets {rest} %"
    return f"{latest} had all requests already: {left}"


def _rolled_out(status: Mapping[str, Any]) -> str:
    predictor = (status.get("components") or {}).get("predictor") or {}
    return str(predictor.get("latestRolledoutRevision") or "")
