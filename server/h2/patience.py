"""How long a peer may make us work for nothing (RFC 9113 §10.5).  Pure: the clock is an argument.

PING, SETTINGS, RST_STREAM, empty DATA and their like cost patience; answers earn it back, since honest clients send such
frames in proportion to what they ask.  Who uses it up is told to calm down.
"""

from collections.abc import Callable

from server.h2.frames import Code, ConnectionFault

# So much is lent in so many seconds, beside what is earned, and so much can be saved.
LENT, SECONDS = 1000, 10.0
MOST = 4 * LENT


class Patience:
    """With one peer.  `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left, self._since = LENT, clock()

    def earn(self, amount: int) -> None:
        if self._left < MOST:
            self._left += amount

    def spend(self) -> None:
        """ConnectionFault where there is none left."""
        self._left -= 1
        if self._left < 0:
            now = self._clock()
            if now - self._since < SECONDS:
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")
            self._left, self._since = LENT, now
