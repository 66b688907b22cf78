"""A model into a folder: what is taken along, what is refused, what a person is told, and that nothing half-made is seen."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server import storage
from server.errors import FetchFailed, ModelLoadError
from server.storage import area, local_files
from server.storage.bring import Options, get
from server.storage.download import Patience
from server.storage.uri import parse
from tests.server.storage.origin import answer, redirect, silent, status

EXAMPLES = Path(__file__).parents[3] / "examples"
NOW = Patience(pause=0.0, tries=3)
BODY = bytes(range(256)) * 1000
SUM = hashlib.sha256(BODY).hexdigest()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(reason: str, *args) -> str:
    with pytest.raises(FetchFailed) as caught:
        get(*args)
    assert caught.value.reason == reason, str(caught.value)
    return str(caught.value)


# URIs


@pytest.mark.parametrize(
    ("uri", "path", "sha256"),
    [
        ("iris.skops", "iris.skops", ""),
        ("/data/a b#c?d.onnx", "/data/a b#c?d.onnx", ""),
        ("file:///data/a%20b.onnx", "/data/a b.onnx", ""),
        ("FILE://localhost/data/m.onnx", "/data/m.onnx", ""),
        (f"/data/m.onnx#sha256={SUM.upper()}", "/data/m.onnx", SUM),
        (f"file:///data/m.onnx#sha256={SUM}", "/data/m.onnx", SUM),
        ("/data/m.onnx#sha256=12", "/data/m.onnx#sha256=12", ""),
        ("model.py:Class", "model.py:Class", ""),
    ],
)
def test_a_local_uri_is_a_path_and_perhaps_a_checksum(uri, path, sha256):
    source = parse(uri)
    assert (source.path, source.sha256) == (Path(path), sha256)


def test_a_path_may_start_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("~/m.onnx").path == Path("/home/me/m.onnx")


@pytest.mark.parametrize(
    ("uri", "reason", "says"),
    [
        (
            "s3://key:secret@bucket/m?sig=secret",
            "UnsupportedScheme",
            "s3://bucket/m?… has something before an @; credentials come",
        ),
        ("s3://bucket/m#sha256=12", "ChecksumMismatch", "give 64 hex digits"),
        (
            "hf://owner/model",
            "UnsupportedScheme",
            "the Hugging Face hub is not built; download the model (hf download OWNER/MODEL",
        ),
        ("pvc://claim/m", "UnsupportedScheme", "is mounted by Kubernetes, and never fetched; deploy to a cluster"),
        ("gopher://h/m", "UnsupportedScheme", "the scheme gopher:// is not known; download"),
        ("file://me:secret@server/share/m", "UnsupportedScheme", "a file URI has three slashes"),
        ("http://h/m#sha256=12", "ChecksumMismatch", "give 64 hex digits"),
    ],
)
def test_a_uri_that_names_nothing_here_is_refused(uri, reason, says):
    with pytest.raises(FetchFailed) as caught:
        parse(uri)
    assert caught.value.reason == reason
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


# what belongs to a local model


@pytest.fixture
def tree(tmp_path):
    """Folders and files by a list of lines: "name", "name -> target", or "name=content"."""

    def make(*lines: str) -> Path:
        for line in lines:
            name, arrow, target = line.partition(" -> ")
            name, _, content = name.partition("=")
            path = tmp_path / "models" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if arrow:
                path.symlink_to(target)
            else:
                path.write_text(content or name)
        return tmp_path / "models"

    return make


CHOSEN = [
    ("one file", ["m.skops", "other.skops"], "m.skops", ["m.skops"]),
    ("a link to a file", ["m.skops -> data/v1", "data/v1"], "m.skops", ["m.skops"]),
    ("a folder", ["m/a", "m/d/b", "m/.git/x", "m/__pycache__/y"], "m", ["a", "d/b"]),
    ("a link to a folder", ["m -> v1", "v1/a"], "m", ["a"]),
    ("links inside of a folder", ["m/a -> d/b", "m/d/b", "m/e -> d"], "m", ["a", "d/b", "e/b"]),
    ("a loop of links", ["m/a", "m/d/up -> ../d", "m/d/b"], "m", ["a", "d/b"]),
    ("a saved model by its file", ["m/saved_model.pb", "m/variables/v"], "m/saved_model.pb", ["saved_model.pb", "variables/v"]),
    ("a class", ["m/model.py", "m/words.tsv", "m/pkg/x.py"], "m/model.py:Model", ["model.py", "pkg/x.py", "words.tsv"]),
    ("code", ["m/model.py", "m/words.tsv", "m/env/pyvenv.cfg", "m/env/lib/x.py"], "m/model.py", ["model.py", "words.tsv"]),
    ("a file with a colon", ["m/model.py:Odd", "m/other"], "m/model.py:Odd", ["model.py:Odd"]),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "named", "expected"), [c[1:] for c in CHOSEN], ids=[c[0] for c in CHOSEN])
def test_what_belongs_to_a_model_is_taken_along(tree, tmp_path, lines, named, expected):
    path = tree(*lines) / named
    found = get(str(path), tmp_path / "target")
    assert sorted(files(tmp_path / "target")) == expected
    assert found.name == (path.name if path.name != "m" else path.resolve().name)
    assert found.size == sum(len(content) for content in files(tmp_path / "target").values())


@pytest.mark.parametrize(
    ("lines", "named", "reason", "says"),
    [
        (["x"], "m.skops", "NotFound", "no model found at"),
        (["x"], "x/m.skops", "NotFound", "no model found at"),
        (["x"], "model.py:Model", "NotFound", "no model found at"),
        (["m.skops -> gone"], "m.skops", "NotFound", "is a link to gone, and nothing is there"),
        (["m/a", "m/b -> gone"], "m", "NotFound", "is a link to gone, and nothing is there"),
        (["m/a", "m/b -> ../secret", "secret"], "m", "Unreadable", "leads out of the model's folder"),
        (["m/a", "m/b -> /etc"], "m", "Unreadable", "leads out of the model's folder (to /etc)"),
        (["m/a", "m/b -> ../../models-not", "m/c"], "m", "Unreadable", "leads out"),
        (["m/.hidden"], "m", "Unreadable", "holds no files with anything in them"),
    ],
)
def test_what_can_not_be_taken_is_said(tree, tmp_path, lines, named, reason, says):
    assert says in refused(reason, str(tree(*lines) / named), tmp_path / "target")
    assert files(tmp_path / "target") == {}


def test_pipes_sockets_and_devices_are_no_models_and_nobody_waits_for_them(tree, tmp_path, monkeypatch):
    folder = tree("m/a")
    os.mkfifo(folder / "pipe.skops")
    os.mkfifo(folder / "m" / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)
        listener.bind("socket.onnx")
        for name in ("pipe.skops", "socket.onnx", "m"):
            assert "neither a file nor a folder" in refused("Unreadable", str(folder / name), tmp_path / "target")
    assert "neither a file nor a folder" in refused("Unreadable", "/dev/zero", tmp_path / "target")
    with pytest.raises(ModelLoadError, match="neither a file nor a folder"):
        storage.fetch(str(folder / "pipe.skops"))


def test_an_empty_file_is_no_model(tree, tmp_path):
    (tree("x") / "m.onnx").touch()
    assert "m.onnx is empty (0 bytes)" in refused("Unreadable", str(tmp_path / "models" / "m.onnx"), tmp_path / "target")


def test_an_onnx_model_brings_the_weights_that_it_names(tmp_path):
    found = get(str(EXAMPLES / "external.onnx"), tmp_path)
    assert sorted(files(tmp_path)) == ["external.onnx", "external.weights"]
    assert found.path == tmp_path / "external.onnx"


def entry(location: str) -> bytes:
    """A tensor's entry of external data as protobuf writes it."""
    text = location.encode()
    size = bytes([len(text)]) if len(text) < 128 else bytes([len(text) & 0x7F | 0x80, len(text) >> 7])
    return b"\x0a\x08location\x12" + size + text


