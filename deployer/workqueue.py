"""Keys that wait for work: each once, never in two hands, and later the more often it failed."""

import heapq
import random
import threading
import time
from collections.abc import Callable

# At the longest as often as what is well is looked at.
FIRST, LONGEST = 0.2, 30.0


def pause(first: float, longest: float, failures: int) -> float:
    """Seconds to wait after so many failures in a row, doubling from `first`; also where they went on for weeks."""
    return min(longest, first * 2.0 ** min(failures - 1, 60))


class WorkQueue:
    """A queue of keys for several threads; `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random) -> None:
        self._clock, self._jitter = clock, jitter
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._busy: set[str] = set()
        self._failures: dict[str, int] = {}
        self._closed = False
        self._changed = threading.Condition()

    def add(self, key: str, after: float = 0.0) -> None:
        """Have `key` worked on in `after` seconds, or earlier where that was asked before."""
        at = self._clock() + after
        with self._changed:
            if key not in self._due or at < self._due[key]:
                self._due[key] = at
                heapq.heappush(self._heap, (at, key))
                self._changed.notify_all()

    def take(self) -> str | None:
        """The next key that is due, waiting for it; None once the queue is closed.  Give it back with `done`."""
        with self._changed:
            while not self._closed:
                wait = self._until_next()
                if wait is not None and wait <= 0:
                    _, key = heapq.heappop(self._heap)
                    del self._due[key]
                    self._busy.add(key)
                    return key
                self._changed.wait(wait)
            return None

    def _until_next(self) -> float | None:
        """Seconds until a key is due; None while there is none that may be taken."""
        held: list[tuple[float, str]] = []
        try:
            while self._heap:
                at, key = self._heap[0]
                if self._due.get(key) != at:
                    heapq.heappop(self._heap)
                elif key in self._busy:
                    held.append(heapq.heappop(self._heap))
                else:
                    return at - self._clock()
            return None
        finally:
            for entry in held:
                heapq.heappush(self._heap, entry)

    def done(self, key: str, failed: bool = False) -> None:
        """`key` has been worked on; where that failed it comes back by itself, with a growing pause."""
        with self._changed:
            self._busy.discard(key)
            failures = self._failures.pop(key, 0) + 1 if failed else 0
            if failures:
                self._failures[key] = failures
            else:
                self._failures.pop(key, None)
            self._changed.notify_all()
        if failures:
            self.add(key, pause(FIRST, LONGEST, failures) * (0.5 + self._jitter() / 2))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
