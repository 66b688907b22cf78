"""A control plane that a test may break, and a node that is a thread: it says of pods what a kubelet would say.

etcd, API server, controllers and scheduler are real.  Only what happens inside a pod is made up, by `Kubelet.says`.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import yaml

from deployer.kubernetes.api import Absent, Api, ApiError, connect
from deployer.kubernetes.kinds import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    HPA,
    HTTP_ROUTE,
    INFERENCE_SERVICE,
    LEASE,
    POD,
    SERVICE_KIND,
    VIRTUAL_SERVICE,
    Kind,
)
from deployer.names import key
from tests.cluster.conftest import CRDS, FIXTURE, LEFT_OUT, _free
from tests.left_out import leave_out

NODE = "fake"
NODES = Kind("v1", "Node", "nodes", namespaced=False)
NAMESPACES = Kind("v1", "Namespace", "namespaces", namespaced=False)
DEFINITIONS = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False)
# What a mesh's installer brings; their schemas are its own affair.
FOREIGN = (
    ("networking.istio.io", "v1", "VirtualService", "virtualservices"),
    ("networking.istio.io", "v1", "DestinationRule", "destinationrules"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
)


def until(what, seconds=30.0, why="", every=0.02):
    """Wait until `what()` is true, looking `every` so many seconds; its value."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not so within {seconds:g} s {why}"
        time.sleep(every)
    return found


