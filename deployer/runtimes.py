"""Runtimes: which there are, which one serves a predictor, and what of runtime and predictor together runs.

`select` and `merge` are pure.  A runtime's containers may hold placeholders ({{.Name}}); these are looked up, never run.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from deployer.errors import Mistake, NoRuntime, SpecError, did_you_mean, show, under
from deployer.merging import MergedPod, expand, merge_pod, unknown_placeholders
from deployer.spec.formats import FORMATS, PROTOCOLS, SCHEMES, Scheme, format_of, not_local, scheme_of
from deployer.spec.objects import Read, aliases, fill, read_top
from deployer.spec.pods import POD_FIELDS, check_containers, check_pod
from deployer.spec.schema import SERVER_CONTAINER, InferenceService, Metadata, Model, Objects, Part, Predictor, Protocol
from deployer.spec.validation import hide

__all__ = [
    "API_VERSION",
    "BUILTIN",
    "KINDS",
    "SCHEMES",
    "MergedPod",
    "Scheme",
    "ServingRuntime",
    "check_conflicts",
    "choose",
    "format_of",
    "formats_of",
    "merge",
    "not_local",
    "parse_runtime",
    "scheme_of",
    "select",
]

API_VERSION = "serving.kserve.io/v1alpha1"
KINDS = ("ServingRuntime", "ClusterServingRuntime")
# Of a file, with what is put around it.
MAX_NAME = 240


class SupportedFormat(Part):
    name: str = Field(default="", description="the model format, such as sklearn")
    version: str | None = None
    auto_select: bool = Field(default=False, description="whether a model that names no runtime may get this one")
    priority: int | None = Field(default=None, ge=1, description="the larger wins among runtimes of one scope")


class RuntimeSpec(Part):
    """`pod` are the fields of a pod that stand beside these."""

    supported_model_formats: Annotated[tuple[SupportedFormat, ...], Strict(False)] = ()
    protocol_versions: Annotated[tuple[Protocol, ...], Strict(False)] = Field(default=(), description="empty: any")
    multi_model: bool = False
    disabled: bool = False
    containers: Objects = ()
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})
    worker_spec: dict[str, Any] | None = None
    # ModelMesh only: accepted, and read by nothing
    grpc_endpoint: str | None = None
    grpc_data_endpoint: str | None = None
    http_data_endpoint: str | None = None
    replicas: int | None = None
    storage_helper: dict[str, Any] | None = None
    built_in_adapter: dict[str, Any] | None = None
    pod: dict[str, Any] = Field(default={})


class ServingRuntime(Part):
    """A ServingRuntime of a namespace, or a ClusterServingRuntime of all."""

    api_version: Literal["serving.kserve.io/v1alpha1"] = "serving.kserve.io/v1alpha1"
    kind: Literal["ServingRuntime", "ClusterServingRuntime"] = "ServingRuntime"
    metadata: Metadata = Field(default_factory=lambda: Metadata.model_validate({}))
    spec: RuntimeSpec = Field(default_factory=lambda: RuntimeSpec.model_validate({}))

    @property
    def name(self) -> str:
        return self.metadata.name


def parse_runtime(raw: object) -> ServingRuntime:
    """The runtime that an object describes; SpecError with every mistake in it, and nothing else."""
    found = Read()
    top = read_top(raw, found)
    if isinstance(top.get("spec"), dict):
        top["spec"] = _gathered(top["spec"], found)
    runtime = fill(ServingRuntime, top, found)
    mistakes = [*found.mistakes, *hide(_check(runtime), {mistake.path for mistake in found.mistakes})]
    if mistakes:
        raise SpecError(dict.fromkeys(mistakes))
    return runtime


def _gathered(spec: dict[str, Any], found: Read) -> dict[str, Any]:
    own = aliases(RuntimeSpec) - {"pod"}
    pod = {name: value for name, value in spec.items() if name in POD_FIELDS}
    for name in spec.keys() - own - pod.keys():
        found.add(under("spec", name), f"a runtime has no such field{did_you_mean(name, (*own, *POD_FIELDS))}")
    taken = {name: value for name, value in spec.items() if name in own}
    return {**taken, "pod": pod} if pod else taken


def _check(runtime: ServingRuntime) -> Iterator[Mistake]:
    spec = runtime.spec
    if "api_version" not in runtime.model_fields_set:
        yield Mistake("apiVersion", f"missing; wanted {API_VERSION}")
    if "kind" not in runtime.model_fields_set:
        yield Mistake("kind", f"missing; wanted {' or '.join(KINDS)}")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", runtime.name):
        yield Mistake("metadata.name", f"found {show(runtime.name or None)}, wanted small letters, digits, '-' and '.'")
    if len(runtime.name) > MAX_NAME:
        yield Mistake("metadata.name", f"is too long: it has {len(runtime.name)} characters, and {MAX_NAME} are allowed")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", runtime.metadata.namespace):
        yield Mistake(
            "metadata.namespace", f"found {show(runtime.metadata.namespace)}, wanted at most 63 small letters, digits and '-'"
        )
    if not any(container.get("name") == SERVER_CONTAINER for container in spec.containers) and not spec.multi_model:
        names = ", ".join(show(one.get("name")) for one in spec.containers) or "none"
        yield Mistake("spec.containers", f"found {names}, wanted one called {SERVER_CONTAINER}: the one that serves")
    yield from check_containers("spec.containers", spec.containers)
    yield from check_pod("spec", spec.pod)
    for path, text in unknown_placeholders("spec.containers", list(spec.containers)):
        yield Mistake(
            path, f"{text} is not known; known: {{{{.Name}}}}, {{{{.Namespace}}}}, {{{{.Labels.x}}}}, {{{{.Annotations.x}}}}"
        )
    priorities: dict[str, int | None] = {}
    for at, one in enumerate(spec.supported_model_formats):
        path = f"spec.supportedModelFormats[{at}]"
        if not one.name:
            yield Mistake(f"{path}.name", "missing: which format does it serve?")
        elif one.auto_select and priorities.setdefault(one.name, one.priority) != one.priority:
            yield Mistake(
                f"{path}.priority",
                f"found {show(one.priority)}, and another entry of {one.name} has {show(priorities[one.name])}; "
                "a runtime has one priority for a format",
            )


def check_conflicts(runtime: ServingRuntime, others: Iterable[ServingRuntime]) -> None:
    """SpecError where another enabled runtime of the same scope would be as good: which of the two served would be chance.

    Versions don't tell them apart: a model that names none could get either.
    """
    mistakes = []
    mine = {one.name: one for one in runtime.spec.supported_model_formats if one.auto_select and one.priority is not None}
    for other in others:
        if other.name == runtime.name or other.spec.disabled or runtime.spec.disabled:
            continue
        if other.kind != runtime.kind or (
            runtime.kind == "ServingRuntime" and other.metadata.namespace != runtime.metadata.namespace
        ):
            continue
        if not set(runtime.spec.protocol_versions or PROTOCOLS) & set(other.spec.protocol_versions or PROTOCOLS):
            continue
        mistakes += [
            Mistake(
                "spec.supportedModelFormats",
                f"the runtime {other.name!r} serves {one.name} too, over the same protocol and with the same priority, "
                f"{one.priority}; give this one another priority",
            )
            for one in other.spec.supported_model_formats
            if one.auto_select and one.name in mine and mine[one.name].priority == one.priority
        ]
    if mistakes:
        raise SpecError(dict.fromkeys(mistakes))


def formats_of(runtimes: Iterable[ServingRuntime]) -> tuple[str, ...]:
    """The formats that a manifest may name where these runtimes are installed: for `spec.parse(…, formats=…)`."""
    theirs = (one.name for runtime in runtimes for one in runtime.spec.supported_model_formats)
    return tuple(dict.fromkeys((*FORMATS, *theirs)))


def _builtin(
    name: str, model_format: str, versions: Sequence[str], *protocols: Protocol, explicit: bool = False
) -> ServingRuntime:
    choice: dict[str, Any] = {} if explicit else {"autoSelect": True, "priority": 1}
    return parse_runtime(
        {
            "apiVersion": API_VERSION,
            "kind": "ClusterServingRuntime",
            "metadata": {"name": name},
            "spec": {
                "supportedModelFormats": [
                    {"name": model_format, **choice},
                    *({"name": model_format, "version": one, **choice} for one in versions),
                ],
                "protocolVersions": ["v1", "v2", "grpc-v2", *protocols],
                "containers": [
                    {
                        "name": SERVER_CONTAINER,
                        "image": f"serveplane/{model_format}:{version('serveplane')}",
                        "args": ["--model_name={{.Name}}", "--model_dir=/mnt/models", "--http_port=8080"],
                        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
                    }
                ],
            },
        }
    )


# Ours, under the names that KServe's manifests use.  kserve-mlserver serves who names it, and nobody else.
BUILTIN: tuple[ServingRuntime, ...] = (
    _builtin("kserve-sklearnserver", "sklearn", ("0", "1")),
    _builtin("kserve-onnxserver", "onnx", ("1",)),
    _builtin("kserve-tensorflow-serving", "tensorflow", ("1", "2"), "grpc-v1"),
    _builtin("serveplane-python", "python", ()),
    _builtin("kserve-mlserver", "sklearn", ("0", "1"), explicit=True),
)


def select(
    predictor: Predictor, namespace_runtimes: Sequence[ServingRuntime] = (), cluster_runtimes: Sequence[ServingRuntime] = BUILTIN
) -> ServingRuntime:
    """The runtime that serves the predictor's model, by KServe's rules; NoRuntime says why each that was looked at does not fit.

    A namespace's runtimes come before the cluster's, whatever their priorities.  Not for predictors of containers.
    """
    model = predictor.model
    if model is None:
        raise ValueError("a predictor without a model needs no runtime")
    if model.runtime is not None:
        return _named(model, predictor, [*namespace_runtimes, *cluster_runtimes])
    for runtimes in (namespace_runtimes, cluster_runtimes):
        fitting = [one for one in runtimes if not _why_not(one, model, predictor, explicit=False)]
        if fitting:
            return min(_by_age(fitting), key=lambda one: -(_priority(one, model) or 0))
    raise NoRuntime(_nothing_fits(model, predictor, [*namespace_runtimes, *cluster_runtimes]), "NoSupportingRuntime")


def choose(predictor: Predictor, installed: Sequence[ServingRuntime]) -> ServingRuntime:
    """As `select`, of what users installed for a namespace and for all, and of ours; one of theirs takes the place of ours."""
    here = [one for one in installed if one.kind == "ServingRuntime"]
    everywhere = [one for one in installed if one.kind != "ServingRuntime"]
    theirs = {one.name for one in everywhere}
    return select(predictor, here, (*everywhere, *(one for one in BUILTIN if one.name not in theirs)))


def _by_age(runtimes: Iterable[ServingRuntime]) -> list[ServingRuntime]:
    """By protocol, then the newest first, then by name: KServe's order among equal priorities."""
    by_name = sorted(runtimes, key=lambda one: one.name)
    newest = sorted(by_name, key=lambda one: one.metadata.creation_timestamp, reverse=True)
    return sorted(newest, key=lambda one: min((PROTOCOLS.index(p) for p in one.spec.protocol_versions), default=len(PROTOCOLS)))


