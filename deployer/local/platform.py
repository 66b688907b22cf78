"""The local shell: carries out a plan with processes, files and Envoy on this machine.  Decides nothing that a plan decides.

What lives on: a record per service (its object, port, revisions and models), the replicas and what is routed.  One lock
guards them; nothing that waits (a download, a probe, Envoy) is done while it is held.
"""

import copy
import errno
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployer import names, spec
from deployer.errors import NotFound, SpecError
from deployer.local import process, state
from deployer.local.cache import Cache, FetchError
from deployer.local.envoy import MAIN_LISTENER, Backend, Endpoint, HeaderRoute, Mirror, ServiceRoutes
from deployer.local.proxy import Proxy
from deployer.local.replica import Ports
from deployer.local.replicas import Replicas
from deployer.observed import Failure, History, ModelSeen, Observed, RevisionSeen
from deployer.plan import Abilities, Plan
from deployer.runtimes import ServingRuntime, check_conflicts, formats_of, parse_runtime
from deployer.status import timestamp
from deployer.workqueue import pause

log = logging.getLogger(__name__)
KEPT_REVISIONS = 10
# Where ClusterServingRuntimes are kept: no namespace is called so.
EVERYWHERE = "_"
FIRST_FETCH_PAUSE, LONGEST_FETCH_PAUSE = 2.0, 300.0


@dataclass(eq=False)
class _Fetch:
    """A model on its way to one service, or to be tried again."""

    tries: int = 0
    not_before: float = 0.0
    running: bool = False
    again: bool = False
    """It was asked for once more meanwhile: what comes may be older than that."""
    cancelled: threading.Event = field(default_factory=threading.Event)


