"""How many batches of a model have run, of how many rows, and how long they took."""

from typing import NamedTuple


class OfSize(NamedTuple):
    """Batches of one number of rows; `seconds` of all of them."""

    batches: int
    seconds: float


class BatchCounts:
    """Counted at each batch's end.  `weighted` are the batches' seconds, each times the requests that it was of.

    `last` is when a batch last began, on `time.monotonic`'s clock, and 0 for never.
    """

    __slots__ = ("_sizes", "failed_rows", "last", "weighted")

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[int, float]] = {}
        self.weighted = self.last = 0.0
        self.failed_rows = 0

    def add(self, rows: int, requests: int, started: float, seconds: float) -> None:
        batches, before = self._sizes.get(rows, (0, 0.0))
        self._sizes[rows] = batches + 1, before + seconds
        self.weighted += seconds * requests
        self.last = started

    @property
    def sizes(self) -> dict[int, OfSize]:
        """By the number of rows, in order."""
        return {rows: OfSize(*self._sizes[rows]) for rows in sorted(self._sizes)}

    @property
    def batches(self) -> int:
        return sum(batches for batches, _ in self._sizes.values())

    @property
    def answered_rows(self) -> int:
        return sum(rows * batches for rows, (batches, _) in self._sizes.items()) - self.failed_rows
