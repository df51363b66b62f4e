"""What a team or a key may use: rates, requests at once, and money per period."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum


class Period(StrEnum):
    """A calendar period, in UTC. `TOTAL` never ends."""

    HOURLY = "hourly"
    DAILY = "daily"
    MONTHLY = "monthly"
    TOTAL = "total"

    def start(self, moment: float) -> float:
        """When the period that `moment` lies in began; both in seconds since the epoch, 0 for `TOTAL`."""
        match self:
            case Period.HOURLY:
                return moment // 3600 * 3600
            case Period.DAILY:
                return moment // 86400 * 86400
            case Period.MONTHLY:
                return _first_of_month(moment).timestamp()
            case Period.TOTAL:
                return 0.0

    def end(self, moment: float) -> float | None:
        """When it ends; None: never."""
        match self:
            case Period.HOURLY:
                return self.start(moment) + 3600
            case Period.DAILY:
                return self.start(moment) + 86400
            case Period.MONTHLY:
                # From any day of the first four weeks, 31 days lead into the next month.
                return _first_of_month((_first_of_month(moment) + timedelta(days=31)).timestamp()).timestamp()
            case Period.TOTAL:
                return None


@dataclass(frozen=True, slots=True)
class Budget:
    """How many US dollars of marginal cost may be caused in each period."""

    period: Period
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Limits:
    """None is no limit. Tokens are those of prompts and answers together."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one payer may use. `scope` is unique among all of them, as `team:demo` or `key:key_0a1b2c3d`."""

    scope: str
    limits: Limits = field(default_factory=Limits)
    budgets: tuple[Budget, ...] = ()


def _first_of_month(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
