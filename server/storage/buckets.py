"""A bucket's listing and bytes, by obstore: this file alone knows it, and only what is in a bucket needs it.

obstore asks again with back-off and jitter where a store is busy or a connection breaks.  What it must not decide is how
long, how much and from whom: that is checked here.
"""

import itertools
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from server.errors import FetchFailed
from server.storage import addresses, stores
from server.storage.download import LEAST, Patience
from server.storage.guard import TURNED_AWAY, Allowed, Guard
from server.storage.local_files import MAX_FILES
from server.storage.objects import Item, Listed, Part, parts
from server.storage.stores import Store

try:
    import obstore
    from obstore import exceptions
    from obstore.store import AzureStore, GCSStore, S3Store
except ImportError as error:
    raise FetchFailed(
        "UnsupportedScheme",
        "models in s3://, gs:// and az:// are fetched by the Python package 'obstore', which is not installed",
        "run: pip install 'serveplane[storage]' (here: scripts/install storage)",
    ) from error

# Requests at once, and parts asked for before they can be written: that many are in memory.
PARALLEL = 8
AHEAD = 2 * PARALLEL
_ERRORS = (exceptions.BaseError, FileNotFoundError, ValueError)
_DENIED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_CLASSES = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}


def with_profile(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables, and below them what the user's files for AWS say."""
    home = Path("~/.aws").expanduser()
    texts = [
        _text(Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials")),
        _text(Path(environ.get("AWS_CONFIG_FILE") or home / "config")),
    ]
    found = stores.profile(environ, *texts)
    if environ.get("AWS_ACCESS_KEY_ID"):
        # keys belong together
        found = {name: value for name, value in found.items() if name not in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    return {**found, **environ}


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


@contextmanager
def opened(store: Store, patience: Patience) -> Iterator["Bucket"]:
    with closing(Guard(_allowed(store), patience)) as guard:
        yield Bucket(store, patience, guard)


def _allowed(store: Store) -> Allowed:
    places = [addresses.parse(url) for url in (store.endpoint, *store.credentials)]
    endpoint, *credentials = [(place.host, place.port) for place in places]
    return Allowed(frozenset((endpoint,)), store.domains, frozenset(credentials))


class Bucket:
    """A store that is asked; whatever goes wrong there is a FetchFailed."""

    def __init__(self, store: Store, patience: Patience, guard: Guard) -> None:
        self._store, self._patience, self._guard = store, patience, guard
        _look_for_files(store)
        try:
            self._client: Any = _CLASSES[store.scheme](
                store.bucket,
                config=dict(store.config),
                client_options=_client_options(store, patience) | {"proxy_url": guard.url},
                retry_config=_retries(patience),
            )
        except _ERRORS:
            # its text may quote a key
            what = f"{store} can't be asked {store.identity}: a setting of the store is not of the form that it has to have"
            raise FetchFailed("DownloadFailed", what, store.remedy) from None

    def listing(self) -> list[Listed]:
        """The object of that key where there is one, else all below it; one more than are allowed where there are too many."""
        alone, hidden = self._one()
        if alone is not None and alone.size:
            return [alone]
        try:
            pages = obstore.list(self._client, prefix=self._store.key or None)
            found = list(itertools.islice((_listed(one) for page in pages for one in page), MAX_FILES + 1))
        except _ERRORS as error:
            raise self._failed(error) from error
        if not found and hidden is not None:
            raise self._failed(hidden) from hidden
        # an object `KEY/` stands for the folder, is called KEY here, and can't be had by that name
        found = [one for one in found if one.key != self._store.key]
        return found or ([] if alone is None else [alone])

    def _one(self) -> tuple[Listed | None, Exception | None]:
        """The object of exactly that key; where that may not be known, what the store says."""
        if self._store.is_folder:
            return None, None
        try:
            return _listed(obstore.head(self._client, self._store.key)), None
        except (exceptions.NotFoundError, FileNotFoundError):
            return None, None
        except _DENIED as error:
            # a store that does not let its keys be listed says this of one that is not there
            return None, error
        except _ERRORS as error:
            raise self._failed(error) from error

    @contextmanager
    def contents(self, items: Iterable[Item]) -> Iterator[Iterator[tuple[Item, Iterator[bytes]]]]:
        """The items one after the other with their bytes, which must be read before the next is asked for."""
        stopped = threading.Event()
        pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="fetch")
        try:
            planned = [(item, parts(item.object)) for item in items]
            fetched = _ahead(pool, (part for _, pieces in planned for part in pieces), lambda part: self._part(part, stopped))
            yield ((item, itertools.islice(fetched, len(pieces))) for item, pieces in planned)
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _part(self, part: Part, stopped: threading.Event) -> bytes:
        try:
            return self._read(part, stopped)
        except _ERRORS as error:
            raise self._failed(error) from error

    def _read(self, part: Part, stopped: threading.Event) -> bytes:
        wanted, data = part.end - part.start, bytearray()
        options: Any = {} if part.is_whole else {"range": (part.start, part.end)}
        result = obstore.get(self._client, part.object.key, options=options)
        found = _listed(result.meta)
        if (found.size, found.etag) != (part.object.size, part.object.etag):
            raise self._refused(f"{self._of(part)} changed while it was fetched", "try again once it is written")
        since, got = time.monotonic(), 0
        for chunk in result.stream(min_chunk_size=1):
            data += chunk
            got += len(chunk)
            if len(data) > wanted:
                raise self._refused(f"{self._of(part)} has more bytes than its store says", "upload it again")
            now = time.monotonic()
            if now - since > self._patience.stall:
                if got < LEAST:
                    raise self._refused(f"{self._of(part)}: only {got} bytes came in {now - since:.0f} s", "try again")
                since, got = now, 0
            if stopped.is_set():
                break
        if len(data) != wanted and not stopped.is_set():
            raise self._refused(f"{self._of(part)} ended after {len(data)} of {wanted} bytes", "try again")
        return bytes(data)

    def _of(self, part: Part) -> str:
        return f"{self._store.scheme}://{self._store.bucket}/{part.object.key}"

    def _refused(self, what: str, remedy: str) -> FetchFailed:
        return FetchFailed("DownloadFailed", what, remedy)

    def _failed(self, error: Exception) -> FetchFailed:
        if self._guard.refused is not None:
            return self._guard.refused
        if self._guard.turned_away is not None and TURNED_AWAY in str(error):
            return self._guard.turned_away
        if self._guard.unreached:
            what = f"{self._store}: {self._guard.unreached} (tried {self._patience.tries} times)"
            return FetchFailed("DownloadFailed", what, "check that the store and the network work, and its address")
        return failure(self._store, error, self._patience)


def _ahead(pool: ThreadPoolExecutor, jobs: Iterable[Part], fetch: Any) -> Iterator[bytes]:
    waiting: deque[Future[bytes]] = deque()
    for job in jobs:
        waiting.append(pool.submit(fetch, job))
        if len(waiting) >= AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _listed(meta: Mapping[str, Any]) -> Listed:
    # in a listing some stores leave out the quotes
    return Listed(meta["path"], meta["size"], (meta["e_tag"] or "").removeprefix("W/").strip('"'))


def _look_for_files(store: Store) -> None:
    """FetchFailed where a file with credentials is not there, which would be told of as if the store had failed."""
    for setting in ("application_credentials", "web_identity_token_file", "federated_token_file"):
        file = store.config.get(setting)
        if file and not os.access(file, os.R_OK):
            what = f"{store} can't be asked: the credentials in {file} are not there, or can't be read"
            raise FetchFailed("DownloadFailed", what, store.remedy)


def _client_options(store: Store, patience: Patience) -> dict[str, Any]:
    options: dict[str, Any] = {
        "allow_http": store.endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=patience.connect),
        "read_timeout": timedelta(seconds=patience.stall),
        # of a whole answer: a part is small, and may come slowly
        "timeout": timedelta(hours=1),
        "user_agent": "serveplane",
    }
    if not store.verify:
        options["allow_invalid_certificates"] = True
    elif store.authority:
        try:
            options["root_certificate"] = Path(store.authority).read_bytes()
        except OSError as error:
            what = f"the certificates in {store.authority} can't be read: {error.strerror}"
            raise FetchFailed("DownloadFailed", what, "correct AWS_CA_BUNDLE or SSL_CERT_FILE") from error
    return options


def _retries(patience: Patience) -> dict[str, Any]:
    return {
        "max_retries": patience.tries - 1,
        "backoff": {
            "init_backoff": timedelta(seconds=max(patience.pause, 0.001)),
            "max_backoff": timedelta(seconds=max(patience.longest, 0.001)),
            "base": 2,
        },
        "retry_timeout": timedelta(seconds=patience.tries * (patience.connect + patience.stall + patience.longest)),
    }


_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
# What obstore's texts say of why no answer came, and what to tell of it.
_CAUSES = (
    (r"redirect without LOCATION", "{host} has the bucket in another region", "set AWS_DEFAULT_REGION to that region"),
    (
        r"InvalidCertificate|invalid peer certificate",
        "the certificate of {host} is not accepted",
        "name the file with your authority's in AWS_CA_BUNDLE",
    ),
    (r"TimedOut|timed out|kind: Timeout", "{host} did not answer in time", "check that the store and the network work"),
)


def failure(store: Store, error: Exception, patience: Patience) -> FetchFailed:
    """What an error of obstore's means, without its text: that may hold a signed URL."""
    text = str(error)
    code = re.search(r"<Code>(\w{1,60})</Code>", text)
    status = re.search(r"status code: (\d{3} [A-Za-z -]{0,40}\w|\d{3})", text)
    answered = status[1] + (f", {code[1]}" if code else "") if status else ""
    if isinstance(error, _DENIED) or answered.startswith(("401", "403")):
        return FetchFailed("DownloadFailed", f"{store} may not be read {store.identity} ({answered})", store.remedy)
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError) or answered.startswith("404"):
        what = f"there is no bucket {store.bucket!r}" if code and code[1] in _NO_BUCKET else "there is nothing"
        return FetchFailed("NotFound", f"{store}: {what} at {store.endpoint} ({answered})", "check its spelling")
    if isinstance(error, exceptions.InvalidPathError):
        key = re.search(r'[Pp]ath "([^"]{1,100})', text)
        what = f"{store} holds an object whose key can't be a file's name" + (f" ({key[1]!r})" if key else "")
        return FetchFailed("DownloadFailed", what, "give the object a plain name")
    tried = f" (tried {patience.tries} times)" if re.search(r"after \d+ retries", text) else ""
    if answered:
        what = f"{store}: {store.endpoint} answered {answered}{tried}"
        return FetchFailed("DownloadFailed", what, "try again later, or look at the store's log")
    host = store.endpoint.partition("://")[2].partition("/")[0]
    for pattern, what, remedy in _CAUSES:
        if re.search(pattern, text):
            return FetchFailed("DownloadFailed", f"{store}: {what.format(host=host)}{tried}", remedy)
    said = re.sub(r"https?://\S+", "…", text.partition("\n")[0])[:200]
    return FetchFailed("DownloadFailed", f"{store}: {host} did not answer as a store does{tried}: {said}", "check its address")
