"""One process's lease of money or of places: used at once, given back when idle, void when it expires.

All amounts are sums since the process began, so that nothing has to be matched with the database record by record:

    available = granted - settled - reserved          here
    amount    = granted - stored                      in the database

What is settled and not yet stored lies between the two, and is neither counted twice nor forgotten.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

from meritorder.admission.recent import ZERO, Recent
from meritorder.admission.sharing import Claim, Outcome
from meritorder.core.pricing import EXACT

ONE = Decimal(1)

_NEVER = float("-inf")


class Lease:
    """Times are in seconds on one clock that never goes back."""

    quantum: Decimal

    def __init__(self, recent: Recent) -> None:
        self.reserved = ZERO
        self.settled = ZERO
        self.outcome: Outcome | None = None
        self._granted = ZERO
        self._stored = ZERO
        self._offered = ZERO
        self._grants: dict[float, Decimal] = {}
        self._usable_until = _NEVER
        self._leased = False  # before the first lease there is none that the database could lower
        self._stuck = False
        self._waiting: list[Decimal] = []
        self._recent = recent

    def available(self, now: float) -> Decimal:
        """What can be reserved now; negative where more was used than there was."""
        if now >= self._usable_until:
            return ZERO
        return EXACT.subtract(self._granted, EXACT.add(EXACT.add(self.settled, self.reserved), self._offered))

    @property
    def unstored(self) -> Decimal:
        """What was used and was not known to be stored at the last exchange."""
        return EXACT.subtract(self.settled, self._stored)

    def reserve(self, amount: Decimal, now: float) -> None:
        """Take what is available; the caller has looked."""
        self.reserved = EXACT.add(self.reserved, amount)
        self._stuck = False
        self._note(amount, now)

    def settle(self, reserved: Decimal, used: Decimal) -> None:
        """Release a reservation, once, and use what its request has used, be it more or less."""
        self.reserved = EXACT.subtract(self.reserved, reserved)
        if self._leased:
            self.settled = EXACT.add(self.settled, used)

    @contextmanager
    def waiting(self, amount: Decimal) -> Iterator[None]:
        """Let the next exchange know that a request waits for this."""
        self._waiting.append(amount)
        try:
            yield
        finally:
            self._waiting.remove(amount)

    def claim(self, now: float, allowed: bool = True, all_stored: bool = False) -> Claim | None:
        """What to say in an exchange that begins now; None where there is nothing to say or to keep.

        What it offers is set aside until `take`, `unsure` or `failed`. `allowed` is False where the limit is gone;
        `all_stored` says that nothing that was settled is still on its way into the database.
        """
        waiting = sum(self._waiting, ZERO)
        wish = self._wish(now, waiting) if allowed else ZERO
        if not (wish or self.reserved or len(self._grants) > 1 or self._granted != self.settled or self.unstored):
            return None
        self._leased = True
        idle = max(ZERO, self.available(now))
        stuck = self._stuck and bool(waiting) and idle > 0
        keep = ZERO if stuck else wish
        if self.outcome is not None:
            keep = min(keep, self.outcome.fair)
        self._offered = max(ZERO, EXACT.subtract(idle, keep))
        return Claim(
            reserved=self.reserved,
            settled=self.settled,
            stored=self._stored,
            all_stored=all_stored,
            grants=dict(self._grants),
            wish=wish,
            waiting=waiting if allowed else ZERO,
            least=min(self._waiting, default=ZERO),
            stuck=stuck,
            offer=self._offered,
            quantum=self.quantum,
        )

    def take(self, outcome: Outcome, stamp: float, usable_until: float) -> None:
        """The exchange is committed."""
        self.outcome = outcome
        self._stuck = outcome.short
        self._granted = outcome.granted
        self._stored = outcome.stored
        self._grants = {stamp: outcome.granted}
        self._usable_until = usable_until
        self._offered = ZERO

    def unsure(self, outcome: Outcome, stamp: float) -> None:
        """The exchange may be committed: the next one will see. Until then only what is certain is used."""
        self._grants[stamp] = outcome.granted
        self._granted = min(self._granted, outcome.granted)
        self._offered = ZERO

    def failed(self) -> None:
        """The exchange has changed nothing."""
        self._offered = ZERO

    def _note(self, amount: Decimal, now: float) -> None:
        raise NotImplementedError

    def _wish(self, now: float, waiting: Decimal) -> Decimal:
        raise NotImplementedError


class Purse(Lease):
    """US dollars. Wishes for twice what was reserved in the last second or two, so that a rising load finds enough."""

    quantum = Decimal("0.000001")

    def __init__(self) -> None:
        super().__init__(Recent(EXACT.add))

    def _note(self, amount: Decimal, now: float) -> None:
        self._recent.note(now, amount)

    def _wish(self, now: float, waiting: Decimal) -> Decimal:
        return 2 * EXACT.add(waiting, self._recent.total(now))


class Places(Lease):
    """Requests at once. Wishes for as many as were used at once in the last second or two, and no more: places that one
    process keeps idle are refused to the clients of another."""

    quantum = ONE

    def __init__(self) -> None:
        super().__init__(Recent(max))

    def refused(self, now: float) -> None:
        """Remember that one more could have been used."""
        self._recent.note(now, EXACT.add(self.reserved, ONE))

    def _note(self, amount: Decimal, now: float) -> None:
        self._recent.note(now, self.reserved)

    def _wish(self, now: float, waiting: Decimal) -> Decimal:
        self._recent.note(now, EXACT.add(self.reserved, waiting))
        return max(waiting, EXACT.subtract(self._recent.total(now), self.reserved))
