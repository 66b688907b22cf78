"""Whether a run was good enough: pure, from its figures and what was asked of them."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Of one run; milliseconds, requests a second."""

    requests: int
    failures: int
    rate: float
    p50: float
    p95: float
    p99: float
    longest: float


@dataclass(frozen=True)
class Limits:
    """None asks for nothing.  `failures` is a share, 0.01 for one in a hundred."""

    failures: float = 0.0
    p99: float | None = None
    rate: float | None = None


def shortcomings(found: Figures, limits: Limits) -> Iterator[str]:
    """A line for each limit that was not kept; none: the run was good."""
    if not found.requests:
        yield "no request was answered; is the service there?"
        return
    share = found.failures / found.requests
    if share > limits.failures:
        yield f"{found.failures} of {found.requests} requests failed ({share:.2%}), at most {limits.failures:.2%} may"
    if limits.p99 is not None and found.p99 > limits.p99:
        yield f"99 % were answered within {found.p99:.1f} ms, wanted: {limits.p99:g} ms"
    if limits.rate is not None and found.rate < limits.rate:
        yield f"{found.rate:.1f} requests a second, wanted: {limits.rate:g}"


def percentile(ordered: list[float], share: float) -> float:
    """Of sorted values; 0 where there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
