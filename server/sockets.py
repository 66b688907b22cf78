"""Listening sockets, for every edge alike."""

import socket

from server.errors import ModelLoadError

_BACKLOG = 2048


def listen(what: str, host: str, port: int, shared: bool) -> socket.socket:
    """A socket that listens, for "HTTP" or "gRPC"; ModelLoadError says which port can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        text = f"{what} can't listen on {host}:{port}: {error.strerror}"
        raise ModelLoadError(text, f"choose another port with --{what.lower()}_port, or 0") from error
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener
