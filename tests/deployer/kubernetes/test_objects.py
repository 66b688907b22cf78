"""From manifests to the objects of a cluster: files that a person reviews, and rules that hold for every one of them.

Cases are those of the platform-neutral goldens, and the cluster's own beside this file; `cases.py` reads them.  What was
seen may say more here: `deployments` and `shares` as they are, `accounts` with their Secrets, `config` (the ConfigMap) and
`runtimes`.  `UPDATE_GOLDEN=1 ./scripts/test tests/deployer/kubernetes/test_objects.py` writes what comes of them anew.
"""

import dataclasses
import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from deployer import runtimes, spec
from deployer.kubernetes.rendering import credentials, layout, objects, settings
from deployer.kubernetes.rendering.credentials import SecretSeen, ServiceAccountSeen
from deployer.kubernetes.rendering.layout import SeenDeployment
from deployer.observed import History, Observed, RevisionSeen
from deployer.plan import Abilities, plan
from tests.deployer.cases import FOLDER, Whole, cases, check, documents, read

OWN = Path(__file__).parent / "golden"
CASES = [(FOLDER, case) for case in cases()] + [(OWN, case) for case in cases(OWN)]
IDS = [case for _, case in CASES]
CLUSTER = Abilities(fetches=False, pods=True)
KUBERNETES = "1.34"
UID = "6f0c1d1e-0000-4000-8000-000000000001"
every_case = pytest.mark.parametrize(("folder", "case"), CASES, ids=IDS)


@dataclasses.dataclass
class Rendered:
    service: spec.InferenceService
    plan: object
    layout: layout.Layout
    settings: settings.Settings
    objects: list
    notes: tuple

    def of(self, kind):
        return [one for one in self.objects if one["kind"] == kind]

    def named(self, kind, name="iris-predictor"):
        (found,) = (one for one in self.of(kind) if one["metadata"]["name"] == name)
        return found

    def pod(self, name="iris-predictor"):
        return self.named("Deployment", name)["spec"]["template"]["spec"]

    def server(self, name="iris-predictor"):
        return self.pod(name)["containers"][0]


def account(one):
    secrets = tuple(
        SecretSeen(s["name"], frozenset(s["keys"]) if "keys" in s else None, s.get("annotations", {})) for s in one["secrets"]
    )
    return ServiceAccountSeen(one["name"], one.get("annotations", {}), secrets)


def deployments(seen, observed, asked):
    """As the case says, or one for each revision that was seen: the rolled-out one's is the stable one."""
    if "deployments" in seen:
        return {name: SeenDeployment(d["revision"], *[d["pods"]] * 4) for name, d in seen["deployments"].items()}
    entries = {revision: layout.canary_name("iris", name) for name, revision, _ in asked[1:]}
    found = {}
    for one in observed.revisions:
        stable = one.name == observed.history.rolled_out
        name = "iris-predictor" if stable else entries.get(one.name, "iris-predictor-canary")
        found[name] = SeenDeployment(one.name, *[one.ready] * 4)
    return found


def rendered(folder, case, change=lambda raw: raw):
    raw, observed = read(case, folder, CLUSTER)
    seen = documents(case, folder)[1]
    raw["metadata"]["uid"] = UID
    installed = [runtimes.parse_runtime(one) for one in seen.get("runtimes", ())]
    service = spec.parse(change(raw), formats=runtimes.formats_of(installed))
    chosen = settings.parse_config({key: json.dumps(value) for key, value in seen.get("config", {}).items()})
    planned = plan(service, observed, installed, CLUSTER)
    there = deployments(seen, observed, planned.asked)
    revisions = {one.revision: name for name, one in there.items()}
    shares = seen.get("shares") or {revisions[r]: percent for r, percent in observed.weights.items() if r in revisions}
    laid = layout.layout(service.metadata.name, planned, there, shares, service.spec.predictor.name or "")
    accounts = {one["name"]: account(one) for one in seen.get("accounts", ())}

    def who(namespace, name):
        assert namespace == service.metadata.namespace
        return accounts.get(name, ServiceAccountSeen(name))

    made = objects.render(chosen, service, planned, laid, who)
    return Rendered(service, planned, laid, chosen, made, objects.notes(chosen, service))


