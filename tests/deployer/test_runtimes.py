"""Runtimes: reading them, which one serves a model, and what of the two together runs."""

from pathlib import Path

import pytest

from deployer.errors import NoRuntime, SpecError
from deployer.runtimes import API_VERSION, BUILTIN, check_conflicts, choose, formats_of, merge, parse_runtime, select, with_tag
from deployer.spec import documents, parse

MANIFESTS = Path(__file__).parents[2] / "examples" / "manifests"


def runtime(name, *formats, protocols=("v1", "v2"), created="", kind="ServingRuntime", metadata=None, containers=None, **spec):
    server = {"name": "kserve-container", "image": f"example.com/{name}:1"}
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "creationTimestamp": created, **(metadata or {})},
        "spec": {
            "supportedModelFormats": [one if isinstance(one, dict) else {"name": one, "autoSelect": True} for one in formats],
            "protocolVersions": list(protocols),
            "containers": containers or [server],
            **spec,
        },
    }


def auto(name, priority=None, version=None):
    given = {"name": name, "autoSelect": True, "priority": priority, "version": version}
    return {key: value for key, value in given.items() if value is not None}


def read(*raw):
    return [parse_runtime(one) for one in raw]


def service(predictor=None, **metadata):
    return parse(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "iris", "namespace": "team", **metadata},
            "spec": {"predictor": predictor or {"model": model()}},
        }
    )


def model(name="sklearn", version=None, **fields):
    model_format = {"name": name} if version is None else {"name": name, "version": version}
    return {"modelFormat": model_format, "storageUri": "/models/folder", **fields}


def predictor(name="sklearn", version=None, **fields):
    return service({"model": model(name, version, **fields)}).spec.predictor


# reading


def test_the_example_runtime_serves_what_nothing_built_in_does():
    (own,) = [parse_runtime(one) for one in documents((MANIFESTS / "serving-runtime.yaml").read_text(), "x")]
    assert select(predictor("xgboost", "2"), [own]) is own


def test_our_runtimes_have_the_names_that_kserves_manifests_use():
    assert [one.name for one in BUILTIN] == [
        "kserve-sklearnserver",
        "kserve-onnxserver",
        "kserve-tensorflow-serving",
        "serveplane-python",
        "kserve-mlserver",
    ]
    for one in BUILTIN:
        (container,) = one.spec.containers
        assert container["args"] == ["--model_name={{.Name}}", "--model_dir=/mnt/models", "--http_port=8080"]
        assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
        assert {"v1", "v2", "grpc-v2"} <= set(one.spec.protocol_versions)


@pytest.mark.parametrize(
    ("raw", "path", "words"),
    [
        ({}, "apiVersion", "missing; wanted serving.kserve.io/v1alpha1"),
        ({**runtime("a", "x"), "kind": "ServingRuntim"}, "kind", "did you mean 'ServingRuntime'?"),
        (runtime("A b", "x"), "metadata.name", "wanted small letters"),
        (runtime("a", "x", containers=[{"name": "other"}]), "spec.containers", "wanted one called kserve-container"),
        (runtime("a", {"autoSelect": True}), "spec.supportedModelFormats[0].name", "missing"),
        (runtime("a", auto("x", 0)), "spec.supportedModelFormats[0].priority", "1 or more"),
        (runtime("a", auto("x", 1, "1"), auto("x", 2, "2")), "spec.supportedModelFormats[1].priority", "one priority for a format"),
        (runtime("a", "x", protocols=["v9"]), "spec.protocolVersions[0]", "wanted v1, v2, grpc-v1 or grpc-v2"),
        (runtime("a", "x", suportedModelFormats=[]), "spec.suportedModelFormats", "did you mean 'supportedModelFormats'?"),
        (runtime("a", "x", containers=[{"name": "kserve-container", "env": [{"name": "PYTHONPATH"}]}]), "spec.containers[0].env[0].name", "PYTHONPATH"),
        (runtime("a", "x", containers=[{"name": "kserve-container", "args": ["{{.Spec}}"]}]), "spec.containers[0].args[0]", "'{{.Spec}}' is not known"),
        (runtime("a", "x", containers=[{"name": "kserve-container", "args": ["{{range .Labels}}"]}]), "spec.containers[0].args[0]", "is not known"),
        (runtime("a", "x", volumes=[{}]), "spec.volumes[0].name", "missing"),
    ],
)  # fmt: skip
def test_a_runtime_that_is_wrong_is_told_where(raw, path, words):
    with pytest.raises(SpecError) as error:
        parse_runtime(raw)
    found = {one.path: one.message for one in error.value.mistakes}
    assert path in found, found
    assert words in found[path]


