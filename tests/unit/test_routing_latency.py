"""How soon a backend is expected to answer."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.routing.estimates import Mean, Quantile
from meritorder.routing.latency import Latency

NOW = 1000.0


def observed(seconds: float, *, times: int = 30, prompt_tokens: int = 1000, now: float = NOW) -> Latency:
    latency = Latency()
    for _ in range(times):
        latency.observe_first_token(seconds, prompt_tokens=prompt_tokens, in_flight=0, concurrency=4, now=now)
    return latency


def test_of_what_was_never_seen_nothing_is_known() -> None:
    latency = Latency()
    assert latency.predict(100, 0, 4, NOW) is None
    assert latency.p95_ttft(100) is None
    assert latency.pace(1) is None


def test_prompts_of_other_lengths_have_their_own_times() -> None:
    latency = observed(0.1, prompt_tokens=100)
    for _ in range(30):
        latency.observe_first_token(2.0, prompt_tokens=50_000, in_flight=0, concurrency=4, now=NOW)
    assert [latency.predict(length, 0, 4, NOW) for length in (0, 120, 40_000, 10**6)] == pytest.approx([0.1, 0.1, 2, 2])


def test_a_backend_that_slows_down_is_noticed_within_some_requests() -> None:
    latency = observed(0.1, times=1000)
    for _ in range(40):
        latency.observe_first_token(1.0, prompt_tokens=1000, in_flight=0, concurrency=4, now=NOW + 1)
    assert latency.predict(1000, 0, 4, NOW + 1) == pytest.approx(0.9, abs=0.1)


def test_and_at_once_where_the_news_before_are_old() -> None:
    latency = observed(0.1, times=1000)
    latency.observe_first_token(1.0, prompt_tokens=1000, in_flight=0, concurrency=4, now=NOW + 600)
    assert latency.predict(1000, 0, 4, NOW + 600) == pytest.approx(1.0, abs=0.1)


def test_what_was_slow_and_was_left_alone_is_unknown_again_after_a_while() -> None:
    latency = observed(30.0)
    assert [latency.predict(1000, 0, 4, now) for now in (NOW + 59, NOW + 61)] == [pytest.approx(30.0), None]


def test_one_that_is_slow_when_busy_is_not_taken_for_slow_when_idle() -> None:
    latency = Latency()
    for _ in range(30):
        latency.observe_first_token(5.0, prompt_tokens=1000, in_flight=40, concurrency=64, now=NOW)
    assert [latency.predict(1000, in_flight, 64, NOW) for in_flight in (0, 20, 40, 63)] == [None, None, 5.0, 5.0]
    latency.observe_first_token(0.1, prompt_tokens=1000, in_flight=0, concurrency=64, now=NOW)
    assert [latency.predict(1000, in_flight, 64, NOW) for in_flight in (0, 20, 40)] == [0.1, 0.1, 5.0]


class TestQueue:
    def test_who_has_to_queue_waits_for_its_turn(self) -> None:
        latency = observed(0.2)
        # 101 tokens, 10 ms apart: with its first token, a request takes 1.2 s, and four leave in that time.
        latency.observe_rest(1.0, output_tokens=101, in_flight=3, now=NOW)
        ttfts = [latency.predict(1000, in_flight, 4, NOW) for in_flight in (0, 3, 4, 7, 11)]
        service = 0.2 + 0.01 * 101
        assert ttfts == pytest.approx([0.2, 0.2, 0.2 + service / 4, 0.2 + service, 0.2 + 2 * service])

    def test_of_unknown_concurrency_nobody_queues(self) -> None:
        assert observed(0.2).predict(1000, 10_000, None, NOW) == pytest.approx(0.2)

    def test_answers_that_are_not_streamed_say_how_long_a_place_is_taken(self) -> None:
        latency = observed(0.2)
        latency.observe_whole(4.0, in_flight=0, concurrency=4)
        latency.observe_whole(400.0, in_flight=4, concurrency=4)
        assert latency.predict(1000, 4, 4, NOW) == pytest.approx(1.2)

    def test_a_wait_in_the_queue_is_not_taken_for_slowness(self) -> None:
        latency = observed(0.2)
        latency.observe_first_token(60.0, prompt_tokens=1000, in_flight=4, concurrency=4, now=NOW + 50)
        assert latency.predict(1000, 0, 4, NOW + 100) == pytest.approx(0.2)

    def test_the_pace_is_that_of_so_many_at_once(self) -> None:
        latency = Latency()
        latency.observe_rest(1.0, output_tokens=101, in_flight=0, now=NOW)
        latency.observe_rest(5.0, output_tokens=101, in_flight=63, now=NOW)
        assert [latency.pace(in_flight) for in_flight in (0, 1, 63, 500)] == pytest.approx([0.01, 0.01, 0.05, 0.05])


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("share", "rank"), [(0.02, 20), (0.5, 500), (0.95, 950)])
def test_quantiles_come_near_the_true_ones(spread: float, share: float, rank: int) -> None:
    rng, quantile = random.Random(7), Quantile(share)
    seen = [rng.lognormvariate(-1, spread) for _ in range(1000)]
    for value in seen:
        quantile.add(value)
    assert quantile.value == pytest.approx(sorted(seen)[rank], rel=0.05 + 0.3 * spread)


def test_and_follow_when_all_changes() -> None:
    rng, quantile = random.Random(7), Quantile(0.95)
    for _ in range(1000):
        quantile.add(rng.lognormvariate(-1, 0.5))
    for _ in range(100):
        quantile.add(10 * rng.lognormvariate(-1, 0.5))
    assert quantile.value > 3.0


def test_those_of_a_backend_are_of_its_times_to_first_token() -> None:
    latency = observed(0.1)
    assert [latency.p50_ttft(1000), latency.p95_ttft(1000)] == pytest.approx([0.1, 0.1])
    latency.observe_first_token(0.9, prompt_tokens=1000, in_flight=31, concurrency=64, now=NOW)
    assert latency.p95_ttft(9000, in_flight=40) == pytest.approx(0.9)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200), st.floats(0, 1))
def test_estimates_stay_within_what_was_seen(values: list[float], share: float) -> None:
    mean, quantile = Mean(20), Quantile(0.9)
    for value in values:
        mean.add(value)
        quantile.add(value)
        mean.fade(share)
        quantile.fade(share)
    assert min(values) * 0.999 <= mean.value <= max(values) * 1.001
    assert min(values) <= quantile.value <= max(values)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e4), st.integers(0, 10**6), st.integers(0, 99), st.none() | st.integers(0, 50)),
        max_size=50,
    )
)
def test_predictions_are_never_negative(steps: list[tuple[float, int, int, int | None]]) -> None:
    latency = Latency()
    for seconds, tokens, in_flight, concurrency in steps:
        latency.observe_first_token(
            seconds, prompt_tokens=tokens, in_flight=in_flight, concurrency=concurrency, now=NOW
        )
        latency.observe_rest(seconds, output_tokens=tokens, in_flight=in_flight, now=NOW)
        latency.observe_whole(seconds, in_flight=in_flight, concurrency=concurrency)
        assert (latency.predict(tokens, in_flight, concurrency, NOW) or 0) >= 0
