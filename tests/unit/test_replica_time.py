"""What replicas cost: the minutes in which they ran, their bills, and the shares of those."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from meritorder.core.catalog import Backend, Capabilities, Catalog, Endpoint, Tier
from meritorder.core.pricing import FREE
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.ledger.replica_time import (
    ReplicaHours,
    ReplicaTime,
    Sample,
    bills,
    record_minute,
    running,
    shares,
)
from meritorder.ledger.schema import metadata, replica_minutes

PRICE = Decimal("2.50")
MINUTE = 1_800_000_000.0


def stored(engine: Engine) -> list[tuple[str, float, int, Decimal | None]]:
    with engine.connect() as connection:
        rows = connection.execute(select(replica_minutes).order_by("backend", "minute"))
        return [tuple(row) for row in rows]


class TestRecordMinute:
    def test_the_same_samples_again_change_nothing(self, database: Engine) -> None:
        for _ in range(3):
            record_minute(database, MINUTE, [Sample("faq", 2, PRICE)])
        assert stored(database) == [("faq", MINUTE, 2, PRICE)]

    @pytest.mark.parametrize("order", [(1, 3, 2), (3, 2, 1), (2, 1, 3)])
    def test_of_several_ingresses_the_one_that_saw_most_replicas_is_right(
        self, database: Engine, order: tuple[int, ...]
    ) -> None:
        for replicas in order:
            record_minute(database, MINUTE, [Sample("faq", replicas, PRICE)])
        assert stored(database) == [("faq", MINUTE, 3, PRICE)]

    def test_a_price_that_was_named_once_is_kept(self, database: Engine) -> None:
        record_minute(database, MINUTE, [Sample("faq", 1, PRICE)])
        record_minute(database, MINUTE, [Sample("faq", 1, None)])
        assert stored(database) == [("faq", MINUTE, 1, PRICE)]

    def test_backends_and_minutes_are_apart(self, database: Engine) -> None:
        record_minute(database, MINUTE, [Sample("b", 1, None), Sample("a", 2, PRICE)])
        record_minute(database, MINUTE + 60, [Sample("a", 1, PRICE)])
        assert stored(database) == [("a", MINUTE, 2, PRICE), ("a", MINUTE + 60, 1, PRICE), ("b", MINUTE, 1, None)]

    def test_nothing_that_runs_is_nothing_to_record(self, database: Engine) -> None:
        record_minute(database, MINUTE, [])
        assert stored(database) == []


class TestReplicaTime:
    def test_samples_belong_to_the_minute_that_they_are_taken_in(self, database: Engine) -> None:
        time = ReplicaTime(database)
        for second, replicas in ((0, 1), (20.5, 2), (59.9, 1), (60, 1)):
            time.note([Sample("faq", replicas, PRICE)], MINUTE + second)
        assert stored(database) == [("faq", MINUTE, 2, PRICE), ("faq", MINUTE + 60, 1, PRICE)]

    def test_what_the_database_did_not_take_is_written_when_it_does(self, database: Engine) -> None:
        time = ReplicaTime(database)
        metadata.drop_all(database, [replica_minutes])
        for minute in range(3):
            with pytest.raises(SQLAlchemyError):
                time.note([Sample("faq", minute + 1, PRICE)], MINUTE + 60 * minute)
        metadata.create_all(database, [replica_minutes])
        time.note([], MINUTE + 180)
        assert [(minute, replicas) for _, minute, replicas, _ in stored(database)] == [
            (MINUTE, 1),
            (MINUTE + 60, 2),
            (MINUTE + 120, 3),
        ]

    def test_a_day_is_kept_and_not_more(self, database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(*_: object) -> None:
            raise OperationalError("INSERT", {}, Exception("away"))

        time = ReplicaTime(database)
        with monkeypatch.context() as patched:
            patched.setattr("meritorder.ledger.replica_time.record_minute", away)
            for minute in range(25 * 60):
                with pytest.raises(OperationalError):
                    time.note([Sample("faq", 1, PRICE)], MINUTE + 60 * minute)
        time.note([], MINUTE + 60 * 25 * 60)
        assert len(stored(database)) == 24 * 60 - 1  # the minute of the last call had nothing


def test_running_replicas_of_self_run_backends_are_what_is_paid_for() -> None:
    def backend(name: str, tier: Tier = Tier.SELF_RUN) -> Backend:
        capabilities = Capabilities(frozenset({Endpoint.CHAT_COMPLETIONS}))
        return Backend(name, tier, f"app-{name}", name, capabilities, FREE, replica_hour_price=PRICE)

    backends = [backend("up"), backend("starting"), backend("unknown"), backend("hosted", Tier.HOSTED)]
    statuses = {
        "app-up": ApplicationStatus("app-up", Phase.READY, running_replicas=2, target_replicas=3),
        "app-starting": ApplicationStatus("app-starting", Phase.STARTING, running_replicas=0, target_replicas=1),
        "app-hosted": ApplicationStatus("app-hosted", Phase.READY, running_replicas=1, target_replicas=1),
    }
    catalog = Catalog({one.name: one for one in backends}, {}, {})
    assert running(catalog, statuses) == [Sample("up", 2, PRICE)]


class TestBills:
    def test_an_hour_costs_its_price_for_each_replica(self) -> None:
        assert bills([ReplicaHours("faq", 7, PRICE, minutes=120)]) == {("faq", 7): 5_000_000_000}

    def test_minutes_at_several_prices_are_one_bill(self) -> None:
        used = [ReplicaHours("faq", 7, Decimal("1.20"), 30), ReplicaHours("faq", 7, Decimal("2.40"), 30)]
        assert bills(used) == {("faq", 7): 1_800_000_000}

    def test_minutes_without_a_price_are_in_no_bill(self) -> None:
        assert bills([ReplicaHours("faq", 7, None, 60)]) == {}

    def test_what_rounding_leaves_over_is_not_lost(self) -> None:
        used = [ReplicaHours("faq", hour, Decimal(1), minutes=1) for hour in range(60)]
        made = bills(used)
        assert set(made.values()) == {16_666_666, 16_666_667}
        assert sum(made.values()) == 1_000_000_000

    @given(
        st.lists(
            st.builds(
                ReplicaHours,
                st.sampled_from(["a", "b"]),
                st.integers(0, 5),
                st.none() | st.decimals(0, 999_999, places=9),
                st.integers(0, 6000),
            )
        )
    )
    def test_the_bill_of_each_backend_is_exact_but_for_one_rounding(self, used: list[ReplicaHours]) -> None:
        made = bills(used)
        assert all(cost >= 0 for cost in made.values())
        for backend in ("a", "b"):
            exact = sum(
                (Fraction(one.price) * one.minutes / 60 for one in used if one.backend == backend and one.price),
                Fraction(0),
            )
            assert sum(cost for (name, _), cost in made.items() if name == backend) == round(exact * 10**9)


class TestShares:
    @given(
        st.integers(0, 10**18),
        st.lists(st.integers(0, 10**12), min_size=1, max_size=30).filter(any),
    )
    def test_they_are_proportional_within_one_unit_and_add_up_exactly(self, bill: int, work: list[int]) -> None:
        made = list(shares(bill, work))
        assert sum(made) == bill
        for share, one in zip(made, work, strict=True):
            assert abs(share - Fraction(bill * one, sum(work))) < 1
            assert share >= 0
            assert one or not share
