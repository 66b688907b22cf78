"""Where the webhook's certificate is kept: a Secret for all replicas, and the configurations that have to trust it."""

import base64
import logging
from collections.abc import Mapping
from typing import Any

from deployer.errors import Conflict
from deployer.kubernetes.admission.webhook import with_bundle
from deployer.kubernetes.api import Absent, Api, Stale
from deployer.kubernetes.kinds import SECRET, Kind

log = logging.getLogger(__name__)
_HOOKS = "admissionregistration.k8s.io/v1"
CONFIGURATIONS = (
    Kind(_HOOKS, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", namespaced=False),
    Kind(_HOOKS, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", namespaced=False),
)
TRIES = 5


class WebhookKeeping:
    """The verbs of `webhook.Store`.  `api` is one that may write whoever leads: each replica serves the webhook."""

    def __init__(self, api: Api, namespace: str, secret: str, configuration: str) -> None:
        self._api, self._namespace, self._secret, self._configuration = api, namespace, secret, configuration
        self._loaded: dict[str, Any] | None = None

    def load(self) -> Mapping[str, bytes]:
        self._loaded = self._api.find(SECRET.path(self._namespace, self._secret))
        return {name: base64.b64decode(value) for name, value in ((self._loaded or {}).get("data") or {}).items()}

    def save(self, entries: Mapping[str, bytes]) -> None:
        data = {name: base64.b64encode(value).decode() for name, value in entries.items()}
        meta = {"name": self._secret, "namespace": self._namespace}
        try:
            if self._loaded is None:
                made = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "data": data}
                self._api.create(SECRET.path(self._namespace), made)
            else:
                self._api.replace(SECRET.path(self._namespace, self._secret), self._loaded | {"data": data})
        except (Stale, Absent) as error:
            raise Conflict(str(error)) from None

    def trust(self, authorities: bytes) -> None:
        for kind in CONFIGURATIONS:
            self._trust(kind, authorities)

    def _trust(self, kind: Kind, authorities: bytes) -> None:
        path = kind.path(None, self._configuration)
        for attempt in range(TRIES):
            found = self._api.find(path)
            if found is None:
                log.warning("there is no %s %r; nothing asks the webhook", kind.name, self._configuration)
                return
            changed = with_bundle(found, authorities)
            if changed is None:
                return
            try:
                self._api.replace(path, changed)
                return
            except Stale:
                if attempt == TRIES - 1:
                    raise
