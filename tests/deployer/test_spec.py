"""From text to a service and back: reading, defaults, canonical objects, what has no effect, updates."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.errors import DeployerError, SpecError
from deployer.runtimes import BUILTIN, merge, parse_runtime, select
from deployer.spec import API_VERSION, FORMATS, KIND, as_object, check_update, documents, notices, parse
from deployer.spec.formats import ending_of, format_of, not_local, scheme_of

MANIFESTS = sorted((Path(__file__).parents[2] / "examples" / "manifests").glob("*.yaml"))
SKLEARN = {"modelFormat": {"name": "sklearn"}, "storageUri": "/models/iris.skops"}


def service(predictor=None, *, name="iris", annotations=None, labels=None, **spec):
    metadata = {"name": name, **({"annotations": annotations} if annotations else {}), **({"labels": labels} if labels else {})}
    predictor = {"model": SKLEARN} if predictor is None else predictor
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {"predictor": predictor, **spec}}


def modelled(**fields):
    return {"model": {**SKLEARN, **fields}}


def read(path):
    return documents(path.read_text(), path.name)


SERVICES = [one for path in MANIFESTS for one in read(path) if one["kind"] == KIND]


# manifests


def test_there_is_an_example_manifest_for_each_way_to_write_a_service():
    assert len(MANIFESTS) >= 12


@pytest.mark.parametrize("raw", SERVICES, ids=lambda raw: raw["metadata"]["name"])
def test_an_example_manifest_survives_the_way_there_and_back(raw):
    before = copy.deepcopy(raw)
    first = parse(raw)
    canonical = as_object(first)
    assert raw == before
    assert parse(canonical) == first
    assert as_object(parse(canonical)) == canonical
    assert json.loads(json.dumps(canonical)) == canonical


@pytest.mark.parametrize("raw", SERVICES, ids=lambda raw: raw["metadata"]["name"])
def test_a_canonical_object_says_what_the_manifest_says_and_no_default(raw):
    canonical = as_object(parse(raw))
    assert canonical["metadata"] == raw["metadata"]
    assert canonical["spec"].keys() == raw["spec"].keys()
    legacy = {"sklearn", "onnx", "tensorflow"} & raw["spec"]["predictor"].keys()
    expected = raw["spec"]["predictor"].keys() - legacy | ({"model"} if legacy else set())
    assert canonical["spec"]["predictor"].keys() == expected


def test_an_object_that_was_read_from_an_api_server_can_be_applied_again():
    served = service()
    served["metadata"] |= {
        "uid": "u-1",
        "resourceVersion": "12",
        "generation": 3,
        "creationTimestamp": "2026-11-24T08:00:00Z",
        "managedFields": [{"manager": "kubectl"}],
        "finalizers": ["inferenceservice.finalizers"],
    }
    served["status"] = {"url": "http://iris", "conditions": []}
    meta = parse(served).metadata
    assert (meta.uid, meta.resource_version, meta.generation) == ("u-1", "12", 3)
    assert meta.creation_timestamp == "2026-11-24T08:00:00Z"
    assert "status" not in as_object(parse(served))


# defaults


def test_a_predictor_has_kserves_defaults():
    found = parse(service())
    predictor = found.spec.predictor
    assert found.metadata.namespace == "default"
    assert (predictor.min_replicas, predictor.max_replicas) == (1, 1)
    assert (predictor.timeout, predictor.canary_traffic_percent, predictor.container_concurrency) == (None, None, 0)
    assert predictor.model.protocol_version == "v1"


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, (1, 1)),
        ({"minReplicas": 3}, (3, 3)),
        ({"minReplicas": 3, "maxReplicas": 0}, (3, 3)),
        ({"minReplicas": 0}, (0, 1)),
        ({"maxReplicas": 4}, (1, 4)),
        ({"minReplicas": 2, "maxReplicas": None}, (2, 2)),
    ],
)
def test_max_replicas_is_raised_to_min_replicas_where_it_is_unset(given_, expected):
    predictor = parse(service({**modelled(), **given_})).spec.predictor
    assert (predictor.min_replicas, predictor.max_replicas) == expected


@pytest.mark.parametrize(
    ("model", "protocol"),
    [
        ({"modelFormat": {"name": "sklearn"}}, "v1"),
        ({"modelFormat": {"name": "tensorflow"}}, "v1"),
        ({"modelFormat": {"name": "onnx"}}, "v2"),
        ({"modelFormat": {"name": "triton"}}, "v2"),
        ({"modelFormat": {"name": "sklearn"}, "runtime": "kserve-mlserver"}, "v2"),
        ({"modelFormat": {"name": "onnx"}, "protocolVersion": "v1"}, "v1"),
        ({"modelFormat": {"name": "sklearn"}, "protocolVersion": "grpc-v2"}, "grpc-v2"),
    ],
)
def test_the_protocol_is_v1_except_where_the_framework_speaks_v2(model, protocol):
    predictor = {"model": {"storageUri": "/models/folder", **model}}
    assert parse(service(predictor)).spec.predictor.model.protocol_version == protocol


@pytest.mark.parametrize(
    "key", ["sklearn", "xgboost", "lightgbm", "tensorflow", "onnx", "pytorch", "triton", "huggingface", "pmml", "paddle"]
)
def test_a_frameworks_key_is_read_as_a_model_of_that_format(key):
    own = {"storageUri": "/models/folder", "runtimeVersion": "1", "args": ["--a"], "env": [{"name": "A", "value": "b"}]}
    found = parse(service({key: own, "minReplicas": 2, "nodeSelector": {"a": "b"}}))
    model = found.spec.predictor.model
    assert model.model_format.name == key
    assert (model.storage_uri, model.runtime_version) == ("/models/folder", "1")
    assert model.container == {"args": ["--a"], "env": [{"name": "A", "value": "b"}]}
    assert found.spec.predictor.pod == {"nodeSelector": {"a": "b"}}
    assert as_object(found)["spec"]["predictor"] == {
        "minReplicas": 2,
        "model": {"modelFormat": {"name": key}, **own},
        "nodeSelector": {"a": "b"},
    }


@pytest.mark.parametrize("name", ["", "kserve-container"])
def test_a_model_may_have_the_only_name_that_its_container_can_have(name):
    """KServe's SDK sends an empty one with every model."""
    assert parse(service(modelled(name=name))) == parse(service(modelled()))


