"""Who is let in, with a real agent and a real database; the limits page of the reference says the same in words."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from meritorder.core.catalog import Team
from meritorder.core.errors import BudgetExceeded, LedgerUnavailable, LimitExceeded
from meritorder.core.limits import Allowance, Budget, Limits, Period
from meritorder.core.request import Caller
from meritorder.ingress.admission import Admission, Ticket
from meritorder.ingress.leasing import LeaseAgent, Pace
from meritorder.ledger.database import open_database

D = Decimal
EPOCH = datetime(2027, 3, 15, 13, 45, 30, tzinfo=UTC).timestamp()
UNLIMITED = Limits()
QUICK = Pace(interval=0.02, spacing=0.001, patience=5.0)
"""Nothing here waits for time; patience is for a slow machine."""


@dataclass
class Clock:
    """Both clocks, which go on when they are told to."""

    passed: float = 0.0

    def now(self) -> float:
        return 5000.0 + self.passed

    def epoch(self) -> float:
        return EPOCH + self.passed


@asynccontextmanager
async def admission(
    engine: Engine, clock: Clock | None = None, pace: Pace = QUICK, holder: str = "me"
) -> AsyncIterator[Admission]:
    clock = clock or Clock()
    async with LeaseAgent(engine, holder, pace, clock.now, clock.epoch) as agent:
        yield Admission(agent)


def caller(limits: Limits = UNLIMITED, budget: str | None = None, scope: str = "team:demo") -> Caller:
    budgets = (Budget(Period.DAILY, D(budget)),) if budget else ()
    return Caller(Team("demo"), "key_1", (Allowance(scope, limits, budgets),))


async def let_in(admitted: Admission, who: Caller, tokens: int = 10) -> Ticket:
    return await admitted.admit(who, tokens)


async def until_let_in(admitted: Admission, who: Caller) -> None:
    while True:
        try:
            await let_in(admitted, who)
            return
        except LedgerUnavailable:
            await asyncio.sleep(0.005)


class Outage:
    """From now on, no transaction with the database begins."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        event.listen(engine, "begin", self.fail)

    def fail(self, _connection: object) -> None:
        raise OperationalError("BEGIN", {}, Exception("the database is away"))

    def end(self) -> None:
        event.remove(self.engine, "begin", self.fail)


# --- Nobody who is not limited waits for anything ---


async def test_a_caller_without_limits_is_let_in_without_a_database(database: Engine) -> None:
    Outage(database)
    async with admission(database) as admitted:
        ticket = await let_in(admitted, Caller(Team("free"), "key_1"))
        assert not ticket.budgeted
        assert await ticket.headroom(D(100)) is None
        ticket.reserve(D(100))
        assert ticket.headers() == {}
        ticket.settle(D(100), 10)


# --- Rates ---


async def test_requests_beyond_the_rate_are_refused_until_the_minute_is_over(database: Engine) -> None:
    clock, who = Clock(), caller(Limits(requests_per_minute=2))
    async with admission(database, clock) as admitted:
        for remaining in ("1", "0"):
            headers = (await let_in(admitted, who)).headers()
            assert headers == {
                "x-ratelimit-limit-requests": "2",
                "x-ratelimit-remaining-requests": remaining,
                "x-ratelimit-reset-requests": "30s",
            }
        with pytest.raises(LimitExceeded) as refused:
            await let_in(admitted, who)
        assert refused.value.retry_after == 30
        assert refused.value.message == (
            "The limit of 2 requests per minute of the team 'demo' is reached, 0 remain; "
            "send the request again when the minute is over, in 30 s."
        )
        clock.passed = 30
        await let_in(admitted, who)


async def test_tokens_that_an_answer_did_not_use_can_be_used_by_another(database: Engine) -> None:
    who = caller(Limits(tokens_per_minute=100))
    async with admission(database) as admitted:
        first = await let_in(admitted, who, 80)
        with pytest.raises(LimitExceeded, match=r"may use 30 tokens, .* 100 per minute of the team 'demo' 20 remain"):
            await let_in(admitted, who, 30)
        first.settle(D(0), 50)
        second = await let_in(admitted, who, 30)
        assert second.headers()["x-ratelimit-remaining-tokens"] == "20"


async def test_an_answer_that_is_longer_than_reserved_is_deducted_in_full(database: Engine) -> None:
    who = caller(Limits(tokens_per_minute=100))
    async with admission(database) as admitted:
        (await let_in(admitted, who, 10)).settle(D(0), 95)
        with pytest.raises(LimitExceeded):
            await let_in(admitted, who, 10)


