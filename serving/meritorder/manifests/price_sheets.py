"""How a price is written: in a manifest's `models[].price`, and in the price catalogue."""

from collections.abc import Sequence
from copy import deepcopy
from datetime import date
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    RootModel,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from meritorder.core.pricing import Price, PriceSheet, PromptTier, Rates, ServiceTier
from meritorder.manifests.fields import Money, Strict, Tokens, misplaced


def _written_out(value: Any) -> Any:
    # pydantic would take a number for a day, too: so many seconds after 1970.
    if isinstance(value, date) or (isinstance(value, str) and len(value) == len("2026-01-31")):
        return value
    raise ValueError("not a day")


Day = Annotated[
    date, BeforeValidator(_written_out), Field(description="a day as YYYY-MM-DD, in UTC, such as 2026-01-31")
]


class RatesSpec(Strict):
    """US dollars per million tokens. There is no default: an unknown price is not a price of zero.

    What is left out is charged as `input` or `output`, whichever it is a part of.
    """

    input: Money
    output: Money
    cached_input: Money | None = None
    cache_write: Money | None = None
    reasoning: Money | None = None
    audio_input: Money | None = None
    audio_output: Money | None = None
    image_input: Money | None = None
    image_output: Money | None = None

    @model_validator(mode="after")
    def _a_cache_is_no_dearer(self) -> Self:
        if self.cached_input is not None and self.cached_input > self.input:
            raise misplaced("cachedInput", f"must not be above input, and {self.cached_input} is above {self.input}")
        return self

    def to_rates(self) -> Rates:
        return Rates(**{name: getattr(self, name) for name in RatesSpec.model_fields})


class PromptTierSpec(RatesSpec):
    """What a request costs, all of it, whose input is longer than `aboveInputTokens`."""

    above_input_tokens: Tokens


class ServiceTierSpec(RatesSpec):
    """The rates of one service tier; `tiers` are those of its longer prompts."""

    tiers: tuple[PromptTierSpec, ...] = ()

    @model_validator(mode="after")
    def _tiers_rise(self) -> Self:
        if any(one.above_input_tokens >= other.above_input_tokens for one, other in pairwise(self.tiers)):
            raise misplaced("tiers", "must be in the order of aboveInputTokens, from the fewest to the most")
        return self

    def to_tiers(self) -> tuple[PromptTier, ...]:
        longer = (PromptTier(tier.above_input_tokens, tier.to_rates()) for tier in self.tiers)
        return (PromptTier(-1, self.to_rates()), *longer)


class ServiceTiersSpec(Strict):
    """What other than the default service costs. A tier that is left out has no price, and is not used."""

    flex: ServiceTierSpec | None = None
    priority: ServiceTierSpec | None = None
    batch: ServiceTierSpec | None = None


class SheetSpec(ServiceTierSpec):
    """The price from one day on; without `effectiveFrom`, from the beginning."""

    service_tiers: ServiceTiersSpec = ServiceTiersSpec()
    effective_from: Day | None = None

    def to_sheet(self) -> PriceSheet:
        others = {ServiceTier(name): getattr(self.service_tiers, name) for name in ServiceTiersSpec.model_fields}
        written = {ServiceTier.DEFAULT: self} | {tier: spec for tier, spec in others.items() if spec is not None}
        return PriceSheet({tier: spec.to_tiers() for tier, spec in written.items()}, self.effective_from)


def _one_or_several(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    # Not a union, which would put its own name into the place of an error.
    if isinstance(value, dict):
        return (SheetSpec.model_validate(value, by_alias=True, by_name=False),)
    sheets: Sequence[SheetSpec] = validate((value,) if isinstance(value, SheetSpec) else value)
    days: dict[date | None, int] = {}
    for index, sheet in enumerate(sheets):
        first = days.setdefault(sheet.effective_from, index)
        if first != index:
            message = f"each sheet needs a day of its own, and this one has that of [{first}]"
            raise misplaced((index, "effectiveFrom"), message)
    return sheets


class PriceSheetSpec(RootModel[Annotated[tuple[SheetSpec, ...], Field(min_length=1), WrapValidator(_one_or_several)]]):
    """One sheet, or a list of sheets with the days from which they are in force."""

    model_config = ConfigDict(frozen=True)

    def to_price(self) -> Price:
        return Price(tuple(sheet.to_sheet() for sheet in self.root))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Both forms in one node, `properties` for the mapping and `items` for the list, as JSON Schema allows.
        several = handler.resolve_ref_schema(handler(schema))
        one = deepcopy(handler.resolve_ref_schema(several["items"]))
        several |= {key: value for key, value in one.items() if key not in ("title", "description")}
        several["type"] = ["object", "array"]
        return several
