"""The agent that exchanges leases with the database, in the background: no request does.

A request whose slice is empty says so (`exchanged`) and waits for the next exchange, which all that wait at that moment
share. Everything but the exchange itself happens in the event loop, so the accounts need no lock.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from sqlalchemy import Engine

from meritorder.admission.account import Account, Moment
from meritorder.admission.exchange import Answer, Demand
from meritorder.core.limits import Allowance
from meritorder.ledger.database import impatient
from meritorder.ledger.leases import LEASE_SECONDS, SAFETY, ExchangeFailed, exchange, sweep

log = logging.getLogger(__name__)

_LOCKED_SECONDS = 1.0
"""How long another may keep SQLite to itself."""

_ACCOUNTS_AT_ONCE = 50
"""How many are asked for their demands before requests get their turn: half a millisecond's worth."""

_SWEEP_SECONDS = 3600.0
_FORGOTTEN_SECONDS = 60.0
"""How long the account of somebody who sends nothing is kept."""


def new_holder() -> str:
    """A name for this process among all that lease; its usage records are written under the same."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds. `lease` is how long a lease lasts that is not renewed."""

    lease: float = LEASE_SECONDS

    interval: float = 0.5
    """Between exchanges that nobody waits for: how soon what one process gives back can be had by another."""

    spacing: float = 0.02
    """Between exchanges that somebody waits for, so that many who wait share one."""

    patience: float = 0.5
    """How long a request waits for an exchange. A database that is slower is no use to it."""

    parting: float = 2.0
    """How long the last exchange may take, which gives everything back."""


