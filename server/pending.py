"""A result to come whose waiter goes on at once when it is there, and not in another turn of the event loop."""

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """A future, for one result of many that are there together: what a turn of the loop for each costs is saved.

    Whoever has added a callback is called within `set_result`; an exception of theirs goes to the loop's handler and stops nobody
    else.  Tasks, which give a context, go on in a turn of their own, since one may not begin within another.
    """

    __slots__ = ("_asyncio_future_blocking", "_callbacks", "_error", "_is_done", "_loop", "_result")

    # asyncio.gather reads it
    _cancel_message: str | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # how asyncio knows a future when it sees one, and that it is waited for
        self._asyncio_future_blocking = False
        self._callbacks: list[tuple[Callable[[Pending[T]], object], Context | None]] = []
        self._is_done = False
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._is_done

    def cancelled(self) -> bool:
        return self._is_done and isinstance(self._error, asyncio.CancelledError)

    def result(self) -> T:
        if not self._is_done:
            raise asyncio.InvalidStateError("the result is not there yet")
        if self._error is not None:
            raise self._error
        result: T = self._result
        return result

    def exception(self) -> BaseException | None:
        """CancelledError is raised, as a future does it."""
        if isinstance(self._error, asyncio.CancelledError):
            raise self._error
        return self._error

    def set_result(self, result: T) -> None:
        self._result: T = result
        self._end()

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._end()

    def cancel(self, msg: object = None) -> bool:
        """False where there is a result already."""
        if self._is_done:
            return False
        self._error = asyncio.CancelledError()
        self._end()
        return True

    def add_done_callback(self, callback: Callable[["Pending[T]"], object], *, context: Context | None = None) -> None:
        if self._is_done:
            # whoever adds it is not ready for it yet
            self._loop.call_soon(callback, self, context=context)
        else:
            self._callbacks.append((callback, context))

    def remove_done_callback(self, callback: Callable[["Pending[T]"], object]) -> int:
        """How many there were of it."""
        left = [one for one in self._callbacks if one[0] != callback]
        removed = len(self._callbacks) - len(left)
        self._callbacks[:] = left
        return removed

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def __await__(self) -> Generator["Pending[T]", None, T]:
        if not self._is_done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def _end(self) -> None:
        self._is_done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback, context in callbacks:
            if context is not None:
                self._loop.call_soon(callback, self, context=context)
                continue
            try:
                callback(self)
            except Exception as error:
                self._loop.call_exception_handler({"message": f"a waiter failed: {callback!r}", "exception": error})
