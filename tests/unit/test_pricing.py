"""What a request costs: exact, never negative, and never a guess."""

from dataclasses import fields, replace
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.core.pricing import (
    FREE,
    NoPrice,
    Price,
    PriceSheet,
    PromptTier,
    Rates,
    ServiceTier,
    charge,
)
from meritorder.core.usage import Usage

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC).timestamp()
RATES = [field.name for field in fields(Rates)]
PARTS = {
    "cached_input": "cached_input_tokens",
    "cache_write": "cache_write_tokens",
    "audio_input": "audio_input_tokens",
    "image_input": "image_input_tokens",
    "reasoning": "reasoning_tokens",
    "audio_output": "audio_output_tokens",
    "image_output": "image_output_tokens",
}
"""The rates that are for a part of the tokens, and the tokens that they are for."""
OF_OUTPUT = ("reasoning", "audio_output", "image_output")

amounts = st.decimals(min_value=0, max_value=10**30, allow_nan=False, allow_infinity=False)
all_rates = st.builds(Rates, amounts, amounts, *[st.none() | amounts] * len(PARTS))
counts = st.integers(min_value=0, max_value=10**40)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    parts: dict[str, Any] = {tokens: draw(counts) for tokens in PARTS.values()}
    made = sum(parts[PARTS[name]] for name in OF_OUTPUT)
    given = sum(parts.values()) - made
    return Usage(given + draw(counts), made + draw(counts), **parts)


def together(one: Usage, other: Usage) -> Usage:
    names = [field.name for field in fields(Usage) if field.name != "estimated"]
    return Usage(**{name: getattr(one, name) + getattr(other, name) for name in names})


def rates(value: str = "1", **others: str) -> Rates:
    return Rates(**{"input": Decimal(value), "output": Decimal(value)} | {k: Decimal(v) for k, v in others.items()})


def sheet(default: Rates, since: date | None = None) -> PriceSheet:
    return PriceSheet({ServiceTier.DEFAULT: (PromptTier(-1, default),)}, since)


class TestRates:
    @given(all_rates, usages())
    def test_a_cost_is_the_exact_sum_of_all_tokens_at_their_rates(self, rates: Rates, usage: Usage) -> None:
        plain_input = usage.input_tokens - sum(getattr(usage, PARTS[n]) for n in PARTS if n not in OF_OUTPUT)
        plain_output = usage.output_tokens - sum(getattr(usage, PARTS[n]) for n in OF_OUTPUT)
        exact = plain_input * Fraction(rates.input) + plain_output * Fraction(rates.output)
        for name, tokens in PARTS.items():
            own, general = getattr(rates, name), rates.output if name in OF_OUTPUT else rates.input
            exact += getattr(usage, tokens) * Fraction(general if own is None else own)
        assert Fraction(charge(rates, usage)) == exact / 10**6

    @given(all_rates, usages())
    def test_a_cost_is_never_negative(self, rates: Rates, usage: Usage) -> None:
        assert charge(rates, usage) >= 0

    @given(all_rates, usages(), usages())
    def test_two_requests_cost_what_they_cost_together(self, rates: Rates, one: Usage, other: Usage) -> None:
        sum_of_both = Fraction(charge(rates, one)) + Fraction(charge(rates, other))
        assert sum_of_both == Fraction(charge(rates, together(one, other)))

    @given(all_rates, usages())
    def test_the_precision_that_happens_to_be_set_changes_nothing(self, rates: Rates, usage: Usage) -> None:
        with localcontext() as context:
            context.prec = 1
            imprecise = charge(rates, usage)
        assert Fraction(imprecise) == Fraction(charge(rates, usage))

    @given(usages(), st.sampled_from(ServiceTier))
    def test_a_self_run_model_costs_nothing_more_per_request(self, usage: Usage, tier: ServiceTier) -> None:
        assert FREE.cost(usage, NOW, tier) == 0

    @pytest.mark.parametrize(
        ("price", "usage", "cost"),
        [
            pytest.param(Price.flat(Decimal("0.25"), Decimal(2)), Usage(10**6), "0.25", id="a million input tokens"),
            pytest.param(Price.flat(Decimal("0.25"), Decimal(2)), Usage(12, 3), "0.000009", id="a short answer"),
            pytest.param(
                Price.flat(Decimal("0.20"), Decimal("1.25"), Decimal("0.02")),
                Usage(100, 0, 60),
                "0.0000092",
                id="partly cached",
            ),
            pytest.param(Price.flat(Decimal("0.20"), Decimal(0), Decimal(0)), Usage(9, 0, 9), "0", id="free cache"),
        ],
    )
    def test_a_flat_price(self, price: Price, usage: Usage, cost: str) -> None:
        assert price.cost(usage, NOW) == Decimal(cost)

    @pytest.mark.parametrize(("rate", "tokens"), PARTS.items())
    def test_a_part_of_the_tokens_with_a_rate_of_its_own_has_that_instead(self, rate: str, tokens: str) -> None:
        part: dict[str, Any] = {tokens: 30}
        usage = replace(Usage(100, 100), **part)
        assert charge(rates("1"), usage) == Decimal("0.0002")
        assert charge(rates("1", **{rate: "5"}), usage) == Decimal("0.00032")  # 170 at 1 and 30 at 5

    @pytest.mark.parametrize("rate", ["-0.01", "NaN", "sNaN", "Infinity", "-Infinity"])
    @pytest.mark.parametrize("field", RATES)
    def test_what_is_negative_or_no_number_is_no_rate(self, field: str, rate: str) -> None:
        with pytest.raises(ValueError, match=f"not a rate: {field}"):
            rates(**{field: rate})