@pytest.mark.parametrize(
    ("other", "conflict"),
    [
        (runtime("b", auto("x", 2)), True),
        (runtime("b", auto("x", 2, "3")), True),
        (runtime("b", auto("x", 3)), False),
        (runtime("b", auto("y", 2)), False),
        (runtime("b", {"name": "x", "priority": 2}), False),
        (runtime("b", auto("x", 2), disabled=True), False),
        (runtime("b", auto("x", 2), protocols=["grpc-v2"]), False),
        (runtime("b", auto("x", 2), protocols=[]), True),
        (runtime("b", auto("x", 2), kind="ClusterServingRuntime"), False),
        (runtime("b", auto("x", 2), metadata={"namespace": "elsewhere"}), False),
        (runtime("a", auto("x", 2)), False),
    ],
)
def test_two_runtimes_that_are_as_good_as_each_other_are_refused(other, conflict):
    (mine,) = read(runtime("a", auto("x", 2, "1"), auto("x", 2, "2")))
    if conflict:
        with pytest.raises(SpecError, match="give this one another priority"):
            check_conflicts(mine, read(other))
    else:
        check_conflicts(mine, read(other))


def test_the_formats_of_runtimes_may_be_named_in_manifests():
    known = formats_of(read(runtime("a", "own")))
    assert {"own", "sklearn", "xgboost"} <= set(known)


# selection


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (predictor("sklearn"), "kserve-sklearnserver"),
        (predictor("sklearn", "1"), "kserve-sklearnserver"),
        (predictor("sklearn", protocolVersion="v2"), "kserve-sklearnserver"),
        (predictor("sklearn", protocolVersion="grpc-v2"), "kserve-sklearnserver"),
        (predictor("sklearn", runtime="kserve-mlserver"), "kserve-mlserver"),
        (predictor("onnx"), "kserve-onnxserver"),
        (predictor("onnx", protocolVersion="v1"), "kserve-onnxserver"),
        (predictor("tensorflow", "2"), "kserve-tensorflow-serving"),
        (predictor("tensorflow", protocolVersion="grpc-v1"), "kserve-tensorflow-serving"),
        (predictor("python"), "serveplane-python"),
    ],
)
def test_a_model_gets_the_runtime_of_its_format(wanted, expected):
    assert select(wanted).name == expected


ORDER = [
    # (what decides, namespace's runtimes, cluster's runtimes, who serves)
    ("the namespace before the cluster, whatever the priorities", [runtime("a", auto("x", 1))], [runtime("b", auto("x", 9))], "a"),
    ("the larger priority", [runtime("a", auto("x", 1)), runtime("b", auto("x", 2))], [], "b"),
    ("any priority before none", [runtime("a", "x"), runtime("b", auto("x", 1))], [], "b"),
    ("a protocol by name before any", [runtime("a", "x", protocols=[]), runtime("b", "x", protocols=["v1"])], [], "b"),
    ("the newest", [runtime("a", "x", created="2026-01-01T00:00:00Z"), runtime("b", "x", created="2026-02-01T00:00:00Z")], [], "b"),
    ("the name", [runtime("b", "x"), runtime("a", "x")], [], "a"),
    ("a priority before age", [runtime("a", auto("x", 2), created="2026-01-01T00:00:00Z"), runtime("b", auto("x", 1), created="2026-02-01T00:00:00Z")], [], "a"),
    ("who is not disabled", [runtime("a", "x", disabled=True)], [runtime("b", "x")], "b"),
    ("who serves one model", [runtime("a", "x", multiModel=True)], [runtime("b", "x")], "b"),
    ("who may be chosen", [runtime("a", {"name": "x"})], [runtime("b", "x")], "b"),
    ("who runs on one machine", [runtime("a", "x", workerSpec={})], [runtime("b", "x")], "b"),
]  # fmt: skip


