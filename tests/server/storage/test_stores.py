"""Which store is asked, by whom, and for which objects: tables, without a network."""

import base64
import itertools
import json

import pytest

from server.errors import FetchFailed
from server.storage.objects import PART, Listed, parts, plan
from server.storage.stores import is_azure, locate, named, profile

KEY = {"AWS_ACCESS_KEY_ID": "AKIAtest", "AWS_SECRET_ACCESS_KEY": "s"}
NOBODY = {"skip_signature": True}
SIGNED = {"skip_signature": False}
BY_KEY = SIGNED | {"access_key_id": "AKIAtest", "secret_access_key": "s"}


@pytest.mark.parametrize(
    ("uri", "key", "is_folder"),
    [
        ("s3://b/models/iris", "models/iris", False),
        ("s3://b/models/iris/", "models/iris", True),
        ("s3://b/m+a%20b?c#d", "m+a%20b?c#d", False),
        ("S3://b", "", True),
        ("s3://b/", "", True),
        ("gs://b.c_d-e/m", "m", False),
    ],
)
def test_a_uri_names_a_bucket_and_a_key(uri, key, is_folder):
    store = locate(uri, {})
    assert (store.key, store.is_folder) == (key, is_folder)


@pytest.mark.parametrize("uri", ["s3://", "s3:///m", "s3://a b/m", "s3://h:80/m", "s3://h?x/m", "gs://-/m", "s3://[::1]/m"])
def test_what_is_no_bucket_is_refused(uri):
    with pytest.raises(FetchFailed, match="names no bucket; write"):
        locate(uri, {})


AWS = "https://b.s3.us-east-1.amazonaws.com"
MINIO = "http://minio:9000"


@pytest.mark.parametrize(
    ("uri", "environ", "endpoint", "virtual"),
    [
        ("s3://b/m", {}, AWS, True),
        ("s3://a.b/m", {}, "https://s3.us-east-1.amazonaws.com", False),
        ("s3://b/m", {"AWS_DEFAULT_REGION": "eu-west-1"}, "https://b.s3.eu-west-1.amazonaws.com", True),
        ("s3://b/m", {"AWS_REGION": "cn-north-1", "AWS_DEFAULT_REGION": "x"}, "https://b.s3.cn-north-1.amazonaws.com.cn", True),
        ("s3://b/m", {"S3_USER_VIRTUAL_BUCKET": "false"}, "https://s3.us-east-1.amazonaws.com", False),
        ("s3://b/m", {"S3_USE_ACCELERATE": "true"}, "https://b.s3-accelerate.amazonaws.com", True),
        ("s3://b/m", {"AWS_ENDPOINT_URL": f"{MINIO}/"}, MINIO, False),
        ("s3://b/m", {"AWS_ENDPOINT_URL": MINIO, "AWS_ENDPOINT_URL_S3": "http://other"}, "http://other", False),
        ("s3://b/m", {"AWS_ENDPOINT_URL": MINIO, "S3_USER_VIRTUAL_BUCKET": "True"}, "http://b.minio:9000", True),
        ("s3://b/m", {"AWS_ENDPOINT_URL": MINIO, "S3_USE_ACCELERATE": "1"}, MINIO, False),
        ("s3://b/m", {"S3_ENDPOINT": "minio:9000"}, "https://minio:9000", False),
        ("s3://b/m", {"S3_ENDPOINT": "minio:9000", "S3_USE_HTTPS": "0"}, MINIO, False),
        ("s3://b/m", {"S3_ENDPOINT": "minio:9000", "S3_USE_HTTPS": "false"}, MINIO, False),
    ],
)
def test_where_s3_is_asked(uri, environ, endpoint, virtual):
    store = locate(uri, environ)
    assert (store.endpoint, store.config["endpoint"]) == (endpoint, endpoint)
    assert store.config["virtual_hosted_style_request"] is virtual


