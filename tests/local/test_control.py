"""The control plane by itself, in one process: no Envoy, and models and predictors that are there at once or when a test says."""

import json
import sys
import threading
import time

import pytest

from deployer.controller import reconcile
from deployer.local import process, state
from deployer.local.cache import FetchError, Model
from deployer.local.platform import LocalPlatform
from deployer.local.replica import Ports
from deployer.local.replicas import Replicas
from tests.local.conftest import until

# A predictor as the platform sees one: it listens, and says that it is ready.
PREDICTOR = """
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    do_GET = lambda self: self.send_response(200) or self.end_headers()
    log_message = lambda *_: None
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""


class Envoy:
    """What the proxy is told, in order; `held` makes it slow."""

    def __init__(self):
        self.applied, self.held = [], threading.Event()
        self.held.set()

    def apply(self, services):
        self.held.wait(10)
        self.applied.append(tuple(services))

    def rejected(self):
        return ""

    def wait_applied(self, timeout):
        return True


class Models:
    """A cache that gives each URI the content that `digests` says, once `held` is set; an exception is raised instead."""

    def __init__(self):
        self.digests, self.asked, self.gone, self.held = {}, [], set(), threading.Event()
        self.held.set()

    def fetch(self, uri, progress, cancelled=None):
        self.asked.append(uri)
        # what is there when it is asked for
        found = self.digests.get(uri, digest(1))
        while not self.held.wait(0.01):
            if cancelled and cancelled.is_set():
                raise FetchError("Cancelled", "cancelled")
        if isinstance(found, Exception):
            raise found
        return Model(uri, found, None, 1)

    def path(self, digest, name):
        return None if digest in self.gone else f"/cache/{digest}"

    def remove_unused(self, keep, older_than):
        return 0


def digest(number):
    return f"sha256:{number:064x}"


def service(uri="/models/one.skops", **predictor):
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": uri}
    meta = {"name": "iris", "namespace": "default"}
    spec = {"predictor": {"model": model, **predictor}}
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": meta, "spec": spec}


KEY = "default/iris"


class Platform:
    """A LocalPlatform and all that it stands on; `dead` is what a kill -9 leaves: the files and the processes."""

    def __init__(self, root):
        self.home, self.envoy, self.models = state.Home(root), Envoy(), Models()
        self.made = []
        self.start()

    def start(self):
        ports = Ports(set())
        self.replicas = Replicas(self.home, ports)
        self.it = LocalPlatform(self.home, self.envoy, ports, self.replicas, "http://127.0.0.1:8085")
        self.it._cache = self.models
        self.made.append(self.replicas)

    def settle(self):
        """Reconcile until nothing changes any more, as long as nobody else changes anything."""
        before = None
        while before != (before := self.reconcile()):
            pass
        return before

    def reconcile(self):
        reconcile(self.it, KEY)
        return json.dumps(self.it._records.get(KEY), sort_keys=True)

    def fetched(self):
        until(lambda: not [t for t in threading.enumerate() if t.name.startswith("fetch ")], 5)

    def put(self, raw, content=""):
        self.it.put(raw, content)
        if self.models.held.is_set():
            self.fetched()

    def ready(self):
        """Have all replicas as ready as they were if their processes had started."""
        for one in self.replicas.all():
            one.is_ready = one.was_ready = not one.leaving

    def shown(self):
        return self.it.shown(KEY)

    def condition(self, kind="Ready"):
        return next(c for c in self.shown()["status"]["conditions"] if c["type"] == kind)

    def revisions(self):
        return {r["name"][-5:]: r["template"]["digest"] for r in self.it.revisions(KEY)}


@pytest.fixture
def platform(tmp_path, monkeypatch):
    def stand_in(template, name, model, http_port, grpc_port):
        return [sys.executable, "-S", "-c", PREDICTOR, str(http_port)]

    monkeypatch.setattr(process, "command", stand_in)
    made = Platform(tmp_path)
    yield made
    for replicas in made.made:
        replicas.close(end=True)


# threads that must live as long as the platform does


def test_a_process_that_can_not_be_started_is_told_and_the_others_are_looked_after(platform):
    bad = service()
    bad["spec"]["predictor"]["model"]["env"] = [{"name": "A", "value": "a\0b"}]
    platform.it.put(bad)
    platform.fetched()
    platform.settle()
    platform.replicas.start()
    failure = until(lambda: platform.replicas.failure(KEY, "iris-predictor-00001"), 5)
    assert failure.reason == "StartFailed"
    assert platform.replicas._thread.is_alive()
    platform.settle()
    assert "null byte" in platform.condition()["message"]


def test_a_process_that_was_ended_by_a_signal_without_a_name_is_told_of(platform):
    platform.put(service())
    platform.settle()
    platform.replicas.start()
    replica = until(lambda: next((r for r in platform.replicas.all() if r.is_ready), None), 10)
    replica.process.signal(40)
    assert "signal 40" in until(lambda: platform.replicas.failure(KEY, replica.revision), 5).message
    until(lambda: replica.is_ready, 10)


def test_a_model_that_fails_for_weeks_is_still_tried(platform):
    platform.models.digests["/models/one.skops"] = FetchError("DownloadFailed", "nobody answers")
    platform.put(service())
    at = KEY, "/models/one.skops"
    fetch = platform.it._fetches[at]
    fetch.tries, fetch.not_before = 5000, 0.0
    platform.settle()
    platform.fetched()
    assert fetch.tries == 5001
    assert fetch.not_before - time.monotonic() < 301


# a service that is deleted and made again under the same name


def serving(platform, number=1):
    """A service whose one predictor runs, as the real thread has it."""
    platform.models.digests["/models/one.skops"] = digest(number)
    platform.put(service())
    platform.settle()
    platform.replicas.start()
    until(lambda: any(r.is_ready for r in platform.replicas.all()), 10)
    platform.settle()
    return platform.replicas.all()[0]


def test_a_service_made_again_at_once_is_not_served_by_the_deleted_one_s_process(platform):
    old = serving(platform, 1).process.pid
    platform.it.remove(KEY)
    platform.models.digests["/models/one.skops"] = digest(2)
    platform.put(service())
    platform.settle()
    assert platform.condition()["status"] != "True"
    replica = until(lambda: next((r for r in platform.replicas.all() if r.is_ready and not r.leaving), None), 10)
    assert replica.process.pid != old
    assert platform.replicas._jobs[KEY, replica.revision].model == f"/cache/{digest(2)}"
    platform.settle()
    assert platform.condition()["status"] == "True"


def test_neither_is_it_after_the_supervisor_was_killed_between(platform):
    old = serving(platform, 1).process.pid
    platform.it.remove(KEY)
    platform.replicas.close(end=False)
    platform.start()
    platform.models.digests["/models/one.skops"] = digest(2)
    platform.put(service())
    platform.settle()
    assert platform.condition()["status"] != "True"
    assert [r.process for r in platform.replicas.all() if not r.leaving] == [None]
    assert any(r.process and r.process.pid == old and r.draining for r in platform.replicas.all())


def test_a_service_made_again_does_not_show_the_deleted_one_s_failure(platform):
    platform.put(service())
    platform.settle()
    replica = platform.replicas.all()[0]
    platform.replicas._fail(replica, "ModelLoadFailed", "not this one", 1)
    platform.settle()
    assert platform.condition()["reason"] == "ModelLoadFailed"
    platform.it.remove(KEY)
    platform.reconcile()
    platform.put(service())
    platform.settle()
    assert platform.condition()["reason"] == "Starting"


def test_a_service_made_again_while_the_worker_deletes_it_keeps_its_models_and_gets_them(platform):
    platform.put(service())
    platform.settle()
    platform.it.remove(KEY)
    assert platform.it.get(KEY) is None
    platform.models.held.clear()
    platform.put(service())
    platform.it.delete(KEY)
    platform.models.held.set()
    platform.fetched()
    platform.settle()
    platform.fetched()
    platform.settle()
    assert platform.revisions() == {"00001": digest(1)}


def test_a_plan_of_the_deleted_service_changes_nothing_of_the_new_one(platform):
    platform.put(service())
    platform.settle()
    platform.ready()
    seen = platform.it.observe

    def made_again(key):
        platform.it.observe = seen
        observed = seen(key)
        platform.it.remove(KEY)
        platform.models.held.clear()
        platform.it.put(service("/models/two.skops"))
        return observed

    platform.it.observe = made_again
    platform.reconcile()
    assert platform.revisions() == {}
    assert platform.shown()["status"] == {}
    platform.models.held.set()


def test_what_is_read_before_a_change_is_not_reported_after_it(platform):
    platform.put(service())
    platform.settle()
    platform.ready()
    platform.settle()
    derive = platform.it.report

    def changed(key, status):
        platform.it.report = derive
        platform.models.held.clear()
        platform.it.put(service())
        derive(key, status)

    platform.it.report = changed
    platform.reconcile()
    assert "observedGeneration" not in platform.shown()["status"]
    platform.models.held.set()


def test_a_deleted_service_gives_its_port_back(platform):
    free = set(platform.it._ports._taken)
    platform.put(service())
    platform.settle()
    platform.it.remove(KEY)
    platform.reconcile()
    platform.replicas.start()
    until(lambda: not platform.replicas.all(), 5)
    assert platform.it._ports._taken == free
    assert not platform.it._fetches
    assert not platform.replicas._failures


# models on their way


def test_a_rollback_while_new_content_is_on_its_way_is_not_undone_when_that_comes(platform):
    platform.put(service())
    platform.settle()
    platform.ready()
    platform.settle()
    platform.models.digests["/models/one.skops"] = digest(2)
    platform.models.held.clear()
    platform.put(service())
    platform.put(service(), content="iris-predictor-00001")
    platform.models.held.set()
    platform.fetched()
    platform.settle()
    assert platform.revisions() == {"00001": digest(1)}
    assert platform.condition()["status"] == "True"


def test_what_is_deployed_again_while_it_is_fetched_is_looked_at_again(platform):
    platform.models.held.clear()
    platform.put(service())
    until(lambda: platform.models.asked, 5)
    platform.models.digests["/models/one.skops"] = digest(2)
    platform.put(service())
    platform.models.held.set()
    platform.fetched()
    assert len(platform.models.asked) == 2
    platform.settle()
    assert platform.revisions()["00001"] == digest(2)


def test_a_fetch_that_the_supervisor_did_not_live_to_see_is_made_by_the_next(platform):
    platform.put(service())
    platform.settle()
    platform.models.held.clear()
    platform.put(service())
    platform.models.digests["/models/one.skops"] = digest(2)
    platform.start()
    platform.models.held.set()
    platform.fetched()
    platform.settle()
    platform.fetched()
    platform.settle()
    assert platform.revisions() == {"00001": digest(1), "00002": digest(2)}


def test_a_change_that_can_not_be_written_is_no_change(platform, monkeypatch):
    platform.put(service())
    platform.settle()
    before = platform.shown()

    def full(path, document):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "write", full)
        with pytest.raises(OSError, match="No space"):
            platform.it.put(service("/models/two.skops"))
    assert platform.shown() == before
    assert platform.models.asked == ["/models/one.skops"]


def test_a_lost_model_whose_uri_gives_another_one_now_is_not_fetched_over_and_over(platform):
    platform.put(service())
    platform.settle()
    platform.ready()
    platform.settle()
    platform.models.gone.add(digest(1))
    platform.models.digests["/models/one.skops"] = digest(2)
    for _ in range(6):
        platform.reconcile()
        platform.fetched()
    assert platform.models.asked == ["/models/one.skops"] * 2
    assert [r.revision[-5:] for r in platform.replicas.all() if not r.leaving] == ["00001", "00002"]
    platform.ready()
    platform.settle()
    assert platform.condition()["status"] == "True"


def test_models_that_are_not_asked_for_any_more_are_forgotten(platform):
    for number in range(30):
        platform.models.digests[f"/models/{number}.skops"] = digest(number)
        platform.put(service(f"/models/{number}.skops"))
        platform.settle()
        platform.ready()
        platform.settle()
    record = platform.it._records[KEY]
    assert list(record["models"]) == ["/models/29.skops"]
    assert len(platform.it._models) == 1
    assert [r["number"] for r in record["revisions"]] == list(range(19, 31))


# replicas


def test_of_too_many_replicas_those_that_serve_stay(platform):
    platform.put(service(minReplicas=2))
    platform.settle()
    platform.ready()
    platform.settle()
    down, serves = platform.replicas.all()
    down.is_ready = False
    platform.put(service(minReplicas=1))
    platform.settle()
    assert (down.leaving, serves.leaving) == (True, False)


def test_a_process_that_loads_again_after_it_died_is_not_taken_for_ready_by_the_next_supervisor(platform):
    serving(platform)
    platform.replicas.close(end=False)
    replica = platform.replicas.all()[0]
    replica.process.signal(9)
    replica.process.child.wait()
    platform.replicas._look(replica, time.monotonic())
    platform.replicas._look(replica, time.monotonic() + 2)
    platform.start()
    (adopted,) = platform.replicas.all()
    assert adopted.process
    assert not adopted.is_ready


def test_no_port_is_given_twice_to_threads_that_ask_at_once():
    ports, given = Ports(set()), []

    def ask():
        given.extend(ports.free() for _ in range(200))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == len(given)


def test_routes_that_are_late_do_not_replace_newer_ones(platform):
    platform.put(service())
    platform.settle()
    platform.ready()
    apply, order = platform.envoy.apply, []

    def slow(services):
        order.append(services)
        if len(order) == 1:
            # the other worker comes in between, where it may
            until(lambda: len(order) > 1 or other.is_alive(), 5)
            other.join(0.5)
        apply(services)

    platform.envoy.apply = slow
    first = threading.Thread(target=platform.it._write_routes)
    other = threading.Thread(target=platform.settle)
    first.start()
    until(lambda: order, 5)
    other.start()
    first.join()
    other.join()
    assert platform.envoy.applied[-1] == tuple(platform.it._routes.values())
    assert platform.envoy.applied[-1][0].backends[0].endpoints


# what a supervisor leaves that is killed at any line


def test_a_process_that_was_started_and_not_recorded_is_ended(platform):
    replica = serving(platform)
    child = replica.process.child
    platform.replicas.close(end=False)
    replica.file(platform.home).unlink()
    platform.start()
    assert child.wait(5) == -15
    assert platform.replicas.all() == []


@pytest.mark.parametrize("found", [{}, [], 7, "x", {"pid": "x"}, {"object": 1}, {"object": {}, "port": 20000, "models": {}}])
def test_a_file_that_is_no_record_does_not_keep_the_platform_from_starting(platform, found):
    state.write(platform.home.process("default", "x-predictor-00001", 0), found)
    state.write(platform.home.service("default/x"), found)
    state.write(platform.home.root / "runtimes" / "default" / "x.json", found)
    platform.start()
    platform.put(service())
    platform.settle()
    assert [s["metadata"]["name"] for s in platform.it.listed()] == ["iris"]
    assert platform.revisions()