def _priority(runtime: ServingRuntime, model: Model) -> int | None:
    formats = runtime.spec.supported_model_formats
    return next((one.priority for one in formats if one.name == model.model_format.name), None)


def _named(model: Model, predictor: Predictor, runtimes: Sequence[ServingRuntime]) -> ServingRuntime:
    name = model.runtime or ""
    runtime = next((one for one in runtimes if one.name == name), None)
    if runtime is None:
        names = [one.name for one in runtimes]
        hint = did_you_mean(name, names) or f"; there are {', '.join(names) or 'none'}"
        raise NoRuntime(f"there is no runtime {name!r}{hint}; leave model.runtime out to have one chosen", "RuntimeNotRecognized")
    if runtime.spec.disabled:
        raise NoRuntime(
            f"the runtime {name!r} is disabled; name another, or leave model.runtime out to have one chosen", "RuntimeDisabled"
        )
    if why := _why_not(runtime, model, predictor, explicit=True):
        raise NoRuntime(f"the runtime {name!r} does not serve this model: it {why}", "NoSupportingRuntime")
    return runtime


def _why_not(runtime: ServingRuntime, model: Model, predictor: Predictor, *, explicit: bool) -> str:
    """Why a runtime does not fit, as the end of a sentence about it; empty where it fits."""
    spec, wanted = runtime.spec, model.model_format
    if spec.disabled:
        return "is disabled"
    if spec.multi_model:
        return "is for many models in one server (multiModel)"
    if (spec.worker_spec is None) != (predictor.worker_spec is None):
        return "is for models over several machines (workerSpec)" if spec.worker_spec is not None else "is for one machine only"
    formats = [one for one in spec.supported_model_formats if one.name == wanted.name]
    if not formats:
        return f"serves {', '.join(dict.fromkeys(one.name for one in spec.supported_model_formats)) or 'nothing'} only"
    chosen = formats if explicit else [one for one in formats if one.auto_select]
    if not chosen:
        return "has to be named in model.runtime (no autoSelect)"
    if wanted.version is not None and all(one.version != wanted.version for one in chosen):
        versions = ", ".join(one.version for one in chosen if one.version is not None) or "no version by name"
        return f"serves {wanted.name} {versions}, not {wanted.version}"
    if spec.protocol_versions and model.protocol_version not in spec.protocol_versions:
        return f"speaks {', '.join(spec.protocol_versions)}, not {model.protocol_version}"
    return ""


