"""Records in the database: each once and exact, and budgets changed with them in one transaction."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, func, select

from meritorder.core.limits import Period
from meritorder.core.pricing import EXACT
from meritorder.core.usage import Charge, Outcome, Usage, UsageRecord
from meritorder.ledger.database import insert, open_database, reading
from meritorder.ledger.records import find, store, wait_for
from meritorder.ledger.schema import charges, leases, requests, spend

MOMENT = datetime(2027, 3, 15, 13, 45, tzinfo=UTC).timestamp()
COST = Decimal("0.000000123456789012345678901234567890")
RECORD = UsageRecord(
    id="rec_1",
    request_id="req_1",
    team="demo",
    key_id="key_1",
    route="assistant",
    endpoint="chat/completions",
    backend="hosted/chat",
    tier="hosted",
    attempts=2,
    outcome=Outcome.COMPLETED,
    status=200,
    charges=(Charge("hosted/chat", "hosted", Usage(10, 20, 1, 2, 3, 4, 5, 6, 7, estimated=True), COST),),
    started_at=MOMENT + 0.25,
    time_to_first_token=0.125,
    duration=1.5,
    arm="b",
)


def costing(number: int, usd: str | None, **changes: Any) -> UsageRecord:
    charge = Charge("hosted/chat", "hosted", Usage(1, 1), None if usd is None else Decimal(usd))
    return replace(RECORD, id=f"rec_{number}", request_id=f"req_{number}", charges=(charge,), **changes)


def spent(engine: Engine, scope: str, period: Period) -> dict[float, Decimal]:
    of_it = (spend.c.scope == scope) & (spend.c.period == period.value)
    with reading(engine) as connection:
        return {row.period_start: row.usd for row in connection.execute(select(spend).where(of_it))}


def lease(engine: Engine, scope: str, holder: str, amount: str, resource: str = "usd") -> None:
    row = {"scope": scope, "resource": resource, "holder": holder, "amount": Decimal(amount), "expires_at": 1e10}
    with engine.begin() as connection:
        connection.execute(insert(connection, leases), row)


def leased(engine: Engine) -> dict[tuple[str, str, str], Decimal]:
    with reading(engine) as connection:
        rows = connection.execute(select(leases)).all()
    return {(row.scope, row.resource, row.holder): row.amount for row in rows}


# --- Stored once, found as they were ---


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, backend=None, tier=None, arm=None, time_to_first_token=None, charges=(), status=502),
        replace(RECORD, charges=(replace(RECORD.charges[0], backend="lost/hedge", cost=None), *RECORD.charges)),
        replace(RECORD, request_id="ümläut 🔌 " + "x" * 1000),
    ],
    ids=["one charge", "no backend", "a hedge that lost, and has no price", "any text"],
)
def test_a_record_comes_back_as_it_was(database: Engine, record: UsageRecord) -> None:
    store(database, "me", [record])
    assert find(database, [record.request_id]) == [record]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    unit=st.integers(0, 10**60), places=st.integers(0, 40), started_at=st.floats(0, 1e10), duration=st.floats(0, 1e6)
)
def test_money_and_times_are_kept_exactly(
    database: Engine, unit: int, places: int, started_at: float, duration: float
) -> None:
    with database.begin() as connection:
        connection.execute(delete(requests))
        connection.execute(delete(charges))
    charge = replace(RECORD.charges[0], cost=EXACT.scaleb(Decimal(unit), -places))
    record = replace(RECORD, charges=(charge,), started_at=started_at, duration=duration)
    store(database, "me", [record])
    assert find(database, ["req_1"]) == [record]


def test_a_record_that_is_stored_again_stays_one_and_is_paid_for_once(database: Engine) -> None:
    record = costing(1, "0.25")
    store(database, "me", [record, replace(record, duration=9.0)])
    store(database, "me", [replace(record, status=500), costing(2, "0.50")])
    assert find(database, ["req_1", "req_2"]) == [record, costing(2, "0.50")]
    assert spent(database, "team:demo", Period.TOTAL) == {0.0: Decimal("0.75")}


def test_a_request_id_may_come_twice(database: Engine) -> None:
    again = replace(RECORD, id="rec_0", started_at=RECORD.started_at + 1)
    store(database, "me", [again, RECORD])
    assert find(database, ["req_1"]) == [RECORD, again]


def test_records_are_found_in_the_order_asked_for(database: Engine) -> None:
    records = [costing(number, "0.1") for number in range(2500)]
    store(database, "me", records)
    wanted = ["req_7", "none", *(record.request_id for record in reversed(records))]
    assert find(database, wanted) == [records[7], *reversed(records)]


def test_waiting_for_a_record_that_never_comes_ends(database: Engine) -> None:
    assert wait_for(database, ["none"], timeout=0.1) == []


# --- What they do to budgets ---


def test_a_cost_is_added_to_every_period_that_the_request_began_in(database: Engine) -> None:
    store(database, "me", [RECORD])
    starts = {
        Period.HOURLY: datetime(2027, 3, 15, 13, tzinfo=UTC).timestamp(),
        Period.DAILY: datetime(2027, 3, 15, tzinfo=UTC).timestamp(),
        Period.MONTHLY: datetime(2027, 3, 1, tzinfo=UTC).timestamp(),
        Period.TOTAL: 0.0,
    }
    for scope in ("team:demo", "key:key_1"):
        for period, start in starts.items():
            assert spent(database, scope, period) == {start: COST}


def test_costs_of_several_batches_periods_and_payers_add_up(database: Engine) -> None:
    hour = 3600.0
    batches = [
        [
            costing(1, "0.1"),
            costing(2, "0.02", started_at=MOMENT + hour),
            costing(3, "5", team="other", key_id="key_2"),
        ],
        [costing(4, "0.003"), costing(5, "0.0004", key_id="key_3"), costing(6, None), costing(7, "0")],
    ]
    for batch in batches:
        store(database, "me", batch)
    now, later = Period.HOURLY.start(MOMENT), Period.HOURLY.start(MOMENT + hour)
    assert spent(database, "team:demo", Period.HOURLY) == {now: Decimal("0.1034"), later: Decimal("0.02")}
    assert spent(database, "team:demo", Period.TOTAL) == {0.0: Decimal("0.1234")}
    assert spent(database, "key:key_1", Period.TOTAL) == {0.0: Decimal("0.123")}
    assert spent(database, "key:key_2", Period.TOTAL) == {0.0: Decimal(5)}


def test_what_costs_nothing_touches_no_budget(database: Engine) -> None:
    store(database, "me", [costing(1, None), costing(2, "0"), replace(RECORD, charges=())])
    with reading(database) as connection:
        assert connection.execute(select(func.count()).select_from(spend)).scalar() == 0


def test_all_attempts_of_a_request_are_paid_for_without_rounding(database: Engine) -> None:
    small, large = Decimal("1E-30"), Decimal("1E+10")
    parts = tuple(replace(RECORD.charges[0], cost=cost) for cost in (small, large, None))
    store(database, "me", [replace(RECORD, charges=parts)])
    assert spent(database, "team:demo", Period.TOTAL) == {0.0: EXACT.add(small, large)}


def test_the_lease_of_the_holder_who_wrote_the_record_is_lowered_and_no_other(database: Engine) -> None:
    lease(database, "team:demo", "me", "1")
    lease(database, "team:demo", "other", "1")
    lease(database, "team:demo", "me", "8", "concurrency")
    lease(database, "key:key_1", "me", "0.5")
    lease(database, "key:key_9", "me", "1")
    store(database, "me", [costing(1, "0.3"), costing(2, "0.4")])
    store(database, "me", [costing(2, "0.4")])
    assert leased(database) == {
        ("team:demo", "usd", "me"): Decimal("0.3"),
        ("team:demo", "usd", "other"): Decimal(1),
        ("team:demo", "concurrency", "me"): Decimal(8),
        ("key:key_1", "usd", "me"): Decimal(0),  # more was used than leased, and less than nothing is not leased
        ("key:key_9", "usd", "me"): Decimal(1),
    }


def test_processes_that_store_at_once_lose_nothing_and_do_not_wait_for_each_other_for_ever(
    database: Engine, database_place: Path | str
) -> None:
    teams = [f"team{number}" for number in range(6)]
    errors: list[BaseException] = []

    def write(writer: int) -> None:
        engine = open_database(database_place)
        try:
            for batch in range(8):
                order = teams if (writer + batch) % 2 else teams[::-1]
                store(
                    engine,
                    f"holder{writer}",
                    [
                        costing(writer * 1000 + batch * 10 + at, "0.01", team=team, key_id=f"of-{order[-1 - at]}")
                        for at, team in enumerate(order)
                    ],
                )
        except BaseException as error:
            errors.append(error)
        finally:
            engine.dispose()

    _together([partial(write, writer) for writer in range(4)])
    assert errors == []
    for team in teams:
        assert spent(database, f"team:{team}", Period.TOTAL) == {0.0: Decimal("0.32")}
        assert spent(database, f"key:of-{team}", Period.TOTAL) == {0.0: Decimal("0.32")}


def test_the_same_records_by_several_at_once_are_paid_for_once(database: Engine) -> None:
    for number in range(10):
        records = [costing(number * 100 + at, "0.1", team=f"team{number}") for at in range(10)]
        orders = [records, records[::-1], records[5:] + records[:5]]
        _together([partial(store, database, "me", order) for order in orders])
        assert spent(database, f"team:team{number}", Period.TOTAL) == {0.0: Decimal(1)}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    costs=st.lists(st.tuples(st.integers(0, 4), st.none() | st.decimals(0, 1, places=12)), max_size=12),
    cut=st.integers(0, 12),
)
def test_the_spend_of_a_team_is_the_sum_of_its_charges_however_they_come(
    database: Engine, costs: list[tuple[int, Decimal | None]], cut: int
) -> None:
    with database.begin() as connection:
        for table in (requests, charges, spend):
            connection.execute(delete(table))
    records = [
        costing(at, None if cost is None else str(cost), team=f"team{team}") for at, (team, cost) in enumerate(costs)
    ]
    for part in (records[:cut], records, records[cut:]):
        store(database, "me", part)
    with localcontext(EXACT):
        for team in range(5):
            expected = sum((cost for payer, cost in costs if payer == team and cost is not None), Decimal(0))
            assert spent(database, f"team:team{team}", Period.TOTAL).get(0.0, Decimal(0)) == expected


def _together(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=part) for part in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
