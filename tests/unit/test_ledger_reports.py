"""Reports: the same on both databases, and the sum of the rows is the bill."""

import contextlib
import itertools
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert

from meritorder.core.pricing import EXACT
from meritorder.core.usage import Outcome
from meritorder.ledger.replica_time import Sample, record_minute
from meritorder.ledger.reports import By, Report, Row, parse_moment, plain, usage_report
from meritorder.ledger.schema import charges, replica_minutes, requests

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86400.0
_ids = itertools.count()

TOKENS = (
    "cache_write_tokens", "audio_input_tokens", "image_input_tokens",
    "reasoning_tokens", "audio_output_tokens", "image_output_tokens",
)  # fmt: skip


def charge(
    backend: str, given: int = 0, output: int = 0, cached: int = 0, cost: str | None = "0", estimated: bool = False
) -> dict[str, Any]:
    """What one attempt costs. A backend with a slash in its name is hosted."""
    return {
        "backend": backend,
        "tier": "hosted" if "/" in backend else "self-run",
        "input_tokens": given,
        "output_tokens": output,
        "cached_input_tokens": cached,
        "estimated": estimated,
        "cost_usd": None if cost is None else Decimal(cost),
        **dict.fromkeys(TOKENS, 0),
    }


def used(
    engine: Engine,
    *charged: dict[str, Any],
    at: float = NOON,
    team: str = "red",
    key: str = "key_1",
    route: str = "assistant",
    outcome: Outcome = Outcome.COMPLETED,
) -> None:
    """Store one request; the first of `charged` is the backend that answered."""
    number = f"r{next(_ids)}"
    request = {
        "id": number, "request_id": number, "started_at": at, "team": team, "key_id": key, "route": route, "arm": None,
        "endpoint": "chat/completions", "backend": charged[0]["backend"] if charged else None,
        "tier": charged[0]["tier"] if charged else None, "attempts": len(charged), "outcome": outcome.value,
        "status": 200, "time_to_first_token": None, "duration": 1.0,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(requests), request)
        for index, one in enumerate(charged):
            connection.execute(insert(charges), {"request": number, "number": index, **one})


def ran(
    engine: Engine, backend: str, hours: int = 1, replicas: int = 1, price: str | None = "6", at: float = NOON
) -> None:
    """Let replicas run for whole hours."""
    named = None if price is None else Decimal(price)
    for minute in range(60 * hours):
        record_minute(engine, at + 60 * minute, [Sample(backend, replicas, named)])


def report(engine: Engine, by: By = By.TEAM, only: dict[By, str] | None = None) -> Report:
    return usage_report(engine, by, NOON - 7 * DAY, NOON + 7 * DAY, only)


def by_label(made: Report) -> dict[str, Row]:
    return {row.label: row for row in made.rows}


def amortised(made: Report) -> dict[str, Decimal]:
    return {row.label: row.amortised_usd for row in made.rows if row.amortised_usd}