@pytest.mark.parametrize(("mine", "cluster", "expected"), [row[1:] for row in ORDER], ids=[row[0] for row in ORDER])
def test_among_several_runtimes_this_decides(mine, cluster, expected):
    assert select(parse_with("x"), read(*mine), read(*cluster)).name == expected


def parse_with(name, version=None, **fields):
    raw = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris"},
        "spec": {"predictor": {"model": model(name, version, **fields)}},
    }
    return parse(raw, formats=("x",)).spec.predictor


def test_a_runtime_that_speaks_a_simpler_protocol_too_comes_first():
    runtimes = read(runtime("a", "x", protocols=["grpc-v2", "v2"]), runtime("b", "x", protocols=["v2", "v1"]))
    assert select(parse_with("x", protocolVersion="v2"), runtimes, []).name == "b"


@pytest.mark.parametrize(
    ("formats", "version", "fits"),
    [
        (["x"], None, True),
        ([auto("x", version="1")], None, True),
        ([auto("x", version="1")], "1", True),
        ([auto("x", version="1")], "2", False),
        (["x"], "1", False),
        ([auto("x", version="1"), {"name": "x", "version": "2"}], "2", False),
        ([auto("x", version="1"), auto("x", version="2")], "2", True),
    ],
)
def test_a_version_has_to_be_one_that_may_be_chosen(formats, version, fits):
    (only,) = read(runtime("a", *formats))
    if fits:
        assert select(parse_with("x", version), [only], []) is only
    else:
        with pytest.raises(NoRuntime):
            select(parse_with("x", version), [only], [])


NAMED = [
    ("serves though it may not be chosen", runtime("own", {"name": "x"}), None, ""),
    ("is not there", runtime("owl", "x"), "RuntimeNotRecognized", "there is no runtime 'own'; did you mean 'owl'?"),
    ("is disabled", runtime("own", "x", disabled=True), "RuntimeDisabled", "the runtime 'own' is disabled"),
    ("serves something else", runtime("own", "y"), "NoSupportingRuntime", "it serves y only"),
    ("speaks something else", runtime("own", "x", protocols=["grpc-v1"]), "NoSupportingRuntime", "it speaks grpc-v1, not v1"),
    ("is for many models", runtime("own", "x", multiModel=True), "NoSupportingRuntime", "multiModel"),
]


@pytest.mark.parametrize(("raw", "reason", "words"), [row[1:] for row in NAMED], ids=[row[0] for row in NAMED])
def test_a_runtime_that_is_named_serves_or_says_why_not(raw, reason, words):
    wanted = parse_with("x", runtime="own")
    if reason is None:
        assert select(wanted, read(raw)).name == "own"
    else:
        with pytest.raises(NoRuntime) as error:
            select(wanted, read(raw), [])
        assert error.value.reason == reason
        assert words in str(error.value)


def test_a_namespaces_runtime_hides_the_clusters_of_the_same_name():
    mine, theirs = read(runtime("own", "x"), runtime("own", "x", kind="ClusterServingRuntime"))
    assert select(parse_with("x", runtime="own"), [mine], [theirs]) is mine


def test_what_a_cluster_has_under_our_names_takes_the_place_of_ours():
    """A chart installs ours, and each of them is there once."""
    with pytest.raises(NoRuntime) as error:
        choose(predictor(runtime="nosuch"), BUILTIN)
    assert str(error.value).count("kserve-mlserver") == 1
    with pytest.raises(NoRuntime) as error:
        choose(predictor("xgboost"), BUILTIN)
    assert str(error.value).count("kserve-mlserver") == 1
    (mine,) = read(runtime("kserve-sklearnserver", auto("sklearn"), kind="ClusterServingRuntime", disabled=True))
    with pytest.raises(NoRuntime, match="kserve-sklearnserver is disabled"):
        choose(predictor(), [mine])


def test_where_nothing_fits_each_runtime_says_why():
    with pytest.raises(NoRuntime) as error:
        select(predictor("xgboost", "2"), read(runtime("own", auto("xgboost", version="1"))))
    assert error.value.reason == "NoSupportingRuntime"
    text = str(error.value)
    assert "no runtime serves xgboost 2 over v1" in text
    assert "own serves xgboost 1, not 2" in text
    assert "kserve-sklearnserver serves sklearn only" in text
    with pytest.raises(NoRuntime, match="there are no runtimes"):
        select(predictor(), [], [])
    with pytest.raises(NoRuntime, match="kserve-mlserver has to be named in model.runtime"):
        select(predictor(protocolVersion="grpc-v1"))


