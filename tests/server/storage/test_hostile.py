"""A web server that means harm: each way ends soon, says what was wrong, and leaves what was there as it was."""

import contextlib
import gzip
import io
import tarfile
import time

import pytest

from server import storage
from server.errors import FetchFailed
from server.storage.bring import Options, get
from server.storage.download import Patience
from tests.server.storage.origin import answer, chunked, dripping, redirect, silent, status

LIMIT = 1 << 20
SOON = Options(max_bytes=LIMIT, max_seconds=2.0, patience=Patience(connect=0.3, stall=0.3, tries=2, pause=0.0))
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


def endless(after: bytes, again: bytes, every: float = 0.0):
    """Send these bytes, and then those, as fast as they are read or with pauses, for ever."""

    def answer(connection, origin) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(after)
            while not origin.stopped.wait(every):
                connection.sendall(again if every else again * (65536 // len(again)))

    return answer


def bomb() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        info = tarfile.TarInfo("m.onnx")
        info.size = 64 << 20
        file.addfile(info, io.BytesIO(bytes(info.size)))
    return packed.getvalue()


TRICKS = {
    "interim answers without end": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "did not answer in 0.3 s"),
    "headers without end": (endless(OK, b"x: y\r\n"), "did not answer in HTTP"),
    "a header without end": (endless(OK + b"x: ", b"y"), "did not answer in HTTP"),
    "a status without end": (endless(b"HTTP/1.1 200 ", b"O"), "did not answer in HTTP"),
    "a head that drips": (endless(OK, b"x: y\r\n", 0.05), "did not answer in 0.3 s"),
    "a body without length or end": (endless(OK + b"\r\n", b"x"), "more than the 1048576 bytes"),
    "chunks without end": (endless(CHUNKED, b"800\r\n" + b"x" * 2048 + b"\r\n"), "more than the 1048576 bytes"),
    "a chunk of a gigantic size": (endless(CHUNKED + b"f" * 15 + b"\r\n", b"x"), "more than the 1048576 bytes"),
    "a chunk of a negative size": (CHUNKED + b"-5\r\nxxxxx\r\n0\r\n\r\n", "broke the connection after"),
    "the size of a chunk without end": (endless(CHUNKED, b"0"), "broke the connection after 0 bytes"),
    "the size of a chunk that drips": (endless(CHUNKED + b"1\r\nx\r\n", b"0", 0.05), "sent nothing for 0.3 s, after 1 bytes"),
    "trailers without end": (endless(CHUNKED + b"1\r\nx\r\n0\r\n", b"x: y\r\n"), "sent nothing for 0.3 s, after 1 bytes"),
    "trailers that drip": (endless(CHUNKED + b"1\r\nx\r\n0\r\n", b"x: y\r\n", 0.05), "sent nothing for 0.3 s, after 1 bytes"),
    "a body that drips": (dripping(answer(b"x", length=9000), 0.05), "bytes in 0 s, after"),
    "a body that drips just enough": (endless(answer(b"x", length=LIMIT), b"x" * 2048, 0.05), "the time for it was over"),
    "silence, again and again": (silent(b""), "tried 2 times"),
    "to be asked again in a minute": (status(503, retry_after="60"), "and the time for it is over"),
    "two lengths": (OK + b"content-length: 3\r\ncontent-length: 5\r\n\r\nabcde", "answered with the length '3, 5'"),
    "a length that is too long": (answer(b"abc", length=9), "after 3 of 9 bytes"),
    "a length of more digits than numbers have": (answer(b"abc", length="9" * 5000), "answered with the length '9999"),
    "a length of more bytes than are allowed": (answer(b"abc", length=LIMIT + 1), "1048577 bytes, and 1048576 are allowed"),
    "compression that nobody asked for": (answer(gzip.compress(b"x"), content_encoding="br"), "is sent compressed (br)"),
    "a redirect to itself": (redirect("/m.tar.gz"), "redirects more than 3 times"),
    "a redirect to a link-local address": (redirect("http://169.254.7.7/m"), "in the link-local network"),
    "a redirect to one in IPv6": (redirect("http://[fe80::1]/m"), "in the link-local network"),
    "a redirect to where credentials are": (redirect("http://169.254.169.254/latest"), "clouds hand out credentials"),
    "the same in one number": (redirect("http://2852039166/latest"), "clouds hand out credentials"),
    "the same in hexadecimal": (redirect("http://0xa9fea9fe/latest"), "clouds hand out credentials"),
    "the same inside IPv6": (redirect("http://[::ffff:169.254.169.254]/latest"), "clouds hand out credentials"),
    "a redirect to a file": (redirect("file:///etc/passwd"), "from http to file is not followed"),
    "a redirect to another protocol": (redirect("ftp://127.0.0.1/m"), "from http to ftp is not followed"),
    "a redirect with a line of its own": (redirect("http://127.0.0.1:1/\tx"), "can't be reached"),
    "an archive that fills disks": (answer(bomb()), "unpacks to more than 1048576 bytes"),
    "an archive that is none": (answer(b"<html>"), "is damaged, or no archive"),
    "chunks without the last": (chunked(b"abc", end=b""), "broke the connection after 3 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_harm_ends_soon_and_leaves_what_was_there(origin, tmp_path, trick):
    given, says = TRICKS[trick]
    (tmp_path / "m").write_text("old")
    started = time.monotonic()
    with pytest.raises(FetchFailed) as caught:
        get(origin.give("/m.tar.gz", given), tmp_path, SOON)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500
    # two tries of at most 0.3 s each, or the two seconds of all; the rest is a busy machine's
    assert time.monotonic() - started < 10
    assert [path.name for path in tmp_path.rglob("*")] == ["m"]
    assert (tmp_path / "m").read_text() == "old"


def test_what_is_cut_short_by_its_length_is_found_by_its_checksum(origin, tmp_path):
    """A length below what is sent is the one lie that a client can't see."""
    url = origin.give("/m.onnx", answer(b"abcdef", length=3))
    assert get(url, tmp_path / "a", SOON).size == 3
    checksum = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721"
    with pytest.raises(FetchFailed, match=f"and {checksum} was wanted"):
        get(f"{url}#sha256={checksum}", tmp_path / "b", SOON)


def test_a_predictor_is_given_the_limits_that_its_settings_say(serve, origin, tmp_path, monkeypatch):
    url = origin.give("/m.onnx", answer(bytes(2000)))
    with pytest.raises(FetchFailed, match="2000 bytes, and 1999 are allowed"):
        storage.fetch(url, tmp_path, 1999)
    for flag, says in (
        ("--max_model_bytes=1999", "2000 bytes, and 1999 are allowed"),
        ("--max_model_seconds=0.000001", "no time left"),
    ):
        with pytest.raises(RuntimeError, match=says):
            serve(url, flag, "--allow_private_addresses").__enter__()
