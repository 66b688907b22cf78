"""What the controller is told of its cluster: KServe's ConfigMap `inferenceservice-config`, and one key of our own.

    parse_config({"ingress": '{"ingressDomain": "example.com"}', …}) → Settings

Keys and fields that mean nothing here are left alone: the ConfigMap is KServe's too, and its tools write into it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from deployer.errors import Mistake, SpecError, show
from deployer.spec.annotations import STANDARD_MODES
from deployer.spec.pods import quantity

CONFIG_MAP = "inferenceservice-config"
Ingress = Literal["istio", "gateway-api", "none"]
INGRESSES: tuple[Ingress, ...] = ("istio", "gateway-api", "none")
GATEWAY = "kserve/kserve-ingress-gateway"

# KServe's: of a service's annotations these are not its pods'.
KEPT_FROM_PODS = (
    "autoscaling.knative.dev/min-scale",
    "autoscaling.knative.dev/max-scale",
    "internal.serving.kserve.io/storage-initializer-sourceuri",
    "kubectl.kubernetes.io/last-applied-configuration",
)


@dataclass(frozen=True)
class StorageInitializer:
    """The container that brings a model before its server starts; quantities as Kubernetes has them."""

    image: str = f"serveplane/storage-initializer:{version('serveplane')}"
    cpu_request: str = "100m"
    cpu_limit: str = "1"
    memory_request: str = "100Mi"
    memory_limit: str = "1Gi"
    ca_bundle: str = ""
    """A ConfigMap of the service's namespace with certificates."""
    ca_bundle_path: str = "/etc/ssl/custom-certs"


@dataclass(frozen=True)
class S3:
    """The names of a secret's keys, and what holds where a secret's annotations say nothing."""

    access_key: str = "AWS_ACCESS_KEY_ID"
    secret_key: str = "AWS_SECRET_ACCESS_KEY"
    endpoint: str = ""
    use_https: str = ""
    region: str = ""
    verify_ssl: str = ""
    virtual_bucket: str = ""
    accelerate: str = ""
    anonymous: str = ""
    ca_bundle: str = ""


@dataclass(frozen=True)
class Credentials:
    s3: S3 = S3()
    gcs_file: str = "gcloud-application-credentials.json"
    storage_secret: str = "storage-config"


@dataclass(frozen=True)
class Settings:
    registry: str = ""
    """Goes before the images of our own runtimes: "registry.example.com/team"."""
    storage: StorageInitializer = StorageInitializer()
    credentials: Credentials = Credentials()
    ingress: Ingress = "istio"
    gateway: str = GATEWAY
    """ "namespace/name" of an Istio Gateway, or of one of the Gateway API."""
    domain: str = "example.com"
    domain_template: str = "{{.Name}}-{{.Namespace}}.{{.IngressDomain}}"
    scheme: Literal["http", "https"] = "http"
    namespaces: tuple[str, ...] = ()
    """The only ones that are looked at; empty: all."""
    network_policy: bool = False
    allow_from: tuple[str, ...] = ()
    """Namespaces whose pods may reach predictors, besides the gateway's and their own, where there are network policies."""
    disruption_budget: bool = True
    annotations_kept: tuple[str, ...] = KEPT_FROM_PODS
    labels_kept: tuple[str, ...] = ()

    @property
    def gateway_namespace(self) -> str:
        return self.gateway.partition("/")[0]

    @property
    def gateway_name(self) -> str:
        return self.gateway.partition("/")[2]


