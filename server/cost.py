"""What a batch of a model costs: measured at load, corrected by what is seen."""

import time
from collections.abc import Callable
from typing import Any, Protocol


class Cost:
    """How long a batch takes: `fixed + per_row * rows` seconds from the probe at load, corrected by what is seen."""

    def __init__(self, fixed: float, per_row: float) -> None:
        self.fixed, self.per_row, self.scale = fixed, per_row, 1.0

    def of(self, rows: int) -> float:
        return (self.fixed + self.per_row * rows) * self.scale

    def observe(self, rows: int, seconds: float) -> None:
        expected = self.fixed + self.per_row * rows
        if expected > 0:
            # one slow outlier (a page fault, a busy neighbour) must not move a model off the event loop
            self.scale += 0.1 * (min(seconds / expected, self.scale * 4) - self.scale)


class Probe(Protocol):
    """Runs a prediction of that many made-up rows once."""

    def __call__(self, rows: int) -> Any: ...


def measure(probe: Probe, clock: Callable[[], float] = time.perf_counter) -> Cost:
    """What a batch costs, from runs of 1 and 16 rows (the best of a few: the rest is noise)."""

    def best(rows: int) -> float:
        runs = []
        for _ in range(3):
            started = clock()
            probe(rows)
            runs.append(clock() - started)
            if runs[-1] > 0.25:
                break
        return min(runs)

    one, many = best(1), best(16)
    per_row = max(0.0, (many - one) / 15)
    return Cost(max(one - per_row, 1e-6), per_row)
