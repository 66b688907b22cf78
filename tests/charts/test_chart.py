"""The chart by itself: what Helm makes of its values, and what it refuses.  On a cluster: tests/cluster/test_chart.py."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from deployer import spec
from deployer.kubernetes.kinds import CHILDREN
from deployer.kubernetes.rendering.settings import Settings, StorageInitializer, parse_config
from deployer.runtimes import BUILTIN, parse_runtime
from tests.charts.helm import CHART, CRDS, ROOT, helm, run, template

GOLDEN = Path(__file__).parent / "golden"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
VALUES = {
    "nothing said": {},
    "gateway api": {"ingress": {"kind": "gateway-api", "gateway": {"create": True, "addresses": [{"type": "IPAddress", "value": "10.0.0.1"}]}}},
    "istio, with its gateway": {"ingress": {"gateway": {"create": True, "namespace": "istio-system", "name": "public"}}},
    "no ingress": {"ingress": {"kind": "none"}},
    "everything on": {
        "controller": {"replicas": 2, "priorityClassName": "system-cluster-critical", "podLabels": {"team": "ml"}, "tolerations": [{"operator": "Exists"}], "nodeSelector": {"kubernetes.io/os": "linux"}},
        "images": {"registry": "registry.example.com/team/", "tag": "1.2.3", "pullSecrets": ["registry"]},
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "networkPolicy": {"enabled": True, "metricsFrom": ["monitoring"]},
        "predictors": {"networkPolicy": True, "allowFrom": ["apps"]},
        "rbac": {"secrets": ["models", "storage-config"]},
        "storageInitializer": {"caBundle": "certificates"},
        "webhook": {"failurePolicy": "Fail"},
    },
    "as little as can be": {
        "rbac": {"create": False, "aggregate": False},
        "serviceAccount": {"create": False, "name": "mine"},
        "runtimes": {"create": False},
        "webhook": {"enabled": False},
    },
    "only some namespaces": {"rbac": {"namespaces": ["team-a", "team-b"]}},
    "only Roles": {"rbac": {"scope": "namespace", "namespaces": ["team-a", "team-b"], "secrets": ["models"]}},
    "only Roles, of its own namespace": {"rbac": {"scope": "namespace"}},
    "another name": {"fullnameOverride": "inference", "runtimes": {"disabled": ["kserve-mlserver"]}},
}  # fmt: skip
REFUSED = [
    ({"controler": {}}, "controler"),
    ({"controller": {"replicas": -1}}, "/controller/replicas"),
    ({"controller": {"replicas": "two"}}, "/controller/replicas"),
    ({"controller": {"logLevel": "loud"}}, "/controller/logLevel"),
    ({"controller": {"resources": {"limits": {"memory": "much"}}}}, "/controller/resources/limits/memory"),
    ({"images": {"tag": "a b"}}, "/images/tag"),
    ({"images": {"pullPolicy": "Sometimes"}}, "/images/pullPolicy"),
    ({"ingress": {"kind": "nginx"}}, "/ingress/kind"),
    ({"ingress": {"domain": "Example_com"}}, "/ingress/domain"),
    ({"ingress": {"domainTemplate": "models.{{.IngressDomain}}"}}, "/ingress/domainTemplate"),
    ({"ingress": {"gateway": {"name": "a/b"}}}, "/ingress/gateway/name"),
    ({"rbac": {"scope": "galaxy"}}, "/rbac/scope"),
    ({"rbac": {"secrets": ["*"]}}, "/rbac/secrets/0"),
    ({"rbac": {"namespaces": ["a", "a"]}}, "/rbac/namespaces"),
    ({"storageInitializer": {"resources": {"limits": {"cpu": 1}}}}, "/storageInitializer/resources/limits/cpu"),
    ({"webhook": {"failurePolicy": "Perhaps"}}, "/webhook/failurePolicy"),
    ({"webhook": {"timeoutSeconds": 60}}, "/webhook/timeoutSeconds"),
    ({"metrics": {"serviceMonitor": {"interval": "often"}}}, "/metrics/serviceMonitor/interval"),
]
# What Kubernetes itself has no schema for, and who says that it is right.
FOREIGN = {
    "ServiceMonitor": lambda raw: raw["spec"]["endpoints"][0]["port"] == "http-metrics",
    "Gateway": lambda raw: raw["spec"]["servers" if "istio" in raw["apiVersion"] else "listeners"],
    "InferenceService": spec.parse,
    "ServingRuntime": parse_runtime,
    "ClusterServingRuntime": parse_runtime,
}
each_case = pytest.mark.parametrize("case", VALUES)


def of(kind, objects, name=None):
    return [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]


def only(kind, objects, name=None):
    (found,) = of(kind, objects, name)
    return found


def pods(objects):
    for one in objects:
        if one["kind"] in ("Pod", "Deployment"):
            yield one["spec"]["template"]["spec"] if one["kind"] == "Deployment" else one["spec"]


@pytest.fixture(scope="module")
def known_settings():
    """What the controller says of its flags and variables, without the line breaks."""
    said = subprocess.run([sys.executable, "-m", "deployer.kubernetes", "--help"], capture_output=True, text=True, check=True)
    return "".join(said.stdout.split())


@pytest.mark.parametrize("chart", [CHART, CRDS], ids=lambda chart: chart.name)
def test_helm_finds_nothing_to_complain_of(chart):
    assert "0 chart(s) failed" in helm("lint", "--strict", chart)


@each_case
def test_every_object_is_what_its_schema_says(case):
    for one in template(VALUES[case]):
        if one["kind"] in FOREIGN:
            assert FOREIGN[one["kind"]](one)
        else:
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


@each_case
def test_objects_are_told_apart_and_belong_to_the_release(case):
    found = template(VALUES[case])
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found]
    assert len(set(names)) == len(names)
    for one in found:
        labels = one["metadata"]["labels"]
        assert (labels["app.kubernetes.io/instance"], labels["app.kubernetes.io/part-of"]) == ("serveplane", "serveplane")
        assert labels["app.kubernetes.io/version"] == VERSION


@each_case
def test_pods_run_under_the_restricted_standard(case):
    found = list(pods(template(VALUES[case])))
    assert len(found) == 2
    for pod in found:
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            own = container["securityContext"]
            assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


@each_case
def test_the_controller_takes_every_setting_it_is_given(case, known_settings):
    (container,) = only("Deployment", template(VALUES[case]))["spec"]["template"]["spec"]["containers"]
    assert [one["name"] for one in container["env"] if f"[{one['name']}]" not in known_settings] == []


@each_case
def test_selectors_find_the_pods_and_ports_have_their_names(case):
    found = template(VALUES[case])
    deployment, service = only("Deployment", found), only("Service", found)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    others = [one["spec"]["podSelector"] for one in of("NetworkPolicy", found)]
    others += [one["spec"]["selector"] for one in of("PodDisruptionBudget", found)]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        *(s["matchLabels"] for s in others),
    ):
        assert selector.items() <= labels.items()
    ports = {one["name"] for one in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {one["targetPort"] for one in service["spec"]["ports"]} == ports


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("nothing said", Settings(storage=StorageInitializer())),
        ("gateway api", Settings(ingress="gateway-api")),
        ("istio, with its gateway", Settings(gateway="istio-system/public")),
        ("no ingress", Settings(ingress="none")),
        ("only some namespaces", Settings(namespaces=("team-a", "team-b"))),
        ("only Roles, of its own namespace", Settings(namespaces=("kserve",))),
        (
            "everything on",
            Settings(
                registry="registry.example.com/team",
                storage=StorageInitializer(
                    image="registry.example.com/team/serveplane/storage-initializer:1.2.3", ca_bundle="certificates"
                ),
                network_policy=True,
                allow_from=("apps",),
            ),
        ),
    ],
)
def test_the_config_map_says_to_the_controller_what_the_values_say(case, wanted):
    config = only("ConfigMap", template(VALUES[case]), "inferenceservice-config")
    assert parse_config(config["data"]) == wanted
    # what KServe's own SDK and harness read
    assert json.loads(config["data"]["credentials"])["s3"]["s3AccessKeyIDName"] == "AWS_ACCESS_KEY_ID"
    assert json.loads(config["data"]["ingress"])["kserveIngressGateway"] == wanted.gateway


@pytest.mark.parametrize(("values", "where"), REFUSED, ids=[where for _, where in REFUSED])
def test_a_mistaken_value_is_refused_by_its_name(values, where):
    done = run("template", "serveplane", CHART, "-f", "-", input=yaml.safe_dump(values))
    assert done.returncode != 0
    assert where in done.stderr


def test_every_value_is_in_the_schema_and_every_property_is_a_value():
    def without_value(values, schema, path=""):
        for name, one in schema.get("properties", {}).items():
            if name in (values or {}):
                yield from without_value(values[name], one, f"{path}/{name}")
            else:
                yield f"{path}/{name}"

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    # what is left out where nothing is said, and what other charts tell all of theirs
    assert set(without_value(values, schema)) == {"/global", "/controller/resources/claims"}
    helm("lint", "--strict", CHART, "-f", CHART / "values.yaml")


def test_the_runtimes_are_the_built_in_ones():
    found = template()
    assert {one["metadata"]["name"]: parse_runtime(one).spec for one in of("ClusterServingRuntime", found)} == {
        one.name: one.spec for one in BUILTIN
    }
    tagged = template({"images": {"tag": "9", "registry": "registry.example.com"}})
    images = {one["spec"]["containers"][0]["image"] for one in of("ClusterServingRuntime", tagged)}
    # the registry is the controller's to put there
    assert images == {f"serveplane/{name}:9" for name in ("sklearn", "onnx", "tensorflow", "python")}


def test_what_predictors_ask_for_is_a_value():
    asked = {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}}
    found = of("ClusterServingRuntime", template({"runtimes": {"resources": asked}}))
    assert [one["spec"]["containers"][0]["resources"] for one in found] == [asked] * len(BUILTIN)


@pytest.mark.parametrize("kind", ["istio", "gateway-api"])
def test_the_way_to_services_outlives_the_release(kind):
    (gateway,) = of("Gateway", template({"ingress": {"kind": kind, "gateway": {"create": True}}}))
    assert gateway["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_with_roles_only_the_runtimes_are_the_namespaces_own_and_nothing_is_the_clusters():
    found = template(VALUES["only Roles"])
    places = {one["metadata"]["namespace"] for one in of("ServingRuntime", found)}
    assert places == {"team-a", "team-b"}
    assert {one["kind"] for one in found if "namespace" not in one["metadata"]} == set()


@pytest.mark.parametrize(("golden", "case"), [("cluster", "everything on"), ("namespace", "only Roles")])
def test_the_controller_may_do_what_it_needs_and_no_more(golden, case):
    found = template(VALUES[case])
    roles = [one for one in found if one["kind"] in ("ClusterRole", "Role")]
    said = {f"{one['kind']} {one['metadata'].get('namespace', '')}/{one['metadata']['name']}": one["rules"] for one in roles}
    path = GOLDEN / f"rbac.{golden}.yaml"
    text = yaml.safe_dump(said, sort_keys=True, default_flow_style=None, width=130)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"what the chart allows has changed: look at it, then UPDATE_GOLDEN=1 writes {path}"


@pytest.mark.parametrize("case", ["nothing said", "everything on", "only Roles"])
def test_no_role_reaches_for_everything(case):
    for role in (one for one in template(VALUES[case]) if one["kind"] in ("ClusterRole", "Role")):
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            assert "secrets" not in rule["resources"] or (
                rule["resourceNames"] and not {"list", "watch", "delete"} & set(rule["verbs"])
            )


@pytest.mark.parametrize("case", ["nothing said", "only Roles"])
def test_what_the_controller_makes_it_may_make(case):
    allowed = {}
    for role in (one for one in template(VALUES[case]) if one["kind"] in ("ClusterRole", "Role")):
        if role["metadata"]["name"] == "serveplane":
            allowed |= {
                (group, resource): set(rule["verbs"])
                for rule in role["rules"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
            }
    for kind in CHILDREN:
        group = kind.api_version.rpartition("/")[0]
        assert allowed[group, kind.plural] == {"get", "list", "watch", "create", "patch", "delete"}, kind


def test_the_notes_name_the_next_command():
    said = helm("install", "serveplane", CHART, "-n", "models", "--dry-run=client")
    notes = said.rpartition("NOTES:")[2]
    for text in (
        "helm test serveplane -n models",
        "kubectl apply -f -",
        "helm install serveplane-crds",
        "namespace kserve",
        'curl -H "Host',
    ):
        assert text in notes


def test_charts_have_the_projects_version():
    for chart in (CHART, CRDS):
        found = yaml.safe_load((chart / "Chart.yaml").read_text())
        assert (found["version"], found["appVersion"]) == (VERSION, VERSION)
