"""Whether a backend answers at all: a passive circuit breaker, fed with what becomes of its requests."""

from collections import deque
from enum import StrEnum

_FAILURES_IN_A_ROW = 3
"""One poisoned request must not send everyone else to a dearer backend."""

_FAILED_SHARE, _LEAST_RESULTS = 0.5, 20
_WINDOW_SECONDS, _SLOT_SECONDS = 30.0, 3.0

_FIRST_REST_SECONDS, _LONGEST_REST_SECONDS = 2.0, 60.0
"""Long enough to spare most requests a failed attempt, short enough that nobody notices the return late."""

_LONGEST_WISH_SECONDS = 3600.0
"""Of a Retry-After: whoever names more is asked again by then, at the cost of one request."""

_PROBE_SECONDS = 300.0
"""After so long without a result, whoever was the probe is forgotten, and the next may be it."""


class CircuitState(StrEnum):
    """Values of a metric label."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Circuit:
    """Of one backend. Times are in seconds on one monotonic clock.

    Closed, it lets all requests through. It opens after failures and rests, each time twice as long as before; then,
    half-open, it lets one through as a probe, whose result closes it or opens it again.

    A result comes with the time at which its request was `sent`: what was sent before the circuit opened, or closed,
    says nothing on how the backend is since then.
    """

    __slots__ = ("_closed_at", "_in_a_row", "_opened_at", "_openings", "_probe_at", "_results", "_until")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._openings = 0  # in a row, without a success between them
        self._opened_at: float | None = None
        self._closed_at = float("-inf")
        self._until = 0.0
        self._probe_at: float | None = None
        self._results: deque[list[float]] = deque()  # [slot, results, failures]

    def state(self, now: float) -> CircuitState:
        if self._opened_at is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now < self._until else CircuitState.HALF_OPEN

    def closed_to(self, now: float) -> str | None:
        """Why a request should go elsewhere, to complete "backend X ..."; None: it may come, if only as the probe."""
        if self._opened_at is None:
            return None
        if now < self._until:
            return f"has failed and rests for {self._until - now:.1f} s more"
        return "has failed, and another request tries whether it is back" if self._probing(now) else None

    def retry_after(self, now: float) -> float | None:
        """For how many seconds it rests still; None: it does not."""
        return None if self._opened_at is None or now >= self._until else self._until - now

    @property
    def opened_at(self) -> float:
        """Since when it has not been closed; of two that rest, the one that opened earlier has rested longer."""
        return float("-inf") if self._opened_at is None else self._opened_at

    def try_probe(self, now: float) -> bool:
        """Whether a request that was planned may be sent now: False where another one is the probe.

        While it rests, this is true: only a plan that has no other candidate sends a request then.
        """
        if self._opened_at is None or now < self._until:
            return True
        if self._probing(now):
            return False
        self._probe_at = now
        return True

    def abandoned(self, sent: float) -> None:
        """A request was given up without a result; if it was the probe, the next one may be it."""
        # The probe is sent after it was let through, and until it has a result nobody else is.
        if self._probe_at is not None and sent >= self._probe_at:
            self._probe_at = None

    def success(self, now: float, sent: float | None = None) -> bool:
        """Take note of an answer; whether that closed the circuit."""
        if self._opened_at is not None:
            if sent is not None and sent < self._opened_at:
                return False
            self._close(now)
            return True
        if self._stale(sent):
            return False
        self._in_a_row = 0
        self._count(now, failed=False)
        return False

    def failure(
        self, now: float, sent: float | None = None, *, certain: bool = False, retry_after: float | None = None
    ) -> bool:
        """Take note of a failure; whether that opened a circuit that was closed.

        `certain` says that the next request would meet it, too. `retry_after` is what the backend asks for.
        """
        wish = min(max(retry_after or 0.0, 0.0), _LONGEST_WISH_SECONDS)
        if self._opened_at is not None:
            self._failed_again(now, sent, wish)
            return False
        if self._stale(sent):
            return False
        self._in_a_row += 1
        self._count(now, failed=True)
        if certain or self._in_a_row >= _FAILURES_IN_A_ROW or self._fails_often():
            self._open(now, wish)
            return True
        return False

    def _failed_again(self, now: float, sent: float | None, wish: float) -> None:
        assert self._opened_at is not None
        if now < self._until:
            self._until = max(self._until, now + wish)
        elif sent is None or sent >= self._until:
            self._open(now, wish)

    def _open(self, now: float, wish: float) -> None:
        # The power is bounded, too: a backend that is gone for a week must not overflow it.
        rest = min(_FIRST_REST_SECONDS * 2.0 ** min(self._openings, 10), _LONGEST_REST_SECONDS)
        self._openings += 1
        self._opened_at = now
        self._until = now + max(rest, wish)
        self._probe_at = None

    def _close(self, now: float) -> None:
        self._closed_at = now
        self._in_a_row = self._openings = 0
        self._opened_at = self._probe_at = None
        self._results.clear()

    def _stale(self, sent: float | None) -> bool:
        return sent is not None and sent < self._closed_at

    def _probing(self, now: float) -> bool:
        return self._probe_at is not None and now - self._probe_at < _PROBE_SECONDS

    def _count(self, now: float, *, failed: bool) -> None:
        slot = now // _SLOT_SECONDS
        while self._results and self._results[0][0] <= slot - _WINDOW_SECONDS / _SLOT_SECONDS:
            self._results.popleft()
        if not self._results or self._results[-1][0] != slot:
            self._results.append([slot, 0, 0])
        self._results[-1][1] += 1
        self._results[-1][2] += failed

    def _fails_often(self) -> bool:
        results = sum(slot[1] for slot in self._results)
        return results >= _LEAST_RESULTS and sum(slot[2] for slot in self._results) >= _FAILED_SHARE * results
