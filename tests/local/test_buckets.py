"""Models in a bucket, as a user serves them on one machine: `serve run` and `serve deploy` of s3:// URIs."""

import hashlib
import os

import httpx
import pytest

from tests import buckets
from tests.conftest import EXAMPLES, running
from tests.local.conftest import Platform, until

IRIS = (EXAMPLES / "iris.skops").read_bytes()
ROW = {"instances": [[5.1, 3.5, 1.4, 0.2]]}


@pytest.fixture(scope="module")
def platform(tmp_path_factory, s3_server):
    """A platform whose supervisor has a key for the store."""
    made = Platform(tmp_path_factory.mktemp("p"))
    mine = {name: value for name, value in os.environ.items() if not name.startswith(buckets.VARIABLES)}
    made.environment = {**mine, **s3_server.environ, "SERVEPLANE_HOME": str(made.home)}
    try:
        yield made
    finally:
        made.serve("platform", "down")
        until(lambda: not made.left(), 10)


def test_a_predictor_serves_a_folder_in_a_bucket(s3_server, tmp_path):
    s3_server.put("run", {"iris/iris.skops": IRIS, "iris-2/iris.skops": b"another"})
    with running("s3://run/iris", env={**s3_server.environ, "XDG_CACHE_HOME": str(tmp_path)}) as server:
        answer = httpx.post(f"{server.http}/v1/models/{server.name}:predict", json=ROW)
        assert (answer.status_code, answer.json()) == (200, {"predictions": [0]})
        assert "canary-of-a-secret" not in server.stderr


def test_a_service_is_deployed_from_a_bucket_and_takes_up_what_is_new_there(platform, s3_server):
    s3_server.put("deploy", {"iris.skops": IRIS})
    made = platform.object("deploy", "s3://deploy/iris.skops", "--timeout", "60")
    assert made["metadata"]["name"] == "iris"
    answer = httpx.post(f"{made['status']['url']}/v1/models/iris:predict", json=ROW, timeout=30)
    assert answer.json() == {"predictions": [0]}
    # nothing is fetched twice
    first = made["status"]["components"]["predictor"]["latestReadyRevision"]
    again = platform.object("deploy", "s3://deploy/iris.skops", "--timeout", "60")
    assert again["status"]["components"]["predictor"]["latestReadyRevision"] == first


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://deploy/gone.skops", "no object has that key, or lies below it; check its spelling"),
        ("s3://no-such-bucket/iris.skops", "there is no bucket 'no-such-bucket'"),
        ("hf://owner/iris.skops", "hf://owner/iris.skops: fetching from the Hugging Face hub is not built"),
    ],
)
def test_why_a_model_can_not_be_had_is_in_the_status(platform, s3_server, uri, says):
    s3_server.put("deploy", {})
    platform.serve("deploy", uri, "--name", "lost", "--timeout", "8", code=1)
    told = platform.object("get", "lost")["status"]["conditions"]
    assert any(says in one.get("message", "") for one in told), told
    platform.serve("delete", "lost")


def test_a_checksum_is_asked_for_by_a_flag_and_kept_as_an_annotation(platform, s3_server):
    s3_server.put("pinned", {"iris.skops": IRIS})
    right, wrong = hashlib.sha256(IRIS).hexdigest(), "0" * 64
    made = platform.object("deploy", "s3://pinned/iris.skops", "--name", "pinned", "--sha256", right, "--timeout", "60")
    assert made["metadata"]["annotations"] == {"serving.serveplane.dev/sha256": right}
    assert made["spec"]["predictor"]["model"]["storageUri"] == "s3://pinned/iris.skops"
    refused = platform.serve("deploy", "s3://pinned/iris.skops", "--name", "pinned", "--sha256", wrong, "--timeout", "8", code=1)
    assert f"{wrong} was wanted" in " ".join((refused.stdout + refused.stderr).split())
    # what served before still does
    assert httpx.post(f"{made['status']['url']}/v1/models/pinned:predict", json=ROW, timeout=30).json() == {"predictions": [0]}
    platform.serve("deploy", "s3://pinned/iris.skops", "--name", "pinned", "--sha256", "12", code=2)


@pytest.mark.parametrize(
    ("sha256", "code", "says"),
    [
        (hashlib.sha256(IRIS).hexdigest(), 0, '"name": "iris"'),
        ("0" * 64, 1, f"and {'0' * 64} was wanted"),
        ("12", 2, "wanted 64 hex digits, as sha256sum prints them, got '12'"),
    ],
)
def test_check_asks_for_a_checksum_too(platform, sha256, code, says):
    done = platform.serve("check", EXAMPLES / "iris.skops", "--sha256", sha256, "-o", "json", code=code)
    assert says in " ".join((done.stdout + done.stderr).split())