@pytest.mark.parametrize(
    ("containers", "names"),
    [
        ([{"image": "a"}], ["kserve-container"]),
        ([{"name": "mine", "image": "a"}], ["kserve-container"]),
        ([{"image": "a"}, {"name": "b", "image": "b"}], ["kserve-container", "b"]),
        ([{"name": "a"}, {"name": "kserve-container"}], ["a", "kserve-container"]),
    ],
)
def test_a_container_that_is_alone_or_first_without_a_name_is_the_server(containers, names):
    found = parse(service({"containers": containers})).spec.predictor
    assert found.model is None
    assert [one["name"] for one in found.containers] == names


def test_a_service_can_not_be_changed():
    found = parse(service())
    with pytest.raises(ValueError, match="frozen"):
        found.spec.predictor.min_replicas = 3


# canaries


def canary(predictor, percent=10, **stable):
    found = parse(
        service(
            {**modelled(args=["--threads=1"], runtime="kserve-sklearnserver"), **stable},
            canary=[{"trafficPercent": percent, "predictor": predictor}],
        )
    )
    return found.spec.canary[0].predictor


def test_what_a_canary_leaves_out_is_the_stable_ones():
    found = canary({"name": "v2", "model": {"storageUri": "/models/2.skops"}}, timeout=7, nodeSelector={"a": "b"})
    assert (found.name, found.timeout, found.pod) == ("v2", 7, {"nodeSelector": {"a": "b"}})
    assert found.model.storage_uri == "/models/2.skops"
    assert found.model.model_format.name == "sklearn"
    assert (found.model.runtime, found.model.container) == ("kserve-sklearnserver", {"args": ["--threads=1"]})


def test_a_canary_of_another_format_takes_nothing_of_the_stable_model():
    found = canary({"name": "v2", "model": {"modelFormat": {"name": "onnx"}, "storageUri": "/models/2.onnx"}})
    assert (found.model.runtime, found.model.container, found.model.protocol_version) == (None, {}, "v2")


def test_a_canary_with_a_container_of_its_own_has_no_model():
    assert canary({"name": "v2", "containers": [{"name": "kserve-container", "image": "x"}]}).model is None