def parse_config(data: Mapping[str, str]) -> Settings:
    """SpecError with every mistake, each under its key: "ingress.ingressDomain"."""
    found = _Read(data)
    ingress, initializer = found.part("ingress"), found.part("storageInitializer")
    credentials, own = found.part("credentials"), found.part("serveplane")
    s3, gcs, pods = credentials.part("s3"), credentials.part("gcs"), found.part("inferenceService")
    default, names = StorageInitializer(), S3()
    found.part("deploy").text("defaultDeploymentMode", "Standard", lambda mode: mode in STANDARD_MODES, "Standard")
    kind = _ingress(ingress, own)
    settings = Settings(
        registry=own.text("registry", "").rstrip("/"),
        storage=StorageInitializer(
            initializer.text("image", default.image),
            initializer.text("cpuRequest", default.cpu_request, _is_quantity, "a quantity, such as 100m"),
            initializer.text("cpuLimit", default.cpu_limit, _is_quantity, "a quantity, such as 1"),
            initializer.text("memoryRequest", default.memory_request, _is_quantity, "a quantity, such as 100Mi"),
            initializer.text("memoryLimit", default.memory_limit, _is_quantity, "a quantity, such as 1Gi"),
            initializer.text("caBundleConfigMapName", ""),
            initializer.text("caBundleVolumeMountPath", default.ca_bundle_path) or default.ca_bundle_path,
        ),
        credentials=Credentials(
            S3(
                s3.text("s3AccessKeyIDName", names.access_key),
                s3.text("s3SecretAccessKeyName", names.secret_key),
                s3.text("s3Endpoint", ""),
                s3.text("s3UseHttps", ""),
                s3.text("s3Region", ""),
                s3.text("s3VerifySSL", ""),
                s3.text("s3UseVirtualBucket", ""),
                s3.text("s3UseAccelerate", ""),
                s3.text("s3UseAnonymousCredential", ""),
                s3.text("s3CABundle", ""),
            ),
            gcs.text("gcsCredentialFileName", Credentials().gcs_file),
            credentials.text("storageSpecSecretName", Credentials().storage_secret),
        ),
        ingress=kind,
        gateway=ingress.text(
            "ingressGateway" if kind == "istio" and "ingressGateway" in ingress else "kserveIngressGateway",
            GATEWAY,
            lambda name: re.fullmatch(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*", name) is not None,
            "NAMESPACE/NAME of a gateway",
        ),
        domain=ingress.text("ingressDomain", "example.com", lambda name: _HOST.fullmatch(name) is not None, "a host's name"),
        domain_template=ingress.text("domainTemplate", Settings.domain_template, _is_template, _TEMPLATE),
        scheme="https"
        if ingress.text("urlScheme", "http", lambda s: s in ("http", "https"), "http or https") == "https"
        else "http",
        namespaces=own.texts("namespaces", ()),
        network_policy=own.truth("networkPolicy", False),
        allow_from=own.texts("allowFrom", ()),
        disruption_budget=own.truth("podDisruptionBudget", True),
        annotations_kept=pods.texts("serviceAnnotationDisallowedList", KEPT_FROM_PODS),
        labels_kept=pods.texts("serviceLabelDisallowedList", ()),
    )
    if found.mistakes:
        raise SpecError(found.mistakes)
    return settings


def _ingress(ingress: "_Part", own: "_Part") -> Ingress:
    if ingress.truth("disableIngressCreation", False):
        return "none"
    uses_api = ingress.truth("enableGatewayApi", False)
    without_istio = ingress.truth("disableIstioVirtualHost", False)
    default: Ingress = "gateway-api" if uses_api else "none" if without_istio else "istio"
    chosen = own.text("ingress", default, lambda name: name in INGRESSES, f"one of {', '.join(INGRESSES)}")
    return next((one for one in INGRESSES if one == chosen), default)


_HOST = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_TEMPLATE = "{{.Name}}, {{.Namespace}} and {{.IngressDomain}} with letters, digits, '-' and '.' between them"


def _is_template(text: str) -> bool:
    filled = re.sub(r"\{\{ *\.(Name|Namespace|IngressDomain) *\}\}", "x", text)
    return "{{.Name}}" in text.replace(" ", "") and _HOST.fullmatch(filled) is not None


def _is_quantity(text: str) -> bool:
    try:
        quantity(text)
    except ValueError:
        return False
    return True


class _Part:
    """A JSON object of the ConfigMap; what is wrong in it is gathered."""

    def __init__(self, path: str, values: Mapping[str, Any], mistakes: list[Mistake]) -> None:
        self._path, self._values, self.mistakes = path, values, mistakes

    def __contains__(self, name: str) -> bool:
        return bool(self._values.get(name))

    def _wrong(self, name: str, value: object, wanted: str) -> None:
        path = f"{self._path}.{name}" if self._path else name
        self.mistakes.append(Mistake(path, f"found {show(value)}, wanted {wanted}"))

    def part(self, name: str) -> "_Part":
        value = self._values.get(name) or {}
        if not isinstance(value, dict):
            self._wrong(name, value, "an object")
            value = {}
        return _Part(f"{self._path}.{name}", value, self.mistakes)

    def text(self, name: str, default: str, fits: Callable[[str], bool] = lambda text: True, wanted: str = "text") -> str:
        value = self._values.get(name)
        if value is None or value == "":
            return default
        if not isinstance(value, str) or not fits(value):
            self._wrong(name, value, wanted)
            return default
        return value

    def truth(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            self._wrong(name, value, "true or false, without quotes")
            return default
        return value

    def texts(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self._wrong(name, value, "a list of texts")
            return default
        return tuple(value)


class _Read:
    """The ConfigMap itself: each of its values is a JSON document."""

    def __init__(self, data: Mapping[str, str]) -> None:
        self._data = data
        self.mistakes: list[Mistake] = []

    def part(self, key: str) -> _Part:
        text = self._data.get(key) or "{}"
        try:
            value = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self.mistakes.append(Mistake(key, f"found {show(text)}, wanted a JSON object"))
            value = {}
        return _Part(key, value, self.mistakes)
