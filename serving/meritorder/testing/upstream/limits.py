"""Limits that really count, unlike a scripted 429: requests per minute, and requests at one time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from meritorder.testing.upstream.clock import Clock
from meritorder.testing.upstream.errors import ApiError

# A free slot cannot be foretold; this is what a caller over the concurrency limit is told. Seconds.
_CONCURRENCY_RETRY_S = 1.0
# Tokens come back as a product of floats: 0.9999999 of one is one.
_EPSILON = 1e-9


def format_duration(seconds: float) -> str:
    """Return a duration as OpenAI's `x-ratelimit-reset-*` headers write it: `20ms`, `8.64s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000 - _EPSILON)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"


class RequestRate:
    """A token bucket that holds one minute's requests and is refilled evenly, as OpenAI's is."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._capacity = per_minute
        self._per_second = per_minute / 60
        self._clock = clock
        self._left = float(per_minute)
        self._updated_s = clock.monotonic()

    def take(self) -> bool:
        """Count one request; False, and nothing counted, if it is one too many."""
        self._refill()
        if self._left < 1 - _EPSILON:
            return False
        self._left -= 1
        return True

    def retry_after_s(self) -> float:
        """Seconds until one request is allowed; zero if it is now."""
        self._refill()
        return max(0.0, 1 - self._left) / self._per_second

    def headers(self) -> dict[str, str]:
        """Return OpenAI's `x-ratelimit-*-requests` headers."""
        self._refill()
        return {
            "x-ratelimit-limit-requests": str(self._capacity),
            "x-ratelimit-remaining-requests": str(max(0, math.floor(self._left + _EPSILON))),
            "x-ratelimit-reset-requests": format_duration((self._capacity - self._left) / self._per_second),
        }

    def _refill(self) -> None:
        now = self._clock.monotonic()
        gained = (now - self._updated_s) * self._per_second
        self._left = min(float(self._capacity), self._left + gained)
        self._updated_s = now


class Gate:
    """The limits of one rule, counted together over all requests it applies to."""

    def __init__(self, requests_per_minute: int | None, concurrency: int | None, clock: Clock) -> None:
        self._rate = RequestRate(requests_per_minute, clock) if requests_per_minute else None
        self._concurrency = concurrency
        self._active = 0

    @contextmanager
    def admit(self) -> Iterator[dict[str, str]]:
        """Hold a slot for the duration of one request; gives the headers for its answer.

        Raises:
            ApiError: 429 with `retry-after` (whole seconds, rounded up), `retry-after-ms` and
                `x-ratelimit-*`. A request over the concurrency limit is not counted against the rate.
        """
        if self._concurrency is not None and self._active >= self._concurrency:
            raise self._refusal(f"{self._concurrency} at one time", _CONCURRENCY_RETRY_S)
        if self._rate is not None and not self._rate.take():
            limit = self._rate.headers()["x-ratelimit-limit-requests"]
            raise self._refusal(f"{limit} per minute", self._rate.retry_after_s())
        self._active += 1
        try:
            yield self._headers()
        finally:
            self._active -= 1

    def _headers(self) -> dict[str, str]:
        headers = self._rate.headers() if self._rate is not None else {}
        if self._concurrency is not None:
            # OpenAI has no such headers; these are named in the manner of those it has.
            headers["x-ratelimit-limit-concurrency"] = str(self._concurrency)
            headers["x-ratelimit-remaining-concurrency"] = str(self._concurrency - self._active)
        return headers

    def _refusal(self, limit: str, retry_after_s: float) -> ApiError:
        milliseconds = math.ceil(retry_after_s * 1000 - _EPSILON)
        return ApiError(
            429,
            f"Rate limit reached on requests (simulated): {limit}. "
            f"Please try again in {format_duration(retry_after_s)}.",
            error_type="requests",
            code="rate_limit_exceeded",
            headers={
                **self._headers(),
                "retry-after": str(math.ceil(milliseconds / 1000)),
                "retry-after-ms": str(milliseconds),
            },
        )
