"""From manifests to what is planned, run, routed and told: files that a person reviews.

The cases are read by `cases.py`; `UPDATE_GOLDEN=1 ./scripts/test tests/deployer/test_golden.py` writes what comes of them
anew. Read the difference as if you were the user.
"""

import dataclasses

import pytest
import yaml

from deployer import spec, status
from deployer.local import process
from deployer.local.envoy import Backend, Endpoint, HeaderRoute, Mirror, ServiceRoutes
from deployer.observed import RevisionSeen
from deployer.plan import plan
from tests.deployer.cases import FOLDER, cases, check, plain, read

CASES = cases()
NOW = 1_800_000_000.0


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


@pytest.mark.parametrize("case", CASES)
def test_what_comes_of_a_manifest_is_what_was_reviewed(case):
    planned, told, here, _, _ = outcome(case)
    for kind, value in (("plan", plain(planned)), ("status", told), ("local", plain(here))):
        check(FOLDER / f"{case}.{kind}.yaml", yaml.safe_dump(value, sort_keys=False, width=130))


@pytest.mark.parametrize("case", CASES)
def test_planning_again_changes_nothing(case):
    planned, told, _, service, seen = outcome(case)
    again = plan(service, seen)
    assert (again.revisions, again.traffic, again.history) == (planned.revisions, planned.traffic, planned.history)
    assert status.derive(service, again, seen, told, NOW + 100) == told


def test_there_are_cases():
    assert len(CASES) >= 10
