"""The supervisor's HTTP API on a socket that only its user may open.  Paths and bodies are those of the Kubernetes API.

GET    /apis/serving.kserve.io/v1beta1[/namespaces/NS]/inferenceservices[/NAME]
PUT    …/namespaces/NS/inferenceservices/NAME       the object, as `serve apply` sends it
PUT    …/namespaces/NS/inferenceservices/NAME/content/C   the same; C: which content its models' URIs stand for
DELETE …/namespaces/NS/inferenceservices/NAME
GET    …/namespaces/NS/inferenceservices/NAME/revisions
GET    /runtimes/NS     the runtimes that users installed there and for all; PUT installs one, DELETE takes it away
GET    /platform       what runs;    POST /platform/down     ends it all; /platform/stop the supervisor alone
POST   /platform/envoy  puts another Envoy in the place of the one that runs
"""

import json
import logging
import os
import re
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployer.errors import Conflict, DeployerError, Mistake, NotFound, SpecError, show
from deployer.spec.documents import MAX_DEPTH

if TYPE_CHECKING:
    from deployer.local.supervisor import Supervisor

log = logging.getLogger(__name__)
ROOT = "/apis/serving.kserve.io/v1beta1"
RUNTIMES = "/runtimes"
LARGEST, MOST_DISCARDED = 4 << 20, 64 << 20
STATUS = {NotFound: 404, SpecError: 422, Conflict: 409}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    supervisor: "Supervisor"


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # seconds; a client that says nothing does not keep a thread for ever
    timeout = 60.0
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def address_string(self) -> str:
        return "local"

    def _discard(self, length: int) -> None:
        """Read a body that is not wanted: who is still sending it would not see an answer."""
        left = min(length, MOST_DISCARDED)
        while left > 0 and (part := self.rfile.read(min(left, 1 << 16))):
            left -= len(part)

    def _answer(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _do(self) -> None:
        asked = self.headers.get("content-length") or "0"
        if not (asked.isascii() and asked.isdigit()) or "transfer-encoding" in self.headers:
            self.close_connection = True
            return self._answer(400, {"message": "the body's length is to be told by content-length, in bytes"})
        length = int(asked)
        if length > LARGEST:
            self.close_connection = True
            self._discard(length)
            return self._answer(413, {"message": f"an object of {length} bytes; at most {LARGEST} are taken"})
        body = self.rfile.read(length)
        try:
            self._answer(200, self._route(self.command, self.path.rstrip("/"), body))
        except DeployerError as error:
            code = next((c for kind, c in STATUS.items() if isinstance(error, kind)), 500)
            mistakes = [vars(m) for m in error.mistakes] if isinstance(error, SpecError) else []
            self._answer(code, {"message": str(error), "reason": type(error).__name__, "mistakes": mistakes})
        except ValueError as error:
            self._answer(400, {"message": f"the body is no JSON: {error}", "reason": "BadRequest", "mistakes": []})
        except Exception as error:
            log.exception("%s %s", self.command, self.path)
            self._answer(500, {"message": f"{type(error).__name__}: {error}", "reason": "InternalError", "mistakes": []})

    do_GET = do_PUT = do_DELETE = do_POST = _do

    def _route(self, verb: str, path: str, body: bytes) -> Any:
        platform = self.server.supervisor.platform
        if path == "/platform" and verb == "GET":
            return self.server.supervisor.described()
        if path == "/platform/envoy" and verb == "POST":
            self.server.supervisor.envoy.replace()
            return self.server.supervisor.described()
        if path == "/platform/stop" and verb == "POST":
            self.server.supervisor.stop.set()
            return self.server.supervisor.described()
        if path == "/platform/down" and verb == "POST":
            self.server.supervisor.end_all = True
            self.server.supervisor.stop.set()
            return self.server.supervisor.described()
        if found := _RUNTIMES.fullmatch(path):
            if verb == "PUT":
                return platform.install(_object(body))
            if verb == "DELETE":
                return platform.uninstall(_object(body))
            if verb == "GET":
                return {"items": platform.installed(found["namespace"])}
        if found := _SERVICES.fullmatch(path):
            namespace, name = found["namespace"], found["name"]
            match verb, *(found["rest"] or "").split("/"):
                case "GET", "" if not name:
                    return {"apiVersion": "v1", "kind": "List", "items": platform.listed(namespace)}
                case "GET", "":
                    return platform.shown(f"{namespace}/{name}")
                case "GET", "revisions":
                    return {"items": platform.revisions(f"{namespace}/{name}")}
                case "GET", "processes":
                    return {"running": platform.is_busy(f"{namespace}/{name}")}
                case "PUT", "" if name:
                    return platform.put(_named(_object(body), namespace, name))
                case "PUT", "content", content:
                    return platform.put(_named(_object(body), namespace, name), content)
                case "DELETE", "" if name:
                    return platform.remove(f"{namespace}/{name}")
        raise NotFound(f"there is nothing to {verb} at {path}")


_NAME = "[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"
_RUNTIMES = re.compile(f"{RUNTIMES}/(?P<namespace>{_NAME})")
_SERVICES = re.compile(
    f"{re.escape(ROOT)}(?:/namespaces/(?P<namespace>{_NAME}))?/inferenceservices"
    f"(?(namespace)(?:/(?P<name>{_NAME})(?:/(?P<rest>revisions|processes|content/[^/]+))?)?)"
)


def _object(body: bytes) -> dict[str, Any]:
    """A body's JSON; SpecError where it is none, or none that an object could have."""
    try:
        found = json.loads(body, parse_constant=_no_constant)
        if _depth(found) > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
    except RecursionError:
        raise SpecError([Mistake("", "this is not JSON: it is nested too deeply")]) from None
    except ValueError as error:
        raise SpecError([Mistake("", f"this is not JSON: {error}")]) from error
    if not isinstance(found, dict):
        raise SpecError([Mistake("", f"found {show(found)}, wanted an object with apiVersion, kind, metadata, spec")])
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number there")


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        waiting += [(each, depth + 1) for each in inner]
    return deepest


def _named(raw: dict[str, Any], namespace: str, name: str) -> dict[str, Any]:
    """The object, where it is the one of this path."""
    meta = raw.get("metadata")
    # what is no object, or has no name, the spec's own check tells
    if isinstance(meta, dict) and isinstance(meta.get("name"), str):
        found = meta.get("namespace", "default"), meta["name"]
        if found != (namespace, name):
            raise SpecError(
                [
                    Mistake(
                        "metadata.name", f"found {show(found[1])} in {show(found[0])}, the path is of {name!r} in {namespace!r}"
                    )
                ]
            )
    return raw


def serve(socket: Path, supervisor: "Supervisor") -> _Server:
    """Listen on `socket` in a thread; `shutdown` of what is returned ends it."""
    socket.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        server = _Server(str(socket), _Request)
    finally:
        os.umask(before)
    server.supervisor = supervisor
    threading.Thread(target=server.serve_forever, args=(0.1,), name="api", daemon=True).start()
    return server
