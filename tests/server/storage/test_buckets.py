"""Models in buckets, from a real S3 server and from one that is hostile."""

import base64
import fcntl
import hashlib
import io
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deployer.kubernetes.admission import certificate
from server import storage
from server.errors import FetchFailed
from server.storage import local_files
from server.storage.bring import Options, get
from server.storage.download import Patience
from server.storage.guard import Allowed, Guard
from server.storage.objects import PART
from tests import buckets
from tests.server.storage.origin import Origin, answer, redirect, silent, status

NOW = Options(patience=Patience(pause=0.001, longest=0.002, tries=3, stall=1.0))
BODY = bytes(range(256)) * 1000
LARGE = os.urandom(2 * PART + 17)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(reason: str, uri: str, folder: Path, options: Options = NOW) -> str:
    with pytest.raises(FetchFailed) as caught:
        get(uri, folder, options)
    assert caught.value.reason == reason, str(caught.value)
    assert files(folder) == {}
    assert "canary-of-a-secret" not in str(caught.value)
    return str(caught.value)


def tar(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return packed.getvalue()


# what is taken

TREE = {
    "iris/": b"",
    "iris/model.bin": BODY,
    "iris/deep/": b"",
    "iris/deep/words ü+%20.txt": b"words",
    "iris/empty": b"",
    "iris/.git/x": b"hidden",
    "iris-2/model.bin": b"neighbour",
    "iris.txt": b"neighbour",
    "large.onnx": LARGE,
    "one/model.tar.gz": tar(a=b"1", b=b"2"),
    "two.tgz": tar(**{"m/saved_model.pb": b"pb"}),
    "both": b"an object",
    "both/x": b"and a folder",
}
INSIDE = {"model.bin": BODY, "deep/words ü+%20.txt": b"words", "empty": b""}


@pytest.fixture(scope="module")
def tree(s3_server):
    s3_server.put("models", TREE)


@pytest.fixture
def models(s3, tree):
    return s3


@pytest.mark.parametrize(
    ("uri", "expected", "name", "path"),
    [
        ("s3://models/iris", INSIDE, "iris", ""),
        ("s3://models/iris/", INSIDE, "iris", ""),
        ("S3://models/iris-2", {"model.bin": b"neighbour"}, "iris-2", ""),
        ("s3://models/iris/model.bin", {"model.bin": BODY}, "model.bin", "model.bin"),
        ("s3://models/large.onnx", {"large.onnx": LARGE}, "large.onnx", "large.onnx"),
        ("s3://models/one", {"a": b"1", "b": b"2"}, "model", ""),
        ("s3://models/two.tgz", {"m/saved_model.pb": b"pb"}, "m", "m"),
        ("s3://models/both", {"both": b"an object"}, "both", "both"),
        ("s3://models/both/", {"x": b"and a folder"}, "both", ""),
    ],
)
def test_an_object_or_what_lies_below_a_key_is_taken_and_nothing_beside_it(models, tmp_path, uri, expected, name, path):
    found = get(uri, tmp_path / "m", NOW)
    assert files(tmp_path / "m") == expected
    assert (found.name, found.path) == (name, tmp_path / "m" / path if path else tmp_path / "m")


def test_a_folder_has_the_digest_that_it_has_on_a_disk(models, tmp_path):
    found = get("s3://models/iris", tmp_path / "iris", NOW)
    assert get(str(tmp_path / "iris"), tmp_path / "copy").digest == found.digest
    assert found.size == len(BODY) + 5


@pytest.mark.parametrize(
    ("allow", "ignore", "expected"),
    [
        ('["*.bin", "empty"]', "", {"model.bin", "empty"}),
        ("", "deep/", {"model.bin", "empty"}),
        ("*.bin,deep/*", "*.txt", {"model.bin"}),
        ("*", '["*.BIN"]', {"model.bin", "empty", "deep/words ü+%20.txt"}),
    ],
)
def test_of_a_folder_only_what_the_patterns_leave_is_fetched(models, tmp_path, monkeypatch, allow, ignore, expected):
    monkeypatch.setenv("STORAGE_ALLOW_PATTERNS", allow)
    monkeypatch.setenv("STORAGE_IGNORE_PATTERNS", ignore)
    assert set(files(get("s3://models/iris", tmp_path / "m", NOW).path)) == expected
    # a file that is named is wanted
    assert files(get("s3://models/two.tgz", tmp_path / "n", NOW).path) == {"saved_model.pb": b"pb"}


def test_patterns_that_leave_nothing_are_told_of(models, tmp_path, monkeypatch):
    monkeypatch.setenv("STORAGE_ALLOW_PATTERNS", "*.onnx")
    text = refused("NotFound", "s3://models/iris", tmp_path)
    assert "holds 3 objects, and STORAGE_ALLOW_PATTERNS (*.onnx) leave none of them" in text


def test_a_whole_bucket_may_be_a_model(s3, tmp_path):
    s3.put("whole", {"a": b"1", "d/b": b"2"})
    assert get("s3://whole", tmp_path, NOW).name == "whole"
    assert files(tmp_path) == {"a": b"1", "d/b": b"2"}


def test_many_objects_come_page_by_page(s3, tmp_path):
    many = {f"many/{n:04d}": b"%d" % n for n in range(1200)}
    s3.put("pages", many)
    seen = []
    get("s3://pages/many", tmp_path, Options(progress=lambda done, total: seen.append((done, total))))
    assert files(tmp_path) == {key.removeprefix("many/"): content for key, content in many.items()}
    size = sum(map(len, many.values()))
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


def test_what_has_not_changed_is_not_fetched_again(models, tmp_path):
    models.put("changing", {"m/a": b"a", "m/b": b"b"})
    etag = get("s3://changing/m", tmp_path / "1", NOW).etag
    assert get("s3://changing/m", tmp_path / "2", Options(etag=etag)) is None
    models.put("changing", {"m/b": b"B"})
    again = get("s3://changing/m", tmp_path / "3", Options(etag=etag))
    assert files(tmp_path / "3") == {"a": b"a", "b": b"B"}
    assert again.etag != etag


def test_a_predictor_keeps_its_model_and_only_asks_whether_it_is_another_one(models, tmp_path, monkeypatch):
    path = storage.fetch("s3://models/iris", tmp_path / "kept")
    assert (path.is_dir(), files(path)) == (True, INSIDE)
    assert storage.fetch("s3://models/iris", tmp_path / "kept") == path


@pytest.mark.parametrize("uri", ["s3://models/large.onnx", "s3://models/iris"])
def test_a_person_at_a_terminal_sees_how_far_it_is(models, tmp_path, uri):
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-P", "-m", "server.storage", uri, str(tmp_path)]
    with subprocess.Popen(command, stderr=there, stdout=subprocess.DEVNULL) as process:
        os.close(there)
        seen = b""
        # the end of a terminal nobody writes to any more is an error
        with suppress(OSError):
            while data := os.read(here, 4096):
                seen += data
        os.close(here)
    assert process.returncode == 0
    assert f"\r\x1b[Kfetching {uri}: ".encode() in seen
    assert b" MB, " in seen
    # nothing is left of it
    assert seen.endswith(b"\r\x1b[K")


def test_elsewhere_nothing_is_said_of_progress(models, tmp_path):
    command = [sys.executable, "-P", "-m", "server.storage", "s3://models/large.onnx", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


# checksums and limits


def test_a_checksum_is_of_one_object_or_of_a_folder(models, tmp_path):
    right = hashlib.sha256(BODY).hexdigest()
    assert get(f"s3://models/iris/model.bin#sha256={right}", tmp_path / "a", NOW).digest == f"sha256:{right}"
    assert f"{right}, and" in refused("ChecksumMismatch", f"s3://models/iris/model.bin#sha256={'0' * 64}", tmp_path / "b")
    assert f"and {right} was wanted" in refused("ChecksumMismatch", f"s3://models/iris#sha256={right}", tmp_path / "c")
    whole = local_files.sha256(get("s3://models/iris", tmp_path / "e", NOW).path)
    assert get(f"s3://models/iris#sha256={whole}", tmp_path / "f", NOW).digest == f"sha256:{whole}"
    packed = hashlib.sha256(TREE["one/model.tar.gz"]).hexdigest()
    assert files(get(f"s3://models/one#sha256={packed}", tmp_path / "d", NOW).path) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize(("uri", "size"), [("s3://models/large.onnx", len(LARGE)), ("s3://models/iris", len(BODY) + 5)])
def test_what_is_too_large_is_refused_before_it_is_fetched(models, tmp_path, uri, size):
    assert f"has {size} bytes, and {size - 1} are" in refused("TooLarge", uri, tmp_path / "m", Options(max_bytes=size - 1))
    assert get(uri, tmp_path / "n", Options(max_bytes=size)).size == size


def test_time_is_limited(models, tmp_path):
    assert "when the time for it was over" in refused("DownloadFailed", "s3://models/iris", tmp_path, Options(max_seconds=0.0))


# what a person is told


@pytest.mark.parametrize(
    ("uri", "environ", "reason", "says"),
    [
        ("s3://models/irix", {}, "NotFound", "there is nothing at s3://models/irix: no object has that key, or lies below it"),
        ("s3://models/irix/", {}, "NotFound", "no object lies below it"),
        ("s3://gone/m", {}, "NotFound", "there is no bucket 'gone' at http://localhost:"),
        ("s3:///m", {}, "DownloadFailed", "names no bucket; write s3://BUCKET/PATH"),
        ("s3://models/iris/model.bin", {"awsAnonymousCredential": "true"}, "DownloadFailed", "may not be read without credentials (403 Forbidden); set AWS_ACCESS_KEY_ID"),
        ("s3://models/iris", {"AWS_ENDPOINT_URL": "http://localhost:1"}, "DownloadFailed", "localhost:1 can't be reached: Connection refused (tried 3 times); check that the store"),
        ("s3://models/iris", {"AWS_ENDPOINT_URL": "http://nobody.invalid"}, "DownloadFailed", "there is no host 'nobody.invalid'"),
        ("s3://models/iris", {"AWS_ENDPOINT_URL": "ftp://h"}, "DownloadFailed", "AWS_ENDPOINT_URL is 'ftp://h', which is no address of a store"),
        ("s3://models/iris", {"AWS_ENDPOINT_URL": "http://169.254.169.254"}, "DownloadFailed", "at which clouds hand out credentials"),
        ("s3://models/iris", {"AWS_SECRET_ACCESS_KEY": ""}, "DownloadFailed", "one is set and one is not; set both, or none"),
        ("s3://models/iris", {"AWS_CA_BUNDLE": "/gone.pem"}, "DownloadFailed", "/gone.pem can't be read: No such file"),
        ("<scheme-placeholder>://b/m", {}, "DownloadFailed", "STORAGE_CONFIG, which is not set"),
    ],
)  # fmt: skip
def test_why_it_can_not_be_had_is_said(models, tmp_path, monkeypatch, uri, environ, reason, says):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert says in refused(reason, uri, tmp_path)


def test_wrong_credentials_are_told_from_a_wrong_key(models, tmp_path):
    models.refuse_strangers(True)
    try:
        text = refused("DownloadFailed", "s3://models/iris", tmp_path)
    finally:
        models.refuse_strangers(False)
    assert "s3://models/iris may not be read with the access key AKIA… (403 Forbidden, InvalidAccessKeyId)" in text


def test_what_anybody_may_read_needs_no_credentials(s3, tmp_path, monkeypatch):
    s3.put("public", {"m.bin": BODY}, **{"x-amz-acl": "public-read"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert get("s3://public/m.bin", tmp_path, NOW).size == len(BODY)


def test_a_secret_of_kserve_names_store_and_bucket(models, tmp_path, monkeypatch):
    said = {"type": "s3", "bucket": "models", "endpoint_url": models.url, "access_key_id": "AKIA", "secret_access_key": "s"}
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("STORAGE_CONFIG", json.dumps(said | {"bucket": "other"}))
    monkeypatch.setenv("STORAGE_OVERRIDE_CONFIG", '{"bucket": "models"}')
    assert get("<scheme-placeholder>://<bucket-placeholder>/iris-2", tmp_path, NOW).name == "iris-2"


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A store that speaks TLS with a certificate of an authority that nobody knows."""
    folder = tmp_path_factory.mktemp("tls")
    made = certificate.renewed(None, ["localhost"], time.time())
    (folder / "cabundle.crt").write_bytes(made.authorities)
    (folder / "server.pem").write_bytes(made.key + made.certificate)
    with buckets.running(folder, folder / "server.pem", folder / "cabundle.crt") as store:
        store.put("models", {"m.bin": BODY})
        yield store, folder


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "the certificate of localhost:"),
        ({"AWS_CA_BUNDLE": "{folder}/cabundle.crt"}, ""),
        ({"CA_BUNDLE_CONFIGMAP_NAME": "c", "CA_BUNDLE_VOLUME_MOUNT_POINT": "{folder}"}, ""),
        ({"SSL_CERT_FILE": "{folder}/cabundle.crt"}, ""),
        ({"S3_VERIFY_SSL": "0"}, ""),
        ({"S3_VERIFY_SSL": "false"}, ""),
        ({"AWS_ENDPOINT_URL": "", "S3_ENDPOINT": "{host}", "S3_USE_HTTPS": "1", "S3_VERIFY_SSL": "0"}, ""),
    ],
)
def test_a_certificate_has_to_be_of_an_authority_that_is_trusted(tls, tmp_path, monkeypatch, environ, says):
    store, folder = tls
    for name, value in {**store.environ, **environ}.items():
        monkeypatch.setenv(name, value.format(folder=folder, host=store.host))
    if says:
        assert says in refused("DownloadFailed", "s3://models/m.bin", tmp_path)
    else:
        assert get("s3://models/m.bin", tmp_path, NOW).size == len(BODY)


# a store that is hostile, or ill

STAMP = {"etag": '"e"', "last_modified": "Tue, 24 Nov 2026 16:00:00 GMT"}


def listing(*keys: str, size: object = 3) -> bytes:
    entries = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-11-24T16:00:00.000Z</LastModified><ETag>\"e\"</ETag><Size>{size}</Size></Contents>"
        for key in keys
    )  # fmt: skip
    return answer(f"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())


@pytest.fixture
def hostile(origin, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", origin.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-a-secret")
    return origin


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_store_that_is_busy_is_asked_again(hostile, tmp_path, code):
    hostile.give("/b/m", answer(b"abc", **STAMP), status(code), status(code), answer(b"abc", **STAMP))
    assert get("s3://b/m", tmp_path, NOW).size == 3
    assert hostile.asked("/b/m") == 4


def test_a_store_that_stays_busy_is_given_up(hostile, tmp_path):
    hostile.give("/b/m", status(503))
    assert "answered 503 Service Unavailable (tried 3 times); try again later" in refused("DownloadFailed", "s3://b/m", tmp_path)
    assert hostile.asked("/b/m") == 3


@pytest.mark.parametrize("key", ["m/../../etc/passwd", "m/..", "m//x", "m/a\\b", "m/" + "l" * 300], ids=repr)
def test_a_key_that_leads_elsewhere_is_refused(hostile, tmp_path, key):
    hostile.give("/b", listing("m/ok", key))
    assert "whose key can't be a file's name" in refused("DownloadFailed", "s3://b/m/", tmp_path)


def test_objects_that_were_not_asked_for_are_not_taken(hostile, tmp_path):
    hostile.give("/b", listing("m/ok", "m-2/no", "no", "mm"))
    hostile.give("/b/m/ok", answer(b"abc", **STAMP))
    get("s3://b/m/", tmp_path, NOW)
    assert files(tmp_path) == {"ok": b"abc"}
    assert {path.partition("?")[0] for path, _ in hostile.seen} == {"/b", "/b/m/ok"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (answer(b"ab", length=3, **STAMP), "s3://b/m"),
        (answer(b"abcdef", **STAMP), "changed while it was fetched"),
        (answer(b"abc", **{**STAMP, "etag": '"other"'}), "changed while it was fetched"),
        (silent(answer(b"a", length=3, **STAMP)), "s3://b/m"),
        (answer(b"", 301), "has the bucket in another region"),
        (b"nonsense\r\n\r\n", "s3://b/m"),
    ],
)  # fmt: skip
def test_an_object_that_does_not_come_as_it_was_announced_is_refused(hostile, tmp_path, given, says):
    hostile.give("/b", listing("m/x"))
    hostile.give("/b/m/x", given)
    started = time.monotonic()
    assert says in refused("DownloadFailed", "s3://b/m/", tmp_path)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:{port}/elsewhere",
        "http://localhost:2375/",
        "https://10.0.0.1/",
    ],
)
@pytest.mark.parametrize("path", ["/b/m/x", "/b"])
def test_a_store_sends_us_nowhere_else(hostile, tmp_path, location, path):
    with closing(Origin()) as other:
        hostile.give("/b", listing("m/x"))
        hostile.give(path, redirect(location.format(port=other.port), 307))
        assert "which is not the one that was named" in refused("DownloadFailed", "s3://b/m/", tmp_path)
        assert other.seen == []


def test_a_name_that_leads_to_a_metadata_service_is_not_asked(tmp_path, monkeypatch):
    for name, value in {"AWS_ENDPOINT_URL": "http://2852039166", "awsAnonymousCredential": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "169.254.169.254" in refused("DownloadFailed", "s3://b/m/", tmp_path)


def test_nobody_else_on_this_machine_gets_through_the_guard(origin):
    origin.give("/m", answer(BODY))
    place = ("127.0.0.1", origin.port)
    with closing(Guard(Allowed(frozenset((place,))), Patience())) as guard:
        port = int(guard.url.rpartition(":")[2])
        for head in ("", "Proxy-Authorization: Basic Z3VhcmQ6Z3VhcmQ=\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(f"GET {origin.url}/m HTTP/1.1\r\n{head}\r\n".encode())
                assert client.recv(100).startswith(b"HTTP/1.1 407 ")
        assert httpx.get(f"{origin.url}/m", proxy=guard.url).content == BODY
    assert origin.asked("/m") == 1


def test_a_listing_that_lies_about_a_size_is_refused_before_anything_is_written(hostile, tmp_path):
    hostile.give("/b", listing("m/x", size=1 << 60))
    assert "10737418240 are allowed" in refused("TooLarge", "s3://b/m/", tmp_path)
    hostile.give("/b", listing("m/x", size="many"))
    assert "s3://b/m/" in refused("DownloadFailed", "s3://b/m/", tmp_path)


def test_the_bucket_is_in_the_host_where_a_store_wants_it_there(origin, tmp_path, monkeypatch):
    # its name is nobody's on this machine, so a proxy is asked, which sees the whole address
    monkeypatch.setenv("http_proxy", origin.url)
    monkeypatch.setenv("S3_ENDPOINT", "store.example")
    monkeypatch.setenv("S3_USE_HTTPS", "0")
    monkeypatch.setenv("S3_USER_VIRTUAL_BUCKET", "true")
    origin.give("http://b.store.example/m", answer(b"abc", **STAMP))
    assert get("s3://b/m", tmp_path, NOW).size == 3
    assert {headers["host"] for _, headers in origin.seen} == {"b.store.example"}


def test_fetching_ends_when_it_is_told_to(hostile, tmp_path):
    hostile.give("/b", listing("m/x"))
    hostile.give("/b/m/x", silent(answer(b"a", length=3, **STAMP)))
    command = [sys.executable, "-P", "-m", "server.storage", "s3://b/m/", str(tmp_path / "m")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while not hostile.asked("/b/m/x"):
        assert time.monotonic() < end
        threading.Event().wait(0.01)
    process.terminate()
    started = time.monotonic()
    process.wait(40)
    assert time.monotonic() - started < 5
    assert files(tmp_path / "m") == {}


# Google's and Azure's stores: no emulator of theirs comes as a package, so this server speaks what we ask of them


def blobs(*names: str) -> bytes:
    entries = "".join(
        f"<Blob><Name>{name}</Name><Properties><Last-Modified>Tue, 24 Nov 2026 16:00:00 GMT</Last-Modified><Etag>e</Etag>"
        "<Content-Length>3</Content-Length><Content-Type>x</Content-Type></Properties></Blob>"
        for name in names
    )
    return answer(f"<EnumerationResults><Blobs>{entries}</Blobs><NextMarker/></EnumerationResults>".encode())


def service_account() -> str:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    return json.dumps({"type": "service_account", "private_key": pem, "private_key_id": "i", "client_email": "me@p"})


@pytest.fixture
def google(origin, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", origin.url)
    # the whole key is one segment of the path there
    for key in ("m%2Fa", "m%2Fd%2Fb", "m-2%2Fc"):
        origin.give(f"/b/{key}", answer(b"abc", **STAMP))
    origin.give("/b", listing("m/", "m/a", "m/d/b", "m-2/c"))
    return origin


@pytest.fixture
def azure(origin, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{origin.url}/acct")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acct")
    for key in ("m/a", "m/d/b", "m-2/c"):
        origin.give(f"/acct/b/{key}", answer(b"abc", **STAMP))
    origin.give("/acct/b", blobs("m/a", "m/d/b", "m-2/c"))
    return origin


@pytest.mark.parametrize(
    ("environ", "signs"),
    [({}, ""), ({"GOOGLE_APPLICATION_CREDENTIALS": "{folder}/key.json"}, "Bearer "), ({"STORAGE_CONFIG": "{config}"}, "Bearer ")],
)
def test_google_s_store_is_asked_as_the_variables_say(google, tmp_path, monkeypatch, environ, signs):
    key = service_account()
    (tmp_path / "key.json").write_text(key)
    config = json.dumps({"type": "gs", "base64_service_account": base64.b64encode(key.encode()).decode()})
    for name, value in environ.items():
        monkeypatch.setenv(name, value.replace("{folder}", str(tmp_path)).replace("{config}", config))
    get("gs://b/m", tmp_path / "m", NOW)
    assert files(tmp_path / "m") == {"a": b"abc", "d/b": b"abc"}
    get("gs://b/m/a", tmp_path / "a", NOW)
    assert files(tmp_path / "a") == {"a": b"abc"}
    assert all(headers.get("authorization", "")[:7] == signs for _, headers in google.seen)


@pytest.mark.parametrize(
    ("environ", "header", "query"),
    [
        ({}, "", ""),
        ({"AZURE_STORAGE_ACCESS_KEY": base64.b64encode(b"k" * 32).decode()}, "SharedKey acct:", ""),
        ({"AZURE_STORAGE_SAS_TOKEN": "?sig=canary-of-a-secret"}, "", "sig=canary-of-a-secret"),
    ],
)
def test_azure_s_store_is_asked_as_the_variables_say(azure, tmp_path, monkeypatch, environ, header, query):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    get("az://b/m", tmp_path / "m", NOW)
    assert files(tmp_path / "m") == {"a": b"abc", "d/b": b"abc"}
    get("az://b/m/a", tmp_path / "a", NOW)
    assert files(tmp_path / "a") == {"a": b"abc"}
    assert all(headers.get("authorization", "").startswith(header) and query in path for path, headers in azure.seen)
    azure.give("/acct/b/gone", status(403))
    azure.give("/acct/b", status(403))
    assert "az://b/gone may not be read" in refused("DownloadFailed", "az://b/gone", tmp_path / "gone")


@pytest.mark.parametrize(
    ("uri", "environ", "says"),
    [
        ("gs://b/m", {"GOOGLE_APPLICATION_CREDENTIALS": "/gone.json"}, "the credentials in /gone.json are not there"),
        ("gs://b/m", {"GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "canary-of-a-secret"}'}, "is not of the form that it has to have"),
        ("az://b/m", {"AZURE_STORAGE_ACCESS_KEY": "canary-of-a-secret"}, "is not of the form that it has to have"),
        ("az://b/m", {"AZURE_STORAGE_ACCOUNT_NAME": ""}, "set AZURE_STORAGE_ACCOUNT_NAME"),
        ("s3://b/m", {"AWS_ROLE_ARN": "r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/gone"}, "the credentials in /gone are not there"),
    ],
)  # fmt: skip
def test_credentials_that_can_not_be_used_are_told_of(google, azure, tmp_path, monkeypatch, uri, environ, says):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert says in refused("DownloadFailed", uri, tmp_path)


# without the library


def test_where_the_library_is_missing_that_is_said(tmp_path):
    blocked = "import sys; sys.modules['obstore'] = None; import server.storage.__main__ as m; sys.exit(m.main())"
    done = subprocess.run([sys.executable, "-c", blocked, "s3://b/m", str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'obstore', which is not installed; run: pip install 'serveplane[storage]'" in done.stderr


@pytest.mark.parametrize("uri", ["{folder}/m.bin", "file://{folder}/m.bin", "{http}/m.bin"])
def test_other_models_do_not_load_the_library(origin, tmp_path, uri):
    (tmp_path / "m.bin").write_bytes(BODY)
    origin.give("/m.bin", answer(BODY))
    program = (
        "import sys; from server import storage; storage.fetch(sys.argv[1]); print([n for n in sys.modules if 'obstore' in n])"
    )
    command = [sys.executable, "-c", program, uri.format(folder=tmp_path, http=origin.url)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
