"""The supervisor's API by itself: whatever is sent, the answer says what to do about it."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployer.errors import DeployerError
from deployer.local import api, state
from deployer.local.client import LocalClient, _Connection
from tests.local.test_control import Platform, service

PATH = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices/iris"


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    made = Platform(tmp_path_factory.mktemp("api"))
    server = api.serve(made.home.socket, SimpleNamespace(platform=made.it, described=lambda: {"pid": 1}))
    yield made
    server.shutdown()
    server.server_close()


def send(platform, body, path=PATH, verb="PUT", **headers):
    connection = _Connection(str(platform.home.socket), 10.0)
    try:
        connection.request(verb, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff{}", b"[" * 100_000, b"{}" * 2, b"\x00", b"9" * 5000, b'{"metadata": {"generation": NaN}}'],
    ids=["nothing", "half", "no text", "deep", "two", "null byte", "huge number", "no number"],
)
@pytest.mark.parametrize("path", [PATH, "/runtimes/default"])
def test_what_is_no_json_is_told_so(platform, body, path):
    code, told = send(platform, body, path)
    assert (code, told["reason"]) == (422, "SpecError")
    assert told["mistakes"]


@pytest.mark.parametrize("length", ["x", "-5", "1.5", "٣"])
def test_a_length_that_is_none_is_told_so(platform, length):
    connection = _Connection(str(platform.home.socket), 5.0)
    connection.connect()
    connection.sock.sendall(f"PUT {PATH} HTTP/1.1\r\ncontent-length: {length}\r\n\r\n".encode())
    assert b" 400 " in connection.sock.recv(1000)
    connection.close()


JSON = st.recursive(
    # whole numbers that may be replicas: a thousand of them are another matter than whether they are understood
    st.none() | st.booleans() | st.integers(-100, 100) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    (), ("metadata",), ("metadata", "name"), ("metadata", "namespace"), ("metadata", "annotations"), ("metadata", "labels"),
    ("spec",), ("kind",), ("spec", "predictor"), ("spec", "predictor", "model"), ("spec", "predictor", "minReplicas"),
    ("spec", "predictor", "model", "storageUri"), ("spec", "predictor", "model", "env"), ("spec", "predictor", "model", "args"),
    ("spec", "canary"), ("status",), ("spec", "containers"), ("spec", "supportedModelFormats"), ("spec", "nonsense"),
]  # fmt: skip


def put_in(document, place, value):
    if not place:
        return value
    return {**document, place[0]: put_in(document.get(place[0], {}), place[1:], value)}


RUNTIME = {
    "apiVersion": "serving.kserve.io/v1alpha1",
    "kind": "ServingRuntime",
    "metadata": {"name": "own", "namespace": "default"},
    "spec": {
        "supportedModelFormats": [{"name": "own"}],
        "containers": [{"name": "kserve-container", "image": "serveplane/sklearn:0.1.0"}],
    },
}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.sampled_from(PLACES), JSON, st.sampled_from([PATH, "/runtimes/default"]))
def test_json_of_any_shape_is_answered_and_what_is_taken_can_be_planned(platform, place, value, path):
    kind = service() if path == PATH else RUNTIME
    code, told = send(platform, json.dumps(put_in(kind, place, value)), path)
    assert code in (200, 409, 422), told
    if path == PATH and code == 200:
        assert send(platform, None, verb="GET")[0] == 200
        platform.fetched()
        platform.reconcile()


@pytest.mark.parametrize("path", [PATH.replace("/iris", "/other"), PATH.replace("/default/", "/other/")])
def test_an_object_is_not_put_where_another_is(platform, path):
    code, told = send(platform, json.dumps(service()), path)
    assert code == 422
    assert told["mistakes"][0]["path"].startswith("metadata.name")


@pytest.mark.parametrize("verb", ["PUT", "DELETE", "POST"])
@pytest.mark.parametrize("path", ["/platform", PATH.removesuffix("/iris"), PATH + "/revisions", "/", "/runtimes/default/x"])
def test_there_is_nothing_to_do_where_nothing_can_be_done(platform, verb, path):
    code, _ = send(platform, json.dumps(service()), path, verb)
    assert code == 404
    assert code == send(platform, None, PATH, "POST")[0]


def test_an_object_that_is_too_large_is_told_so_to_who_sends_it(platform):
    client = LocalClient(state.Home(platform.home.root))
    big = service()
    big["metadata"]["annotations"] = {"a": "x" * (5 << 20)}
    with pytest.raises(DeployerError, match="at most 4194304 are taken"):
        client.apply(big)
