"""Leases: how the ingress processes share limits and budgets through the database.

One `exchange` is one transaction, in which nobody else changes the scopes that it is about. How much a process gets is
decided by `admission.sharing`; here is what that decision rests on, and what is kept of it. At all times, for each
budget: what is stored as spent in its period, and the leases in force, are together no more than its amount.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, delete, or_, select, text
from sqlalchemy.exc import SQLAlchemyError

from meritorder.admission.exchange import Answer, BudgetLeft, Demand, Grant
from meritorder.admission.recent import ZERO
from meritorder.admission.sharing import Ask, Claim, Outcome, Row, share, share_rate
from meritorder.core.limits import Budget, Period
from meritorder.core.pricing import EXACT
from meritorder.ledger.database import insert, lock_scopes, reason
from meritorder.ledger.schema import leases, rate_grants, spend

LEASE_SECONDS = 10.0
"""How long a process that died keeps others from what it held, and how long one goes on without the database."""

SAFETY = 0.2
"""The part of a lease, at its end, in which its holder takes it for expired and nobody else does: the processes' clocks
may differ by this much, two seconds of ten."""

_STATEMENT_SECONDS = 2
"""A lease has to be renewed within `LEASE_SECONDS`; there is time to try again."""

_KEPT_SECONDS = 86400.0
"""How long an expired lease stays, for a process that was cut off: the row says what of its use is stored."""

_USD, _CONCURRENCY, _REQUESTS, _TOKENS = "usd", "concurrency", "requests", "tokens"


class ExchangeFailed(Exception):
    """The database did not take part. `answers` are those of an exchange that may have been committed nevertheless;
    None where nothing has changed."""

    def __init__(self, message: str, answers: Mapping[str, Answer] | None = None) -> None:
        super().__init__(message)
        self.answers = answers


def exchange(
    engine: Engine,
    holder: str,
    demands: Sequence[Demand],
    now: float,
    *,
    reclaim: bool = True,
    lease_seconds: float = LEASE_SECONDS,
) -> dict[str, Answer]:
    """Give back and get, by scope. The leases of `holder` expire at `now + lease_seconds`, which is their stamp, too.

    `now` is in seconds since the epoch. Without `reclaim`, the expired leases of others count as if they were in force:
    whoever was cut off from the database does not know whether the others were, too. Blocks on the database.

    Raises:
        ExchangeFailed: the database cannot be used.
    """
    answers: dict[str, Answer] | None = None
    term = _Term(now, time.monotonic(), lease_seconds, reclaim)
    try:
        with engine.connect() as connection, connection.begin() as transaction:
            found = _exchange(connection, holder, demands, term)
            answers = found  # from here on, an error leaves open whether the transaction is committed
            transaction.commit()
    except SQLAlchemyError as error:
        raise ExchangeFailed(reason(error), answers) from error
    return answers


def sweep(engine: Engine, now: float) -> None:
    """Forget leases and minutes that nobody can ask for any more.

    Raises:
        ExchangeFailed: the database cannot be used.
    """
    dead = leases.c.expires_at < now - _KEPT_SECONDS
    over = rate_grants.c.window_start < now - _KEPT_SECONDS
    try:
        with engine.begin() as connection:
            scopes = {*connection.scalars(select(leases.c.scope).where(dead).distinct())}
            scopes |= {*connection.scalars(select(rate_grants.c.scope).where(over).distinct())}
            lock_scopes(connection, scopes)
            connection.execute(delete(leases).where(dead))
            connection.execute(delete(rate_grants).where(over))
    except SQLAlchemyError as error:
        raise ExchangeFailed(reason(error)) from error


@dataclass(frozen=True, slots=True)
class _Term:
    """The time of an exchange. `begun` is on the monotonic clock: locks may have to be waited for."""

    now: float
    begun: float
    lease_seconds: float
    reclaim: bool

    @property
    def expires_at(self) -> float:
        return self.now + self.lease_seconds

    def own_is_live(self, expires_at: float) -> bool:
        """Whether certainly nobody else was given what this holder has leased until `expires_at`."""
        waited = time.monotonic() - self.begun
        return expires_at - SAFETY * self.lease_seconds > self.now + waited


@dataclass(slots=True)
class _Held:
    """The leases of one resource of one scope: this holder's, and the sum of the others'."""

    own: Row | None = None
    others: Decimal = ZERO


@dataclass(slots=True)
class _Writes:
    """The rows to write, all at once at the end."""

    leases: list[dict[str, Any]] = field(default_factory=list)
    grants: list[dict[str, Any]] = field(default_factory=list)


def _exchange(connection: Connection, holder: str, demands: Sequence[Demand], term: _Term) -> dict[str, Answer]:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'"))
    lock_scopes(connection, [demand.allowance.scope for demand in demands])
    now, expires_at = term.now, term.expires_at
    held = _read_leases(connection, holder, demands, term)
    spent = _read_spend(connection, demands, now)
    granted = _read_grants(connection, demands)
    writes, answers = _Writes(), {}
    for demand in demands:
        scope, limits = demand.allowance.scope, demand.allowance.limits
        money = places = None
        budgets: tuple[BudgetLeft, ...] = ()
        if demand.money is not None:
            mine = held[scope, _USD]
            budgets = tuple(_left(budget, spent, scope, mine.others, now) for budget in demand.allowance.budgets)
            unspent = min((one.unspent for one in budgets), default=ZERO)
            money = _share(writes, (scope, _USD, holder), demand.money, mine, unspent, expires_at)
        if demand.places is not None:
            all_places = Decimal(limits.concurrency or 0)
            mine = held[scope, _CONCURRENCY]
            places = _share(writes, (scope, _CONCURRENCY, holder), demand.places, mine, all_places, expires_at)
        answers[scope] = Answer(
            demand.window,
            money,
            budgets,
            places,
            requests=_grant(writes, demand, _REQUESTS, demand.requests, limits.requests_per_minute, granted),
            tokens=_grant(writes, demand, _TOKENS, demand.tokens, limits.tokens_per_minute, granted),
        )
    _write(connection, writes)
    return answers


def _share(
    writes: _Writes, key: tuple[str, str, str], claim: Claim, held: _Held, limit: Decimal, expires_at: float
) -> Outcome:
    outcome = share(claim, held.own, limit, held.others)
    names = ("scope", "resource", "holder")
    writes.leases.append({**dict(zip(names, key, strict=True)), "amount": outcome.amount, "expires_at": expires_at})
    return outcome


def _grant(
    writes: _Writes,
    demand: Demand,
    resource: str,
    ask: Ask | None,
    limit: int | None,
    granted: Mapping[tuple[str, str, float], int],
) -> Grant | None:
    if ask is None or limit is None:
        return None
    key = (demand.allowance.scope, resource, demand.window)
    before = granted.get(key, 0)
    more = share_rate(ask, limit, before)
    if more:
        names = ("scope", "resource", "window_start")
        writes.grants.append({**dict(zip(names, key, strict=True)), "granted": before + more})
    return Grant(more, max(0, limit - before - more))


def _left(
    budget: Budget, spent: Mapping[tuple[str, str, float], Decimal], scope: str, others: Decimal, now: float
) -> BudgetLeft:
    used = spent.get((scope, budget.period.value, budget.period.start(now)), ZERO)
    unspent = EXACT.subtract(budget.amount, used)
    return BudgetLeft(budget, unspent, EXACT.subtract(unspent, others), budget.period.end(now))


def _read_leases(
    connection: Connection, holder: str, demands: Iterable[Demand], term: _Term
) -> Mapping[tuple[str, str], _Held]:
    scopes = [d.allowance.scope for d in demands if d.money is not None or d.places is not None]
    held: defaultdict[tuple[str, str], _Held] = defaultdict(_Held)
    if not scopes:
        return held
    rows = select(leases).where(leases.c.scope.in_(scopes))
    if term.reclaim:
        rows = rows.where(or_(leases.c.holder == holder, leases.c.expires_at > term.now))
    for row in connection.execute(rows):
        one = held[row.scope, row.resource]
        if row.holder == holder:
            one.own = Row(row.amount, row.expires_at, live=term.own_is_live(row.expires_at))
        else:
            one.others = EXACT.add(one.others, max(ZERO, row.amount))
    return held


def _read_spend(
    connection: Connection, demands: Iterable[Demand], now: float
) -> Mapping[tuple[str, str, float], Decimal]:
    scopes = [demand.allowance.scope for demand in demands if demand.money is not None and demand.allowance.budgets]
    if not scopes:
        return {}
    starts = {period.start(now) for period in Period}
    rows = select(spend).where(spend.c.scope.in_(scopes), spend.c.period_start.in_(starts))
    return {(row.scope, row.period, row.period_start): row.usd for row in connection.execute(rows)}


def _read_grants(connection: Connection, demands: Iterable[Demand]) -> Mapping[tuple[str, str, float], int]:
    asking = [demand for demand in demands if demand.requests is not None or demand.tokens is not None]
    if not asking:
        return {}
    rows = select(rate_grants).where(
        rate_grants.c.scope.in_([demand.allowance.scope for demand in asking]),
        rate_grants.c.window_start.in_({demand.window for demand in asking}),
    )
    return {(row.scope, row.resource, row.window_start): row.granted for row in connection.execute(rows)}


def _write(connection: Connection, writes: _Writes) -> None:
    if writes.leases:
        lease = insert(connection, leases)
        new = {"amount": lease.excluded.amount, "expires_at": lease.excluded.expires_at}
        key = [leases.c.scope, leases.c.resource, leases.c.holder]
        connection.execute(lease.on_conflict_do_update(index_elements=key, set_=new), writes.leases)
    if writes.grants:
        grant = insert(connection, rate_grants)
        key = [rate_grants.c.scope, rate_grants.c.resource, rate_grants.c.window_start]
        connection.execute(
            grant.on_conflict_do_update(index_elements=key, set_={"granted": grant.excluded.granted}), writes.grants
        )
