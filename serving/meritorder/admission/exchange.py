"""What a process and the database tell each other of one scope."""

from dataclasses import dataclass
from decimal import Decimal

from meritorder.admission.sharing import Ask, Claim, Outcome
from meritorder.core.limits import Allowance, Budget


@dataclass(frozen=True, slots=True)
class Demand:
    """What is wanted of one scope: None of a part where there is nothing to say. `window` is the minute that
    `requests` and `tokens` are of, in seconds since the epoch."""

    allowance: Allowance
    window: float
    money: Claim | None = None
    places: Claim | None = None
    requests: Ask | None = None
    tokens: Ask | None = None


@dataclass(frozen=True, slots=True)
class BudgetLeft:
    """One budget at an exchange. `unspent` is what is not stored as spent, `left` what of it nobody else has leased,
    both in US dollars. `ends` is when its period ends, in seconds since the epoch; None: never."""

    budget: Budget
    unspent: Decimal
    left: Decimal
    ends: float | None


@dataclass(frozen=True, slots=True)
class Grant:
    """Some more of a minute. `left` is what nobody has been granted of it."""

    amount: int
    left: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What there is of one scope from now on; a part is None where nothing was wanted of it."""

    window: float
    money: Outcome | None = None
    budgets: tuple[BudgetLeft, ...] = ()
    places: Outcome | None = None
    requests: Grant | None = None
    tokens: Grant | None = None
