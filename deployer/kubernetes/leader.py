"""Who of several controllers writes: the one that holds the Lease, and only while it surely does.

Times are those of every Kubernetes controller: a lease lasts 15 s, its holder stops writing when it could not renew it for
10 s, and everyone looks every 2 s.  A holder counts its own time from before it asked; the others count from when they
saw the last renewal.  So clocks need not agree, and a holder that slept through its lease knows before it writes again.

An API server that is away takes nobody's lease: its holder waits, and goes on where the lease is still its own.
"""

import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from deployer.kubernetes.api import Absent, Api, ApiError, Stale
from deployer.kubernetes.kinds import LEASE

log = logging.getLogger(__name__)


class Election:
    """`start`, then wait for `won`; from then on `leads` says whether writing is allowed, and `lost` when it is over.

    `api` is for this alone: it may write when nothing else may.  `again` is called when it leads again after it could not
    know for a while.  `owner` gives the object that the Lease goes with when it is deleted; None where there is none.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        *,
        identity: str = "",
        lease: float = 15.0,
        renew: float = 10.0,
        retry: float = 2.0,
        again: Callable[[], None] = lambda: None,
        owner: Callable[[], Mapping[str, Any] | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._namespace, self._name = api, namespace, name
        self.identity = identity or f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        self._lease, self._renew, self._retry, self._again, self._clock = lease, renew, retry, again, clock
        self._owner = owner
        self.won, self.lost = threading.Event(), threading.Event()
        self._until = 0.0
        """Until then this one surely leads."""
        self._seen: tuple[str, str, float] = ("", "", 0.0)
        """Holder, its last renewal, and when that was first seen here."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)

    @property
    def leads(self) -> bool:
        return not self.lost.is_set() and self._clock() < self._until

    @property
    def holder(self) -> str:
        return self._seen[0]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give the lease back, so that the next one need not wait for its end.  Nothing is written after this."""
        self._closed.set()
        self._thread.join(self._renew)
        held, self._until = self.leads, 0.0
        self.lost.set()
        if not held:
            return
        try:
            found = self._api.find(self._path)
            if found and found["spec"].get("holderIdentity") == self.identity:
                self._api.replace(self._path, found | {"spec": found["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}})
        except ApiError as error:
            log.warning("the lease was not given back: %s", error)

    @property
    def _path(self) -> str:
        return LEASE.path(self._namespace, self._name)

    def _run(self) -> None:
        said = ""
        led = False
        while not self._closed.is_set():
            asked = self._clock()
            try:
                held = self._try()
            except ApiError as error:
                if str(error) != said:
                    log.warning("the lease %s/%s: %s", self._namespace, self._name, error)
                held, said = None, str(error)
            if held:
                self._until = asked + self._renew
                said = ""
                if not led:
                    log.info("%s leads", self.identity)
                    if self.won.is_set():
                        self._again()
                self.won.set()
            elif held is False and self.won.is_set():
                log.error("%s has the lease; nothing is written any more", self.holder or "nobody")
                self._until = 0.0
                self.lost.set()
                return
            elif led and not self.leads:
                log.warning("the lease could not be renewed for %g s; nothing is written", self._renew)
            led = self.leads
            self._closed.wait(self._retry * (1.0 if self.won.is_set() else 0.8 + random.random() * 0.4))

    def _try(self) -> bool:
        """Whether the lease is this one's: renewed, taken or made; ApiError where that can't be known."""
        found = self._api.find(self._path)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = {"holderIdentity": self.identity, "leaseDurationSeconds": int(self._lease), "renewTime": now}
        try:
            if found is None:
                if self.won.is_set():
                    self._seen = ("", "", self._clock())
                    return False
                spec: dict[str, Any] = mine | {"acquireTime": now, "leaseTransitions": 0}
                meta = {"name": self._name, "namespace": self._namespace, **self._owned()}
                made = {"apiVersion": LEASE.api_version, "kind": "Lease", "metadata": meta, "spec": spec}
                self._api.create(LEASE.path(self._namespace), made)
                self._seen = (self.identity, now, self._clock())
                return True
            spec = found.get("spec") or {}
            holder, renewed = str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or "")
            if (holder, renewed) != self._seen[:2]:
                self._seen = (holder, renewed, self._clock())
            if self.won.is_set() and holder != self.identity:
                return False
            lasts = float(spec.get("leaseDurationSeconds") or self._lease)
            if holder not in ("", self.identity) and self._clock() < self._seen[2] + lasts:
                return False
            if holder != self.identity:
                spec = spec | {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
                # who was deleted and made again is another one
                found = found | {"metadata": found["metadata"] | self._owned()}
            # with its resourceVersion: whoever asks second is refused
            self._api.replace(self._path, found | {"spec": spec | mine})
            self._seen = (self.identity, now, self._clock())
            return True
        except (Stale, Absent):
            # another one was faster; the next look says who, and until then nothing is sure
            if self.won.is_set():
                raise
            return False

    def _owned(self) -> dict[str, Any]:
        owner = self._owner()
        if owner is None:
            return {}
        told = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
        return {"ownerReferences": [told | {key: owner["metadata"][key] for key in ("name", "uid")}]}
