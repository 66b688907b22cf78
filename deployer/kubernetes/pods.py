"""Why pods of a revision don't get ready, in one line with a remedy: pure, from what the API says of them.

KServe's reason ModelLoadFailed stands for all that goes wrong inside a pod before it serves; what a cluster's operator has
to mend has a reason of its own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from deployer.kubernetes.rendering.storage import MODELS
from deployer.observed import Failure
from deployer.spec import TRUST_PICKLE

INITIALIZER, SERVER = "storage-initializer", "kserve-container"
LONGEST = 600
RESTARTS_THAT_FAIL = 1
PLACING_SECONDS = 10.0
"""For this long a pod that no node takes is nothing to tell of: a node may be on its way, or another pod on its way out."""
_SCHEDULING = (
    ("Insufficient", "ask for less in resources.requests, or add a node"),
    ("taint", "give the predictor tolerations for them, or add a node"),
    ("affinity", "change nodeSelector or affinity, or label a node"),
    ("persistentvolumeclaim", "make the claim, or name another in storageUri"),
    ("PersistentVolume", "make the claim, or name another in storageUri"),
)


def trim(raw: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a pod."""
    meta, status, spec = raw["metadata"], raw.get("status") or {}, raw.get("spec") or {}
    kept = ("name", "namespace", "uid", "labels", "creationTimestamp", "deletionTimestamp", "resourceVersion", "ownerReferences")
    said = ("phase", "reason", "message", "initContainerStatuses", "containerStatuses")
    conditions = [
        {key: one[key] for key in ("type", "status", "reason", "message", "lastTransitionTime") if key in one}
        for one in status.get("conditions") or ()
    ]
    return {
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": {"images": [one.get("image", "") for one in spec.get("containers") or ()]},
        "status": {key: status[key] for key in said if key in status} | {"conditions": conditions},
    }


def is_leaving(pod: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" in pod["metadata"] or pod["status"].get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Mapping[str, Any]) -> bool:
    return not is_leaving(pod) and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def is_alive(pod: Mapping[str, Any]) -> bool:
    return not is_leaving(pod) and pod["status"].get("phase") == "Running"


def failure(pods: Sequence[Mapping[str, Any]], deployments: Iterable[Mapping[str, Any]], now: float) -> Failure | None:
    """Of one revision's pods the newest that is not ready, and else of the Deployments that could not make any."""
    late = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and not is_ready(pod)]
    for pod in sorted(
        late, key=lambda one: (str(one["metadata"].get("creationTimestamp", "")), one["metadata"]["name"]), reverse=True
    ):
        if found := of_pod(pod, now):
            return found
    return next((found for one in deployments if (found := of_deployment(one))), None)


def patience(pods: Iterable[Mapping[str, Any]], now: float) -> float:
    """Seconds until a pod that no node takes is worth telling of; 0 where there is none such."""
    rest = [_unplaced_since(one) + PLACING_SECONDS - now for one in pods if _unplaced_since(one)]
    return min((one for one in rest if one > 0), default=0.0)


def _unplaced_since(pod: Mapping[str, Any]) -> float:
    """Unix seconds; 0 where a node has it."""
    for one in pod["status"]["conditions"]:
        if one["type"] == "PodScheduled" and one["status"] == "False" and one.get("reason") == "Unschedulable":
            return seconds(str(one.get("lastTransitionTime") or ""))
    return 0.0


def of_pod(pod: Mapping[str, Any], now: float) -> Failure | None:
    name, status = pod["metadata"]["name"], pod["status"]
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        if found := _of_container(pod, container):
            return found
    since = _unplaced_since(pod)
    if since and since + PLACING_SECONDS <= now:
        condition = next(one for one in status["conditions"] if one["type"] == "PodScheduled")
        # the scheduler says it twice of a claim
        said = condition.get("message", "").replace(" not found. not found", " not found")
        remedy = next((text for word, text in _SCHEDULING if word.lower() in said.lower()), "add a node that fits")
        return _failure("Unschedulable", f"no node takes pod {name}: {said}; {remedy}", condition, name)
    if status.get("phase") == "Failed":
        why = status.get("reason", "Failed")
        return _failure(why, f"pod {name} ended: {status.get('message') or why}", pod["metadata"], name)
    return None