@pytest.mark.parametrize(
    ("location", "taken"),
    [
        ("w", True),
        ("deep/w", True),
        ("./w", True),
        ("l" * 200, True),
        ("gone", False),
        ("../secret", False),
        ("/etc/passwd", False),
        ("deep", False),
        ("", False),
        ("deep/../../secret", False),
    ],
)
def test_only_weights_in_the_models_folder_are_taken(tree, tmp_path, location, taken):
    folder = tree("m/w", "m/deep/w", f"m/{'l' * 200}", "secret")
    # across the border of two pieces
    (folder / "m" / "m.onnx").write_bytes(bytes(local_files.CHUNK - 7) + entry(location) + b"rest")
    get(str(folder / "m" / "m.onnx"), tmp_path / "target")
    assert sorted(files(tmp_path / "target")) == sorted(["m.onnx", *([os.path.normpath(location)] if taken else [])])


def test_weights_behind_a_link_are_taken_where_the_model_lies_there_too(tree, tmp_path):
    """As download caches have it: links to files that lie side by side."""
    folder = tree("snap/m.onnx -> ../blobs/1", "snap/w -> ../blobs/2", "snap/bad -> ../secret", "blobs/1", "blobs/2", "secret")
    (folder / "blobs" / "1").write_bytes(entry("w"))
    get(str(folder / "snap" / "m.onnx"), tmp_path / "target")
    assert files(tmp_path / "target") == {"m.onnx": entry("w"), "w": b"blobs/2"}
    (folder / "blobs" / "1").write_bytes(entry("bad"))
    assert "leads out of the model's folder" in refused("Unreadable", str(folder / "snap" / "m.onnx"), tmp_path / "other")


