"""InferenceService v1beta1 as frozen models: the names, types and ranges of its fields, and the defaults of those left out.

What a field means stands in its description, which messages quote.  Rules about several fields are in `validation.py`.
Two fields have no name of their own in a manifest, because their content stands beside the other fields there:
`Component.pod` (a pod's fields) and `Model.container` (a container's).  `objects.py` takes them apart and puts them back.
"""

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict
from pydantic.alias_generators import to_camel

from deployer.spec.formats import SPEAKS_V2

API_VERSION: Literal["serving.kserve.io/v1beta1"] = "serving.kserve.io/v1beta1"
KIND: Literal["InferenceService"] = "InferenceService"
SERVER_CONTAINER = "kserve-container"

Protocol = Literal["v1", "v2", "grpc-v1", "grpc-v2"]
Metric = Literal["cpu", "memory", "concurrency", "rps"]
Percent = Annotated[int, Field(ge=0, le=100)]
Texts = Annotated[tuple[str, ...], Strict(False)]
Objects = Annotated[tuple[dict[str, Any], ...], Strict(False)]


PartT = TypeVar("PartT", bound="Part")


class Part(BaseModel):
    """Strict: a number in quotes is not a number, and an unknown field is a mistake."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", alias_generator=to_camel, protected_namespaces=())


class Metadata(Part):
    name: str = ""
    namespace: str = Field(default="default", min_length=1)
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    finalizers: Texts = ()
    owner_references: Objects = ()


class ModelFormat(Part):
    name: str = Field(default="", description="such as sklearn, onnx, tensorflow or python")
    version: str | None = None


class Storage(Part):
    key: str | None = Field(default=None, description="the entry of the secret storage-config that holds the credentials")
    path: str | None = Field(default=None, description="where the model is in the store")
    parameters: dict[str, str] = {}
    schema_path: str | None = None


class StorageUri(Part):
    uri: str = ""
    mount_path: str = "/mnt/models"


class Confidential(Part):
    enabled: bool = False
    resource_id: str | None = None


def _default_protocol(given: dict[str, Any]) -> Protocol:
    name = given["model_format"].name if "model_format" in given else ""
    return "v2" if name in SPEAKS_V2 or given.get("runtime") == "kserve-mlserver" else "v1"


class Model(Part):
    """`container` are the fields of a container that the manifest gives beside these: args, env, image, resources …"""

    model_format: ModelFormat = ModelFormat()
    storage_uri: str | None = Field(default=None, min_length=1, description="where the model is")
    storage: Storage | None = None
    runtime: str | None = Field(default=None, min_length=1, description="the name of a ServingRuntime or ClusterServingRuntime")
    runtime_version: str | None = Field(default=None, min_length=1, description="the tag of the runtime's image")
    protocol_version: Protocol = Field(
        default_factory=_default_protocol, description="the protocol that the runtime has to speak"
    )
    confidential: Confidential | None = None
    container: dict[str, Any] = {}


class LoggerStorage(Part):
    path: str | None = None
    parameters: dict[str, str] = {}
    key: str | None = None
    service_account_name: str | None = None
    schema_path: str | None = None


class Logger(Part):
    url: str | None = Field(default=None, description="where requests and responses are sent")
    mode: Literal["all", "request", "response"] = Field(default="all", description="what is logged")
    metadata_headers: Texts = ()
    metadata_annotations: Texts = ()
    storage: LoggerStorage | None = None
    marshaller_url: str | None = None
    batch_size: int | None = Field(default=None, ge=1)
    batch_interval: int | str | None = None


class Batcher(Part):
    max_batch_size: int | None = Field(default=None, ge=1, description="rows that run as one batch")
    max_latency: int | None = Field(default=None, ge=1, description="milliseconds that a row may wait for others")
    timeout: int | None = Field(default=None, ge=1, description="seconds that a batch may take")


class ResourceMetric(Part):
    name: str = Field(default="", description="cpu or memory")
    target: dict[str, Any] = {}


class ExternalMetric(Part):
    metric: dict[str, Any] = {}
    target: dict[str, Any] = {}
    authentication_ref: dict[str, Any] | None = None


class MetricSpec(Part):
    type: Literal["Resource", "External", "PodMetric"] | None = None
    resource: ResourceMetric | None = None
    external: ExternalMetric | None = None
    podmetric: ExternalMetric | None = None


class AutoScaling(Part):
    metrics: Annotated[tuple[MetricSpec, ...], Strict(False)] = ()
    behavior: dict[str, Any] | None = None


def _default_max(given: dict[str, Any]) -> int:
    return max(1, int(given.get("min_replicas", 1)))


class Component(Part):
    """What predictor, transformer and explainer have in common.  `pod` are the fields of a pod that stand beside these."""

    min_replicas: int = Field(default=1, ge=0, description="replicas that are always there")
    max_replicas: int = Field(default_factory=_default_max, ge=0, description="replicas that there may be under load")
    scale_metric: Metric | None = Field(default=None, description="what the autoscaler looks at")
    scale_target: int | None = Field(
        default=None, ge=1, description="the value of scaleMetric that the autoscaler aims at, per replica"
    )
    scale_metric_type: Literal["Utilization", "AverageValue", "Value"] | None = Field(
        default=None, description="what scaleTarget is"
    )
    auto_scaling: AutoScaling | None = None
    container_concurrency: int = Field(default=0, ge=0, description="requests at once in one replica; 0: no limit")
    timeout: int | None = Field(default=None, ge=1, description="seconds that a request may take")
    canary_traffic_percent: Percent | None = Field(
        default=None, description="percent of the requests that go to the newest revision"
    )
    logger: Logger | None = None
    batcher: Batcher | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deployment_strategy: dict[str, Any] | None = None
    containers: Objects = ()
    storage_uris: Annotated[tuple[StorageUri, ...], Strict(False)] = ()
    storage_container_name: str | None = None
    pod: dict[str, Any] = {}


class Predictor(Component):
    name: str | None = Field(default=None, description="names the objects <service>-<name>-predictor")
    model: Model | None = None
    worker_spec: dict[str, Any] | None = None


class Transformer(Component):
    pass


class Explainer(Component):
    art: dict[str, Any] | None = None


class Canary(Part):
    predictor: Predictor = Field(default_factory=Predictor)
    traffic_percent: Percent = Field(default=0, description="percent of the requests that go to this canary")


class Tracing(Part):
    exporter: str = "otlp"
    exporter_endpoint: str = "http://otel-collector:4317"
    sampler: str = "parentbased_traceidratio"
    sampler_arg: str = "0.05"


class Spec(Part):
    predictor: Predictor = Field(default_factory=Predictor)
    transformer: Transformer | None = None
    explainer: Explainer | None = None
    canary: Annotated[tuple[Canary, ...], Strict(False)] = ()
    tracing: Tracing | None = None


class InferenceService(Part):
    api_version: Literal["serving.kserve.io/v1beta1"] = API_VERSION
    kind: Literal["InferenceService"] = KIND
    metadata: Metadata = Field(default_factory=Metadata)
    spec: Spec = Field(default_factory=Spec)


# What a canary does not take over from the stable predictor: these say how many of it there are and what it is called.
_OWN = frozenset(
    (
        "name",
        "min_replicas",
        "max_replicas",
        "scale_metric",
        "scale_target",
        "scale_metric_type",
        "auto_scaling",
        "canary_traffic_percent",
    )
)


def completed(canary: Canary, stable: Predictor) -> Canary:
    """The canary with a whole predictor: what its entry leaves out is the stable one's, as KServe has it.

    Its replicas are its own `minReplicas`, or its share of the stable one's, and at least one, so that it can be looked at
    even while it gets no traffic.
    """
    own = _given(canary.predictor)
    share = max(1, math.ceil(stable.min_replicas * canary.traffic_percent / 100))
    replicas = own.get("min_replicas", share)
    inherited = {name: value for name, value in _given(stable).items() if name not in _OWN}
    if is_custom(canary.predictor):
        inherited.pop("model", None)  # a server of its own instead of the stable one's
    if canary.predictor.model is not None:
        if is_custom(stable):
            inherited.pop("containers")
        if stable.model is not None:
            own["model"] = _model_over(stable.model, canary.predictor.model)
    counts = {"min_replicas": replicas, "max_replicas": max(1, replicas)}
    given = canary.predictor.model_fields_set
    whole = Predictor.model_construct(_fields_set=given, **{**inherited, **own, **counts})
    return canary.model_copy(update={"predictor": whole}) if "predictor" in canary.model_fields_set else canary


def explicit(predictor: Predictor) -> Predictor:
    """The predictor with all that it inherited as if it had been written there: for one that takes the stable one's place."""
    model = predictor.model
    if model is not None:
        predictor = predictor.model_copy(update={"model": _explicit(model)})
    return _explicit(predictor)