@pytest.mark.parametrize(
    ("stable", "percent", "own", "expected"),
    [(10, 25, None, 3), (4, 20, None, 1), (1, 0, None, 1), (2, 0, 1, 1), (4, 50, 4, 4), (1, 100, None, 1)],
)
def test_a_canary_has_its_share_of_the_stable_replicas_and_at_least_one(stable, percent, own, expected):
    predictor = {"name": "v2"} if own is None else {"name": "v2", "minReplicas": own}
    found = canary(predictor, percent, minReplicas=stable)
    assert (found.min_replicas, found.max_replicas) == (expected, expected)


# what has no effect


def told(raw, platform="local"):
    return [one.path for one in notices(parse(raw), platform)]


def test_a_plain_service_has_nothing_without_effect():
    assert told(service(modelled(args=["--threads=1"], env=[{"name": "A", "value": "b"}]))) == []


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (service({**modelled(), "nodeSelector": {"a": "b"}}), "spec.predictor.nodeSelector"),
        (service({**modelled(), "affinity": {"nodeAffinity": {}}}), "spec.predictor.affinity"),
        (service({**modelled(), "serviceAccountName": "sa"}), "spec.predictor.serviceAccountName"),
        (service({**modelled(), "priorityClassName": "high"}), "spec.predictor.priorityClassName"),
        (service({**modelled(), "logger": {}}), "spec.predictor.logger"),
        (service({**modelled(), "batcher": {"maxBatchSize": 8, "maxLatency": 50}}), "spec.predictor.batcher.maxLatency"),
        (service({**modelled(), "scaleTarget": 80}), "spec.predictor.scaleTarget"),
        (service({**modelled(), "scaleMetric": "cpu"}), "spec.predictor.scaleMetric"),
        (service({**modelled(), "deploymentStrategy": {"type": "Recreate"}}), "spec.predictor.deploymentStrategy"),
        (service({**modelled(), "minReplicas": 0}), "spec.predictor.minReplicas"),
        (service({**modelled(), "containerConcurrency": 3}), "spec.predictor.containerConcurrency"),
        (service({**modelled(), "containers": [{"name": "side", "image": "x"}]}), "spec.predictor.containers"),
        (service(modelled(image="x:1")), "spec.predictor.model.image"),
        (service(modelled(command=["x"])), "spec.predictor.model.command"),
        (service(modelled(runtimeVersion="1.2")), "spec.predictor.model.runtimeVersion"),
        (service(modelled(livenessProbe={})), "spec.predictor.model.livenessProbe"),
        (service(modelled(tty=True)), "spec.predictor.model.tty"),
        (service(modelled(resources={"requests": {"cpu": 1}})), "spec.predictor.model.resources.requests.cpu"),
        (service(modelled(resources={"limits": {"nvidia.com/gpu": 1}})), 'spec.predictor.model.resources.limits["nvidia.com/gpu"]'),
        (service(modelled(env=[{"name": "A", "valueFrom": {"secretKeyRef": {}}}])), "spec.predictor.model.env[0].valueFrom"),
        (service(modelled(storageUri="hf://b/m.skops")), "spec.predictor.model.storageUri"),
        (service({"model": {"modelFormat": {"name": "sklearn"}, "storage": {"key": "k"}}}), "spec.predictor.model.storage"),
        (service(transformer={"containers": [{"image": "x"}]}), "spec.transformer"),
        (service(explainer={"containers": [{"image": "x"}]}), "spec.explainer"),
        (service(tracing={}), "spec.tracing"),
        (service(annotations={"serving.kserve.io/autoscalerClass": "hpa"}), 'metadata.annotations["serving.kserve.io/autoscalerClass"]'),
        (service(annotations={"serving.kserve.io/autoscalerclass": "x"}), 'metadata.annotations["serving.kserve.io/autoscalerclass"]'),
        (service(labels={"networking.kserve.io/visibility": "cluster-local"}), 'metadata.labels["networking.kserve.io/visibility"]'),
        (service(canary=[{"trafficPercent": 5, "predictor": {"name": "b", "hostNetwork": True}}]), "spec.canary[0].predictor.hostNetwork"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_has_no_effect_on_one_machine_is_told(raw, path):
    assert told(raw) == [path]


def test_a_cluster_does_what_one_machine_can_not():
    raw = service({**modelled(resources={"requests": {"cpu": 1}}), "nodeSelector": {"a": "b"}, "logger": {}})
    assert told(raw, "kubernetes") == ["spec.predictor.model.storageUri"]
    volume = {"name": "m", "persistentVolumeClaim": {"claimName": "m"}}
    assert told(service({**modelled(), "volumes": [volume]}), "kubernetes") == []
    assert told(service({**modelled(), "scaleMetric": "rps", "scaleTarget": 9}), "local") == []
    assert told(service({**modelled(), "scaleMetric": "rps", "minReplicas": 0}), "kubernetes") == [
        "spec.predictor.minReplicas",
        "spec.predictor.model.storageUri",
        "spec.predictor.scaleMetric",
    ]


# updates


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (service(), service(modelled(storageUri="/models/2.skops")), None),
        (service(), service({**modelled(), "name": "v2"}), "spec.predictor.name"),
        (service(), service({**modelled(storageUri="/models/2.skops"), "name": "v2"}), None),
        (service(annotations={"serving.kserve.io/deploymentMode": "RawDeployment"}), service(annotations={"serving.kserve.io/deploymentMode": "Standard"}), None),
    ],
)  # fmt: skip
def test_a_predictor_is_renamed_only_together_with_its_model(old, new, path):
    if path is None:
        check_update(parse(old), parse(new))
    else:
        with pytest.raises(SpecError) as error:
            check_update(parse(old), parse(new))
        assert [one.path for one in error.value.mistakes] == [path]