class TestWhatIsCounted:
    def test_tokens_and_costs_of_each_team(self, database: Engine) -> None:
        used(database, charge("openai/gpt", 100, 20, cached=60, cost="0.000123456789"))
        used(database, charge("openai/gpt", 1, 2, cost="0.1"))
        used(database, charge("faq", 7, 8), team="blue")
        assert report(database).rows == [
            Row("red", 2, 0, 101, 60, 22, Decimal("0.100123456789")),
            Row("blue", 1, 0, 7, 0, 8),
        ]

    def test_nothing_used_is_an_empty_report(self, database: Engine) -> None:
        made = report(database)
        assert (made.rows, made.total) == ([], Row("total"))

    def test_a_sum_of_money_is_exact_beyond_what_a_float_or_28_digits_can_hold(self, database: Engine) -> None:
        costs = ["123456789012345678.000000000001", "0.000000000000000000001", "0.1", "0.2"]
        for cost in costs:
            used(database, charge("openai/gpt", cost=cost))
        [row] = report(database).rows
        assert plain(row.marginal_usd) == "123456789012345678.300000000001000000001"
        assert report(database).total.marginal_usd == row.marginal_usd

    @pytest.mark.parametrize(
        ("outcome", "is_error"),
        [
            (Outcome.COMPLETED, False),
            (Outcome.DISCONNECTED, False),
            (Outcome.REJECTED, True),
            (Outcome.REFUSED, True),
            (Outcome.FAILED, True),
        ],
    )
    def test_an_error_is_what_the_client_did_not_choose(
        self, database: Engine, outcome: Outcome, is_error: bool
    ) -> None:
        used(database, outcome=outcome)
        assert report(database).rows == [Row("red", requests=1, errors=int(is_error))]

    def test_an_unknown_price_is_said_and_is_no_zero(self, database: Engine) -> None:
        used(database, charge("openai/gpt", cost=None))
        used(database, charge("openai/gpt", cost="0.5"))
        [row] = report(database).rows
        assert (row.unpriced_requests, row.marginal_usd) == (1, Decimal("0.5"))

    def test_a_team_of_which_nothing_has_a_price_has_no_cost_and_says_so(self, database: Engine) -> None:
        used(database, charge("openai/gpt", cost=None))
        [row] = report(database).rows
        assert (row.unpriced_requests, row.marginal_usd) == (1, Decimal(0))

    def test_a_hedged_request_is_one_request_and_two_charges(self, database: Engine) -> None:
        hedged = [charge("openai/gpt", 10, 5, cost="0.2", estimated=True), charge("acme/large", 10, 1, cost="0.1")]
        used(database, *hedged)
        assert report(database).rows == [Row("red", 1, 0, 20, 0, 6, Decimal("0.3"), estimated_requests=1)]
        assert report(database, By.BACKEND).rows == [
            Row("openai/gpt", 1, 0, 10, 0, 5, Decimal("0.2"), estimated_requests=1),
            Row("acme/large", 0, 0, 10, 0, 1, Decimal("0.1")),
        ]

    def test_the_end_of_the_time_is_not_in_it(self, database: Engine) -> None:
        for at in (NOON - 1, NOON, NOON + 59, NOON + 60):
            used(database, at=at)
        assert usage_report(database, By.TEAM, NOON, NOON + 60).total.requests == 2


class TestRows:
    @pytest.mark.parametrize(
        ("by", "labels"),
        [
            (By.TEAM, ["red", "blue"]),
            (By.KEY, ["key_1", "key_2"]),
            (By.MODEL, ["assistant", "faq"]),
            (By.BACKEND, ["openai/gpt", "faq", "(none)"]),
            (By.DAY, ["2026-02-28", "2026-03-01", "2026-03-02"]),
        ],
    )
    def test_are_the_dearest_first_and_days_in_their_order(self, database: Engine, by: By, labels: list[str]) -> None:
        used(database, charge("openai/gpt", cost="1"), at=NOON + 12 * HOUR)
        used(database, charge("faq"), at=NOON + 12 * HOUR - 0.001, team="blue", key="key_2", route="faq")
        used(database, at=NOON - 12 * HOUR - 0.001)
        assert [row.label for row in report(database, by).rows] == labels

    @pytest.mark.parametrize("by", By)
    def test_add_up_to_the_same_total_whatever_they_are(self, database: Engine, by: By) -> None:
        ran(database, "faq", hours=2)
        used(database, charge("faq", 10, 10), team="blue", key="key_2")
        used(database, charge("openai/gpt", 3, 4, cost="0.25"), at=NOON + DAY)
        total = report(database, by).total
        assert (total.requests, total.input_tokens, total.output_tokens) == (2, 13, 14)
        assert (total.marginal_usd, total.amortised_usd, total.total_usd) == tuple(
            map(Decimal, ("0.25", "12", "12.25"))
        )

    @pytest.mark.parametrize(
        ("only", "requests"),
        [
            ({By.TEAM: "red"}, 2),
            ({By.KEY: "key_2"}, 1),
            ({By.MODEL: "faq"}, 1),
            ({By.BACKEND: "openai/gpt"}, 1),
            ({By.TEAM: "red", By.BACKEND: "openai/gpt"}, 1),
            ({By.TEAM: "nobody"}, 0),
        ],
    )
    @pytest.mark.parametrize("by", By)
    def test_can_be_bound_to_some(self, database: Engine, by: By, only: dict[By, str], requests: int) -> None:
        used(database, charge("openai/gpt", 1))
        used(database, charge("faq", 1), route="faq")
        used(database, charge("faq", 1), team="blue", key="key_2")
        total = report(database, by, only).total
        assert (total.requests, total.input_tokens) == (requests, requests)


