"""Prices and what a request costs. Money is `Decimal`, in US dollars; a float never touches it."""

from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, localcontext

from meritorder.core.usage import Usage

# Python's default context rounds to 28 digits, and nobody would notice. Sums and products of decimals always
# have an exact answer, so this context never rounds them; a division must not be done in it.
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
_PER_MILLION = -6


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, the unit in which hosted APIs publish their prices."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None

    def __post_init__(self) -> None:
        for rate in (self.input, self.output, self.cached_input):
            if rate is not None and (not rate.is_finite() or rate < 0):
                raise ValueError(f"not a price: {self}")

    def cost(self, usage: Usage) -> Decimal:
        """The marginal cost of `usage` in US dollars, exact and unrounded.

        Input tokens that the provider read from its prompt cache are charged at `cached_input` where that is
        published, and as ordinary input where it is not.
        """
        cached_rate = self.input if self.cached_input is None else self.cached_input
        cached = usage.cached_input_tokens
        fresh = usage.input_tokens - cached
        with localcontext(_EXACT):
            charged = fresh * self.input + cached * cached_rate + usage.output_tokens * self.output
            return charged.scaleb(_PER_MILLION)


FREE = Price(Decimal(0), Decimal(0))
"""The marginal price of a self-run model: its replicas are paid for, whether they work or not."""
