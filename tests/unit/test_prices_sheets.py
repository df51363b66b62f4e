"""How a price is written in a manifest, and what is said of one that is not written well."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from meritorder.core.pricing import Price, PriceSheet, PromptTier, Rates, ServiceTier
from meritorder.core.usage import Usage
from meritorder.manifests.fields import Strict
from meritorder.manifests.messages import explain
from meritorder.manifests.price_sheets import PriceSheetSpec
from meritorder.manifests.yaml_source import dotted

DEFAULT, FLEX, PRIORITY, BATCH = ServiceTier


class Model(Strict):
    price: PriceSheetSpec


def read(price: Any) -> PriceSheetSpec:
    return Model.model_validate({"price": price}, by_alias=True, by_name=False).price


def problems(price: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        read(price)
    return [f"{dotted(loc)}: {message}" for loc, message in explain(Model, caught.value)]


def rates(input: str, output: str, **others: str) -> Rates:
    return Rates(Decimal(input), Decimal(output), **{name: Decimal(rate) for name, rate in others.items()})


class TestWhatCanBeWritten:
    def test_the_short_form(self) -> None:
        written = {"input": 0.25, "cachedInput": 0.025, "output": "2.00"}
        assert read(written).to_price() == Price.flat(Decimal("0.25"), Decimal(2), Decimal("0.025"))

    def test_every_rate(self) -> None:
        names = ["cachedInput", "cacheWrite", "reasoning", "audioInput", "audioOutput", "imageInput", "imageOutput"]
        written = {"input": 10, "output": 20} | {name: number for number, name in enumerate(names)}
        default = Rates(Decimal(10), Decimal(20), *(Decimal(number) for number in range(7)))
        assert read(written).to_price() == Price((PriceSheet({DEFAULT: (PromptTier(-1, default),)}),))

    def test_longer_prompts_and_other_services(self) -> None:
        written = {
            "input": 2,
            "output": 12,
            "tiers": [{"aboveInputTokens": 200_000, "input": 4, "output": 18, "cachedInput": 0.4}],
            "serviceTiers": {
                "batch": {"input": 1, "output": 6, "tiers": [{"aboveInputTokens": 200_000, "input": 2, "output": 9}]},
                "priority": {"input": 4, "output": 24},
            },
        }
        longer = PromptTier(200_000, rates("4", "18", cached_input="0.4"))
        tiers = {
            DEFAULT: (PromptTier(-1, rates("2", "12")), longer),
            PRIORITY: (PromptTier(-1, rates("4", "24")),),
            BATCH: (PromptTier(-1, rates("1", "6")), PromptTier(200_000, rates("2", "9"))),
        }
        assert read(written).to_price() == Price((PriceSheet(tiers),))

    def test_sheets_with_their_days(self) -> None:
        price = read([{"input": 2, "output": 2, "effectiveFrom": "2026-03-01"}, {"input": 1, "output": 1}]).to_price()
        assert [sheet.effective_from for sheet in price.sheets] == [None, date(2026, 3, 1)]
        assert price.cost(Usage(10**6), datetime(2026, 2, 28, tzinfo=UTC).timestamp()) == 1
        assert price.cost(Usage(10**6), datetime(2026, 3, 1, tzinfo=UTC).timestamp()) == 2

    @given(
        st.lists(
            st.fixed_dictionaries(
                {"input": st.decimals(0, 999, places=9).map(str), "output": st.decimals(0, 999, places=9).map(str)},
                optional={"cachedInput": st.just("0"), "serviceTiers": st.just({"flex": {"input": 1, "output": 1}})},
            ),
            min_size=1,
            max_size=4,
        )
    )
    def test_what_is_read_can_be_written_and_read_again(self, sheets: list[dict[str, Any]]) -> None:
        dated = [sheet | {"effectiveFrom": f"2026-01-0{day}"} for day, sheet in enumerate(sheets, 1)]
        for written in (sheets[0], dated):
            spec = read(written)
            again = read(spec.model_dump(mode="json", by_alias=True, exclude_none=True))
            assert again == spec
            assert again.to_price() == spec.to_price()


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("price", "problem"),
        [
            (
                {"input": 1},
                "price.output: this field is required: "
                "US dollars, from 0 to 999999 and with up to nine decimals, such as 0.25",
            ),
            (
                {"input": 1, "output": 2, "cachedInput": 1.5},
                "price.cachedInput: must not be above input, and 1.5 is above 1",
            ),
            (
                {"input": 1, "output": 2, "serviceTiers": {"batch": {"input": 1, "output": 1, "cachedInput": 2}}},
                "price.serviceTiers.batch.cachedInput: must not be above input, and 2 is above 1",
            ),
            (
                {"input": 1, "output": 2, "serviceTiers": {"default": {"input": 1, "output": 1}}},
                "price.serviceTiers.default: unknown field; valid here: flex, priority, batch",
            ),
            (
                [{"input": 1, "output": 2}, {"input": 1, "output": -2, "effectiveFrom": "2026-01-01"}],
                "price[1].output: expected US dollars, from 0 to 999999 and with up to nine decimals, "
                "such as 0.25, got -2",
            ),
            (
                [{"input": 1, "output": 2}, {"input": 1, "output": 2}],
                "price[1].effectiveFrom: each sheet needs a day of its own, and this one has that of [0]",
            ),
        ],
    )
    def test_the_field_is_named(self, price: Any, problem: str) -> None:
        assert problems(price) == [problem]

    @pytest.mark.parametrize("above", [(5, 5), (7, 5)])
    def test_tiers_that_do_not_rise(self, above: tuple[int, ...]) -> None:
        tiers = [{"aboveInputTokens": tokens, "input": 1, "output": 2} for tokens in above]
        message = "price.tiers: must be in the order of aboveInputTokens, from the fewest to the most"
        assert problems({"input": 1, "output": 2, "tiers": tiers}) == [message]

    @pytest.mark.parametrize("day", [5, 1.5, True, "", "tomorrow", "2026-02-30", "2026-1-1", "2026-01-01T00:00", []])
    def test_what_is_no_day(self, day: Any) -> None:
        (problem,) = problems({"input": 1, "output": 2, "effectiveFrom": day})
        assert problem.startswith("price.effectiveFrom: expected a day as YYYY-MM-DD, in UTC, such as 2026-01-31, got")

    @pytest.mark.parametrize("price", [None, 5, "free", [], [[]], [5]])
    def test_what_is_no_sheet(self, price: Any) -> None:
        (problem,) = problems(price)
        assert "expected a mapping with input, output, cachedInput, " in problem

    @pytest.mark.parametrize("price", [{"input": 1, "output": 2, "cached": 1}, {"input": 1, "output": 2, "tier": []}])
    def test_an_unknown_field(self, price: Any) -> None:
        (problem,) = problems(price)
        assert "unknown field" in problem
        assert "valid here: input, output, cachedInput, cacheWrite, reasoning, audioInput" in problem
