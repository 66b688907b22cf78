"""A coroutine run without a Task, for calls that are answered within a turn or two of the event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Work:
    """A coroutine that is begun at once and goes on when what it waits for is there: a Task that costs no turns of the loop.

    Enough of one for our calls: `asyncio.timeout` and `current_task` need a real one.
    """

    __slots__ = ("_coroutine", "_done", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], done: Callable[[Any], None] | None = None) -> None:
        """`done` is given what the coroutine returns."""
        self._coroutine, self._done = coroutine, done
        self._waits_for: asyncio.Future[Any] | None = None
        self._go_on()

    def cancel(self) -> None:
        """Let the coroutine know that nobody wants what it makes; does nothing where it has come to its end."""
        if self._waits_for is not None:
            self._waits_for.cancel()

    def _go_on(self, future: "asyncio.Future[Any] | None" = None) -> None:
        self._waits_for = None
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration as end:
            if self._done is not None:
                self._done(end.value)
            return
        except asyncio.CancelledError:
            return
        # as a Task does it: `await` has marked the future as waited for, and looks whether somebody took care of it
        waits_for._asyncio_future_blocking = False
        waits_for.add_done_callback(self._go_on)
        self._waits_for = waits_for
