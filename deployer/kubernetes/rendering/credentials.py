"""What a model's store wants to see: from a ServiceAccount's Secrets to variables and files of the init container.

Only the names of a Secret's keys are looked at here, never what they hold, but for the host that headers are for: the kubelet
puts that where it belongs, and the server's own container gets none of it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deployer.kubernetes.rendering.settings import S3, Credentials
from deployer.spec.annotations import KSERVE

Object = dict[str, Any]
DEFAULT_ACCOUNT = "default"
SECRETS_PATH = "/var/secrets"
# KServe's code knows these besides the names in its ConfigMap.
_OTHER_KEYS = {"AWS_ACCESS_KEY_ID": "awsAccessKeyID", "AWS_SECRET_ACCESS_KEY": "awsSecretAccessKey"}
_AZURE = (
    *("CLIENT_ID", "CLIENT_SECRET", "SUBSCRIPTION_ID", "TENANT_ID", "STORAGE_ACCESS_KEY"),
    # an az:// URI names no account, as KServe's https:// URIs do
    *("STORAGE_ACCOUNT_NAME", "STORAGE_SAS_TOKEN"),
)
# Names the ConfigMap with the certificates of an account's store.
CA_BUNDLE_CONFIGMAP = "AWS_CA_BUNDLE_CONFIGMAP"
_HUB = ("HF_TOKEN", "GIT_USERNAME", "GIT_PASSWORD")


# A Secret's headers for a web server: the host, and a JSON object of them.
HTTPS_HOST, HTTPS_HEADERS = "https-host", "headers"


@dataclass(frozen=True)
class SecretSeen:
    """`keys` are the names of what it holds; None where they may not be read.  `host` is the web server its headers are for."""

    name: str
    keys: frozenset[str] | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    host: str = ""


@dataclass(frozen=True)
class ServiceAccountSeen:
    name: str = DEFAULT_ACCOUNT
    annotations: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretSeen, ...] = ()
    """Those that it lists, in its order."""


@dataclass(frozen=True)
class Given:
    """What a container gets: `env`, `volumes` of the pod, and where it finds them."""

    env: tuple[Object, ...] = ()
    volumes: tuple[Object, ...] = ()
    mounts: tuple[Object, ...] = ()


NOTHING = Given()


def account_of(pod: Mapping[str, Any]) -> str:
    """The ServiceAccount of a pod with these fields."""
    return str(pod.get("serviceAccountName") or pod.get("serviceAccount") or DEFAULT_ACCOUNT)


def given(settings: Credentials, account: ServiceAccountSeen) -> Given:
    """Of two Secrets with the same kind of credentials the first has it."""
    env: dict[str, Object] = {}
    volumes: list[Object] = []
    for secret in account.secrets:
        for variable in _variables(settings, secret):
            env.setdefault(variable["name"], variable)
        if secret.keys and settings.gcs_file in secret.keys and not volumes:
            volumes.append({"name": "user-gcp-sa", "secret": {"secretName": secret.name}})
            path = f"{SECRETS_PATH}/{settings.gcs_file}"
            env.setdefault("GOOGLE_APPLICATION_CREDENTIALS", {"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": path})
        for variable in _store(settings.s3, secret.annotations):
            env.setdefault(variable["name"], variable)
    if account.secrets or any(key.startswith(f"{KSERVE}s3-") for key in account.annotations):
        for variable in _store(settings.s3, account.annotations):
            env.setdefault(variable["name"], variable)
    mounts = ({"name": "user-gcp-sa", "mountPath": SECRETS_PATH, "readOnly": True},) if volumes else ()
    return Given(tuple(env.values()), tuple(volumes), mounts)


def _variables(settings: Credentials, secret: SecretSeen) -> Iterable[Object]:
    names = {"AWS_ACCESS_KEY_ID": settings.s3.access_key, "AWS_SECRET_ACCESS_KEY": settings.s3.secret_key}
    for variable, configured in names.items():
        key = next((one for one in (configured, variable, _OTHER_KEYS[variable]) if one in (secret.keys or ())), "")
        if key or secret.keys is None:
            yield _from_secret(variable, secret.name, key or configured, optional=not key)
    for variable in (*_HUB, *(f"{prefix}_{name}" for prefix in ("AZURE", "AZ") for name in _AZURE)):
        if secret.keys is None or variable in secret.keys:
            # KServe's secrets have both spellings, the clients read one
            name = variable.replace("AZ_", "AZURE_", 1) if variable.startswith("AZ_") else variable
            if name == variable or secret.keys is not None:
                yield _from_secret(name, secret.name, variable, optional=secret.keys is None)

    # what is no name of a variable, as an address is none, no pod could have
    if HTTPS_HEADERS in (secret.keys or ()) and re.fullmatch(r"[-._A-Za-z][-._A-Za-z0-9]*", secret.host):
        yield _from_secret(f"{secret.host}-headers", secret.name, HTTPS_HEADERS)


def _from_secret(variable: str, secret: str, key: str, *, optional: bool = False) -> Object:
    reference: Object = {"name": secret, "key": key}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference | ({"optional": True} if optional else {})}}


def _store(defaults: S3, annotations: Mapping[str, str]) -> Iterable[Object]:
    """What KServe's annotations say of an S3 store, as its clients read it."""

    def said(name: str, default: str) -> str:
        return annotations.get(f"{KSERVE}s3-{name}", default)

    endpoint, https = said("endpoint", defaults.endpoint), said("usehttps", defaults.use_https)
    if endpoint:
        plain = https.lower() in ("0", "false")
        yield {"name": "S3_ENDPOINT", "value": endpoint}
        yield {"name": "AWS_ENDPOINT_URL", "value": endpoint if "://" in endpoint else f"http{'' if plain else 's'}://{endpoint}"}
    for variable, value in (
        ("S3_USE_HTTPS", https),
        ("AWS_DEFAULT_REGION", said("region", defaults.region)),
        ("S3_VERIFY_SSL", said("verifyssl", defaults.verify_ssl)),
        ("S3_USER_VIRTUAL_BUCKET", said("usevirtualbucket", defaults.virtual_bucket)),
        ("S3_USE_ACCELERATE", said("useaccelerate", defaults.accelerate)),
        ("awsAnonymousCredential", said("useanoncredential", defaults.anonymous)),
        ("AWS_CA_BUNDLE", said("cabundle", defaults.ca_bundle)),
        (CA_BUNDLE_CONFIGMAP, said("cabundle-configmap", "")),
    ):
        if value:
            yield {"name": variable, "value": value}


def of_storage(settings: Credentials, storage: Mapping[str, Any], secret: str = "") -> tuple[str, Given]:
    """The URI and the variables of `model.storage`: which store it is stands in the Secret, and only the init container reads it.

    `secret` is the one that the service names instead of the settings' own.
    """
    parameters = dict(storage.get("parameters") or {})
    kind, bucket = parameters.get("type", ""), parameters.get("bucket", "")
    path = str(storage.get("path") or "").strip("/")
    uri = f"{kind or '<scheme-placeholder>'}://{bucket or '<bucket-placeholder>'}/{path}"
    key = storage.get("key") or (f"default_{kind}" if kind else "default")
    env = [_from_secret("STORAGE_CONFIG", secret or settings.storage_secret, key, optional=not storage.get("key"))]
    if parameters:
        env.append({"name": "STORAGE_OVERRIDE_CONFIG", "value": json.dumps(parameters, sort_keys=True)})
    return uri, Given(tuple(env))
