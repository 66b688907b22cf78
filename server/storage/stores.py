"""Where a bucket is and who asks for it: pure, from a URI and an environment to a `Store`.

The variables are the ones that KServe's storage initializer is given, and those of the stores' own tools.  Nothing is asked
for credentials that was not named: a machine's metadata service hands them out to whoever runs there, so without any named
the store is asked as by anybody.
"""

import base64
import binascii
import configparser
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from server.errors import FetchFailed
from server.storage.addresses import shown

# As KServe writes a URI whose store stands in a Secret that its controller does not read.
_KIND, _BUCKET = "<scheme-placeholder>", "<bucket-placeholder>"


@dataclass(frozen=True)
class Store:
    """`key` is the object's or the folder's, which is_folder where the URI says so.  `endpoint` is the URL that is asked.

    `config` is in obstore's words.  `identity` says in a message who asks, `remedy` how somebody else would.  `authority` is
    a file of certificates to trust beside the system's, `verify` whether any certificate has to be good.  `domains` are whose
    hosts may be asked beside the endpoint's, `credentials` where they come from if that is a place of its own.
    """

    scheme: str
    bucket: str
    key: str
    is_folder: bool
    endpoint: str
    config: Mapping[str, Any]
    identity: str
    remedy: str
    domains: tuple[str, ...]
    credentials: tuple[str, ...] = ()
    authority: str = ""
    verify: bool = True

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}{'/' if self.is_folder and self.key else ''}"


def named(uri: str, environ: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The URI and environment with what STORAGE_CONFIG, a Secret's JSON, says of the store; both unchanged without it."""
    if not environ.get("STORAGE_CONFIG"):
        if _KIND in uri or _BUCKET in uri:
            _refuse(f"{uri} leaves its store to the variable STORAGE_CONFIG, which is not set", "check the Secret's key")
        return uri, dict(environ)
    said = {**_object(environ, "STORAGE_CONFIG"), **_object(environ, "STORAGE_OVERRIDE_CONFIG")}
    kind, bucket = said.get("type", ""), said.get("bucket", "")
    for placeholder, name, value in ((_KIND, "type", kind), (_BUCKET, "bucket", bucket)):
        if placeholder in uri and not value:
            _refuse(f"STORAGE_CONFIG has no {name!r}, and storage.parameters has none", f"add {name!r} to either")
        uri = uri.replace(placeholder, value)
    return uri, {**environ, **_variables(said)}


def _object(environ: Mapping[str, str], name: str) -> dict[str, str]:
    try:
        said = json.loads(environ.get(name) or "{}")
        return {str(key): str(value) for key, value in said.items()}
    except (ValueError, AttributeError) as error:
        raise FetchFailed("DownloadFailed", f"{name} is no JSON object", "correct the Secret's entry") from error


_SAID = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "region": "AWS_DEFAULT_REGION",
    "ca_bundle": "AWS_CA_BUNDLE",
    "verify_ssl": "S3_VERIFY_SSL",
    "anonymous": "awsAnonymousCredential",
}