async def test_a_request_that_no_minute_has_room_for_is_told_so(database: Engine) -> None:
    async with admission(database) as admitted:
        with pytest.raises(LimitExceeded, match=r"may use 101 tokens.*send a shorter prompt") as refused:
            await let_in(admitted, caller(Limits(tokens_per_minute=100)), 101)
        assert refused.value.retry_after is None


async def test_what_is_refused_for_one_limit_takes_nothing_of_another(database: Engine) -> None:
    team = Allowance("team:demo", Limits(requests_per_minute=3))
    key = Allowance("key:key_1", Limits(requests_per_minute=1))
    async with admission(database) as admitted:
        both = Caller(Team("demo"), "key_1", (team, key))
        await let_in(admitted, both)
        with pytest.raises(LimitExceeded, match="the key 'key_1'"):
            await let_in(admitted, both)
        other = Caller(Team("demo"), "key_2", (team,))
        assert (await let_in(admitted, other)).headers()["x-ratelimit-remaining-requests"] == "1"


# --- Requests at once ---


async def test_a_place_is_free_again_when_its_request_is_settled(database: Engine) -> None:
    who = caller(Limits(concurrency=2))
    async with admission(database) as admitted:
        tickets = [await let_in(admitted, who) for _ in range(2)]
        with pytest.raises(LimitExceeded, match="2 requests at once of the team 'demo'"):
            await let_in(admitted, who)
        tickets[0].settle(D(0), 0)
        await let_in(admitted, who)


async def test_requests_that_race_get_no_more_places_than_there_are(database: Engine) -> None:
    who = caller(Limits(concurrency=5))
    async with admission(database) as one, admission(database, holder="other") as other:
        results = await asyncio.gather(
            *(let_in(which, who) for which in (one, other) for _ in range(10)), return_exceptions=True
        )
    assert sum(isinstance(result, Ticket) for result in results) == 5
    assert sum(isinstance(result, LimitExceeded) for result in results) == 15


# --- Money ---


async def test_headroom_is_what_there_is_and_reserving_takes_it_at_once(database: Engine) -> None:
    async with admission(database) as admitted:
        first, second = [await let_in(admitted, caller(budget="1")) for _ in range(2)]
        assert first.budgeted
        assert await first.headroom(D("0.7")) == D("0.7")
        first.reserve(D("0.7"))
        assert await second.headroom(D("0.7")) == D("0.3")
        with pytest.raises(ValueError, match="more than the headroom"):
            second.reserve(D("0.31"))
        second.reserve(D("0.3"))


async def test_what_a_request_did_not_cost_can_be_spent_by_another(database: Engine) -> None:
    async with admission(database) as admitted:
        first, second = [await let_in(admitted, caller(budget="1")) for _ in range(2)]
        await first.headroom(D(1))
        first.reserve(D(1))
        first.settle(D("0.25"), 10)
        assert await second.headroom(D("0.75")) == D("0.75")


async def test_a_refusal_names_the_budget_that_is_short_and_when_it_resets(database: Engine) -> None:
    team = Allowance("team:demo", budgets=(Budget(Period.MONTHLY, D(100)),))
    key = Allowance("key:key_1", budgets=(Budget(Period.DAILY, D("1.5")), Budget(Period.TOTAL, D(20))))
    async with admission(database) as admitted:
        ticket = await admitted.admit(Caller(Team("demo"), "key_1", (team, key)), 10)
        assert await ticket.headroom(D(2)) == D("1.5")
        refusal = ticket.refusal(D(2))
        assert isinstance(refusal, BudgetExceeded)
        assert refusal.message == (
            "The daily budget of the key 'key_1' is 1.50 USD, of which 1.50 remain, and the request may cost 2.00; "
            "ask for a shorter answer (max_tokens), or wait until it resets at 2027-03-16 00:00 UTC."
        )
        assert refusal.retry_after == pytest.approx((10 * 60 + 14.5) * 60)


async def test_a_budget_that_is_spent_is_refused_without_asking_the_database_again(database: Engine) -> None:
    clock = Clock()
    async with admission(database, clock) as admitted:
        ticket = await let_in(admitted, caller(budget="1"))
        await ticket.headroom(D(1))
        ticket.reserve(D(1))
        ticket.settle(D(1), 10)
        Outage(database)
        late = await let_in(admitted, caller(budget="1"))
        assert await late.headroom(D("0.5")) == 0
        assert isinstance(late.refusal(D("0.5")), BudgetExceeded)


