"""A workload → its Deployment: a pod that may do nothing but serve, is Ready soon, and leaves without losing a request.

Where a manifest says something of the pod, that holds; what it leaves out is as strict as Kubernetes' "restricted" standard.

How a pod leaves: it is taken out of the endpoints and gets SIGTERM at the same moment.  Our server says at once that it is not
ready, goes on serving for `drain_delay`, until every proxy knows, and then ends what it has begun.  Another server is given
that time by a preStop hook.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deployer.kubernetes.rendering import credentials, labels, storage
from deployer.kubernetes.rendering.credentials import NOTHING, ServiceAccountSeen
from deployer.kubernetes.rendering.labels import Component, Object
from deployer.kubernetes.rendering.layout import Workload
from deployer.kubernetes.rendering.settings import Settings
from deployer.spec import AUTOSCALER_CLASS, InferenceService
from deployer.spec.annotations import KSERVE
from deployer.spec.schema import SERVER_CONTAINER
from deployer.spec.schema import Component as ComponentSpec
from server.settings import Settings as ServerSettings
from server.settings import to_flags

HTTP_PORT, GRPC_PORT = 8080, 8081
HTTP, GRPC = "http1", "grpc-port"
UID = 10001
COLLOCATED = "transformer-container"
DRAIN_SECONDS = 5.0
# Requests may take their whole timeout to end, but not for ever: then a node could never be emptied.
LONGEST_GRACE, AFTER_GRACE = 300.0, 5
# The longest that a model may take to load.
START_SECONDS = 1800
# Revisions are kept as ControllerRevisions; of a Deployment's old ReplicaSets only the last is worth a look.
HISTORY = 2
PROGRESS_SECONDS = 600
ROLLING: Object = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}}


def predictor(settings: Settings, service: InferenceService, workload: Workload, account: ServiceAccountSeen) -> Object:
    template = workload.template
    pod: Mapping[str, Any] = template.get("pod") or {}
    server = _server(settings, template, pod)
    sidecars = [_restricted(one) for one in template.get("containers") or ()]
    models = _models(settings, service, template, server, account)
    spec = _pod(settings, pod, [_with_models(server, models, template), *sidecars], models, _grace(template, pod)[1])
    own = template.get("labels") or {}
    port = ports(server)[0]["containerPort"]
    meta: Object = {"labels": labels.pod_labels(settings, service, workload.name, "predictor", own, workload.revision)}
    if notes := labels.pod_annotations(settings, service, template.get("annotations") or {}, port, workload.revision):
        meta["annotations"] = notes
    strategy = service.spec.predictor.deployment_strategy
    return _deployment(settings, service, workload.name, "predictor", workload.min_replicas, strategy, meta, spec)


def beside(
    settings: Settings, service: InferenceService, component: Component, part: ComponentSpec, name: str, predictor_name: str
) -> Object:
    """A transformer or an explainer: its server is told where the predictor is, unless the manifest does."""
    meta = service.metadata
    told = {"model_name": meta.name, "predictor_host": f"{predictor_name}.{meta.namespace}", "http_port": str(HTTP_PORT)}
    if part.container_concurrency:
        told["workers"] = str(part.container_concurrency)
    containers = []
    for one in part.containers:
        if one.get("name") != SERVER_CONTAINER:
            containers.append(_restricted(one))
            continue
        given = list(one.get("args") or ())
        flags = [f"--{flag}={value}" for flag, value in told.items() if _flag(given, flag) is None]
        named = {"name": "INFERENCE_SERVICE_NAME", "value": meta.name}
        env = [*(e for e in one.get("env") or () if e.get("name") != named["name"]), named]
        server = _foreign({**one, "args": [*given, *flags], "env": env}, part.pod)
        containers.insert(0, {**server, "resources": one.get("resources") or _RESOURCES})
    pod = _pod(settings, part.pod, containers, storage.Storage(), _grace({"timeout": part.timeout or 60.0}, part.pod)[1])
    top: Object = {"labels": labels.pod_labels(settings, service, name, component, part.labels)}
    if notes := labels.pod_annotations(settings, service, part.annotations, HTTP_PORT):
        top["annotations"] = notes
    replicas = max(1, part.min_replicas)
    return _deployment(settings, service, name, component, replicas, part.deployment_strategy, top, pod)


_RESOURCES: Object = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}


def _deployment(
    settings: Settings,
    service: InferenceService,
    name: str,
    component: Component,
    replicas: int,
    strategy: Mapping[str, Any] | None,
    pod_meta: Object,
    pod: Object,
) -> Object:
    # only where nothing scales it: a number here would be written over an autoscaler's with each update
    fixed = service.metadata.annotations.get(AUTOSCALER_CLASS) == "none"
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": labels.metadata(settings, service, name, name, component),
        "spec": {
            **({"replicas": replicas} if fixed else {}),
            "selector": {"matchLabels": labels.selector(name)},
            "strategy": dict(strategy) if strategy else ROLLING,
            "revisionHistoryLimit": HISTORY,
            "progressDeadlineSeconds": PROGRESS_SECONDS,
            "template": {"metadata": pod_meta, "spec": pod},
        },
    }


# the server's container


def _server(settings: Settings, template: Mapping[str, Any], pod: Mapping[str, Any]) -> Object:
    container = dict(template["container"])
    image = str(container.get("image", ""))
    if not storage.is_ours(settings, image) or container.get("command"):
        return _foreign(container, pod)
    args = [*_flags(template, pod), *(container.get("args") or ())]
    container |= {"image": storage.with_registry(settings, image), "args": args}
    container.setdefault("ports", _own_ports(args))
    for probe, about in (("startupProbe", _STARTUP), ("readinessProbe", _READINESS), ("livenessProbe", _LIVENESS)):
        path, numbers = about
        container.setdefault(probe, {"httpGet": {"path": path, "port": container["ports"][0].get("name", HTTP_PORT)}, **numbers})
    mounts = list(container.get("volumeMounts") or ())
    if all(one.get("mountPath") != "/tmp" for one in mounts):
        mounts.append({"name": storage.TMP, "mountPath": "/tmp"})
    return _logged(_restricted({**container, "volumeMounts": mounts}, read_only=True))


_READY, _LIVE = "/v2/health/ready", "/v2/health/live"
# Each second, so that a pod is Ready as soon as its model is loaded; the others begin after it.
_STARTUP = (_READY, {"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": START_SECONDS})
_READINESS = (_READY, {"periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 2})
# A busy server is no dead one.
_LIVENESS = (_LIVE, {"periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6})


def _foreign(container: Mapping[str, Any], pod: Mapping[str, Any]) -> Object:
    """A server that we know nothing of: Ready when it takes connections, and told to end only when nobody sends any more."""
    made = dict(container)
    first = (made.get("ports") or [{}])[0]
    port = first.get("containerPort", HTTP_PORT)
    made.setdefault("ports", [{"name": HTTP, "containerPort": port, "protocol": "TCP"}])
    made.setdefault(
        "readinessProbe", {"tcpSocket": {"port": port}, "periodSeconds": 2, "timeoutSeconds": 1, "failureThreshold": 3}
    )
    seconds = int(min(DRAIN_SECONDS, pod.get("terminationGracePeriodSeconds", 30) / 2))
    if seconds:
        made.setdefault("lifecycle", {"preStop": {"sleep": {"seconds": seconds}}})
    return _logged(_restricted(made))


def _restricted(container: Mapping[str, Any], *, read_only: bool = False) -> Object:
    """The container, with the strict answer wherever its own security context says nothing."""
    given = container.get("securityContext") or {}
    base = {**storage.RESTRICTED, **({"readOnlyRootFilesystem": True} if read_only else {})}
    capabilities = {**base["capabilities"], **(given.get("capabilities") or {})}
    return {**container, "securityContext": {**base, **given, "capabilities": capabilities}}


def _logged(container: Object) -> Object:
    """The end of a server's log becomes the reason that is told of its death."""
    return {"name": SERVER_CONTAINER, **container} | {
        "terminationMessagePolicy": container.get("terminationMessagePolicy", "FallbackToLogsOnError")
    }


