"""Running estimates in a few words of memory, which forget what is long ago.

P² and t-digest answer for all that was ever seen; a backend is judged by how it is now, so old observations
have to lose their weight.
"""

from math import exp, log

_LEAST = 1e-9
_LEAST_STEP = 0.1


class Mean:
    """A mean of the last observations, `memory` of them or so, the latest with the most weight."""

    __slots__ = ("_memory", "count", "value")

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self.value = 0.0
        self.count = 0.0

    def add(self, observed: float) -> None:
        self.count = min(self.count + 1, self._memory)
        self.value += (observed - self.value) / self.count

    def fade(self, share: float) -> None:
        """Keep `share` of the weight of what was observed, so that what comes next weighs more."""
        self.count *= share


class Quantile:
    """The value that a `share` of the observations do not exceed; they are positive.

    Stochastic approximation on a logarithmic scale: up by `share` of a step, or down by the rest of it, which is in
    balance at the quantile. A step is a part of how far observations are from it.
    Source: Robbins and Monro, A Stochastic Approximation Method, 1951.
    """

    __slots__ = ("_distance", "_share", "value")

    def __init__(self, share: float) -> None:
        self._share = share
        self._distance = Mean(1 / _LEAST_STEP)
        self.value = 0.0

    def add(self, observed: float) -> None:
        observed = max(observed, _LEAST)
        if not self.value:
            self.value = observed
        distance = log(observed / self.value)
        self._distance.add(abs(distance))
        step = self._distance.value * max(_LEAST_STEP, 1 / self._distance.count)
        # Never past the observation, so that nothing is estimated that was not seen.
        if distance > 0:
            self.value = min(observed, self.value * exp(step * self._share))
        elif distance < 0:
            self.value = max(observed, self.value * exp(step * (self._share - 1)))

    def fade(self, share: float) -> None:
        """As `Mean.fade`."""
        self._distance.fade(share)
