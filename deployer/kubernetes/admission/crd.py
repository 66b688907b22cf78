"""The CustomResourceDefinitions, from the models of `deployer/spec` and `deployer/runtimes`: pure.

    the models → their JSON schema → a structural schema → the CRDs → `charts/serveplane-crds/templates/*.yaml`

They are small, because what stands inside a pod's fields is the cluster's to judge, and is judged when the pods are made.
An unknown field is kept, not dropped: the webhook refuses it, or the condition Ready says so, with the name that was meant;
a field that the API server drops is a typo that nobody hears of, unless kubectl happens to be the one that wrote it.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from deployer.kubernetes.admission.rules import (
    A_SERVER,
    ART_OR_CONTAINERS,
    CANARIES,
    NO_CANARIES,
    ONE_SERVER,
    ONLY_STABLE,
    OWN_CONTAINERS,
    SCALING,
    SOMETHING_TO_RUN,
    URIS,
    Rule,
)
from deployer.kubernetes.admission.texts import STATUS, TEXTS
from deployer.runtimes import KINDS, ServingRuntime
from deployer.spec import InferenceService
from deployer.spec.formats import LEGACY_KEYS
from deployer.spec.pods import CONTAINER_FIELDS, POD_FIELDS
from deployer.spec.validation import MAX_NAME

Schema = dict[str, Any]

GROUP = "serving.kserve.io"
# What the rules may cost is counted for the largest object there could be.
MAX_CANARIES = 100
MAX_CONTAINERS = 32
MAX_KEYS = 128
MAX_URI = 4096

ANY: Schema = {"x-kubernetes-preserve-unknown-fields": True}
ANY_OBJECT: Schema = {"type": "object", **ANY}
_TYPES: Mapping[type, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer", "format": "int64"},
    bool: {"type": "boolean"},
    dict: ANY_OBJECT,
    list: {"type": "array", "items": ANY_OBJECT},
}


# What is written of an object in a table: KServe's columns, and two wide ones of ours.
_LATEST, _PREV = (
    ".status.components.predictor.traffic[?(@.latestRevision==true)]",
    ".status.components.predictor.traffic[?(@.tag=='prev')]",
)
_READY = ".status.conditions[?(@.type=='Ready')]"
COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("URL", "string", ".status.url", 0),
    ("Ready", "string", f"{_READY}.status", 0),
    ("Prev", "integer", f"{_PREV}.percent", 0),
    ("Latest", "integer", f"{_LATEST}.percent", 0),
    ("PrevRolledoutRevision", "string", f"{_PREV}.revisionName", 0),
    ("LatestReadyRevision", "string", f"{_LATEST}.revisionName", 0),
    ("Replicas", "integer", ".status.modelStatus.copies.totalCopies", 1),
    ("Reason", "string", f"{_READY}.reason", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)
RUNTIME_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Disabled", "boolean", ".spec.disabled", 0),
    ("ModelType", "string", ".spec.supportedModelFormats[*].name", 0),
    ("Containers", "string", ".spec.containers[*].name", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def crds() -> list[Schema]:
    """Each a whole object, in the order to apply them."""
    service = _definition(
        "InferenceService",
        "v1beta1",
        _service(),
        COLUMNS,
        names={"shortNames": ["isvc"]},
        subresources={
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.predictor.minReplicas",
                "statusReplicasPath": ".status.modelStatus.copies.totalCopies",
            },
        },
    )
    runtimes = [_definition(kind, "v1alpha1", _runtime(kind), RUNTIME_COLUMNS, subresources={"status": {}}) for kind in KINDS]
    return [service, *runtimes]


def _definition(
    kind: str,
    version: str,
    schema: Schema,
    columns: Iterable[tuple[str, str, str, int]],
    subresources: Schema,
    names: Schema = {},  # noqa: B006
) -> Schema:
    plural = f"{kind.lower()}s"
    printed = [
        {"name": name, "type": type_, "jsonPath": path, **({"priority": priority} if priority else {})}
        for name, type_, path, priority in columns
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "serveplane-crds", "app.kubernetes.io/part-of": "serveplane"},
            # with a CRD go all its objects: a chart that is uninstalled must not end what serves
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Cluster" if kind.startswith("Cluster") else "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                **names,
                "categories": ["all", "serving"] if kind == "InferenceService" else ["serving"],
            },
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": subresources,
                    "additionalPrinterColumns": printed,
                }
            ],
        },
    }


def _service() -> Schema:
    whole = _Reader(InferenceService).schema()
    spec = whole["properties"]["spec"]
    parts = spec["properties"]
    # whole objects of each, because a rule of one is no rule of the other
    parts["predictor"] |= _rules(*ONE_SERVER, SOMETHING_TO_RUN, *SCALING)
    parts["transformer"] |= _rules(OWN_CONTAINERS, NO_CANARIES, *SCALING)
    parts["explainer"] |= _rules(ART_OR_CONTAINERS, NO_CANARIES, *SCALING)
    canary = parts["canary"]["items"]
    canary["properties"]["predictor"] |= _rules(*ONE_SERVER, ONLY_STABLE) | {"required": ["name"]}
    canary |= {"required": ["predictor", "trafficPercent"]}
    for part in ("predictor", "transformer", "explainer"):
        parts[part]["properties"]["minReplicas"] |= {"default": 1}
    spec |= _rules(*CANARIES) | {"required": ["predictor"]}
    metadata = {"type": "object", "properties": {"name": {"type": "string", "maxLength": MAX_NAME}}}
    return _top("InferenceService", metadata, spec, _status())


def _runtime(kind: str) -> Schema:
    spec = _Reader(ServingRuntime).schema()["properties"]["spec"]
    spec["properties"]["containers"]["items"]["required"] = ["name"]
    spec["properties"]["supportedModelFormats"]["items"]["required"] = ["name"]
    spec |= _rules(A_SERVER) | {"required": ["containers"]}
    status = {**ANY_OBJECT, "description": "What was found wrong with it, and which services it serves"}
    return _top(kind, {"type": "object"}, spec, status)


def _top(kind: str, metadata: Schema, spec: Schema, status: Schema) -> Schema:
    return {
        "type": "object",
        "description": TEXTS[kind],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": metadata,
            "spec": {
                **spec,
                "description": TEXTS[f"{'InferenceService' if kind == 'InferenceService' else 'ServingRuntime'}.spec"],
            },
            "status": status,
        },
    }


def _rules(*rules: Rule) -> Schema:
    return {"x-kubernetes-validations": [rule.schema() for rule in rules]}


class _Reader:
    """A model's JSON schema, made structural: no references, no alternatives, unknown fields kept.

    Defaults are left out, but for those that every object of a kind may carry: what a canary leaves out is the stable one's.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._root = model.model_json_schema(by_alias=True)
        self._models: Mapping[str, Schema] = self._root.get("$defs", {})

    def schema(self) -> Schema:
        return self._read(self._root, model="", name="")

    def _read(self, node: Schema, model: str, name: str) -> Schema:
        """`model` and `name` say where the node stands: a field, or an item of one."""
        told = node.get("description") or TEXTS.get(f"{model}.{name}") or TEXTS.get(name)
        if "$ref" in node:
            node = self._models[node["$ref"].rpartition("/")[2]]
        elif "anyOf" in node:
            node = self._alternatives(node)
            if "$ref" in node:
                node = self._models[node["$ref"].rpartition("/")[2]]
        made: Schema = {key: node[key] for key in ("type", "minimum", "maximum", "minLength", "enum") if key in node}
        if told:
            made["description"] = told[0].upper() + told[1:]
        if "x-kubernetes-int-or-string" in node:
            return {**{key: value for key, value in made.items() if key != "type"}, **node}
        if made.get("type") == "integer":
            made["format"] = "int64"
        if made.get("type") == "array":
            made["items"] = self._read(node["items"], model, "")
        elif "properties" in node:
            made |= self._object(node)
        elif made.get("type") == "object":
            values = node.get("additionalProperties", True)
            made |= ANY if values is True else {"additionalProperties": {"type": values["type"]}}
        made |= _BOUNDS.get(f"{model}.{name}", _BOUNDS.get(name, {}))
        if name == "containers":
            made["items"] = _container()
        return made

    def _alternatives(self, node: Schema) -> Schema:
        """Without null, which an API server takes for absent; the only others are a number or a text."""
        given = [one for one in node["anyOf"] if one.get("type") != "null"]
        return given[0] if len(given) == 1 else {"x-kubernetes-int-or-string": True}

    def _object(self, node: Schema) -> Schema:
        model, fields = node["title"], dict(node["properties"])
        properties: dict[str, Schema] = {}
        for name, field in fields.items():
            if name == "pod":
                continue
            if name == "container":
                properties |= _fields(CONTAINER_FIELDS, "Container", leave_out=("name",))
            else:
                properties[name] = self._read(field, model, name)
            if (model, name) in _DEFAULTS:
                properties[name]["default"] = field["default"]
        if "pod" in fields:
            properties |= _fields(POD_FIELDS, "Pod")
        if model == "Predictor":
            properties |= {key: _framework(key, properties["model"]) for key in LEGACY_KEYS}
        rules = _rules(*URIS) if model == "Model" else {}
        return {**ANY, "properties": properties, **rules}