class TestReplicaHours:
    def test_are_shared_by_the_work_of_each_hour(self, database: Engine) -> None:
        ran(database, "faq", hours=2)
        used(database, charge("faq", given=100, cached=60, output=5))  # 40 + 4 * 5 = 60
        used(database, charge("faq", given=120), team="blue")
        used(database, charge("faq", given=1), team="green", at=NOON + HOUR)
        assert amortised(report(database)) == {"green": 6, "blue": 4, "red": 2}

    def test_that_nobody_used_are_a_row_of_their_own(self, database: Engine) -> None:
        ran(database, "faq", hours=3)
        used(database, charge("faq", given=1))
        used(database, charge("faq", given=5, cached=5), at=NOON + HOUR)  # no work for a replica
        assert amortised(report(database)) == {"red": 6, "(idle)": 12}
        assert [row.label for row in report(database).rows] == ["red", "(idle)"]

    def test_that_nobody_used_are_those_of_their_backend_and_their_day(self, database: Engine) -> None:
        ran(database, "faq", hours=13)
        assert amortised(report(database, By.BACKEND)) == {"faq": 78}
        assert amortised(report(database, By.DAY)) == {"2026-03-01": 72, "2026-03-02": 6}

    def test_of_each_backend_are_for_those_who_used_it(self, database: Engine) -> None:
        ran(database, "faq")
        ran(database, "big", replicas=2, price="30")
        used(database, charge("faq", given=1))
        used(database, charge("big", given=1000), team="blue")
        used(database, charge("openai/gpt", given=10**9), team="green")
        assert amortised(report(database)) == {"red": 6, "blue": 60}

    def test_are_charged_to_a_hedge_that_lost_there(self, database: Engine) -> None:
        ran(database, "faq")
        used(database, charge("openai/gpt", given=10), charge("faq", given=10))
        assert amortised(report(database, By.MODEL)) == {"assistant": 6}

    @pytest.mark.parametrize("by", By)
    def test_of_one_team_are_what_they_are_among_all_teams(self, database: Engine, by: By) -> None:
        ran(database, "faq", hours=2)
        used(database, charge("faq", given=30))
        used(database, charge("faq", given=10), team="blue")
        assert report(database, by, {By.TEAM: "blue"}).total.amortised_usd == Decimal("1.5")

    def test_of_one_backend_have_its_idle_hours(self, database: Engine) -> None:
        ran(database, "faq")
        ran(database, "big", price="30")
        assert amortised(report(database, By.TEAM, {By.BACKEND: "big"})) == {"(idle)": 30}
        assert amortised(report(database, By.TEAM, {By.BACKEND: ""})) == {}

    def test_without_a_price_are_said_and_are_no_zero(self, database: Engine) -> None:
        ran(database, "faq", price=None, replicas=2)
        used(database, charge("faq", given=1))
        made = report(database)
        assert made.unpriced_replicas == {"faq": 120}
        assert amortised(made) == {}