class Plane:
    """A running control plane; `api` is the tests' own way to it."""

    def __init__(self, folder: Path, kubeconfig: Path, etcd_port: int) -> None:
        self.kubeconfig = kubeconfig
        self._folder, self._etcd_port = folder, etcd_port
        self.api = connect(str(kubeconfig))

    def pid(self, name: str) -> int:
        return int((self._folder / "pids" / name).read_text().split()[0])

    @contextmanager
    def without_api_server(self) -> Iterator[None]:
        """The API server is killed, and started again, by its own command line, when the block ends.

        Kubernetes' own controllers sleep meanwhile: each time that they find nobody they wait longer before they look again,
        up to a minute.
        """
        pid = self.pid("kube-apiserver")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        place = os.readlink(f"/proc/{pid}/cwd")
        environment = dict(os.environ, PATH=f"{Path.home()}/.cache/testcluster/bin:{os.environ['PATH']}")
        others = [self.pid(name) for name in ("kube-controller-manager", "kube-scheduler")]
        for other in others:
            os.kill(other, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not _runs(pid))
        try:
            yield
        finally:
            self._start_api_server(command, place, environment)
            for other in others:
                os.kill(other, signal.SIGCONT)

    def _start_api_server(self, command: list[bytes], place: str, environment: dict[str, str]) -> None:
        """Again and again, while the dead one's port is not free yet."""
        deadline = time.monotonic() + 60.0
        while True:
            with (self._folder / "logs" / "kube-apiserver.log").open("ab") as log:
                started = subprocess.Popen(
                    command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            ticks = Path(f"/proc/{started.pid}/stat").read_text().rpartition(") ")[2].split()[19]
            (self._folder / "pids" / "kube-apiserver").write_text(f"{started.pid} {ticks}\n")
            until(lambda started=started: started.poll() is not None or self.answers(), 60.0)
            if started.poll() is None:
                return
            assert time.monotonic() < deadline, "the API server does not start again"

    def answers(self) -> bool:
        return self.has(INFERENCE_SERVICE) and self.has(VIRTUAL_SERVICE)

    def has(self, kind: Kind) -> bool:
        """Whether the kind can be listed: for a moment after it was defined it can't."""
        try:
            self.api.listed(kind.path())
        except ApiError:
            return False
        return True

    def compact(self) -> None:
        """etcd forgets all versions but the present ones."""
        etcd = connect(str(self.kubeconfig))
        etcd._configuration.host = f"http://127.0.0.1:{self._etcd_port}"
        now = etcd._ask("POST", "/v3/kv/range", {"key": "AA=="})["header"]["revision"]
        etcd._ask("POST", "/v3/kv/compaction", {"revision": now, "physical": True})

    # what tests do all the time

    def install(self) -> None:
        """The kinds of KServe."""
        for path in sorted(CRDS.glob("*.yaml")):
            for raw in yaml.safe_load_all(path.read_text()):
                self.api.create(DEFINITIONS.path(), raw)
        until(lambda: self.has(INFERENCE_SERVICE))

    def namespace(self, name: str) -> str:
        self.api.create(NAMESPACES.path(), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return name

    def configure(self, ingress: str) -> None:
        data = {"serveplane": f'{{"ingress": "{ingress}"}}'}
        meta = {"name": "inferenceservice-config", "namespace": "kserve"}
        raw = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
        self.api.apply(CONFIG_MAP.path("kserve", "inferenceservice-config"), raw, "test")

    def apply(self, raw: dict) -> dict:
        meta = raw["metadata"]
        return self.api.apply(INFERENCE_SERVICE.path(meta["namespace"], meta["name"]), raw, "test")

    def get(self, kind: Kind, namespace: str, name: str) -> dict | None:
        return self.api.find(kind.path(namespace, name))

    def all(self, kind: Kind, namespace: str | None) -> list[dict]:
        try:
            return self.api.listed(kind.path(namespace))[0]
        except Absent:
            return []

    def service(self, namespace: str, name: str) -> dict:
        found = self.get(INFERENCE_SERVICE, namespace, name)
        assert found is not None, f"there is no {name}"
        return found

    def ready(self, namespace: str, name: str) -> dict:
        """The condition Ready, empty where the status is about another generation."""
        raw = self.service(namespace, name)
        status = raw.get("status") or {}
        if status.get("observedGeneration") != raw["metadata"]["generation"]:
            return {}
        return next((one for one in status.get("conditions", ()) if one["type"] == "Ready"), {})

    def is_ready(self, namespace: str, name: str) -> bool:
        return self.ready(namespace, name).get("status") == "True"

    def traffic(self, namespace: str, name: str) -> dict[str, int]:
        """Percent by revision, as the status has it."""
        status = self.service(namespace, name).get("status") or {}
        listed = status.get("components", {}).get("predictor", {}).get("traffic", ())
        return {one["revisionName"]: one["percent"] for one in listed}

    def weights(self, namespace: str, name: str) -> dict[str, int]:
        """Percent by Service, as the VirtualService has it."""
        route = self.get(VIRTUAL_SERVICE, namespace, name)
        last = route["spec"]["http"][-1]["route"] if route else ()
        return {one["destination"]["host"].partition(".")[0]: one.get("weight", 100) for one in last}

    def reasons(self, namespace: str, name: str) -> list[str]:
        """Of the Events on a service, in no order."""
        return [e["reason"] for e in self.all(EVENT, namespace) if e["involvedObject"].get("name") == name]


def service(namespace, name="iris", uri="s3://models/one", **predictor) -> dict:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": uri}
    spec = {"predictor": {"minReplicas": 1, "maxReplicas": 3, "model": model, **predictor}}
    spec = {**spec, "canary": spec["predictor"].pop("canary")} if "canary" in predictor else spec
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": meta, "spec": spec}


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Kubelet:
    """A node, and what happens to the pods on it.  `says` gives a pod's status, or None to leave it as it is."""

    def __init__(self, plane: Plane) -> None:
        self._plane, self._api = plane, connect(str(plane.kubeconfig))
        self.says: Callable[[dict], dict | None] = ready_pod
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._beat, self._watch)]

    def start(self) -> None:
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}}}
        self._api.apply(NODES.path(None, NODE), node, "kubelet")
        self._post()
        for thread in self._threads:
            thread.start()

    def _post(self) -> None:
        size = {"cpu": "10000", "memory": "100Ti", "pods": "10000", "ephemeral-storage": "100Ti"}
        condition = {"type": "Ready", "status": "True", "reason": "Fake", "message": "a thread", "lastTransitionTime": now()}
        status = {"capacity": size, "allocatable": size, "conditions": [{**condition, "lastHeartbeatTime": now()}]}
        self._api.patch(NODES.path(None, NODE) + "/status", [{"op": "add", "path": "/status", "value": status}])

    def stop(self) -> None:
        self._closed.set()

    def again(self) -> None:
        """Look at every pod once more: `says` says something else now."""
        for pod in self._plane.all(POD, None):
            self._seen(pod)

    def _beat(self) -> None:
        meta = {"name": NODE, "namespace": "kube-node-lease"}
        while not self._closed.wait(0 if self._closed.is_set() else 5):
            spec = {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": now(".%fZ")}
            lease = {"apiVersion": LEASE.api_version, "kind": "Lease", "metadata": meta, "spec": spec}
            _try(lambda lease=lease: self._api.apply(LEASE.path("kube-node-lease", NODE), lease, "kubelet"))
            _try(self._again_if_lost)

    def _again_if_lost(self) -> None:
        """A node that was not heard of for long counts as lost, and its pods as not ready, until its kubelet says otherwise."""
        conditions = self._api.get(NODES.path(None, NODE))["status"]["conditions"]
        if any(one["type"] == "Ready" and one["status"] != "True" for one in conditions):
            self._post()
            self.again()

    def _watch(self) -> None:
        while not self._closed.is_set():
            _try(self._round)
            self._closed.wait(0.1)

    def _round(self) -> None:
        listed, version = self._api.listed(POD.path(), fieldSelector=f"spec.nodeName={NODE}")
        for pod in listed:
            self._seen(pod)
        for event in self._api.watch(POD.path(), version, 60, 65.0, fieldSelector=f"spec.nodeName={NODE}"):
            if self._closed.is_set():
                return
            if event["type"] in ("ADDED", "MODIFIED"):
                self._seen(event["object"])

    def _seen(self, pod: dict) -> None:
        meta = pod["metadata"]
        path = POD.path(meta["namespace"], meta["name"])
        if "nodeName" not in pod["spec"]:
            return
        if "deletionTimestamp" in meta:
            body = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
            _try(lambda: self._api._ask("DELETE", path, body))
            return
        status = self.says(pod)
        if status is None or _core(status) == _core(pod.get("status") or {}):
            return
        _try(lambda: self._api.patch(path + "/status", [{"op": "add", "path": "/status", "value": status}]))


def _core(status: dict) -> list:
    """What a status says, without times."""
    states = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    return [
        status.get("phase"),
        [one["status"] for one in status.get("conditions", ()) if one["type"] == "Ready"],
        *((one["name"], one["ready"], one["restartCount"], sorted(one.get("state", {}))) for one in states),
    ]


def _try(what: Callable[[], object]) -> None:
    with contextlib.suppress(ApiError):  # the API server is away, or the pod is: there is a next time
        what()


def now(form: str = "Z") -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S" + form)


def ready_pod(pod: dict) -> dict:
    return pod_status(pod, True)


def pod_status(
    pod: dict, ready: bool, *, init: dict | None = None, state: dict | None = None, last: dict | None = None, restarts: int = 0
) -> dict:
    """`init` is the storage initializer's state, `state` and `last` are the server's."""
    at = pod["metadata"]["creationTimestamp"]
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": at} for kind in ("PodScheduled", "Initialized")]
    conditions += [{"type": kind, "status": str(ready), "lastTransitionTime": now()} for kind in ("ContainersReady", "Ready")]
    done = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": at, "finishedAt": at}}

    def said(one: dict, its: dict, is_ready: bool, before: dict | None, count: int) -> dict:
        return {
            "name": one["name"], "image": one["image"], "imageID": "", "ready": is_ready, "started": is_ready,
            "restartCount": count, "state": its, **({"lastState": before} if before else {}),
        }  # fmt: skip

    return {
        "phase": "Running" if init is None else "Pending",
        "conditions": conditions,
        "hostIP": "127.0.0.1",
        "podIP": "10.1.2.3",
        "podIPs": [{"ip": "10.1.2.3"}],
        "startTime": at,
        "initContainerStatuses": [said(one, init or done, init is None, None, 0) for one in pod["spec"].get("initContainers", ())],
        "containerStatuses": [
            said(one, state or ({"running": {"startedAt": at}} if init is None else {"waiting": {"reason": "PodInitializing"}}), ready, last, restarts)
            for one in pod["spec"]["containers"]
        ],
    }  # fmt: skip


@contextmanager
def booted(*, kinds: bool = True) -> Iterator[Plane]:
    """In a folder and on ports of its own, beside any other.  `kinds`: with KServe's, which else `Plane.install` brings."""
    if not (FIXTURE / "up").exists():
        leave_out(LEFT_OUT.format(fixture=FIXTURE))
    folder, etcd_port = Path(tempfile.mkdtemp(prefix="serveplane-plane-")), _free(2)
    own = {"TESTCLUSTER_DIR": str(folder), "TESTCLUSTER_API_PORT": str(_free(3)), "TESTCLUSTER_ETCD_PORT": str(etcd_port)}
    environment = {**os.environ, **own}
    started = subprocess.run([FIXTURE / "up", "--control-plane"], env=environment, capture_output=True, text=True)
    try:
        assert started.returncode == 0, f"the control plane does not start: {started.stderr}"
        plane = Plane(folder, Path(started.stdout.split()[-1]), etcd_port)
        for foreign in FOREIGN:
            plane.api.create(DEFINITIONS.path(), _definition(*foreign))
        plane.namespace("kserve")
        for kind in (VIRTUAL_SERVICE, HTTP_ROUTE):
            until(lambda kind=kind: plane.has(kind))
        if kinds:
            plane.install()
        yield plane
    finally:
        subprocess.run([FIXTURE / "down", "--purge"], env=environment, check=True)


def _definition(group: str, version: str, kind: str, plural: str) -> dict:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    of = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}
    meta = {"name": f"{plural}.{group}"}
    if group.endswith("k8s.io"):
        meta["annotations"] = {"api-approved.kubernetes.io": "unapproved, for a test"}
    names = {"kind": kind, "plural": plural, "singular": kind.lower()}
    spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [of]}
    return {"apiVersion": DEFINITIONS.api_version, "kind": DEFINITIONS.name, "metadata": meta, "spec": spec}


__all__ = [
    "CONTROLLER_REVISION",
    "DEPLOYMENT",
    "HPA",
    "SERVICE_KIND",
    "Api",
    "Kubelet",
    "Plane",
    "booted",
    "key",
    "pod_status",
    "service",
    "until",
]
