"""The cluster's API over HTTP: JSON in, JSON out, and errors by what can be done about them.

Finding the cluster and proving who asks is the official client's work (kubeconfig with contexts, exec plugins and tokens
that end; a pod's own account); its models and its discovery are left aside, because they cost most of the time and memory.

OSError
└── ApiError       it may pass: no answer, too many requests, a broken server
    ├── Stale      409: somebody was faster, or it is there already
    ├── Expired    410: the version that was asked for is gone
    ├── NotLeading nothing was sent, because another one leads
    └── Refused    it will be refused again, until somebody changes something
        └── Absent 404
"""

import http.client
import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import OpenApiException

from deployer.errors import DeployerError
from deployer.kubernetes.kinds import MANAGER

log = logging.getLogger(__name__)
CONNECT_SECONDS, READ_SECONDS = 5.0, 35.0
LONGEST_PAUSE = 10.0
PASSING = (429, 500, 502, 503, 504)
TRIES, AGAIN_SECONDS = 3, 0.2
"""How often something is sent to a server that answers like this, and about how long to wait before the second time."""
PAGE = 500
_IN_A_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class ApiError(OSError):
    """`str(error)` is the API server's own text; `status` is 0 where no answer came."""

    def __init__(self, text: str, status: int = 0, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.body: Mapping[str, Any] = body or {}


class Stale(ApiError):
    pass


class Expired(ApiError):
    pass


class NotLeading(ApiError):
    pass


class Refused(ApiError):
    pass


class Absent(Refused):
    pass


def connect(kubeconfig: str | None = None, context: str | None = None, read_seconds: float = READ_SECONDS) -> "Api":
    """By a kubeconfig (the file named, $KUBECONFIG, ~/.kube/config), or by the account of the pod that this runs in.

    DeployerError where neither leads to a cluster.
    """
    found = Configuration()
    try:
        if kubeconfig or context or not _IN_A_POD.exists():
            config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=found)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        where = kubeconfig or "$KUBECONFIG or ~/.kube/config"
        raise DeployerError(
            f"no cluster to talk to: {' '.join(str(error).split())} (looked at {where}); "
            "name a kubeconfig in $KUBECONFIG, and one of its contexts with --context"
        ) from None
    return Api(found, read_seconds)


def namespace_of(context: str | None = None) -> str:
    """The one that a kubeconfig's context names, "default" where it names none."""
    try:
        contexts, current = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError):
        return "default"
    chosen = next((one for one in contexts if one["name"] == context), current)
    return str(chosen["context"].get("namespace") or "default")


