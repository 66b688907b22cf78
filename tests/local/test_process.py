"""What is run for a revision, from its template: words in, argv list and environment out."""

import sys

import pytest

from deployer.local.process import command, environment, refuses

TEMPLATE = {
    "runtime": "kserve-sklearnserver",
    "format": "sklearn",
    "uri": "/models/iris.skops",
    "digest": "sha256:1",
    "trustCode": True,
    "timeout": 60.0,
    "container": {
        "image": "serveplane/sklearn:0.1.0",
        "args": ["--model_name=iris", "--model_dir=/mnt/models", "--http_port=8080"],
    },
}


def template(**container):
    return TEMPLATE | {"container": TEMPLATE["container"] | container}


def argv(**container):
    return command(template(**container), "iris", "/cache/1/iris.skops", 20001, 20002)


def test_a_predictor_is_our_server_with_this_machine_s_ports_and_the_cache_s_copy():
    words = argv()
    assert words[:4] == [sys.executable, "-P", "-m", "server"]
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    wanted = {"--model_name": "iris", "--model_dir": "/cache/1/iris.skops", "--http_port": "20001", "--grpc_port": "20002"}
    assert flags | wanted == flags
    assert flags["--trust_pickle"] == "true"
    assert "/mnt/models" not in words


@pytest.mark.parametrize(
    ("args", "kept"),
    [
        (["--max_batch_size=8"], ["--max_batch_size=8"]),
        (["--max_batch_size", "8"], ["--max_batch_size", "8"]),
        (["--http_port", "9000", "--workers=2"], ["--workers=2"]),
        (["--http-port=9000", "--model-dir", "/x"], []),
        (["--model_name=; rm -rf /"], []),
        (["--runtime_option", "a=$(reboot)"], ["--runtime_option", "a=$(reboot)"]),
    ],
)
def test_flags_a_user_adds_are_kept_save_those_that_the_platform_decides(args, kept):
    words = argv(args=[*TEMPLATE["container"]["args"], *args])
    assert words[-len(kept) :] == kept if kept else "--http_port=9000" not in words
    assert words.count("--http_port") == 1
    assert "9000" not in words


def test_the_environment_has_what_finds_libraries_and_what_the_spec_gives_and_no_secret_of_mine():
    mine = {"PATH": "/bin", "HOME": "/h", "AWS_SECRET_ACCESS_KEY": "x", "SERVER_HOST": "0.0.0.0", "PYTHONPATH": "/evil"}
    given = template(env=[{"name": "A", "value": 1}, {"name": "B", "valueFrom": {"secretKeyRef": {}}}])
    assert environment(given, mine) == {"PATH": "/bin", "HOME": "/h", "A": "1"}


@pytest.mark.parametrize(
    ("container", "word"),
    [
        ({"image": "serveplane/onnx:0.1.0"}, ""),
        ({"image": "example.com/server:1"}, "example.com/server:1"),
        ({"image": "serveplane/onnx:0.1.0", "command": ["bash", "-c", "x"]}, "bash"),
        ({}, "''"),
    ],
)
def test_only_our_own_servers_can_be_run_without_containers(container, word):
    told = refuses(container)
    assert (word in told) if word else not told