def _flags(template: Mapping[str, Any], pod: Mapping[str, Any]) -> list[str]:
    """What our server has to be told in a pod; they come first, so that the manifest's own flags are heard, not these."""
    grace, _ = _grace(template, pod)
    defaults = {field: info.default for field, info in ServerSettings.model_fields.items()}
    told = {
        "host": "0.0.0.0",
        "grpc_port": GRPC_PORT,
        "timeout": template["timeout"],
        "trust_pickle": template["trustCode"],
        "drain_delay": min(DRAIN_SECONDS, grace / 2),
        "grace": grace,
    }
    return to_flags(ServerSettings.model_construct(**defaults | told))


def _grace(template: Mapping[str, Any], pod: Mapping[str, Any]) -> tuple[float, int]:
    """Seconds that the server, and that its pod, has from SIGTERM on."""
    whole = pod.get("terminationGracePeriodSeconds")
    if whole is not None:
        return float(max(1, whole - AFTER_GRACE)), int(whole)
    timeout = float(template["timeout"]) or LONGEST_GRACE
    grace = min(LONGEST_GRACE, DRAIN_SECONDS + timeout)
    return grace, math.ceil(grace) + AFTER_GRACE


def _own_ports(args: Sequence[str]) -> list[Object]:
    found = [{"name": HTTP, "containerPort": int(_flag(args, "http_port") or HTTP_PORT), "protocol": "TCP"}]
    if (_flag(args, "enable_grpc") or "true").lower() not in ("false", "0", "no", "off"):
        found.append({"name": GRPC, "containerPort": int(_flag(args, "grpc_port") or GRPC_PORT), "protocol": "TCP"})
    return found


