"""Against a real server that does what servers do wrong: what is tried again, what is refused, and how long it takes."""

import socket
import time
from urllib.parse import urlsplit

import pytest

from server.errors import FetchFailed
from server.storage.download import Patience, file_name, retrieve
from tests.server.storage.origin import CERTIFICATE, Origin, answer, chunked, dripping, redirect, reset, silent, status, tunnel

BODY = bytes(range(256)) * 4096
QUICK = Patience(connect=5.0, stall=5.0)
# For servers that say nothing: the only tests that wait.
IMPATIENT = Patience(connect=0.2, stall=0.2, tries=2)


def ask(url, patience=QUICK, take=lambda offer: b"".join(offer.chunks), **options):
    return retrieve(url, take, patience=patience, **{"sleep": lambda seconds: None, **options})


def refused(*args, **options) -> str:
    with pytest.raises(FetchFailed) as caught:
        ask(*args, **options)
    assert caught.value.reason == "DownloadFailed"
    return str(caught.value)


AGAIN = {
    "a 503": status(503),
    "a 500": status(500),
    "a 429": status(429),
    "a truncated body": answer(BODY[:-1], length=len(BODY)),
    "a body that never starts": answer(b"", length=len(BODY)),
    "a chunked body without its end": chunked(BODY, end=b""),
    "a chunked body with a broken size": chunked(BODY, end=b"zz\r\n"),
    "a reset before the answer": reset(b""),
    "a reset in the head": reset(b"HTTP/1.1 200 OK\r\ncontent-le"),
    "an end in the head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "a reset in the body": reset(answer(BODY[:70_000], length=len(BODY))),
    "a connection that closes": b"",
    "an answer that is no HTTP": b"220 mail ready\r\n",
    "a length that is no number": answer(BODY, length="many"),
    "a negative length": answer(BODY, length=-5),
}


@pytest.mark.parametrize("fault", AGAIN)
def test_what_may_pass_is_tried_again_from_the_start(origin, fault):
    url = origin.give("/m.onnx", AGAIN[fault], AGAIN[fault], answer(BODY))
    assert ask(url) == BODY
    assert origin.asked("/m.onnx") == 3


@pytest.mark.parametrize("fault", AGAIN)
def test_after_five_tries_the_message_says_what_went_wrong(origin, fault):
    url = origin.give("/m.onnx", AGAIN[fault])
    text = refused(url)
    assert text.startswith(f"{url} ")
    assert "tried 5 times" in text
    assert origin.asked("/m.onnx") == 5


NEVER = {
    400: "400 Bad Request",
    401: "credentials",
    403: "credentials",
    405: "405",
    408: "408",
    418: "418",
    501: "501",
    206: "206",
    204: "204",
}


@pytest.mark.parametrize("code", NEVER)
def test_what_will_not_pass_is_not_tried_again(origin, code):
    assert NEVER[code] in refused(origin.give("/m.onnx", status(code)))
    assert origin.asked("/m.onnx") == 1


@pytest.mark.parametrize("code", [404, 410])
def test_a_missing_file_is_not_found(origin, code):
    with pytest.raises(FetchFailed, match="there is nothing at") as caught:
        ask(origin.give("/m.onnx", status(code)))
    assert caught.value.reason == "NotFound"
    assert origin.asked("/m.onnx") == 1


def test_pauses_double_with_full_jitter_and_a_longest(origin):
    url = origin.give("/m", status(503))
    pauses: list[float] = []
    refused(url, Patience(tries=7, pause=0.5, longest=4.0), sleep=pauses.append, chance=lambda: 1.0)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    pauses.clear()
    refused(url, Patience(tries=3), sleep=pauses.append, chance=lambda: 0.1)
    assert pauses == [0.05, 0.1]


def test_a_server_that_says_when_to_come_back_is_obeyed_within_reason(origin):
    pauses: list[float] = []
    url = origin.give(
        "/m", status(429, retry_after="7"), status(503, retry_after="86400"), status(503, retry_after="soon"), answer(b"x")
    )
    assert ask(url, sleep=pauses.append, chance=lambda: 0.0) == b"x"
    assert pauses == [7.0, 30.0, 0.0]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (silent(b""), "did not answer in 0.2 s"),
        (silent(b"HTTP/1.1 200 OK\r\n"), "did not answer in 0.2 s"),
        (dripping(b"HTTP/1.1 200 OK\r\nx: ", 0.02), "did not answer in 0.2 s"),
        (silent(answer(b"abc", length=100)), "sent nothing for 0.2 s, after 3 of 100 bytes"),
        (dripping(answer(b"abc", length=10_000), 0.02), "bytes in 0 s, after"),
    ],
    ids=["no answer", "half a head", "a head byte by byte", "half a body", "a body byte by byte"],
)
def test_a_server_without_progress_is_left(origin, fault, says):
    started = time.monotonic()
    text = refused(origin.give("/m", fault), IMPATIENT)
    assert says in text
    assert time.monotonic() - started < 10