def test_a_file_that_changes_while_it_is_copied_is_not_taken(tree, tmp_path, monkeypatch):
    path = tree("m.skops") / "m.skops"
    path.write_bytes(BODY)

    def grow(done, total):
        with path.open("ab") as file:
            file.write(b"more")

    assert "changed while it was copied" in refused("Unreadable", str(path), tmp_path / "target", Options(progress=grow))
    assert files(tmp_path / "target") == {}


def test_a_copy_does_not_change_with_its_original(tree, tmp_path):
    path = tree("m.skops=old") / "m.skops"
    found = get(str(path), tmp_path / "target")
    path.write_text("new")
    assert found.path.read_text() == "old"
    assert found.path.stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("count", [3, 4])
def test_folders_with_very_many_files_are_refused(tree, tmp_path, monkeypatch, count):
    monkeypatch.setattr(local_files, "MAX_FILES", 3)
    folder = tree(*(f"m/{n}" for n in range(count)))
    if count == 3:
        get(str(folder / "m"), tmp_path / "target")
    else:
        assert "more than 3 files" in refused("TooLarge", str(folder / "m"), tmp_path / "target")


def test_code_in_a_folder_of_much_else_is_refused(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(local_files, "MAX_NEIGHBOURS_BYTES", 10)
    folder = tree("m/model.py=1", "m/data=0123456789")
    assert "put the class and what it needs into a folder of its own" in refused(
        "TooLarge", str(folder / "m/model.py:M"), tmp_path / "t"
    )


# digests


def test_the_digest_of_a_file_is_that_of_sha256sum_and_of_a_folder_that_of_its_lines(tree, tmp_path):
    folder = tree("m/b=2", "m/a/c=1")
    found = get(str(folder / "m"), tmp_path / "t1")
    lines = "".join(f"{hashlib.sha256(c).hexdigest()}  {n}\n" for n, c in (("a/c", b"1"), ("b", b"2")))
    assert found.digest == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert get(str(folder / "m/b"), tmp_path / "t2").digest == f"sha256:{hashlib.sha256(b'2').hexdigest()}"


# over HTTP


def test_a_model_behind_http_is_whole_verified_and_named(origin, tmp_path):
    seen: list = []
    url = origin.give("/models/iris.skops", status(503), answer(BODY, etag='"1"'))
    found = get(f"{url}#sha256={SUM}", tmp_path, Options(progress=lambda done, total: seen.append((done, total)), patience=NOW))
    assert found.path == tmp_path / "iris.skops"
    assert found.path.read_bytes() == BODY
    assert (found.digest, found.size, found.etag) == (f"sha256:{SUM}", len(BODY), '"1"')
    assert seen[-1] == (len(BODY), len(BODY))
    assert [p.name for p in tmp_path.iterdir()] == ["iris.skops"]


@pytest.mark.parametrize(
    ("sent", "options", "reason", "says"),
    [
        (answer(BODY[:-1] + b"x"), Options(sha256=SUM), "ChecksumMismatch", f"and {SUM} was wanted"),
        (answer(BODY), Options(max_bytes=len(BODY) - 1), "TooLarge", "255999 are allowed"),
        (answer(BODY, length=""), Options(max_bytes=len(BODY) - 1), "TooLarge", "more than the 255999 bytes"),
        (answer(b"", length=1 << 58), Options(max_bytes=1 << 59), "DiskFull", "make room"),
        (
            answer(BODY[:-1], length=len(BODY)),
            Options(patience=NOW),
            "DownloadFailed",
            "after 255999 of 256000 bytes (tried 3 times)",
        ),
        (answer(b""), Options(), "DownloadFailed", "is empty"),
        (status(404), Options(), "NotFound", "there is nothing at"),
        (redirect("http://169.254.169.254/x"), Options(), "DownloadFailed", "credentials"),
    ],
    ids=["checksum", "length", "counted", "no space", "truncated", "empty", "404", "redirect"],
)
def test_a_download_that_fails_leaves_nothing(origin, tmp_path, sent, options, reason, says):
    (tmp_path / "m.onnx").write_text("old")
    assert says in refused(reason, origin.give("/m.onnx", sent), tmp_path, options)
    assert files(tmp_path) == {"m.onnx": b"old"}


def test_the_largest_allowed_model_is_taken(origin, tmp_path):
    assert get(origin.give("/m.onnx", answer(BODY, length="")), tmp_path, Options(max_bytes=len(BODY))).size == len(BODY)


def test_a_server_without_a_newer_one_leaves_the_folder_alone(origin, tmp_path):
    url = origin.give("/m.onnx", status(304))
    assert get(url, tmp_path, Options(etag='"1"')) is None
    assert files(tmp_path) == {}
    # a copy with that etag may be another than the one with this checksum
    origin.give("/m.onnx", answer(BODY))
    assert get(url, tmp_path, Options(etag='"1"', sha256=SUM)).digest == f"sha256:{SUM}"
    assert "if-none-match" not in origin.seen[-1][1]


def test_an_archive_behind_http_is_unpacked(origin, tmp_path):
    packed = subprocess.run(["tar", "cz", "-C", str(EXAMPLES), "two-signatures"], capture_output=True, check=True).stdout
    found = get(origin.give("/m.tar.gz", answer(packed)), tmp_path / "a")
    assert found.path == tmp_path / "a" / "two-signatures"
    assert found.digest == get(str(EXAMPLES / "two-signatures"), tmp_path / "b").digest


def test_what_a_killed_process_left_is_swept_away(origin, tmp_path):
    (tmp_path / ".incoming-dead").mkdir()
    (tmp_path / ".incoming-dead" / "download").write_bytes(BODY)
    get(origin.give("/m.onnx", answer(BODY)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


# disks


@pytest.mark.parametrize("length", [3 << 20, ""], ids=["said", "not said"])
def test_a_full_disk_is_named_and_empty_again_afterwards(origin, small_disk, length):
    url = origin.give("/m.onnx", answer(bytes(3 << 20), length=length))
    refused("DiskFull", url, small_disk, Options(patience=NOW))
    assert list(small_disk.iterdir()) == []
    assert origin.asked("/m.onnx") == 1
    # and it recovers when there is room
    assert get(origin.give("/small.onnx", answer(BODY)), small_disk).size == len(BODY)


def test_a_disk_that_fills_up_while_unpacking_or_copying_is_empty_again(tmp_path, small_disk):
    (tmp_path / "m").mkdir()
    # an archive of this is small, and so is what it may grow to by its ratio
    (tmp_path / "m" / "data").write_bytes(bytes(3 << 20) + os.urandom(60_000))
    subprocess.run(["tar", "czf", tmp_path / "m.tgz", "-C", tmp_path, "m"], check=True)
    for model in ("m", "m.tgz"):
        refused("DiskFull", str(tmp_path / model), small_disk)
        assert list(small_disk.iterdir()) == []


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "can't be written" in refused("Unwritable", str(EXAMPLES / "iris.skops"), tmp_path / "file" / "target")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(28, "DiskFull"), (122, "DiskFull"), (27, "DiskFull"), (13, "Unwritable"), (30, "Unwritable"), (5, "Unwritable")],
)
def test_errors_of_writing_have_reasons(number, reason):
    assert area.unwritable(Path("/d"), OSError(number, os.strerror(number))).reason == reason


# what a predictor does


def test_a_local_model_is_served_where_it_lies(tmp_path):
    path = str(EXAMPLES / "iris.skops")
    assert storage.fetch(path) == Path(path)
    assert storage.fetch(f"file://{path}") == Path(path)
    assert storage.fetch("gone.skops") == Path("gone.skops")
    with pytest.raises(ModelLoadError, match="was wanted"):
        storage.fetch(f"{path}#sha256={SUM}")


def test_a_downloaded_model_is_kept_until_its_server_has_another(origin, tmp_path):
    url = origin.give("/iris.skops", answer(b"v1", etag='"1"'), status(304), answer(b"v2", etag='"2"'))
    first = storage.fetch(url)
    assert first.is_relative_to(tmp_path / "xdg" / "serveplane" / "models")
    assert (first.name, first.read_bytes()) == ("iris.skops", b"v1")
    assert storage.fetch(url) == first
    assert storage.fetch(url).read_bytes() == b"v2"
    assert [h.get("if-none-match") for _, h in origin.seen] == [None, '"1"', '"1"']
    assert len(list((tmp_path / "xdg").rglob("*.skops"))) == 1


def test_a_model_with_a_checksum_that_is_here_is_not_asked_for(origin):
    url = origin.give("/m.onnx", answer(BODY), status(500)) + f"#sha256={SUM}"
    assert storage.fetch(url) == storage.fetch(url)
    assert len(origin.seen) == 1


def test_the_same_model_from_a_server_without_etags_stays_where_it_is(origin, tmp_path):
    url = origin.give("/m.onnx", answer(BODY))
    assert storage.fetch(url, tmp_path) == storage.fetch(url, tmp_path)
    assert len(list(tmp_path.rglob("m.onnx"))) == 1


def test_a_folder_for_downloads_that_can_not_be_used_is_named(origin, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelLoadError, match="file can't be used"):
        storage.fetch(origin.give("/m.onnx", answer(BODY)), tmp_path / "file")


def test_a_failed_download_keeps_what_was_there(origin, tmp_path):
    url = origin.give("/m.onnx", answer(BODY, etag='"1"'), status(404), status(304))
    first = storage.fetch(url, tmp_path)
    with pytest.raises(ModelLoadError, match="there is nothing at"):
        storage.fetch(url, tmp_path)
    assert storage.fetch(url, tmp_path) == first
    assert first.read_bytes() == BODY


# the command


def test_several_are_brought_one_after_the_other_and_the_first_that_fails_ends_it(origin, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
    pairs = [word for name in ("one", "two") for word in (tmp_path / f"{name}.onnx", tmp_path / name)]
    assert command(*pairs).returncode == 0
    assert sorted(path.read_bytes() for name in ("one", "two") for path in (tmp_path / name).iterdir()) == [b"one", b"two"]
    done = command(tmp_path / "none.onnx", tmp_path / "three", *pairs)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for wrong, text in (((*pairs, "/left/over"), "has no folder to go to"), ((*pairs, "--etag=x"), "of one model")):
        done = command(*wrong)
        assert (done.returncode, text in done.stderr) == (2, True)


def command(*args: object, **options) -> subprocess.CompletedProcess:
    run = [sys.executable, "-P", "-m", "server.storage", *map(str, args)]
    return subprocess.run(run, capture_output=True, text=True, check=False, timeout=60, **options)


def test_the_command_tells_its_progress_and_its_end_in_json(origin, tmp_path):
    url = origin.give("/m.onnx", answer(BODY, etag='"1"'))
    done = command("-", tmp_path, "--progress", "--sha256", SUM, input=f"{url}\n")
    *progress, last = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0
    assert progress[-1] == {"done": len(BODY), "total": len(BODY)}
    path = str(tmp_path / "m.onnx")
    assert last == {"path": path, "name": "m.onnx", "digest": f"sha256:{SUM}", "size": len(BODY), "etag": '"1"'}
    origin.give("/m.onnx", status(304))
    assert command(url, tmp_path, "--progress", "--etag", '"1"').stdout == '{"unchanged": true}\n'


def test_the_command_says_in_one_line_why_not(origin, tmp_path):
    url = origin.give("/gone.onnx", status(404))
    done = command(url, tmp_path, "--progress")
    text = f"there is nothing at {url} (404 Not Found); check the URI's spelling"
    assert done.returncode == 1
    assert done.stderr == f"serve: {text}\n"
    assert json.loads(done.stdout) == {"reason": "NotFound", "message": text}
    quiet = command("/gone.onnx", tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr.count("\n")) == (1, "", 1)
    assert command(url, tmp_path, "--sha256", "12").returncode == 2
    assert command(url).returncode == 2


def test_a_terminated_command_leaves_nothing(origin, tmp_path):
    url = origin.give("/m.onnx", silent(answer(BODY, length=1 << 20)))
    run = [sys.executable, "-P", "-m", "server.storage", url, str(tmp_path), "--progress"]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["total"] == 1 << 20
        assert list(tmp_path.iterdir()) != []
        process.terminate()
        assert process.wait(20) == 143
    assert list(tmp_path.iterdir()) == []


def test_a_command_whose_reader_has_gone_ends(origin, tmp_path):
    url = origin.give("/m.onnx", answer(BODY))
    read, write = os.pipe()
    os.close(read)
    run = [sys.executable, "-P", "-m", "server.storage", url, str(tmp_path), "--progress"]
    done = subprocess.run(run, stdout=write, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
    assert list(tmp_path.iterdir()) == []


def test_the_command_imports_no_framework_and_no_server():
    code = "import sys, server.storage.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "fastapi", "pydantic", "orjson", "grpc", "httpx", "asyncio"} & set(loaded)


def test_a_predictor_of_a_local_model_loads_no_client():
    code = "import sys, server.storage; server.storage.fetch('x'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"http.client", "ssl", "zipfile", "tarfile"} & set(loaded)


def test_the_checksum_of_a_folder_is_one_that_sha256sum_makes_too(tree, tmp_path):
    folder = tree("m/b=2", "m/a/ü c=1", "m/.hidden=x", "m/__pycache__/p=x") / "m"
    lines = subprocess.run(
        "find . -type f -not -path '*/.*' -not -path '*/__pycache__/*' | cut -c3- | LC_ALL=C sort | xargs -d '\\n' sha256sum",
        cwd=folder, shell=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    made = hashlib.sha256(lines).hexdigest()
    done = command("--sha256-of", folder, folder / "b")
    assert done.stdout == f"{made}  {folder}\n{hashlib.sha256(b'2').hexdigest()}  {folder / 'b'}\n"
    assert get(f"{folder}#sha256={made}", tmp_path / "t").digest == f"sha256:{made}"
    assert storage.fetch(f"{folder}#sha256={made}") == folder
    (folder / "b").write_text("3")
    assert f"and {made} was wanted" in refused("ChecksumMismatch", f"{folder}#sha256={made}", tmp_path / "u")
    with pytest.raises(ModelLoadError, match=f"and {made} was wanted"):
        storage.fetch(f"{folder}#sha256={made}")
    missing = command("--sha256-of", tmp_path / "none")
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (1, "", 1)
    assert command("--sha256-of").returncode == 2