_DEFAULTS = frozenset((("StorageUri", "mountPath"), ("Logger", "mode")))
_BOUNDS: Mapping[str, Schema] = {
    "canary": {"maxItems": MAX_CANARIES},
    "containers": {"maxItems": MAX_CONTAINERS},
    "storageUri": {"maxLength": MAX_URI},
    "Predictor.name": {"maxLength": 63, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
    "SupportedFormat.priority": {"maximum": 2**31 - 1},
}


def _fields(fields: Mapping[str, type], model: str, leave_out: Iterable[str] = ()) -> dict[str, Schema]:
    return {name: _field(name, type_, model) for name, type_ in fields.items() if name not in leave_out}


def _field(name: str, type_: type, model: str) -> Schema:
    made = dict(_TYPES[type_])
    if name in ("args", "command"):
        made["items"] = {"type": "string"}
    elif name == "nodeSelector":
        made = {"type": "object", "additionalProperties": {"type": "string"}}
    elif name == "resources":
        made["properties"] = {
            kind: {**ANY_OBJECT, "description": f"{text}, such as cpu: 500m, memory: 2Gi, nvidia.com/gpu: 1"}
            for kind, text in (("requests", "What is set aside for it"), ("limits", "What it may take at most"))
        }
    text = (
        TEXTS.get(f"{model}.{name}") or TEXTS.get(name) or f"As in a {model.lower()}: kubectl explain pod.spec{_IN[model]}.{name}"
    )
    return {**made, "description": text}


_IN = {"Pod": "", "Container": ".containers"}


def _container() -> Schema:
    # a container may be without a name: the first is the server
    properties = _fields(CONTAINER_FIELDS, "Container")
    properties["name"]["maxLength"] = 63
    return {**ANY_OBJECT, "properties": properties}


def _framework(key: str, model: Schema) -> Schema:
    """KServe's older spelling of a model.  Its fields are those of `model`, and not all of them are told again."""
    told = ("storageUri", "storage", "runtimeVersion", "protocolVersion")
    text = f"KServe's older spelling of model with modelFormat.name {key}; takes the fields of model"
    properties = {name: model["properties"][name] for name in told}
    return {**ANY_OBJECT, "description": text, "properties": properties, **_rules(*URIS)}


def _status() -> Schema:
    """KServe's own status.  What a client of another version adds to it is kept."""
    address = {"url": "string"}
    states = {"activeModelState": "string", "targetModelState": "string"}
    failure = {
        **dict.fromkeys(("location", "reason", "message", "modelRevisionName", "time"), "string"),
        "exitCode": "integer",
    }
    model = {
        "transitionStatus": "string",
        "states": states,
        "copies": {"failedCopies": "integer", "totalCopies": "integer"},
        "lastFailureInfo": failure,
    }
    traffic = {"revisionName": "string", "latestRevision": "boolean", "percent": "integer", "tag": "string", "url": "string"}
    revisions = ("latestReadyRevision", "latestCreatedRevision", "latestRolledoutRevision", "previousRolledoutRevision")
    component = {
        "url": "string",
        "restUrl": "string",
        "grpcUrl": "string",
        "address": address,
        **dict.fromkeys(revisions, "string"),
        "traffic": [traffic],
    }
    condition = dict.fromkeys(("type", "status", "severity", "lastTransitionTime", "reason", "message"), "string")
    made = _seen(
        "status",
        {
            "observedGeneration": "integer",
            "conditions": [condition],
            "url": "string",
            "address": address,
            "components": {},
            "modelStatus": model,
            "canaryStatuses": [{"name": "string", "ready": "boolean", "trafficPercent": "integer", "modelStatus": model}],
            "deploymentMode": "string",
            "servingRuntimeName": "string",
            "clusterServingRuntimeName": "string",
            "annotations": {},
        },
    )
    made["properties"]["components"] = {
        "type": "object",
        "description": STATUS["components"],
        "additionalProperties": _seen("components", component),
    }
    conditions = made["properties"]["conditions"]
    conditions["items"]["required"] = ["type", "status"]
    # one manager writes them, and each type stands once
    conditions |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return made


def _seen(name: str, value: Any) -> Schema:
    text = {"description": STATUS[name]} if name in STATUS else {}
    if isinstance(value, str):
        return {"type": value, **({"format": "int64"} if value == "integer" else {}), **text}
    if isinstance(value, list):
        return {"type": "array", "items": _seen("condition" if name == "conditions" else "", value[0]), **text}
    prefix = "condition." if name == "condition" else ""
    inside = {one: {**_seen(one, kind), "description": STATUS[f"{prefix}{one}"]} for one, kind in value.items()}
    return {**ANY_OBJECT, **text, **({"properties": inside} if inside else {})}


def manifests() -> dict[str, str]:
    """The text of each file of the chart, by its name."""
    head = "# Generated by scripts/generate from deployer/spec and deployer/runtimes.\n"
    files = {}
    for one in crds():
        text = yaml.dump(one, Dumper=_Dumper, sort_keys=False, width=130, allow_unicode=True)
        files[f"{GROUP}_{one['spec']['names']['plural']}.yaml"] = head + text
    return files


class _Dumper(yaml.SafeDumper):
    """Writes a part that stands at several places at each of them: not every reader of YAML knows aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in manifests().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deployer.kubernetes.admission.crd DIR")
    main(Path(sys.argv[1]))