def test_who_does_not_accept_connections_is_given_up(origin):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        text = refused(f"http://127.0.0.1:{unused.getsockname()[1]}/m")
    assert "can't be reached: Connection refused (tried 5 times)" in text


def test_a_host_that_is_not_known_is_said_at_once():
    def addresses(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    pauses: list[float] = []
    assert "there is no host 'nowhere.example'" in refused("http://nowhere.example/m", addresses=addresses, sleep=pauses.append)
    assert pauses == []


def test_the_next_address_is_tried_where_one_does_not_answer(origin):
    origin.give("/m", answer(BODY))
    assert ask(f"http://models.test:{origin.port}/m", addresses=lambda host, port: ["127.0.0.77", "127.0.0.1"]) == BODY


ANSWERS = {
    "a length": (answer(BODY), len(BODY)),
    "chunks": (chunked(BODY[:1000], BODY[1000:]), None),
    "an end of the connection": (answer(BODY, length=""), None),
    "more than its length": (answer(BODY + b"more", length=len(BODY)), len(BODY)),
    "a wrong content type": (answer(BODY, content_type="text/html"), len(BODY)),
}


@pytest.mark.parametrize("form", ANSWERS)
def test_a_body_may_come_in_any_form_of_http(origin, form):
    sent, total = ANSWERS[form]
    found = ask(origin.give("/m", sent), take=lambda offer: (offer.total, b"".join(offer.chunks)))
    assert found == (total, BODY)


def test_a_body_that_was_compressed_for_the_way_is_refused_unless_its_name_says_so(origin):
    packed = answer(BODY, content_encoding="gzip")
    assert "is sent compressed (gzip)" in refused(origin.give("/m.onnx", packed))
    assert ask(origin.give("/m.tar.gz", packed)) == BODY
    assert origin.seen[0][1]["accept-encoding"] == "identity"


def test_the_etag_is_kept_and_a_server_that_has_no_other_sends_nothing(origin):
    url = origin.give("/m", answer(BODY, etag='"v1"'), status(304))
    assert ask(url, take=lambda offer: offer.etag) == '"v1"'
    assert ask(url, etag='"v1"') is None
    assert origin.seen[1][1]["if-none-match"] == '"v1"'
    assert "304" in refused(url)


@pytest.mark.parametrize("etag", ["v1", '"v1', '"a\x7fb"', '"' + "x" * 600 + '"'])
def test_an_etag_that_is_none_is_dropped(origin, etag):
    assert ask(origin.give("/m", answer(b"x", etag=etag)), take=lambda offer: offer.etag) == ""


# redirects


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(origin, code):
    origin.give("/there/m.onnx", answer(BODY))
    assert ask(origin.give("/m", redirect("/there/m.onnx", code))) == BODY


def test_the_fourth_redirect_is_not_followed(origin):
    for n in range(6):
        origin.give(f"/{n}", redirect(f"/{n + 1}"))
    origin.give("/3", answer(BODY))
    assert ask(f"{origin.url}/0") == BODY
    origin.give("/3", redirect("/4"))
    assert "redirects more than 3 times" in refused(f"{origin.url}/0")
    assert "redirects more than 3 times" in refused(origin.give("/loop", redirect("/loop")))
    assert origin.asked("/loop") == 4


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://169.254.169.254/latest/meta-data/", "hand out credentials"),
        ("http://[::ffff:169.254.169.254]/x", "hand out credentials"),
        ("http://2852039166/x", "hand out credentials"),
        ("http://169.254.7.7/x", "the link-local network"),
        ("file:///etc/passwd", "from http to file is not followed"),
        ("ftp://h/x", "from http to ftp is not followed"),
        ("gopher://h/x", "from http to gopher is not followed"),
        ("http://user:secret@169.254.169.254/x?sig=secret", "hand out credentials"),
        ("http://h:port/x", "is not an http(s) URL"),
        ("/m/", "HTTP has no way to list one"),
    ],
)
def test_a_redirect_leads_to_no_place_it_should_not(origin, location, says):
    text = refused(origin.give("/m", redirect(location)))
    assert says in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://127.0.0.1:PORT/secret", "this machine itself"),
        ("http://localhost:PORT/secret", "this machine itself"),
        ("http://0/secret", "this machine itself"),
        ("http://10.0.0.7/secret", "a private network"),
        ("http://192.168.0.7/secret", "a private network"),
        ("http://169.254.0.7/secret", "the link-local network"),
        ("http://169.254.169.254/secret", "hand out credentials"),
        ("http://metadata.google.internal/secret", "hand out credentials"),
    ],
)
def test_a_public_server_can_not_send_us_to_a_nearer_one(origin, monkeypatch, location, says):
    """The server stands as a proxy here, so that a host outside can be asked without one."""
    monkeypatch.setenv("http_proxy", origin.url)
    origin.give("http://models.example/m", redirect(location.replace("PORT", str(origin.port))))
    origin.give("/secret", answer(b"credentials"))
    assert says in refused("http://models.example/m")
    assert origin.asked("http://models.example/m") == 1
    assert origin.asked("/secret") == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:PORT/m", "127.0.0.1:PORT/m is on this machine itself"),
        ("http://user:secret@localhost:PORT/m?sig=secret", "is on this machine itself"),
        ("http://2130706433:PORT/m", "is on this machine itself"),
        ("http://[::1]:PORT/m", "is on this machine itself"),
        ("http://10.0.0.7/m", "10.0.0.7/m is on a private network"),
        ("http://169.254.0.7/m", "is on the link-local network"),
        ("http://169.254.169.254/m", "hand out credentials"),
    ],
)
def test_without_leave_only_a_public_server_is_asked(origin, url, says):
    origin.give("/m", answer(BODY))
    text = refused(url.replace("PORT", str(origin.port)), private=False)
    assert says.replace("PORT", str(origin.port)) in text
    assert ("--allow-private-addresses" in text) is ("credentials" not in says)
    assert "secret" not in text
    assert origin.asked("/m") == 0


