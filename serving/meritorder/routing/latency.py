"""How soon a backend answers, from what was observed: by the length of the prompt, and by how much it has to do."""

from functools import lru_cache
from math import inf, log2

from meritorder.routing.estimates import Mean, Quantile

_MEMORY = 20.0
"""Observations that a mean is made of: few enough to follow a backend that slows down within seconds of traffic."""

_HALF_LIFE_SECONDS = 60.0
_FORGOTTEN_AFTER_SECONDS = 60.0
"""A backend that was slow gets no requests, and so no chance to be seen being fast: after this time without any, it
counts as unknown, and the next request finds out."""

_STEPS_PER_DOUBLING = 2
"""Of the load: enough to see where an objective is broken."""


class _Track:
    """`seen` is when there was news last, `added` when it was news that counts."""

    __slots__ = ("added", "mean", "p50", "p95", "seen")

    def __init__(self) -> None:
        self.mean = Mean(_MEMORY)
        self.p50 = Quantile(0.5)
        self.p95 = Quantile(0.95)
        self.seen = self.added = -inf

    def add(self, seconds: float, now: float) -> None:
        if self.mean.count and now > self.added:
            share: float = 0.5 ** ((now - self.added) / _HALF_LIFE_SECONDS)
            for estimate in (self.mean, self.p50, self.p95):
                estimate.fade(share)
        for estimate in (self.mean, self.p50, self.p95):
            estimate.add(seconds)
        self.seen = self.added = max(self.added, now)


class Latency:
    """Of one backend. All times are in seconds; `now` is on one monotonic clock.

    `in_flight` is always how many other requests its application had when this one was sent, and `concurrency` how
    many it serves at once (None: unknown). What had to queue says nothing on the backend itself, and is left out: the
    queue is predicted from its length.
    """

    __slots__ = ("_first", "_output", "_pace", "_seen", "_whole")

    def __init__(self) -> None:
        # By the logarithms of the prompt's tokens, and of the requests at once: a backend that is slow when it is busy
        # would never be tried again when it is not, if it were the same to us.
        self._first: dict[int, dict[int, _Track]] = {}
        self._pace: dict[int, _Track] = {}  # by that of the requests at once
        self._whole = Mean(_MEMORY)
        self._output = Mean(_MEMORY)
        self._seen = -inf

    def observe_first_token(
        self, seconds: float, *, prompt_tokens: int, in_flight: int, concurrency: int | None, now: float
    ) -> None:
        """Take note of a time to first token."""
        self._seen = max(self._seen, now)
        if seconds >= 0 and not _queues(in_flight, concurrency):
            loads = self._first.setdefault(prompt_tokens.bit_length(), {})
            loads.setdefault(_load(in_flight), _Track()).add(seconds, now)
        elif track := self._track(prompt_tokens, in_flight, now):
            track.seen = max(track.seen, now)

    def observe_rest(self, seconds: float, *, output_tokens: int, in_flight: int, now: float) -> None:
        """Take note of how long a stream took from its first token to its last."""
        self._output.add(output_tokens)
        if output_tokens > 1 and seconds >= 0:
            self._pace.setdefault(_load(in_flight), _Track()).add(seconds / (output_tokens - 1), now)

    def observe_whole(self, seconds: float, *, in_flight: int, concurrency: int | None) -> None:
        """Take note of how long a request took that was not streamed."""
        if seconds >= 0 and not _queues(in_flight, concurrency):
            self._whole.add(seconds)

    def predict(self, prompt_tokens: int, in_flight: int, concurrency: int | None, now: float) -> float | None:
        """The time to first token of one more request, the queue included; None: nothing is known."""
        track = self._track(prompt_tokens, in_flight, now)
        if track is None:
            return None
        first = track.mean.value
        if concurrency is None or in_flight < concurrency:
            return first
        # `concurrency` requests leave in the time that one takes; this one waits for its turn.
        turns = (in_flight - concurrency + 1) / max(1, concurrency)
        return first + turns * self._service(first, in_flight)

    def p50_ttft(self, prompt_tokens: int, in_flight: int = 0) -> float | None:
        """The median of the time to first token of such prompts, however long ago; None: nothing is known."""
        track = self._ever(prompt_tokens, in_flight)
        return None if track is None else track.p50.value

    def p95_ttft(self, prompt_tokens: int, in_flight: int = 0) -> float | None:
        """What 95 % of the times to first token of such prompts do not exceed, as `p50_ttft`."""
        track = self._ever(prompt_tokens, in_flight)
        return None if track is None else track.p95.value

    def pace(self, in_flight: int) -> float | None:
        """The time between two tokens of a stream with so many others beside it; None: nothing is known."""
        load = _load(in_flight)
        track = self._pace.get(load)
        if track is None and self._pace:
            track = self._pace[min(self._pace, key=lambda other: (abs(other - load), other))]
        return None if track is None else track.mean.value

    def _service(self, first: float, in_flight: int) -> float:
        """How long a request occupies its place."""
        pace = self.pace(in_flight)
        if pace is not None:
            return first + pace * self._output.value
        return max(first, self._whole.value)

    def _track(self, prompt_tokens: int, in_flight: int, now: float) -> _Track | None:
        """What is known of now. What is known of higher loads alone is not: a lower one may be much faster."""
        oldest = now - _FORGOTTEN_AFTER_SECONDS
        if self._seen < oldest:  # most backends are idle for long, and to look through all that was known takes time
            return None
        length, load = prompt_tokens.bit_length(), _load(in_flight)
        if (loads := self._first.get(length)) and (track := loads.get(load)) and track.seen >= oldest:
            return track
        for loads in self._by_distance(length):
            lower = [other for other, track in loads.items() if other <= load and track.seen >= oldest]
            if lower:
                return loads[max(lower)]
        return None

    def _ever(self, prompt_tokens: int, in_flight: int) -> _Track | None:
        """What was known last, of the nearest length and at the nearest load."""
        load = _load(in_flight)
        for loads in self._by_distance(prompt_tokens.bit_length()):
            return loads[min(loads, key=lambda other: abs(other - load))]
        return None

    def _by_distance(self, length: int) -> list[dict[int, _Track]]:
        """What is known of prompts, those of the nearest length first."""
        return [self._first[other] for other in sorted(self._first, key=lambda other: (abs(other - length), other))]


@lru_cache(maxsize=1024)
def _load(in_flight: int) -> int:
    return int(_STEPS_PER_DOUBLING * log2(in_flight + 1))


def _queues(in_flight: int, concurrency: int | None) -> bool:
    return concurrency is not None and in_flight >= concurrency
