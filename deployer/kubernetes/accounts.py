"""ServiceAccounts and what their Secrets are called: for the credentials of a model's store.

Accounts are watched.  Of a Secret only the names of its keys are kept, and the host that its headers are for; it is read when
an account names it, and again after a minute: watching all Secrets of a cluster would mean to hold them.
"""

import base64
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from deployer.kubernetes.api import Absent, Api, Refused
from deployer.kubernetes.cache import Store
from deployer.kubernetes.kinds import SECRET
from deployer.kubernetes.rendering.credentials import HTTPS_HOST, SecretSeen, ServiceAccountSeen

KEPT_SECONDS = 60.0


class Accounts:
    def __init__(self, api: Api, accounts: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._accounts, self._clock = api, accounts, clock
        self._lock = threading.Lock()
        self._secrets: dict[str, tuple[float, SecretSeen | None]] = {}

    def seen(self, namespace: str, name: str) -> ServiceAccountSeen:
        """The account; one that is not there has nothing, and its pods can't be made: their Deployment says so."""
        raw = self._accounts.get(f"{namespace}/{name}")
        if raw is None:
            return ServiceAccountSeen(name)
        listed = [str(one.get("name", "")) for one in raw.get("secrets") or ()]
        secrets = [found for one in listed if one and (found := self._secret(namespace, one))]
        return ServiceAccountSeen(name, raw["metadata"].get("annotations") or {}, tuple(secrets))

    def _secret(self, namespace: str, name: str) -> SecretSeen | None:
        key, now = f"{namespace}/{name}", self._clock()
        with self._lock:
            known = self._secrets.get(key)
        if known and now < known[0] + KEPT_SECONDS:
            return known[1]
        found = self._read(namespace, name)
        with self._lock:
            self._secrets = {one: kept for one, kept in self._secrets.items() if now < kept[0] + KEPT_SECONDS}
            self._secrets[key] = (now, found)
        return found

    def _read(self, namespace: str, name: str) -> SecretSeen | None:
        """None where there is no such Secret."""
        try:
            raw = self._api.get(SECRET.path(namespace, name))
        except Absent:
            return None
        except Refused:
            return SecretSeen(name)
        data = raw.get("data") or {}
        return SecretSeen(name, frozenset(data), raw["metadata"].get("annotations") or {}, _text(data.get(HTTPS_HOST, "")))


def _text(encoded: str) -> str:
    try:
        return base64.b64decode(encoded).decode().strip()
    except ValueError:
        return ""


def trim(raw: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a ServiceAccount."""
    meta: Mapping[str, Any] = raw["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "annotations")
    return {"metadata": {key: meta[key] for key in kept if key in meta}, "secrets": raw.get("secrets") or []}
