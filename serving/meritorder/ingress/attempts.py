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
from types import TracebackType
from typing import Self

from meritorder.backends.answer import Answer
from meritorder.backends.client import BackendClient
from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Route
from meritorder.core.plan import Attempt, RoutePlan
from meritorder.core.request import InferenceRequest
from meritorder.ingress.refusals import all_failed
from meritorder.ingress.world import Place, World
from meritorder.telemetry.metrics import Metrics

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
"""A client is better told to come again than kept waiting for longer; it can do something else meanwhile."""

_PASSES = frozenset({Failure.UNREACHABLE, Failure.BUSY, Failure.SERVER_ERROR, Failure.BROKEN_STREAM})
"""Failures that may be over in a moment."""


@dataclass(slots=True)
class Opened:
    """A good answer whose backend is occupied until the context is left. `at` is on the monotonic clock."""

    world: World
    place: Place
    answer: Answer
    at: float

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

    `unanswered` are attempts whose backend was at work when it was given up: a hedge that lost, or one that was cut.
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
    unanswered: list[Attempt] = field(default_factory=list)

    async def first_good(self, plan: RoutePlan, plan_again: Callable[[], RoutePlan]) -> Opened:
        """The first good answer.

        Raises:
            BackendsFailed: there is none.
        """
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
        delay = self.world.hedge_delay(attempt, self.route) if waiting else None
        if delay is None:
            return await self._open(attempt)
        runners = {asyncio.create_task(self._open(attempt))}
        try:
            done, _ = await asyncio.wait(runners, timeout=delay)
            if not done and self._hedge(waiting[0]):
                runners.add(asyncio.create_task(self._open(waiting.popleft())))
            return await _winner(runners)
        finally:
            await self._stop(runners)

    def _hedge(self, second: Attempt) -> bool:
        # Each of these takes something, so the order counts.
        name = second.backend.name
        if not self.world.may_try(name, time.monotonic()):
            return False
        if not self.world.hedge(self.route) or not self.may_hedge(second):
            return False
        self.metrics.hedged(self.route.name)
        return True

    async def _open(self, attempt: Attempt) -> Opened | None:
        name = attempt.backend.name
        self.made += 1
        place = self.world.occupy(attempt, time.monotonic())
        opened = None
        try:
            answer = await self.client.open(attempt, self.request, self._left())
            opened = Opened(self.world, place, answer, time.monotonic())
        except AttemptFailed as failed:
            self.world.failed(place, failed, time.monotonic())
            self.metrics.attempted(name, failed.failure)
            self.failures.append((attempt.backend, failed))
            if failed.unanswered:
                self.unanswered.append(attempt)
            return None
        except asyncio.CancelledError:
            self.world.abandoned(place)
            self.unanswered.append(attempt)
            self.metrics.attempted(name, "abandoned")
            raise
        finally:
            if opened is None:
                self.world.vacate(place, time.monotonic())
        self.world.opened(place, answer.limits, answer.streamed, opened.at)
        self.metrics.attempted(name, "ok")
        return opened

    async def _stop(self, runners: set[asyncio.Task[Opened | None]]) -> None:
        """End those that did not win; one that answered in the same moment has lost, too."""
        for task in runners:
            task.cancel()
        if runners:
            await asyncio.wait(runners)
        for task in runners:
            with suppress(asyncio.CancelledError):
                if (late := task.result()) is not None:
                    self.unanswered.append(late.place.attempt)
                    await late.__aexit__(None, None, None)

    def _left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _pause(self, number: int) -> float | None:
        """How long to wait before everything is tried again, in seconds; None where that is hopeless."""
        asked = [failed.retry_after for _, failed in self.failures if failed.retry_after is not None]
        if not any(failed.failure in _PASSES for _, failed in self.failures):
            return None
        # With jitter, or all that failed together come again together.
        # Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        backoff = _FIRST_PAUSE_SECONDS * 2**number * random.random()
        pause = max(backoff, min(asked, default=0.0))
        left = self._left()
        return None if pause > _LONGEST_PAUSE_SECONDS or (left is not None and pause >= left) else pause


async def _winner(runners: set[asyncio.Task[Opened | None]]) -> Opened | None:
    running = set(runners)
    while running:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if (opened := task.result()) is not None:
                runners.discard(task)
                return opened
    return None