# merging

SERVER = {
    "name": "kserve-container",
    "image": "registry:5000/own:1",
    "command": ["run"],
    "args": ["--model_name={{.Name}}", "--ns={{ .Namespace }}"],
    "env": [{"name": "A", "value": "{{.Labels.tier}}"}, {"name": "B", "value": "2"}],
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
    "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    "securityContext": {"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}},
}
OWN = runtime(
    "own",
    "x",
    containers=[SERVER, {"name": "side", "image": "side:1"}],
    nodeSelector={"disk": "ssd"},
    tolerations=[{"key": "a"}],
    volumes=[{"name": "shm", "emptyDir": {"medium": "Memory"}}, {"name": "other", "emptyDir": {}}],
    imagePullSecrets=[{"name": "one"}],
)


def merged(fields=None, raw=OWN, **predictor_fields):
    found = service({"model": model(**(fields or {})), **predictor_fields}, labels={"tier": "gold", "a.b/c": "long"})
    return merge(parse_runtime(raw), found, found.spec.predictor)


def env(container):
    return {one["name"]: one.get("value") for one in container["env"]}


def test_a_model_that_says_nothing_gets_the_runtimes_container():
    found = merged()
    assert found.container["args"] == ["--model_name=iris", "--ns=team"]
    assert env(found.container) == {"A": "gold", "B": "2", "INFERENCE_SERVICE_NAME": "iris"}
    assert found.container["image"] == SERVER["image"]
    assert [one["name"] for one in found.containers] == ["side"]
    assert env(found.containers[0]) == {"INFERENCE_SERVICE_NAME": "iris"}
    assert found.pod["nodeSelector"] == {"disk": "ssd"}


def test_arguments_are_added_and_a_command_is_replaced():
    found = merged({"args": ["--more", "{{.Name}}", "{{ messages }}"], "command": ["other"]}).container
    assert found["args"] == ["--model_name=iris", "--ns=team", "--more", "iris", "{{ messages }}"]
    assert found["command"] == ["other"]


def test_variables_merge_by_name_and_a_value_takes_the_place_of_another():
    found = merged({"env": [{"name": "B", "valueFrom": {"secretKeyRef": {}}}, {"name": "C", "value": "3"}]}).container
    assert found["env"][1] == {"name": "B", "valueFrom": {"secretKeyRef": {}}}
    assert list(env(found)) == ["A", "B", "C", "INFERENCE_SERVICE_NAME"]


@pytest.mark.parametrize(
    ("own", "requests", "limits"),
    [
        ({}, {"cpu": "1", "memory": "1Gi"}, {"cpu": "1", "memory": "2Gi"}),
        ({"limits": {"nvidia.com/gpu": 1}}, {"cpu": "1", "memory": "1Gi"}, {"cpu": "1", "memory": "2Gi", "nvidia.com/gpu": 1}),
        ({"limits": {"cpu": "500m"}}, {"cpu": "500m", "memory": "1Gi"}, {"cpu": "500m", "memory": "2Gi"}),
        ({"requests": {"memory": "4Gi"}}, {"cpu": "1", "memory": "4Gi"}, {"cpu": "1", "memory": "4Gi"}),
    ],
)
def test_resources_merge_and_the_runtimes_give_way_where_a_request_would_pass_its_limit(own, requests, limits):
    found = merged({"resources": own} if own else {}).container["resources"]
    assert (found["requests"], found["limits"]) == (requests, limits)


