"""The command line's side of a cluster: InferenceServices over the cluster's API, as whoever runs the command.

Nothing of this is the controller's: what is written here, a kubectl could write.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from deployer import spec
from deployer.calling import call
from deployer.client import Endpoints, Object, Replica, absent, check_name
from deployer.errors import Conflict, DeployerError, NotFound, SpecError
from deployer.kubernetes import pods
from deployer.kubernetes.api import Absent, ApiError, Refused, Stale, connect, namespace_of
from deployer.kubernetes.children import controller
from deployer.kubernetes.kinds import (
    CLUSTER_SERVING_RUNTIME,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    INFERENCE_SERVICE,
    OWNER,
    POD,
    REVISION,
    SERVICE,
    SERVING_RUNTIME,
    Kind,
)
from deployer.kubernetes.rendering.layout import short
from deployer.runtimes import ServingRuntime, formats_of, parse_runtime
from deployer.spec.notices import Platform

WRITER = "serve"
"""The field manager of what the command writes."""
TRIES = 5
LOOK_SECONDS = 1.0


class ClusterClient:
    """As `deployer.client.Client` has it.  `gateway`: the URL of the ingress that `ask` goes through, "" for the API server."""

    platform: Platform = "kubernetes"

    def __init__(self, context: str = "", gateway: str = "") -> None:
        self._api = connect(context=context or None)
        self.namespace = namespace_of(context or None)
        self._gateway = gateway.rstrip("/")

    # services

    def get(self, namespace: str, name: str) -> Object:
        check_name(namespace, name)
        try:
            return _whole(INFERENCE_SERVICE, self._api.get(INFERENCE_SERVICE.path(namespace, name)))
        except ApiError as error:
            self._fail(error, absent(namespace, name))

    def listed(self, namespace: str | None) -> list[Object]:
        return self._all(INFERENCE_SERVICE, namespace)

    def apply(self, raw: Object, content: str = "") -> Object:
        meta = raw["metadata"]
        namespace = meta.get("namespace", self.namespace)
        service = spec.parse(raw, formats=formats_of(self._readable(namespace)))
        for _ in range(TRIES):
            there = self._find(namespace, service.metadata.name)
            try:
                if there is None:
                    return self._write(self._api.create, INFERENCE_SERVICE.path(namespace), raw)
                spec.check_update(spec.parse(there, formats=None), service)
                path = INFERENCE_SERVICE.path(namespace, service.metadata.name)
                return self._write(self._api.replace, path, _changed(there, raw))
            except Stale:
                if "resourceVersion" in meta:
                    break
        raise Conflict(f"somebody else has changed {service.metadata.name} meanwhile; look at it, and try again")

    def delete(self, namespace: str, name: str) -> Object:
        there = self.get(namespace, name)
        try:
            self._api.delete(INFERENCE_SERVICE.path(namespace, name), there["metadata"]["uid"])
        except ApiError as error:
            self._fail(error)
        return there

    def runs(self, namespace: str, name: str) -> bool:
        return bool(self._all(DEPLOYMENT, namespace, f"{OWNER}={name}") or self._all(POD, namespace, f"{SERVICE}={name}"))

    def revisions(self, namespace: str, name: str) -> list[Object]:
        uid = self.get(namespace, name)["metadata"]["uid"]
        mine = (one for one in self._all(CONTROLLER_REVISION, namespace, f"{OWNER}={name}") if controller(one) == uid)
        found = [{"name": one["metadata"]["name"], "number": int(one["revision"]), **one["data"]} for one in mine]
        return sorted(found, key=lambda one: int(one["number"]))

    def replicas(self, namespace: str, name: str) -> list[Replica]:
        whole = {short(one["name"]): one["name"] for one in self.revisions(namespace, name)}
        found = map(pods.trim, self._all(POD, namespace, f"{SERVICE}={name}"))
        mine = [(one["metadata"]["labels"].get(REVISION, ""), pods.is_ready(one)) for one in found if not pods.is_leaving(one)]
        return [Replica(whole.get(label, label), is_ready) for label, is_ready in mine]

    # runtimes

    def install(self, raw: Object) -> Object:
        return self._write(self._api.apply, _runtime_path(raw, self.namespace), raw)

    def uninstall(self, raw: Object) -> Object:
        path = _runtime_path(raw, self.namespace)
        try:
            there = self._api.get(path)
            self._api.delete(path, there["metadata"]["uid"])
        except ApiError as error:
            self._fail(error, NotFound(f"there is no {raw['kind']} {raw['metadata']['name']!r}"))
        return {**there, "kind": raw["kind"]}

    def runtimes(self, namespace: str) -> list[Object]:
        found = self._all(SERVING_RUNTIME, namespace)
        try:
            return found + self._listed(CLUSTER_SERVING_RUNTIME, None)
        except Refused:  # who may see one namespace need not be allowed to see what is there for all
            return found

    def _readable(self, namespace: str) -> list[ServingRuntime]:
        found = []
        for raw in self.runtimes(namespace):
            try:
                found.append(parse_runtime(raw))
            except SpecError:  # not this service's affair
                continue
        return found

    # requests and lines

    def ask(self, service: Mapping[str, Any], path: str, body: Any, headers: Mapping[str, str]) -> Any:
        status, namespace = service["status"], service["metadata"]["namespace"]
        if self._gateway:
            return call(self._gateway + path, body, {**headers, "host": urlsplit(status["url"]).netloc})
        name = str(urlsplit(status["address"]["url"]).hostname).partition(".")[0]
        try:
            return self._api.ask_service(f"/api/v1/namespaces/{namespace}/services/http:{name}:80/proxy{path}", body, headers)
        except ApiError as error:
            text = error.body.get("error") or str(error)
            raise DeployerError(f"{error.status}: {text}" if error.status else str(text)) from None
        except ValueError as error:
            raise DeployerError(f"{name} answered no JSON at {path}: {error}") from None

    def way(self, service: Mapping[str, Any]) -> str:
        status = service["status"]
        if self._gateway:
            return f"{self._gateway} (Host: {urlsplit(status['url']).netloc}) "
        return f"(through the API server) {status['address']['url']}"

    def endpoints(self, service: Mapping[str, Any]) -> Endpoints:
        """The gateway's: the API server is nobody to put load on."""
        if not self._gateway:
            raise DeployerError("load goes through the cluster's ingress, not through the API server; say where: --gateway URL")
        host = urlsplit(service["status"]["url"]).netloc
        return Endpoints(self._gateway, {"Host": host}, urlsplit(self._gateway).netloc)

    def logs(self, namespace: str, name: str, tail: int, follow: bool) -> Iterator[str]:
        self.get(namespace, name)
        if not follow:
            for pod in self._all(POD, namespace, f"{SERVICE}={name}"):
                yield from self._lines_of(pod["metadata"], tail, False)
            return
        # a thread for each pod; they end with the command
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        read: dict[str, threading.Thread] = {}
        look_at = 0.0
        while True:
            if (now := time.monotonic()) >= look_at:
                look_at = now + LOOK_SECONDS
                for pod in self._all(POD, namespace, f"{SERVICE}={name}"):
                    self._follow(read, pod["metadata"], tail, lines)
            try:
                yield lines.get(timeout=LOOK_SECONDS / 5)
            except queue.Empty:
                continue

    def _follow(
        self, read: dict[str, threading.Thread], meta: Mapping[str, Any], tail: int, lines: "queue.SimpleQueue[str]"
    ) -> None:
        there = read.get(meta["name"])
        if there and there.is_alive():
            return

        def work() -> None:
            # what was read before is not read twice where a container is made anew
            for line in self._lines_of(meta, 1 if there else tail, True):
                lines.put(line)

        read[meta["name"]] = threading.Thread(target=work, daemon=True)
        read[meta["name"]].start()

    def _lines_of(self, meta: Mapping[str, Any], tail: int, follow: bool) -> Iterator[str]:
        asked = {"follow": "true"} if follow else {}
        asked |= {"tailLines": str(tail)} if tail else {}
        path = POD.path(meta["namespace"], meta["name"]) + "/log"
        for container in (pods.SERVER, pods.INITIALIZER):
            try:
                for line in self._api.lines(path, container=container, **asked):
                    yield f"{meta['name']}  {line}"
                return
            except ApiError:  # it has no such container, or has not started it: the one that makes it ready may say why
                continue

    # how

    def _find(self, namespace: str, name: str) -> Object | None:
        try:
            return self.get(namespace, name)
        except NotFound:
            return None

    def _all(self, kind: Kind, namespace: str | None, labels: str = "") -> list[Object]:
        try:
            return self._listed(kind, namespace, labels)
        except ApiError as error:
            self._fail(error)

    def _listed(self, kind: Kind, namespace: str | None, labels: str = "") -> list[Object]:
        items, _ = self._api.listed(kind.path(namespace), **({"labelSelector": labels} if labels else {}))
        return [_whole(kind, one) for one in items]

    def _write(self, how: Callable[[str, Object, str], Object], path: str, raw: Object) -> Object:
        """Stale is the caller's affair; all else that is refused is told as it is."""
        try:
            return how(path, raw, WRITER)
        except Stale:
            raise
        except ApiError as error:
            self._fail(error)

    def _fail(self, error: ApiError, otherwise: NotFound | None = None) -> NoReturn:
        if isinstance(error, Absent):
            if not (error.body.get("details") or {}).get("name"):
                raise DeployerError(
                    f"the cluster at {self._api.host} has no InferenceServices; install them there: "
                    "helm install serveplane-crds charts/serveplane-crds, and then charts/serveplane"
                ) from None
            raise otherwise or NotFound(str(error)) from None
        raise (Conflict if isinstance(error, Stale) else DeployerError)(str(error)) from None


def _whole(kind: Kind, raw: Object) -> Object:
    """With what a list leaves out, and without what nobody reads."""
    meta = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    return {**raw, "apiVersion": kind.api_version, "kind": kind.name, "metadata": meta}


def _changed(there: Object, raw: Object) -> Object:
    """The object with another spec, and with labels and annotations added; what others keep at it stays.

    What was read, and has a version for it, says all of them: what it leaves out is taken away.
    """
    meta, given = dict(there["metadata"]), raw["metadata"]
    for key in ("labels", "annotations"):
        if key in given and "resourceVersion" in given:
            meta[key] = given[key]
        elif given.get(key):
            meta[key] = {**(meta.get(key) or {}), **given[key]}
    meta["resourceVersion"] = given.get("resourceVersion", meta["resourceVersion"])
    return {**there, "metadata": meta, "spec": raw["spec"]}


def _runtime_path(raw: Object, namespace: str) -> str:
    kind = CLUSTER_SERVING_RUNTIME if raw["kind"] == CLUSTER_SERVING_RUNTIME.name else SERVING_RUNTIME
    return kind.path(raw["metadata"].get("namespace", namespace), raw["metadata"]["name"])