async def test_what_costs_more_than_reserved_is_deducted_and_the_next_is_refused(database: Engine) -> None:
    async with admission(database) as admitted:
        ticket = await let_in(admitted, caller(budget="1"))
        await ticket.headroom(D("0.5"))
        ticket.reserve(D("0.5"))
        ticket.settle(D("1.2"), 10)
        assert await (await let_in(admitted, caller(budget="1"))).headroom(D("0.1")) == 0


async def test_a_ticket_is_settled_once(database: Engine) -> None:
    async with admission(database) as admitted:
        ticket = await let_in(admitted, caller(budget="1"))
        ticket.settle(D(0), 0)
        with pytest.raises(RuntimeError, match="twice"):
            ticket.settle(D(0), 0)


async def test_a_client_that_leaves_while_it_waits_takes_nothing(database: Engine) -> None:
    who = caller(Limits(concurrency=1))
    async with admission(database) as admitted:
        waiting = asyncio.create_task(let_in(admitted, who))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await let_in(admitted, who)


async def test_limits_that_change_are_in_force_for_the_next_request(database: Engine) -> None:
    async with admission(database) as admitted:
        tickets = [await let_in(admitted, caller(Limits(concurrency=1)))]
        with pytest.raises(LimitExceeded):
            await let_in(admitted, caller(Limits(concurrency=1)))
        tickets.append(await let_in(admitted, caller(Limits(concurrency=2, requests_per_minute=9), "1")))
        tickets.append(await let_in(admitted, caller(Limits(tokens_per_minute=100))))
        for ticket in tickets:
            ticket.settle(D("0.1"), 5)
        assert (await let_in(admitted, caller(Limits(concurrency=1)))).budgeted is False


# --- The database is away ---


async def test_without_a_database_leases_last_until_they_expire_and_then_requests_are_refused(database: Engine) -> None:
    clock, who = Clock(), caller(Limits(concurrency=5), budget="1")
    async with admission(database, clock) as admitted:
        first = await let_in(admitted, who)
        await first.headroom(D("0.8"))
        first.reserve(D("0.1"))
        outage = Outage(database)
        first.settle(D("0.1"), 10)
        second = await let_in(admitted, who)
        assert await second.headroom(D("0.1")) is not None
        second.reserve(D("0.1"))
        second.settle(D("0.1"), 10)
        clock.passed = 8.1
        with pytest.raises(LedgerUnavailable, match="the team 'demo' cannot be checked") as refused:
            await let_in(admitted, who)
        assert refused.value.retry_after is not None
        budgeted = await let_in(admitted, caller(budget="1", scope="team:other"))
        assert await budgeted.headroom(D("0.1")) == 0, "what costs nothing can still be had"
        assert isinstance(budgeted.refusal(D("0.1")), LedgerUnavailable)
        outage.end()
        await until_let_in(admitted, who)


async def test_a_server_that_is_stopped_and_started_again_is_found(database_url: str, postgresql: Any) -> None:
    engine = open_database(database_url)
    who, stranger = caller(budget="1"), caller(Limits(concurrency=1), scope="team:other")
    async with LeaseAgent(engine, "me", replace(QUICK, lease=60.0)) as agent:  # however long the server takes to stop
        admitted = Admission(agent)
        ticket = await let_in(admitted, who)
        await ticket.headroom(D("0.5"))
        ticket.reserve(D("0.5"))  # what is idle would be given back before the server has stopped
        await asyncio.to_thread(postgresql.stop)
        try:
            with pytest.raises(LedgerUnavailable):
                await let_in(admitted, stranger)
            ticket.settle(D(0), 0)
            assert await (await let_in(admitted, who)).headroom(D("0.1")) is not None, "what is leased is used"
        finally:
            postgresql.start()  # the server ends with the thread that starts it, so this is done in none
        await until_let_in(admitted, stranger)
    engine.dispose()


async def test_a_process_that_ends_gives_everything_back(database: Engine) -> None:
    async with admission(database, holder="one") as admitted:
        ticket = await let_in(admitted, caller(Limits(concurrency=2), budget="1"))
        await ticket.headroom(D("0.8"))
        ticket.settle(D(0), 0)
    async with admission(database, holder="other") as admitted:
        ticket = await let_in(admitted, caller(Limits(concurrency=2), budget="1"))
        assert await ticket.headroom(D(1)) == 1
