"""A service behind the mesh's gateway, as kubectl changes it and as those who ask the gateway see it."""

import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import skops.io
import tritonclient.grpc
from sklearn.linear_model import LinearRegression

from deployer.kubernetes.api import connect
from deployer.kubernetes.kinds import DEPLOYMENT, HTTP_ROUTE, INFERENCE_SERVICE, POD, VIRTUAL_SERVICE, Kind
from loadtests.openloop import Load
from tests.cluster.conftest import Cluster

ROW = json.dumps({"instances": [[1.0, 0.0, 0.0, 0.0]]}).encode()


class Models:
    """A store on this machine that pods reach.  `1.skops` is a model that answers 1, and so on; other names are garbage."""

    def __init__(self, address: str, folder: Path) -> None:
        """OSError where this machine does not have the address."""
        self._folder, self._held = folder, dict[str, tuple[threading.Event, threading.Event]]()
        models = self

        class Exchange(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = models._content(self.path[1:])
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, 0), Exchange)
        self.url = f"http://{address}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _content(self, name: str) -> bytes:
        if name in self._held:
            asked, free = self._held[name]
            asked.set()
            free.wait(120)
        if not name.partition(".")[0].isdecimal():
            return b"no model at all"
        path = self._folder / name
        if not path.exists():
            value = float(name.partition(".")[0])
            skops.io.dump(LinearRegression().fit(np.eye(4), np.full(4, value)), path)
        return path.read_bytes()

    @contextmanager
    def held(self, name: str) -> Iterator[threading.Event]:
        """Within the block whoever asks for the model waits; the event says that somebody does."""
        asked, free = self._held[name] = threading.Event(), threading.Event()
        try:
            yield asked
        finally:
            del self._held[name]
            free.set()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Served:
    """One InferenceService.  It is changed by kubectl, and looked at in a quicker way."""

    def __init__(self, cluster: Cluster, models: Models, gateway: str, namespace: str, name: str) -> None:
        self._cluster, self._models, self._gateway = cluster, models, gateway
        self._api = connect(cluster.kubeconfig)
        self.namespace, self.name = namespace, name

    # kubectl

    def kubectl(self, *args: str, stdin: object = None) -> str:
        return self._cluster.kubectl("-n", self.namespace, *args, stdin=stdin)

    def apply(self, model: str, *, annotations=None, canary=(), cpu: str = "50m", **predictor) -> None:
        """A manifest with this model; `cpu` is what a replica requests."""
        meta = {"name": self.name, "annotations": annotations or {}}
        resources = {"requests": {"cpu": cpu, "memory": "150Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}
        made = {"modelFormat": {"name": "sklearn"}, "storageUri": f"{self._models.url}/{model}", "resources": resources}
        spec = {"predictor": {"minReplicas": 1, "maxReplicas": 1, "model": made, **predictor}}
        spec |= {"canary": list(canary)} if canary else {}
        raw = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": meta, "spec": spec}
        self.kubectl("apply", "-f", "-", stdin=raw)

    def canary(self, name: str, model: str, percent: int) -> dict:
        """An entry of `spec.canary`."""
        uri = f"{self._models.url}/{model}"
        return {"trafficPercent": percent, "predictor": {"name": name, "model": {"storageUri": uri}}}

    def patch(self, **predictor) -> None:
        """None takes a field away."""
        self.kubectl("patch", f"isvc/{self.name}", "--type=merge", "-p", json.dumps({"spec": {"predictor": predictor}}))

    # what there is

    @property
    def status(self) -> dict:
        return self._api.get(INFERENCE_SERVICE.path(self.namespace, self.name)).get("status") or {}

    def until(self, what: Callable[[], object], seconds: float = 60.0) -> None:
        """Until `what()` is true, looking ten times a second."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"not so within {seconds:g} s: {json.dumps(self.status)}"
            time.sleep(0.1)

    def until_ready(self) -> None:
        self.until(self.is_ready)

    def is_ready(self) -> bool:
        """Whether the service is Ready as it was changed last."""
        raw = self._api.get(INFERENCE_SERVICE.path(self.namespace, self.name))
        status = raw.get("status") or {}
        ready = any((one["type"], one["status"]) == ("Ready", "True") for one in status.get("conditions", ()))
        return ready and status["observedGeneration"] == raw["metadata"]["generation"]

    def condition(self, kind: str) -> str:
        return next((one["status"] for one in self.status.get("conditions", ()) if one["type"] == kind), "Unknown")

    def replicas(self) -> tuple[int, int]:
        """Of the stable predictor: how many are wanted, and how many are ready."""
        found = self._api.get(DEPLOYMENT.path(self.namespace, f"{self.name}-predictor"))
        return found["spec"]["replicas"], found["status"].get("readyReplicas", 0)

    def all(self, kind: Kind) -> list[dict]:
        return self._api.listed(kind.path(self.namespace))[0]

    def names(self, kind: Kind) -> list[str]:
        return sorted(one["metadata"]["name"] for one in self.all(kind))

    def pods(self, workload: str) -> list[dict]:
        mine = f"isvc.{workload}"
        return [one for one in self.all(POD) if one["metadata"]["labels"].get("app") == mine]

    def weights(self) -> dict[str, int]:
        """Percent by Service, as whichever route there is has it."""
        found: dict[str, int] = {}
        for route in self.all(VIRTUAL_SERVICE):
            backends = route["spec"]["http"][-1]["route"]
            found |= {one["destination"]["host"].partition(".")[0]: one.get("weight", 100) for one in backends}
        for route in self.all(HTTP_ROUTE):
            backends = route["spec"]["rules"][-1]["backendRefs"]
            found |= {one["name"]: one["weight"] if len(backends) > 1 else 100 for one in backends}
        return found

    # whoever asks the gateway

    @property
    def host(self) -> str:
        return self.status["url"].partition("//")[2]

    def load(self, rate: float, **headers: str) -> Load:
        url = f"http://{self._gateway}/v1/models/{self.name}:predict"
        return Load(url, ROW, rate, headers={"Host": self.host, **headers})

    def until_answered(self) -> None:
        """The gateway learns of a new service a little later than its status does."""
        request = urllib.request.Request(f"http://{self._gateway}/v2/health/ready", headers={"host": self.host})

        def answers() -> bool:
            try:
                with urllib.request.urlopen(request, timeout=5) as found:
                    return bool(found.status == 200)
            except OSError:
                return False

        self.until(answers, 20.0)

    def until_all_answer(self, value: float) -> None:
        """A route that was changed is in force a moment later."""
        self.until(lambda: self.counted(20) == {value: 20}, 20.0)

    def counted(self, requests: int, **headers: str) -> Counter[float]:
        """So many answers over HTTP, by what they are."""
        with self.load(400.0, **headers) as load:
            load.wait_for(requests)
        assert not load.lost, load
        return Counter(value_of(one.body) for one in load.answers[:requests])

    def counted_grpc(self, requests: int) -> Counter[float]:
        """So many answers over gRPC."""
        options = [("grpc.default_authority", self.host)]
        with tritonclient.grpc.InferenceServerClient(self._gateway, channel_args=options) as client:
            (given,) = client.get_model_metadata(self.name).inputs
            rows = tritonclient.grpc.InferInput(given.name, [1, 4], given.datatype)
            rows.set_data_from_numpy(np.array([[1, 0, 0, 0]], tritonclient.utils.triton_to_np_dtype(given.datatype)))

            def ask(_: int) -> float:
                answer = client.infer(self.name, [rows], client_timeout=30)
                return round(float(answer.as_numpy(answer.get_response().outputs[0].name).ravel()[0]))

            with ThreadPoolExecutor(4) as threads:
                return Counter(threads.map(ask, range(requests)))


def value_of(body: bytes) -> float:
    return round(json.loads(body)["predictions"][0])
