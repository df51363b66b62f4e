"""What a place at a self-run application is worth, while places are scarce: the shadow price of its capacity.

Up to half of its capacity it is free. From there on the price rises with the load, and what it rises to is in two
parts: the request's own `reference`, which is what the best hosted backend would make worse, and `mu`, the price of
work that a controller raises while the application is nearly full, as DESIGN's mu <- [mu + eta (rho - rho*)]+.

* Below capacity the first part stays below the reference, so a request does not leave for it: all that fits stays.
* At capacity the price is just above the reference, so that exactly what would queue leaves, where it can.
* The second part makes requests leave a little earlier that save little for the work they are: the last places are
  kept for those that would be dear elsewhere. Where all save as much, `mu` is no more than that, and nobody does.

The load is what is in flight now, so that each request of a burst sees those before it.
"""

from meritorder.routing.estimates import Mean

_FREE_UP_TO = 0.5
_TARGET_LOAD = 0.9
_RATE = 1.0
"""How fast `mu` rises towards what work saves, per second and 1.0 of load: within ten seconds when full, and down in
one when idle. A burst is too short for it, which is what the load itself is for."""

_OVERLOAD_SLOPE = 0.01
_JUST_ABOVE = 1e-9
"""US dollars: the least with which an order is decided, and less than any request costs."""


class ShadowPrice:
    """Of one self-run application. `now` is in seconds on one monotonic clock, prices are in US dollars.

    `capacity` is how many requests it serves at once, `in_flight` how many it has.
    """

    __slots__ = ("_at", "_level", "_load", "_saving")

    def __init__(self) -> None:
        self._level = 0.0  # mu, as a share of what work saves on average
        self._load = 0.0  # since `_at`
        self._at: float | None = None
        self._saving = Mean(memory=100)

    def observe(self, in_flight: int, capacity: int | None, now: float, saving: float | None = None) -> None:
        """A request came or went, and so many are there now.

        `saving` is that of the attempt that came (`Attempt.saving`): US dollars per unit of work.
        """
        self._level = self._level_at(now)
        self._load = 0.0 if capacity is None else in_flight / max(1, capacity)
        self._at = now if self._at is None else max(self._at, now)
        if saving is not None:
            self._saving.add(saving)

    def mu(self, now: float) -> float:
        """US dollars per unit of work."""
        return self._level_at(now) * self._saving.value

    def price(self, reference: float, work: float, in_flight: int, capacity: int | None, now: float) -> float:
        """What one more request, of so much `work`, has to be worth; `reference` is what going elsewhere costs it."""
        if capacity is None:
            return 0.0
        load = in_flight / max(1, capacity)
        if load <= _FREE_UP_TO and load < 1:
            return 0.0
        priced_work = self.mu(now) * work
        if load >= 1:
            return max(reference, priced_work) * (1 + _OVERLOAD_SLOPE * (load - 1)) + _JUST_ABOVE * load
        scarcity = ((load - _FREE_UP_TO) / (1 - _FREE_UP_TO)) ** 4
        return scarcity * max(reference / 2, priced_work)

    def _level_at(self, now: float) -> float:
        if self._at is None:
            return 0.0
        elapsed = max(0.0, now - self._at)
        return min(1.0, max(0.0, self._level + _RATE * (self._load - _TARGET_LOAD) * elapsed))