@every_case
def test_the_objects_of_a_manifest_are_what_was_reviewed(folder, case):
    found = rendered(folder, case)
    url, address = objects.urls(found.settings, found.service)
    said = [
        f"url: {url}",
        f"address: {address}",
        *([f"retained: {', '.join(found.layout.retained)}"] if found.layout.retained else []),
    ]
    comments = "".join(f"# {line}\n" for line in [*said, *map(str, found.notes)])
    text = yaml.dump_all(found.objects, Dumper=Whole, sort_keys=False, width=130) if found.objects else ""
    check(folder / f"{case}.kubernetes.yaml", comments + text)


@every_case
def test_rendering_again_gives_the_same(folder, case):
    assert rendered(folder, case).objects == rendered(folder, case).objects


LONGEST = {
    "a candidate": ({"canaryTrafficPercent": 20}, {}),
    "a predictor with a name": ({"canaryTrafficPercent": 20, "name": "p"}, {}),
    "a canary with a name": ({}, {"canary": [{"trafficPercent": 20, "predictor": {"name": "c", "model": {"storageUri": "s3://b/3"}}}]}),
    "a transformer": ({"canaryTrafficPercent": 20}, {"transformer": {"containers": [{"image": "x"}]}}),
    "an explainer": ({"canaryTrafficPercent": 20}, {"explainer": {"containers": [{"image": "x"}]}}),
}  # fmt: skip