class Api:
    """Safe for threads.  `may_write` is asked before every request that changes something."""

    def __init__(self, configuration: Configuration, read_seconds: float = READ_SECONDS) -> None:
        configuration.retries = False
        configuration.connection_pool_maxsize = 32
        self._configuration = configuration
        self._client = ApiClient(configuration)
        self._read_seconds = read_seconds
        self.may_write: Callable[[], bool] = lambda: True
        self.requests: Counter[tuple[str, int]] = Counter()
        """Answers by verb and status, 0 where none came."""
        self._lock = threading.Lock()
        self._not_before = 0.0

    @property
    def host(self) -> str:
        return str(self._configuration.host)

    # reading

    def get(self, path: str, **query: str) -> dict[str, Any]:
        return self._ask("GET", path, query=query)

    def find(self, path: str) -> dict[str, Any] | None:
        try:
            return self.get(path)
        except Absent:
            return None

    def listed(self, path: str, **query: str) -> tuple[list[dict[str, Any]], str]:
        """All objects, page by page, and the version at which they were so."""
        items: list[dict[str, Any]] = []
        going_on = ""
        while True:
            asked = {**query, "limit": str(PAGE), **({"continue": going_on} if going_on else {})}
            page = self._ask("GET", path, query=asked)
            items += page.get("items") or ()
            going_on = page["metadata"].get("continue", "")
            if not going_on:
                return items, page["metadata"]["resourceVersion"]

    def watch(self, path: str, version: str, server_seconds: int, silence: float, **query: str) -> Iterator[dict[str, Any]]:
        """What happens to the objects from `version` on, after an event OPENED of its own; ends after `server_seconds`.

        Expired where the version is too old; ApiError where the connection breaks or nothing comes for `silence` seconds.
        """
        asked = {
            **query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(server_seconds),
        }
        response = self._send("GET", path, asked, None, "application/json", (CONNECT_SECONDS, silence), "WATCH")
        try:
            yield {"type": "OPENED", "object": {}}
            for line in _lines(response.response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(int(event["object"].get("code", 500)), event["object"])
                yield event
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError) as error:
            raise ApiError(f"the connection broke: {_said(error)}") from None
        finally:
            response.response.close()

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """Of a text, as they come; a log that is followed may say nothing for as long as it likes."""
        response = self._send("GET", path, query, None, "application/json", (CONNECT_SECONDS, None), "LOG")
        try:
            yield from (line.decode(errors="replace") for line in _lines(response.response))
        except (urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            raise ApiError(f"the connection broke: {_said(error)}") from None
        finally:
            response.response.close()

    def ask_service(self, path: str, body: Any, headers: Mapping[str, str]) -> Any:
        """What stands behind a Service answers, through the API server's proxy; a GET where `body` is None."""
        method = "GET" if body is None else "POST"
        timeout = (CONNECT_SECONDS, self._read_seconds)
        return json.loads(self._send(method, path, {}, body, "application/json", timeout, "PROXY", headers).response.data)

    # writing

    def apply(self, path: str, raw: Mapping[str, Any], manager: str = MANAGER) -> dict[str, Any]:
        """Server-side apply; what others own of the fields that are sent is taken from them."""
        query = {"fieldManager": manager, "force": "true"}
        return self._ask("PATCH", path, json.dumps(raw), "application/apply-patch+yaml", query, verb="APPLY")

    def create(self, path: str, raw: Mapping[str, Any], manager: str = MANAGER) -> dict[str, Any]:
        return self._ask("POST", path, dict(raw), query={"fieldManager": manager})

    def replace(self, path: str, raw: Mapping[str, Any], manager: str = MANAGER) -> dict[str, Any]:
        """Stale where `raw` has another resourceVersion than the object."""
        return self._ask("PUT", path, dict(raw), query={"fieldManager": manager})

    def patch(self, path: str, operations: Sequence[Mapping[str, Any]], manager: str = MANAGER) -> dict[str, Any]:
        """A JSON patch; Refused where one of its tests fails."""
        return self._ask("PATCH", path, list(operations), "application/json-patch+json", {"fieldManager": manager})

    def delete(self, path: str, uid: str = "") -> dict[str, Any]:
        """What it owns goes after it.  With `uid` only that very object: Stale where another has its name."""
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        return self._ask("DELETE", path, body | ({"preconditions": {"uid": uid}} if uid else {}))

    # how

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: str = "application/json",
        query: Mapping[str, str] | None = None,
        verb: str = "",
    ) -> dict[str, Any]:
        timeout = (CONNECT_SECONDS, self._read_seconds)
        response = self._patiently(method, path, query or {}, body, content, timeout, verb or method)
        try:
            answer: dict[str, Any] = json.loads(response.response.data)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError) as error:
            raise ApiError(f"{method} {path}: {_said(error)}") from None
        return answer

    def _patiently(self, method: str, path: str, *rest: Any) -> Any:
        """Again, after a moment, where the server had no time for it or stumbled: all that is sent may be sent twice.

        A server that has too much to do says when to come again.  Reading does not wait for that: it is what mends caches.
        """
        tries = 0
        while True:
            if method != "GET":
                self._wait_for_turn(f"{method} {path}")
            try:
                return self._send(method, path, *rest)
            except ApiError as error:
                tries += 1
                if error.status not in PASSING or tries == TRIES:
                    raise
            time.sleep(AGAIN_SECONDS * tries * (0.5 + random.random()))

    def _wait_for_turn(self, what: str) -> None:
        """NotLeading where it must not be written any more."""
        while self.may_write():
            if (pause := self._not_before - time.monotonic()) <= 0:
                return
            time.sleep(min(pause, LONGEST_PAUSE))
        raise NotLeading(f"{what} was not sent: another controller leads")

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        content: str,
        timeout: tuple[float, float | None],
        verb: str,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> Any:
        headers = {"Accept": "application/json", "User-Agent": "serveplane", **more}
        if body is not None:
            headers["Content-Type"] = content
        url = self.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, None)
            rest: Any = self._client.rest_client
            response = rest.request(method, url, headers=headers, body=body, _request_timeout=timeout)
            status = int(response.status)
            if status >= 400:
                raise self._refusal(status, response)
        except ApiError as error:
            self._count(verb, error.status)
            raise
        except (
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            OpenApiException,
            config.ConfigException,
        ) as error:
            self._count(verb, 0)
            raise ApiError(f"{method} {self.host}{path}: {_said(error)}") from None
        self._count(verb, status)
        return response

    def _refusal(self, status: int, response: Any) -> ApiError:
        after = response.getheader("Retry-After", "")
        if status == 429 and after.isdecimal():
            self._not_before = time.monotonic() + min(float(after), LONGEST_PAUSE)
        text = response.response.data
        try:
            body = json.loads(text)
        except ValueError:
            body = {"message": text[:300].decode(errors="replace").strip()}
        return _error(status, body if isinstance(body, dict) else {})

    def _count(self, verb: str, status: int) -> None:
        with self._lock:
            self.requests[verb, status] += 1


_UNTYPED = "failed to create typed patch object"


def _error(status: int, body: Mapping[str, Any]) -> ApiError:
    text = str(body.get("message") or body.get("reason") or f"the API server answered {status}")
    match status:
        case 404:
            return Absent(text, status, body)
        case 409:
            return Stale(text, status, body)
        case 410:
            return Expired(text, status, body)
        case 401 | 408 | 429:
            return ApiError(text, status, body)
    if _UNTYPED in text:
        # said with 500, and yet it is the object that is wrong: a field of another type than its kind has
        return Refused(text, 422, body)
    # a quota and a policy refuse with 403, a webhook as it likes, and a webhook that is down with 500
    return Refused(text, status, body) if 400 <= status < 500 else ApiError(text, status, body)


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for part in response.stream(None, decode_content=False) if not response.chunked else response.read_chunked():
        *whole, rest = (rest + part).split(b"\n")
        yield from (line for line in whole if line.strip())


def _said(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    text = " ".join(str(reason if isinstance(reason, Exception) else error).split())
    return text.rpartition(": ")[2] if text.startswith("<") else text or type(error).__name__
