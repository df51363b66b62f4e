"""Usage records as rows: stored once each, together with what they do to budgets, and found again."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal, localcontext
from typing import Any

from sqlalchemy import Connection, Engine, Row, bindparam, select, update

from meritorder.core.limits import Period
from meritorder.core.pricing import EXACT
from meritorder.core.usage import Charge, Outcome, Usage, UsageRecord
from meritorder.ledger.database import insert, lock_scopes, reading
from meritorder.ledger.schema import charges, leases, requests, spend

_USAGE = tuple(field.name for field in fields(Usage))
_REQUEST = tuple(column.name for column in requests.c if column.name != "outcome")
_IDS_PER_QUERY = 1000


def store(engine: Engine, holder: str, records: Iterable[UsageRecord]) -> None:
    """Write the records of one ingress process, all or none. One whose id is there already changes nothing.

    What they cost is added to `spend`, for their teams and keys in every period that they began in, and taken from
    what `holder` has leased of these budgets, in the same transaction.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database does not take them.
    """
    unique = {record.id: record for record in reversed(list(records))}
    with engine.begin() as connection:
        new = _insert(connection, unique)
        costs = _costs(new)
        if not costs:
            return
        lock_scopes(connection, costs)
        with localcontext(EXACT):
            _add_to_spend(connection, new, costs)
            _take_from_leases(connection, holder, costs)


def find(engine: Engine, request_ids: Iterable[str]) -> list[UsageRecord]:
    """The records of `request_ids` that are stored, in the order of the ids, and those of one id in that of time."""
    wanted = list(request_ids)
    found: defaultdict[str, list[UsageRecord]] = defaultdict(list)
    with reading(engine) as connection:
        for at in range(0, len(wanted), _IDS_PER_QUERY):
            some = set(wanted[at : at + _IDS_PER_QUERY]) - found.keys()
            for record in _select(connection, some):
                found[record.request_id].append(record)
    return [record for request_id in wanted for record in found.get(request_id, ())]


def wait_for(engine: Engine, request_ids: Sequence[str], timeout: float = 5.0) -> list[UsageRecord]:
    """As `find`, but waits up to `timeout` seconds until all are there."""
    deadline = time.monotonic() + timeout
    while len(found := find(engine, request_ids)) < len(request_ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _insert(connection: Connection, records: Mapping[str, UsageRecord]) -> list[UsageRecord]:
    """Insert those that are not there yet, and say which they are."""
    if not records:
        return []
    # In one order, so that two who write the same ones do not wait for each other.
    rows = [_request_row(records[record_id]) for record_id in sorted(records)]
    statement = insert(connection, requests).on_conflict_do_nothing().returning(requests.c.id)
    inserted = connection.execute(statement, rows)
    new = [records[record_id] for record_id in inserted.scalars()]
    parts = [part for record in new for part in _charge_rows(record)]
    if parts:
        connection.execute(charges.insert(), parts)
    return new


def _costs(records: Iterable[UsageRecord]) -> dict[str, Decimal]:
    """What the records cost, by the scopes that pay for it. What costs nothing is not in it."""
    costs: defaultdict[str, Decimal] = defaultdict(Decimal)
    for record in records:
        for scope, cost in _payers(record):
            costs[scope] = EXACT.add(costs[scope], cost)
    return dict(costs)


def _payers(record: UsageRecord) -> Iterator[tuple[str, Decimal]]:
    with localcontext(EXACT):
        cost = record.cost
    if cost:
        yield f"team:{record.team}", cost
        yield f"key:{record.key_id}", cost


def _add_to_spend(connection: Connection, records: Iterable[UsageRecord], scopes: Iterable[str]) -> None:
    added: defaultdict[tuple[str, str, float], Decimal] = defaultdict(Decimal)
    for record in records:
        for scope, cost in _payers(record):
            for period in Period:
                added[scope, period.value, period.start(record.started_at)] += cost
    starts = {start for _, _, start in added}
    query = select(spend).where(spend.c.scope.in_(scopes), spend.c.period_start.in_(starts))
    for row in connection.execute(query).all():
        if (key := (row.scope, row.period, row.period_start)) in added:
            added[key] += row.usd
    statement = insert(connection, spend)
    connection.execute(
        statement.on_conflict_do_update(index_elements=list(spend.primary_key), set_={"usd": statement.excluded.usd}),
        [{"scope": scope, "period": name, "period_start": at, "usd": usd} for (scope, name, at), usd in added.items()],
    )


def _take_from_leases(connection: Connection, holder: str, costs: Mapping[str, Decimal]) -> None:
    mine = (leases.c.resource == "usd") & (leases.c.holder == holder)
    rows = connection.execute(select(leases.c.scope, leases.c.amount).where(mine, leases.c.scope.in_(costs))).all()
    if rows:
        statement = update(leases).where(mine, leases.c.scope == bindparam("payer")).values(amount=bindparam("left"))
        connection.execute(
            statement, [{"payer": row.scope, "left": max(Decimal(0), row.amount - costs[row.scope])} for row in rows]
        )


def _select(connection: Connection, request_ids: Iterable[str]) -> Iterator[UsageRecord]:
    query = select(requests).where(requests.c.request_id.in_(request_ids))
    rows = connection.execute(query.order_by(requests.c.started_at, requests.c.id)).all()
    charged: defaultdict[str, list[Charge]] = defaultdict(list)
    of_these = charges.c.request.in_(query.with_only_columns(requests.c.id))
    for row in connection.execute(select(charges).where(of_these).order_by(charges.c.number)).all():
        charged[row.request].append(_charge(row))
    for row in rows:
        given = {name: getattr(row, name) for name in _REQUEST}
        yield UsageRecord(**given, outcome=Outcome(row.outcome), charges=tuple(charged[row.id]))


def _request_row(record: UsageRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _REQUEST} | {"outcome": record.outcome.value}


def _charge_rows(record: UsageRecord) -> Iterator[dict[str, Any]]:
    for number, charge in enumerate(record.charges):
        yield {
            "request": record.id, "number": number, "backend": charge.backend, "tier": charge.tier,
            "cost_usd": charge.cost, **{name: getattr(charge.usage, name) for name in _USAGE},
        }  # fmt: skip


def _charge(row: Row[Any]) -> Charge:
    usage = Usage(**{name: getattr(row, name) for name in _USAGE})
    return Charge(row.backend, row.tier, usage, row.cost_usd)
