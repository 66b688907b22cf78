"""The controller as a process, and what may go wrong between it and its API server (faults F9 to F13 of the test plan)."""

import itertools
import json
import random
import threading
import time
from collections import Counter

import pytest

from deployer.kubernetes import cache
from deployer.kubernetes.kinds import CHILDREN, CONTROLLER_REVISION, DEPLOYMENT, INFERENCE_SERVICE, VIRTUAL_SERVICE
from tests.cluster import figures
from tests.cluster.plane import Kubelet, booted, service, until
from tests.cluster.process import Process, at_most
from tests.cluster.proxy import Proxy
from tests.cluster.test_platform import Running

CHILD_KINDS = [kind for kind in CHILDREN if kind.name not in ("GRPCRoute", "ScaledObject")]
names = (f"t{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def plane():
    with booted() as found:
        found.configure("istio")
        yield found


@pytest.fixture(scope="module", autouse=True)
def kubelet(plane):
    one = Kubelet(plane)
    one.start()
    yield one
    one.stop()


@pytest.fixture
def ns(plane):
    return plane.namespace(next(names))


@pytest.fixture
def proxy(plane):
    one = Proxy(plane.kubeconfig)
    yield one
    one.stop()


@pytest.fixture
def start(plane):
    """Start a controller; all are ended after the test."""
    started = []

    def starting(kubeconfig, *flags, identity="", namespaces=""):
        more = ["--namespaces", namespaces] if namespaces else []
        one = Process(kubeconfig, "tests", *more, *flags, identity=identity)
        started.append(one)
        return one

    yield starting
    codes = [one.stop() for one in started]
    for one in started:
        print(one.log)
    assert all(code in (0, -9, -15) for code in codes), codes


def uids(plane, ns):
    return {(kind.name, o["metadata"]["name"]): o["metadata"]["uid"] for kind in CHILD_KINDS for o in plane.all(kind, ns)}


def test_the_process_says_how_it_is_and_ends_with_its_lease_given_back(plane, ns, start):
    one = start(plane.kubeconfig)
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    assert one.leads()
    assert one.metric("serveplane_services") >= 1
    assert one.metric("serveplane_reconciles_total") >= 1
    assert one.stop() == 0, one.log
    again = start(plane.kubeconfig)
    assert at_most(again.leads, 10.0) < 5.0
    assert "Traceback" not in one.log + again.log


def test_an_api_server_that_is_killed_and_comes_back_has_lost_nothing(plane, ns, start):
    one = start(plane.kubeconfig)
    for number in range(5):
        plane.apply(service(ns, f"iris{number}"))
    until(lambda: all(plane.is_ready(ns, f"iris{number}") for number in range(5)))
    before = uids(plane, ns)
    with plane.without_api_server():
        time.sleep(20)
        assert not one.leads()
    plane.apply(service(ns, "iris0", "s3://models/two"))
    plane.apply(service(ns, "late"))
    took = at_most(lambda: plane.get(DEPLOYMENT, ns, "late-predictor"), 20.0)
    assert took < 5.0, one.log
    assert one.process.poll() is None, one.log
    until(lambda: plane.traffic(ns, "iris0") == {"iris0-predictor-00002": 100})
    after = uids(plane, ns)
    assert {name: after.get(name) for name in before} == before
    print(f"F9: caught up {took:.1f} s after the API server answered")


def test_an_api_server_that_is_away_for_a_moment_costs_no_lease(plane, ns, start):
    one = start(plane.kubeconfig)
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    with plane.without_api_server():
        time.sleep(2)
    plane.apply(service(ns, uri="s3://models/two"))
    took = at_most(lambda: plane.get(CONTROLLER_REVISION, ns, "iris-predictor-00002"), 10.0)
    assert one.process.poll() is None, one.log
    assert took < 5.0
    until(lambda: plane.traffic(ns, "iris") == {"iris-predictor-00002": 100})


# watches


@pytest.fixture
def running(proxy):
    class Through:
        kubeconfig = proxy.kubeconfig

    one = Running(Through())
    yield one
    one.stop()


def test_watches_that_break_begin_again_where_they_were(plane, ns, proxy, running):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    until(lambda: proxy.watches >= 12)
    lists = sum(not one.is_watch and one.method == "GET" for one in proxy.seen)
    for number in range(2, 6):
        until(lambda: proxy.watches >= 12)
        proxy.cut()
        plane.apply(service(ns, uri=f"s3://models/{number}"))
        assert at_most(lambda number=number: plane.get(CONTROLLER_REVISION, ns, f"iris-predictor-{number:05d}"), 10.0) < 3.0
    until(lambda: plane.traffic(ns, "iris") == {"iris-predictor-00005": 100})
    reads = [one for one in proxy.seen[lists:] if not one.is_watch and one.method == "GET" and "limit" in one.query]
    assert len(reads) <= lists


def test_a_version_that_is_gone_means_to_list_again_and_never_at_full_speed(plane, ns, proxy, running):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    proxy.fault = lambda method, path, query: 410 if "watch=true" in query else None
    began = len(proxy.seen)
    proxy.cut()
    time.sleep(8)
    by_path = Counter(one.path for one in proxy.seen[began:] if not one.is_watch and one.method == "GET")
    assert max(by_path.values()) <= 6, by_path
    plane.apply(service(ns, uri="s3://models/two"))
    until(lambda: plane.get(CONTROLLER_REVISION, ns, "iris-predictor-00002"), 40.0)
    proxy.fault = lambda method, path, query: None
    until(lambda: plane.traffic(ns, "iris") == {"iris-predictor-00002": 100}, 60.0)


def test_what_etcd_has_forgotten_is_read_anew(plane, ns, proxy, running):
    plane.apply(service(ns))
    until(lambda: plane.is_ready(ns, "iris"))
    # nothing comes through while versions pass and are forgotten, and the API server's own memory of them ends
    proxy.fault = lambda method, path, query: 503 if method == "GET" else None
    proxy.cut()
    for number in range(20):
        plane.apply(service(ns, uri=f"s3://models/{number}"))
    plane.api.delete(VIRTUAL_SERVICE.path(ns, "iris"))
    with plane.without_api_server():
        plane.compact()
    proxy.fault = lambda method, path, query: None
    until(lambda: plane.get(VIRTUAL_SERVICE, ns, "iris"), 60.0)
    until(lambda: plane.is_ready(ns, "iris"), 60.0)
    assert 19 in [
        int(one["data"]["template"]["uri"].rpartition("/")[2])
        for one in plane.all(CONTROLLER_REVISION, ns)
        if "one" not in one["data"]["template"]["uri"]
    ]


def test_a_watch_that_falls_silent_is_noticed(plane, ns, proxy, monkeypatch):
    # the real times are 45 to 60 s for the server's end of a watch, and 65 s for this
    monkeypatch.setattr(cache, "WATCH_SECONDS", 3)
    monkeypatch.setattr(cache, "SILENCE_SECONDS", 5.0)

    class Through:
        kubeconfig = proxy.kubeconfig

    one = Running(Through())
    try:
        plane.apply(service(ns))
        until(lambda: plane.is_ready(ns, "iris"))
        proxy.stalled.set()
        plane.apply(service(ns, uri="s3://models/two"))
        time.sleep(1)
        assert plane.get(CONTROLLER_REVISION, ns, "iris-predictor-00002") is None
        proxy.cut = lambda: None
        threading.Timer(6.0, proxy.stalled.clear).start()
        assert at_most(lambda: plane.get(CONTROLLER_REVISION, ns, "iris-predictor-00002"), 20.0) < 10.0
    finally:
        proxy.stalled.clear()
        del proxy.cut
        one.stop()


# writes


def test_somebody_who_writes_all_the_time_is_not_fought(plane, ns, proxy, running):
    plane.apply(service(ns, minReplicas=2))
    until(lambda: plane.is_ready(ns, "iris"))
    plane.apply(service(ns, uri="s3://models/two", minReplicas=2, canaryTrafficPercent=20))
    until(lambda: plane.is_ready(ns, "iris"))
    until(lambda: plane.weights(ns, "iris") == {"iris-predictor": 80, "iris-predictor-canary": 20})
    began, ended = len(proxy.seen), threading.Event()
    weights, replicas = set(), set()

    def look():
        while not ended.wait(0.05):
            weights.add(json.dumps(plane.weights(ns, "iris"), sort_keys=True))
            replicas.add(plane.get(DEPLOYMENT, ns, "iris-predictor")["spec"]["replicas"])

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    until_then = time.monotonic() + 10
    for number in itertools.count():
        if time.monotonic() > until_then:
            break
        note = [{"op": "add", "path": "/metadata/labels", "value": {"tick": str(number)}}]
        plane.api.patch(INFERENCE_SERVICE.path(ns, "iris"), note, "noise")
        condition = {"type": "Noise", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        status = [
            {"op": "add", "path": "/status/conditions", "value": [condition]},
            {"op": "add", "path": "/status/url", "value": f"http://noise{number}"},
        ]
        plane.api.patch(INFERENCE_SERVICE.path(ns, "iris") + "/status", status, "noise")
        image = [{"op": "replace", "path": "/spec/progressDeadlineSeconds", "value": 100 + number}]
        plane.api.patch(DEPLOYMENT.path(ns, "iris-predictor"), image, "noise")
        time.sleep(0.02)
    ended.set()
    watcher.join()
    by_path = Counter(one.path for one in proxy.seen[began:] if one.is_write)
    assert weights == {'{"iris-predictor": 80, "iris-predictor-canary": 20}'}
    assert replicas == {2}
    # its labels are all objects' labels: each change of them is a new wish, and not one of ours is written more often
    assert by_path[INFERENCE_SERVICE.path(ns, "iris") + "/status"] <= 50, by_path
    print("F11:", number, "changes by another;", by_path)
    until(lambda: plane.is_ready(ns, "iris"))
    until(lambda: plane.get(DEPLOYMENT, ns, "iris-predictor")["spec"]["progressDeadlineSeconds"] == 600)


def test_with_a_third_of_all_answers_wrong_everything_gets_there(plane, ns, proxy, start):
    chance = random.Random(7)

    def fault(method, path, query):
        if "watch=true" in query or "/leases" in path:
            return None
        return chance.choice([429, 500, 503]) if chance.random() < 0.3 else None

    proxy.fault = fault
    one = start(proxy.kubeconfig, namespaces=ns)
    for number in range(10):
        plane.apply(service(ns, f"iris{number}"))
    until(lambda: all(plane.is_ready(ns, f"iris{number}") for number in range(10)), 120.0)
    refused = sum(seen.code in (429, 500, 503) for seen in proxy.seen)
    print(f"F12: {refused} of {len(proxy.seen)} requests refused; {one.metric('serveplane_reconciles_total'):g} reconciles")
    assert refused > 20
    assert "Traceback" not in one.log


def test_a_controller_that_is_killed_at_each_of_its_writes_goes_on(plane, ns, proxy, start):
    """A canary and its promotion, and after every write that gets through the process is killed."""
    plane.apply(service(ns))
    first = start(plane.kubeconfig, identity="one", namespaces=ns)
    until(lambda: plane.is_ready(ns, "iris"))
    first.stop()
    shares, ended = [], threading.Event()

    def look():
        while not ended.wait(0.03):
            weights = plane.weights(ns, "iris")
            if not shares or shares[-1] != weights:
                shares.append(weights)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    kills = 0
    steps = (
        (service(ns, uri="s3://models/two", canaryTrafficPercent=20), {"iris-predictor-00001": 80, "iris-predictor-00002": 20}),
        (service(ns, uri="s3://models/two"), {"iris-predictor-00002": 100}),
    )
    for wanted, traffic in steps:
        plane.apply(wanted)
        while True:
            current = [start(proxy.kubeconfig, identity="one", namespaces=ns)]
            wrote = threading.Event()

            def at_once(seen, current=current, wrote=wrote):
                if not wrote.is_set():
                    wrote.set()
                    current[0].kill()

            proxy.wrote = at_once
            if not wrote.wait(15.0):
                break
            current[0].wait()
            kills += 1
            assert kills < 60
        current[0].stop()
        assert plane.is_ready(ns, "iris")
        assert plane.traffic(ns, "iris") == traffic
    ended.set()
    watcher.join()
    proxy.wrote = lambda seen: None
    print(f"F13: killed {kills} times; the route said {shares}")
    assert [one for one in shares if one] == [
        {"iris-predictor": 100},
        {"iris-predictor": 80, "iris-predictor-canary": 20},
        {"iris-predictor": 100},
    ]
    assert [d["metadata"]["name"] for d in plane.all(DEPLOYMENT, ns)] == ["iris-predictor"]
    assert sorted(one["revision"] for one in plane.all(CONTROLLER_REVISION, ns)) == [1, 2]


ODD = [
    {"spec": {}},
    {"spec": {"predictor": {}}},
    {"spec": {"predictor": {"model": {"modelFormat": {"name": "no-such"}, "storageUri": "s3://a/b"}}}},
    {"spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "x" * 5000}}}},
    {
        "spec": {
            "predictor": {"model": {"modelFormat": {"name": "sklearn"}, "args": ["{{.Annotations.x}}"], "storageUri": "s3://a"}}
        }
    },
    {"spec": {"predictor": {"containers": [{"name": "x", "image": "", "ports": [{"containerPort": 99999999}]}]}}},
    {"spec": {"predictor": {"containers": [{"name": "kserve-container", "image": "x", "volumeMounts": [{}], "env": [{}]}]}}},
    {
        "spec": {
            "predictor": {
                "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://a/b"},
                "affinity": {"nodeAffinity": 5},
            }
        }
    },
    {"spec": {"predictor": {"sklearn": {"storageUri": "s3://a/b", "resources": {"limits": {"cpu": "many"}}}}}},
    {"spec": {"predictor": {"sklearn": {"storageUri": "s3://a/b"}, "minReplicas": 2**40, "canaryTrafficPercent": 10}}},
]


def test_whatever_the_api_server_takes_stops_nothing(plane, ns, start):
    one = start(plane.kubeconfig, namespaces=ns)
    made = []
    for number, odd in enumerate(ODD):
        raw = service(ns, f"odd{number}") | odd
        try:
            plane.apply(raw)
            made.append(f"odd{number}")
        except OSError as error:
            print(f"odd{number} is refused: {error}")
    statuses = (
        {"conditions": [{"type": "Ready", "status": "True"}]},
        {"components": {"predictor": {"traffic": [{"percent": 100}]}}},
        {"modelStatus": {}},
    )
    for name, status in zip(made, itertools.cycle(statuses)):
        try:
            plane.api.patch(INFERENCE_SERVICE.path(ns, name) + "/status", [{"op": "add", "path": "/status", "value": status}])
        except OSError as error:
            print(f"the status {status} is refused: {error}")
    plane.apply(service(ns, "good"))
    until(lambda: plane.is_ready(ns, "good"))
    for name in made:
        until(lambda name=name: plane.ready(ns, name).get("status") == "False", why=name)
    assert "Traceback" not in one.log, one.log
    assert one.process.poll() is None


def test_many_services_cost_few_writes_each_and_none_once_they_are_ready(plane, ns, start):
    """Times and sizes of two hundred are `figures.py`'s: here is what does not depend on the machine."""
    one = start(plane.kubeconfig, namespaces=ns)
    until(one.leads)
    found = figures.measure(plane, one, ns, count=30, quiet=10.0, ingress="istio")
    print(found)
    # of some a moment is seen, and told, between two others
    assert round(found.writes_each) <= 9, one.requests()
    assert found.steady_writes == found.steady_reads == 0
