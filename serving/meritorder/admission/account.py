"""What one team, or one key, may still use of its allowance in this process."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from meritorder.admission.exchange import Answer, BudgetLeft, Demand
from meritorder.admission.lease import ONE, Places, Purse
from meritorder.admission.rate import Rate, window_of
from meritorder.admission.recent import ZERO
from meritorder.core.limits import Allowance

_REFUSED_AGAIN_SECONDS = 0.2
"""How long a process that was just told that all places are taken believes it: whoever sends more than is let in must
not make an exchange of each refusal."""


class Resource(StrEnum):
    """What can be short when a request asks to be let in. The values are those of the database's `resource`."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True)
class Moment:
    """`now` is on a clock that never goes back, `epoch` on the calendar's; both in seconds."""

    now: float
    epoch: float

    @property
    def window(self) -> float:
        return window_of(self.epoch)


class Account:
    """The parts are `money`, `places`, `requests` and `tokens`; those that `allowance` does not limit stay unused."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self.money = Purse()
        self.places = Places()
        self.requests = Rate()
        self.tokens = Rate()
        self.budgets: tuple[BudgetLeft, ...] = ()
        self._told_of_places = float("-inf")

    def change(self, allowance: Allowance) -> None:
        """Put other limits in force. What was known of the old ones says nothing about them."""
        self.allowance = allowance
        self.budgets = ()
        self.requests.left = self.tokens.left = None
        self._told_of_places = float("-inf")

    def short_of(self, tokens: int, at: Moment) -> Resource | None:
        """What there is not enough of to let in a request of so many tokens; None: it can be let in."""
        limits = self.allowance.limits
        if limits.requests_per_minute is not None and self.requests.available(at.window) < 1:
            return Resource.REQUESTS
        if limits.tokens_per_minute is not None and self.tokens.available(at.window) < tokens:
            return Resource.TOKENS
        if limits.concurrency is not None and self.places.available(at.now) < 1:
            return Resource.CONCURRENCY
        return None

    def hopeless(self, short: Resource, tokens: int, at: Moment) -> bool:
        """Whether to ask the database for more of it is no use."""
        limits = self.allowance.limits
        match short:
            case Resource.REQUESTS:
                return self.requests.hopeless(1, at.window)
            case Resource.TOKENS:
                too_large = limits.tokens_per_minute is not None and tokens > limits.tokens_per_minute
                return too_large or self.tokens.hopeless(tokens, at.window)
            case Resource.CONCURRENCY:
                outcome = self.places.outcome
                just_told = at.now - self._told_of_places < _REFUSED_AGAIN_SECONDS
                return just_told and outcome is not None and outcome.left < 1

    def enter(self, tokens: int, at: Moment) -> None:
        """Let a request in; the caller has looked that nothing is short."""
        limits = self.allowance.limits
        if limits.requests_per_minute is not None:
            self.requests.use(1, at.window, at.now)
        if limits.tokens_per_minute is not None:
            self.tokens.use(tokens, at.window, at.now)
        if limits.concurrency is not None:
            self.places.reserve(ONE, at.now)

    @contextmanager
    def waiting(self, tokens: int, at: Moment) -> Iterator[None]:
        """Let the next exchange know of a request of so many tokens that waits to be let in."""
        limits = self.allowance.limits
        with ExitStack() as stack:
            if limits.requests_per_minute is not None and self.requests.available(at.window) < 1:
                stack.enter_context(self.requests.waiting(1))
            if limits.tokens_per_minute is not None and self.tokens.available(at.window) < tokens:
                stack.enter_context(self.tokens.waiting(tokens))
            if limits.concurrency is not None and self.places.available(at.now) < 1:
                stack.enter_context(self.places.waiting(ONE))
            yield

    def unspent(self, at: Moment) -> Decimal | None:
        """The most that any lease can cover: all else is spent already. None: that is not known at this moment."""
        if not self.budgets or any(budget.ends is not None and at.epoch >= budget.ends for budget in self.budgets):
            return None
        return min(budget.unspent for budget in self.budgets) - self.money.unstored

    def remaining(self, budget: BudgetLeft) -> Decimal:
        """What is left of a budget, as far as this process knows: not spent, reserved, or leased by another."""
        return max(ZERO, budget.left - self.money.reserved - self.money.unstored)

    def demand(self, at: Moment, closing: bool = False, all_stored: bool = False) -> Demand | None:
        """What to ask of the database in an exchange that begins now; None where there is nothing to ask or to keep.

        `closing` gives back all that is not in use; `all_stored` says that all that was settled is stored as used.
        """
        limits = self.allowance.limits
        more = not closing
        demand = Demand(
            self.allowance,
            at.window,
            money=self.money.claim(at.now, more and bool(self.allowance.budgets), all_stored),
            places=self.places.claim(at.now, more and limits.concurrency is not None),
            requests=self.requests.ask(at.window, at.now) if more and limits.requests_per_minute is not None else None,
            tokens=self.tokens.ask(at.window, at.now) if more and limits.tokens_per_minute is not None else None,
        )
        asked = (demand.money, demand.places, demand.requests, demand.tokens)
        return demand if any(part is not None for part in asked) else None

    def take(self, demand: Demand, answer: Answer, stamp: float, usable_until: float, now: float) -> None:
        """The exchange is committed. `stamp` tells it from all others; its leases may be used until `usable_until`."""
        if answer.money is not None:
            self.money.take(answer.money, stamp, usable_until)
        if answer.places is not None:
            self.places.take(answer.places, stamp, usable_until)
        for rate, grant in ((self.requests, answer.requests), (self.tokens, answer.tokens)):
            if grant is not None:
                rate.take(grant.amount, grant.left, answer.window)
        if demand.allowance is not self.allowance:
            self.change(self.allowance)  # other limits came into force meanwhile, of which the answer knows nothing
            return
        if answer.places is not None:
            self._told_of_places = now
        if answer.money is not None:
            self.budgets = answer.budgets

    def unsure(self, answer: Answer, stamp: float) -> None:
        """The exchange may be committed."""
        if answer.money is not None:
            self.money.unsure(answer.money, stamp)
        if answer.places is not None:
            self.places.unsure(answer.places, stamp)

    def failed(self) -> None:
        """The exchange has changed nothing."""
        self.money.failed()
        self.places.failed()
