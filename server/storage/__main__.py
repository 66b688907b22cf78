"""`python -m server.storage URI DIR ...`: bring a model, or several, to this machine, and say how it went.

`python -m server.storage --sha256-of PATH` says the checksum of a file or a folder that is here.
"""

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from server.errors import FetchFailed
from server.storage import local_files, terminal
from server.storage.area import Progress
from server.storage.bring import Options, get
from server.storage.uri import MAX_BYTES, MAX_SECONDS

# Between two reports of progress, in seconds.
REPORT_EVERY = 0.1


def main() -> int:
    """0 it is there, 1 it could not be had (one line on stderr), 2 asked wrongly."""
    if sys.argv[1:2] == ["--sha256-of"]:
        return _checksums(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m server.storage",
        description="Bring a model to this machine.",
        epilog="python -m server.storage --sha256-of PATH ... prints the checksums of files and folders that are here.",
    )
    parser.add_argument(
        "uri",
        metavar="URI",
        help="a path, file://, http(s)://, s3://, gs:// or az://; - reads it from stdin, which no process list shows",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="the folder to put it into")
    parser.add_argument("more", metavar="URI DIR", nargs="*", help="more of them, one after the other, each to its own folder")
    parser.add_argument("--max-bytes", type=int, default=MAX_BYTES, metavar="N", help="the largest model (default: %(default)s)")
    parser.add_argument(
        "--max-seconds", type=float, default=MAX_SECONDS, metavar="S", help="the longest it may take (default: %(default)s)"
    )
    parser.add_argument("--sha256", default="", metavar="HEX", help="the checksum that the file or the folder must have")
    parser.add_argument("--etag", default="", help="of the copy you have: do nothing if the server has the same")
    parser.add_argument("--progress", action="store_true", help="JSON lines on stdout, the last one says how it ended")
    given = parser.parse_args()
    if given.sha256 and not re.fullmatch("[0-9A-Fa-f]{64}", given.sha256):
        parser.error(f"--sha256 takes 64 hex digits, got {given.sha256!r}")
    if len(given.more) % 2:
        parser.error(f"{given.more[-1]!r} has no folder to go to; give URI and DIR for each")
    if given.more and (given.sha256 or given.etag):
        parser.error("--sha256 and --etag are of one model; bring the others by themselves")
    # an exception, so that nothing is left behind
    signal.signal(signal.SIGTERM, _stop)
    tell = _tell if given.progress else _quiet
    options = Options(given.max_bytes, given.max_seconds, given.sha256, given.etag)
    pairs = [(given.uri, given.directory), *zip(given.more[::2], map(Path, given.more[1::2]), strict=True)]
    return next((code for uri, directory in pairs if (code := _bring(uri, directory, options, tell))), 0)


def _checksums(paths: list[str]) -> int:
    """Lines as sha256sum has them, for folders too."""
    try:
        for path in paths:
            print(f"{local_files.sha256(Path(path))}  {path}")
    except FetchFailed as error:
        print("serve:", error, file=sys.stderr)
        return 1
    return 0 if paths else 2


def _bring(uri: str, directory: Path, options: Options, tell: Callable[..., None]) -> int:
    uri = sys.stdin.readline().rstrip("\n") if uri == "-" else uri
    progress = terminal.line(sys.stderr, uri) if tell is _quiet else _now_and_then(tell)
    try:
        fetched = get(uri, directory, replace(options, progress=progress))
    except FetchFailed as error:
        tell(reason=error.reason, message=str(error))
        print("serve:", *str(error).split(), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # whoever wanted to know is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    if fetched is None:
        tell(unchanged=True)
    else:
        size, etag = fetched.size, fetched.etag
        tell(path=str(fetched.path), name=fetched.name, digest=fetched.digest, size=size, etag=etag)
    return 0


def _stop(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _tell(**line: object) -> None:
    print(json.dumps(line), flush=True)


def _quiet(**line: object) -> None:
    pass


def _now_and_then(tell: Callable[..., None]) -> Progress:
    told = 0.0

    def progress(done: int, total: int | None) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= REPORT_EVERY or done == total:
            told = now
            tell(done=done, total=total)

    return progress


def _end() -> NoReturn:
    """End as `main` says, at once: Python would first wait for threads that wait for a server."""
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    _end()
