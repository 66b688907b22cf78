"""http(s) → bytes, in the standard library: checked addresses, few redirects, bounded waiting, retries.

http.client and not httpx: this runs as a process of its own for every model (an init container, a local deploy), where
importing an HTTP library costs more than a small model takes to arrive, and neither server nor deployer has one.  What
urllib does by itself (redirects to anywhere, credentials sent along, connecting to an address that nobody has looked at)
is what must not happen here.
"""

import http.client
import random
import re
import socket
import ssl
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin
from urllib.request import getproxies_environment, proxy_bypass

from server.errors import FetchFailed
from server.storage.addresses import PORTS, Target, Zone, parse, shown, zone, zone_of_name
from server.storage.waiting import Watch, cut_off

T = TypeVar("T")

REDIRECTS = 3
CHUNK = 1 << 20
# A server that sends less than this in `Patience.stall` seconds makes no progress.
LEAST = 4096
# The longest that a server's Retry-After is obeyed, in seconds.
LONGEST_WAIT = 30.0
FOREVER = float("inf")

_ADDRESSES = Callable[[str, int], list[str]]


@dataclass(frozen=True)
class Patience:
    """Times in seconds.  `pause` is what the first retry waits at most; it doubles, up to `longest`."""

    connect: float = 10.0
    stall: float = 30.0
    tries: int = 5
    pause: float = 0.5
    longest: float = 8.0


@dataclass(frozen=True)
class Offer:
    """An answer whose bytes are still to come: `chunks` raises inside `retrieve`, which then tries again.

    `name` is the best file name there is; `total` is in bytes, None where the server does not say.
    """

    name: str
    total: int | None
    etag: str
    chunks: Iterator[bytes]


def _failed(what: str, remedy: str = "") -> FetchFailed:
    return FetchFailed("DownloadFailed", what, remedy)


