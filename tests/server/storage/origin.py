"""An HTTP server on a real socket that misbehaves as it is told."""

import contextlib
import socket
import socketserver
import ssl
import struct
import threading

# Of a server that calls itself localhost; valid until 2126, and trusted by nobody.
CERTIFICATE = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgFKU1qf/WifUGIUJw
syGpwfxDYQ3xPDiR9P94pTS5N0qhRANCAASuLICRSaBtvJwc/bIvMvSMg3gqgRej
P2nsh7FFWqPrSjfR2v1NJuqscbxLlPBOyOtsjBbRi8Om64hMBAtZ6xa/
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmjCCAUGgAwIBAgIUPvI2Xz4xoiDBY9CmHGpgO5N557EwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNDEwNDM1M1oYDzIxMjYxMDMx
MTA0MzUzWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASuLICRSaBtvJwc/bIvMvSMg3gqgRejP2nsh7FFWqPrSjfR2v1NJuqs
cbxLlPBOyOtsjBbRi8Om64hMBAtZ6xa/o28wbTAdBgNVHQ4EFgQU3/Pfc+MCWS/f
88TfjeMAbkQHUxYwHwYDVR0jBBgwFoAU3/Pfc+MCWS/f88TfjeMAbkQHUxYwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDRwAwRAIgAUiTPZEKVVJ19gmCjKAd09GUHQ3NhmBWctBwQydn2PACIHvo
DfWhpoOGCg2dxrW6KqNOPSGxRnv68sljhCi5o87D
-----END CERTIFICATE-----
"""


class Origin:
    """`give(path, answer, …)`: each answer is used once, the last for ever.  An answer is bytes, or takes the connection."""

    def __init__(self) -> None:
        self.answers: dict[str, list] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.stopped = threading.Event()
        origin = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    origin._answer(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def speak_tls(self, certificate) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self.port}"

    def give(self, path: str, *answers) -> str:
        self.answers[path] = list(answers)
        return self.url + path

    def asked(self, path: str) -> int:
        return sum(p == path for p, _ in self.seen)

    def _answer(self, connection) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65536)
            if not data:
                return
            head += data
        request, *lines = head.decode().split("\r\n")
        path = request.split(" ")[1]
        self.seen.append((path, {n.lower(): v for n, _, v in (line.partition(": ") for line in lines if line)}))
        answers = self.answers.get(path.partition("?")[0], [status(404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer(connection, self)
        else:
            connection.sendall(answer)

    def close(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


def answer(body: bytes = b"", code: int = 200, length: object = None, **headers: str) -> bytes:
    headers = {"content-length": len(body) if length is None else length, **headers}
    lines = [f"HTTP/1.1 {code} X", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items() if v != "")]
    return "\r\n".join([*lines, "", ""]).encode() + body


def status(code: int, **headers: str) -> bytes:
    return answer(b"no", code, **headers)


def redirect(location: str, code: int = 302) -> bytes:
    return answer(b"", code, location=location)


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + end
    return answer(body, length="", transfer_encoding="chunked")


def reset(after: bytes):
    """Send these bytes, and reset the connection."""

    def answer(connection, origin) -> None:
        connection.sendall(after)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    return answer


def silent(after: bytes):
    """Send these bytes, and nothing more, without closing."""

    def answer(connection, origin) -> None:
        connection.sendall(after)
        origin.stopped.wait(30)

    return answer


def dripping(after: bytes, every: float):
    """Send these bytes, and then one now and then, for ever."""

    def answer(connection, origin) -> None:
        connection.sendall(after)
        while not origin.stopped.wait(every):
            connection.sendall(b"x")

    return answer


def tunnel(port: int):
    """Be a proxy that connects to a port here, whatever was asked for."""

    def answer(connection, origin) -> None:
        with socket.create_connection(("127.0.0.1", port)) as other:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(other, connection), daemon=True)
            back.start()
            _pump(connection, other)
            back.join(5)

    return answer


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
