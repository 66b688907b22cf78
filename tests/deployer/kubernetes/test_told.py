"""What people are told of pods and of changes, by a cluster's own words."""

import pytest

from deployer import spec
from deployer.kubernetes import events, pods, seeing
from deployer.observed import History, Observed, RevisionSeen
from deployer.plan import Abilities, plan

WORDS = [
    (
        "a model for another runtime",
        "/mnt/models/m.skops needs the sklearn runtime, and the Python package 'skops' is not installed; run: pip install 'x'",
        "pvc://models/m.skops",
        "pvc://models/m.skops/m.skops is a model for sklearn, which this runtime does not open; set modelFormat.name: sklearn",
    ),
    (
        "a pickle",
        "/mnt/models/m.joblib is a pickle file; save it with skops, or start with --trust-pickle",
        "",
        "/mnt/models/m.joblib is a pickle file; save it with skops, or start with --trust-pickle "
        '(here: the annotation serving.serveplane.dev/trust-pickle: "true")',
    ),
    (
        "an empty folder",
        "no model found at /mnt/models: it is empty",
        "pvc://models/nosuch/",
        "no model found at pvc://models/nosuch: it is empty",
    ),
    ("another folder", "/mnt/models-2 is none", "pvc://models/a", "/mnt/models-2 is none"),
]


@pytest.mark.parametrize(("words", "uri", "told"), [row[1:] for row in WORDS], ids=[row[0] for row in WORDS])
def test_a_predictors_words_are_said_of_the_manifest(words, uri, told):
    assert pods.of_the_model(words, uri) == told


def pod(**status):
    labels = {"serving.serveplane.dev/revision": "iris-predictor-00001"}
    meta = {"name": "iris-1", "labels": labels, "creationTimestamp": "2026-11-24T08:00:00Z"}
    return {"metadata": meta, "spec": {"images": []}, "status": {"conditions": [], "phase": "Pending", **status}}


def test_a_failure_names_the_claim_and_not_the_pods_folder():
    ended = {"exitCode": 1, "message": "serve: no model found at /mnt/models: it is empty"}
    container = {
        "name": "kserve-container",
        "lastState": {"terminated": ended},
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }
    stored = {
        "metadata": {"name": "iris-predictor-00001"},
        "revision": 1,
        "data": {"hash": "h", "template": {"uri": "pvc://models/nosuch"}},
    }
    (one,) = seeing.revisions([stored], [], [pod(containerStatuses=[container])], 0.0)
    assert "no model found at pvc://models/nosuch: it is empty" in one.failure.message


def test_a_claim_that_is_not_there_is_named_once():
    said = '0/1 nodes are available: persistentvolumeclaim "models" not found. not found'
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
    found = pods.of_pod(pod(conditions=[condition | {"lastTransitionTime": "2026-11-24T08:00:00Z"}]), 2e9)
    assert found.message.endswith('persistentvolumeclaim "models" not found; make the claim, or name another in storageUri')


SERVICE = {"apiVersion": "a", "kind": "b", "metadata": {"name": "iris", "namespace": "n", "uid": "u"}}


def told(state, generation, reason=""):
    ready = {"type": "Ready", "status": state, "reason": reason, "lastTransitionTime": "2026-11-24T08:00:00Z"}
    return {"observedGeneration": generation, "conditions": [ready]}


@pytest.mark.parametrize(
    ("after", "kind"),
    [
        (told("Unknown", 2, "Starting"), "Normal"),
        (told("Unknown", 1, "Routing"), "Normal"),
        (told("Unknown", 1, "Starting"), "Warning"),
        (told("False", 2, "OOMKilled"), "Warning"),
    ],
    ids=["an update", "routes that change", "pods that died", "an update that fails"],
)
def test_what_was_asked_for_and_takes_its_time_is_no_warning(after, kind):
    (event,) = events.transitions(SERVICE, told("True", 1), after)
    assert event["type"] == kind


def test_a_share_for_what_has_all_already_is_told_with_what_comes_of_it():
    def shared(latest):
        traffic = [("r1", 100 - latest, "prev"), ("r2", latest, "latest")]
        parts = [{"revisionName": name, "percent": percent, "tag": tag} for name, percent, tag in traffic]
        predictor = {"traffic": parts, "latestRolledoutRevision": "r2", "previousRolledoutRevision": "r1"}
        return told("True", 2) | {"components": {"predictor": predictor}}

    (event,) = events.transitions(SERVICE, shared(100), shared(20))
    assert event["reason"] == "PreviousRevisionServes"
    assert event["message"].endswith("canaryTrafficPercent leaves it 20 %, and r1, the one before, gets 80 %")
    assert list(events.transitions(SERVICE, shared(20), shared(20))) == []


def test_a_runtime_that_is_gone_is_named():
    raw = {
        "apiVersion": spec.API_VERSION,
        "kind": spec.KIND,
        "metadata": {"name": "iris"},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "own"}, "storageUri": "s3://m/1"}}},
    }
    served = RevisionSeen("r1", 1, "h", {"runtime": "own-server", "format": "own"}, 1, 1, 1)
    made = plan(
        spec.parse(raw, formats=None),
        Observed((served,), history=History("r1", "r1", "r1")),
        (),
        Abilities(fetches=False, pods=True),
    )
    assert made.problems[0].message.endswith("made by the runtime 'own-server', which is gone: install it again")
    assert [one.percent for one in made.traffic] == [100]