# text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("---\n---\n", []),
        ("a: 1\n---\nb: 2\n", [{"a": 1}, {"b": 2}]),
        ('{"a": [1, 2.5, null, true]}', [{"a": [1, 2.5, None, True]}]),
        ('{\t"a":\t1}', [{"a": 1}]),
        ("{a: 1}\n---\n{b: 2}", [{"a": 1}, {"b": 2}]),
        ("kind: List\nitems:\n- a: 1\n- b: 2\n", [{"a": 1}, {"b": 2}]),
        ("kind: InferenceServiceList\nitems: []\n", []),
        ("day: 2026-11-24\n", [{"day": "2026-11-24"}]),
        ("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n", [{"base": {"x": 1, "y": 2}, "more": {"x": 1, "y": 3}}]),
    ],
)
def test_a_text_holds_one_or_more_objects(text, expected):
    assert documents(text, "in.yaml") == expected


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [\n", 3, "this is not YAML"),
        ("a: 1\n\tb: 2\n", 2, "indent with spaces"),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", 5, "the key 'c' stands twice in one object, first on line 3"),
        ('{\n"a": 1,\n"a": 2}', 3, "the key 'a' stands twice"),
        ("a: 1\n---\n- b\n", 3, "found a list of 1, wanted an object"),
        ("kind: List\nitems: [1]\n", 1, "items[0]: found 1, wanted an object"),
        ("a:\n  on: 1\n", 2, "found the key on, wanted text: put it in quotes"),
        ("a: !!python/object/apply:os.system [x]\n", 1, "python/object/apply"),
        ("a: !!binary aGk=\n", 1, "this is not YAML"),
        ("a: 1\nb: \x07\n", 2, "may not stand in it"),
        ("a: &a\n  b: *a\n", 1, "too large or too deep"),
        ("a: &a [x, x]\nb: &b [" + "*a, " * 100 + "]\nc: &c [" + "*b, " * 100 + "]\nd: &d [" + "*c, " * 100 + "]\n", 1, "too large or too deep"),
        ("x: " + "[" * 2000 + "]" * 2000, 1, "too deep"),
    ],
)  # fmt: skip
def test_a_text_that_can_not_be_read_is_told_with_its_line(text, line, words):
    with pytest.raises(SpecError) as error:
        documents(text, "in.yaml")
    assert error.value.mistakes[0].path.startswith(f"in.yaml:{line}")
    assert words in str(error.value)


# URIs


@pytest.mark.parametrize(
    ("uri", "names", "expected"),
    [
        ("/m/iris.skops", (), "sklearn"),
        ("/m/iris.joblib", (), "sklearn"),
        ("s3://b/iris.PKL", (), "sklearn"),
        ("file:///m/iris.pickle", (), "sklearn"),
        ("https://h/m.onnx?token=a.b#c", (), "onnx"),
        ("/m/m.keras", (), "tensorflow"),
        ("/m/m.h5", (), "tensorflow"),
        ("/m/m.weights.h5", (), None),
        ("/m/model.py", (), "python"),
        ("/m/model.py:Lexicon", (), "python"),
        ("/m/folder", (), None),
        ("/m/folder", ("saved_model.pb", "variables.index"), "tensorflow"),
        ("/m/folder", ("1/saved_model.pb",), "tensorflow"),
        ("/m/folder", ("model.joblib", "helper.py", "README.md"), "sklearn"),
        ("/m/folder", ("model.py", "words.txt"), "python"),
        ("/m/folder", ("code.py",), "python"),
        ("/m/folder", ("a.onnx", "b.skops"), None),
        ("http://[", (), None),
    ],
)
def test_an_ending_tells_the_format(uri, names, expected):
    assert format_of(uri, names) == expected


