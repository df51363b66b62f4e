"""Time as the upstream sees it, so that latency and rate limits can be tested without waiting."""

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """What the upstream needs of time. All values are seconds."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start; never goes back."""

    def unix_time(self) -> float:
        """Return seconds since 1970, for the `created` field of answers."""

    async def sleep(self, seconds: float) -> None:
        """Wait; zero or less only lets other tasks run."""


class SystemClock:
    """The machine's time."""

    def monotonic(self) -> float:
        return time.monotonic()

    def unix_time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class FakeClock:
    """Time that stands still until `advance` is called. For one event loop."""

    def __init__(self, start_s: float = 0.0, unix_start_s: float = 1_700_000_000.0) -> None:
        self._now = start_s
        self._unix_offset = unix_start_s - start_s
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._fell_asleep = asyncio.Event()

    def monotonic(self) -> float:
        return self._now

    def unix_time(self) -> float:
        return self._now + self._unix_offset

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        self._fell_asleep.set()
        await woken

    def advance(self, seconds: float) -> None:
        """Move time on by `seconds` and wake, in order, every sleep that is now over.

        What the woken tasks do happens once the caller awaits something; a sleep which they begin then
        counts from the new time.
        """
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)

    async def wait_for_sleepers(self, count: int = 1, timeout_s: float = 5.0) -> None:
        """Return once `count` tasks sleep.

        Raises:
            TimeoutError: fewer did for `timeout_s` seconds of real time.
        """
        async with asyncio.timeout(timeout_s):
            while sum(not woken.done() for _, _, woken in self._sleepers) < count:
                self._fell_asleep.clear()
                await self._fell_asleep.wait()
