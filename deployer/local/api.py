"""The supervisor's HTTP API on a socket that only its user may open.  Paths and bodies are those of the Kubernetes API.

GET    /apis/serving.kserve.io/v1beta1[/namespaces/NS]/inferenceservices[/NAME]
PUT    …/namespaces/NS/inferenceservices/NAME       the object, as `serve apply` sends it
PUT    …/namespaces/NS/inferenceservices/NAME/content/C   the same; C: which content its models' URIs stand for
DELETE …/namespaces/NS/inferenceservices/NAME
GET    …/namespaces/NS/inferenceservices/NAME/revisions
GET    /runtimes/NS     the runtimes that users installed there and for all; PUT installs one, DELETE takes it away
GET    /platform       what runs;    POST /platform/down     ends it all
"""

import json
import logging
import os
import socketserver
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployer.errors import Conflict, DeployerError, NotFound, SpecError

if TYPE_CHECKING:
    from deployer.local.supervisor import Supervisor

log = logging.getLogger(__name__)
ROOT = "/apis/serving.kserve.io/v1beta1"
RUNTIMES = "/runtimes"
LARGEST = 4 << 20
STATUS = {NotFound: 404, SpecError: 422, Conflict: 409}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    supervisor: "Supervisor"


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def address_string(self) -> str:
        return "local"

    def _answer(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _do(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if length > LARGEST:
            self.close_connection = True
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
        if path == "/platform/down" and verb == "POST":
            self.server.supervisor.end_all = True
            self.server.supervisor.stop.set()
            return self.server.supervisor.described()
        if path.startswith(f"{RUNTIMES}/"):
            here = urllib.parse.unquote(path.removeprefix(f"{RUNTIMES}/"))
            if verb == "GET":
                return {"items": platform.installed(here)}
            return (platform.install if verb == "PUT" else platform.uninstall)(json.loads(body))
        parts = [urllib.parse.unquote(part) for part in path.removeprefix(ROOT).strip("/").split("/")]
        if not path.startswith(ROOT) or "inferenceservices" not in parts:
            raise NotFound(f"there is nothing at {path}")
        namespace = parts[1] if parts[0] == "namespaces" else None
        rest = parts[parts.index("inferenceservices") + 1 :]
        if not rest:
            return {"apiVersion": "v1", "kind": "List", "items": platform.listed(namespace)}
        key = f"{namespace}/{rest[0]}"
        if verb == "PUT":
            return platform.put(json.loads(body), content=rest[2] if rest[1:2] == ["content"] else "")
        if verb == "DELETE":
            return platform.remove(key)
        if rest[1:] == ["revisions"]:
            return {"items": platform.revisions(key)}
        if rest[1:] == ["processes"]:
            return {"running": platform.is_busy(key)}
        return platform.shown(key)


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
