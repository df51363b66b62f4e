"""What of each budget is spent in its present period."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import Engine, and_, or_, select

from meritorder.core.limits import Allowance, Budget, Period
from meritorder.core.pricing import EXACT
from meritorder.ledger.database import reading
from meritorder.ledger.schema import spend

_SCOPES_AT_ONCE = 1000
"""A database takes only so many parameters: SQLite 32,766, PostgreSQL 65,535."""


@dataclass(frozen=True, slots=True)
class BudgetState:
    """`spent` is in US dollars, of the requests that are recorded, which takes about a second after their end.

    `resets_at` is in seconds since the epoch; None: never.
    """

    scope: str
    budget: Budget
    spent: Decimal
    resets_at: float | None

    @property
    def remaining(self) -> Decimal:
        return max(Decimal(0), EXACT.subtract(self.budget.amount, self.spent))


def budget_states(engine: Engine, allowances: Iterable[Allowance], now: float) -> list[BudgetState]:
    """The state of every budget in `allowances` at `now`, in seconds since the epoch."""
    allowances = list(allowances)
    present = [and_(spend.c.period == period.value, spend.c.period_start == period.start(now)) for period in Period]
    scopes = sorted({allowance.scope for allowance in allowances if allowance.budgets})
    spent: dict[tuple[str, str], Decimal] = {}
    with reading(engine) as connection:
        for start in range(0, len(scopes), _SCOPES_AT_ONCE):
            asked = spend.c.scope.in_(scopes[start : start + _SCOPES_AT_ONCE])
            rows = connection.execute(select(spend.c.scope, spend.c.period, spend.c.usd).where(asked, or_(*present)))
            spent |= {(scope, period): usd for scope, period, usd in rows}
    return [
        BudgetState(
            allowance.scope,
            budget,
            spent.get((allowance.scope, budget.period.value), Decimal(0)),
            budget.period.end(now),
        )
        for allowance in allowances
        for budget in allowance.budgets
    ]