class LeaseAgent:
    """One per ingress process; `async with` starts and stops it.

    `now` is a clock that never goes back, `epoch` the calendar's, both in seconds; processes that share a database
    must agree on the latter within two seconds. `all_stored` says whether the usage records of all requests that were
    settled are in the database; so there must be no await between settling a request and handing over its record.
    """

    def __init__(
        self,
        engine: Engine,
        holder: str,
        pace: Pace | None = None,
        now: Callable[[], float] = time.monotonic,
        epoch: Callable[[], float] = time.time,
        all_stored: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine = impatient(engine, _LOCKED_SECONDS)
        self._all_stored = all_stored
        self._holder = holder
        self._pace = pace or Pace()
        self._now = now
        self._epoch = epoch
        self._accounts: dict[str, Account] = {}
        self._used: dict[str, float] = {}
        self._waiting: list[asyncio.Future[bool]] = []
        self._awaited: set[str] = set()
        self._all_at = float("-inf")
        self._wanted = asyncio.Event()
        self._closing = False
        self._down: str | None = None
        self._in_touch_since: float | None = float("-inf")
        self._asked = float("-inf")
        self._thread = ThreadPoolExecutor(1, "leases")
        self._task: asyncio.Task[None] | None = None

    @property
    def down(self) -> bool:
        """Whether the database did not take part in the last exchange."""
        return self._down is not None

    def moment(self) -> Moment:
        return Moment(self._now(), self._epoch())

    def account(self, allowance: Allowance) -> Account:
        """The account of `allowance.scope`, under the limits as they are now."""
        account = self._accounts.get(allowance.scope)
        if account is None:
            account = self._accounts[allowance.scope] = Account(allowance)
        elif account.allowance is not allowance and account.allowance != allowance:
            account.change(allowance)
        return account

    async def exchanged(self, accounts: Iterable[Account]) -> bool:
        """Wait for an exchange about `accounts` that begins after this call; False where none is made within the
        pace's patience."""
        if self._closing or self.down:
            return False
        self._awaited.update(account.allowance.scope for account in accounts)
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._wanted.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pace.patience):
                return await done
        return False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give everything back that is not in use."""
        self._closing = True
        self._wanted.set()
        assert self._task is not None
        try:
            async with asyncio.timeout(self._pace.parting):
                await self._task
                if not self.down:
                    await self._exchange()
        except TimeoutError:
            log.warning("the leases could not be given back; they expire within %g s", self._pace.lease)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        next_sweep = self._now()
        while not self._closing:
            try:
                await self._exchange()
            except Exception as error:  # a fault of ours must not end the agent, or nobody would be let in any more
                log.exception("an exchange of leases failed")
                self._down = repr(error)
            if not self.down and self._now() >= next_sweep:
                next_sweep = self._now() + _SWEEP_SECONDS
                await self._sweep()
            await self._pause()

    async def _sweep(self) -> None:
        with suppress(ExchangeFailed):  # there will be another time
            await asyncio.get_running_loop().run_in_executor(self._thread, sweep, self._engine, self._epoch())

    async def _pause(self) -> None:
        """Wait for the next interval or, a little, for somebody who waits. A database that is down is left alone."""
        if self.down:
            self._wanted.clear()
        else:
            await asyncio.sleep(self._pace.spacing)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pace.interval):
                await self._wanted.wait()
        self._wanted.clear()

    async def _exchange(self) -> None:
        at = self.moment()
        reached = False
        waiting, self._waiting = self._waiting, []  # who comes from here on waits for the next one
        awaited, self._awaited = self._awaited, set()
        try:
            if self._closing or self.down or at.now - self._all_at >= self._pace.interval:
                self._all_at = at.now
                demands = await self._demands(at)
            else:  # to go through all that are in use, each time that anybody waits, would take all of a processor
                demands = self._awaited_demands(awaited, at)
            if demands or self.down or at.now - self._asked > self._pace.lease / 4:
                self._asked = at.now
                await self._ask(demands, at)
                reached = not self.down
        finally:
            for one in waiting:
                if not one.done():
                    one.set_result(reached)

    async def _demands(self, at: Moment) -> dict[str, Demand]:
        demands = {}
        for number, (scope, account) in enumerate(list(self._accounts.items())):
            if number % _ACCOUNTS_AT_ONCE == 0:
                await asyncio.sleep(0)
            demand = account.demand(at, self._closing, self._all_stored())
            if demand is not None:
                demands[scope] = demand
                self._used[scope] = at.now
            elif at.now - self._used.setdefault(scope, at.now) > _FORGOTTEN_SECONDS:
                del self._accounts[scope], self._used[scope]
        return demands

    def _awaited_demands(self, awaited: Iterable[str], at: Moment) -> dict[str, Demand]:
        stored = self._all_stored()
        accounts = {scope: self._accounts[scope] for scope in awaited if scope in self._accounts}
        demands = ((scope, account.demand(at, all_stored=stored)) for scope, account in accounts.items())
        return {scope: demand for scope, demand in demands if demand is not None}

    async def _ask(self, demands: Mapping[str, Demand], at: Moment) -> None:
        stamp = at.epoch + self._pace.lease
        try:
            answers = await self._in_thread(demands, at)
        except ExchangeFailed as failed:
            self._failed(str(failed), demands, failed.answers, stamp)
        else:
            self._succeeded(demands, answers, at, stamp)

    async def _in_thread(self, demands: Mapping[str, Demand], at: Moment) -> dict[str, Answer]:
        # After an outage the others may have been cut off as this process was: they need time to come back.
        in_touch = 0.0 if self._in_touch_since is None else at.now - self._in_touch_since
        work = partial(
            exchange,
            self._engine,
            self._holder,
            list(demands.values()),
            at.epoch,
            reclaim=in_touch >= self._pace.lease,
            lease_seconds=self._pace.lease,
        )
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _succeeded(
        self, demands: Mapping[str, Demand], answers: Mapping[str, Answer], at: Moment, stamp: float
    ) -> None:
        if self._down is not None:
            log.warning("leases are exchanged with the database again")
            self._down = None
        if self._in_touch_since is None:
            self._in_touch_since = at.now
        usable_until = at.now + self._pace.lease * (1 - SAFETY)
        now = self._now()
        for scope, answer in answers.items():
            self._accounts[scope].take(demands[scope], answer, stamp, usable_until, now)

    def _failed(
        self, why: str, demands: Mapping[str, Demand], answers: Mapping[str, Answer] | None, stamp: float
    ) -> None:
        if self._down is None:  # once an outage, and not once an attempt
            log.warning("leases cannot be exchanged with the database, and last until they expire: %s", why)
        self._down = why
        self._in_touch_since = None
        for scope in demands:
            if answers is None:
                self._accounts[scope].failed()
            else:
                self._accounts[scope].unsure(answers[scope], stamp)
