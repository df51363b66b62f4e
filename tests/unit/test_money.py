"""What a request costs: exact, never negative, and never a guess."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.core.money import FREE, Price
from meritorder.core.usage import Usage

rates = st.decimals(min_value=0, max_value=10**30, allow_nan=False, allow_infinity=False)
prices = st.builds(Price, rates, rates, st.none() | rates)
counts = st.integers(min_value=0, max_value=10**40)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    input_tokens = draw(counts)
    return Usage(input_tokens, draw(counts), draw(st.integers(min_value=0, max_value=input_tokens)))


@given(prices, usages())
def test_cost_is_the_exact_sum_of_tokens_times_rates(price: Price, usage: Usage) -> None:
    cached_rate = price.input if price.cached_input is None else price.cached_input
    exact = (
        (usage.input_tokens - usage.cached_input_tokens) * Fraction(price.input)
        + usage.cached_input_tokens * Fraction(cached_rate)
        + usage.output_tokens * Fraction(price.output)
    ) / 10**6
    assert Fraction(price.cost(usage)) == exact


@given(prices, usages())
def test_cost_is_never_negative(price: Price, usage: Usage) -> None:
    assert price.cost(usage) >= 0


@given(prices, usages(), usages())
def test_two_requests_cost_what_they_cost_together(price: Price, one: Usage, other: Usage) -> None:
    both = Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cached_input_tokens + other.cached_input_tokens,
    )
    assert Fraction(price.cost(one)) + Fraction(price.cost(other)) == Fraction(price.cost(both))


@given(usages())
def test_a_self_run_model_costs_nothing_more_per_request(usage: Usage) -> None:
    assert FREE.cost(usage) == 0


@pytest.mark.parametrize(
    ("price", "usage", "cost"),
    [
        pytest.param(Price(Decimal("0.25"), Decimal(2)), Usage(1_000_000, 0), "0.25", id="a million input tokens"),
        pytest.param(Price(Decimal("0.25"), Decimal(2)), Usage(12, 3), "0.000009", id="a short answer"),
        pytest.param(
            Price(Decimal("0.20"), Decimal("1.25"), Decimal("0.02")), Usage(100, 0, 60), "0.0000092", id="partly cached"
        ),
        pytest.param(Price(Decimal("0.20"), Decimal(0)), Usage(100, 0, 60), "0.00002", id="no price for cached input"),
        pytest.param(
            Price(Decimal("0.20"), Decimal(0), Decimal(0)), Usage(100, 0, 100), "0", id="cached input is free"
        ),
    ],
)
def test_cost(price: Price, usage: Usage, cost: str) -> None:
    assert price.cost(usage) == Decimal(cost)


@pytest.mark.parametrize("rate", ["-0.01", "NaN", "sNaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ["input", "output", "cached_input"])
def test_a_rate_that_is_negative_or_not_a_number_is_no_price(field: str, rate: str) -> None:
    rates = {"input": Decimal(1), "output": Decimal(1), field: Decimal(rate)}
    with pytest.raises(ValueError, match="not a price"):
        Price(**rates)


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param((-1, 0, 0), id="negative input"),
        pytest.param((0, -1, 0), id="negative output"),
        pytest.param((0, 0, -1), id="negative cached"),
        pytest.param((5, 0, 6), id="more cached than input"),
    ],
)
def test_impossible_token_counts_are_refused(tokens: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a token count"):
        Usage(*tokens)
