"""What is rendered for a store is what the init container reads: from annotations and Secrets to the store that is asked."""

import base64

import pytest

from deployer.kubernetes.accounts import Accounts
from deployer.kubernetes.rendering import credentials, settings
from deployer.kubernetes.rendering.credentials import SecretSeen, ServiceAccountSeen
from deployer.spec.annotations import KSERVE
from server.storage.stores import is_azure, locate, named

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def environ(given: credentials.Given) -> dict[str, str]:
    """As the kubelet would set them; what a Secret holds is its key."""
    return {one["name"]: one.get("value") or one["valueFrom"]["secretKeyRef"]["key"] for one in given.env}


def of_account(*keys: str, **annotations: str) -> dict[str, str]:
    notes = {f"{KSERVE}s3-{name}": value for name, value in annotations.items()}
    account = ServiceAccountSeen("reader", {}, (SecretSeen("one", frozenset(keys), notes),))
    return environ(credentials.given(settings.Credentials(), account))


@pytest.mark.parametrize(
    ("annotations", "endpoint", "identity"),
    [
        ({}, "https://b.s3.us-east-1.amazonaws.com", "with the access key AWS_…"),
        ({"region": "eu-west-1"}, "https://b.s3.eu-west-1.amazonaws.com", "with the access key AWS_…"),
        ({"endpoint": "minio:9000", "usehttps": "0"}, "http://minio:9000", "with the access key AWS_…"),
        ({"endpoint": "minio:9000", "usehttps": "1"}, "https://minio:9000", "with the access key AWS_…"),
        ({"endpoint": "minio:9000"}, "https://minio:9000", "with the access key AWS_…"),
        ({"endpoint": "h", "usevirtualbucket": "true"}, "https://b.h", "with the access key AWS_…"),
        ({"useaccelerate": "true"}, "https://b.s3-accelerate.amazonaws.com", "with the access key AWS_…"),
        ({"useanoncredential": "true"}, "https://b.s3.us-east-1.amazonaws.com", "without credentials"),
    ],
)
def test_an_annotation_of_a_secret_decides_which_store_is_asked(annotations, endpoint, identity):
    store = locate("s3://b/m", of_account(*KEYS, **annotations))
    assert (store.endpoint, store.identity) == (endpoint, identity)


@pytest.mark.parametrize(
    ("annotations", "verify", "authority"),
    [
        ({}, True, ""),
        ({"verifyssl": "0"}, False, ""),
        ({"verifyssl": "1"}, True, ""),
        ({"cabundle": "/etc/ssl/mine.pem"}, True, "/etc/ssl/mine.pem"),
    ],
)
def test_an_annotation_of_a_secret_decides_which_certificates_are_trusted(annotations, verify, authority):
    store = locate("s3://b/m", of_account(*KEYS, **annotations))
    assert (store.verify, store.authority) == (verify, authority)


@pytest.mark.parametrize(
    ("keys", "uri", "identity"),
    [
        (("awsAccessKeyID", "awsSecretAccessKey"), "s3://b/m", "with the access key awsA…"),
        (("gcloud-application-credentials.json",), "gs://b/m", "with the credentials in /var/secrets/gcloud-application-credentials.json"),
        (("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"), "https://a.blob.core.windows.net/c/m", "as the client AZURE_CLIENT_ID"),
        (("AZ_CLIENT_ID", "AZ_CLIENT_SECRET", "AZ_TENANT_ID"), "https://a.blob.core.windows.net/c/m", "as the client AZ_CLIENT_ID"),
        (("AZURE_STORAGE_ACCESS_KEY",), "https://a.blob.core.windows.net/c/m", "with the account's key"),
        (("AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME"), "az://c/m", "with the account's key"),
        (("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ACCOUNT_NAME"), "az://c/m", "with a SAS token"),
    ],
)  # fmt: skip
def test_the_keys_of_a_secret_decide_who_asks(keys, uri, identity):
    found = of_account(*keys)
    assert locate(uri, found).identity == identity
    assert is_azure(uri, found) == uri.startswith("https://")


def test_a_store_by_its_key_is_found_in_the_secret_that_is_named():
    said = {"key": "minio", "path": "models/iris", "parameters": {"bucket": "b"}}
    uri, given = credentials.of_storage(settings.Credentials(), said)
    # what the kubelet puts there
    secret = '{"type": "s3", "endpoint_url": "http://minio:9000", "access_key_id": "k", "secret_access_key": "s"}'
    uri, variables = named(uri, environ(given) | {"STORAGE_CONFIG": secret})
    store = locate(uri, variables)
    assert (str(store), store.endpoint) == ("s3://b/models/iris", "http://minio:9000")


@pytest.mark.parametrize(
    ("host", "variables"),
    [
        ("models.example.org", {"models.example.org-headers": "headers"}),
        # what no variable can be called
        ("10.0.0.1", {}),
        ("a b", {}),
        ("", {}),
    ],
)
def test_headers_for_a_web_server_are_taken_from_its_secret_and_never_written_into_a_pod(host, variables):
    class Cluster:
        def get(self, path):
            data = {"https-host": base64.b64encode(f"{host}\n".encode()).decode(), "headers": "c2VjcmV0"}
            return {"metadata": {"name": "web"}, "data": data}

    class Watched:
        def get(self, key):
            return {"metadata": {"name": "reader"}, "secrets": [{"name": "web"}]}

    found = credentials.given(settings.Credentials(), Accounts(Cluster(), Watched()).seen("ns", "reader"))
    assert environ(found) == variables
    assert all("valueFrom" in one for one in found.env)