@pytest.mark.parametrize("ingress", ["istio", "gateway-api", "none"])
@pytest.mark.parametrize("case", LONGEST)
def test_the_longest_name_of_a_service_fits_all_that_is_named_after_it(case, ingress):
    """Host names bound it at admission; a Service's name and a label hold 63 characters, and what is longer is shortened."""
    own, rest = LONGEST[case]

    def of(name, own, uri="s3://b/2"):
        predictor = {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": uri}, **own}
        meta = {"name": name, "namespace": "n", "uid": UID}
        raw = {"apiVersion": spec.API_VERSION, "kind": spec.KIND, "metadata": meta}
        return {**raw, "spec": {"predictor": predictor, **rest}}

    def refused(name):
        try:
            spec.parse(of(name, own))
        except spec.SpecError as error:
            return str(error)
        return ""

    longest = max(length for length in range(30, 60) if not refused("a" * length))
    assert longest == 51
    assert "51 are allowed" in refused("a" * (longest + 1))
    name = "a" * longest
    service = spec.parse(of(name, own))
    first = plan(spec.parse(of(name, {}, "s3://b/1")), Observed(), abilities=CLUSTER).revisions[0]
    seen = RevisionSeen(first.name, 1, first.hash, first.template, 1, 1, 1)
    observed = Observed((seen,), {}, {first.name: 100}, History(first.name, first.name, first.name))
    planned = plan(service, observed, abilities=CLUSTER)
    home = layout.stable_name(name, own.get("name", ""))
    there = {home: SeenDeployment(first.name, 1, 1, 1, 1)}
    laid = layout.layout(name, planned, there, {home: 100}, own.get("name", ""))
    assert len(laid.workloads) == 2
    chosen = settings.Settings(ingress=ingress)
    made = objects.render(chosen, service, planned, laid, lambda namespace, name: ServiceAccountSeen(name))
    names = [(one["kind"], one["metadata"]["name"]) for one in made]
    assert len(set(names)) == len(names)
    for one in made:
        assert len(one["metadata"]["name"]) <= 63, one["kind"]
        inside = one["spec"].get("template", {}).get("metadata", {}).get("labels", {})
        assert all(len(value) <= 63 for value in (*one["metadata"]["labels"].values(), *inside.values()))
        if not one["apiVersion"].startswith(("networking.istio.io", "gateway.networking.k8s.io")):
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


# what Kubernetes, Istio and the Gateway API make of them


@every_case
def test_objects_fit_kubernetes_own_schemas(folder, case):
    for one in rendered(folder, case).objects:
        if one["apiVersion"].split("/")[0] in ("networking.istio.io", "gateway.networking.k8s.io", "keda.sh"):
            continue
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@every_case
def test_names_are_unique_and_each_object_is_the_service_s(folder, case):
    found = rendered(folder, case)
    names = [(one["kind"], one["metadata"]["name"]) for one in found.objects]
    assert len(names) == len(set(names))
    for one in found.objects:
        meta = one["metadata"]
        name = found.service.metadata.name
        assert meta["labels"]["serving.serveplane.dev/owner"] == meta["labels"]["serving.kserve.io/inferenceservice"] == name
        assert all(len(value) <= 63 for value in meta["labels"].values())
        assert len(meta["name"]) <= 63
        (owner,) = meta["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["name"]) == (UID, True, name)


@every_case
def test_lists_that_are_merged_by_a_key_have_it_once(folder, case):
    """Server-side apply refuses anything else."""
    for one in rendered(folder, case).of("Deployment"):
        pod = one["spec"]["template"]["spec"]
        unique(pod.get("volumes", ()), "name")
        unique([*pod["containers"], *pod.get("initContainers", ())], "name")
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            unique(container.get("env", ()), "name")
            unique(container.get("volumeMounts", ()), "mountPath")
            unique(container.get("ports", ()), "containerPort")
            known = {volume["name"] for volume in pod.get("volumes", ())}
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= known


def unique(items, key):
    values = [one[key] for one in items]
    assert len(values) == len(set(values)), values


@every_case
def test_routes_lead_to_ports_that_services_have(folder, case):
    found = rendered(folder, case)
    ports = {one["metadata"]["name"]: {p["port"]: p for p in one["spec"]["ports"]} for one in found.of("Service")}
    for name, port, grpc in destinations(found):
        if name in found.layout.retained:
            continue
        assert port in ports[name], (name, port)
        assert (ports[name][port].get("appProtocol") == "kubernetes.io/h2c") or not grpc


def destinations(found):
    """(Service, port, whether for gRPC) of everything that a route leads to."""
    end = f".{found.service.metadata.namespace}.svc.cluster.local"
    for one in found.of("VirtualService"):
        for rule in one["spec"]["http"]:
            grpc = any("content-type" in match.get("headers", {}) for match in rule.get("match", ()))
            for to in (*rule.get("route", ()), *rule.get("mirrors", ())):
                assert to["destination"]["host"].endswith(end)
                yield to["destination"]["host"].removesuffix(end), to["destination"]["port"]["number"], grpc
    for one in found.of("HTTPRoute"):
        for rule in one["spec"]["rules"]:
            grpc = any(h["name"] == "content-type" for match in rule["matches"] for h in match.get("headers", ()))
            for to in rule.get("backendRefs", ()):
                yield to["name"], to["port"], grpc


@every_case
def test_weights_sum_to_a_hundred_and_the_last_rule_takes_every_request(folder, case):
    found = rendered(folder, case)
    for one in found.of("VirtualService"):
        assert one["apiVersion"] == "networking.istio.io/v1"
        rules = one["spec"]["http"]
        assert one["spec"]["hosts"]
        assert one["spec"]["gateways"]
        assert "match" not in rules[-1]
        for rule in rules:
            assert ("route" in rule) != ("directResponse" in rule)
            if len(rule.get("route", ())) > 1:
                assert sum(to["weight"] for to in rule["route"]) == 100
            assert all(weight for to in rule.get("route", ()) if (weight := to.get("weight", 100)) is not None)
    for one in found.of("HTTPRoute"):
        rules = one["spec"]["rules"]
        assert len(rules) <= 16
        assert "headers" not in rules[-1]["matches"][0]
        for rule in rules:
            assert sum(to["weight"] for to in rule.get("backendRefs", ())) in (0, 1, 100)
    hosts = [one["spec"]["host"].split(".")[0] for one in found.of("DestinationRule")]
    assert hosts == ([one["metadata"]["name"] for one in found.of("Service")] if found.settings.ingress == "istio" else [])


# what holds for every pod


@every_case
def test_pods_may_do_nothing_but_serve(folder, case):
    found = rendered(folder, case)
    for one in found.of("Deployment"):
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["automountServiceAccountToken"] is (case == "pod-fields")
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            if "serveplane/" in container["image"] or container["name"] == "storage-initializer":
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])


