"""Who is let in: rates, requests at once and money, against what this process has leased.

One in-flight reservation rule holds: a request is let in when its reservation fits into the lease, and what it costs
beyond its reservation is all by which a budget can be exceeded. `docs/reference/limits.md` says it for users.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from decimal import Decimal
from types import MappingProxyType

from meritorder.admission import refusals
from meritorder.admission.account import Account, Moment, Resource
from meritorder.admission.exchange import BudgetLeft
from meritorder.admission.lease import ONE
from meritorder.admission.recent import ZERO
from meritorder.core.errors import BudgetExceeded, LedgerUnavailable
from meritorder.core.limits import Limits
from meritorder.core.pricing import EXACT
from meritorder.core.request import Caller
from meritorder.ingress.leasing import LeaseAgent

_EXCHANGES_TO_WAIT_FOR = 5
"""The minute may turn while the first is under way, and others may take what it brought. Who waits in vain for what is
used up is refused before."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Ticket:
    """A request that was let in. `settle` is to be called exactly once, whatever became of it.

    `budgeted` says whether a budget bounds what it may cost.
    """

    __slots__ = ("_accounts", "_agent", "_at", "_limits", "_purses", "_reserved", "_settled", "_tokens", "_unreachable")

    def __init__(self, agent: LeaseAgent, accounts: Sequence[Account], tokens: int, at: Moment) -> None:
        self._agent = agent
        self._accounts = accounts
        # Limits that change while the request is under way are those of the next one.
        self._limits: list[Limits] = [account.allowance.limits for account in accounts]
        self._purses = [account for account in accounts if account.allowance.budgets]
        self._tokens = tokens
        self._at = at
        self._reserved = ZERO
        self._settled = False
        self._unreachable = False
        for account in accounts:
            account.enter(tokens, at)

    @property
    def budgeted(self) -> bool:
        return bool(self._purses)

    async def headroom(self, wanted: Decimal) -> Decimal | None:
        """How many US dollars can be reserved now: `wanted`, or more, or what there is. None: no budget bounds it.

        Waits for the database, for half a second at most, where less than `wanted` is leased and more may be had.
        Where it does not answer, nothing more can be had, and `refusal` says so.
        """
        if not self._purses:
            return None
        for _ in range(_EXCHANGES_TO_WAIT_FOR):
            if self._available() >= wanted or not await self._lease(wanted):
                break
        return max(ZERO, self._available())

    def reserve(self, amount: Decimal) -> None:
        """Take `amount` more US dollars of the headroom, with no await in between.

        Raises:
            ValueError: it is more than the headroom.
        """
        if not self._purses or not amount:
            return
        if amount < 0 or amount > self._available():
            raise ValueError(f"cannot reserve {amount}: more than the headroom")
        now = self._agent.moment().now
        for account in self._purses:
            account.money.reserve(amount, now)
        self._reserved = EXACT.add(self._reserved, amount)

    def refusal(self, wanted: Decimal) -> BudgetExceeded | LedgerUnavailable:
        """The error of a request that may cost `wanted`, which is more than the headroom.

        Where the database does not answer, nobody can say that the budget is spent.
        """
        known = [(account, budget) for account in self._purses for budget in account.budgets]
        if self._unreachable or not known:
            return refusals.ledger_unavailable("budget", self._accounts[0])

        def remaining(one: tuple[Account, BudgetLeft]) -> Decimal:
            return one[0].remaining(one[1])

        account, budget = min(known, key=remaining)
        return refusals.budget_exceeded(account, budget, wanted, self._agent.moment())

    def settle(self, cost: Decimal, tokens: int) -> None:
        """The request is over, has cost `cost` US dollars and used `tokens`: release the rest of what it held.

        What it cost beyond its reservation is deducted all the same. The lease goes down by `cost` now, and in the
        database when the usage record is stored there.
        """
        if self._settled:
            raise RuntimeError("a request was settled twice")
        self._settled = True
        for account, limits in zip(self._accounts, self._limits, strict=True):
            if limits.concurrency is not None:
                account.places.settle(ONE, ZERO)
            if limits.tokens_per_minute is not None:
                account.tokens.settle(self._tokens, tokens, self._at.window)
            # Its record will lower a lease of any scope that has one, so this has to, too.
            account.money.settle(self._reserved if account in self._purses else ZERO, cost)

    def headers(self) -> Mapping[str, str]:
        """The rates as OpenAI's response headers name them, those of which least remains; none where none is limited.

        Source: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
        """
        at = self._agent.moment()
        reset = f"{math.ceil(refusals.seconds_to_reset(at))}s"
        requests, tokens = [], []
        for account in self._accounts:
            limits = account.allowance.limits
            if limits.requests_per_minute is not None:
                requests.append((refusals.remaining_requests(account, at), limits.requests_per_minute))
            if limits.tokens_per_minute is not None:
                tokens.append((refusals.remaining_tokens(account, at), limits.tokens_per_minute))
        made = {}
        for what, found in (("requests", requests), ("tokens", tokens)):
            if found:
                remaining, limit = min(found)
                made[f"x-ratelimit-limit-{what}"] = str(limit)
                made[f"x-ratelimit-remaining-{what}"] = str(remaining)
                made[f"x-ratelimit-reset-{what}"] = reset
        return made

    def _available(self) -> Decimal:
        now = self._agent.moment().now
        return min(account.money.available(now) for account in self._purses)

    async def _lease(self, wanted: Decimal) -> bool:
        """Let the next exchange get what `wanted` lacks, as far as there is any.

        True where all that waited for it could be given: a request that came meanwhile may have taken it.
        """
        self._unreachable = False
        at = self._agent.moment()
        lacking = []
        for account in self._purses:
            unspent = account.unspent(at)
            most = wanted if unspent is None else min(wanted, unspent)
            if most <= 0:  # this period's money is spent, and no exchange brings it back
                return False
            if account.money.available(at.now) < most:
                lacking.append((account, most))
        if not lacking:
            return False
        with ExitStack() as stack:
            for account, most in lacking:
                stack.enter_context(account.money.waiting(most))
            self._unreachable = not await self._agent.exchanged([account for account, _ in lacking])
        outcomes = [account.money.outcome for account, _ in lacking]
        return not self._unreachable and all(outcome is not None and not outcome.short for outcome in outcomes)


