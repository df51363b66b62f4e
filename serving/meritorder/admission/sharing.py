"""How what is left is shared among the processes that ask: one decision, made while no other is.

Nobody gets more than what is left. What a request waits for comes first; beyond that, a process keeps at most half of
what nobody uses, so that the next one finds as much, and `n` busy processes end up with a part of `n + 1` each.
Where not even the smallest request that waits can be let in, the process gets all there is, since the request may make
do with less. Where it does not, the process gives back what it keeps: the parts of several together may do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from meritorder.admission.recent import ZERO
from meritorder.core.pricing import EXACT

_HALF = Decimal("0.5")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a process says of one of its leases, all of it as of one instant.

    `settled` is all that it has ever used; `stored` is how much of it was known to be stored at the last exchange, and
    `all_stored` says that all of it is by now. `grants` are the sums of all that it was ever given: more than one where
    it could not see whether an exchange was committed; the stamp in the database tells which.

    `wish` is what it would like to have beyond what is in use, what waits included; `waiting` is the sum of what
    requests wait for, `least` the smallest of them. `stuck` says that what it keeps was of no use to them. `offer` is
    what may be taken away from it: it is not used until the answer is there. `quantum` is the unit in which it keeps
    anything.
    """

    reserved: Decimal
    settled: Decimal
    stored: Decimal
    all_stored: bool
    grants: Mapping[float, Decimal]
    wish: Decimal
    waiting: Decimal
    least: Decimal
    stuck: bool
    offer: Decimal
    quantum: Decimal


@dataclass(frozen=True, slots=True)
class Row:
    """A lease as it stands in the database. `amount` is what was given and is not yet stored as used. One that is not
    `live` has expired: others may have been given the same."""

    amount: Decimal
    stamp: float
    live: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """`amount` is for the database. `granted` and `stored` are the sums that belong to it. `fair` is what the process
    may keep idle next time; `left` is what nobody holds now; `short`: not all that waits could be given."""

    amount: Decimal
    granted: Decimal
    stored: Decimal
    fair: Decimal
    left: Decimal
    short: bool


def share(claim: Claim, row: Row | None, limit: Decimal, others: Decimal) -> Outcome:
    """The lease that the process has from now on.

    `limit` is what there is for all of them and is not stored as used; `others` is the sum of the others' leases. The
    amount grows only as far as `limit` allows. It shrinks at most by the claim's offer, unless the lease had expired.
    """
    held = row.amount if row is not None else ZERO
    if row is not None and row.stamp in claim.grants:
        granted = claim.grants[row.stamp]
    else:
        granted = EXACT.add(claim.stored, held)
    # What is stored is what was given less what is still held; the rest of what was used is on its way. That is too
    # much where more was used than given, since `held` is never negative, until nothing is on its way.
    unstored = ZERO if claim.all_stored else max(ZERO, EXACT.add(EXACT.subtract(claim.settled, granted), held))
    stored = EXACT.subtract(claim.settled, unstored)
    in_use = EXACT.add(claim.reserved, unstored)
    pool = max(ZERO, EXACT.subtract(limit, others))
    idle = max(ZERO, EXACT.subtract(pool, in_use))
    fair = _rounded_down(EXACT.multiply(idle, _HALF), claim.quantum)
    spare = _spare(claim, idle, fair)
    target = EXACT.add(in_use, spare)
    if row is None or not row.live:
        amount = min(target, pool)
    elif target < held:
        amount = max(target, EXACT.subtract(held, claim.offer))
    else:
        amount = max(held, min(target, pool))
    return Outcome(
        amount=amount,
        granted=EXACT.add(stored, amount),
        stored=stored,
        fair=fair,
        left=max(ZERO, EXACT.subtract(pool, amount)),
        short=spare < claim.waiting,
    )


def _spare(claim: Claim, idle: Decimal, fair: Decimal) -> Decimal:
    if claim.waiting and claim.least > idle:
        return ZERO if claim.stuck else idle
    return min(idle, max(claim.waiting, min(claim.wish, fair)))


def _rounded_down(amount: Decimal, quantum: Decimal) -> Decimal:
    return amount.quantize(quantum, ROUND_FLOOR, EXACT)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a process wants of a minute's requests or tokens: `waiting` for requests that wait, and `wish` in all."""

    wish: int
    waiting: int


def share_rate(ask: Ask, limit: int, granted: int) -> int:
    """How much more a process gets of a minute, of which `granted` are given away already. Nothing comes back: what is
    not used ends with the minute."""
    left = max(0, limit - granted)
    return min(left, max(ask.waiting, min(ask.wish, left // 2)))