class Again(Exception):
    """Worth another try; the text completes a sentence that begins with the URL.  `wait`: seconds the server asks for."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, in the system's order, each once."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


@dataclass(frozen=True)
class Within:
    """How near an address may be: as near as what a user names, or, where it was `redirected`, as who sends us there."""

    zone: Zone = Zone.LINK_LOCAL
    redirected: bool = False


@dataclass(frozen=True)
class _Rules:
    patience: Patience
    addresses: _ADDRESSES
    etag: str
    headers: Mapping[str, str]
    private: bool


def retrieve(
    url: str,
    take: Callable[[Offer], T],
    *,
    etag: str = "",
    headers: Mapping[str, str] = {},
    patience: Patience = Patience(),
    deadline: float = FOREVER,
    private: bool = True,
    addresses: _ADDRESSES = resolve,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> T | None:
    """What `take` makes of the answer; None where `etag` is what the server still has.

    `take` is called once per try, and starts anew each time.  `headers` are sent to the server of `url` and to no other.
    Without `private` that server has to be a public one.
    FetchFailed where it can't be had: at once where trying again would not help, else after `patience.tries`, or when it is
    `deadline` on `time.monotonic`'s clock.
    """
    target = parse(url)
    if target.path.partition("?")[0].endswith("/"):
        raise _folder(target)
    again = Again("was not tried")
    for number in range(patience.tries):
        if number:
            pause = max(again.wait, chance() * min(patience.longest, patience.pause * 2 ** (number - 1)))
            sleep(min(pause, max(0.0, deadline - time.monotonic())))
        left = deadline - time.monotonic()
        if left <= 0:
            what = f"{target} {again}, and the time for it is over" if number else f"there is no time left for {target}"
            raise _failed(what, "try again, or give it more (--max-seconds)")
        within = replace(patience, connect=min(patience.connect, left), stall=min(patience.stall, left))
        rules = _Rules(within, addresses, etag, headers, private)
        try:
            with _asked(target, rules) as offer:
                return None if offer is None else take(offer)
        except Again as error:
            again = error
    raise _failed(f"{target} {again} (tried {patience.tries} times)", "check that the server and the network work, and try again")


def _folder(target: Target) -> FetchFailed:
    return _failed(
        f"{target} is a folder, and HTTP has no way to list one", "name one file; pack a folder as .tar.gz or .zip and name that"
    )


@contextmanager
def _asked(target: Target, rules: _Rules) -> Iterator[Offer | None]:
    """The answer of the server that the redirects lead to; None is "not modified"."""
    first, within = target, Within() if rules.private else Within(Zone.PUBLIC)
    for _ in range(REDIRECTS + 1):
        headers = rules.headers if _is_same(target, first) else {}
        with _answer(target, within, replace(rules, headers=headers)) as (response, at, stream):
            following = _following(response, target, first)
            if following is None:
                with closing(Watch(stream, rules.patience.stall)) as watch:
                    yield _offer(response, target, first, rules, watch)
                return
        target, within = following, Within(at, redirected=True)
    raise _failed(f"{first} redirects more than {REDIRECTS} times, at last to {target}", "name the file's final address")


def _following(response: http.client.HTTPResponse, target: Target, first: Target) -> Target | None:
    """Where a redirect leads; None where this answer is none."""
    location = response.getheader("location")
    if response.status not in (301, 302, 303, 307, 308) or not location:
        return None
    # header lines are latin-1 to http.client, and UTF-8 to those who write such a Location
    url = urljoin(target.url, location.encode("latin-1", "replace").decode("utf-8", "replace"))
    scheme = url.partition(":")[0].lower()
    if scheme not in PORTS or (target.scheme, scheme) == ("https", "http"):
        what = f"{first} redirects to {shown(url)}, and a redirect from {target.scheme} to {scheme} is not followed"
        raise _failed(what, "name that address yourself if it is the right one")
    following = parse(url)
    if following.path.partition("?")[0] == target.path.partition("?")[0] + "/":
        raise _folder(following)
    authorization = following.authorization or (first.authorization if _is_same(following, first) else "")
    return Target(following.scheme, following.host, following.port, following.path, authorization, following.url)


def _is_same(target: Target, first: Target) -> bool:
    """Whether it is the server that credentials were given for."""
    return (target.scheme, target.host, target.port) == (first.scheme, first.host, first.port)


@contextmanager
def _answer(target: Target, within: Within, rules: _Rules) -> Iterator[tuple[http.client.HTTPResponse, Zone, socket.socket]]:
    """Connect, ask, and read the answer's head; the zone is that of the address that was asked."""
    patience = rules.patience
    try:
        stream, at, prefix, headers = _connected(target, within, rules)
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(target, error, patience.connect) from error
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.sock = stream
    try:
        try:
            with cut_off(stream, patience.stall):
                connection.request("GET", prefix + target.path, headers=headers | _headers(target, rules))
                response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(target, error, patience.stall) from error
        yield response, at, stream
    finally:
        connection.close()
        stream.close()


