"""How far a download is, for a person who looks on: one line that is written over, and gone when it is done."""

import time
from typing import TextIO

from server.storage.addresses import shown
from server.storage.area import Progress

# Between two looks at a line, in seconds.
EVERY = 0.1


def line(stream: TextIO | None, uri: str) -> Progress:
    """Progress that writes to `stream`, and does nothing where that is no terminal."""
    if stream is None or not stream.isatty():
        return lambda done, total: None
    written = 0.0

    def progress(done: int, total: int | None) -> None:
        nonlocal written
        now, is_done = time.monotonic(), done == total
        if is_done or now - written >= EVERY:
            written = now
            so_far = f"{done / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB, {100 * done // max(total, 1)} %" if total else " MB")
            # the line is cut before it would wrap, and cleared at its end
            stream.write("\r\x1b[K" + ("" if is_done else f"fetching {shown(uri)[-40:]}: {so_far}"))
            stream.flush()

    return progress
