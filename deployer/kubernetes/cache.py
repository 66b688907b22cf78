"""What the API server has, in memory: objects of one kind, listed once and watched from there on.

Reconciling reads only this, so it asks the API server nothing while nothing changes.  What the controller wrote itself is
put here from the answer, and the watch's echo of it is known by its version: it wakes nobody.
"""

import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deployer.kubernetes.api import Api, ApiError, Expired, Refused
from deployer.kubernetes.kinds import Kind

log = logging.getLogger(__name__)
Object = dict[str, Any]

WATCH_SECONDS = 45
"""After this time (and up to a third more) the server ends a watch; …"""
SILENCE_SECONDS = 65.0
"""… where it has not after this time, and nothing came, the connection is dead without saying so."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
LONGEST_WITHOUT_ANSWER = 3.0
"""An API server that is away is looked for more often: it costs nothing, and all waits for it."""
ABSENT_PAUSE = 30.0
"""How often a kind that the cluster does not have is looked for."""
TOMBSTONES = 1000


class Store:
    """Objects by "namespace/name" and by the key of the service they belong to.

    `trim` leaves of an object what is worth its memory, `owner` gives the service's key or "".
    """

    def __init__(self, kind: Kind, trim: Callable[[Object], Object], owner: Callable[[Object], str]) -> None:
        self.kind = kind
        self._trim, self._owner = trim, owner
        self._lock = threading.Lock()
        self._objects: dict[str, Object] = {}
        self._owned: dict[str, dict[str, Object]] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: str) -> Object | None:
        with self._lock:
            return self._objects.get(key)

    def of(self, owner: str) -> list[Object]:
        with self._lock:
            return list(self._owned.get(owner, {}).values())

    def all(self) -> list[Object]:
        with self._lock:
            return list(self._objects.values())

    def put(self, raw: Object) -> set[str]:
        """Keep an object where it is newer than the known one; the services that this means something to."""
        key, version = _key(raw), _version(raw)
        with self._lock:
            old = self._objects.get(key)
            if version <= max(_version(old) if old else -1, self._gone.get(key, -1)):
                return set()
            return self._set(key, old, self._trim(raw))

    def drop(self, raw: Object) -> set[str]:
        key, version = _key(raw), _version(raw)
        with self._lock:
            self._gone[key] = max(version, self._gone.get(key, -1))
            if len(self._gone) > TOMBSTONES:
                self._gone.popitem(last=False)
            old = self._objects.get(key)
            # made anew already, by this very process
            return set() if old is None or _version(old) > version else self._set(key, old, None)

    def replace(self, objects: Iterable[Object], version: str) -> set[str]:
        """What a list said: what it does not name is gone, but for what was made after it."""
        listed = {_key(raw): raw for raw in objects}
        touched: set[str] = set()
        for raw in listed.values():
            touched |= self.put(raw)
        with self._lock:
            for key, old in list(self._objects.items()):
                if key not in listed and _version(old) <= _number(version):
                    touched |= self._set(key, old, None)
        return touched

    def _set(self, key: str, old: Object | None, new: Object | None) -> set[str]:
        owners = set()
        if old is not None and (owner := self._owner(old)):
            owners.add(owner)
            self._owned[owner].pop(key, None)
            if not self._owned[owner]:
                del self._owned[owner]
        if new is None:
            self._objects.pop(key, None)
            return owners
        self._objects[key] = new
        if owner := self._owner(new):
            owners.add(owner)
            self._owned.setdefault(owner, {})[key] = new
        return set() if old is not None and _said(old) == _said(new) else owners


class Reflector:
    """A thread that keeps a store as the API server has it.  Every failure is waited out, longer each time."""

    def __init__(
        self,
        api: Api,
        store: Store,
        changed: Callable[[Iterable[str]], None],
        *,
        namespace: str | None = None,
        optional: bool = False,
        back: Callable[[], None] = lambda: None,
        **selectors: str,
    ) -> None:
        """`changed` is told keys of services; `back` is called when the API server answers again after it did not."""
        self.store, self._api, self._changed, self._optional, self._back = store, api, changed, optional, back
        self._path = store.kind.path(namespace)
        self._selectors = selectors
        self._synced = threading.Event()
        self._closed = threading.Event()
        self._version = ""
        self._failures = 0
        """Answers one after the other that were none of use; …"""
        self._unanswered = 0
        """… and requests without an answer: who is back after a long time is not to be waited for."""
        self.restarts = 0
        """How often it had to list again or to wait because something went wrong."""
        self.trouble = ""
        """What goes wrong now, "" where nothing does."""
        self.is_absent = False
        """The cluster does not have this kind."""
        self._thread = threading.Thread(target=self._run, name=f"watch {store.kind.plural}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._closed.set()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() or self._closed.is_set()

    def wait_synced(self, seconds: float) -> bool:
        return self._synced.wait(seconds)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                pause = self._round()
            except Expired as error:
                self._version = ""
                pause = self._failed(error, LONGEST_PAUSE)
            except Refused as error:
                pause = self._absent(error) if error.status in (403, 404) else self._failed(error, LONGEST_PAUSE)
            except ApiError as error:
                pause = self._failed(error, LONGEST_WITHOUT_ANSWER if error.status == 0 else LONGEST_PAUSE)
            except Exception as error:
                log.exception("watching %s: a bug, and it goes on", self._path)
                self._version = ""
                pause = self._failed(error, LONGEST_PAUSE)
            self._closed.wait(pause)

    def _round(self) -> float:
        """One list, where there is no version to go on from, and one watch; the seconds to wait before the next round."""
        if not self._version:
            items, self._version = self._api.listed(self._path, **self._selectors)
            self._back_again()
            told = self.store.replace(items, self._version)
            self.is_absent = False
            self._synced.set()
            self._changed(told)
        began, came = time.monotonic(), 0
        seconds = WATCH_SECONDS + random.randrange(WATCH_SECONDS // 3)
        for event in self._api.watch(self._path, self._version, seconds, SILENCE_SECONDS, **self._selectors):
            if event["type"] == "OPENED":
                self._back_again()
                continue
            raw = event["object"]
            self._version = raw["metadata"]["resourceVersion"]
            self._failures = 0
            came += 1
            if event["type"] == "BOOKMARK":
                continue
            self._changed(self.store.drop(raw) if event["type"] == "DELETED" else self.store.put(raw))
            if self._closed.is_set():
                return 0.0
        if not came and time.monotonic() - began < 1.0:
            return self._failed(ApiError("the watch ended as soon as it began"), LONGEST_PAUSE)
        self._failures = 0
        # not all watches at the same moment
        return random.random() * 0.1

    def _back_again(self) -> None:
        """There is an answer; the next failure is the first one again only after a watch that worked."""
        self._unanswered = 0
        if self.trouble:
            log.info("watching %s again", self._path)
            self.trouble = ""
            self._back()

    def _failed(self, error: Exception, longest: float) -> float:
        text = " ".join(str(error).split()) or type(error).__name__
        if text != self.trouble:
            log.warning("watching %s: %s; trying again", self._path, text)
        self.trouble = text
        self.restarts += 1
        if isinstance(error, ApiError) and error.status == 0:
            count, self._unanswered = self._unanswered, self._unanswered + 1
        else:
            count, self._failures, self._unanswered = self._failures, self._failures + 1, 0
        pause = min(longest, FIRST_PAUSE * 2.0 ** min(count, 10))
        return pause * (0.5 + random.random() / 2)

    def _absent(self, error: Refused) -> float:
        """The kind is not there (yet), or not for us: for an optional one that is how it is, and the store is empty."""
        self._version = ""
        if not self._optional:
            return self._failed(error, LONGEST_WITHOUT_ANSWER)
        self._failures, self.trouble, self.is_absent = 0, "", True
        told = self.store.replace((), "9" * 30)
        self._synced.set()
        self._changed(told)
        return ABSENT_PAUSE * (0.75 + random.random() / 4)


def _key(raw: Mapping[str, Any]) -> str:
    meta = raw["metadata"]
    return f"{meta.get('namespace', '')}/{meta['name']}"


def _version(raw: Mapping[str, Any]) -> int:
    return _number(raw["metadata"].get("resourceVersion", ""))


def _number(version: str) -> int:
    # opaque by the letter of the API, and a growing number in every API server there is (since 1.35 by the letter too)
    return int(version) if version.isdecimal() else 0


def _said(raw: Object) -> Object:
    """What of an object may matter to anyone: everything but its version."""
    meta = {key: value for key, value in raw["metadata"].items() if key != "resourceVersion"}
    return {**raw, "metadata": meta}
