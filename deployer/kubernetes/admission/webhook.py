"""The webhook: an HTTPS server of few lines in front of `reviews`, and its certificate kept fresh.

    POST /default   an AdmissionReview for a MutatingWebhookConfiguration
    POST /validate  one for a ValidatingWebhookConfiguration

What can't be answered is an HTTP error, and the configuration's failurePolicy says what follows from it.
"""

import base64
import json
import logging
import os
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from deployer.errors import Conflict
from deployer.kubernetes.admission import reviews
from deployer.kubernetes.admission.certificate import Certificate, read, renewed
from deployer.runtimes import ServingRuntime

log = logging.getLogger(__name__)

MAX_BODY = 8 << 20  # an object of an API server has 3 MB at most, and two of them come along
MAX_CONNECTIONS = 128
HANDSHAKE = 10.0  # seconds
IDLE = 120.0  # seconds; longer than an API server keeps an idle connection, so that it is the one that closes it
LOOK = 3600.0  # seconds between two looks at the certificate
LEAVING = 5.0  # seconds until every API server and node has heard that a pod that ends is no address of its Service any more

Installed = Callable[[str], Sequence[ServingRuntime]]


class Webhook:
    """The server.  `use` a certificate, then `start`; `use` another at any time."""

    def __init__(
        self,
        installed: Installed,
        port: int = 9443,
        address: str = "",
        notices: reviews.Notices = reviews.of_any_cluster,
    ) -> None:
        """`installed` gives the runtimes of a namespace and of all, `notices` what to warn of.  Port 0 is any that is free."""
        self._server = _Server((address, port), installed, notices)
        self._thread = threading.Thread(target=self._server.serve_forever, name="webhook", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def use(self, certificate: Certificate) -> None:
        """Every connection from now on gets this certificate."""
        self._server.tls = _context(certificate)

    def start(self) -> None:
        self._thread.start()

    def leave(self, seconds: float = LEAVING) -> None:
        """Answer for so long still what comes here all the same, each connection for the last time; then `stop`."""
        self._server.leaving = True
        time.sleep(seconds)
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # it reads files only; one in memory puts no key on a disk, and needs none that can be written
    with os.fdopen(os.memfd_create("webhook"), "wb") as file:
        file.write(certificate.certificate + certificate.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], installed: Installed, notices: reviews.Notices) -> None:
        self.installed, self.notices = installed, notices
        self.leaving = False
        self.tls: ssl.SSLContext | None = None
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Exchange)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.tls is None or not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, where a handshake that takes its time stops nobody else."""
        assert self.tls is not None
        request.settimeout(HANDSHAKE)
        try:
            with self.tls.wrap_socket(request, server_side=True) as connection:
                super().finish_request(connection, client_address)
        except (ssl.SSLError, ConnectionError, TimeoutError) as error:
            log.debug("%s: %s", client_address, error)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.error("%s: %s", client_address, traceback.format_exc())


class _Exchange(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._refuse(411, "wanted a Content-Length")
        elif int(length) > MAX_BODY:
            self._refuse(413, f"wanted at most {MAX_BODY} bytes")
        else:
            self._decide(self.rfile.read(int(length)))

    def _decide(self, body: bytes) -> None:
        try:
            raw = json.loads(body)
            if self.path.partition("?")[0] == "/default":
                answer = reviews.default(raw)
            elif self.path.partition("?")[0] == "/validate":
                answer = reviews.review(raw, self.server.installed(reviews.namespace(raw)), self.server.notices)
            else:
                return self._send(404, "text/plain", b"there are /default and /validate\n")
        except reviews.NoReview as error:
            return self._send(400, "text/plain", f"{error}\n".encode())
        except (ValueError, RecursionError) as error:
            return self._send(400, "text/plain", f"wanted JSON: {error}\n".encode())
        except Exception:
            log.error("a bug, or the API server does not answer:\n%s", traceback.format_exc())
            return self._send(500, "text/plain", b"this could not be decided; the controller's log says why\n")
        return self._send(200, "application/json", json.dumps(answer).encode())

    def _refuse(self, code: int, text: str) -> None:
        """The body stays unread, and with it ends the connection."""
        self.close_connection = True
        self._send(code, "text/plain", f"{text}\n".encode())

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.close_connection |= self.server.leaving
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


class Store(Protocol):
    """Where the certificate of all replicas is kept: a Secret, and the two webhook configurations."""

    def load(self) -> Mapping[str, bytes]:
        """The Secret's entries; empty where there is none."""

    def save(self, entries: Mapping[str, bytes]) -> None:
        """Conflict where somebody else has written since `load`."""

    def trust(self, authorities: bytes) -> None:
        """Have the webhook configurations name this CA bundle, where they name another."""


def refresh(store: Store, hosts: Sequence[str], now: float) -> Certificate:
    """The certificate that every replica uses from now on; it is kept, and trusted, before it is used."""
    while True:
        found = read(store.load())
        certificate = renewed(found, hosts, now)
        if certificate is not found:
            try:
                store.save(certificate.entries())
            except Conflict:
                continue  # another replica was first: its certificate is as good
        store.trust(certificate.authorities)
        return certificate


class Rotation:
    """Keeps a webhook's certificate fresh.  `start` and `stop` are its life."""

    def __init__(self, webhook: Webhook, store: Store, hosts: Sequence[str]) -> None:
        self._webhook, self._store, self._hosts = webhook, store, hosts
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook-certificate", daemon=True)

    def start(self) -> None:
        """With a certificate in use when it returns; what `Store` raises goes to the caller this once."""
        self._webhook.use(refresh(self._store, self._hosts, time.time()))
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK):
            try:
                self._webhook.use(refresh(self._store, self._hosts, time.time()))
            except Exception:
                # there are weeks left to get it right
                log.warning("the webhook's certificate could not be looked at:\n%s", traceback.format_exc())


def with_bundle(configuration: Mapping[str, Any], authorities: bytes) -> dict[str, Any] | None:
    """A Validating- or MutatingWebhookConfiguration that trusts these authorities; None where it does so already."""
    bundle = base64.b64encode(authorities).decode()
    hooks = [{**one, "clientConfig": {**one["clientConfig"], "caBundle": bundle}} for one in configuration.get("webhooks", ())]
    return None if hooks == configuration.get("webhooks", []) else {**configuration, "webhooks": hooks}


def service_hosts(name: str, namespace: str) -> tuple[str, ...]:
    """What an API server calls the webhook's Service."""
    return (f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local")
