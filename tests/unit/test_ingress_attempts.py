"""Attempts of one request: whose turn it is, what is paid although it did not win, and that every place is left."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast

import pytest

from meritorder.backends.client import BackendClient
from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Candidate, Capabilities, Catalog, Endpoint, Hedge, Route, Tier
from meritorder.core.errors import BackendsBusy, BackendsFailed, DeadlineExceeded, RequestError
from meritorder.core.plan import Attempt, RoutePlan, Score
from meritorder.core.pricing import Price
from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage
from meritorder.ingress.attempts import Attempts
from meritorder.ingress.world import World
from meritorder.telemetry.metrics import Metrics

CHAT = Capabilities(frozenset({Endpoint.CHAT_COMPLETIONS}))
NAMES = ("a/chat", "b/chat", "c/chat")
A, B, C = (
    Backend(name, Tier.HOSTED, f"provider-{name[0]}", name, CHAT, Price.flat(Decimal(1), Decimal(1))) for name in NAMES
)
USED = Usage(7, 3)
PROMPT_ALONE = Usage(100, 0, estimated=True)
STARTED_SECONDS_AGO = 1000.0


@dataclass
class Said:
    """An answer, as far as attempts look at it."""

    usage: Usage = USED
    limits: Mapping[str, str] = field(default_factory=dict)
    streamed: bool = True
    closed: bool = False
    rejected: bool = False

    async def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


Reply = Said | AttemptFailed | asyncio.Future[Said]


class Backends:
    """Stands for the connection pool: each backend gives its replies in turn."""

    def __init__(self) -> None:
        self.replies: defaultdict[str, deque[Reply]] = defaultdict(deque)
        self.asked: list[str] = []
        self.news = asyncio.Event()

    async def open(self, attempt: Attempt, request: InferenceRequest, seconds: float | None = None) -> Said:
        self.asked.append(attempt.backend.name)
        self.news.set()
        reply = self.replies[attempt.backend.name].popleft()
        if isinstance(reply, AttemptFailed):
            raise reply
        return reply if isinstance(reply, Said) else await reply

    async def until_asked(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.asked) < count:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
def backends() -> Backends:
    return Backends()


@pytest.fixture
def world() -> World:
    """In which each backend has been seen to answer at once."""
    world = World()
    world.catalog = Catalog({one.name: one for one in (A, B, C)}, {}, {})
    for one in (A, B, C):
        before = time.monotonic() - STARTED_SECONDS_AGO
        place = world.occupy(attempt(one), before)
        world.opened(place, {}, streamed=True, now=before + 0.001)
        world.vacate(place, before)
    return world


def attempt(backend: Backend) -> Attempt:
    return Attempt(backend, "http://x", Score(0.0, 0.0, 0.0, 0.0))


def plan(*backends: Backend, last_resort: bool = False) -> RoutePlan:
    return RoutePlan(tuple(map(attempt, backends)), last_resort=last_resort)


def failure(kind: Failure = Failure.SERVER_ERROR, retry_after: float | None = None, **more: Any) -> AttemptFailed:
    failed = AttemptFailed(kind, "failed", retry_after)
    failed.usage = more.get("usage")
    return failed


def attempts(
    world: World,
    backends: Backends,
    *,
    retries: int = 0,
    hedged: bool = False,
    stream: bool = True,
    seconds: float | None = None,
    may_hedge: Callable[[Attempt], bool] = lambda second: True,
) -> Attempts:
    request = InferenceRequest(
        "id", Endpoint.CHAT_COMPLETIONS, "m", stream, False, 500, lambda name: b"", text_bytes=400
    )
    route = Route("r", tuple(map(Candidate, NAMES)), hedge=Hedge(1.0) if hedged else None, retries=retries)
    deadline = None if seconds is None else time.monotonic() + seconds
    client = cast(BackendClient, backends)
    return Attempts(world, client, Metrics(), request, route, deadline, may_hedge)


async def first_good(made: Attempts, *plans: RoutePlan) -> str:
    """The name of the backend that answers."""
    first, *others = plans
    again = iter(others)
    async with await made.first_good(first, lambda: next(again)) as opened:
        return opened.place.backend.name


async def refused(made: Attempts, *plans: RoutePlan) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await first_good(made, *plans)
    return caught.value


def nobody_has_a_place(world: World) -> bool:
    return not any(world.in_flight().values())


class TestTurns:
    async def test_the_first_that_answers_is_the_last_that_is_asked(self, world: World, backends: Backends) -> None:
        backends.replies |= {A.name: deque([failure()]), B.name: deque([Said()]), C.name: deque([Said()])}
        made = attempts(world, backends)
        assert await first_good(made, plan(A, B, C)) == B.name
        assert (backends.asked, made.made, made.spent) == ([A.name, B.name], 2, [])
        assert nobody_has_a_place(world)

    async def test_all_fail(self, world: World, backends: Backends) -> None:
        backends.replies |= {A.name: deque([failure(Failure.BUSY, 9)]), B.name: deque([failure(Failure.BUSY, 4)])}
        error = await refused(attempts(world, backends), plan(A, B))
        assert isinstance(error, BackendsBusy)
        assert error.retry_after == 4
        assert nobody_has_a_place(world)

    async def test_they_are_gone_through_again_by_a_new_plan(self, world: World, backends: Backends) -> None:
        backends.replies |= {A.name: deque([failure()]), B.name: deque([failure(), Said()])}
        assert await first_good(attempts(world, backends, retries=1), plan(A, B), plan(B)) == B.name
        assert backends.asked == [A.name, B.name, B.name]

    @pytest.mark.parametrize("failed", [Failure.CREDENTIALS, Failure.NOT_FOUND, Failure.TIMEOUT, Failure.MALFORMED])
    async def test_not_where_they_would_fail_again(self, world: World, backends: Backends, failed: Failure) -> None:
        backends.replies[A.name] += [failure(failed), Said()]
        await refused(attempts(world, backends, retries=3), plan(A), plan(A))
        assert backends.asked == [A.name]

    async def test_not_where_the_wait_is_long(self, world: World, backends: Backends) -> None:
        backends.replies[A.name] += [failure(Failure.BUSY, 3.0), Said()]
        error = await refused(attempts(world, backends, retries=3), plan(A), plan(A))
        assert error.retry_after == 3.0

    async def test_one_that_another_request_tries_is_left_alone(self, world: World, backends: Backends) -> None:
        before = time.monotonic() - STARTED_SECONDS_AGO
        place = world.occupy(attempt(A), before)
        world.failed(place, failure(Failure.UNREACHABLE), before)
        world.vacate(place, before)
        assert world.may_try(A.name, time.monotonic())  # that other request
        backends.replies |= {A.name: deque([Said()]), B.name: deque([Said()])}
        assert await first_good(attempts(world, backends), plan(A, B)) == B.name
        assert await first_good(attempts(world, backends), plan(A, last_resort=True)) == A.name, "there is no other"


class TestTime:
    async def test_none_is_left_before_the_first(self, world: World, backends: Backends) -> None:
        error = await refused(attempts(world, backends, seconds=0), plan(A, B))
        assert isinstance(error, DeadlineExceeded)
        assert backends.asked == []

    async def test_none_is_left_for_another_round(self, world: World, backends: Backends) -> None:
        backends.replies[A.name] += [failure(Failure.BUSY, 1.0), Said()]
        started = time.monotonic()
        error = await refused(attempts(world, backends, retries=1, seconds=0.9), plan(A), plan(A))
        assert isinstance(error, BackendsFailed)
        assert time.monotonic() - started < 0.9, "it does not wait for what cannot be"


class TestWhatIsPaidAllTheSame:
    async def test_what_a_failed_attempt_used(self, world: World, backends: Backends) -> None:
        backends.replies |= {A.name: deque([failure(Failure.TIMEOUT, usage=USED)]), B.name: deque([Said()])}
        made = attempts(world, backends)
        await first_good(made, plan(A, B))
        assert made.spent == [(A, USED)]

    async def test_the_prompt_of_one_whose_client_left(self, world: World, backends: Backends) -> None:
        backends.replies[A.name].append(asyncio.get_running_loop().create_future())
        made = attempts(world, backends)
        task = asyncio.create_task(first_good(made, plan(A, B)))
        await backends.until_asked(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert made.spent == [(A, PROMPT_ALONE)]
        assert nobody_has_a_place(world)

    async def test_both_prompts_where_it_was_hedged(self, world: World, backends: Backends) -> None:
        for one in (A, B):
            backends.replies[one.name].append(asyncio.get_running_loop().create_future())
        made = attempts(world, backends, hedged=True)
        task = asyncio.create_task(first_good(made, plan(A, B)))
        await backends.until_asked(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(made.spent, key=lambda one: one[0].name) == [(A, PROMPT_ALONE), (B, PROMPT_ALONE)]
        assert nobody_has_a_place(world)


class TestHedges:
    async def test_the_loser_is_cancelled_and_its_prompt_paid(self, world: World, backends: Backends) -> None:
        slow: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        backends.replies |= {A.name: deque([slow]), B.name: deque([Said()])}
        made = attempts(world, backends, hedged=True)
        assert await first_good(made, plan(A, B)) == B.name
        assert slow.cancelled()
        assert (made.spent, made.made) == ([(A, PROMPT_ALONE)], 2)
        assert nobody_has_a_place(world)

    async def test_of_two_that_answer_in_one_moment_one_wins_and_what_the_other_said_is_paid(
        self, world: World, backends: Backends
    ) -> None:
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[Said]] = {one.name: loop.create_future() for one in (A, B)}
        for name, future in futures.items():
            backends.replies[name].append(future)
        made = attempts(world, backends, hedged=True)
        task = asyncio.create_task(first_good(made, plan(A, B)))
        await backends.until_asked(2)
        said = {name: Said(Usage(100, number)) for number, name in enumerate(futures, 1)}
        for name, future in futures.items():
            future.set_result(said[name])
        won = await task
        [(lost, usage)] = made.spent
        assert {won, lost.name} == set(futures)
        assert usage == said[lost.name].usage
        assert all(one.closed for one in said.values())
        assert nobody_has_a_place(world)

    async def test_the_one_after_both_is_tried_where_both_fail(self, world: World, backends: Backends) -> None:
        slow: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        backends.replies |= {A.name: deque([slow]), B.name: deque([failure()]), C.name: deque([Said()])}
        task = asyncio.create_task(first_good(attempts(world, backends, hedged=True), plan(A, B, C)))
        await backends.until_asked(2)
        slow.set_exception(failure())
        assert await task == C.name
        assert backends.asked == [A.name, B.name, C.name]

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({"hedged": False}, id="the route does not want it"),
            pytest.param({"stream": False}, id="the answer is not streamed"),
            pytest.param({"may_hedge": lambda second: False}, id="the budget has no room for two"),
        ],
    )
    async def test_there_is_none(self, world: World, backends: Backends, options: dict[str, Any]) -> None:
        slow: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        backends.replies |= {A.name: deque([slow]), B.name: deque([Said()])}
        task = asyncio.create_task(first_good(attempts(world, backends, **{"hedged": True} | options), plan(A, B)))
        await backends.until_asked(1)
        asyncio.get_running_loop().call_later(0.05, slow.set_result, Said())  # fifty times what was seen before
        assert await task == A.name
        assert backends.asked == [A.name]