@every_case
def test_pods_get_ready_soon_and_leave_without_haste(folder, case):
    for one in rendered(folder, case).of("Deployment"):
        pod = one["spec"]["template"]["spec"]
        server = pod["containers"][0]
        assert server["name"] == "kserve-container"
        assert server["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert server["readinessProbe"].get("periodSeconds", 10) <= 2 or case == "pod-fields"
        if "serveplane/" not in server["image"]:
            assert server["lifecycle"]["preStop"]["sleep"]["seconds"] < pod["terminationGracePeriodSeconds"]
            continue
        assert server["startupProbe"]["periodSeconds"] == 1
        assert server["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
        grace = float(server["args"][server["args"].index("--grace") + 1]) if "--grace" in server["args"] else 25.0
        assert pod["terminationGracePeriodSeconds"] > grace


@every_case
def test_a_roll_takes_no_pod_away_before_another_is_ready(folder, case):
    for one in rendered(folder, case).of("Deployment"):
        if case != "scaled-by-nobody":
            assert one["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": "25%"}


@every_case
def test_replicas_are_said_where_nobody_else_says_them(folder, case):
    found = rendered(folder, case)
    scaled = {one["metadata"]["name"] for kind in ("HorizontalPodAutoscaler", "ScaledObject") for one in found.of(kind)}
    for one in found.of("Deployment"):
        fixed = case == "scaled-by-nobody"
        assert ("replicas" in one["spec"]) is fixed
        assert (one["metadata"]["name"] in scaled) is not (fixed or case == "scaled-by-another")


@every_case
def test_what_is_routed_to_comes_before_the_routes(folder, case):
    kinds = [one["kind"] for one in rendered(folder, case).objects]
    routes = [at for at, kind in enumerate(kinds) if kind in ("VirtualService", "HTTPRoute")]
    assert routes == list(range(len(kinds) - len(routes), len(kinds)))


@every_case
def test_secrets_are_seen_by_the_init_container_only(folder, case):
    for one in rendered(folder, case).of("Deployment"):
        for container in one["spec"]["template"]["spec"]["containers"]:
            assert "secretKeyRef" not in str(container)
            assert "user-gcp-sa" not in str(container)


# single things


def test_a_pod_does_not_change_because_of_how_its_service_is_routed():
    def header(raw):
        raw["metadata"].setdefault("annotations", {})["serving.serveplane.dev/route-header"] = "x-team=gamma"
        return raw

    assert rendered(FOLDER, "canary-20", header).of("Deployment") == rendered(FOLDER, "canary-20").of("Deployment")


def test_a_user_s_flags_are_heard_and_not_ours():
    args = rendered(OWN, "pod-fields").server()["args"]
    assert args.index("--http_port=8090") > args.index("--http_port=8080")
    assert [p["containerPort"] for p in rendered(OWN, "pod-fields").server()["ports"]] == [8090]


def test_code_in_a_model_runs_only_where_the_manifest_trusts_it():
    assert "--trust_pickle false" in " ".join(rendered(OWN, "pvc").server()["args"])
    assert "--trust_pickle true" in " ".join(rendered(OWN, "pod-fields").server()["args"])
    for case in ("storage-by-key", "storage-by-key-and-uri", "storage-uris"):
        assert "--trust_pickle false" in " ".join(rendered(OWN, case).server()["args"]), case


def changed(case, **template):
    """A case with more in its revision's template."""
    raw, observed = read(case, OWN, CLUSTER)
    raw["metadata"]["uid"] = UID
    service = spec.parse(raw)
    planned = plan(service, observed, abilities=CLUSTER)
    (revision,) = planned.revisions
    planned = dataclasses.replace(planned, revisions=(dataclasses.replace(revision, template={**revision.template, **template}),))
    laid = layout.layout("iris", planned, {}, {})
    made = objects.render(settings.Settings(), service, planned, laid, lambda namespace, name: ServiceAccountSeen(name))
    return Rendered(service, planned, laid, settings.Settings(), made, ())


def test_several_models_are_fetched_by_one_container_into_one_volume():
    uris = [
        {"uri": "s3://m/one", "mountPath": "/mnt/models/one"},
        {"uri": "s3://m/two", "mountPath": "/mnt/models/two"},
        {"uri": "pvc://base/x", "mountPath": "/mnt/base"},
    ]
    pod = changed("pvc", uri="", storageUris=uris).pod()
    (init,) = pod["initContainers"]
    assert init["args"] == ["s3://m/one", "/mnt/models/one", "s3://m/two", "/mnt/models/two"]
    mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"/mnt/models": "mnt-models", "/mnt/base": "kserve-pvc-source-base", "/tmp": "serveplane-tmp"}


def test_a_store_in_a_secret_is_named_to_the_init_container():
    storage = {"key": "minio", "path": "models/iris", "parameters": {"bucket": "b", "type": "s3"}}
    (init,) = changed("pvc", uri="", storage=storage).pod()["initContainers"]
    assert init["args"][0] == "s3://b/models/iris"
    env = {one["name"]: one for one in init["env"]}
    assert env["STORAGE_CONFIG"]["valueFrom"]["secretKeyRef"] == {"name": "storage-config", "key": "minio"}
    assert json.loads(env["STORAGE_OVERRIDE_CONFIG"]["value"]) == storage["parameters"]


def test_a_mount_of_the_user_s_at_the_models_place_is_left_alone():
    own = {
        "name": "kserve-container",
        "image": "serveplane/sklearn:1",
        "volumeMounts": [{"name": "mine", "mountPath": "/mnt/models/"}],
    }
    pod = changed("pvc", container=own, pod={"volumes": [{"name": "mine", "emptyDir": {}}]}).pod()
    assert [one["name"] for one in pod["volumes"]] == ["serveplane-tmp", "mine"]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], {"AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY"}),
        (["awsAccessKeyID", "awsSecretAccessKey"], {"AWS_ACCESS_KEY_ID": "awsAccessKeyID", "AWS_SECRET_ACCESS_KEY": "awsSecretAccessKey"}),
        (["mine", "AWS_SECRET_ACCESS_KEY"], {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY"}),
        (["HF_TOKEN"], {"HF_TOKEN": "HF_TOKEN"}),
        (["AZ_CLIENT_ID", "AZURE_TENANT_ID"], {"AZURE_CLIENT_ID": "AZ_CLIENT_ID", "AZURE_TENANT_ID": "AZURE_TENANT_ID"}),
        (["something-else"], {}),
    ],
)  # fmt: skip
def test_keys_of_secrets_become_variables(keys, wanted):
    names = settings.Credentials(settings.S3(access_key="mine"))
    who = ServiceAccountSeen("reader", {}, (SecretSeen("one", frozenset(keys)),))
    env = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in credentials.given(names, who).env}
    assert env == {variable: {"name": "one", "key": key} for variable, key in wanted.items()}


def test_a_secret_that_may_not_be_read_is_named_with_every_key_it_may_have():
    given = credentials.given(settings.Credentials(), ServiceAccountSeen("reader", {}, (SecretSeen("one"), SecretSeen("two"))))
    assert {one["valueFrom"]["secretKeyRef"]["optional"] for one in given.env} == {True}
    assert {one["valueFrom"]["secretKeyRef"]["name"] for one in given.env} == {"one"}


def test_there_are_cases():
    assert len(CASES) >= 35
