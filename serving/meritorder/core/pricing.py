"""Price sheets, and what a request costs.

A sheet has rates per kind of token, in tiers by the length of the prompt, for each service tier; a price is the
sheets of one model, each in force from its day on. Nothing here knows a default: what has no rate of its own is
charged at the rate that providers use then (all kinds of input as input, all kinds of output as output), and a
service tier that is not listed has no price at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from enum import StrEnum
from itertools import pairwise
from math import inf

from meritorder.core.usage import Usage

# Python's default context rounds to 28 digits, and nobody would notice. Sums and products of decimals always
# have an exact answer, so this context never rounds them; a division must not be done in it. Its own methods are
# used, because to enter and leave a context costs more than the sum.
EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
_PER_MILLION = Decimal(-6)


class ServiceTier(StrEnum):
    """How soon the provider has to answer, which it prices; the values are those of OpenAI's `service_tier`."""

    DEFAULT = "default"
    FLEX = "flex"
    PRIORITY = "priority"
    BATCH = "batch"


class NoPrice(Exception):
    """Nothing says what a request would cost; the message completes "backend X ..."."""


@dataclass(frozen=True, slots=True)
class Rates:
    """US dollars per million tokens, the unit in which hosted APIs publish their prices.

    `input` and `output` are for what no other rate is for: None in another field means that there is none for it.
    """

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    reasoning: Decimal | None = None
    audio_input: Decimal | None = None
    audio_output: Decimal | None = None
    image_input: Decimal | None = None
    image_output: Decimal | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            rate = getattr(self, one.name)
            if rate is not None and (not rate.is_finite() or rate < 0):
                raise ValueError(f"not a rate: {one.name}={rate}")


@dataclass(frozen=True, slots=True)
class PromptTier:
    """The rates of a request, all of it, whose input has more tokens than `above`."""

    above: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class PriceSheet:
    """`tiers` of each service tier begin with `above=-1` and rise. `effective_from` is a day in UTC; None: always."""

    tiers: Mapping[ServiceTier, tuple[PromptTier, ...]]
    effective_from: date | None = None

    def __post_init__(self) -> None:
        for tier, steps in self.tiers.items():
            if not steps or steps[0].above != -1 or any(one.above >= other.above for one, other in pairwise(steps)):
                raise ValueError(f"not the prompt tiers of {tier.value!r}: above={[step.above for step in steps]}")

    @property
    def starts_at(self) -> float:
        """Since when it is in force, in seconds since the epoch."""
        day = self.effective_from
        return -inf if day is None else datetime.combine(day, time(), UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Price:
    """The sheets of one model, sorted by the day from which each is in force."""

    sheets: tuple[PriceSheet, ...]
    _latest_first: tuple[tuple[float, PriceSheet], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sheets = sorted(self.sheets, key=lambda sheet: sheet.starts_at)
        if not sheets or any(one.starts_at == other.starts_at for one, other in pairwise(sheets)):
            raise ValueError(f"not the sheets of a price: {[sheet.effective_from for sheet in sheets]}")
        object.__setattr__(self, "sheets", tuple(sheets))
        object.__setattr__(self, "_latest_first", tuple((sheet.starts_at, sheet) for sheet in reversed(sheets)))

    @classmethod
    def flat(cls, input: Decimal, output: Decimal, cached_input: Decimal | None = None) -> "Price":
        """One sheet without tiers."""
        rates = Rates(input, output, cached_input)
        return cls((PriceSheet({ServiceTier.DEFAULT: (PromptTier(-1, rates),)}),))

    def sheet(self, moment: float) -> PriceSheet:
        """The sheet in force at `moment`, in seconds since the epoch: of those that have begun, the latest.

        Raises:
            NoPrice: none is in force yet.
        """
        for starts_at, sheet in self._latest_first:
            if starts_at <= moment:
                return sheet
        raise NoPrice("has no price that is in force yet")

    def rates(self, input_tokens: int, moment: float, tier: ServiceTier = ServiceTier.DEFAULT) -> Rates:
        """The rates in force at `moment`, in seconds since the epoch, for a prompt of this length.

        Raises:
            NoPrice: no sheet is in force yet, or it does not list the service tier.
        """
        steps = self.sheet(moment).tiers.get(tier)
        if steps is None:
            raise NoPrice(f"has no price for the service tier {tier.value!r}")
        chosen = steps[0]
        for step in steps:
            if input_tokens > step.above:
                chosen = step
        return chosen.rates

    def cost(self, usage: Usage, moment: float, tier: ServiceTier = ServiceTier.DEFAULT) -> Decimal:
        """The marginal cost of `usage` in US dollars, exact and unrounded.

        Raises:
            NoPrice: as `rates`.
        """
        return charge(self.rates(usage.input_tokens, moment, tier), usage)


def charge(rates: Rates, usage: Usage) -> Decimal:
    """What `usage` costs at `rates`, in US dollars, exact and unrounded."""
    total = EXACT.multiply(rates.input, usage.input_tokens)
    total = EXACT.fma(rates.output, usage.output_tokens, total)
    for tokens, rate, instead_of in (
        (usage.cached_input_tokens, rates.cached_input, rates.input),
        (usage.cache_write_tokens, rates.cache_write, rates.input),
        (usage.audio_input_tokens, rates.audio_input, rates.input),
        (usage.image_input_tokens, rates.image_input, rates.input),
        (usage.reasoning_tokens, rates.reasoning, rates.output),
        (usage.audio_output_tokens, rates.audio_output, rates.output),
        (usage.image_output_tokens, rates.image_output, rates.output),
    ):
        if tokens and rate is not None:
            total = EXACT.fma(EXACT.subtract(rate, instead_of), tokens, total)
    return EXACT.scaleb(total, _PER_MILLION)


_NOTHING = (PromptTier(-1, Rates(Decimal(0), Decimal(0))),)

FREE = Price((PriceSheet(dict.fromkeys(ServiceTier, _NOTHING)),))
"""The marginal price of a self-run model: its replicas are paid for, whether they work or not, and however soon."""
