"""What a URL names, how near that is, and what is shown of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import FetchFailed
from server.storage.addresses import Zone, parse, shown, zone, zone_of_name

ZONES = [
    ("93.184.216.34", Zone.PUBLIC),
    ("2606:2800:220:1::1", Zone.PUBLIC),
    ("10.1.2.3", Zone.PRIVATE),
    ("172.16.0.1", Zone.PRIVATE),
    ("192.168.1.1", Zone.PRIVATE),
    ("100.64.0.1", Zone.PRIVATE),
    ("fd12:3456::1", Zone.PRIVATE),
    ("224.0.0.1", Zone.PRIVATE),
    ("127.0.0.1", Zone.LOOPBACK),
    ("127.9.9.9", Zone.LOOPBACK),
    ("0.0.0.0", Zone.LOOPBACK),
    ("::1", Zone.LOOPBACK),
    ("::", Zone.LOOPBACK),
    ("::ffff:127.0.0.1", Zone.LOOPBACK),
    ("::127.0.0.1", Zone.LOOPBACK),
    ("64:ff9b::127.0.0.1", Zone.LOOPBACK),
    ("2002:7f00:1::", Zone.LOOPBACK),
    ("169.254.0.9", Zone.LINK_LOCAL),
    ("fe80::1%eth0", Zone.LINK_LOCAL),
    ("169.254.169.254", Zone.METADATA),
    ("::ffff:169.254.169.254", Zone.METADATA),
    ("64:ff9b::a9fe:a9fe", Zone.METADATA),
    ("fd00:ec2::254", Zone.METADATA),
]


@pytest.mark.parametrize(("address", "expected"), ZONES)
def test_an_address_in_any_form_is_in_its_zone(address, expected):
    assert zone(address) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("models.example", Zone.PUBLIC),
        ("localhost", Zone.LOOPBACK),
        ("a.localhost", Zone.LOOPBACK),
        ("metadata.google.internal", Zone.METADATA),
        ("2852039166", Zone.METADATA),
        ("0xa9fea9fe", Zone.METADATA),
        ("0177.0.0.1", Zone.LOOPBACK),
        ("127.1", Zone.LOOPBACK),
        ("10.0.0.1", Zone.PRIVATE),
    ],
)
def test_the_text_of_a_host_tells_its_zone_where_a_proxy_resolves_it(host, expected):
    assert zone_of_name(host) is expected


SHOWN = [
    ("/data/a@b?c#d.onnx", "/data/a@b?c#d.onnx"),
    ("http://h/x.onnx", "http://h/x.onnx"),
    ("http://user:secret@h:80/x.onnx", "http://h:80/x.onnx"),
    ("https://h/x.onnx?X-Signature=secret", "https://h/x.onnx?…"),
    ("https://u:secret@h/x?sig=secret#sha256=12", "https://h/x?…"),
    ("http://u:se/cret@h/x", "http://…@h/x"),
    ("http://u:se?cret@h/x", "http://…@h/x"),
    ("http://u:se#cret@h/x", "http://…@h/x"),
    ("http://u:se@cret@h/x", "http://h/x"),
    ("http://h/x\n\x1b[2J", "http://h/x??[2J"),
    ("s3://key:secret@bucket/x", "s3://bucket/x"),
]


@pytest.mark.parametrize(("uri", "expected"), SHOWN)
def test_messages_show_no_user_info_and_no_query(uri, expected):
    assert shown(uri) == expected


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_makes_a_password_shown(before, after):
    secret = "s3cr3tpassw0rd"
    assert secret not in shown(f"http://user:{before}{secret}@{after}")


PARSED = [
    ("http://h/x", ("http", "h", 80, "/x")),
    ("https://H.Example:8443/a b/ü?q=1 2", ("https", "h.example", 8443, "/a%20b/%C3%BC?q=1%202")),
    ("http://h", ("http", "h", 80, "/")),
    ("http://[::1]:9/x", ("http", "::1", 9, "/x")),
    ("http://bücher.example/x", ("http", "xn--bcher-kva.example", 80, "/x")),
    ("http://h/a%2Fb", ("http", "h", 80, "/a%2Fb")),
]


@pytest.mark.parametrize(("url", "expected"), PARSED)
def test_a_url_is_taken_apart_and_made_fit_to_send(url, expected):
    target = parse(url)
    assert (target.scheme, target.host, target.port, target.path) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "http://h:port/x",
        "http://[::1/x",
        "ftp://h/x",
        "http://h\x00/x",
        "http://a b/x",
        f"http://{'a' * 70}.example/x",
    ],
)
def test_what_is_no_url_is_refused_in_one_sentence(url):
    with pytest.raises(FetchFailed, match="write https://HOST") as caught:
        parse(url)
    assert caught.value.reason == "DownloadFailed"


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    try:
        target = parse(f"http://{text}")
    except FetchFailed:
        return
    assert target.path.isascii()
    assert "\r" not in target.path
    assert "\n" not in target.path
    assert " " not in target.path


def test_user_info_becomes_a_header():
    assert parse("http://me:p%40ss@h/x").authorization == "Basic bWU6cEBzcw=="
    assert parse("http://h/x").authorization == ""