class LocalPlatform:
    """The verbs of `platform.Platform`, and those by which a user's wishes come in: `put`, `remove`, `roll_back`."""

    def __init__(self, home: state.Home, proxy: Proxy, ports: Ports, replicas: Replicas, base_url: str) -> None:
        self._home, self._proxy, self._ports, self._replicas, self._base_url = home, proxy, ports, replicas, base_url
        self._cache = Cache(home.cache)
        self._lock = threading.RLock()
        self._pushing = threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}
        self._models: dict[tuple[str, str], ModelSeen] = {}
        self._fetches: dict[tuple[str, str], _Fetch] = {}
        # the objects that `get` gave last, by key: a plan is of one of these
        self._given: dict[str, dict[str, Any]] = {}
        self._routes: dict[str, ServiceRoutes] = {}
        self._route_error = ""
        # the listeners that could not be opened, where that alone is the error
        self._unheard: frozenset[str] = frozenset()
        self._changed: Callable[[str], None] = lambda key: None
        for key in home.service_keys():
            if record := state.read(home.service(key)):
                try:
                    self._load(key, record)
                except (KeyError, TypeError, ValueError, AttributeError):
                    log.warning("%s is no record of a service: left out", home.service(key))
        for key in self._records:
            self._routes[key] = self._route(key)

    def _load(self, key: str, record: dict[str, Any]) -> None:
        # what it says was so when the last supervisor looked
        record["object"].setdefault("status", {}).pop("observedGeneration", None)
        unseen = record.setdefault("unseen", [])
        models = {
            (key, uri): ModelSeen("fetching" if uri in unseen else "fetched", digest) for uri, digest in record["models"].items()
        }
        History(**record["history"])
        for revision in record["revisions"]:
            RevisionSeen(revision["name"], revision["number"], revision["hash"], revision["template"])
        record["weights"].values()
        self._ports.keep(int(record["port"]))
        self._models |= models
        self._records[key] = record

    # what users ask for

    def install(self, raw: dict[str, Any]) -> dict[str, Any]:
        """A ServingRuntime or ClusterServingRuntime: the services that it may be for are planned anew."""
        runtime = parse_runtime(raw)
        check_conflicts(runtime, self.runtimes(runtime.metadata.namespace))
        state.write(self._runtime_file(runtime), raw)
        self._plan_all_anew()
        return raw

    def uninstall(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Take a runtime away; what runs by it goes on, and a service that has no other says so."""
        runtime = parse_runtime(raw)
        file = self._runtime_file(runtime)
        if not file.exists():
            raise NotFound(f"there is no {runtime.kind} {runtime.name!r} in namespace {runtime.metadata.namespace!r}")
        file.unlink()
        self._plan_all_anew()
        return raw

    def _runtime_file(self, runtime: ServingRuntime) -> Path:
        folder = runtime.metadata.namespace if runtime.kind == "ServingRuntime" else EVERYWHERE
        return self._home.root / "runtimes" / folder / f"{runtime.name}.json"

    def _plan_all_anew(self) -> None:
        with self._lock:
            keys = list(self._records)
        for key in keys:
            self._changed(key)

    def installed(self, namespace: str) -> list[dict[str, Any]]:
        folders = [self._home.root / "runtimes" / name for name in (namespace, EVERYWHERE)]
        found = (state.read(file) for folder in folders for file in sorted(folder.glob("*.json")))
        return [document for document in found if isinstance(document, dict)]

    def put(self, raw: dict[str, Any], content: str = "") -> dict[str, Any]:
        """Apply an object: made, or changed where its spec, labels or annotations differ; SpecError where it is wrong."""
        meta = raw.get("metadata")
        formats = formats_of(self.runtimes(str(meta.get("namespace", "default") if isinstance(meta, dict) else "default")))
        service = spec.parse(raw, formats=formats)
        key = names.key(service.metadata.namespace, service.metadata.name)
        with self._lock:
            old = self._records.get(key)
            if old:
                spec.check_update(spec.parse(old["object"], formats=None), service)
            if old is None:
                # of a service of this name that was deleted: not to be taken for this one's
                self._replicas.retire(key, set())
            record = dict(old or {"port": self._port(key), "revisions": [], "models": {}, "history": {}, "weights": {}})
            record["object"] = _merged(old["object"] if old else None, service)
            record["models"], record["unseen"] = self._resolve(key, record, service, content)
            # on disk first: what was accepted is not forgotten, and what could not be written was not accepted
            try:
                state.write(self._home.service(key), record)
            except OSError:
                if old is None and key not in self._routes:
                    self._ports.release(record["port"])
                raise
            self._records[key] = record
            self._look_again(key, record, _uris(service))
            shown: dict[str, Any] = copy.deepcopy(record["object"])
        self._changed(key)
        return shown

    def _port(self, key: str) -> int:
        """A new service's own; that of one of the same name, where that has just been deleted."""
        before = self._routes.get(key)
        return before.port if before else self._ports.free()

    def _resolve(
        self, key: str, record: Mapping[str, Any], service: spec.InferenceService, content: str
    ) -> tuple[dict[str, str], list[str]]:
        """The digests of the models that are known, by URI, and the URIs that are to be looked at.

        A file may have other content under the same name: it is looked at again, and the known one serves until then.
        With `content` "known" nothing is looked at, and with a revision's name it is what that revision had.
        """
        had = {r["template"]["uri"]: r["template"]["digest"] for r in record["revisions"] if r["name"] == content}
        seen = {uri: model.digest for (owner, uri), model in self._models.items() if owner == key}
        known = {uri: digest for uri in _uris(service) if (digest := had.get(uri) or seen.get(uri))}
        settled = known if content == "known" else had
        return known, [uri for uri in _uris(service) if uri not in settled]

    def _look_again(self, key: str, record: Mapping[str, Any], uris: Iterable[str]) -> None:
        for uri in [uri for owner, uri in self._models if owner == key and (uri not in uris or uri not in record["unseen"])]:
            self._drop(key, uri)
        for uri in uris:
            if uri not in record["unseen"]:
                self._models[key, uri] = ModelSeen("fetched", record["models"][uri])
                continue
            self._models[key, uri] = ModelSeen("fetching", record["models"].get(uri, ""))
            under_way = self._fetches.get((key, uri))
            if under_way and under_way.running:
                under_way.again = True
                continue
            self._fetches.pop((key, uri), None)
            self._fetch(key, uri)

    def _drop(self, key: str, uri: str) -> None:
        del self._models[key, uri]
        if fetch := self._fetches.pop((key, uri), None):
            fetch.cancelled.set()

    def remove(self, key: str) -> dict[str, Any]:
        with self._lock:
            shown = self.shown(key)
            self._home.service(key).unlink(missing_ok=True)
            del self._records[key]
            self._drop_all(key)
        self._changed(key)
        return shown

    def shown(self, key: str) -> dict[str, Any]:
        with self._lock:
            if key not in self._records:
                raise NotFound(f"there is no InferenceService {key.partition('/')[2]!r} in namespace {key.partition('/')[0]!r}")
            return copy.deepcopy(self._records[key]["object"])

    def listed(self, namespace: str | None = None) -> list[dict[str, Any]]:
        with self._lock:
            return [self.shown(key) for key in sorted(self._records) if namespace in (None, key.partition("/")[0])]

    def revisions(self, key: str) -> list[dict[str, Any]]:
        with self._lock:
            self.shown(key)
            return copy.deepcopy(self._records[key]["revisions"])

    def is_busy(self, key: str) -> bool:
        """Whether something of a deleted service still runs."""
        return bool(self._replicas.of(key))

    # the verbs of a platform

    def watch(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._replicas.watch(changed)
        left_behind = {names.key(r.namespace, r.service) for r in self._replicas.all()}
        for key in sorted(left_behind | set(self._records)):
            changed(key)

    def get(self, key: str) -> dict[str, Any] | None:
        with self._lock:
            if key not in self._records:
                return None
            self._given[key] = self._records[key]["object"]
            return copy.deepcopy(self._given[key])

    def _record(self, key: str) -> dict[str, Any] | None:
        """The record, where it is still of the object that `get` gave; another one will be planned anew."""
        record = self._records.get(key)
        return record if record and record["object"] is self._given.get(key) else None

    def runtimes(self, namespace: str) -> Sequence[ServingRuntime]:
        found = []
        for document in self.installed(namespace):
            try:
                found.append(parse_runtime(document))
            except SpecError as error:
                # it was one when it was installed; the services of other runtimes are not to suffer for it
                log.warning("a runtime that is installed for %s is left out: %s", namespace, error)
        return found

    @property
    def abilities(self) -> Abilities:
        return Abilities(process.refuses)

    def observe(self, key: str) -> Observed:
        with self._lock:
            record = self._records.get(key)
            if record is None:
                return Observed()
            namespace, _, name = key.partition("/")
            return Observed(
                tuple(self._seen(key, r) for r in record["revisions"]),
                {uri: seen for (owner, uri), seen in self._models.items() if owner == key},
                dict(record["weights"]),
                History(**record["history"]),
                self._base_url + names.path(namespace, name),
                f"http://127.0.0.1:{record['port']}",
                self._error(key),
            )

    def _seen(self, key: str, record: dict[str, Any]) -> RevisionSeen:
        mine = self._replicas.running(key, record["name"])
        return RevisionSeen(
            record["name"],
            record["number"],
            record["hash"],
            record["template"],
            len(mine),
            sum(r.is_ready for r in mine),
            sum(r.process is not None for r in mine),
            self._replicas.failure(key, record["name"]),
        )

    def apply(self, key: str, plan: Plan) -> None:
        with self._lock:
            record = self._record(key)
            if record is None:
                return
            self._remember(key, record, plan)
            for uri in plan.fetch:
                self._fetch(key, uri)
            for revision in plan.revisions:
                model = self._cache.path(revision.template["digest"], _file_name(revision.template["uri"]))
                if model is None:
                    self._fetch_lost(key, revision.template["uri"], revision.template["digest"])
                    continue
                self._replicas.scale(key, revision, str(model))
            record["weights"] = {t.revision: t.percent for t in plan.traffic if t.percent}
            self._routes[key] = self._route(key, plan)
        if self._push():
            # nobody is sent there any more: what is not in the plan may end
            self._replicas.retire(key, {r.name for r in plan.revisions})
        with self._lock:
            if key in self._records:
                self._save(key)

    def _remember(self, key: str, record: dict[str, Any], plan: Plan) -> None:
        known = {r["name"] for r in record["revisions"]}
        for r in plan.revisions:
            if r.name not in known:
                made = {"name": r.name, "number": r.number, "hash": r.hash, "template": dict(r.template)}
                record["revisions"].append(made | {"predictor": dict(r.predictor), "created": timestamp(time.time())})
        record["history"] = vars(plan.history).copy()
        used = {r.name for r in plan.revisions} | set(record["history"].values())
        spare = [r["name"] for r in record["revisions"] if r["name"] not in used]
        for name in spare[: max(0, len(spare) - KEPT_REVISIONS)]:
            record["revisions"] = [r for r in record["revisions"] if r["name"] != name]

    def report(self, key: str, status: dict[str, Any]) -> None:
        with self._lock:
            record = self._record(key)
            if record is None or record["object"].get("status") == status:
                return
            record["object"]["status"] = status
            meta = record["object"]["metadata"]
            meta["resourceVersion"] = str(int(meta["resourceVersion"]) + 1)
            self._save(key)

    def delete(self, key: str) -> None:
        with self._lock:
            if key in self._records:
                # made again meanwhile
                return
            route = self._routes.pop(key, None)
            self._given.pop(key, None)
        self._push()
        if route:
            self._ports.release(route.port)
        self._replicas.retire(key, set())
        with self._lock:
            keep = {r["template"]["digest"] for record in self._records.values() for r in record["revisions"]}
        self._cache.remove_unused(keep, older_than=600.0)

    # models

    def _drop_all(self, key: str) -> None:
        for uri in [uri for owner, uri in self._models if owner == key]:
            self._drop(key, uri)

    def _fetch_lost(self, key: str, uri: str, digest: str) -> None:
        """What was here is not any more.  Where its URI gives something else by now, that is another revision's."""
        seen = self._models.get((key, uri))
        if seen is None or (seen.state == "fetched" and seen.digest == digest):
            self._models[key, uri] = ModelSeen("fetching")
        self._fetch(key, uri)

    def _fetch(self, key: str, uri: str) -> None:
        """In a thread of its own, where it is not there, not on its way, and not to be tried later."""
        seen = self._models.get((key, uri))
        fetch = self._fetches.get((key, uri)) or _Fetch()
        if (seen and seen.state == "fetched") or fetch.running or time.monotonic() < fetch.not_before:
            return
        threading.Thread(target=self._fetch_now, args=(key, uri, fetch), name=f"fetch {uri}", daemon=True).start()
        self._models[key, uri] = ModelSeen("fetching", seen.digest if seen else "", failure=seen.failure if seen else None)
        self._fetches[key, uri] = fetch
        fetch.running = True

    def _fetch_now(self, key: str, uri: str, fetch: _Fetch) -> None:
        def progress(done: int, total: int | None) -> None:
            with self._lock:
                seen = self._models.get((key, uri))
                if seen and seen.state == "fetching" and self._fetches.get((key, uri)) is fetch:
                    self._models[key, uri] = ModelSeen("fetching", seen.digest, done, total, seen.failure)
            self._changed(key)

        digest, failure = "", None
        try:
            digest = self._cache.fetch(uri, progress, fetch.cancelled).digest
        except FetchError as error:
            failure = Failure(error.reason, error.message, time.time())
        except OSError as error:
            reason = "DiskFull" if error.errno == errno.ENOSPC else "DownloadFailed"
            failure = Failure(reason, f"{uri}: {error.strerror or error}", time.time())
        except Exception as error:
            log.exception("fetching %s", uri)
            failure = Failure("DownloadFailed", f"{uri}: {type(error).__name__}: {error}", time.time())
        with self._lock:
            # the fetch of a service that is gone, or of a model that it does not want any more, is nobody's
            if self._fetches.get((key, uri)) is fetch:
                self._fetched(key, uri, fetch, digest, failure)
        self._changed(key)

    def _fetched(self, key: str, uri: str, fetch: _Fetch, digest: str, failure: Failure | None) -> None:
        known = digest or self._models[key, uri].digest
        fetch.running = False
        if failure is None:
            self._records[key]["models"][uri] = digest
            del self._fetches[key, uri]
        if fetch.again:
            self._fetches.pop((key, uri), None)
            self._models[key, uri] = ModelSeen("fetching", known)
            self._fetch(key, uri)
        elif failure is None:
            self._models[key, uri] = ModelSeen("fetched", digest)
            self._records[key]["unseen"] = [u for u in self._records[key]["unseen"] if u != uri]
        else:
            self._models[key, uri] = ModelSeen("failed", known, failure=failure)
            fetch.tries += 1
            fetch.not_before = time.monotonic() + pause(FIRST_FETCH_PAUSE, LONGEST_FETCH_PAUSE, fetch.tries)

    # routes

    def route_all(self) -> None:
        """Write the routes as they were when the last supervisor wrote them, before anything else is known."""
        self._write_routes()

    def _route(self, key: str, plan: Plan | None = None) -> ServiceRoutes:
        namespace, _, name = key.partition("/")
        record = self._records[key]
        order = [t.revision for t in plan.traffic] if plan else list(record["weights"])
        backends = tuple(Backend(r, record["weights"].get(r, 0), self._endpoints(key, r)) for r in order)
        found = [HeaderRoute(m.header, m.value, m.revision) for m in plan.header_matches] if plan else []
        mirror = Mirror(*plan.mirror) if plan and plan.mirror else None
        return ServiceRoutes(namespace, name, record["port"], plan.timeout if plan else 60.0, backends, tuple(found), mirror)

    def _endpoints(self, key: str, revision: str) -> tuple[Endpoint, ...]:
        """The ready ones; where none is, those that were, so that requests are held for them."""
        mine = [r for r in self._replicas.running(key, revision) if r.was_ready]
        ready = [r for r in mine if r.is_ready]
        return tuple(Endpoint(r.http_port, r.grpc_port) for r in ready or mine)

    def _error(self, key: str) -> str:
        """The proxy's, where it is this service's too: another one's port that is taken is not."""
        return self._route_error if not self._unheard or self._unheard & {key, MAIN_LISTENER} else ""

    def _push(self) -> bool:
        """Have requests go by the routes of all services; whether they do now."""
        self._write_routes()
        if self._route_error:
            return bool(self._unheard)
        return self._proxy.wait_applied(5.0)

    def _write_routes(self) -> None:
        # one at a time: routes that were read before another's must not be written after them
        with self._pushing:
            with self._lock:
                routes = [self._routes[key] for key in sorted(self._routes)]
            try:
                self._proxy.apply(routes)
                error = self._proxy.rejected()
                self._unheard = self._proxy.unheard() if error else frozenset()
            except OSError as failed:
                error = f"the routes can't be written: {failed.strerror or failed}; those before stay in use"
                self._unheard = frozenset()
            self._route_error = error

    def _save(self, key: str) -> None:
        state.write(self._home.service(key), self._records[key])


def _uris(service: spec.InferenceService) -> Iterable[str]:
    predictors = [spec.pinned(service).spec.predictor, *(c.predictor for c in service.spec.canary)]
    return dict.fromkeys(p.model.storage_uri for p in predictors if p.model and p.model.storage_uri)


def _file_name(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def _merged(old: dict[str, Any] | None, service: spec.InferenceService) -> dict[str, Any]:
    """The object to keep: the user's words, the platform's metadata, and a new generation where the spec differs."""
    given = spec.as_object(service)
    kept = {"apiVersion": spec.API_VERSION, "kind": spec.KIND}
    before = old["metadata"] if old else {}
    meta = {k: v for k, v in given.get("metadata", {}).items() if k in ("labels", "annotations") and v}
    meta |= {"name": service.metadata.name, "namespace": service.metadata.namespace}
    meta["uid"] = before.get("uid") or str(uuid.uuid4())
    meta["creationTimestamp"] = before.get("creationTimestamp") or timestamp(time.time())
    changed = old is None or old["spec"] != given["spec"] or before.get("annotations", {}) != meta.get("annotations", {})
    meta["generation"] = int(before.get("generation", 0)) + int(changed)
    meta["resourceVersion"] = str(int(before.get("resourceVersion", "0")) + 1)
    # nobody has looked at this one yet
    status = {k: v for k, v in old.get("status", {}).items() if k != "observedGeneration"} if old else {}
    return kept | {"metadata": meta, "spec": given["spec"], "status": status}
