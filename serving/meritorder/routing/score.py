"""What a request is expected to cost at a backend, and the most that it can cost.

The expectation is for the score, which compares estimates, and is a float. The bound is money that is reserved, and is
exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from meritorder.core.catalog import Modality, Objective
from meritorder.core.pricing import EXACT, Rates

_PER_MILLION = Decimal("1e-6")

UNPRICED = Rates(input=Decimal(10), output=Decimal(50))
"""What the score assumes of a hosted backend without a price: that it is dear. No bound is ever derived from it."""

OUTPUT_WORK = 4
"""How many tokens of prompt are as much work for a replica as one of output: a prompt is read many tokens at a time,
an answer is written one by one."""

PROVIDER_CACHE_TOKENS = 1024
"""Providers cache no shorter beginning. Source: https://platform.openai.com/docs/guides/prompt-caching"""


@dataclass(slots=True)
class Dollars:
    """`Rates` per token: of the score as floats, of the bound as the highest that applies to any of the tokens."""

    rates: Rates
    input: float
    cached_input: float | None
    output: float
    most_input: Decimal
    most_image_input: Decimal
    most_audio_input: Decimal
    most_output: Decimal

    def expected(self, input_tokens: int, cached_tokens: int, output_tokens: float) -> float:
        cached = self.input if self.cached_input is None else self.cached_input
        return self.input * (input_tokens - cached_tokens) + cached * cached_tokens + self.output * output_tokens

    def bound(self, input_tokens: int, output_tokens: int, modalities: frozenset[Modality]) -> Decimal:
        rate = self.most_input
        if modalities:
            if Modality.AUDIO in modalities:
                rate = max(rate, self.most_audio_input)
            if modalities != {Modality.AUDIO}:  # the pages of a file are images, too
                rate = max(rate, self.most_image_input)
        return EXACT.fma(rate, input_tokens, EXACT.multiply(self.most_output, output_tokens))


def _dollars(rates: Rates) -> Dollars:
    def most(*them: Decimal | None) -> Decimal:
        return EXACT.multiply(max(rate for rate in them if rate is not None), _PER_MILLION)

    text = (rates.input, rates.cached_input, rates.cache_write)
    return Dollars(
        rates=rates,
        input=float(rates.input) / 1e6,
        cached_input=None if rates.cached_input is None else float(rates.cached_input) / 1e6,
        output=float(rates.output) / 1e6,
        most_input=most(*text),
        most_image_input=most(*text, rates.image_input),
        most_audio_input=most(*text, rates.audio_input),
        # A request does not say in what its answer will be.
        most_output=most(rates.output, rates.reasoning, rates.audio_output, rates.image_output),
    )


def _remembered(make: Callable[[Rates], Dollars], most: int = 4096) -> Callable[[Rates], Dollars]:
    """`make`, with its results by the identity of the rates, whose equality is slower than all the rest of a score.

    The result holds the rates, so an identity is not given to others while it is remembered.
    """
    known: dict[int, Dollars] = {}

    def remembered(rates: Rates) -> Dollars:
        found = known.get(id(rates))
        if found is None:
            if len(known) >= most:  # the configurations of the past
                known.clear()
            found = known[id(rates)] = make(rates)
        return found

    return remembered


dollars = _remembered(_dollars)


def lateness(objective: Objective, ttft: float | None) -> float:
    """What it is worth not to be as late as `ttft`, in US dollars; what is unknown is not late."""
    slo = objective.ttft_slo
    if slo is None or ttft is None or ttft <= slo:
        return 0.0
    return objective.lateness_cost * (ttft - slo) / slo


def work(input_tokens: int, cached_tokens: int, output_tokens: float) -> float:
    """What a request is for a replica, in tokens of prompt."""
    return max(1.0, input_tokens - cached_tokens + OUTPUT_WORK * output_tokens)