def test_lists_of_things_with_names_merge_and_other_lists_are_replaced():
    found = merged(
        {"volumeMounts": [{"name": "shm", "mountPath": "/dev/shm", "readOnly": True}, {"name": "x", "mountPath": "/x"}]},
        volumes=[{"name": "shm", "hostPath": {"path": "/dev/shm"}}],
        tolerations=[{"key": "b"}],
        imagePullSecrets=[{"name": "two"}],
        nodeSelector={"gpu": "a100"},
        containers=[{"name": "side", "args": ["--x"]}, {"name": "mine", "image": "mine:1"}],
    )
    assert found.container["volumeMounts"] == [
        {"name": "shm", "mountPath": "/dev/shm", "readOnly": True},
        {"name": "x", "mountPath": "/x"},
    ]
    # a volume with two sources would be none
    assert found.pod["volumes"] == [{"name": "shm", "hostPath": {"path": "/dev/shm"}}, {"name": "other", "emptyDir": {}}]
    assert found.pod["tolerations"] == [{"key": "b"}]
    assert found.pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    assert found.pod["nodeSelector"] == {"disk": "ssd", "gpu": "a100"}
    assert [(one["name"], one["image"]) for one in found.containers] == [("side", "side:1"), ("mine", "mine:1")]


def test_objects_merge_field_by_field():
    found = merged({"securityContext": {"runAsUser": 5}}).container
    assert found["securityContext"] == {"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}, "runAsUser": 5}


@pytest.mark.parametrize(
    ("image", "tag", "expected"),
    [
        ("own", "2", "own:2"),
        ("own:1", "2", "own:2"),
        ("registry:5000/own", "2", "registry:5000/own:2"),
        ("registry:5000/a/own:1", "2-gpu", "registry:5000/a/own:2-gpu"),
        ("own:1@sha256:abc", "2", "own:1@sha256:abc"),
        ("own@sha256:abc", "2", "own@sha256:abc"),
        ("", "2", ""),
    ],
)
def test_a_version_takes_the_place_of_a_tag(image, tag, expected):
    assert with_tag(image, tag) == expected


def test_a_runtimes_version_changes_its_image_but_not_one_that_the_model_names():
    assert merged({"runtimeVersion": "9"}).container["image"] == "registry:5000/own:9"
    assert merged({"runtimeVersion": "9", "image": "mine:1"}).container["image"] == "mine:1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{.Name}}-{{.Namespace}}", "iris-team"),
        ("{{ .Labels.tier }}", "gold"),
        ('{{index .Labels "a.b/c"}}', "long"),
        ("{{index .Annotations `note`}}", "{{.Name}}"),
        ("{{-.Name-}}", "iris"),
        ("{.Name}", "{.Name}"),
    ],
)
def test_a_placeholder_is_looked_up_once_and_never_run(text, expected):
    found = service(labels={"tier": "gold", "a.b/c": "long"}, annotations={"note": "{{.Name}}"})
    raw = runtime("a", "sklearn", containers=[{"name": "kserve-container", "args": [text]}])
    assert merge(parse_runtime(raw), found, found.spec.predictor).container["args"] == [expected]


def test_a_placeholder_for_what_the_service_does_not_have_is_a_mistake():
    found = service()
    with pytest.raises(SpecError, match=r"'own' spec.containers: \{\{.Labels.tier\}\} asks for 'tier', .* metadata.labels"):
        merge(parse_runtime(OWN), found, found.spec.predictor)


def test_a_batch_size_becomes_a_flag_of_our_own_server_before_the_users_flags():
    found = service({"model": model(args=["--threads=1"]), "batcher": {"maxBatchSize": 8}})
    args = merge(select(found.spec.predictor), found, found.spec.predictor).container["args"]
    assert args[-2:] == ["--max_batch_size=8", "--threads=1"]
    assert merged(batcher={"maxBatchSize": 8}).container["args"][-1] == "--ns=team"


def test_a_server_of_ones_own_gets_resources_and_its_sidecars_do_not():
    found = service({"containers": [{"image": "mine"}, {"name": "side", "image": "side"}], "nodeSelector": {"a": "b"}})
    merged_ = merge(None, found, found.spec.predictor)
    assert merged_.container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
    assert env(merged_.container) == {"INFERENCE_SERVICE_NAME": "iris"}
    assert "resources" not in merged_.containers[0]
    assert merged_.pod == {"nodeSelector": {"a": "b"}}


def test_merging_changes_neither_the_runtime_nor_the_service():
    own, found = (
        parse_runtime(OWN),
        service({"model": model(args=["--x"], env=[{"name": "B", "value": "3"}])}, labels={"tier": "a"}),
    )
    before = own.model_dump_json(), found.model_dump_json()
    merge(own, found, found.spec.predictor)
    assert (own.model_dump_json(), found.model_dump_json()) == before
