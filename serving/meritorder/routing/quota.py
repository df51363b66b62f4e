"""What an account at a provider has left: as its headers say, and as counted here between two of them."""

import re
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf, isfinite

from meritorder.core.limits import Limits

_LONGEST_WISH_SECONDS = 3600.0
"""Whoever asks to be left alone for longer is asked again by then: accounts are topped up meanwhile."""

_DEFAULT_RESET_SECONDS = 60.0
_SLOT_SECONDS = 5.0
_MINUTE_SLOTS = 13  # a minute begins and ends within a slot
_REQUESTS, _TOKENS = 1, 2  # where they stand in a slot
_KINDS = ("requests", "tokens", "input-tokens", "output-tokens")

_INPUT_KINDS = frozenset({"tokens", "input-tokens"})

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(ms|us|µs|ns|d|h|m|s)")


class MinuteWindow:
    """Requests and tokens of an account within the last minute, as far as this ingress sent them. All backends of one
    application share it, as they share the account."""

    __slots__ = ("_slots", "requests", "tokens")

    def __init__(self) -> None:
        self._slots: deque[list[float]] = deque()  # [slot, requests, tokens]
        self.requests = 0.0
        self.tokens = 0.0

    def add(self, now: float, *, requests: int = 0, tokens: int = 0) -> None:
        slot = now // _SLOT_SECONDS
        self._expire(slot)
        if not self._slots or self._slots[-1][0] < slot:
            self._slots.append([slot, 0, 0])
        self._slots[-1][1] += requests
        self._slots[-1][2] += tokens
        self.requests += requests
        self.tokens += tokens

    def take_back(self, at: float, *, requests: int = 0, tokens: int = 0) -> None:
        """What was added at `at` does not count; what has left the minute since then does not anyway."""
        for slot in self._slots:
            if slot[0] == at // _SLOT_SECONDS:
                requests, tokens = min(requests, int(slot[_REQUESTS])), min(tokens, int(slot[_TOKENS]))
                slot[_REQUESTS] -= requests
                slot[_TOKENS] -= tokens
                self.requests -= requests
                self.tokens -= tokens

    def used_up(self, limits: Limits, tokens: float, now: float) -> tuple[str, float] | None:
        """Which limit one more request would break, and in how many seconds it would not; None: none."""
        # The totals may have more in them than the last minute, so what fits beside them fits.
        most = limits.requests_per_minute
        if most is not None and self.requests + 1 > most and self._used(_REQUESTS, now) + 1 > most:
            return f"{most} requests per minute", self._wait(_REQUESTS, most - 1, now)
        most = limits.tokens_per_minute
        # A request that has more tokens than a minute allows would wait for ever; the provider may think otherwise.
        if most is not None and self.tokens + tokens > most and self._used(_TOKENS, now) > max(0.0, most - tokens):
            return f"{most} tokens per minute", self._wait(_TOKENS, most - tokens, now)
        return None

    def _used(self, kind: int, now: float) -> float:
        oldest = now // _SLOT_SECONDS - _MINUTE_SLOTS
        return sum(slot[kind] for slot in self._slots if slot[0] > oldest)

    def _wait(self, kind: int, allowed: float, now: float) -> float:
        left = self._used(kind, now)
        for slot in self._slots:
            leaves = (slot[0] + _MINUTE_SLOTS) * _SLOT_SECONDS
            if leaves > now:
                left -= slot[kind]
                if left <= max(0.0, allowed):
                    return leaves - now
        return 60.0

    def _expire(self, slot: float) -> None:
        while self._slots and self._slots[0][0] <= slot - _MINUTE_SLOTS:
            _, requests, tokens = self._slots.popleft()
            self.requests -= requests
            self.tokens -= tokens


class _Remaining:
    """What is left of one limit. It comes back little by little, `rate` per second, until all of it is there.

    Source: https://docs.claude.com/en/api/rate-limits ("token bucket algorithm"), as OpenAI's; where the limit itself
    is not told, nothing counts as back until the reset.
    """

    __slots__ = ("at", "left", "rate", "reset_at")

    def __init__(self, left: float, limit: float | None, at: float, reset_at: float) -> None:
        self.left = left
        self.at = at
        self.reset_at = reset_at
        self.rate = max(0.0, limit - left) / (reset_at - at) if limit is not None and reset_at > at else 0.0

    def wait(self, needed: float, now: float) -> float:
        """For how many seconds there is less than `needed`; 0: there is as much."""
        if now >= self.reset_at or self.left + self.rate * (now - self.at) >= needed:
            return 0.0
        enough_at = self.at + (needed - self.left) / self.rate if self.rate else inf
        return min(enough_at, self.reset_at) - now