def test_a_private_server_can_not_send_us_to_this_machine(origin, monkeypatch):
    monkeypatch.setenv("http_proxy", origin.url)
    origin.give("http://10.0.0.7/m", redirect(f"{origin.url}/secret"))
    assert "this machine itself" in refused("http://10.0.0.7/m")
    origin.give("http://10.0.0.7/m", redirect("http://192.168.0.1/m"))
    origin.give("http://192.168.0.1/m", answer(BODY))
    assert ask("http://10.0.0.7/m") == BODY


def test_a_name_is_judged_by_the_addresses_it_has_now(origin):
    """And it is the judged address that is connected to, so that a second look-up can't give another."""
    origin.give("/m", answer(BODY))
    asked: list[str] = []

    def addresses(host, port):
        asked.append(host)
        return {"models.test": ["169.254.169.254", "127.0.0.1"], "evil.test": ["169.254.169.254"]}[host]

    assert ask(f"http://models.test:{origin.port}/m", addresses=addresses) == BODY
    assert asked == ["models.test"]
    assert origin.seen[0][1]["host"] == f"models.test:{origin.port}"
    assert "hand out credentials" in refused("http://evil.test/m", addresses=addresses)


def test_the_metadata_address_is_refused_in_the_users_own_uri_too():
    assert "hand out credentials" in refused("http://169.254.169.254/latest")


def test_credentials_go_to_the_server_they_are_for_and_into_no_message(origin):
    origin.give("/m", redirect(f"http://localhost:{origin.port}/other"))
    origin.give("/other", status(403))
    url = f"http://me:secret@127.0.0.1:{origin.port}/m"
    assert "secret" not in refused(url)
    assert origin.seen[0][1]["authorization"] == "Basic bWU6c2VjcmV0"
    assert "authorization" not in origin.seen[1][1]
    origin.give("/m", redirect("/same"))
    origin.give("/same", answer(BODY))
    assert ask(url) == BODY
    assert origin.seen[-1][1]["authorization"] == "Basic bWU6c2VjcmV0"


# proxies and TLS


