"""What a model's URL names, and how near to this machine that is: pure, but for reading the text of an address."""

import base64
import ipaddress
import re
import socket
from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import quote, unquote, urlsplit

from server.errors import FetchFailed


class Zone(IntEnum):
    """How near to this machine an address is.  A redirect never leads to a nearer one."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    LINK_LOCAL = 3
    # where clouds hand out credentials: never a model's address
    METADATA = 4


_METADATA = {
    ipaddress.ip_address(a) for a in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "fd00:ec2::254")
}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def zone(address: str) -> Zone:
    """The zone of a literal address; ValueError where it is none."""
    ip = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    if ip in _METADATA:
        return Zone.METADATA
    if ip.is_link_local:
        return Zone.LINK_LOCAL
    if ip.is_loopback or ip.is_unspecified:
        return Zone.LOOPBACK
    return Zone.PUBLIC if ip.is_global and not ip.is_multicast else Zone.PRIVATE


def _unwrapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address inside the forms of IPv6 that carry one."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64 or (int(ip) >> 32 == 0 and int(ip) > 1):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def zone_of_name(host: str) -> Zone:
    """For a host that a proxy will look up: by its text alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return Zone.LOOPBACK
    if host in ("metadata", "metadata.google.internal"):
        return Zone.METADATA
    for read in (str, lambda text: socket.inet_ntoa(socket.inet_aton(text))):
        try:
            return zone(read(host))
        except (ValueError, OSError):
            continue
    return Zone.PUBLIC


def shown(uri: str) -> str:
    """A URI for messages and logs: without user info, and without a query, which may be a signature."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if "@" in rest:
        # a password may hold what would end the authority, so all before the last @ is taken for one
        before, _, rest = rest.rpartition("@")
        rest = rest if not re.search("[/?#]", before) else f"…@{rest}"
    rest, query, _ = rest.partition("#")[0].partition("?")
    text = f"{scheme}://{rest}{'?…' if query else ''}"
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Target:
    """A parsed http(s) URL.  `path` has the query; `authorization` is the header for its user info, empty without."""

    scheme: str
    host: str
    port: int
    path: str
    authorization: str
    url: str

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return shown(self.url)


def parse(url: str) -> Target:
    """FetchFailed where it is no http(s) URL that can be asked for."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode() if ":" not in (parts.hostname or "") else str(parts.hostname)
        port = parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError) as error:
        raise FetchFailed(
            "DownloadFailed", f"{shown(url)} is not an http(s) URL that can be read", "write https://HOST[:PORT]/PATH"
        ) from error
    if not host or parts.scheme not in PORTS or not re.fullmatch(r"[\w.:%-]+", host):
        raise FetchFailed("DownloadFailed", f"{shown(url)} names no host that can be asked", "write https://HOST[:PORT]/PATH")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
        f"?{quote(parts.query, safe='/?%:@!$&()*+,;=~')}" if parts.query else ""
    )
    return Target(parts.scheme, host, port, path, _basic(parts.username, parts.password), url)


def _basic(username: str | None, password: str | None) -> str:
    if username is None:
        return ""
    pair = f"{unquote(username)}:{unquote(password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
