"""One process's slice of a minute's requests or tokens.

A minute is a fixed window: of the epoch, so that all processes agree on it. What is granted of it is never given back,
so the sum of all slices is all that can be used, and what is left of them ends with the minute.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

from meritorder.admission.recent import Recent
from meritorder.admission.sharing import Ask
from meritorder.core.pricing import EXACT

MINUTE = 60.0


def window_of(moment: float) -> float:
    """When the minute that `moment` lies in began; both in seconds since the epoch."""
    return moment // MINUTE * MINUTE


class Rate:
    """`window` is the minute that the numbers are of. `left` is what nobody had been granted of it at the last
    exchange; None: not known yet."""

    def __init__(self) -> None:
        self.window = 0.0
        self.left: int | None = None
        self._granted = 0
        self._used = 0
        self._waiting: list[int] = []
        self._recent = Recent(EXACT.add)

    def available(self, window: float) -> int:
        """What can be used of this minute; negative where answers were longer than reserved."""
        return self._granted - self._used if window == self.window else 0

    def hopeless(self, amount: int, window: float) -> bool:
        """Whether this minute certainly has not so much left for anybody."""
        return window == self.window and self.left is not None and amount > self.available(window) + self.left

    def remaining(self, window: float, limit: int) -> int:
        """What is left of this minute for anybody, as far as this process knows; all of it where nobody asked yet."""
        if window != self.window or self.left is None:
            return limit
        return max(0, min(limit, self.available(window) + self.left))

    def use(self, amount: int, window: float, now: float) -> None:
        """Take what is available; the caller has looked."""
        self._used += amount
        self._recent.note(now, Decimal(amount))

    def settle(self, reserved: int, used: int, window: float) -> None:
        """Correct what was taken of the minute `window` by what was used. Of a minute that is over, nothing is kept."""
        if window == self.window:
            self._used += used - reserved

    @contextmanager
    def waiting(self, amount: int) -> Iterator[None]:
        """Let the next exchange know that a request waits for this."""
        self._waiting.append(amount)
        try:
            yield
        finally:
            self._waiting.remove(amount)

    def ask(self, window: float, now: float) -> Ask | None:
        """What is wanted of the minute `window`, in an exchange that begins `now`; None where there is enough."""
        available, waiting = self.available(window), sum(self._waiting)
        wish = 2 * (waiting + int(self._recent.total(now))) - available
        return Ask(wish, max(0, waiting - available)) if wish > 0 else None

    def take(self, grant: int, left: int, window: float) -> None:
        """The exchange is committed, and has granted this of the minute `window`."""
        if window != self.window:
            if window < self.window:
                return
            self.window, self._granted, self._used = window, 0, 0
        self._granted += grant
        self.left = left