MONEY = st.decimals(0, 100, places=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    minutes=st.lists(
        st.tuples(st.sampled_from(["faq", "big"]), st.integers(0, 240), st.integers(1, 9), MONEY), max_size=12
    ),
    work=st.lists(
        st.tuples(
            st.sampled_from(["faq", "big", "openai/gpt"]),
            st.integers(0, 240),
            st.sampled_from(["red", "blue", "green"]),
            st.integers(0, 1000),
            st.integers(0, 1000),
            MONEY,
        ),
        max_size=12,
    ),
)
def test_the_rows_add_up_to_the_bill_to_the_last_digit(
    database: Engine,
    minutes: list[tuple[str, int, int, Decimal]],
    work: list[tuple[str, int, str, int, int, Decimal]],
) -> None:
    _empty(database, (requests, charges, replica_minutes))
    billed: dict[tuple[str, int], tuple[int, Decimal]] = {}
    for backend, minute, replicas, price in minutes:
        record_minute(database, NOON + 60 * minute, [Sample(backend, replicas, price)])
        most, _ = billed.get((backend, minute), (0, Decimal(0)))
        billed[backend, minute] = (max(most, replicas), price)
    for backend, minute, team, given_tokens, output, cost in work:
        used(database, charge(backend, given_tokens, output, cost=str(cost)), at=NOON + 60 * minute, team=team)

    caused = sum((cost for *_, cost in work), Decimal(0))
    replicas_cost = sum(
        round(
            sum((replicas * price for (name, _), (replicas, price) in billed.items() if name == backend), Decimal(0))
            / 60,
            9,
        )
        for backend in ("faq", "big")
    )
    for by in By:
        made = report(database, by)
        for total in (made.total, _added(made.rows)):
            assert total.marginal_usd == caused
            assert total.amortised_usd == replicas_cost
        assert all(row.amortised_usd >= 0 for row in made.rows)


def _added(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    return Row(
        "",
        marginal_usd=sum((row.marginal_usd for row in rows), Decimal(0)),
        amortised_usd=sum((row.amortised_usd for row in rows), Decimal(0)),
    )


def _empty(engine: Engine, tables: Iterable[Any]) -> None:
    with engine.begin() as connection:
        for table in tables:
            connection.execute(delete(table))


class TestParseMoment:
    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("2026-03-01", "2026-03-01T00:00:00+00:00"),
            ("2026-03-01T10:30:00Z", "2026-03-01T10:30:00+00:00"),
            ("2026-03-01T10:30:00+02:00", "2026-03-01T08:30:00+00:00"),
            ("2026-03-01 10:30", "2026-03-01T10:30:00+00:00"),
            ("12h", "2026-03-01T00:00:00+00:00"),
            ("7d", "2026-02-22T12:00:00+00:00"),
            ("0d", "2026-03-01T12:00:00+00:00"),
            ("99999d", "1970-01-01T00:00:00+00:00"),
        ],
    )
    def test_days_times_and_how_long_ago(self, text: str, moment: str) -> None:
        assert parse_moment(text, NOON + 59) == datetime.fromisoformat(moment).timestamp()

    @pytest.mark.parametrize(
        "text", ["", "yesterday", "7", "7w", "-7d", "2026-13-01", "1969-12-31", "9999-12-31", "999999d", "\u0667d"]
    )
    def test_all_else_is_refused_with_what_is_expected(self, text: str) -> None:
        with pytest.raises(ValueError, match="a day such as 2026-01-31"):
            parse_moment(text, NOON)

    @given(st.text())
    def test_a_text_is_a_moment_or_refused(self, text: str) -> None:
        with contextlib.suppress(ValueError):
            assert isinstance(parse_moment(text, NOON), float)


@given(st.decimals(-(10**30), 10**30, allow_nan=False))
def test_a_plain_decimal_is_the_same_number_without_an_exponent(value: Decimal) -> None:
    text = plain(value)
    assert Decimal(text) == value
    assert "E" not in text
    assert EXACT.create_decimal(text) == value