class TestPromptTiers:
    price = Price(
        (
            PriceSheet(
                {
                    ServiceTier.DEFAULT: (
                        PromptTier(-1, rates("1", cached_input="0.1")),
                        PromptTier(200_000, rates("2", cached_input="0.2")),
                        PromptTier(400_000, rates("3")),
                    )
                }
            ),
        )
    )

    @pytest.mark.parametrize(
        ("input_tokens", "rate"),
        [(0, "1"), (1, "1"), (200_000, "1"), (200_001, "2"), (400_000, "2"), (400_001, "3"), (10**12, "3")],
    )
    def test_the_length_of_the_prompt_decides_on_the_rates(self, input_tokens: int, rate: str) -> None:
        assert self.price.rates(input_tokens, NOW).input == Decimal(rate)

    def test_they_hold_for_the_whole_request(self) -> None:
        assert self.price.cost(Usage(200_000, 10), NOW) == Decimal("0.20001")
        assert self.price.cost(Usage(200_001, 10), NOW) == Decimal("0.400022")

    def test_cached_tokens_count_for_the_length(self) -> None:
        assert self.price.cost(Usage(200_001, 0, 200_001), NOW) == Decimal("0.0400002")

    @pytest.mark.parametrize("above", [(), (0,), (200_000,), (-1, -1), (-1, 5, 5), (-1, 7, 5)])
    def test_they_begin_with_the_shortest_prompt_and_rise(self, above: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="not the prompt tiers of 'default'"):
            PriceSheet({ServiceTier.DEFAULT: tuple(PromptTier(one, rates()) for one in above)})

    @given(st.integers(min_value=0, max_value=10**7), st.sets(st.integers(min_value=0, max_value=10**7), max_size=5))
    def test_the_highest_that_is_exceeded_counts(self, input_tokens: int, thresholds: set[int]) -> None:
        steps = [-1, *sorted(thresholds)]
        tiers = tuple(PromptTier(above, rates(str(above + 2))) for above in steps)
        chosen = Price((PriceSheet({ServiceTier.DEFAULT: tiers}),)).rates(input_tokens, NOW)
        assert chosen.input - 2 == max(above for above in steps if above < input_tokens)


class TestServiceTiers:
    @pytest.mark.parametrize("tier", ServiceTier)
    def test_each_has_rates_of_its_own(self, tier: ServiceTier) -> None:
        tiers = {other: (PromptTier(-1, rates(str(number))),) for number, other in enumerate(ServiceTier)}
        expected = Decimal(list(ServiceTier).index(tier)) * 4 / 10**6
        assert Price((PriceSheet(tiers),)).cost(Usage(3, 1), NOW, tier) == expected

    @pytest.mark.parametrize("tier", [tier for tier in ServiceTier if tier is not ServiceTier.DEFAULT])
    def test_one_that_is_not_listed_has_no_price(self, tier: ServiceTier) -> None:
        with pytest.raises(NoPrice, match=f"has no price for the service tier '{tier.value}'"):
            Price.flat(Decimal(1), Decimal(1)).cost(Usage(1, 1), NOW, tier)


class TestEffectiveDates:
    spring, summer = date(2026, 3, 1), date(2026, 6, 1)

    def at(self, price: Price, *moment: int) -> Decimal:
        return price.rates(0, datetime(*moment, tzinfo=UTC).timestamp()).input  # type: ignore[arg-type, misc]

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_latest_sheet_that_has_begun_is_in_force(self, order: int) -> None:
        sheets = (sheet(rates("1")), sheet(rates("2"), self.spring), sheet(rates("3"), self.summer))
        price = Price(sheets[::order])
        assert self.at(price, 1970, 1, 1) == 1
        assert self.at(price, 2026, 2, 28, 23, 59, 59) == 1
        assert self.at(price, 2026, 3, 1) == 2
        assert self.at(price, 2026, 5, 31, 23, 59, 59, 999_999) == 2
        assert self.at(price, 2026, 6, 1) == 3
        assert self.at(price, 2099, 1, 1) == 3

    def test_before_the_first_there_is_no_price(self) -> None:
        price = Price((sheet(rates(), self.spring), sheet(rates(), self.summer)))
        with pytest.raises(NoPrice, match="has no price that is in force yet"):
            price.cost(Usage(1, 1), datetime(2026, 2, 28, 23, tzinfo=UTC).timestamp())

    def test_a_single_sheet_begins_on_its_day_too(self) -> None:
        with pytest.raises(NoPrice):
            Price((sheet(rates(), self.spring),)).rates(1, 0.0)

    def test_the_sheets_are_sorted(self) -> None:
        first, second, third = sheet(rates()), sheet(rates(), self.spring), sheet(rates(), self.summer)
        assert Price((third, first, second)).sheets == (first, second, third)

    @pytest.mark.parametrize("sheets", [(), (sheet(rates()), sheet(rates("2"))), (sheet(rates(), spring),) * 2])
    def test_no_sheet_at_all_and_two_of_one_day_are_no_price(self, sheets: tuple[PriceSheet, ...]) -> None:
        with pytest.raises(ValueError, match="not the sheets of a price"):
            Price(sheets)


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param({"input_tokens": -1}, id="negative input"),
        pytest.param({"output_tokens": -1}, id="negative output"),
        pytest.param({"input_tokens": 5, "cached_input_tokens": -1}, id="negative cached"),
        pytest.param({"input_tokens": 5, "cached_input_tokens": 6}, id="more cached than input"),
        pytest.param({"input_tokens": 5, "cached_input_tokens": 3, "audio_input_tokens": 3}, id="parts that overlap"),
        pytest.param({"output_tokens": 5, "reasoning_tokens": 6}, id="more reasoning than output"),
    ],
)
def test_impossible_token_counts_are_refused(tokens: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a token count"):
        Usage(**tokens)
