"""The attempts of one request: in the plan's order, hedged, gone through again, and within its time.

What is here ends with the first good answer. Nothing of it has reached the client yet, so every failure before can
be forgotten but for what it cost.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

from meritorder.backends.answer import Answer
from meritorder.backends.client import BackendClient
from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Route
from meritorder.core.plan import Attempt, RoutePlan
from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage
from meritorder.ingress.refusals import all_failed
from meritorder.ingress.world import Place, World
from meritorder.telemetry.metrics import Metrics
from meritorder.wire.answers import estimate

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
"""A client is better told to come again than kept waiting for longer; it can do something else meanwhile."""

_EARLY_SECONDS = 0.01
"""By how much a timer may come too early, and find a backend that wants to be left alone for a millisecond more."""

_FAIR_SECONDS = 10.0
"""A stream that has not begun after so long is slow, whatever time its request had left."""

_PASSES = frozenset({Failure.UNREACHABLE, Failure.BUSY, Failure.SERVER_ERROR, Failure.BROKEN_STREAM})
"""Failures that may be over in a moment."""


@dataclass(slots=True)
class Opened:
    """A good answer whose backend is occupied until the context is left. `at` is on the monotonic clock."""

    world: World
    place: Place
    answer: Answer
    at: float

    def abort(self) -> None:
        """Cut the answer off and leave, without waiting."""
        self.answer.abort()
        self.world.vacate(self.place, time.monotonic())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.answer.close()
        finally:
            self.world.vacate(self.place, time.monotonic())


@dataclass(slots=True)
class Attempts:
    """`deadline` is on the monotonic clock. `may_hedge` is asked before a second backend is paid, too.

    `spent` is what other backends than the one that answered may charge for: a hedge that lost, an attempt that was
    cut, a stream that broke before its first byte was passed on.
    """

    world: World
    client: BackendClient
    metrics: Metrics
    request: InferenceRequest
    route: Route
    deadline: float | None
    may_hedge: Callable[[Attempt], bool]
    made: int = 0
    failures: list[tuple[Backend, AttemptFailed]] = field(default_factory=list)
    spent: list[tuple[Backend, Usage]] = field(default_factory=list)

    async def first_good(self, plan: RoutePlan, plan_again: Callable[[], RoutePlan]) -> Opened:
        """The first good answer.

        Raises:
            BackendsFailed: there is none.
        """
        self.world.earn_hedge(self.route)
        for number in range(1 + self.route.retries):
            if number:
                pause = self._pause(number)
                if pause is None:
                    break
                await asyncio.sleep(pause)
                plan = plan_again()
            if opened := await self._go_through(plan):
                return opened
        raise all_failed(self.failures)

    async def _go_through(self, plan: RoutePlan) -> Opened | None:
        waiting = deque(plan.attempts)
        while waiting and self._left() != 0:
            attempt = waiting.popleft()
            if not plan.last_resort and not self.world.may_try(attempt.backend.name, time.monotonic()):
                continue  # another request is its probe at this moment
            if opened := await self._race(attempt, waiting):
                return opened
        return None

    async def _race(self, attempt: Attempt, waiting: deque[Attempt]) -> Opened | None:
        """The answer to `attempt`, or where it is slow and a hedge is allowed, to it or to the next in `waiting`."""
        # An answer that is not streamed is no slower than others because it is long.
        hedgeable = waiting and self.request.stream
        delay = self.world.hedge_delay(attempt, self.route) if hedgeable else None
        if delay is None:
            return await self._alone(attempt)
        race = Race(self)
        race.start(attempt)
        won = None
        try:
            if not await race.decided(delay) and self._hedge(waiting[0]):
                race.start(waiting.popleft())
            await race.decided()
            won = race.winner()
        finally:
            race.end(won)
        return won

    async def _alone(self, attempt: Attempt) -> Opened | None:
        place = self.enter(attempt)
        opened = None
        try:
            opened = await self.open(place)
        except asyncio.CancelledError:
            self.give_up(place)
            raise
        finally:
            if opened is None:
                self.world.vacate(place, time.monotonic())
        return opened

    def _hedge(self, second: Attempt) -> bool:
        if not self.world.is_sound(second.backend.name):
            return False  # a hedge is no probe
        # Both of these take something, so the order counts.
        if not self.world.hedge(self.route) or not self.may_hedge(second):
            return False
        self.metrics.hedged(self.route.name)
        return True

    def enter(self, attempt: Attempt) -> Place:
        """Take a place at the backend: at once, so that whoever plans next sees it."""
        self.made += 1
        return self.world.occupy(attempt, time.monotonic())

    async def open(self, place: Place) -> Opened | None:
        """Make the attempt; None where it fails."""
        name, seconds = place.backend.name, self._left()
        try:
            answer = await self.client.open(place.attempt, self.request, seconds)
        except AttemptFailed as failed:
            now = time.monotonic()
            if self._is_cut(place, failed, now):
                self.world.abandoned(place)
            else:
                self.world.failed(place, failed, now)
            self.metrics.attempted(name, failed.failure)
            self.failures.append((place.backend, failed))
            if failed.usage is not None:
                self.spent.append((place.backend, failed.usage))
            return None
        now = time.monotonic()
        self.world.opened(place, answer.limits, answer.streamed, now)
        self.metrics.attempted(name, "ok")
        return Opened(self.world, place, answer, now)

    def give_up(self, place: Place) -> None:
        """Nobody waits for this attempt any more; its backend has been at work, and may charge for it."""
        self.world.abandoned(place)
        self.spent.append((place.backend, estimate(self.request, 0)))
        self.metrics.attempted(place.backend.name, "abandoned")

    def lose(self, opened: Opened) -> None:
        """Another answer was taken."""
        self.spent.append((opened.place.backend, opened.answer.usage))
        opened.abort()

    def _is_cut(self, place: Place, failed: AttemptFailed, now: float) -> bool:
        """Whether the request's own deadline ended the attempt, which says little of the backend."""
        fair = self.request.stream and now - place.since >= _FAIR_SECONDS
        return failed.failure is Failure.TIMEOUT and self._left() == 0 and not fair

    def _left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _pause(self, number: int) -> float | None:
        """How long to wait before everything is tried again, in seconds; None where that is hopeless."""
        waits = [failed.retry_after or 0.0 for _, failed in self.failures if failed.failure in _PASSES]
        if not waits:
            return None
        # With jitter, or all that failed together come again together.
        # Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        backoff = _FIRST_PAUSE_SECONDS * 2**number * random.random()
        pause = max(backoff, min(waits) + _EARLY_SECONDS)  # for the first that may be back
        left = self._left()
        return None if pause > _LONGEST_PAUSE_SECONDS or (left is not None and pause >= left) else pause