METADATA = "http://169.254.169.254"
ROLE = {"AWS_ROLE_ARN": "arn:r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}


@pytest.mark.parametrize(
    ("environ", "config", "identity", "asked"),
    [
        ({}, NOBODY, "without credentials", ()),
        (KEY, BY_KEY, "with the access key AKIA…", ()),
        (KEY | {"AWS_SESSION_TOKEN": "t"}, BY_KEY | {"session_token": "t"}, "with the access key AKIA…", ()),
        (KEY | {"awsAnonymousCredential": "True"}, NOBODY, "without credentials", ()),
        (KEY | {"awsAnonymousCredential": "false"}, BY_KEY, "with the access key AKIA…", ()),
        (ROLE, SIGNED | {"role_arn": "arn:r", "web_identity_token_file": "/t"}, "as arn:r", ()),
        (KEY | ROLE, BY_KEY, "with the access key AKIA…", ()),
        ({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/c"}, SIGNED | {"container_credentials_relative_uri": "/c"}, "with the container's credentials", ("http://169.254.170.2",)),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://h/c"}, SIGNED | {"container_credentials_full_uri": "http://h/c"}, "with the container's credentials", ("http://h/c",)),
        # a machine's role is for those who say so
        ({"AWS_EC2_METADATA_DISABLED": "false"}, SIGNED, "with the machine's role", (METADATA,)),
        ({"AWS_EC2_METADATA_DISABLED": "true"}, NOBODY, "without credentials", ()),
    ],
)  # fmt: skip
def test_who_asks_s3(environ, config, identity, asked):
    store = locate("s3://b/m", environ)
    rest = {k: v for k, v in store.config.items() if k not in ("endpoint", "region", "virtual_hosted_style_request")}
    assert (rest, store.identity, store.credentials) == (config, identity, asked)


@pytest.mark.parametrize(
    ("environ", "config", "identity"),
    [
        ({}, NOBODY, "without credentials"),
        ({"GOOGLE_APPLICATION_CREDENTIALS": "/k.json"}, SIGNED | {"application_credentials": "/k.json"}, "with the credentials in /k.json"),
        ({"GOOGLE_SERVICE_ACCOUNT_KEY": "{}"}, SIGNED | {"service_account_key": "{}"}, "with a service account's key"),
        ({"NO_GCE_CHECK": "False"}, SIGNED, "with the machine's service account"),
        ({"STORAGE_EMULATOR_HOST": "localhost:9023"}, NOBODY | {"base_url": "http://localhost:9023"}, "without credentials"),
    ],
)  # fmt: skip
def test_who_asks_google(environ, config, identity):
    store = locate("gs://b/m", environ)
    assert (store.config, store.identity) == ({"base_url": "https://storage.googleapis.com"} | config, identity)


ACCOUNT = {"AZURE_STORAGE_ACCOUNT_NAME": "a"}
CLIENT = {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t"}


@pytest.mark.parametrize(
    ("environ", "config", "identity"),
    [
        ({}, NOBODY, "without credentials"),
        ({"AZURE_STORAGE_ACCESS_KEY": "k"}, SIGNED | {"account_key": "k"}, "with the account's key"),
        ({"AZURE_STORAGE_ACCOUNT_KEY": "k"}, SIGNED | {"account_key": "k"}, "with the account's key"),
        ({"AZURE_STORAGE_SAS_TOKEN": "?sig=x"}, SIGNED | {"sas_key": "sig=x"}, "with a SAS token"),
        (CLIENT | {"AZURE_CLIENT_SECRET": "s"}, SIGNED | {"client_id": "c", "client_secret": "s", "tenant_id": "t"}, "as the client c"),
        (CLIENT | {"AZURE_FEDERATED_TOKEN_FILE": "/f"}, SIGNED | {"client_id": "c", "federated_token_file": "/f", "tenant_id": "t"}, "as the client c"),
        (CLIENT, NOBODY, "without credentials"),
    ],
)  # fmt: skip
def test_who_asks_azure(environ, config, identity):
    store = locate("az://c/m", ACCOUNT | environ)
    assert (store.config, store.identity) == (
        {"account_name": "a", "endpoint": "https://a.blob.core.windows.net"} | config,
        identity,
    )


BLOB = "https://acct.blob.core.windows.net/c/m/"


def test_azure_is_also_named_as_kserve_does():
    store = locate(BLOB, {"AZURE_STORAGE_ACCESS_KEY": "k"})
    assert (store.bucket, store.key, store.is_folder) == ("c", "m", True)
    assert store.endpoint == "https://acct.blob.core.windows.net"
    with pytest.raises(FetchFailed, match="of no account that is known; set AZURE_STORAGE_ACCOUNT_NAME"):
        locate("az://c/m", {})


@pytest.mark.parametrize(
    ("uri", "environ", "expected"),
    [
        (BLOB, {"AZURE_STORAGE_ACCESS_KEY": "k"}, True),
        (BLOB, {"AZURE_CLIENT_ID": "k"}, True),
        (BLOB, {}, False),
        (f"{BLOB}m.zip?sig=x", {"AZURE_CLIENT_ID": "k"}, False),
        ("https://acct.blob.core.windows.net.evil/c/m", {"AZURE_CLIENT_ID": "k"}, False),
        ("https://u@acct.blob.core.windows.net/c/m", {"AZURE_CLIENT_ID": "k"}, False),
    ],
)
def test_without_credentials_azure_is_a_web_server_like_any_other(uri, environ, expected):
    assert is_azure(uri, environ) is expected


@pytest.mark.parametrize(
    ("environ", "uri", "expected"),
    [
        ({}, "s3://b/m", {}),
        ({"STORAGE_CONFIG": '{"type": "s3", "bucket": "b", "region": "r"}'}, "<scheme-placeholder>://<bucket-placeholder>/m", {"AWS_DEFAULT_REGION": "r"}),
        ({"STORAGE_CONFIG": '{"bucket": "x"}', "STORAGE_OVERRIDE_CONFIG": '{"type": "s3", "bucket": "b"}'}, "<scheme-placeholder>://<bucket-placeholder>/m", {}),
        (
            {"STORAGE_CONFIG": json.dumps({"access_key_id": "k", "secret_access_key": "s", "endpoint_url": "u", "ca_bundle": "c", "verify_ssl": "0", "anonymous": True})},
            "s3://b/m",
            {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": "u", "AWS_CA_BUNDLE": "c", "S3_VERIFY_SSL": "0", "awsAnonymousCredential": "True"},
        ),
        ({"STORAGE_CONFIG": json.dumps({"base64_service_account": base64.b64encode(b"{}").decode()})}, "s3://b/m", {"GOOGLE_SERVICE_ACCOUNT_KEY": "{}"}),
    ],
)  # fmt: skip
def test_a_secret_names_what_the_uri_leaves_open(environ, uri, expected):
    assert named(uri, environ) == ("s3://b/m", {**environ, **expected})


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "leaves its store to the variable STORAGE_CONFIG, which is not set"),
        ({"STORAGE_CONFIG": "{"}, "STORAGE_CONFIG is no JSON object; correct the Secret's entry"),
        ({"STORAGE_CONFIG": "[]"}, "STORAGE_CONFIG is no JSON object"),
        ({"STORAGE_CONFIG": '{"type": "s3"}'}, "STORAGE_CONFIG has no 'bucket'"),
        ({"STORAGE_CONFIG": '{"base64_service_account": "?", "type": "gs", "bucket": "b"}'}, "is no base64"),
    ],
)
def test_a_secret_that_names_nothing_is_told_of(environ, says):
    with pytest.raises(FetchFailed, match=says):
        named("<scheme-placeholder>://<bucket-placeholder>/m", environ)


CREDENTIALS = "[default]\naws_access_key_id = d\naws_secret_access_key = ds\n[p]\naws_access_key_id=k\naws_secret_access_key=s\naws_session_token=t\n"
CONFIG = "[default]\nregion = eu-1\n[profile p]\nendpoint_url = http://h\n"


@pytest.mark.parametrize(
    ("environ", "credentials", "config", "expected"),
    [
        ({}, CREDENTIALS, CONFIG, {"AWS_ACCESS_KEY_ID": "d", "AWS_SECRET_ACCESS_KEY": "ds", "AWS_DEFAULT_REGION": "eu-1"}),
        ({"AWS_PROFILE": "p"}, CREDENTIALS, CONFIG, {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t", "AWS_ENDPOINT_URL": "http://h"}),
        ({"AWS_PROFILE": "other"}, CREDENTIALS, CONFIG, {}),
        ({}, "no file of this kind", "", {}),
        ({}, "", "", {}),
    ],
)  # fmt: skip
def test_a_users_files_for_aws_are_read(environ, credentials, config, expected):
    assert profile(environ, credentials, config) == expected


# which objects

STORE = locate("s3://b/m", {})
FOLDER = locate("s3://b/m/", {})


def listed(**sizes: int) -> list[Listed]:
    return [Listed(key, size, f"e{size}") for key, size in sizes.items()]


@pytest.mark.parametrize(
    ("store", "listing", "paths"),
    [
        (STORE, {"m": 3}, ["m"]),
        (STORE, {"m": 3, "m/a": 1}, ["m"]),
        (FOLDER, {"m": 3, "m/a": 1}, ["a"]),
        (STORE, {"m": 0, "m/a": 1}, ["a"]),
        (STORE, {"m/a": 1, "m/b": 0, "m/d": 0, "m/d/e": 1}, ["a", "b", "d/e"]),
        (STORE, {"m/a": 1, "m-2/b": 1, "mm": 1, "n": 1}, ["a"]),
        (STORE, {"m/a": 1, "m/.b": 1, "m/.c/d": 1, "m/__pycache__/e": 1}, ["a"]),
        (STORE, {"m/e\u0301": 1}, ["\u00e9"]),
    ],
)
def test_what_belongs_to_a_model_is_planned(store, listing, paths):
    found = plan(store, listed(**listing))
    assert [item.path for item in found.items] == paths
    assert found.size == sum(item.object.size for item in found.items)


@pytest.mark.parametrize(
    ("listing", "reason", "says"),
    [
        ({}, "NotFound", "there is nothing at s3://b/m: no object has that key, or lies below it"),
        ({"m-2": 1}, "NotFound", "there is nothing"),
        ({"m": 0}, "DownloadFailed", "is empty"),
        ({"m/a": 0}, "DownloadFailed", "holds no objects with anything in them"),
        ({"m/../a": 1}, "DownloadFailed", "it leads up"),
        ({"m//a/\x00": 1}, "DownloadFailed", "can't be a file's name"),
        ({f"m/{n}": 1 for n in range(10_001)}, "TooLarge", "more than 10000 objects"),
    ],
)
def test_what_can_not_be_planned_is_said(listing, reason, says):
    with pytest.raises(FetchFailed, match=says) as caught:
        plan(STORE, listed(**listing))
    assert caught.value.reason == reason


def test_an_etag_is_of_all_objects_or_of_none():
    one, other = listed(**{"m/a": 1, "m/b": 2})
    assert plan(STORE, [one, other]).etag == plan(STORE, [other, one]).etag != plan(STORE, [one]).etag
    assert plan(STORE, [one, Listed("m/b", 2, "changed")]).etag != plan(STORE, [one, other]).etag
    assert plan(STORE, [one, Listed("m/b", 2, "")]).etag == ""


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART])
def test_parts_cover_an_object_once(size):
    pieces = parts(Listed("m", size, ""))
    assert sum(piece.end - piece.start for piece in pieces) == size
    assert all(a.end == b.start for a, b in itertools.pairwise(pieces))
    assert [piece.is_whole for piece in pieces] == ([True] if 0 < size <= PART else [False] * len(pieces))
