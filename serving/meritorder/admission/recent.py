"""How much was asked for just now: what a process leases ahead of its requests."""

from collections.abc import Callable
from decimal import Decimal

ZERO = Decimal(0)

SECONDS = 1.0
"""A lease that is idle for twice this is given back."""


class Recent:
    """What was noted in this second and the last, joined by `join`: their sum, or their maximum."""

    __slots__ = ("_join", "_last", "_second", "_this")

    def __init__(self, join: Callable[[Decimal, Decimal], Decimal]) -> None:
        self._join = join
        self._second = 0
        self._this = ZERO
        self._last = ZERO

    def note(self, now: float, amount: Decimal) -> None:
        self._turn(now)
        self._this = self._join(self._this, amount)

    def total(self, now: float) -> Decimal:
        self._turn(now)
        return self._join(self._last, self._this)

    def _turn(self, now: float) -> None:
        second = int(now // SECONDS)
        if second != self._second:
            self._last = self._this if second == self._second + 1 else ZERO
            self._this = ZERO
            self._second = second