def test_a_proxy_of_the_environment_is_asked_with_its_credentials(origin, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{origin.port}")
    origin.give("http://models.example:8000/m", answer(BODY))
    assert ask("http://models.example:8000/m") == BODY
    _, headers = origin.seen[0]
    assert headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    assert headers["host"] == "models.example:8000"


def test_a_host_of_no_proxy_is_asked_directly(origin, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "models.test")
    origin.give("/m", answer(BODY))
    assert ask(f"http://models.test:{origin.port}/m", addresses=lambda host, port: ["127.0.0.1"]) == BODY


def test_this_machine_is_asked_without_a_proxy(origin, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert ask(origin.give("/m", answer(BODY))) == BODY


def test_a_proxy_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://me:secret@proxy:1080")
    text = refused("http://models.example/m")
    assert "the proxy socks5://proxy:1080 speaks no plain HTTP" in text


def test_https_through_a_proxy_is_a_tunnel_that_it_may_refuse(origin, monkeypatch):
    monkeypatch.setenv("https_proxy", origin.url)
    origin.give("models.example:443", status(403))
    assert "the proxy refuses to connect to models.example: 403" in refused("https://models.example/m")


@pytest.fixture
def secure(origin, tmp_path):
    certificate = tmp_path / "localhost.pem"
    certificate.write_text(CERTIFICATE)
    origin.speak_tls(certificate)
    return certificate


def test_a_certificate_has_to_be_trusted(origin, secure, monkeypatch):
    url = origin.give("/m", answer(BODY))
    assert "certificate is not accepted" in refused(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(secure))
    assert ask(url) == BODY
    assert "certificate is not accepted" in refused(f"https://models.test:{origin.port}/m", addresses=lambda h, p: ["127.0.0.1"])


def test_a_tunnel_through_a_proxy_leads_to_the_other_ends_certificate(origin, secure, monkeypatch):
    proxy = Origin()
    proxy.give("models.test:443", tunnel(origin.port))
    monkeypatch.setenv("https_proxy", proxy.url)
    # it is the one of localhost: that much was seen of the server behind the tunnel
    monkeypatch.setenv("SSL_CERT_FILE", str(secure))
    assert "not valid for 'models.test'" in refused("https://models.test/m")
    proxy.close()


def test_a_secure_address_is_not_left_for_a_plain_one(origin, secure, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(secure))
    assert "from https to http is not followed" in refused(origin.give("/m", redirect("http://models.example/m")))


def test_a_server_without_tls_is_said_to_have_none(origin):
    origin.give("/m", answer(BODY))
    text = refused(f"https://127.0.0.1:{urlsplit(origin.url).port}/m", IMPATIENT)
    assert "no secure connection" in text or "did not answer" in text


# names


NAMES = [
    (("/a/iris.skops", "/a/iris.skops", ""), "iris.skops"),
    (("/a/iris.skops?x=1.zip", "/", ""), "iris.skops"),
    (("/download", "/files/iris.skops", ""), "iris.skops"),
    (("/download", "/files/9f8e", 'attachment; filename="iris.skops"'), "iris.skops"),
    (("/download", "/f", "attachment; filename=iris.skops; size=3"), "iris.skops"),
    (("/download", "/f", "attachment; filename*=UTF-8''m%C3%BCll.onnx; filename=x.bin"), "müll.onnx"),
    (("/iris.skops", "/f", "attachment; filename=other.pkl"), "iris.skops"),
    (("/download", "/f", 'attachment; filename="../../etc/passwd.pkl"'), "passwd.pkl"),
    (("/download", "/f", r'attachment; filename="C:\evil\x.pkl"'), "x.pkl"),
    (("/a%2F..%2F..%2Fx.onnx", "/", ""), "x.onnx"),
    (("/%2e%2e", "/", ""), "model"),
    (("/.hidden.onnx", "/", ""), "hidden.onnx"),
    (("/a%00b%0a.onnx", "/", ""), "ab.onnx"),
    (("/download", "/f", ""), "download"),
    (("/" + "x" * 300 + ".tar.gz", "/", ""), "x" * 193 + ".tar.gz"),
    (("/" + "%C3%BC" * 150 + ".onnx", "/", ""), "ü" * 97 + ".onnx"),
]


@pytest.mark.parametrize(("given", "expected"), NAMES)
def test_a_file_keeps_its_name_and_never_becomes_a_path(given, expected):
    assert file_name(*given) == expected


def test_a_folder_can_not_be_listed(origin):
    assert "HTTP has no way to list one; name one file; pack a folder" in refused(f"{origin.url}/models/")
    assert "HTTP has no way to list one" in refused(origin.url)
    assert origin.seen == []