def _explicit(part: PartT) -> PartT:
    own = {name for name, field in type(part).model_fields.items() if field.get_default() != getattr(part, name)}
    return type(part).model_construct(_fields_set=own & part.__dict__.keys(), **part.__dict__)


def is_custom(component: Component) -> bool:
    """Whether the component brings its own server in a container, instead of a model for a runtime."""
    named = any(container.get("name") == SERVER_CONTAINER for container in component.containers)
    return named and getattr(component, "model", None) is None


def _model_over(stable: Model, own: Model) -> Model:
    given = _given(own)
    if "model_format" in given and given["model_format"] != stable.model_format:
        return own  # another framework's runtime, protocol and arguments would not fit
    inherited = {name: value for name, value in _given(stable).items() if not (name in _WHERE and given.keys() & _WHERE)}
    return Model.model_construct(_fields_set=own.model_fields_set, **{**inherited, **given})


_WHERE = frozenset(("storage_uri", "storage"))


def _given(part: Part) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.model_fields_set}


def trusts(predictor: Predictor, annotation: str | None) -> bool:
    """A local path is its user's to trust; what came from elsewhere may run code only where the annotation says so."""
    if annotation is not None:
        return annotation == "true"
    model = predictor.model
    if model is not None and model.storage is not None:
        return False
    uris = [*((model.storage_uri or "",) if model else ()), *(one.uri for one in predictor.storage_uris)]
    return all("://" not in uri or uri.startswith("file://") for uri in uris)
