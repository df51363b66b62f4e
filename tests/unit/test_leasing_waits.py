"""Whoever waits for a lease waits for no more than has to be exchanged, and is refused for nothing but a limit."""

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, event

from meritorder.core.catalog import Team
from meritorder.core.limits import Allowance, Budget, Limits, Period
from meritorder.core.request import Caller
from meritorder.ingress.admission import Admission
from meritorder.ingress.leasing import LeaseAgent, Pace

AMPLE = Limits(requests_per_minute=10**6, tokens_per_minute=10**9, concurrency=1000)
BUDGETS = (Budget(Period.DAILY, Decimal(1000)),)
KEYS = [
    Caller(Team("demo"), f"key_{number}", (Allowance(f"key:{number}", AMPLE, BUDGETS), Allowance("team:demo", AMPLE)))
    for number in range(20)
]


class Leased:
    """The scopes of each exchange that changed leases."""

    def __init__(self, engine: Engine) -> None:
        self.scopes: list[set[str]] = []
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("INSERT INTO leases"):
            rows: Sequence[Any] = parameters if isinstance(parameters, list) else [parameters]
            self.scopes.append({row["scope"] if isinstance(row, dict) else row[0] for row in rows})


async def test_an_exchange_that_somebody_waits_for_is_about_nobody_else(database: Engine) -> None:
    leased = Leased(database)
    async with LeaseAgent(database, "me", Pace(interval=1000.0, spacing=0.001, patience=5.0)) as agent:
        admission = Admission(agent)
        tickets = await asyncio.gather(*(admission.admit(one, 10) for one in KEYS[:-1]))
        before = len(leased.scopes)
        tickets.append(await admission.admit(KEYS[-1], 10))
        assert leased.scopes[before:] == [{"key:19", "team:demo"}]
        for ticket in tickets:
            ticket.settle(Decimal(0), 10)


async def test_nobody_is_refused_where_all_limits_are_ample_however_many_come_at_once(database: Engine) -> None:
    async with LeaseAgent(database, "me", Pace(interval=0.02, spacing=0.001, patience=5.0)) as agent:
        admission = Admission(agent)

        async def client(number: int) -> None:
            for turn in range(5):
                ticket = await admission.admit(KEYS[(number * 7 + turn) % len(KEYS)], 10 + number % 50)
                ticket.reserve(min(Decimal("0.01"), await ticket.headroom(Decimal("0.01")) or Decimal(0)))
                await asyncio.sleep(0.001 * (number % 5))
                ticket.settle(Decimal("0.001"), 10)

        await asyncio.gather(*(client(number) for number in range(100)))