class Quota:
    """Of one backend. Times are in seconds on one monotonic clock; `minute` is the count of its account."""

    __slots__ = ("_left", "blocked_until", "minute")

    def __init__(self, minute: MinuteWindow | None = None) -> None:
        self.minute = minute or MinuteWindow()
        self.blocked_until = -inf
        self._left: dict[str, _Remaining] = {}

    def sent(self, tokens: int, now: float) -> None:
        """A request of about so many tokens, prompt and answer, goes out."""
        self.minute.add(now, requests=1, tokens=tokens)
        for kind, remaining in self._left.items():
            remaining.left -= 1 if kind == "requests" else tokens

    def unsent(self, tokens: int, sent: float) -> None:
        """What went out at `sent`, booked with so many tokens, was not worked on and counts for nothing."""
        self.minute.take_back(sent, requests=1, tokens=tokens)
        for kind, remaining in self._left.items():
            if remaining.at <= sent:  # else the provider has said since what is left
                remaining.left += 1 if kind == "requests" else tokens

    def settled(self, tokens: int, now: float) -> None:
        """It had so many tokens more than was thought; if fewer, the provider may have counted the thought ones."""
        self.minute.add(now, tokens=max(0, tokens))

    def refused(self, retry_after: float | None, now: float) -> None:
        """The provider asks to be left alone for so many seconds; None, where it named no time, changes nothing."""
        if retry_after is not None and retry_after > 0:
            self.blocked_until = max(self.blocked_until, now + min(retry_after, _LONGEST_WISH_SECONDS))

    def read(self, headers: Mapping[str, str], now: float, moment: float) -> None:
        """Learn from the headers of an answer or a refusal, names in lower case; what is not understood is passed over.

        `moment` is `now` in seconds since the epoch, for headers that have a date.
        """
        self.refused(retry_after_of(headers, moment), now)
        for kind in _KINDS:
            left = _number(_either(headers, f"x-ratelimit-remaining-{kind}", f"anthropic-ratelimit-{kind}-remaining"))
            if left is None:
                continue
            limit = _number(_either(headers, f"x-ratelimit-limit-{kind}", f"anthropic-ratelimit-{kind}-limit"))
            wait = _seconds(_either(headers, f"x-ratelimit-reset-{kind}", f"anthropic-ratelimit-{kind}-reset"), moment)
            wait = min(_DEFAULT_RESET_SECONDS if wait is None else wait, _LONGEST_WISH_SECONDS)
            self._left[kind] = _Remaining(left, limit, now, now + wait)

    def blocked(self, limits: Limits, tokens: float, now: float) -> tuple[str, float] | None:
        """Why one more request of so many tokens would be refused, to complete "backend X ...", and for how many
        seconds; None: nothing speaks against it."""
        if now < self.blocked_until:
            wait = self.blocked_until - now
            return f"asked to be left alone for {wait:.1f} s more", wait
        for kind, remaining in self._left.items():
            # How much of it will be output is a guess; that there is none left is not.
            needed = tokens if kind in _INPUT_KINDS else 1
            if remaining.left < needed and (wait := remaining.wait(needed, now)):
                return f"has too few {kind.replace('-', ' ')} left in its rate limit for {wait:.1f} s more", wait
        if limits.requests_per_minute is None and limits.tokens_per_minute is None:
            return None
        used_up = self.minute.used_up(limits, tokens, now)
        return None if used_up is None else (f"has used up its account's {used_up[0]}", used_up[1])


def retry_after_of(headers: Mapping[str, str], moment: float) -> float | None:
    """The seconds of `retry-after-ms` or `retry-after`, a number of seconds or a date; None: nothing that is one."""
    milliseconds = _number(headers.get("retry-after-ms"))
    return milliseconds / 1000 if milliseconds is not None else _seconds(headers.get("retry-after"), moment)


def _either(headers: Mapping[str, str], one: str, other: str) -> str | None:
    return headers.get(one) or headers.get(other)


def _number(text: str | None) -> float | None:
    """A number that is not negative and not endless."""
    try:
        number = float(text) if text else -1.0
    except ValueError:
        return None
    return number if number >= 0 and isfinite(number) else None


def _seconds(text: str | None, moment: float) -> float | None:
    """Seconds from `moment`, of "12", "1m30.5s", "120ms", an RFC 3339 time or an HTTP date; None: it is none."""
    if not text:
        return None
    text = text.strip()
    number = _number(text)
    if number is not None:
        return number
    parts = _DURATION.findall(text)
    if parts and "".join(amount + unit for amount, unit in parts) == text:
        return sum(float(amount) * _UNITS[unit] for amount, unit in parts)
    date = _date(text)
    return None if date is None else max(0.0, date - moment)


def _date(text: str) -> float | None:
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            date = read(text)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    return None
