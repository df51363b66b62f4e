"""What a caller is told who is not let in: which limit, whose, what remains of it, and when it resets."""

import math
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal

from meritorder.admission.account import Account, Moment, Resource
from meritorder.admission.exchange import BudgetLeft
from meritorder.admission.rate import MINUTE
from meritorder.core.errors import BudgetExceeded, LedgerUnavailable, LimitExceeded
from meritorder.core.limits import Period

_PLACE_FREE_SECONDS = 1.0
"""When a place may be free again: nobody knows, and a client that has to wait longer is told so again."""

_DATABASE_BACK_SECONDS = 2.0

_ADJECTIVE = {Period.TOTAL: "whole"}
_SHOWN = Decimal("0.000001")


def payer(scope: str) -> str:
    """A scope in a sentence: `team:demo` is the team 'demo'."""
    kind, _, name = scope.partition(":")
    return f"the {kind} {name!r}"


def limit_exceeded(account: Account, short: Resource, tokens: int, at: Moment) -> LimitExceeded:
    """The refusal of a request of so many tokens, that there is not enough of `short` for."""
    who, limits = payer(account.allowance.scope), account.allowance.limits
    seconds = seconds_to_reset(at)
    then = f"send the request again when the minute is over, in {math.ceil(seconds)} s"
    match short:
        case Resource.REQUESTS:
            message = (
                f"The limit of {limits.requests_per_minute:,} requests per minute of {who} is reached, "
                f"0 remain; {then}."
            )
        case Resource.TOKENS if tokens > (limits.tokens_per_minute or 0):
            message = (
                f"The request may use {tokens:,} tokens, prompt and answer together, and {who} may use "
                f"{limits.tokens_per_minute:,} per minute; send a shorter prompt or a smaller max_tokens."
            )
            return LimitExceeded(message)
        case Resource.TOKENS:
            message = (
                f"The request may use {tokens:,} tokens, prompt and answer together, and of the "
                f"{limits.tokens_per_minute:,} per minute of {who} {remaining_tokens(account, at):,} remain; {then}."
            )
        case Resource.CONCURRENCY:
            message = (
                f"The limit of {limits.concurrency:,} requests at once of {who} is reached, 0 remain; "
                "send the request again when one of them has ended."
            )
            seconds = _PLACE_FREE_SECONDS
    return LimitExceeded(message, retry_after=seconds)


def budget_exceeded(account: Account, budget: BudgetLeft, wanted: Decimal, at: Moment) -> BudgetExceeded:
    """The refusal of a request that may cost `wanted`."""
    period = budget.budget.period
    if budget.ends is None:
        reset, retry_after = "it does not reset, so ask for a larger one", None
    else:
        moment = datetime.fromtimestamp(budget.ends, UTC)
        reset = f"wait until it resets at {moment:%Y-%m-%d %H:%M} UTC"
        retry_after = max(1.0, budget.ends - at.epoch)
    return BudgetExceeded(
        f"The {_ADJECTIVE.get(period, period.value)} budget of {payer(account.allowance.scope)} is "
        f"{usd(budget.budget.amount)} USD, of which {usd(account.remaining(budget))} remain, and the request may cost "
        f"{usd(wanted)}; ask for a shorter answer (max_tokens), or {reset}.",
        retry_after=retry_after,
    )


def ledger_unavailable(what: str, account: Account) -> LedgerUnavailable:
    """The refusal of a request whose `what` cannot be checked."""
    return LedgerUnavailable(
        f"The {what} of {payer(account.allowance.scope)} cannot be checked, because the database does not answer; "
        "send the request again in a few seconds.",
        retry_after=_DATABASE_BACK_SECONDS,
    )


def seconds_to_reset(at: Moment) -> float:
    """When the minute is over."""
    return at.window + MINUTE - at.epoch


def remaining_requests(account: Account, at: Moment) -> int:
    """As far as this process knows."""
    limit = account.allowance.limits.requests_per_minute or 0
    return account.requests.remaining(at.window, limit)


def remaining_tokens(account: Account, at: Moment) -> int:
    """As far as this process knows."""
    limit = account.allowance.limits.tokens_per_minute or 0
    return account.tokens.remaining(at.window, limit)


def usd(amount: Decimal) -> str:
    """To the micro-dollar, never rounded up, and with at least two decimals."""
    text = f"{amount.quantize(_SHOWN, ROUND_FLOOR):f}" if abs(amount) < Decimal(10) ** 18 else f"{amount:f}"
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"