class Race:
    """Attempts at once, of which the first good answer wins. To end it takes no time, so nothing can come between.

    An answer that finds the request at fault wins only if none is better: another backend may accept it.
    """

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._running: dict[asyncio.Task[Opened | None], Place] = {}
        self._won: Opened | None = None
        self._refused: Opened | None = None
        self._fault: BaseException | None = None
        self._news = asyncio.Event()

    def start(self, attempt: Attempt) -> None:
        """Make `attempt`, too."""
        place = self._attempts.enter(attempt)
        task = asyncio.create_task(self._attempts.open(place))
        self._running[task] = place
        task.add_done_callback(partial(self._finished, place))

    async def decided(self, seconds: float | None = None) -> bool:
        """Wait until there is a winner or nobody is left to wait for, for so many `seconds` at most; whether so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._won is None and self._running:
                    self._news.clear()
                    await self._news.wait()
        return self._won is not None or not self._running

    def winner(self) -> Opened | None:
        """The answer to take, if there is any; a fault of this program is raised."""
        if self._fault is not None:
            raise self._fault
        return self._won or self._refused

    def end(self, taken: Opened | None) -> None:
        """Give up all but the answer that was `taken`."""
        for opened in (self._won, self._refused):
            if opened is not None and opened is not taken:
                self._attempts.lose(opened)
        running, self._running = self._running, {}
        for task, place in running.items():
            self._attempts.give_up(place)
            self._attempts.world.vacate(place, time.monotonic())
            task.cancel()

    def _finished(self, place: Place, task: asyncio.Task[Opened | None]) -> None:
        awaited = self._running.pop(task, None) is not None
        fault = None if task.cancelled() else task.exception()
        opened = None if fault is not None or task.cancelled() else task.result()
        if not awaited:  # given up, and charged for then
            if opened is not None:
                opened.answer.abort()
        elif opened is None:
            self._fault = self._fault or fault
            self._attempts.world.vacate(place, time.monotonic())
        else:
            self._answered(opened)
        self._news.set()

    def _answered(self, opened: Opened) -> None:
        if self._won is None and not opened.answer.rejected:
            self._won = opened
        elif self._won is None and self._refused is None:
            self._refused = opened
        else:
            self._attempts.lose(opened)
