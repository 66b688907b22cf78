"""A proxy of our own, on loopback and for this process alone: a library that follows a server's redirects to wherever they
lead, or connects to whatever a name resolves to, comes by here, and gets no further than the hosts that it was meant to ask.

What is secured stays so between the library and the store: only the host is seen here.
"""

import base64
import contextlib
import re
import secrets
import socket
import socketserver
import threading
from dataclasses import dataclass

from server.errors import FetchFailed
from server.storage.addresses import PORTS, Target, parse
from server.storage.download import Patience, Within, reached, unreachable

_LONGEST_HEAD = 1 << 16
_CHUNK = 1 << 18
TURNED_AWAY = "407 Proxy Authentication Required"


@dataclass(frozen=True)
class Allowed:
    """`places` are hosts with their ports, `domains` those whose hosts may be asked over https.  Of `credentials` a place may
    even be where clouds hand them out."""

    places: frozenset[tuple[str, int]]
    domains: tuple[str, ...] = ()
    credentials: frozenset[tuple[str, int]] = frozenset()

    def __contains__(self, target: Target) -> bool:
        place = (target.host, target.port)
        in_domain = target.scheme == "https" and target.port == PORTS["https"] and target.host.endswith(self.domains)
        return place in self.places or place in self.credentials or (bool(self.domains) and in_domain)


class Guard:
    """`url` is the proxy to name to the library.  `refused` is what it was kept from, None while there was nothing;
    `unreached` why the last host was not reached, empty where it was; `turned_away` what the last answer of that name was for,
    which somebody else may have got."""

    def __init__(self, allowed: Allowed, patience: Patience) -> None:
        token = secrets.token_urlsafe(24)
        self.refused: FetchFailed | None = None
        self.turned_away: FetchFailed | None = None
        self.unreached = ""
        self._allowed, self._patience = allowed, patience
        self._expected = f"Basic {base64.b64encode(f'guard:{token}'.encode()).decode()}"
        guard = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                # whoever has gone, or is not reached, is the library's to tell of
                with contextlib.suppress(OSError):
                    guard._lead(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self._server.daemon_threads = True
        self.url = f"http://guard:{token}@127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="guard", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _lead(self, client: socket.socket) -> None:
        client.settimeout(self._patience.stall)
        head, rest = _head(client)
        request, *lines = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"([A-Z]+) (\S+) HTTP/1\.[01]", request)
        fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        if found is None:
            return _answer(client, "400 Bad Request")
        method, where = found.groups()
        try:
            target = parse(f"https://{where}/" if method == "CONNECT" else where)
            if ("proxy-authorization", self._expected) not in fields:
                # where a server sends it elsewhere, a library leaves credentials out
                self.turned_away = _elsewhere(target)
                return _answer(client, TURNED_AWAY)
            store, prefix, added = self._reached(target)
        except FetchFailed as error:
            self.refused = self.refused or error
            return _answer(client, "403 Forbidden")
        except OSError as error:
            what = unreachable(target, error, self._patience.connect)
            self.refused = self.refused or (what if isinstance(what, FetchFailed) else None)
            self.unreached = f"{target.netloc} {what}"
            return _answer(client, "502 Bad Gateway")
        self.unreached = ""
        with store:
            if method == "CONNECT":
                _answer(client, "200 Connection established")
                store.sendall(rest)
            else:
                # one request a connection: the next may be for somebody else
                kept = [line for line, (name, _) in zip(lines, fields, strict=True) if name not in _HOP_BY_HOP]
                kept += ["Connection: close", *(f"{name}: {value}" for name, value in added.items())]
                first = f"{method} {prefix}{target.path} HTTP/1.1"
                store.sendall("\r\n".join([first, *kept, "", ""]).encode("latin-1") + rest)
            _both_ways(client, store)
        return None

    def _reached(self, target: Target) -> tuple[socket.socket, str, dict[str, str]]:
        if target not in self._allowed:
            raise _elsewhere(target)
        if (target.host, target.port) in self._allowed.credentials:
            return socket.create_connection((target.host, target.port), self._patience.connect), "", {}
        stream, _, prefix, added = reached(target, Within(), self._patience)
        return stream, prefix, added


def _elsewhere(target: Target) -> FetchFailed:
    what = f"the store sends us to {target.netloc}, which is not the one that was named"
    return FetchFailed("DownloadFailed", what, "name that address yourself if it is the right one")


_HOP_BY_HOP = ("connection", "proxy-connection", "proxy-authorization", "keep-alive")


def _head(client: socket.socket) -> tuple[bytes, bytes]:
    """A request's head, and what came behind it; ConnectionError where there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(_LONGEST_HEAD)
        if not more or len(data) > _LONGEST_HEAD:
            raise ConnectionError
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _answer(client: socket.socket, status: str) -> None:
    length = "" if status.startswith("2") else "Content-Length: 0\r\nConnection: close\r\n"
    client.sendall(f"HTTP/1.1 {status}\r\n{length}\r\n".encode())


def _both_ways(one: socket.socket, other: socket.socket) -> None:
    """Until either has ended; what is slow is the library's to judge."""
    for end in (one, other):
        end.settimeout(None)
    back = threading.Thread(target=_copy, args=(one, other), daemon=True)
    back.start()
    _copy(other, one)
    back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with contextlib.suppress(OSError):
        while size := source.recv_into(buffer):
            target.sendall(view[:size])
    # both, so that the other direction ends too
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