def _nothing_fits(model: Model, predictor: Predictor, runtimes: Sequence[ServingRuntime]) -> str:
    wanted = " ".join(filter(None, (model.model_format.name, model.model_format.version)))
    looked_at = "; ".join(f"{one.name} {_why_not(one, model, predictor, explicit=False)}" for one in runtimes)
    return (
        f"no runtime serves {wanted} over {model.protocol_version}; looked at: {looked_at or 'none, there are no runtimes'}; "
        "change the model's format or protocolVersion, convert it to ONNX, or add a ServingRuntime for it"
    )


_CUSTOM_RESOURCES: Mapping[str, Any] = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}
_OURS = frozenset(one.name for one in BUILTIN)


def merge(runtime: ServingRuntime | None, service: InferenceService, predictor: Predictor) -> MergedPod:
    """What runs: the runtime's containers with the predictor's over them; without a runtime the predictor's own.

    SpecError where a placeholder names a label or an annotation that the service does not have.
    """
    model = predictor.model
    if runtime is None or model is None:
        base: list[dict[str, Any]] = []
        own = [dict(one) for one in predictor.containers]
        for one in own:
            if one.get("name") == SERVER_CONTAINER:
                one.setdefault("resources", _CUSTOM_RESOURCES)
        return merge_pod(base, {}, own, predictor.pod, service.metadata.name)
    base = expand(list(runtime.spec.containers), service.metadata, f"the runtime {runtime.name!r} spec.containers")
    server = expand({"name": SERVER_CONTAINER, **model.container}, service.metadata, "spec.predictor.model")
    if runtime.name in _OURS and predictor.batcher is not None and predictor.batcher.max_batch_size is not None:
        server["args"] = [f"--max_batch_size={predictor.batcher.max_batch_size}", *server.get("args", [])]
    merged = merge_pod(base, runtime.spec.pod, [server, *predictor.containers], predictor.pod, service.metadata.name)
    if model.runtime_version is None or "image" in model.container:
        return merged
    return MergedPod(
        {**merged.container, "image": with_tag(merged.container.get("image", ""), model.runtime_version)},
        merged.containers,
        merged.pod,
    )


def with_tag(image: str, tag: str) -> str:
    """The image with another tag; one that is pinned by its digest stays as it is."""
    if not image or "@" in image:
        return image
    folder, slash, name = image.rpartition("/")
    return f"{folder}{slash}{name.partition(':')[0]}:{tag}"