def _flag(args: Sequence[str], name: str) -> str | None:
    """The value of a flag as the server will read it: the last one holds.  A port that is no number stays as it is not."""
    value: str | None = None
    for at, word in enumerate(args):
        flag, equals, told = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            value = told if equals else next(iter(args[at + 1 : at + 2]), "")
    return None if value is not None and name.endswith("_port") and not value.isdecimal() else value


def ports(server: Mapping[str, Any]) -> list[Object]:
    """The ports of a server's container as rendered: the first is HTTP's, the others as they are called."""
    return [dict(one) for one in server["ports"]]


# the pod


def _pod(
    settings: Settings, given: Mapping[str, Any], containers: Sequence[Object], models: storage.Storage, grace: int
) -> Object:
    scratch = [{"name": storage.TMP, "emptyDir": {}}]
    uses_scratch = any(
        m.get("name") == storage.TMP for c in (*containers, models.init or {}) for m in c.get("volumeMounts") or ()
    )
    first = [*(scratch if uses_scratch else ()), *models.volumes]
    theirs = [_restricted(one) for one in given.get("initContainers") or ()]
    initial = _by_name([*([models.init] if models.init else ()), *theirs])
    volumes = _by_name([*first, *(given.get("volumes") or ())])
    rest = {key: value for key, value in given.items() if key not in ("volumes", "initContainers", "securityContext")}
    return {
        "automountServiceAccountToken": False,
        # a Service called "server" would set our server's variables
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        **rest,
        "securityContext": {**_SECURITY, **(given.get("securityContext") or {})},
        **({"initContainers": initial} if initial else {}),
        "containers": list(containers),
        **({"volumes": volumes} if volumes else {}),
    }


_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": UID,
    "runAsGroup": UID,
    "fsGroup": UID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


def _by_name(items: Iterable[Mapping[str, Any]]) -> list[Object]:
    """Of two with one name the later, in the place of the earlier: the manifest's own instead of ours."""
    return list({one.get("name"): dict(one) for one in items}.values())


# its models


def _models(
    settings: Settings, service: InferenceService, template: Mapping[str, Any], server: Object, account: ServiceAccountSeen
) -> storage.Storage:
    extra = NOTHING
    sources = [(one["uri"], one.get("mountPath", storage.MODELS)) for one in template.get("storageUris") or ()]
    uri = template.get("uri") or ""
    if template.get("storage"):
        secret = service.metadata.annotations.get(f"{KSERVE}storageSecretName", "")
        place, extra = credentials.of_storage(settings.credentials, template["storage"], secret)
        # beside a URI it says only whose credentials these are
        uri = uri or place
    uri = uri or _storage_variable(server)
    if uri:
        sources = [(uri, storage.MODELS)]
    mounts = [one for one in server.get("volumeMounts") or () if one.get("name") != storage.TMP]
    taken = {str(one.get("mountPath")).rstrip("/") for one in mounts}
    sources = [(one, folder) for one, folder in sources if folder.rstrip("/") not in taken]
    read_only = service.metadata.annotations.get("storage.kserve.io/readonly") != "false"
    return storage.storage(settings, sources, account, mounts, read_only=read_only, extra=extra)


def _storage_variable(server: Mapping[str, Any]) -> str:
    """KServe's way to have a model brought to a container of one's own."""
    return next((str(one.get("value", "")) for one in server.get("env") or () if one.get("name") == "STORAGE_URI"), "")


def _with_models(server: Object, models: storage.Storage, template: Mapping[str, Any]) -> Object:
    made = dict(server)
    if mounts := [*(server.get("volumeMounts") or ()), *models.mounts]:
        made["volumeMounts"] = mounts
    if models.mounts and _storage_variable(server):
        env = server["env"]
        made["env"] = [{**one, "value": storage.MODELS} if one.get("name") == "STORAGE_URI" else one for one in env]
    return made