def _variables(said: Mapping[str, str]) -> dict[str, str]:
    found = {variable: said[name] for name, variable in _SAID.items() if said.get(name)}
    if key := said.get("base64_service_account"):
        try:
            found["GOOGLE_SERVICE_ACCOUNT_KEY"] = base64.b64decode(key, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            what = "STORAGE_CONFIG's base64_service_account is no base64"
            raise FetchFailed("DownloadFailed", what, "correct the Secret's entry") from error
    return found


def profile(environ: Mapping[str, str], credentials: str, config: str) -> dict[str, str]:
    """What the texts of ~/.aws/credentials and ~/.aws/config say of AWS_PROFILE, as variables; a broken file says nothing."""
    name, found = environ.get("AWS_PROFILE") or "default", dict[str, str]()
    for text, section in ((config, name if name == "default" else f"profile {name}"), (credentials, name)):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        if parser.has_section(section):
            found.update({key: value for key, value in parser.items(section) if value})
    keys = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    others = {"region": "AWS_DEFAULT_REGION", "endpoint_url": "AWS_ENDPOINT_URL", "ca_bundle": "AWS_CA_BUNDLE"}
    names = {**{key: key.upper() for key in keys}, **others}
    return {variable: found[key] for key, variable in names.items() if key in found}


def locate(uri: str, environ: Mapping[str, str]) -> Store:
    """FetchFailed where the URI or the variables name no store that can be asked."""
    scheme, _, rest = uri.partition("://")
    bucket, _, path = rest.partition("/")
    if scheme.lower() == "https":
        return _azure_url(uri, environ)
    if not re.fullmatch(r"[A-Za-z0-9$][A-Za-z0-9._-]{0,254}", bucket):
        _refuse(f"{shown(uri)} names no bucket", f"write {scheme}://BUCKET/PATH")
    return _STORES[scheme.lower()](bucket, _Path.of(path), environ)


@dataclass(frozen=True)
class _Path:
    key: str
    is_folder: bool

    @staticmethod
    def of(path: str) -> "_Path":
        return _Path(path.strip("/"), path.endswith("/") or not path.strip("/"))


def _s3(bucket: str, path: _Path, environ: Mapping[str, str]) -> Store:
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    base = _s3_endpoint(environ)
    # AWS itself wants the bucket in the host, where no dot of its name breaks the certificate; others want it in the path
    virtual = _truth(environ, "S3_USER_VIRTUAL_BUCKET", default=not base and "." not in bucket)
    if _truth(environ, "S3_USE_ACCELERATE") and not base:
        base, virtual = "https://s3-accelerate.amazonaws.com", True
    base = base or f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
    identity, secret, credentials = _s3_credentials(environ)
    host = _url(base, "AWS_ENDPOINT_URL")
    endpoint = f"{host.scheme}://{bucket}.{host.netloc}{host.path}" if virtual else base
    config: dict[str, Any] = {"endpoint": endpoint, "region": region, "virtual_hosted_style_request": virtual, **secret}
    remedy = (
        "check the bucket's policy, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        if secret != _ANONYMOUS
        else "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or let anybody read it"
    )
    return Store(
        *("s3", bucket, path.key, path.is_folder, endpoint, config, identity, remedy),
        domains=(".amazonaws.com", ".amazonaws.com.cn"),
        credentials=credentials,
        authority=_authority(environ),
        verify=_truth(environ, "S3_VERIFY_SSL", default=True),
    )


def _s3_endpoint(environ: Mapping[str, str]) -> str:
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or environ.get("S3_ENDPOINT") or ""
    if endpoint and "://" not in endpoint:
        endpoint = f"http{'s' if _truth(environ, 'S3_USE_HTTPS', default=True) else ''}://{endpoint}"
    return endpoint.rstrip("/")


_ANONYMOUS = {"skip_signature": True}
_SIGNED = {"skip_signature": False}


def _s3_credentials(environ: Mapping[str, str]) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Who asks, that in obstore's words, and where it is asked what to say."""
    if _truth(environ, "awsAnonymousCredential"):
        return "without credentials", _ANONYMOUS, ()
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        token = environ.get("AWS_SESSION_TOKEN")
        given = {"access_key_id": key, "secret_access_key": secret, **({"session_token": token} if token else {})}
        return f"with the access key {key[:4]}…", {**_SIGNED, **given}, ()
    if key or secret:
        _refuse("of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY one is set and one is not", "set both, or none")
    role, token = environ.get("AWS_ROLE_ARN"), environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    if role and token:
        return f"as {role}", {**_SIGNED, "web_identity_token_file": token, "role_arn": role}, ()
    who = "with the container's credentials"
    if path := environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        return who, {**_SIGNED, "container_credentials_relative_uri": path}, ("http://169.254.170.2",)
    if url := environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        file = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        named = {"container_credentials_full_uri": url, **({"container_authorization_token_file": file} if file else {})}
        return who, {**_SIGNED, **named}, (url,)
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "false":
        return "with the machine's role", _SIGNED, (_METADATA,)
    return "without credentials", _ANONYMOUS, ()


_METADATA = "http://169.254.169.254"


def _gs(bucket: str, path: _Path, environ: Mapping[str, str]) -> Store:
    config: dict[str, Any]
    credentials: tuple[str, ...] = ()
    if key := environ.get("GOOGLE_SERVICE_ACCOUNT_KEY"):
        config, identity = {**_SIGNED, "service_account_key": key}, "with a service account's key"
    elif file := environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        config, identity = {**_SIGNED, "application_credentials": file}, f"with the credentials in {file}"
    elif environ.get("NO_GCE_CHECK", "").lower() == "false":
        config, identity = dict(_SIGNED), "with the machine's service account"
        credentials = ("http://metadata.google.internal", _METADATA)
    else:
        config, identity = dict(_ANONYMOUS), "without credentials"
    endpoint = environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    endpoint = _url(endpoint if "://" in endpoint else f"http://{endpoint}", "STORAGE_EMULATOR_HOST").geturl().rstrip("/")
    remedy = "check the bucket's permissions, and GOOGLE_APPLICATION_CREDENTIALS, the file of a service account's key"
    return Store(
        *("gs", bucket, path.key, path.is_folder, endpoint, {"base_url": endpoint, **config}, identity, remedy),
        domains=(".googleapis.com", ".google.com"),
        credentials=credentials,
        authority=_authority(environ),
    )


def _azure_url(uri: str, environ: Mapping[str, str]) -> Store:
    """https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH, as KServe names what Azure holds."""
    parts = urlsplit(uri)
    container, _, path = parts.path.lstrip("/").partition("/")
    environ = {**environ, "AZURE_STORAGE_ACCOUNT_NAME": (parts.hostname or "").partition(".")[0]}
    return _az(container, _Path.of(path), environ)


def is_azure(uri: str, environ: Mapping[str, str]) -> bool:
    """Whether an https URI is Azure's and credentials for it are there: without, it is a file on a web server like any other."""
    parts = re.match(r"https://[a-z0-9]+\.blob\.core\.windows\.net/[^/?#]+[^?#]*$", uri, re.I)
    return parts is not None and any(_first(environ, names) for names in (_AZURE_KEYS, ("AZURE_CLIENT_ID",), _AZURE_SAS))


_AZURE_ACCOUNT = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_AZURE_KEYS = ("AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")
_AZURE_SAS = ("AZURE_STORAGE_SAS_TOKEN",)


def _az(container: str, path: _Path, environ: Mapping[str, str]) -> Store:
    account = _first(environ, _AZURE_ACCOUNT)
    if not account:
        _refuse(f"az://{container} is of no account that is known", "set AZURE_STORAGE_ACCOUNT_NAME")
    config: dict[str, Any] = {"account_name": account, "skip_signature": False}
    client = {name: environ.get(f"AZURE_{name.upper()}") for name in ("client_id", "client_secret", "tenant_id")}
    token, login = environ.get("AZURE_FEDERATED_TOKEN_FILE"), environ.get("AZURE_AUTHORITY_HOST") or ""
    if login:
        config["authority_host"] = _url(login if "://" in login else f"https://{login}", "AZURE_AUTHORITY_HOST").geturl()
        login = config["authority_host"]
    if key := _first(environ, _AZURE_KEYS):
        identity, config = "with the account's key", config | {"account_key": key}
    elif sas := _first(environ, _AZURE_SAS):
        identity, config = "with a SAS token", config | {"sas_key": sas.lstrip("?")}
    elif all(client.values()):
        identity, config = f"as the client {client['client_id']}", config | client
    elif token and client["client_id"] and client["tenant_id"]:
        named = {"federated_token_file": token, "client_id": client["client_id"], "tenant_id": client["tenant_id"]}
        identity, config = f"as the client {client['client_id']}", config | named
    else:
        identity, config = "without credentials", config | _ANONYMOUS
    endpoint = environ.get("AZURE_STORAGE_ENDPOINT") or f"https://{account}.blob.core.windows.net"
    endpoint = _url(endpoint, "AZURE_STORAGE_ENDPOINT").geturl().rstrip("/")
    remedy = "check the container's permissions, and AZURE_STORAGE_ACCESS_KEY or AZURE_CLIENT_ID, _SECRET and AZURE_TENANT_ID"
    return Store(
        *("az", container, path.key, path.is_folder, endpoint, {"endpoint": endpoint, **config}, identity, remedy),
        domains=(".microsoftonline.com", ".microsoftonline.us", ".chinacloudapi.cn"),
        credentials=(login,) if login else (),
        authority=_authority(environ),
    )


_STORES = {"s3": _s3, "gs": _gs, "az": _az}


def _authority(environ: Mapping[str, str]) -> str:
    """The file of certificates to trust: named for this store, mounted for all of them, or the process's own."""
    if bundle := environ.get("AWS_CA_BUNDLE"):
        return bundle
    if environ.get("CA_BUNDLE_CONFIGMAP_NAME") and (folder := environ.get("CA_BUNDLE_VOLUME_MOUNT_POINT")):
        return f"{folder.rstrip('/')}/cabundle.crt"
    return environ.get("SSL_CERT_FILE") or ""


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")


def _truth(environ: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}.get(environ.get(name, "").lower(), default)


def _url(text: str, variable: str) -> Any:
    try:
        parts = urlsplit(text)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc:
            return parts
    except ValueError:
        pass
    return _refuse(f"{variable} is {shown(text)!r}, which is no address of a store", "write https://HOST[:PORT]")


def _refuse(what: str, remedy: str) -> NoReturn:
    raise FetchFailed("DownloadFailed", what, remedy)
