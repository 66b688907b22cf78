"""A model's URI → a path on this machine: bounded, verified, and never half of it.

`fetch` is for a predictor: a local model is served where it lies, a remote one is kept in the user's cache folder
(`$XDG_CACHE_HOME/serveplane/models`, or `~/.cache/…`), and only downloaded again when its server has another one.

`python -m server.storage URI DIR` (`bring.get`) is for an init container and the deployer's cache: it copies or downloads
into a folder.  Everything is written out of sight, counted, hashed and synced, and then renamed to its place.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from server.errors import FetchFailed
from server.storage import local_files
from server.storage.addresses import shown
from server.storage.uri import MAX_BYTES, MAX_SECONDS, Source, check, parse


def fetch(
    uri: str,
    downloads: Path | None = None,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
    private: bool = True,
) -> Path:
    """The local path of a model; ModelLoadError where it can't be had.

    `downloads` is where those are kept; they are no larger, and take no longer, than the limits say.  Without `private` an
    http(s) server has to be a public one.
    """
    source = parse(uri)
    if source.path is None:
        folder = downloads or _downloads()
        try:
            return _kept(source, folder, max_bytes, max_seconds, private)
        except OSError as error:
            raise FetchFailed(
                "Unwritable", f"{folder} can't be used: {error.strerror}", "check its permissions and disk"
            ) from error
    # whoever opens a pipe waits for its other end
    if os.path.exists(source.path) and not os.path.isfile(source.path) and not os.path.isdir(source.path):
        raise local_files.no_file(source.path)
    if source.sha256:
        check(source.sha256, local_files.sha256(source.path), uri)
    return source.path


def _downloads() -> Path:
    # where a machine keeps such things is its own convention, as is $TMPDIR, and no setting of ours
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = base / "serveplane" / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="serve-models-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="serve-models-"))


def _kept(source: Source, folder: Path, max_bytes: int, max_seconds: float, private: bool) -> Path:
    """The copy of a remote URI in `folder`, brought up to date.  Other processes wait for the one that downloads."""
    # the client and the archives are not kept in the memory of predictors whose model lies here
    from server.storage import terminal
    from server.storage.area import alone
    from server.storage.bring import Options, get

    home = folder / hashlib.sha256(source.uri.encode()).hexdigest()[:32]
    home.mkdir(parents=True, exist_ok=True)
    with alone(home):
        record = home / "record.json"
        path, digest, etag = _recorded(record, home)
        if path is not None and digest == f"sha256:{source.sha256}":
            return path
        target = home / f"{time.time_ns():x}"
        told = terminal.line(sys.stderr, source.uri)
        options = Options(max_bytes, max_seconds, source.sha256, etag if path is not None else "", told, private=private)
        try:
            fetched = get(source.uri, target, options)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        if fetched is None:
            target.rmdir()
            assert path is not None
            return path
        if path is not None and fetched.digest == digest:
            # the same again, from a server without etags: others may be reading what is here
            shutil.rmtree(target, ignore_errors=True)
            return path
        relative = str(fetched.path.relative_to(home))
        new = home / "record.json.new"
        new.write_text(json.dumps({"path": relative, "digest": fetched.digest, "etag": fetched.etag}))
        new.rename(record)
        for old in home.iterdir():
            if old.is_dir() and old != target:
                shutil.rmtree(old, ignore_errors=True)
        fields = {"uri": shown(source.uri), "path": str(fetched.path), "bytes": fetched.size}
        logging.getLogger("serveplane").info("model downloaded", extra={"fields": fields})
        return fetched.path


def _recorded(record: Path, home: Path) -> tuple[Path | None, str, str]:
    try:
        known = json.loads(record.read_text())
        path = home / known["path"]
        return (path if path.exists() else None), str(known["digest"]), str(known["etag"])
    except (OSError, ValueError, KeyError):
        return None, "", ""
