"""The CRDs: structural, small, told in words, and true to what `spec.parse` takes.

What only an API server can say of them (whether their rules compile, and when they fire) is in tests/cluster/test_crd.py.
"""

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from deployer.kubernetes.admission.crd import ANY_OBJECT, COLUMNS, MAX_NAME, crds, manifests
from deployer.runtimes import BUILTIN, parse_runtime
from deployer.spec import KIND, as_object, documents, parse
from deployer.spec.pods import CONTAINER_FIELDS, POD_FIELDS
from deployer.spec.schema import Explainer, Model, Predictor, Transformer
from tests.deployer.test_golden import CASES, outcome
from tests.deployer.test_validation import ACCEPTED

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "serveplane-crds"
BY_KIND = {one["spec"]["names"]["kind"]: one for one in crds()}
SCHEMAS = {kind: one["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for kind, one in BY_KIND.items()}
EXAMPLES = [
    one for path in sorted((ROOT / "examples" / "manifests").glob("*.yaml")) for one in documents(path.read_text(), path.name)
]


def json_schema(node):
    """The same as JSON Schema has it, where "a number or text" is two types."""
    if not isinstance(node, dict):
        return node
    made = {key: value for key, value in node.items() if not key.startswith("x-") and key != "format"}
    if node.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if "properties" in made:
        made["properties"] = {name: json_schema(one) for name, one in made["properties"].items()}
    return made | {key: json_schema(made[key]) for key in ("items", "additionalProperties") if key in made}


VALIDATORS = {kind: jsonschema.Draft202012Validator(json_schema(schema)) for kind, schema in SCHEMAS.items()}


def wrong(raw):
    return [f"{one.json_path}: {one.message}" for one in VALIDATORS[raw["kind"]].iter_errors(without_nulls(raw))]


def without_nulls(value):
    """As an API server has it: null under a name is absent."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def nodes(schema, path=""):
    """(path, schema) of every part."""
    yield path, schema
    for name, one in schema.get("properties", {}).items():
        yield from nodes(one, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}.*")


EVERYTHING = [(kind, path, node) for kind, schema in SCHEMAS.items() for path, node in nodes(schema)]


# what they are


def test_all_of_them_together_are_small_and_each_fits_into_the_annotation_of_a_client_side_apply():
    sizes = [len(json.dumps(one)) for one in crds()]
    assert sum(sizes) <= 250_000
    assert max(sizes) < 262_144
    assert sum(len(text.encode()) for text in manifests().values()) <= 500_000


def test_the_kinds_are_kserves_by_name_version_and_scope():
    found = {
        kind: (one["metadata"]["name"], one["spec"]["versions"][0]["name"], one["spec"]["scope"]) for kind, one in BY_KIND.items()
    }
    assert found == {
        "InferenceService": ("inferenceservices.serving.kserve.io", "v1beta1", "Namespaced"),
        "ServingRuntime": ("servingruntimes.serving.kserve.io", "v1alpha1", "Namespaced"),
        "ClusterServingRuntime": ("clusterservingruntimes.serving.kserve.io", "v1alpha1", "Cluster"),
    }
    assert BY_KIND[KIND]["spec"]["names"] == {
        "kind": KIND,
        "listKind": "InferenceServiceList",
        "plural": "inferenceservices",
        "singular": "inferenceservice",
        "shortNames": ["isvc"],
        "categories": ["all", "serving"],
    }


def test_the_columns_are_kserves_with_two_wide_ones_of_ours():
    assert [name for name, _, _, priority in COLUMNS if not priority] == [
        "URL", "Ready", "Prev", "Latest", "PrevRolledoutRevision", "LatestReadyRevision", "Age",
    ]  # fmt: skip
    assert [name for name, _, _, priority in COLUMNS if priority] == ["Replicas", "Reason"]


def test_a_service_has_the_subresources_status_and_scale():
    version = BY_KIND[KIND]["spec"]["versions"][0]
    assert version["subresources"]["status"] == {}
    schema = SCHEMAS[KIND]
    for path in version["subresources"]["scale"].values():
        node = schema
        for name in path.strip(".").split("."):
            node = node["properties"][name]
        assert node["type"] == "integer", path


# structural, as the API server wants it


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_part_is_structural(kind):
    for path, node in nodes(SCHEMAS[kind]):
        assert node.keys() & {"type", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"}, path
        assert not node.keys() & {"$ref", "anyOf", "allOf", "oneOf", "not", "title", "$defs", "const"}, path
        assert node.get("type") != "array" or "items" in node, path
        inside = node.keys() & {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"}
        assert node.get("type") != "object" or inside or path == ".metadata", path
        assert not {"properties", "additionalProperties"} <= node.keys(), path
        assert set(node.get("required", ())) <= node.get("properties", {}).keys(), path
        assert "nullable" not in node, f"{path}: null is absent, and gets the default"


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_field_is_told_in_words(kind):
    untold = {"", ".apiVersion", ".kind", ".metadata", ".metadata.name"}
    for path, node in nodes(SCHEMAS[kind]):
        if path not in untold and not path.endswith(("[]", ".*")):
            assert node.get("description"), path
            assert "{{" not in node["description"], f"{path}: Helm would take it for its own"


def test_every_field_of_the_models_is_a_field_of_the_schema_and_no_other():
    spec = SCHEMAS[KIND]["properties"]["spec"]["properties"]

    def names(model):
        return {info.alias or name for name, info in model.model_fields.items()}

    for part, model in (("predictor", Predictor), ("transformer", Transformer), ("explainer", Explainer)):
        found = spec[part]["properties"].keys()
        assert names(model) - {"pod"} <= found
        assert POD_FIELDS.keys() <= found
        assert "pod" not in found
    model = spec["predictor"]["properties"]["model"]["properties"].keys()
    assert model == names(Model) - {"container"} | CONTAINER_FIELDS.keys() - {"name"}
    canary = spec["canary"]["items"]["properties"]["predictor"]["properties"]
    assert canary.keys() == spec["predictor"]["properties"].keys()


def test_what_stands_inside_a_pods_fields_is_the_clusters_to_judge():
    predictor = SCHEMAS[KIND]["properties"]["spec"]["properties"]["predictor"]["properties"]
    assert ANY_OBJECT.items() <= predictor["affinity"].items()
    assert ANY_OBJECT.items() <= predictor["tolerations"]["items"].items()
    assert ANY_OBJECT.items() <= predictor["model"]["properties"]["securityContext"].items()


def test_unknown_fields_are_kept_where_people_write_so_that_a_typo_is_told():
    for kind, path, node in EVERYTHING:
        if path.startswith(".spec") and "properties" in node:
            assert node["x-kubernetes-preserve-unknown-fields"], f"{kind}{path}"


def test_there_are_no_defaults_in_a_canary_because_what_it_leaves_out_is_the_stable_ones():
    found = {path: node["default"] for kind, path, node in EVERYTHING if "default" in node}
    own = {path.rpartition(".")[2] for path in found if ".canary[]" in path}
    assert own == {"mode", "mountPath"}, "of parts that a canary gives whole"
    assert found[".spec.predictor.minReplicas"] == 1


# what they take


@pytest.mark.parametrize("raw", EXAMPLES, ids=lambda raw: f"{raw['kind']} {raw['metadata']['name']}")
def test_every_example_fits_as_written_and_in_its_canonical_form(raw):
    assert wrong(raw) == []
    if raw["kind"] == KIND:
        assert wrong(as_object(parse(raw))) == []


@pytest.mark.parametrize("raw", [raw for _, raw in ACCEPTED], ids=[why for why, _ in ACCEPTED])
def test_whatever_the_parser_takes_the_schema_takes(raw):
    if len(raw["metadata"]["name"]) <= MAX_NAME:
        assert wrong(raw) == []
    assert wrong(as_object(parse(raw, formats=None))) == []


def _runtime(one):
    dumped = one.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {"kind": one.kind, **dumped}


@pytest.mark.parametrize("runtime", BUILTIN, ids=lambda one: one.name)
def test_our_own_runtimes_fit(runtime):
    raw = _runtime(runtime)
    assert wrong(raw) == []
    assert parse_runtime({"apiVersion": "serving.kserve.io/v1alpha1", **raw}) == runtime


@pytest.mark.parametrize("case", CASES)
def test_every_status_that_we_write_fits_and_is_told(case):
    _, status, _, _, _ = outcome(case)
    schema = SCHEMAS[KIND]["properties"]["status"]
    assert list(jsonschema.Draft202012Validator(json_schema(schema)).iter_errors(status)) == []
    known = {path for path, _ in nodes(schema)}
    assert {path for path in _paths(status) if path not in known} == set()


def _paths(value, path=""):
    if isinstance(value, dict):
        for name, one in value.items():
            here = f"{path}.*" if path == ".components" else f"{path}.{name}"
            yield here
            yield from _paths(one, here)
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one, f"{path}[]")


# The fields of KServe's SDK 0.21 (V1beta1InferenceServiceStatus and what it holds), and Knative's Addressable.
SDK_STATUS = {
    "observedGeneration": 2,
    "annotations": {"a": "b"},
    "url": "http://iris-default.example.com",
    "address": {"url": "http://iris-predictor.default.svc.cluster.local", "name": "http", "CACerts": "x", "audience": "y"},
    "deploymentMode": "Standard",
    "servingRuntimeName": "mine",
    "clusterServingRuntimeName": "kserve-sklearnserver",
    "conditions": [
        {"type": "Ready", "status": "True", "severity": "Info", "lastTransitionTime": "2026-11-24T08:00:00Z", "reason": "", "message": ""}
    ],
    "components": {
        "predictor": {
            "latestReadyRevision": "iris-predictor-00002",
            "latestCreatedRevision": "iris-predictor-00002",
            "latestRolledoutRevision": "iris-predictor-00001",
            "previousRolledoutRevision": "iris-predictor-00001",
            "traffic": [
                {"revisionName": "iris-predictor-00002", "latestRevision": True, "percent": 10, "tag": "latest", "url": "http://x", "configurationName": "c"}
            ],
            "url": "http://x",
            "restUrl": "http://x",
            "grpcUrl": "http://x",
            "address": {"url": "http://x"},
        }
    },
    "modelStatus": {
        "transitionStatus": "BlockedByFailedLoad",
        "states": {"activeModelState": "", "targetModelState": "FailedToLoad"},
        "copies": {"failedCopies": 1, "totalCopies": 0},
        "lastFailureInfo": {
            "location": "pod", "reason": "ModelLoadFailed", "message": "no", "modelRevisionName": "r", "time": "2026-11-24T08:00:00Z", "exitCode": 1,
        },
    },
    "canaryStatuses": [{"name": "v2", "ready": True, "trafficPercent": 10, "modelStatus": {"transitionStatus": "UpToDate"}}],
}  # fmt: skip


def test_kserves_own_status_fits():
    assert wrong({"kind": KIND, "spec": {"predictor": {}}, "status": SDK_STATUS}) == []


@pytest.mark.parametrize(
    ("predictor", "where"),
    [
        ({"minReplicas": "3"}, "$.spec.predictor.minReplicas"),
        ({"minReplicas": -1}, "$.spec.predictor.minReplicas"),
        ({"canaryTrafficPercent": 101}, "$.spec.predictor.canaryTrafficPercent"),
        ({"scaleMetric": "gpu"}, "$.spec.predictor.scaleMetric"),
        ({"model": {"protocolVersion": "v3"}}, "$.spec.predictor.model.protocolVersion"),
        ({"model": "iris"}, "$.spec.predictor.model"),
        ({"model": {"args": [1]}}, "$.spec.predictor.model.args[0]"),
        ({"volumes": {}}, "$.spec.predictor.volumes"),
        ({"nodeSelector": {"a": 1}}, "$.spec.predictor.nodeSelector.a"),
        ({"logger": {"batchInterval": 1.5}}, "$.spec.predictor.logger.batchInterval"),
        ({"batcher": {"maxBatchSize": 0}}, "$.spec.predictor.batcher.maxBatchSize"),
    ],
)
def test_types_and_ranges_are_the_models(predictor, where):
    (one,) = wrong({"kind": KIND, "spec": {"predictor": predictor}})
    assert one.startswith(f"{where}: ")


# rules

RULES = {
    (kind, path): [rule["message"] for rule in node["x-kubernetes-validations"]]
    for kind, path, node in EVERYTHING
    if "x-kubernetes-validations" in node
}


def test_a_rule_says_what_is_wrong_and_what_to_do():
    for messages in RULES.values():
        for message in messages:
            assert any(word in message for word in ("wanted", "leave", "give", "keep", "put", "under spec.predictor")), message
            assert "\n" not in message
            assert len(message) < 250


def test_the_rules_stand_where_they_belong():
    predictor = RULES[KIND, ".spec.predictor"]
    assert any("minReplicas (…) or more" in message for message in predictor)
    assert any("there is nothing to run" in message for message in predictor)
    assert any("either a model or a container kserve-container" in message for message in predictor)
    assert any("no way" in message or "known: file://" in message for message in RULES[KIND, ".spec.predictor.model"])
    assert any("add up to" in message for message in RULES[KIND, ".spec"])
    assert any("a canary may not say maxReplicas" in message for message in RULES[KIND, ".spec.canary[].predictor"])
    assert any("only a predictor has canaries" in message for message in RULES[KIND, ".spec.transformer"])
    for kind in ("ServingRuntime", "ClusterServingRuntime"):
        assert RULES[kind, ".spec"] == ["wanted a container called kserve-container: the one that serves"]


# the chart


def test_the_chart_holds_what_is_generated_and_nothing_else(tmp_path):
    command = [ROOT / ".venv/bin/python", "-P", "-m", "deployer.kubernetes.admission.crd", tmp_path]
    subprocess.run(command, check=True, cwd=ROOT)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in (CHART / "templates").iterdir()} == manifests()
    assert [yaml.safe_load(text) for text in manifests().values()] == crds()


def test_uninstalling_the_chart_keeps_the_kinds_and_with_them_every_service():
    for one in crds():
        assert one["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_chart_has_the_projects_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert chart["appVersion"] == chart["version"]
