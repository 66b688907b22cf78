"""The model cache with real files, real child processes and a real server: one copy of each content, which never changes."""

import hashlib
import http.server
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deployer.local.cache import Cache, FetchError

EXAMPLES = Path(__file__).parents[2] / "examples"
BODY = bytes(range(256)) * 500
SUM = hashlib.sha256(BODY).hexdigest()


class Server:
    """Serves `files` with an ETag; what is in `held` waits after its first half until it is let go."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.seen: list[tuple[str, int]] = []
        self.held: dict[str, threading.Event] = {}
        self.waiting = threading.Semaphore(0)
        ours = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                ours._answer(self)

            def log_message(self, *_) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        body = self.files.get(path)
        etag = f'"{hashlib.md5(body or b"").hexdigest()}"'
        code = 404 if body is None else 304 if request.headers["if-none-match"] == etag else 200
        self.seen.append((path, code))
        body = body if code == 200 and body is not None else b""
        request.send_response(code)
        request.send_header("content-length", str(len(body)))
        request.send_header("etag", etag)
        request.end_headers()
        try:
            request.wfile.write(body[: len(body) // 2])
            if path in self.held:
                self.waiting.release()
                self.held[path].wait(30)
            request.wfile.write(body[len(body) // 2 :])
        except OSError:
            pass

    def close(self) -> None:
        for event in self.held.values():
            event.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    one = Server()
    yield one
    one.close()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def incoming(tmp_path) -> list[Path]:
    return list((tmp_path / "cache" / "incoming").iterdir())


class Fetching(threading.Thread):
    """A fetch in a thread of its own; `result()` is what came of it."""

    def __init__(self, cache: Cache, uri: str) -> None:
        super().__init__(daemon=True)
        self.cancelled, self.progress, self._call = threading.Event(), [], lambda: cache.fetch(uri, self._see, self.cancelled)
        self.start()

    def _see(self, done, total) -> None:
        self.progress.append((done, total))

    def run(self) -> None:
        try:
            self._found, self._error = self._call(), None
        except BaseException as error:
            self._error = error

    def result(self):
        self.join(30)
        assert not self.is_alive()
        if self._error:
            raise self._error
        return self._found


MODELS = ["iris.skops", "external.onnx", "two-signatures", "python/model.py:Sentiment", "two-signatures/saved_model.pb"]


@pytest.mark.parametrize("name", MODELS)
def test_a_local_model_is_kept_with_its_name_and_found_again(cache, name):
    model = cache.fetch(str(EXAMPLES / name))
    assert model.path.name == Path(name).name
    assert model.path.parent.name == model.digest.removeprefix("sha256:")
    assert cache.path(model.digest, model.path.name) == model.path
    assert cache.size() == model.size


def test_what_a_model_reads_beside_it_is_kept_beside_it(cache):
    onnx = cache.fetch(str(EXAMPLES / "external.onnx")).path
    assert onnx.with_name("external.weights").read_bytes() == (EXAMPLES / "external.weights").read_bytes()
    code = cache.fetch(str(EXAMPLES / "python" / "model.py:Sentiment")).path
    assert code.with_name("lexicon.tsv").exists()


def test_a_kept_model_stays_as_it_was_when_its_file_is_overwritten(cache, tmp_path):
    file = tmp_path / "m.skops"
    file.write_bytes(b"old")
    old = cache.fetch(str(file))
    file.write_bytes(b"new!")
    new = cache.fetch(str(file))
    assert old.path.read_bytes() == b"old"
    assert new.path.read_bytes() == b"new!"
    assert old.digest == f"sha256:{hashlib.sha256(b'old').hexdigest()}"


def test_the_same_content_is_kept_once_whatever_its_uri(cache, server, tmp_path):
    server.files["/c.onnx"] = BODY
    (tmp_path / "a.onnx").write_bytes(BODY)
    (tmp_path / "b.onnx").write_bytes(BODY)
    uris = [str(tmp_path / "a.onnx"), f"file://{tmp_path}/b.onnx", f"{server.url}/c.onnx", str(tmp_path / "a.onnx")]
    models = [cache.fetch(uri) for uri in uris]
    assert {m.digest for m in models} == {f"sha256:{SUM}"}
    assert [m.path.name for m in models] == ["a.onnx", "b.onnx", "c.onnx", "a.onnx"]
    assert [m.path.read_bytes() for m in models] == [BODY] * 4
    assert cache.size() == len(BODY)
    assert len({m.path.stat().st_ino for m in models}) == 1


def test_a_folder_under_two_names_and_in_an_archive_is_kept_once(cache, tmp_path):
    (tmp_path / "other").symlink_to(EXAMPLES / "two-signatures")
    subprocess.run(["cp", "-r", EXAMPLES / "two-signatures", tmp_path / "copy"], check=True)
    subprocess.run(["tar", "czf", tmp_path / "m.tar.gz", "-C", EXAMPLES, "two-signatures"], check=True)
    models = [cache.fetch(str(p)) for p in (tmp_path / "copy", EXAMPLES / "two-signatures", tmp_path / "m.tar.gz")]
    assert len({m.digest for m in models}) == 1
    assert [m.path.name for m in models] == ["copy", "two-signatures", "two-signatures"]
    assert all((m.path / "saved_model.pb").exists() for m in models)
    assert cache.size() == models[0].size


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("iris.skops", "iris.skops"),
        ("iris.skops", "other.skops"),
        ("iris.skops", "iris.skops?signature=1"),
        ("iris.skops", f"iris.skops#sha256={SUM}"),
        ("two-signatures", "archive.tar.gz"),
        ("python/model.py:Sentiment", "model.py:Sentiment"),
        ("external.onnx", "external.onnx"),
    ],
)
def test_a_model_is_found_by_the_last_part_of_its_uri(cache, uri, name):
    model = cache.fetch(str(EXAMPLES / uri))
    assert cache.path(model.digest, name) == model.path


@pytest.mark.parametrize("name", ["other.onnx", "..", "../..", "/etc/passwd", "", "external.weights/x"])
def test_one_of_several_files_is_only_found_by_its_name(cache, name):
    assert cache.path(cache.fetch(str(EXAMPLES / "external.onnx")).digest, name) is None


@pytest.mark.parametrize("digest", [f"sha256:{SUM}", "sha256:../../etc", "sha256:", "", "md5:12"])
def test_what_is_not_here_has_no_path(cache, digest):
    assert cache.path(digest, "m.onnx") is None
    assert (cache.size(), cache.remove_unused(set(), 0)) == (0, 0)


# http


def test_a_model_behind_http_comes_with_progress_and_again_only_when_it_has_changed(cache, server):
    server.files["/m.onnx"] = BODY
    seen: list = []
    first = cache.fetch(f"{server.url}/m.onnx", lambda done, total: seen.append((done, total)))
    assert first.digest == f"sha256:{SUM}"
    assert seen[-1] == (len(BODY), len(BODY))
    assert cache.fetch(f"{server.url}/m.onnx") == first
    server.files["/m.onnx"] = BODY[:-1]
    assert cache.fetch(f"{server.url}/m.onnx").digest != first.digest
    assert [code for _, code in server.seen] == [200, 304, 200]


def test_what_was_removed_is_downloaded_again(cache, server):
    server.files["/m.onnx"] = BODY
    first = cache.fetch(f"{server.url}/m.onnx")
    assert cache.remove_unused(set(), 0) == len(BODY)
    assert cache.fetch(f"{server.url}/m.onnx") == first
    assert [code for _, code in server.seen] == [200, 200]


def test_a_model_with_a_checksum_that_is_here_needs_no_server(cache, server):
    server.files["/m.onnx"] = BODY
    uri = f"{server.url}/m.onnx#sha256={SUM}"
    first = cache.fetch(uri)
    assert cache.fetch(uri) == first
    assert len(server.seen) == 1
    server.files["/m.onnx"] = BODY + b"!"
    with pytest.raises(FetchError) as caught:
        cache.fetch(f"{server.url}/m.onnx#sha256={'0' * 64}")
    assert caught.value.reason == "ChecksumMismatch"


@pytest.mark.parametrize(
    ("uri", "reason", "says"),
    [
        ("URL/gone.onnx", "NotFound", "there is nothing at"),
        ("URL/folder/", "DownloadFailed", "HTTP has no way to list one"),
        ("URL/empty.onnx", "DownloadFailed", "is empty"),
        ("URL/m.zip", "BadArchive", "damaged, or no archive"),
        ("URL/m.tar.zst", "BadArchive", "is not unpacked"),
        ("http://169.254.169.254/x", "DownloadFailed", "hand out credentials"),
        ("http://me:secret@169.254.169.254/x?secret", "DownloadFailed", "http://169.254.169.254/x?…"),
        ("hf://owner/m", "UnsupportedScheme", "hf://"),
        ("/gone.onnx", "NotFound", "no model found at"),
        ("/dev/zero", "Unreadable", "neither a file nor a folder"),
    ],
)
def test_a_failure_has_a_reason_and_leaves_nothing(cache, server, tmp_path, uri, reason, says):
    server.files |= {"/empty.onnx": b"", "/m.zip": b"x" * 100, "/m.tar.zst": b"x"}
    with pytest.raises(FetchError) as caught:
        cache.fetch(uri.replace("URL", server.url))
    assert caught.value.reason == reason, caught.value.message
    assert says in caught.value.message
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message
    assert cache.size() == 0
    assert incoming(tmp_path) == []


@pytest.mark.parametrize("uri", ["URL/m.onnx", "FILE"])
def test_a_model_may_be_as_large_as_allowed_and_no_larger(server, tmp_path, uri):
    server.files["/m.onnx"] = BODY
    (tmp_path / "m.onnx").write_bytes(BODY)
    uri = uri.replace("URL", server.url).replace("FILE", str(tmp_path / "m.onnx"))
    assert Cache(tmp_path / "a", max_bytes=len(BODY)).fetch(uri).size == len(BODY)
    with pytest.raises(FetchError) as caught:
        Cache(tmp_path / "b", max_bytes=len(BODY) - 1).fetch(uri)
    assert caught.value.reason == "TooLarge"


def test_no_process_list_shows_the_uri(cache, server):
    server.files["/m.onnx"] = BODY
    server.held["/m.onnx"] = threading.Event()
    fetching = Fetching(cache, server.url.replace("//", "//me:secret@") + "/m.onnx")
    assert server.waiting.acquire(timeout=20)
    shown = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children()]
    assert any(b"server.storage" in line for line in shown)
    assert not any(b"secret" in line for line in shown)
    server.held["/m.onnx"].set()
    assert fetching.result().size == len(BODY)


def children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


# many at once


def test_threads_that_want_the_same_share_one_download(cache, server):
    server.files["/m.onnx"] = BODY
    server.held["/m.onnx"] = threading.Event()
    all_of_them = [Fetching(cache, f"{server.url}/m.onnx") for _ in range(5)]
    assert server.waiting.acquire(timeout=20)
    server.held["/m.onnx"].set()
    assert {f.result().path for f in all_of_them} == {cache.path(f"sha256:{SUM}", "m.onnx")}
    # one whose thread started late may have asked again, and got no second copy
    assert [code for _, code in server.seen].count(200) == 1


def test_a_failure_is_everybodys(cache, server):
    server.held["/gone.onnx"] = threading.Event()
    all_of_them = [Fetching(cache, f"{server.url}/gone.onnx") for _ in range(3)]
    assert server.waiting.acquire(timeout=20)
    server.held["/gone.onnx"].set()
    for one in all_of_them:
        with pytest.raises(FetchError, match="there is nothing at"):
            one.result()


def test_a_cancelled_download_ends_and_leaves_nothing(cache, server, tmp_path):
    server.files["/m.onnx"] = BODY
    server.held["/m.onnx"] = threading.Event()
    before = set(children())
    fetching = Fetching(cache, f"{server.url}/m.onnx")
    assert server.waiting.acquire(timeout=20)
    fetching.cancelled.set()
    with pytest.raises(FetchError) as caught:
        fetching.result()
    assert caught.value.reason == "Cancelled"
    assert incoming(tmp_path) == []
    assert cache.size() == 0
    assert set(children()) <= before


def test_a_cancelled_one_does_not_take_the_download_from_others(cache, server):
    server.files["/m.onnx"] = BODY
    server.held["/m.onnx"] = threading.Event()
    first = Fetching(cache, f"{server.url}/m.onnx")
    assert server.waiting.acquire(timeout=20)
    second, third = (Fetching(cache, f"{server.url}/m.onnx") for _ in range(2))
    # who only waits gives up alone
    third.cancelled.set()
    with pytest.raises(FetchError, match="cancelled"):
        third.result()
    assert first.is_alive()
    # and where the one that downloads gives up, another goes on
    first.cancelled.set()
    with pytest.raises(FetchError, match="cancelled"):
        first.result()
    assert server.waiting.acquire(timeout=20)
    server.held["/m.onnx"].set()
    assert second.result().size == len(BODY)


FETCH = """
import sys
from pathlib import Path
from deployer.local.cache import Cache
print(Cache(Path(sys.argv[1])).fetch(sys.argv[2]).path)
"""


def test_processes_that_share_a_cache_find_one_copy(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.onnx").write_bytes(BODY)
    run = [sys.executable, "-P", "-c", FETCH, tmp_path / "cache"]
    uris = [tmp_path / name / "m.onnx" for name in "abab"]
    started = [subprocess.Popen([*run, uri], stdout=subprocess.PIPE, text=True) for uri in uris]
    paths = {process.communicate(timeout=60)[0].strip() for process in started}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == BODY
    assert Cache(tmp_path / "cache").size() == len(BODY)
    assert incoming(tmp_path) == []


# what is thrown away


def test_only_what_nobody_uses_and_is_old_enough_is_removed(cache, tmp_path):
    models = []
    for name in ("kept", "old", "fresh"):
        (tmp_path / name).write_text(name)
        models.append(cache.fetch(str(tmp_path / name)))
    kept, old, fresh = models
    for model in (kept, old):
        os.utime(model.path.parent, (0, time.time() - 1000))
    assert cache.remove_unused({kept.digest}, older_than=600) == len("old")
    assert [cache.path(m.digest, m.path.name) is not None for m in models] == [True, False, True]
    # fetching it makes it new again
    os.utime(fresh.path.parent, (0, time.time() - 1000))
    cache.fetch(fresh.uri)
    assert cache.remove_unused({kept.digest}, older_than=600) == 0
    assert incoming(tmp_path) == []


def test_what_dead_processes_left_is_removed_and_what_living_ones_fetch_is_not(cache, server, tmp_path):
    server.files["/m.onnx"] = BODY
    server.held["/m.onnx"] = threading.Event()
    fetching = Fetching(cache, f"{server.url}/m.onnx")
    assert server.waiting.acquire(timeout=20)
    dead = tmp_path / "cache" / "incoming" / "dead"
    dead.mkdir()
    (dead / "half").write_bytes(BODY)
    Cache(tmp_path / "cache").remove_unused(set(), 0)
    assert not dead.exists()
    server.held["/m.onnx"].set()
    assert fetching.result().path.read_bytes() == BODY


# faults


def test_a_killed_child_is_a_failure_with_a_text(cache, server, tmp_path):
    server.files["/m.onnx"] = BODY
    server.held["/m.onnx"] = threading.Event()
    before = set(children())
    fetching = Fetching(cache, f"{server.url}/m.onnx")
    assert server.waiting.acquire(timeout=20)
    for pid in set(children()) - before:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(FetchError, match=r"ended by signal 9 \(Killed\)") as caught:
        fetching.result()
    assert caught.value.reason == "DownloadFailed"
    assert incoming(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder that holds less than 2 MiB, as in the tests of `server.storage`."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True, check=False)
    if mounted.returncode == 0:
        yield folder
        subprocess.run(["umount", "-l", folder], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_leaves_what_was_there_and_recovers(small_disk, server, tmp_path):
    cache = Cache(small_disk)
    server.files |= {"/m.onnx": BODY, "/large.onnx": bytes(3 << 20), "/large.tgz": packed(tmp_path)}
    kept = cache.fetch(f"{server.url}/m.onnx")
    (tmp_path / "large.onnx").write_bytes(bytes(3 << 20))
    for uri in (f"{server.url}/large.onnx", f"{server.url}/large.tgz", str(tmp_path / "large.onnx")):
        with pytest.raises(FetchError) as caught:
            cache.fetch(uri)
        assert caught.value.reason == "DiskFull", caught.value.message
        assert list((small_disk / "incoming").iterdir()) == []
    assert kept.path.read_bytes() == BODY
    server.files["/large.onnx"] = bytes(1000)
    assert cache.fetch(f"{server.url}/large.onnx").size == 1000


def packed(folder: Path) -> bytes:
    (folder / "m").mkdir()
    (folder / "m" / "data").write_bytes(bytes(3 << 20) + os.urandom(60_000))
    return subprocess.run(["tar", "cz", "-C", folder, "m"], capture_output=True, check=True).stdout


def test_a_cache_that_can_not_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FetchError) as caught:
        Cache(tmp_path / "file").fetch(str(EXAMPLES / "iris.skops"))
    assert caught.value.reason == "Unwritable"
