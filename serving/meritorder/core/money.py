"""Prices and what a request costs. Money is `Decimal`, in US dollars; a float never touches it."""

from dataclasses import dataclass
from decimal import Decimal

from meritorder.core.usage import Usage

MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, the unit in which hosted APIs publish their prices."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None

    def cost(self, usage: Usage) -> Decimal:
        """The marginal cost of `usage` in US dollars, exact and unrounded.

        Input tokens that the provider read from its prompt cache are charged at `cached_input` where that is
        published, and as ordinary input where it is not.
        """
        cached_rate = self.input if self.cached_input is None else self.cached_input
        fresh = usage.input_tokens - usage.cached_input_tokens
        charged = fresh * self.input + usage.cached_input_tokens * cached_rate + usage.output_tokens * self.output
        return charged / MILLION


FREE = Price(Decimal(0), Decimal(0))
"""The marginal price of a self-run model: its replicas are paid for, whether they work or not."""