class _Unlimited(Ticket):
    """That of all requests that nothing bounds."""

    __slots__ = ()

    def __init__(self) -> None:
        self._purses = []

    def settle(self, cost: Decimal, tokens: int) -> None:
        pass

    def headers(self) -> Mapping[str, str]:
        return _NO_HEADERS


_UNLIMITED = _Unlimited()


class Admission:
    """Lets requests in against the accounts of the agent."""

    def __init__(self, agent: LeaseAgent) -> None:
        self._agent = agent

    async def admit(self, caller: Caller, tokens: int) -> Ticket:
        """Take one request, a place and `tokens`, prompt and answer together, of everything that limits the caller.

        Waits for the database where this process has too little of it and more may be had.

        Raises:
            LimitExceeded: a limit is reached.
            LedgerUnavailable: too little is leased, and the database does not answer.
        """
        if not caller.allowances:
            return _UNLIMITED
        accounts = [self._agent.account(allowance) for allowance in caller.allowances]
        at = self._agent.moment()
        if any(account.short_of(tokens, at) is not None for account in accounts):
            at = await self._wait(accounts, tokens)
        return Ticket(self._agent, accounts, tokens, at)

    async def _wait(self, accounts: Sequence[Account], tokens: int) -> Moment:
        """The moment at which nothing is short any more; nothing must be awaited between it and entering."""
        for exchanges_left in reversed(range(_EXCHANGES_TO_WAIT_FOR)):
            at = self._agent.moment()
            self._refuse(accounts, tokens, at, hopeless=True)
            with ExitStack() as stack:
                for account in accounts:
                    stack.enter_context(account.waiting(tokens, at))
                answered = await self._agent.exchanged(accounts)
            at = self._agent.moment()
            short = next((account for account in accounts if account.short_of(tokens, at) is not None), None)
            if short is None:
                break
            if not answered:
                raise refusals.ledger_unavailable("limits", short)
            if not exchanges_left:
                self._refuse(accounts, tokens, at, hopeless=False)
        return at

    def _refuse(self, accounts: Sequence[Account], tokens: int, at: Moment, hopeless: bool) -> None:
        """Refuse for the first limit that there is not enough of; with `hopeless`, only where that will not change."""
        for account in accounts:
            short = account.short_of(tokens, at)
            if short is not None and (not hopeless or account.hopeless(short, tokens, at)):
                if short is Resource.CONCURRENCY:
                    account.places.refused(at.now)
                raise refusals.limit_exceeded(account, short, tokens, at)
