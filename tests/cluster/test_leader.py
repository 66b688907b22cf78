"""Two controllers at once (fault F14 of the test plan): one writes, and one that has lost the Lease never does again."""

import signal
import time

import pytest

from deployer.kubernetes.kinds import DEPLOYMENT, LEASE
from tests.cluster.plane import booted, service, until
from tests.cluster.process import Process, at_most
from tests.cluster.proxy import Proxy

LEASE_SECONDS = 15.0


@pytest.fixture(scope="module")
def plane():
    with booted() as found:
        yield found


class Replica:
    """A controller, and all that it asks of the API server."""

    def __init__(self, plane, name, lease):
        self.name, self.proxy = name, Proxy(plane.kubeconfig)
        self.process = Process(self.proxy.kubeconfig, lease, identity=name)

    @property
    def wrote(self):
        """When, on the monotonic clock."""
        return [one.at for one in self.proxy.writes]

    def stop(self):
        self.process.kill(signal.SIGCONT)
        self.process.stop()
        self.proxy.stop()
        print(self.process.log)


@pytest.fixture
def replicas(plane, request):
    """Two of one Lease: the first leads, and knows all that there is."""
    lease = request.node.name.replace("_", "-")[:60]
    first = Replica(plane, "first", lease)
    made = [first]
    try:
        until(first.process.leads)
        second = Replica(plane, "second", lease)
        made.append(second)
        until(lambda: second.process.metric("serveplane_cached_objects") > 0)
        yield first, second
    finally:
        for one in made:
            one.stop()


@pytest.fixture
def ns(plane, request):
    return plane.namespace(request.node.name.replace("_", "-")[:40].strip("-"))


def has(plane, ns, name):
    return lambda: plane.get(DEPLOYMENT, ns, f"{name}-predictor")


def test_the_one_that_leads_writes_and_the_other_takes_over_at_once_when_it_ends(plane, ns, replicas):
    first, second = replicas
    plane.apply(service(ns, "one"))
    until(has(plane, ns, "one"))
    assert first.wrote
    assert not second.wrote
    assert first.process.stop() == 0
    took = at_most(second.process.leads, 10.0)
    plane.apply(service(ns, "two"))
    until(has(plane, ns, "two"))
    print(f"F14: the second leads {took:.1f} s after the first was told to end")
    assert took < 5.0
    assert max(first.wrote) < min(second.wrote)


def test_one_that_slept_through_its_lease_writes_nothing_when_it_wakes(plane, ns, replicas):
    first, second = replicas
    plane.apply(service(ns, "one"))
    until(has(plane, ns, "one"))
    slept = time.monotonic()
    first.process.kill(signal.SIGSTOP)
    # it sleeps with work to do
    for number in range(5):
        plane.apply(service(ns, f"more{number}"))
    until(second.process.leads, 40.0)
    took = time.monotonic() - slept
    until(lambda: all(has(plane, ns, f"more{number}")() for number in range(5)))
    woke = time.monotonic()
    first.process.kill(signal.SIGCONT)
    plane.apply(service(ns, "late"))
    until(has(plane, ns, "late"))
    assert first.process.wait() == 1, first.process.log
    print(
        f"F14: the second leads {took:.1f} s after the first fell asleep, which ended {time.monotonic() - woke:.1f} s after it woke"
    )
    assert LEASE_SECONDS - 5 < took < LEASE_SECONDS + 10
    # what it had sent may have got there a moment later
    assert max(first.wrote) < slept + 1.0
    assert min(second.wrote) > slept + LEASE_SECONDS - 5


def test_one_whose_lease_is_taken_from_it_ends_and_writes_no_more(plane, ns, replicas):
    first, second = replicas
    plane.apply(service(ns, "one"))
    until(has(plane, ns, "one"))
    second.process.stop()
    (lease,) = [one for one in plane.all(LEASE, "kserve") if one["spec"].get("holderIdentity") == "first"]
    path = LEASE.path("kserve", lease["metadata"]["name"])
    plane.api.patch(path, [{"op": "replace", "path": "/spec/holderIdentity", "value": "somebody"}])
    assert first.process.wait(10.0) == 1, first.process.log
    assert "somebody has the lease; nothing is written any more" in first.process.log
    before = len(first.wrote)
    plane.apply(service(ns, "two"))
    third = Replica(plane, "third", lease["metadata"]["name"])
    try:
        until(has(plane, ns, "two"), 60.0)
    finally:
        third.stop()
    assert len(first.wrote) == before
