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
from deployer.local.replica import Ports, Replica
from deployer.local.replicas import Replicas
from deployer.plan import RevisionPlan
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
    with platform.it._lock:
        platform.it._tries[at] = (5000, 0.0)
    platform.settle()
    platform.fetched()
    tries, not_before = platform.it._tries[at]
    assert tries == 5001
    assert not_before - time.monotonic() < 301