@pytest.mark.parametrize(
    ("uri", "scheme", "fetched"),
    [("/m", "", True), ("file:///m", "file", True), ("HTTPS://h/m", "https", True), ("s3://b/m", "s3", True), ("az://c/m", "az", True), ("hf://o/m", "hf", False), ("oci+native://r/m", "oci+native", False)],
)  # fmt: skip
def test_a_scheme_is_fetched_on_one_machine_or_told_why_not(uri, scheme, fetched):
    assert scheme_of(uri) == scheme
    assert (not_local(uri) == "") == fetched


@pytest.mark.parametrize(
    ("uri", "ending"), [("/m/v1.2", ""), ("/m/a.ONNX", ".onnx"), ("s3://b/m/", ""), ("s3://b/x.tar.gz", ".gz")]
)
def test_a_version_is_no_ending(uri, ending):
    assert ending_of(uri) == ending


# anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)


def places(value, at=()):
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


def put(value, at, new):
    if not at:
        return new
    value = copy.copy(value)
    value[at[0]] = put(value[at[0]], at[1:], new)
    return value


@st.composite
def nearly_right(draw):
    """A manifest with one to three values replaced, or fields added that belong elsewhere."""
    raw = draw(st.sampled_from(SERVICES))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(sorted(places(raw), key=repr)))
        new = draw(JSON | st.sampled_from([100, -1, "x" * 300, "{{.Name}}", [[]], {"name": 3}, ["a"], {"a": {"b": "c"}}]))
        raw = put(raw, at, new)
    return raw


def outcome(doing, *arguments):
    """What it returns, or the deployer's own error; any other exception fails the test."""
    try:
        return doing(*arguments)
    except DeployerError as error:
        return error


def run(found):
    predictor = found.spec.predictor
    return merge(select(predictor) if predictor.model else None, found, predictor)


def read_as_a_service(raw):
    found = outcome(parse, raw)
    if isinstance(found, SpecError):
        assert found.mistakes
        assert all(one.message for one in found.mistakes)
        assert len(set(found.mistakes)) == len(found.mistakes)
        return
    assert parse(as_object(found)) == found
    for platform in ("local", "kubernetes"):
        notices(found, platform)
    outcome(run, found)


@given(JSON)
def test_any_json_value_is_a_service_or_a_spec_error(raw):
    read_as_a_service(raw)


@settings(max_examples=400)
@given(nearly_right())
def test_a_manifest_with_anything_anywhere_is_a_service_or_a_spec_error(raw):
    read_as_a_service(raw)


@given(JSON)
def test_any_json_value_is_a_runtime_or_a_spec_error(raw):
    own = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "own"}, "spec": raw}
    for one in (raw, own):
        found = outcome(parse_runtime, one)
        assert not isinstance(found, SpecError) or found.mistakes


@given(st.text(max_size=200))
def test_any_text_holds_objects_or_is_a_spec_error(text):
    found = outcome(documents, text, "in.yaml")
    if isinstance(found, SpecError):
        assert all(one.path.startswith("in.yaml:") for one in found.mistakes)
    else:
        assert all(isinstance(one, dict) for one in found)


def test_an_object_that_is_too_deep_or_too_large_is_refused_in_one_line():
    deep = []
    for _ in range(5000):
        deep = [deep]
    wide = {str(n): n for n in range(200_000)}
    for raw in (deep, {"spec": deep}, wide):
        with pytest.raises(SpecError) as error:
            parse(raw)
        assert len(error.value.mistakes) == 1
    assert "nested more than 50 deep" in str(outcome(parse, {"spec": deep}))


def test_the_formats_of_the_built_in_runtimes_are_known():
    assert {one.name for runtime in BUILTIN for one in runtime.spec.supported_model_formats} <= set(FORMATS)