def _headers(target: Target, rules: _Rules) -> dict[str, str]:
    headers = {
        "Host": target.netloc,
        "User-Agent": "serveplane",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    if target.authorization:
        headers["Authorization"] = target.authorization
    if rules.etag:
        headers["If-None-Match"] = rules.etag
    return {**headers, **rules.headers}


def _connected(target: Target, within: Within, rules: _Rules) -> tuple[socket.socket, Zone, str, dict[str, str]]:
    """As `reached`, and secured where the target's scheme says so."""
    patience = rules.patience
    stream, at, prefix, headers = reached(target, within, patience, rules.addresses)
    if target.scheme == "https":
        try:
            stream = _secured(stream, target.host, patience.connect)
        except BaseException:
            stream.close()
            raise
        stream.settimeout(patience.stall)
    return stream, at, prefix, headers


def reached(
    target: Target, within: Within, patience: Patience, addresses: _ADDRESSES = resolve
) -> tuple[socket.socket, Zone, str, dict[str, str]]:
    """A socket to the target, through its proxy if it has one; the target's zone; and what a proxy wants before the path and
    in the head.  FetchFailed where that is nearer than `within` says, OSError where nobody is reached."""
    proxy = _proxy(target)
    prefix, headers = "", dict[str, str]()
    if proxy is None:
        allowed = _allowed(target, addresses(target.host, target.port), within)
        stream = _connect(allowed, target.port, patience.connect)
        # all the addresses of a name are one to what it redirects to: the farthest counts
        at = min(zone(a) for a in allowed)
    else:
        at = zone_of_name(target.host)
        if at > within.zone:
            raise _too_near(target, at, within)
        stream = _connect(addresses(proxy.host, proxy.port), proxy.port, patience.connect)
        authorization = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
        if target.scheme == "http":
            prefix, headers = f"http://{target.netloc}", authorization
        else:
            try:
                with cut_off(stream, patience.connect):
                    _tunnel(stream, target, authorization)
            except BaseException:
                stream.close()
                raise
    stream.settimeout(patience.stall)
    return stream, at, prefix, headers


def _allowed(target: Target, addresses: list[str], within: Within) -> list[str]:
    allowed = [a for a in addresses if zone(a) <= within.zone]
    if not allowed:
        raise _too_near(target, zone(addresses[0]) if addresses else Zone.PUBLIC, within)
    return allowed


def _too_near(target: Target, at: Zone, within: Within) -> FetchFailed:
    if at is Zone.METADATA:
        return _failed(f"{target} is an address at which clouds hand out credentials", "no model is there; correct the URI")
    kind = {Zone.PRIVATE: "a private network", Zone.LOOPBACK: "this machine itself"}.get(at, "the link-local network")
    if not within.redirected:
        what = f"{target} is on {kind}, where a URL from elsewhere could reach what is not meant for it"
        return _failed(what, "if it is the right one, say --allow-private-addresses")
    return _failed(
        f"a redirect leads to {target}, in {kind}, which a server outside of it must not send us to",
        "name that address yourself if it is the right one",
    )


def _proxy(target: Target) -> Target | None:
    """The proxy that the environment (http_proxy, https_proxy, no_proxy) names for this target."""
    proxies = getproxies_environment()
    url = proxies.get(target.scheme) or proxies.get("all")
    if not url or zone_of_name(target.host) is Zone.LOOPBACK or proxy_bypass(target.netloc):
        return None
    if "://" not in url:
        url = f"http://{url}"
    if not url.startswith("http://"):
        raise _failed(f"the proxy {shown(url)} speaks no plain HTTP", "set http_proxy and https_proxy to an http:// proxy")
    return parse(url)


def _connect(addresses: list[str], port: int, seconds: float) -> socket.socket:
    """A socket to the first of the addresses that answers, all of them within `seconds`."""
    error: OSError = OSError("it has no address")
    tried = addresses[:4]
    for address in tried:
        try:
            return socket.create_connection((address, port), timeout=seconds / len(tried))
        except OSError as this:
            error = this
    raise error


def _secured(stream: socket.socket, host: str, seconds: float) -> ssl.SSLSocket:
    secured = ssl.create_default_context().wrap_socket(stream, server_hostname=host, do_handshake_on_connect=False)
    try:
        with cut_off(secured, seconds):
            secured.do_handshake()
    except BaseException:
        secured.close()
        raise
    return secured


def _tunnel(stream: socket.socket, target: Target, authorization: dict[str, str]) -> None:
    """Ask the proxy for a connection to the target."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [f"CONNECT {host}:{target.port} HTTP/1.1", f"Host: {host}:{target.port}"]
    lines += [f"{name}: {value}" for name, value in authorization.items()]
    stream.sendall("\r\n".join([*lines, "", ""]).encode())
    response = http.client.HTTPResponse(stream, method="CONNECT")
    response.begin()
    if response.status != HTTPStatus.OK:
        raise _failed(f"the proxy refuses to connect to {target.netloc}: {_status(response.status)}", "check https_proxy")


def unreachable(target: Target, error: Exception, seconds: float) -> Exception:
    """What an error before or in the answer's head means: worth another try, or not."""
    match error:
        case socket.gaierror() if error.errno != socket.EAI_AGAIN:
            return _failed(f"{target}: there is no host {target.host!r}", "check its spelling, and this machine's DNS")
        case ssl.SSLCertVerificationError():
            text = error.verify_message
            return _failed(
                f"{target}: the server's certificate is not accepted: {text}",
                "correct the host, or name the file with your authority's certificate in SSL_CERT_FILE",
            )
        case ssl.SSLError() if not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return _failed(f"{target}: no secure connection: {error.reason or error}", "check that the server speaks TLS there")
        case http.client.InvalidURL():
            return _failed(f"{target} is not a URL that can be asked for", "correct the URI")
        case TimeoutError():
            return Again(f"did not answer in {seconds:g} s")
        case http.client.RemoteDisconnected():
            return Again("closed the connection without an answer")
        case OSError():
            return Again(f"can't be reached: {error.strerror or error}")
        case _:
            return Again(f"did not answer in HTTP ({type(error).__name__})")


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _offer(response: http.client.HTTPResponse, target: Target, first: Target, rules: _Rules, watch: Watch) -> Offer | None:
    status = response.status
    if status == HTTPStatus.NOT_MODIFIED and rules.etag:
        return None
    if status != HTTPStatus.OK:
        raise _refusal(response, first if target == first else target)
    name = file_name(first.path, target.path, response.getheader("content-disposition") or "")
    encoding = (response.getheader("content-encoding") or "identity").lower()
    # some servers call a .tar.gz file "encoded", and mean the file as it is
    if encoding != "identity" and not (encoding in ("gzip", "x-gzip") and name.endswith((".gz", ".tgz"))):
        raise _failed(f"{first} is sent compressed ({encoding[:40]}), though asked for as it is", "correct the server's settings")
    length = response.getheader("content-length")
    if length is not None and not response.chunked and not re.fullmatch(r"[0-9]{1,18}", length.strip()):
        raise Again(f"answered with the length {length[:40]!r}")
    etag = response.getheader("etag") or ""
    etag = etag if re.fullmatch(r'(W/)?"[\x21\x23-\x7e]{0,512}"', etag) else ""
    return Offer(name, response.length, etag, _chunks(response, watch))


def _refusal(response: http.client.HTTPResponse, target: Target) -> Exception:
    status = response.status
    said = f"answered {_status(status)}"
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return FetchFailed("NotFound", f"there is nothing at {target} ({_status(status)})", "check the URI's spelling")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return _failed(f"{target} {said}", "check that this URI may be read without, or with these, credentials")
    if status == HTTPStatus.TOO_MANY_REQUESTS or (status >= 500 and status not in (501, 505)):
        after = response.getheader("retry-after") or ""
        return Again(said, min(LONGEST_WAIT, float(after)) if re.fullmatch(r"[0-9]{1,6}", after) else 0.0)
    return _failed(f"{target} {said}, and a file was wanted (200 OK)", "open the URI in a browser to see what it gives")


def _chunks(response: http.client.HTTPResponse, watch: Watch) -> Iterator[bytes]:
    done, total, stall = 0, response.length, watch.seconds
    since, got = time.monotonic(), 0
    while True:
        try:
            with watch:
                chunk: Any = response.read1(CHUNK)
        except TimeoutError as error:
            raise Again(f"sent nothing for {stall:g} s, after {_of(done, total)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Again(f"broke the connection after {_of(done, total)}") from error
        if not chunk:
            break
        done, got = done + len(chunk), got + len(chunk)
        yield chunk
        now = time.monotonic()
        if now - since > stall:
            if got < LEAST:
                raise Again(f"sent only {got} bytes in {now - since:.0f} s, after {_of(done, total)}")
            since, got = now, 0
    # a head that was cut off has lost its length, and shows in that nothing follows
    if done != total if total is not None else not done and not response.chunked:
        raise Again(f"ended the file after {_of(done, total)}")


def _of(done: int, total: int | None) -> str:
    return f"{done} bytes" if total is None else f"{done} of {total} bytes"


def file_name(asked: str, final: str, disposition: str = "") -> str:
    """A safe file name for what came from a URL: the first with an ending among what was asked for, what the server
    suggests and where redirects led to; never hidden, never a path."""
    header = re.search(r"""filename\*=(?:UTF-8'[^']*')([^;\s]+)""", disposition, re.I)
    plain = re.search(r'filename="?([^";]+)', disposition, re.I)
    suggested = unquote(header[1]) if header else plain[1] if plain else ""
    names = [_cleaned(unquote(path.partition("?")[0])) for path in (asked, suggested, final)]
    return next((n for n in names if PurePosixPath(n).suffix), names[0]) or "model"


def _cleaned(path: str) -> str:
    name = unicodedata.normalize("NFC", path.replace("\\", "/").rstrip("/").rpartition("/")[2])
    name = "".join(c for c in name if c.isprintable() and c not in ':"<>|*?').lstrip(". ").rstrip()
    # 200 bytes leave room for what file systems and we add; endings matter, so they stay
    ending = "".join(PurePosixPath(name).suffixes[-2:])[:40]
    if len(name.encode()) > 200:
        name = name.encode()[: 200 - len(ending.encode())].decode(errors="ignore") + ending
    return name
