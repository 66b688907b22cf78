"""Which waiting requests go before others: lanes for those that were given a priority, beside the queues of all the rest.

Requests without one never come here, so that they pay nothing for it.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Queues = dict[Hashable, deque[T]]

# 1 goes first; this one, and whatever is beyond it, is the level of requests that name none.
LEVELS = 16
# Batches that may be begun in a row with requests that others have to wait for.
IN_A_ROW = 8


def level_of(parameters: Mapping[str, Any]) -> int:
    """The level that a request's parameters ask for, 0 where that is everyone's."""
    level = parameters.get("priority", 0)
    return level if type(level) is int and 0 < level < LEVELS else 0


class Lanes(Generic[T]):
    """Queues by level, of requests that go before those without one; true while there are any."""

    def __init__(self) -> None:
        self._levels: dict[int, Queues[T]] = {}
        self._in_a_row = 0

    def __bool__(self) -> bool:
        return bool(self._levels)

    def __iter__(self) -> Iterator[Queues[T]]:
        """The first to go first."""
        return iter([self._levels[level] for level in sorted(self._levels)])

    def queues(self, level: int) -> Queues[T]:
        return self._levels.setdefault(level, {})

    def tidy(self) -> None:
        """Forget levels at which nothing waits."""
        self._levels = {level: queues for level, queues in self._levels.items() if queues}

    def order(self, others: Queues[T]) -> list[Queues[T]]:
        """The queues in the order in which the next batch is filled, with `others` last.

        After so many batches in a row `others` are first for once: they are slower, and never stand still.
        """
        if not others:
            return list(self)
        self._in_a_row += 1
        if self._in_a_row > IN_A_ROW:
            self._in_a_row = 0
            return [others, *self]
        return [*self, others]
