"""A proxy in front of an API server: plain HTTP in, and in its way whatever a test wants to go wrong."""

import base64
import contextlib
import http.client
import json
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import yaml


@dataclass(frozen=True)
class Seen:
    """A request that came through; `code` is 0 where it was not answered."""

    at: float
    method: str
    path: str
    query: str
    code: int

    @property
    def is_watch(self) -> bool:
        return "watch=true" in self.query

    @property
    def is_write(self) -> bool:
        return self.method != "GET" and "/leases" not in self.path


class Proxy:
    """`fault` is asked before each request: None lets it pass, a number is the answer's code, "hang" lets it wait.

    `wrote` is called after each write, before its answer goes back.
    """

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._target = urlsplit(config["clusters"][0]["cluster"]["server"])
        self._tls = _context(config)
        self.fault: Callable[[str, str, str], int | str | None] = lambda method, path, query: None
        self.wrote: Callable[[Seen], None] = lambda seen: None
        self.stalled = threading.Event()
        """While set, nothing that a watch says gets through, and no connection is closed."""
        self.seen: list[Seen] = []
        self._watches: set[socket.socket] = set()
        self._lock = threading.Lock()
        proxy = self

        class Exchange(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                proxy._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

            def log_message(self, *args) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *args) -> None:
                pass  # the other side was killed: that is what it is for

        self._server = Server(("127.0.0.1", 0), Exchange)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.kubeconfig = Path(tempfile.mkdtemp(prefix="proxy-")) / "kubeconfig"
        cluster = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}
        users = [{"name": "nobody", "user": {}}]
        made = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context], "users": users}
        self.kubeconfig.write_text(json.dumps(made | {"current-context": "proxy"}))

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.cut()

    @property
    def watches(self) -> int:
        """How many there are now."""
        return len(self._watches)

    def cut(self) -> None:
        """Break every watch."""
        with self._lock:
            cut, self._watches = self._watches, set()
        for one in cut:
            _shut(one)

    @property
    def writes(self) -> list[Seen]:
        return [one for one in self.seen if one.is_write]

    def _answer(self, exchange: BaseHTTPRequestHandler) -> None:
        path, _, query = exchange.path.partition("?")
        body = exchange.rfile.read(int(exchange.headers.get("Content-Length") or 0))
        fault = self.fault(exchange.command, path, query)
        if fault == "hang":
            time.sleep(40)
            exchange.close_connection = True
            return
        if isinstance(fault, int):
            self._note(exchange.command, path, query, fault)
            self._send(
                exchange, fault, json.dumps({"kind": "Status", "code": fault, "message": f"the test's own {fault}"}).encode()
            )
            return
        upstream = http.client.HTTPSConnection(self._target.hostname, self._target.port, context=self._tls, timeout=100)
        try:
            headers = {k: v for k, v in exchange.headers.items() if k.lower() in ("content-type", "accept", "user-agent")}
            upstream.request(exchange.command, exchange.path, body or None, headers)
            response = upstream.getresponse()
            seen = self._note(exchange.command, path, query, response.status)
            if seen.is_watch and response.status == 200:
                self._stream(exchange, upstream, response)
                return
            data = response.read()
        except (OSError, http.client.HTTPException):
            self._note(exchange.command, path, query, 0)
            exchange.close_connection = True
            return
        finally:
            upstream.close()
        if seen.is_write and seen.code < 300:
            self.wrote(seen)
        self._send(exchange, response.status, data)

    def _stream(self, exchange, upstream, response) -> None:
        exchange.send_response(200)
        exchange.send_header("Content-Type", "application/json")
        exchange.send_header("Transfer-Encoding", "chunked")
        exchange.end_headers()
        with self._lock:
            self._watches.add(exchange.connection)
        try:
            while line := response.readline():
                while self.stalled.is_set():
                    time.sleep(0.05)
                exchange.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                exchange.wfile.flush()
            exchange.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException, ValueError):
            exchange.close_connection = True
        finally:
            with self._lock:
                self._watches.discard(exchange.connection)

    def _note(self, method: str, path: str, query: str, code: int) -> Seen:
        seen = Seen(time.monotonic(), method, path, query, code)
        self.seen.append(seen)
        return seen

    def _send(self, exchange, code: int, data: bytes) -> None:
        exchange.send_response(code)
        exchange.send_header("Content-Type", "application/json")
        exchange.send_header("Content-Length", str(len(data)))
        if code == 429:
            exchange.send_header("Retry-After", "1")
        exchange.end_headers()
        exchange.wfile.write(data)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already
        connection.shutdown(socket.SHUT_RDWR)


def _context(config: dict) -> ssl.SSLContext:
    authority = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    user = config["users"][0]["user"]
    with tempfile.NamedTemporaryFile() as pem:
        for name in ("client-certificate-data", "client-key-data"):
            pem.write(base64.b64decode(user[name]))
        pem.flush()
        context.load_cert_chain(pem.name)
    return context
