"""The figures of the measurements: quantiles and tables, the time of a coroutine, and what spilled over."""

import asyncio
import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder_loadtest.figures import mean, quantile, table
from meritorder_loadtest.spillover import Seen, at, bars, changes, in_flight, share, timeline
from meritorder_loadtest.stopwatch import Lap, Stopwatch


class TestQuantile:
    @pytest.mark.parametrize(
        ("values", "part", "expected"), [([1, 2, 3, 4], 0.5, 2), ([4, 1, 3, 2], 1, 4), ([7], 0.01, 7)]
    )
    def test_is_one_of_the_values(self, values: list[float], part: float, expected: float) -> None:
        assert quantile(values, part) == expected

    @given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.01, 1))
    def test_is_the_least_that_the_share_does_not_exceed(self, values: list[float], part: float) -> None:
        found = quantile(values, part)
        assert sum(value <= found for value in values) >= part * len(values) - 1e-9
        assert sum(value < found for value in values) < part * len(values)

    @pytest.mark.parametrize(("values", "part"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
    def test_of_nothing_is_an_error(self, values: list[float], part: float) -> None:
        with pytest.raises(ValueError, match="no quantile"):
            quantile(values, part)


def test_the_mean_of_nothing_is_nothing() -> None:
    assert (mean([]), mean([1, 2])) == (0.0, 1.5)


def test_a_table_has_names_to_the_left_and_numbers_to_the_right() -> None:
    assert table(("step", "us"), [("auth", 7.5), ("a longer one", 120)]).splitlines() == [
        "step           us",
        "------------  ---",
        "auth          7.5",
        "a longer one  120",
    ]


class TestTheTimeOfACoroutine:
    async def test_is_its_own_and_not_that_of_others_while_it_waits(self) -> None:
        async def waiting() -> str:
            await asyncio.sleep(0)
            return "done"

        async def busy() -> None:
            until = time.thread_time_ns() + 20_000_000
            while time.thread_time_ns() < until:
                pass

        lap = Lap()
        answer, _ = await asyncio.gather(lap.measure(waiting()), busy())
        assert (answer, lap.suspended) == ("done", 1)
        assert lap.microseconds < 10_000

    async def test_what_is_thrown_into_it_arrives_and_what_it_raises_comes_out(self) -> None:
        async def stubborn() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise LookupError from None

        task = asyncio.create_task(_await(Lap(), stubborn()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(LookupError):
            await task

    async def test_a_watched_method_does_what_it_did(self) -> None:
        class Thing:
            def double(self, number: int) -> int:
                return 2 * number

            async def later(self, number: int) -> int:
                await asyncio.sleep(0)
                return 2 * number

        watch = Stopwatch()
        watch.watch(Thing, "double", "now")
        watch.watch(Thing, "later", "later")
        assert (Thing().double(2), await Thing().later(3)) == (4, 6)
        assert watch.spent.keys() == {"now", "later"}


async def _await(lap: Lap, work: object) -> None:
    await lap.measure(work)  # type: ignore[arg-type]


def seen(backend: str | None, sent: float, ended: float) -> Seen:
    return Seen("low", backend, 1, sent, None, ended, Decimal(0))


class TestSpillOver:
    def test_the_share_is_of_what_was_answered(self) -> None:
        assert share([seen("own", 0, 1), seen("own", 0, 1), seen("peaker", 0, 1), seen(None, 0, 1)], "own") == 2 / 3
        assert share([seen(None, 0, 1)], "own") == 0.0

    def test_the_mean_in_flight_counts_what_lies_between_two_moments(self) -> None:
        requests = [seen("own", 0, 2), seen("own", 1, 5), seen("peaker", 0, 10), seen("own", 8, 9)]
        assert in_flight(requests, "own", 1, 3) == pytest.approx((1 + 2) / 2)
        assert in_flight(requests, "own", 6, 7) == 0.0

    def test_who_was_there_when_another_was_sent(self) -> None:
        requests = [seen("own", 0, 2), seen("own", 1, 5), seen("peaker", 0, 10)]
        assert [at(requests, "own", moment) for moment in (0.5, 1.5, 3, 6)] == [1, 2, 1, 0]

    def test_the_timeline_has_a_step_for_all_the_time_between(self) -> None:
        requests = [seen("own", 10.0, 11), seen("peaker", 10.9, 11), seen("own", 12.1, 13), seen(None, 20, 21)]
        assert timeline(requests, "own") == [(1, 1), (0, 0), (1, 0)]
        assert timeline(requests, "own", 5) == [(2, 1)]
        assert timeline([], "own") == []

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ([], 0),
            ([(5, 0), (4, 0)], 0),
            ([(5, 0), (4, 8), (4, 7), (2, 0)], 2),
            ([(5, 0), (4, 8), (0, 0), (4, 8), (1, 0), (4, 1)], 3),
        ],
    )
    def test_a_change_is_where_spilling_begins_or_ends(self, steps: list[tuple[int, int]], expected: int) -> None:
        assert changes(steps) == expected

    def test_the_bars_are_never_wider_than_allowed(self) -> None:
        assert bars([(2, 0), (1, 2)]) == "   0 s    2 +   0  ##\n   1 s    1 +   2  #oo"
        assert max(bars([(100, 300)], width=40).count(mark) for mark in "#o") == 30
