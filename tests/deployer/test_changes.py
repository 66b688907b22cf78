"""What `deploy`, `promote` and `rollback` make of a service."""

import pytest

from deployer import changes, spec
from deployer.changes import Wish
from deployer.errors import Conflict, NotFound
from deployer.observed import ModelSeen, Observed
from deployer.plan import plan


def service(predictor, canary=None, status=None, annotations=None):
    meta = {"name": "iris", "namespace": "default", "uid": "1", "generation": 3, "annotations": annotations or {}}
    made = {"apiVersion": spec.API_VERSION, "kind": spec.KIND, "metadata": meta, "spec": {"predictor": predictor}}
    if canary:
        made["spec"]["canary"] = canary
    return made | ({"status": {"components": {"predictor": status}}} if status else {})


def seen(made):
    """By the platform, as it is."""
    return made | {"status": made["status"] | {"observedGeneration": made["metadata"]["generation"]}}


def model(uri, **more):
    return {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": uri, **more}}


ONE = service(model("/m/one.skops") | {"minReplicas": 2, "maxReplicas": 4})

DEPLOYS = [
    ("a new service", None, Wish("/m/a.skops", "sklearn"), model("/m/a.skops")),
    ("a canary of nothing is the whole", None, Wish("/m/a.skops", "sklearn", canary=10), model("/m/a.skops")),
    (
        "another model: what else was said stays",
        ONE,
        Wish("/m/b.skops", "sklearn"),
        model("/m/b.skops") | {"minReplicas": 2, "maxReplicas": 4},
    ),
    (
        "a canary",
        ONE,
        Wish("/m/b.skops", "sklearn", canary=20),
        model("/m/b.skops") | {"minReplicas": 2, "maxReplicas": 4, "canaryTrafficPercent": 20},
    ),
    (
        "the whole again",
        service(model("/m/a.skops") | {"canaryTrafficPercent": 20}),
        Wish("/m/b.skops", "sklearn"),
        model("/m/b.skops"),
    ),
    ("more at least than there were at most", ONE, Wish("/m/b.skops", "sklearn", min_replicas=5), model("/m/b.skops") | {"minReplicas": 5}),
    (
        "another format: a runtime of the old one is not for it",
        service(model("/m/a.skops", runtime="kserve-sklearnserver", env=[{"name": "A", "value": "b"}])),
        Wish("/m/b.onnx", "onnx"),
        {"model": {"modelFormat": {"name": "onnx"}, "storageUri": "/m/b.onnx", "env": [{"name": "A", "value": "b"}]}},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "wish", "predictor"), [d[1:] for d in DEPLOYS], ids=[d[0] for d in DEPLOYS])
def test_a_deploy(old, wish, predictor):
    made = changes.deploy(old, "default", "iris", wish)
    assert made["spec"]["predictor"] == predictor
    assert "status" not in made
    assert "uid" not in made["metadata"]
    spec.parse(made)


def test_a_deploy_says_what_each_replica_asks_for_and_may_take():
    old = service(model("/m/a.skops", resources={"requests": {"cpu": "1", "x": "2"}, "claims": []}))
    made = changes.deploy(old, "default", "iris", Wish("/m/b.skops", "sklearn", cpu="500m", memory="1Gi"))
    assert made["spec"]["predictor"]["model"]["resources"] == {
        "requests": {"cpu": "500m", "x": "2", "memory": "1Gi"},
        "limits": {"cpu": "500m", "memory": "1Gi"},
        "claims": [],
    }


def test_a_deploy_says_whom_to_trust_by_an_annotation_beside_the_others():
    old = service(model("/m/a.skops"), annotations={"team": "x"})
    made = changes.deploy(old, "default", "iris", Wish("/m/b.skops", "sklearn", trust_pickle=False))
    assert made["metadata"]["annotations"] == {"team": "x", spec.TRUST_PICKLE: "false"}
    assert old["metadata"]["annotations"] == {"team": "x"}


def test_promoting_a_share_drops_it():
    made = changes.promote(service(model("/m/b.skops") | {"canaryTrafficPercent": 20, "minReplicas": 2}))
    assert made["spec"]["predictor"] == model("/m/b.skops") | {"minReplicas": 2}


def test_promoting_an_entry_makes_it_the_predictor_whole_and_leaves_the_others():
    blue = {"trafficPercent": 10, "predictor": {"name": "blue", "model": {"storageUri": "/m/b.skops"}}}
    green = {"trafficPercent": 20, "predictor": {"name": "green"} | model("/m/c.skops")}
    old = service(model("/m/one.skops") | {"minReplicas": 4, "timeout": 9}, [blue, green])
    made = changes.promote(old, "blue")
    parsed = spec.parse(made)
    assert parsed.spec.predictor.model.storage_uri == "/m/b.skops"
    assert parsed.spec.predictor.model.model_format.name == "sklearn"
    assert (parsed.spec.predictor.name, parsed.spec.predictor.min_replicas, parsed.spec.predictor.timeout) == ("blue", 4, 9)
    assert [c.predictor.name for c in parsed.spec.canary] == ["green"]
    with pytest.raises(Conflict, match="blue, green"):
        changes.promote(old)
    with pytest.raises(Conflict, match="no canary"):
        changes.promote(ONE)


def failed(state):
    return {"states": {"targetModelState": state}, "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "no model"}}


def test_a_candidate_that_can_not_serve_is_not_promoted():
    old = service(model("/m/b.skops") | {"canaryTrafficPercent": 20})
    for seen, state, fits in ((3, "FailedToLoad", False), (3, "Loading", True), (2, "FailedToLoad", True)):
        told = old | {"status": {"observedGeneration": seen, "modelStatus": failed(state)}}
        if fits:
            changes.promote(told)
            continue
        with pytest.raises(Conflict, match="can't serve: ModelLoadFailed: no model; .*serve rollback iris"):
            changes.promote(told)


def test_an_entry_that_can_not_serve_is_not_promoted():
    blue = {"trafficPercent": 10, "predictor": {"name": "blue", "model": {"storageUri": "/m/b.skops"}}}
    told = {"observedGeneration": 3, "canaryStatuses": [{"name": "blue", "modelStatus": failed("FailedToLoad")}]}
    with pytest.raises(Conflict, match="can't serve"):
        changes.promote(service(model("/m/one.skops"), [blue]) | {"status": told})


REVISIONS = [{"name": f"iris-predictor-0000{n}", "number": n, "predictor": model(f"/m/{n}.skops")} for n in (1, 2, 3)]
TWO = {
    "latestCreatedRevision": "iris-predictor-00002",
    "latestRolledoutRevision": "iris-predictor-00002",
    "previousRolledoutRevision": "iris-predictor-00001",
}
ROLLBACKS = [
    ("to the one before", service(model("/m/2.skops"), status=TWO), None, 1),
    ("to one by name", service(model("/m/2.skops"), status=TWO), "iris-predictor-00003", 3),
    ("to one by number", service(model("/m/2.skops"), status=TWO), "3", 3),
    ("a candidate is given up", service(model("/m/3.skops") | {"canaryTrafficPercent": 9}, status=TWO), None, 2),
    (
        "an update that never got ready is given up",
        service(model("/m/3.skops"), status=TWO | {"latestCreatedRevision": "iris-predictor-00003"}),
        None,
        2,
    ),
    (
        "0 % for what was promoted: the requests are the one before's, and stay there",
        seen(service(model("/m/2.skops") | {"canaryTrafficPercent": 0}, status=TWO)),
        None,
        1,
    ),
    (
        "a share for what was promoted, which nobody has looked at yet",
        service(model("/m/2.skops") | {"canaryTrafficPercent": 10, "minReplicas": 1}, status=TWO),
        None,
        1,
    ),
    (
        "a candidate that was seen",
        seen(
            service(
                model("/m/3.skops") | {"canaryTrafficPercent": 0}, status=TWO | {"latestCreatedRevision": "iris-predictor-00003"}
            )
        ),
        None,
        2,
    ),
]


@pytest.mark.parametrize(("old", "to", "number"), [r[1:] for r in ROLLBACKS], ids=[r[0] for r in ROLLBACKS])
def test_a_rollback(old, to, number):
    made, name = changes.roll_back(old, REVISIONS, to)
    assert name == f"iris-predictor-0000{number}"
    assert made["spec"]["predictor"].pop("minReplicas", 1) == 1
    assert made["spec"]["predictor"] == model(f"/m/{number}.skops")


@pytest.mark.parametrize(
    ("why", "uri", "now", "trusted", "then"),
    [
        ("it came with the candidate", "pvc://m/2", {spec.TRUST_PICKLE: "true", "team": "x"}, False, {"team": "x"}),
        ("it said so of the stable one too", "pvc://m/2", {spec.TRUST_PICKLE: "true"}, True, {spec.TRUST_PICKLE: "true"}),
        ("it was taken away since", "pvc://m/2", {}, True, {spec.TRUST_PICKLE: "true"}),
        ("a file of this machine is trusted anyway", "/m/2.skops", {spec.TRUST_PICKLE: "false"}, True, {}),
        ("it was not trusted although it is of this machine", "/m/2.skops", {}, False, {spec.TRUST_PICKLE: "false"}),
    ],
)
def test_a_rollback_takes_back_whom_to_trust(why, uri, now, trusted, then):
    old = service(model("pvc://m/3") | {"canaryTrafficPercent": 20}, status=TWO, annotations=now)
    revision = {"name": "iris-predictor-00002", "predictor": model(uri), "template": {"trustCode": trusted}}
    made, _ = changes.roll_back(old, [revision])
    assert made["metadata"]["annotations"] == then
    assert old["metadata"]["annotations"] == now


def test_a_rollback_keeps_how_many_there_are_and_drops_canaries():
    old = service(
        model("/m/2.skops") | {"minReplicas": 3}, [{"trafficPercent": 1, "predictor": {"name": "c"} | model("/m/3.skops")}], TWO
    )
    made, _ = changes.roll_back(old, REVISIONS)
    assert made["spec"] == {"predictor": model("/m/2.skops") | {"minReplicas": 3}}


def test_a_rollback_to_nothing_says_what_there_is():
    with pytest.raises(NotFound, match="it has iris-predictor-00001, iris-predictor-00002"):
        changes.roll_back(service(model("/m/2.skops"), status=TWO), REVISIONS[:2], "iris-predictor-00009")
    with pytest.raises(Conflict, match="no earlier revision"):
        changes.roll_back(service(model("/m/2.skops"), status={"latestRolledoutRevision": "x"}), REVISIONS)


# checksums

SUM, OTHER = "a" * 64, "b" * 64
PINNED = service(model("/m/2.skops"), status=TWO, annotations={"team": "x", spec.SHA256: SUM})


@pytest.mark.parametrize(
    ("change", "sha256"),
    [
        (lambda: changes.deploy(None, "default", "iris", Wish("/m/2.skops", "sklearn", sha256=SUM)), SUM),
        (lambda: changes.deploy(PINNED, "default", "iris", Wish("/m/2.skops", "sklearn")), SUM),
        (lambda: changes.deploy(PINNED, "default", "iris", Wish("/m/2.skops", "sklearn", sha256=OTHER)), OTHER),
        (lambda: changes.deploy(PINNED, "default", "iris", Wish("/m/3.skops", "sklearn", canary=5)), None),
        (lambda: changes.roll_back(PINNED, REVISIONS)[0], None),
    ],
    ids=["given", "kept with its model", "another", "another model", "a rollback"],
)
def test_a_checksum_stays_with_the_model_that_it_is_of(change, sha256):
    assert change()["metadata"].get("annotations", {}).get(spec.SHA256) == sha256


def test_a_checksum_goes_with_the_predictor_to_a_revision_and_back():
    fetched = Observed(models={f"/m/2.skops#sha256={SUM}": ModelSeen("fetched", "sha256:x")})
    planned = plan(spec.parse(PINNED), fetched)
    (revision,) = planned.revisions
    assert revision.template["uri"] == revision.predictor["model"]["storageUri"] == f"/m/2.skops#sha256={SUM}"
    back, _ = changes.roll_back(PINNED, [{"name": "iris-predictor-00001", "predictor": revision.predictor}])
    assert plan(spec.parse(back), fetched).revisions[0].hash == revision.hash


def test_the_checksum_is_of_the_predictor_and_not_of_a_canary():
    canary = [{"trafficPercent": 5, "predictor": {"name": "c"} | model("/m/3.skops")}]
    found = spec.pinned(spec.parse(service(model("/m/2.skops"), canary, annotations={spec.SHA256: SUM.upper()})))
    assert found.spec.predictor.model.storage_uri == f"/m/2.skops#sha256={SUM}"
    assert found.spec.canary[0].predictor.model.storage_uri == "/m/3.skops"
