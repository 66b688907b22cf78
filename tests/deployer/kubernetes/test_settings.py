"""KServe's ConfigMap, as its charts and tools write it, and with every kind of mistake."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer import spec
from deployer.errors import SpecError
from deployer.kubernetes.rendering import objects
from deployer.kubernetes.rendering.settings import KEPT_FROM_PODS, Credentials, Settings, StorageInitializer, parse_config


def config(**keys):
    return {name: json.dumps(value) for name, value in keys.items()}


def test_nothing_said_is_the_defaults():
    assert parse_config({}) == Settings()
    assert parse_config(config(ingress={}, deploy={})) == Settings()


def test_what_kserve_s_chart_writes_is_understood():
    found = parse_config(
        config(
            deploy={"defaultDeploymentMode": "Standard"},
            ingress={
                "enableGatewayApi": False,
                "kserveIngressGateway": "kserve/kserve-ingress-gateway",
                "ingressGateway": "knative-serving/knative-ingress-gateway",
                "localGateway": "knative-serving/knative-local-gateway",
                "ingressDomain": "models.example.org",
                "ingressClassName": "istio",
                "domainTemplate": "{{ .Name }}-{{ .Namespace }}.{{ .IngressDomain }}",
                "urlScheme": "https",
                "disableIstioVirtualHost": False,
                "disableIngressCreation": False,
            },
            storageInitializer={"image": "kserve/storage-initializer:v0.20", "memoryLimit": "4Gi", "enableModelcar": True},
            credentials={
                "storageSpecSecretName": "stores",
                "gcs": {"gcsCredentialFileName": "key.json"},
                "s3": {
                    "s3AccessKeyIDName": "ID",
                    "s3SecretAccessKeyName": "SECRET",
                    "s3Endpoint": "minio:9000",
                    "s3UseHttps": "0",
                },
            },
            inferenceService={"serviceAnnotationDisallowedList": ["a/b"], "resource": {"cpuLimit": "1"}},
            explainers={},
        )
    )
    assert (found.ingress, found.gateway, found.domain, found.scheme) == (
        "istio",
        "knative-serving/knative-ingress-gateway",
        "models.example.org",
        "https",
    )
    assert (found.gateway_namespace, found.gateway_name) == ("knative-serving", "knative-ingress-gateway")
    assert found.storage == StorageInitializer("kserve/storage-initializer:v0.20", memory_limit="4Gi")
    assert found.credentials.s3.access_key == "ID"
    assert (found.credentials.storage_secret, found.credentials.gcs_file) == ("stores", "key.json")
    assert found.annotations_kept == ("a/b",)


@pytest.mark.parametrize(
    ("ingress", "own", "wanted"),
    [
        ({}, {}, "istio"),
        ({"enableGatewayApi": True}, {}, "gateway-api"),
        ({"disableIstioVirtualHost": True}, {}, "none"),
        ({"disableIstioVirtualHost": True, "enableGatewayApi": True}, {}, "gateway-api"),
        ({"disableIngressCreation": True, "enableGatewayApi": True}, {}, "none"),
        ({"enableGatewayApi": True}, {"ingress": "istio"}, "istio"),
    ],
)
def test_which_routes_are_made(ingress, own, wanted):
    assert parse_config(config(ingress=ingress, serveplane=own)).ingress == wanted


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        ({"ingress": "{"}, ["ingress: found '{', wanted a JSON object"]),
        ({"ingress": "[1]"}, ["ingress: found '[1]', wanted a JSON object"]),
        (config(ingress={"ingressDomain": "Ex ample"}), ["ingress.ingressDomain: found 'Ex ample', wanted a host's name"]),
        (config(ingress={"enableGatewayApi": "true"}), ["ingress.enableGatewayApi: found 'true', wanted true or false, without quotes"]),
        (config(ingress={"kserveIngressGateway": "gate"}, serveplane={"ingress": "istoi"}), ["serveplane.ingress: found 'istoi', wanted one of istio, gateway-api, none", "ingress.kserveIngressGateway: found 'gate', wanted NAMESPACE/NAME of a gateway"]),
        (config(ingress={"domainTemplate": "{{.Name}}.{{.Labels.x}}"}), ["ingress.domainTemplate: found '{{.Name}}.{{.Labels.x}}', wanted {{.Name}}, {{.Namespace}} and {{.IngressDomain}} with letters, digits, '-' and '.' between them"]),
        (config(deploy={"defaultDeploymentMode": "Knative"}), ["deploy.defaultDeploymentMode: found 'Knative', wanted Standard"]),
        (config(storageInitializer={"cpuLimit": "much"}), ["storageInitializer.cpuLimit: found 'much', wanted a quantity, such as 1"]),
        (config(credentials={"s3": "none"}), ["credentials.s3: found 'none', wanted an object"]),
        (config(serveplane={"namespaces": "a,b"}), ["serveplane.namespaces: found 'a,b', wanted a list of texts"]),
    ],
)  # fmt: skip
def test_every_mistake_is_told(data, messages):
    with pytest.raises(SpecError) as caught:
        parse_config(data)
    assert [str(one) for one in caught.value.mistakes] == messages


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
)
KEYS = st.sampled_from(["ingress", "deploy", "credentials", "storageInitializer", "serveplane", "inferenceService"])
FIELDS = st.sampled_from(
    ["ingressDomain", "domainTemplate", "s3", "gcs", "image", "ingress", "namespaces", "urlScheme", "cpuLimit", "networkPolicy"]
)


@given(st.dictionaries(KEYS, st.dictionaries(FIELDS, JSON).map(json.dumps) | st.text()))
def test_whatever_it_says_it_is_read_or_refused(data):
    with contextlib.suppress(SpecError):
        assert isinstance(parse_config(data), Settings)


@pytest.mark.parametrize(
    ("settings", "labels", "wanted"),
    [
        (Settings(), {}, ("http://iris-shop.example.com", "http://iris-predictor.shop.svc.cluster.local")),
        (Settings(domain_template="{{ .Namespace }}.{{.Name}}.{{.IngressDomain}}", scheme="https", domain="x.org"), {}, ("https://shop.iris.x.org", "http://iris-predictor.shop.svc.cluster.local")),
        (Settings(), {"networking.kserve.io/visibility": "cluster-local"}, ("http://iris-predictor.shop.svc.cluster.local",) * 2),
        (Settings(ingress="none"), {}, ("http://iris-predictor.shop.svc.cluster.local",) * 2),
    ],
)  # fmt: skip
def test_addresses(settings, labels, wanted):
    raw = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": "shop", "labels": labels},
    }
    predictor = {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://m/iris"}}
    assert objects.urls(settings, spec.parse({**raw, "spec": {"predictor": predictor}})) == wanted


def test_defaults_are_kserve_s():
    assert Credentials().gcs_file == "gcloud-application-credentials.json"
    assert "kubectl.kubernetes.io/last-applied-configuration" in KEPT_FROM_PODS
