"""What of each budget is spent: of the scopes that are asked for, in the present period."""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert

from meritorder.core.limits import Allowance, Budget, Limits, Period
from meritorder.ledger.schema import spend
from meritorder.ledger.spending import BudgetState, budget_states

NOW = 1_800_000_000.0
DAILY, TOTAL = Budget(Period.DAILY, Decimal(5)), Budget(Period.TOTAL, Decimal(2))


def allowance(scope: str, *budgets: Budget) -> Allowance:
    return Allowance(scope, Limits(), budgets)


def spent(engine: Engine, scope: str, period: Period, usd: str, at: float = NOW) -> None:
    row = {"scope": scope, "period": period.value, "period_start": period.start(at), "usd": Decimal(usd)}
    with engine.begin() as connection:
        connection.execute(insert(spend), [row])


@contextmanager
def rows_read(engine: Engine) -> Iterator[list[int]]:
    """How many rows each SELECT could have come back with: the parameters that name a scope."""
    seen: list[int] = []

    def note(_connection: Any, _cursor: Any, _statement: str, parameters: Any, *_: Any) -> None:
        values = parameters.values() if isinstance(parameters, dict) else parameters
        seen.append(sum(isinstance(value, str) and value.startswith("team:") for value in values))

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


def test_each_budget_has_what_was_spent_in_its_present_period(database: Engine) -> None:
    spent(database, "team:red", Period.DAILY, "1.25")
    spent(database, "team:red", Period.DAILY, "4", at=NOW - 86_400)
    spent(database, "team:red", Period.TOTAL, "3")
    spent(database, "team:blue", Period.DAILY, "2")
    assert budget_states(database, [allowance("team:red", DAILY, TOTAL), allowance("team:new", DAILY)], NOW) == [
        BudgetState("team:red", DAILY, Decimal("1.25"), Period.DAILY.end(NOW)),
        BudgetState("team:red", TOTAL, Decimal(3), None),
        BudgetState("team:new", DAILY, Decimal(0), Period.DAILY.end(NOW)),
    ]


def test_what_is_overspent_has_nothing_left() -> None:
    assert BudgetState("team:red", TOTAL, Decimal(3), None).remaining == 0


@pytest.mark.parametrize(("scopes", "queries"), [(0, []), (2, [2]), (1001, [1000, 1])])
def test_only_the_scopes_that_are_asked_for_are_read(database: Engine, scopes: int, queries: list[int]) -> None:
    asked = [allowance(f"team:{number}", DAILY) for number in range(scopes)]
    spent(database, "team:0", Period.DAILY, "1")
    spent(database, "team:1000", Period.DAILY, "2")
    with rows_read(database) as seen:
        states = budget_states(database, [*asked, allowance("team:unlimited")], NOW)
    assert [count for count in seen if count] == queries
    assert sum(state.spent for state in states) == {0: 0, 2: 1, 1001: 3}[scopes]