def _of_container(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Failure | None:
    """`state` is what it does now, `lastState` how it ended before: a container that waits says there why."""
    state, before = container.get("state") or {}, container.get("lastState") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or before.get("terminated") or {}
    where, reason = pod["metadata"]["name"], str(waiting.get("reason", ""))
    said = str(waiting.get("message", ""))
    what = f"container {container['name']} of pod {where}"
    since = {"lastTransitionTime": _time_of(pod)}
    if reason in (
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ErrImageInspect",
        "RegistryUnavailable",
    ):
        image = container.get("image") or ", ".join(pod["spec"]["images"])
        text = f"the image {image} of {what} can't be had: {said or reason}; check its name and tag, and imagePullSecrets"
        return _failure("ImagePullBackOff" if reason == "ErrImagePull" else reason, text, since, where)
    if reason in (
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
        "PostStartHookError",
    ):
        remedy = "make what it names, or change the predictor" if "not found" in said else "change what the predictor says of it"
        return _failure(reason, f"{what} can't be started: {said or reason}; {remedy}", since, where)
    if not ended or ended.get("exitCode") == 0 or (state.get("running") and not _has_crashed(container)):
        return None
    return _crashed(container, ended, what, where)


def _has_crashed(container: Mapping[str, Any]) -> bool:
    """It runs again and is not ready: how it ended last is why, until it is ready."""
    return not container.get("ready") and int(container.get("restartCount", 0)) >= RESTARTS_THAT_FAIL


def _crashed(container: Mapping[str, Any], ended: Mapping[str, Any], what: str, where: str) -> Failure:
    code = ended.get("exitCode")
    since = {"lastTransitionTime": ended.get("finishedAt") or ended.get("startedAt")}
    if ended.get("reason") == "OOMKilled":
        text = f"{what} needed more memory than its limit and was ended; raise resources.limits.memory"
        return _failure("OOMKilled", text, since, where, code)
    said = _last_line(str(ended.get("message") or ""))
    number = f" by signal {code - 128}" if isinstance(code, int) and code > 128 else f" with exit code {code}"
    if container["name"] == INITIALIZER:
        text = f"the model could not be fetched: {said or f'{what} ended{number}'}"
        return _failure("ModelLoadFailed", text, since, where, code)
    remedy = "" if said else "; its log says why: kubectl logs --previous"
    return _failure("ModelLoadFailed", f"{what} ended{number}{f': {said}' if said else remedy}", since, where, code)


def of_deployment(raw: Mapping[str, Any]) -> Failure | None:
    """A quota, a policy or an account that is missing keeps pods from being made: only the Deployment says so."""
    for condition in (raw.get("status") or {}).get("conditions") or ():
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            said = str(condition.get("message", ""))
            remedy = "change the predictor, or what refused it"
            if "exceeded quota" in said or "quota" in said:
                remedy = "ask for less in resources, delete something, or raise the namespace's quota"
            elif "serviceaccount" in said:
                remedy = "make that ServiceAccount, or name another in serviceAccountName"
            elif "PodSecurity" in said:
                remedy = "change securityContext, or the namespace's pod security level"
            return _failure(
                str(condition.get("reason") or "ReplicaFailure"), f"no pod can be made: {said}; {remedy}", condition, ""
            )
    return None


def _failure(reason: str, text: str, at: Mapping[str, Any], location: str, exit_code: Any = None) -> Failure:
    line = " ".join(text.split())
    when = seconds(str(at.get("lastTransitionTime") or at.get("creationTimestamp") or ""))
    code = exit_code if isinstance(exit_code, int) else None
    return Failure(reason, line if len(line) <= LONGEST else line[: LONGEST - 1] + "…", when, location, code)


def of_the_model(words: str, uri: str) -> str:
    """What a predictor says of its folder and its flags, said of what the manifest has: nobody starts it by hand here."""
    found = re.search(r"needs the (\w+) runtime, and the Python package .*", words, re.DOTALL)
    if found:
        what = f"is a model for {found[1]}, which this runtime does not open; set modelFormat.name: {found[1]}"
        words = words[: found.start()] + what
    if "--trust-pickle" in words:
        words += f' (here: the annotation {TRUST_PICKLE}: "true")'
    return re.sub(rf"{MODELS}(?=[/:;, ]|$)", uri.rstrip("/"), words) if uri else words


def _last_line(text: str) -> str:
    """Of a log's end the line that tells: a trace ends with the error, and our own programs say one line."""
    lines = [line.strip() for line in _without_colours(text).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _time_of(pod: Mapping[str, Any]) -> str:
    """Since when a pod is as it is: of its conditions the one that changed last, so that it is the same when asked again."""
    times = sorted(_times(pod))
    return times[-1] if times else ""


def _times(pod: Mapping[str, Any]) -> Iterator[str]:
    yield str(pod["metadata"].get("creationTimestamp", ""))
    yield from (str(one.get("lastTransitionTime") or "") for one in pod["status"]["conditions"])


def seconds(timestamp: str) -> float:
    """Unix seconds of the API's times; 0 for what is none."""
    try:
        return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
