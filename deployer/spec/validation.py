"""What has to be true of an InferenceService beyond names, types and ranges: rules, each a function from a part to its mistakes.

They are KServe's own (its admission webhook's), with the gaps closed that let a service through and fail it later in silence:
an unknown URI scheme, a metric that nobody reads, requests above limits, a name too long for its host.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from deployer.errors import Mistake, did_you_mean, show, under
from deployer.spec.annotations import AUTOSCALER_CLASS, SHA256, check_annotations, check_labels
from deployer.spec.formats import FORMATS, SCHEMES, SERVED, ending_of, format_of, scheme_of
from deployer.spec.pods import check_container, check_containers, check_pod, check_resources, quantity
from deployer.spec.schema import SERVER_CONTAINER, AutoScaling, Component, InferenceService, Logger, Model, Predictor, is_custom

Mistakes = Iterator[Mistake]

MAX_LABEL = 63
# Of a service: "-transformer" after it is a label yet.
MAX_NAME = 51
TRANSFORMER_CONTAINER = "transformer-container"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz"))


def check(service: InferenceService, formats: Collection[str] | None = FORMATS) -> Mistakes:
    """Every mistake of a service whose fields could be read; `formats` are the model formats that there are, None for any."""
    spec, annotations = service.spec, service.metadata.annotations
    yield from _metadata(service)
    yield from _everything("spec.predictor", spec.predictor, formats, annotations)
    for path, extra in (("spec.transformer", spec.transformer), ("spec.explainer", spec.explainer)):
        if extra is not None:
            yield from _own_server(path, extra)
            yield from _component(path, extra, annotations)
            if extra.canary_traffic_percent is not None:
                yield Mistake(f"{path}.canaryTrafficPercent", "only a predictor has canaries; put it under spec.predictor")
    yield from _canaries(service, formats)
    yield from _checksum(service)


def _metadata(service: InferenceService) -> Mistakes:
    meta = service.metadata
    if "api_version" not in service.model_fields_set:
        yield Mistake("apiVersion", f"missing; wanted {service.api_version}")
    if "kind" not in service.model_fields_set:
        yield Mistake("kind", f"missing; wanted {service.kind}")
    if not meta.name:
        yield Mistake("metadata.name", "missing: a service needs a name, such as iris")
    elif not _NAME.fullmatch(meta.name):
        yield Mistake(
            "metadata.name",
            f"found {show(meta.name)}, wanted small letters, digits and '-', a letter first, no '-' last{_as_name(meta.name)}",
        )
    if not _NAMESPACE.fullmatch(meta.namespace) or len(meta.namespace) > MAX_LABEL:
        yield Mistake(
            "metadata.namespace", f"found {show(meta.namespace)}, wanted at most {MAX_LABEL} small letters, digits and '-'"
        )
    elif meta.name:
        yield from _length(service)
    yield from check_labels("metadata.labels", meta.labels)
    yield from check_annotations("metadata.annotations", meta.annotations)


def _checksum(service: InferenceService) -> Mistakes:
    """A checksum that nobody looks at would be worse than none."""
    sha256, model = service.metadata.annotations.get(SHA256), service.spec.predictor.model
    if sha256 is None:
        return
    path, uri = under("metadata.annotations", SHA256), (model.storage_uri if model else None) or ""
    scheme, _, written = scheme_of(uri), *uri.partition("#sha256=")[1:]
    if not uri:
        yield Mistake(path, "is of spec.predictor.model.storageUri, which is not there; give that, or leave the checksum out")
    elif scheme == "pvc" or scheme.partition("+")[0] == "oci":
        yield Mistake(path, f"is not looked at: a model in {scheme}:// is mounted and never fetched; leave the checksum out")
    elif written and written.lower() != sha256.lower():
        yield Mistake(path, f"found {show(sha256)}, and storageUri ends in another one; leave one of the two out")


def _as_name(name: str) -> str:
    near = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789").rstrip("-")
    return f"; {near!r} would do" if _NAME.fullmatch(near) and len(near) < 40 else ""


def _length(service: InferenceService) -> Mistakes:
    """Names become labels of a host name, which hold 63 characters: with its namespace, and with what its parts are called."""
    meta, spec = service.metadata, service.spec
    host = f"{meta.name}-{meta.namespace}"
    if len(meta.name) > MAX_NAME:
        yield Mistake("metadata.name", f"is too long: it has {len(meta.name)} characters, and {MAX_NAME} are allowed; shorten it")
    elif len(host) > MAX_LABEL:
        yield Mistake(
            "metadata.name",
            f"is too long: its host {show(host)} has a label of {len(host)} characters, and {MAX_LABEL} are allowed; "
            f"shorten name or namespace by {len(host) - MAX_LABEL}",
        )
    named = [("spec.predictor.name", spec.predictor.name)]
    named += [(f"spec.canary[{at}].predictor.name", one.predictor.name) for at, one in enumerate(spec.canary)]
    for path, name in named:
        whole = f"{meta.name}-{name}-predictor"
        if name and len(whole) > MAX_LABEL:
            yield Mistake(path, f"is too long: {show(whole)} has {len(whole)} characters, and {MAX_LABEL} are allowed")


def _predictor(path: str, predictor: Predictor, formats: Collection[str] | None) -> Mistakes:
    if predictor.name is not None and not _NAME.fullmatch(predictor.name):
        yield Mistake(
            f"{path}.name", f"found {show(predictor.name)}, wanted small letters, digits and '-', beginning with a letter"
        )
    if predictor.worker_spec is not None:
        yield Mistake(
            f"{path}.workerSpec",
            "a model over several machines is not supported; leave it out and give one machine the resources",
        )
    if predictor.model is None:
        yield from _own_server(path, predictor)
        return
    if any(container.get("name") == SERVER_CONTAINER for container in predictor.containers):
        yield Mistake(
            f"{path}.containers",
            f"a predictor has either a model or a container {SERVER_CONTAINER!r} of its own; leave one out, "
            "or put the container's fields under model to change the runtime's container",
        )
    yield from _model(f"{path}.model", predictor.model, formats)
    yield from _storage(path, predictor)


def _own_server(path: str, component: Component) -> Mistakes:
    if getattr(component, "art", None) is not None:
        if is_custom(component):
            yield Mistake(f"{path}.containers", "an explainer has either art or containers; leave one out")
        return
    what = path.rpartition(".")[2].partition("[")[0]
    if not component.containers:
        wanted = (
            "give it a model, such as {modelFormat: {name: sklearn}, storageUri: /models/iris.skops}, or containers of your own"
            if what == "predictor"
            else "give it containers, the first of them its server"
        )
        yield Mistake(
            f"{path}.model" if what == "predictor" else f"{path}.containers", f"missing: there is nothing to run; {wanted}"
        )
    elif not is_custom(component):
        names = ", ".join(show(one.get("name")) for one in component.containers)
        yield Mistake(
            f"{path}.containers", f"found {names}, wanted one called {SERVER_CONTAINER}: the one that serves; rename it to that"
        )
    for at, container in enumerate(component.containers):
        for number, variable in enumerate(_env(container)):
            if variable.get("name") == "PROTOCOL" and variable.get("value") not in ("v1", "v2") and "valueFrom" not in variable:
                yield Mistake(
                    f"{path}.containers[{at}].env[{number}].value",
                    f"found {show(variable.get('value'))}, wanted v1 or v2: the protocol that the container speaks",
                )


def _env(container: Mapping[str, Any]) -> list[dict[str, Any]]:
    variables = container.get("env")
    return [one for one in variables if isinstance(one, dict)] if isinstance(variables, list) else []


def _model(path: str, model: Model, formats: Collection[str] | None) -> Mistakes:
    name, uri = model.model_format.name, model.storage_uri
    told = format_of(uri) if uri else None
    if not name:
        hint = f"; the storageUri's ending says {told}" if told else f"; these are served: {', '.join(SERVED)}"
        yield Mistake(f"{path}.modelFormat.name", f"missing: say what kind of model it is{hint}")
    elif formats is not None and name not in formats:
        hint = did_you_mean(name, formats) or f"; known: {', '.join(formats)}"
        yield Mistake(
            f"{path}.modelFormat.name",
            f"there is no model format {show(name)}{hint} (a format of your own needs a ServingRuntime)",
        )
    elif uri and model.runtime is None:
        yield from _ending(path, name, uri, told)
    if uri:
        yield from check_uri(f"{path}.storageUri", uri)
    yield from check_container(path, model.container)
    if name == "tensorflow" and model.runtime_version is not None:
        yield from _gpu_version(path, model)
    confidential = model.confidential
    if confidential is not None and confidential.enabled and not uri:
        yield Mistake(f"{path}.confidential", "a sealed model needs a storageUri; give one, or leave confidential out")


def _ending(path: str, name: str, uri: str, told: str | None) -> Mistakes:
    ending = ending_of(uri)
    if told is not None and told != name and {told, name} <= {"sklearn", "onnx", "tensorflow"}:
        yield Mistake(
            f"{path}.storageUri", f"{show(uri)} ends like a model for {told}, and modelFormat says {name}; change one of the two"
        )
    elif name == "onnx" and ending and ending != ".onnx" and ending not in _ARCHIVES:
        yield Mistake(f"{path}.storageUri", f"{show(uri)} ends in {ending}, wanted .onnx, or a folder with an .onnx file in it")


def check_uri(path: str, uri: str) -> Mistakes:
    scheme = scheme_of(uri)
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES) or f"; known: an absolute path, {', '.join(f'{s}://' for s in SCHEMES if s)}"
        yield Mistake(path, f"found {show(uri)}, and there is no way to fetch from {scheme + '://'!r}{hint}")
    elif not scheme and not uri.startswith("/"):
        yield Mistake(
            path,
            f"found {show(uri)}, wanted an absolute path or a URI: a service has no working directory; "
            "give the whole path, such as /models/iris.skops",
        )
    elif scheme == "file" and not re.match(r"(?i)file://(localhost)?/", uri):
        yield Mistake(path, f"found {show(uri)}, wanted three slashes: file:///path/to/model")
    elif scheme and not re.match(r"[^:]*://[^/\s]", uri) and scheme != "file":
        yield Mistake(path, f"found {show(uri)}, which names nothing after {scheme}://; wanted {scheme}://…/path/to/model")
    if "\n" in uri or "\0" in uri:
        yield Mistake(path, "holds a line break or a zero byte; write it on one line")


def _gpu_version(path: str, model: Model) -> Mistakes:
    limits = model.container.get("resources", {})
    limits = limits.get("limits", {}) if isinstance(limits, dict) else {}
    wants_gpu = isinstance(limits, dict) and any(str(name).endswith("/gpu") for name in limits)
    if str(model.runtime_version).endswith("-gpu") and not wants_gpu:
        yield Mistake(
            f"{path}.runtimeVersion",
            f"{show(model.runtime_version)} is for a GPU, and none is asked for; add it to resources.limits, or drop -gpu",
        )
    if wants_gpu and "-gpu" not in str(model.runtime_version):
        yield Mistake(
            f"{path}.runtimeVersion", f"{show(model.runtime_version)} is for the CPU, and a GPU is asked for; add -gpu to it"
        )


def _storage(path: str, predictor: Predictor) -> Mistakes:
    model, several = predictor.model, predictor.storage_uris
    if model is None:
        return
    if model.storage_uri and several:
        yield Mistake(f"{path}.storageUris", "storageUris and model.storageUri exclude each other; put the one into the list")
    if model.storage_uri and model.storage is not None and scheme_of(model.storage_uri) not in ("s3", "hdfs", "webhdfs"):
        yield Mistake(
            f"{path}.model.storage",
            "storageUri says already where the model is; leave one of the two out (they go together for s3://)",
        )
    says_nothing = not (model.storage_uri or model.storage or several or model.runtime)
    if says_nothing and model.model_format.name in SERVED and not model.container.keys() & {"image", "args", "env", "command"}:
        yield Mistake(
            f"{path}.model.storageUri",
            "missing: say where the model is, such as https://…/model.onnx; in a cluster pvc://CLAIM/PATH, on one machine "
            "/models/iris.skops",
        )


def _storage_uris(path: str, component: Component) -> Mistakes:
    """Where several artifacts are mounted: absolute, apart from each other, under one folder."""
    seen: set[str] = set()
    for at, one in enumerate(component.storage_uris):
        here = f"{path}.storageUris[{at}]"
        if not one.uri:
            yield Mistake(f"{here}.uri", "missing: say where the artifact is")
        elif component.storage_container_name is None:
            yield from check_uri(f"{here}.uri", one.uri)
        mount = one.mount_path
        if not mount.startswith("/") or ".." in mount.split("/") or not mount.strip("/"):
            yield Mistake(f"{here}.mountPath", f"found {show(mount)}, wanted an absolute path below /, without '..'")
        elif mount.rstrip("/") in seen:
            yield Mistake(f"{here}.mountPath", f"{mount} is another one's mountPath already; give each its own")
        seen.add(mount.rstrip("/"))
    copied = {one.mount_path.strip("/").split("/")[0] for one in component.storage_uris if scheme_of(one.uri) != "pvc"}
    if len(copied) > 1:
        yield Mistake(
            f"{path}.storageUris",
            f"mount paths lie under {', '.join(f'/{top}' for top in sorted(copied))}, wanted one folder for all, such as /mnt",
        )


def _component(path: str, component: Component, annotations: Mapping[str, str]) -> Mistakes:
    """What predictor, transformer and explainer have in common."""
    given_max = "max_replicas" in component.model_fields_set
    if given_max and component.min_replicas > component.max_replicas:
        yield Mistake(
            f"{path}.maxReplicas",
            f"found {component.max_replicas}, wanted minReplicas ({component.min_replicas}) or more; raise it, or lower that",
        )
    if component.logger is not None:
        yield from _logger(f"{path}.logger", component.logger)
    yield from _scaling(path, component, annotations.get(AUTOSCALER_CLASS))
    yield from _storage_uris(path, component)
    yield from check_pod(path, component.pod)
    yield from check_containers(f"{path}.containers", component.containers)
    if isinstance(component.pod.get("resources"), dict):
        yield from check_resources(f"{path}.resources", component.pod["resources"])
    yield from check_labels(f"{path}.labels", component.labels)
    yield from check_annotations(f"{path}.annotations", component.annotations)
    if SHA256 in component.annotations:
        yield Mistake(
            under(f"{path}.annotations", SHA256),
            "is read under metadata.annotations only; put it there, or #sha256=… at the end of the storageUri",
        )
    collocated = {at: one for at, one in enumerate(component.containers) if one.get("name") == TRANSFORMER_CONTAINER}
    for at, container in collocated.items():
        if any(variable.get("name") == "STORAGE_URI" for variable in _env(container)):
            yield Mistake(
                f"{path}.containers[{at}].env", "a transformer beside its predictor loads no model; leave STORAGE_URI out of it"
            )


def _logger(path: str, logger: Logger) -> Mistakes:
    storage = logger.storage
    if storage is not None:
        for name, value in (("path", storage.path), ("parameters", storage.parameters), ("key", storage.key)):
            if not value:
                yield Mistake(f"{path}.storage.{name}", "missing: a logger's storage needs path, parameters and key")
    if logger.url is not None and scheme_of(logger.url) == "":
        yield Mistake(f"{path}.url", f"found {show(logger.url)}, wanted an address with its scheme, such as http://logs.default")


def _scaling(path: str, component: Component, scaler: str | None) -> Mistakes:
    """Checked whether or not the class is written out: a metric that nobody reads is a mistake either way."""
    metric, kind, target = component.scale_metric, component.scale_metric_type, component.scale_target
    if metric in ("concurrency", "rps"):
        if scaler == "hpa":
            yield Mistake(
                f"{path}.scaleMetric",
                f"found {metric}, and the autoscaler class hpa reads cpu and memory only; "
                f"choose one of these, or leave the annotation {AUTOSCALER_CLASS} out",
            )
        if kind is not None and kind != "AverageValue":
            yield Mistake(f"{path}.scaleMetricType", f"found {kind}, and {metric} is a number per replica; leave it out")
    elif kind == "Value":
        yield Mistake(f"{path}.scaleMetricType", f"found Value, wanted Utilization or AverageValue for {metric or 'cpu'}")
    elif target is not None and metric in (None, "cpu") and kind in (None, "Utilization") and target > 100:
        yield Mistake(
            f"{path}.scaleTarget",
            f"found {target}, wanted a whole number from 1 to 100: percent of the CPU that a replica asks for",
        )
    if scaler == "keda" and metric is not None:
        yield Mistake(f"{path}.scaleMetric", "the autoscaler class keda reads autoScaling.metrics only; write the metric there")
    if component.auto_scaling is not None:
        if metric is not None and component.auto_scaling.metrics:
            yield Mistake(f"{path}.autoScaling", "scaleMetric and autoScaling.metrics exclude each other; keep one of them")
        yield from _metrics(f"{path}.autoScaling", component.auto_scaling, scaler)


def _metrics(path: str, scaling: AutoScaling, scaler: str | None) -> Mistakes:
    for at, metric in enumerate(scaling.metrics):
        here = f"{path}.metrics[{at}]"
        if metric.type is None:
            yield Mistake(f"{here}.type", "missing: wanted Resource, External or PodMetric")
        elif metric.type != "Resource" and scaler != "keda":
            yield Mistake(
                f"{here}.type",
                f"found {metric.type}, and the autoscaler class {scaler or 'hpa'} reads Resource metrics only; "
                f"the class keda, by the annotation {AUTOSCALER_CLASS}, reads it",
            )
        elif metric.type == "Resource":
            resource = metric.resource
            yield from _resource_metric(
                f"{here}.resource", resource.name if resource else "", resource.target if resource else {}
            )
        else:
            source = metric.external if metric.type == "External" else metric.podmetric
            key = "external" if metric.type == "External" else "podmetric"
            if source is None or not source.metric.get("query"):
                yield Mistake(f"{here}.{key}.metric.query", "missing: say what is asked of the metrics backend")
            if source is None or "value" not in source.target:
                yield Mistake(f"{here}.{key}.target.value", "missing: say the value to aim at")


def _resource_metric(path: str, name: str, target: Mapping[str, Any]) -> Mistakes:
    if name not in ("cpu", "memory"):
        yield Mistake(f"{path}.name", f"found {show(name or None)}, wanted cpu or memory{did_you_mean(name, ('cpu', 'memory'))}")
        return
    kind = target.get("type")
    if kind not in ("Utilization", "AverageValue"):
        yield Mistake(f"{path}.target.type", f"found {show(kind)}, wanted Utilization or AverageValue")
    elif kind == "Utilization":
        value = target.get("averageUtilization")
        if not isinstance(value, int) or value < 1 or (name == "cpu" and value > 100):
            upper = "from 1 to 100" if name == "cpu" else ", 1 or more"
            yield Mistake(f"{path}.target.averageUtilization", f"found {show(value)}, wanted a whole number {upper}: percent")
    else:
        yield from _average(f"{path}.target.averageValue", name, target.get("averageValue"))


def _average(path: str, name: str, value: object) -> Mistakes:
    try:
        if name == "memory" and quantity(value) < 1 << 20:
            yield Mistake(path, f"found {show(value)}, wanted 1Mi or more of memory")
    except ValueError as error:
        yield Mistake(path, str(error))


_ONLY_STABLE: Mapping[str, str] = {
    "max_replicas": "maxReplicas",
    "scale_target": "scaleTarget",
    "scale_metric": "scaleMetric",
    "scale_metric_type": "scaleMetricType",
    "auto_scaling": "autoScaling",
    "worker_spec": "workerSpec",
    "canary_traffic_percent": "canaryTrafficPercent",
}


def _canaries(service: InferenceService, formats: Collection[str] | None) -> Mistakes:
    stable, canaries = service.spec.predictor, service.spec.canary
    if not canaries:
        return
    if stable.canary_traffic_percent is not None:
        yield Mistake(
            "spec.predictor.canaryTrafficPercent",
            "stands beside spec.canary: they are two ways to say the same; keep one of them",
        )
    total, names = 0, {stable.name or "": "spec.predictor"}
    for at, canary in enumerate(canaries):
        path, name = f"spec.canary[{at}].predictor", canary.predictor.name
        total += canary.traffic_percent
        if "traffic_percent" not in canary.model_fields_set:
            yield Mistake(
                f"spec.canary[{at}].trafficPercent", "missing: percent of the requests that go to this canary, 0 to 100"
            )
        if not name:
            yield Mistake(f"{path}.name", "missing: each canary needs a name, such as v2")
        elif name in names:
            yield Mistake(f"{path}.name", f"{show(name)} is the name of {names[name]} already; names have to differ")
        names.setdefault(name or "", path)
        yield from _canary(path, canary.predictor, stable, formats, service.metadata.annotations)
    if total > 100:
        yield Mistake(
            "spec.canary", f"the canaries' trafficPercent add up to {total}, wanted at most 100: the rest is the stable one's"
        )


def _canary(
    path: str, predictor: Predictor, stable: Predictor, formats: Collection[str] | None, annotations: Mapping[str, str]
) -> Mistakes:
    """The predictor is whole: mistakes in what it has from the stable one are that one's, and not told again."""
    given = predictor.model_fields_set
    for field, written in _ONLY_STABLE.items():
        if field in given:
            yield Mistake(f"{path}.{written}", "a canary may not say this; it is the stable predictor's, under spec.predictor")
    if "min_replicas" in given and predictor.min_replicas > max(1, stable.min_replicas):
        yield Mistake(
            f"{path}.minReplicas",
            f"found {predictor.min_replicas}, wanted at most the stable predictor's minReplicas, {stable.min_replicas}; "
            "leave it out for a share of them",
        )
    of_stable = {mistake.message for mistake in _everything("", stable, formats, annotations)}
    told = {f"{path}.{written}" for written in _ONLY_STABLE.values()}
    for mistake in _everything(path, predictor, formats, annotations):
        if mistake.path not in told and mistake.message not in of_stable:
            yield mistake


def _everything(path: str, predictor: Predictor, formats: Collection[str] | None, annotations: Mapping[str, str]) -> Mistakes:
    yield from _predictor(path, predictor, formats)
    yield from _component(path, predictor, annotations)


def hide(mistakes: Iterator[Mistake], known: Collection[str]) -> Mistakes:
    """The mistakes that are not mere consequences of one that is known at the same place or above it."""
    for mistake in mistakes:
        parts = [mistake.path]
        while parts[-1] and (shorter := re.sub(r"(\.[\w-]+|\[[^\]]*\])$", "", parts[-1])) != parts[-1]:
            parts.append(shorter)
        if not any(part in known for part in parts):
            yield mistake
