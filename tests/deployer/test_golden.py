"""From manifests to what is planned, run, routed and told: files that a person reviews.

`NAME.in.yaml` has two documents: the InferenceService, and what was seen of it (`revisions` by ready replicas, `models`
by digest, `weights`, `history`). The other files are what comes of it; `UPDATE_GOLDEN=1 ./scripts/test
tests/deployer/test_golden.py` writes them anew. Read the difference as if you were the user.
"""

import dataclasses
import os
from pathlib import Path

import pytest
import yaml

from deployer import spec, status
from deployer.local import process
from deployer.local.envoy import Backend, Endpoint, HeaderRoute, Mirror, ServiceRoutes
from deployer.observed import Failure, History, ModelSeen, Observed, RevisionSeen
from deployer.plan import plan

FOLDER = Path(__file__).parent / "golden"
CASES = sorted(p.name.removesuffix(".in.yaml") for p in FOLDER.glob("*.in.yaml"))
NOW = 1_800_000_000.0


def read(case):
    """The service, and what was seen of it.

    Revisions of the input are templates by the predictor they came from: a first plan of that predictor gives the hash.
    """
    service, seen = yaml.safe_load_all((FOLDER / f"{case}.in.yaml").read_text())
    models = {
        uri: ModelSeen(**m, failure=None) if "failure" not in m else ModelSeen(m["state"], failure=Failure(**m["failure"]))
        for uri, m in seen.get("models", {}).items()
    }
    revisions = []
    for number, one in enumerate(seen.get("revisions", ()), 1):
        meta = {k: v for k, v in service["metadata"].items() if k != "annotations"}
        before = {**service, "metadata": meta, "spec": {"predictor": one["predictor"]}}
        (made,) = plan(spec.parse(before), Observed(models=models)).revisions
        failure = Failure(**one["failure"]) if "failure" in one else None
        name = made.name[:-5] + f"{number:05d}"
        revisions.append(RevisionSeen(name, number, made.hash, made.template, one["ready"], one["ready"], one["ready"], failure))
    url = f"http://127.0.0.1:8085/serving/default/{service['metadata']['name']}"
    observed = Observed(
        tuple(revisions), models, seen.get("weights", {}), History(**seen.get("history", {})), url, "http://127.0.0.1:20000"
    )
    return service, observed


def outcome(case):
    raw, observed = read(case)
    service = spec.parse(raw)
    planned = plan(service, observed)
    seen = dataclasses.replace(
        observed, weights={t.revision: t.percent for t in planned.traffic if t.percent}, history=planned.history
    )
    known = [r for r in seen.revisions if r.name in {p.name for p in planned.revisions}]
    new = [RevisionSeen(r.name, r.number, r.hash, r.template) for r in planned.revisions if r.name not in {k.name for k in known}]
    seen = dataclasses.replace(seen, revisions=(*known, *new))
    told = status.derive(service, planned, seen, {}, NOW)
    return planned, told, local(planned, seen), service, seen


def local(planned, seen):
    """What this machine would run and route: argv lists, and what `local/envoy.py` is told, which has goldens of its own."""
    ports = {r.name: Endpoint(21000 + 2 * r.number, 21001 + 2 * r.number) for r in seen.revisions if r.ready}
    backends = tuple(Backend(t.revision, t.percent, (ports[t.revision],) if t.revision in ports else ()) for t in planned.traffic)
    routes = ServiceRoutes(
        planned.namespace, planned.name, 20000, planned.timeout, backends,
        tuple(HeaderRoute(m.header, m.value, m.revision) for m in planned.header_matches),
        Mirror(*planned.mirror) if planned.mirror else None,
    )  # fmt: skip
    run = {
        r.name: process.command(r.template, planned.name, f"/cache/{r.template['digest']}", 21000, 21001)[1:]
        for r in planned.revisions
    }
    return {"processes": run, "routes": routes}


def plain(value):
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("case", CASES)
def test_what_comes_of_a_manifest_is_what_was_reviewed(case):
    planned, told, here, _, _ = outcome(case)
    for kind, value in (("plan", plain(planned)), ("status", told), ("local", plain(here))):
        text = yaml.safe_dump(value, sort_keys=False, width=130)
        file = FOLDER / f"{case}.{kind}.yaml"
        if os.environ.get("UPDATE_GOLDEN"):
            file.write_text(text)
        assert text == file.read_text(), f"{file.name}: UPDATE_GOLDEN=1 writes it anew"


@pytest.mark.parametrize("case", CASES)
def test_planning_again_changes_nothing(case):
    planned, told, _, service, seen = outcome(case)
    again = plan(service, seen)
    assert (again.revisions, again.traffic, again.history) == (planned.revisions, planned.traffic, planned.history)
    assert status.derive(service, again, seen, told, NOW + 100) == told


def test_there_are_cases():
    assert len(CASES) >= 10
