"""Configuration files of models: what they say, in three forms, and what is told of a mistake."""

from pathlib import Path

import pytest

from server.model_config import ConfigError, ModelSpec, local_path, parsed, read
from server.text_proto import TextProtoError, parse
from server.versions import Policy

FOLDER = Path("/etc/models")
YAML = """
models:
  - name: iris
    path: /models/iris
    versions: specific:1,3
    labels: {stable: 1, canary: "3"}
  - {name: houses, path: houses.skops, runtime: sklearn, required: false}
"""
TEXT = """
# two models
model_config_list {
  config {
    name: "iris", base_path: '/models/iris'
    model_platform: "tensorflow"
    model_version_policy: { specific { versions: 1 versions: 3 } }
    version_labels { key: "stable" value: 1 }
    version_labels { key: "canary" value: 3 }
  }
  config: < name: "house" "s"; base_path: "houses.skops" >
}
"""
IRIS = ModelSpec("iris", Path("/models/iris"), Policy("specific", 0, ("1", "3")), {"stable": "1", "canary": "3"})
HOUSES = ModelSpec("houses", FOLDER / "houses.skops", Policy(), {}, "sklearn", False)


def test_a_yaml_file_names_models_with_their_versions_and_labels():
    assert parsed(YAML, FOLDER / "models.yaml") == (IRIS, HOUSES)


def test_a_json_file_says_the_same():
    text = '{"models": [{"name": "iris", "path": "file:///models/iris", "versions": "specific:1,3", "labels": {"stable": 1, "canary": 3}}]}'
    assert parsed(text, FOLDER / "models.json") == (IRIS,)


def test_tensorflow_servings_own_file_is_read():
    assert parsed(TEXT, FOLDER / "models.config") == (IRIS, ModelSpec("houses", FOLDER / "houses.skops"))


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("all {}", Policy("all")),
        ("all: {}", Policy("all")),
        ("latest { num_versions: 2 }", Policy("latest", 2)),
        ("latest {}", Policy("latest", 1)),
        ("specific { versions: [1, 2] }", Policy("specific", 0, ("1", "2"))),
    ],
)
def test_every_policy_of_tensorflow_serving_is_known(policy, wanted):
    text = f'model_config_list {{ config {{ name: "m" base_path: "/m" model_version_policy {{ {policy} }} }} }}'
    assert parsed(text, FOLDER / "models.config")[0].policy == wanted


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("m.yaml", "models: [", "m.yaml is not YAML"),
        ("m.json", "{", "m.json is not JSON"),
        ("m.yaml", "", "expected `models:` and a list behind it, found nothing"),
        ("m.yaml", "model: []", "expected `models:`"),
        ("m.yaml", "models: 3", "expected `models:`"),
        ("m.yaml", "models: [x]", "models[0]: expected name and path, found 'x'"),
        ("m.yaml", "models: [{name: a}]", "models[0]: path is nothing, expected a text"),
        ("m.yaml", "models: [{path: a}]", "models[0]: name is nothing, expected a text"),
        ("m.yaml", "models: [{name: 7, path: a}]", "models[0]: name is 7, expected a text"),
        ("m.yaml", "models: [{name: a/b, path: a}]", "'a/b' is no model's name"),
        ("m.yaml", "models: [{name: a, path: a, lables: {}}]", "unknown field 'lables'; did you mean 'labels'?"),
        ("m.yaml", "models: [{name: a, path: a, versions: newest}]", "models[0]: 'newest' is no version policy"),
        ("m.yaml", "models: [{name: a, path: a, labels: {1: 1}}]", "models[0]: '1' is no label"),
        ("m.yaml", "models: [{name: a, path: a, labels: [x]}]", "labels is ['x'], expected versions by label"),
        ("m.yaml", "models: [{name: a, path: a, required: maybe}]", "required is 'maybe', expected true or false"),
        ("m.yaml", "models: [{name: a, path: 's3://b/a'}]", "s3://b/a is not on this machine"),
        ("m.yaml", "models: [{name: a, path: a}, {name: a, path: b}]", "model 'a' is given twice"),
        ("m.config", "", "found no config"),
        ("m.config", "model_config_list {", "m.config is not a model_config_list in protobuf's text form: line 1: expected"),
        ("m.config", "model_config_list {\n config { name }\n}", "line 2: expected ':' or '{'"),
        ("m.config", "custom_model_config {}", "unknown field 'custom_model_config'"),
        ("m.config", 'model_config_list { config { name: "a" } }', "config[0]: base_path is nothing"),
        ("m.config", 'model_config_list { config { name: "a" base_path: "/a" tags: 1 } }', "unknown field 'tags'"),
        (
            "m.config",
            'model_config_list { config { name: "a" base_path: "/a" version_labels { key: "x" value: -1 } } }',
            "points to -1",
        ),
        ("m.config", 'model_config_list { config { name: "a" base_path: "/a" version_labels: 3 } }', "version_labels is 3"),
        ("m.config", "model_config_list: 3", "model_config_list is 3, expected { … }"),
    ],
)
def test_a_mistake_is_named_with_its_place(name, text, told):
    with pytest.raises(ConfigError) as raised:
        parsed(text, FOLDER / name)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    "text", ["{" * 100, "a {" * 100, 'a: "', "a: [1", "a: }", "<", "a < }", "\0", "a: :", ": 1", "a: 'x\n'", 'a "x"']
)
def test_what_is_no_text_form_says_the_line(text):
    with pytest.raises(TextProtoError, match="line [12]: expected"):
        parse(text)


def test_the_text_form_keeps_every_value_in_order():
    assert parse("a: 1 a: 2 b { c: 'x\\n' \"y\" } d: true e: [1, {f: 2}] g: -3") == {
        "a": [1, 2],
        "b": [{"c": ["x\ny"]}],
        "d": ["true"],
        "e": [1, {"f": [2]}],
        "g": [-3],
    }


def test_a_file_that_can_not_be_read_is_named(tmp_path):
    for path, told in ((tmp_path / "absent.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"can't read .*{told}"):
            read(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        read(tmp_path / "binary.yaml")


def test_a_place_is_a_path_on_this_machine():
    assert local_path("a", Path("/f")) == Path("/f/a")
    assert local_path("/a", Path("/f")) == Path("/a")
    assert local_path("file:///a", Path("/f")) == Path("/a")
    with pytest.raises(ValueError, match="not on this machine"):
        local_path("gs://b/a", Path())
