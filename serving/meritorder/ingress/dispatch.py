"""The story of one request: admit, plan, attempt, stream, settle."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal

from meritorder.backends.client import BackendClient
from meritorder.backends.failures import AttemptFailed
from meritorder.core.errors import BudgetExceeded, LedgerUnavailable, RequestError, ShuttingDown
from meritorder.core.plan import Attempt, RoutePlan
from meritorder.core.request import Caller, InferenceRequest
from meritorder.core.usage import Outcome, UsageRecord
from meritorder.ingress.admission import Admission, Ticket
from meritorder.ingress.attempts import Attempts, Opened
from meritorder.ingress.body import ClientLeft
from meritorder.ingress.planning import Planner
from meritorder.ingress.refusals import broken_stream
from meritorder.ingress.tally import Tally
from meritorder.ingress.world import World
from meritorder.telemetry.metrics import Metrics
from meritorder.wire import errors as wire_errors

_CLIENT_CLOSED_REQUEST = 499
"""No such status exists in HTTP, and nobody is there to see it; nginx writes it into its log."""

_LEDGER_BACK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client gets. `chunks` never raises: a stream that breaks ends with an error event."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where records go. `begin` is given what is to be written if nothing more is heard, and `end` what is.

    `full` says that no more can be taken, so that no request may be let in.
    """

    begin: Callable[[UsageRecord], None]
    end: Callable[[UsageRecord], None]
    full: Callable[[], bool]


class Dispatcher:
    """Sends requests to backends. `ledger.end` is called with exactly one record per request that is let in."""

    def __init__(
        self,
        world: World,
        planner: Planner,
        admission: Admission,
        client: BackendClient,
        ledger: Ledger,
        metrics: Metrics,
    ) -> None:
        self._world = world
        self._planner = planner
        self._admission = admission
        self._client = client
        self._ledger = ledger
        self._metrics = metrics

    @asynccontextmanager
    async def dispatch(self, caller: Caller, request: InferenceRequest) -> AsyncIterator[Reply]:
        """Find a backend that answers, and give its answer for as long as the context is open.

        Leaving the context, by whatever way, cancels what is still open at the backend and settles.

        Raises:
            RequestError: the request is refused, or nothing answers it.
        """
        catalog = self._world.catalog  # the whole request keeps one
        route = self._planner.route(caller, request)
        if self._ledger.full():
            raise LedgerUnavailable(
                "Usage records can be written neither to the database nor to the disk; send the request again later.",
                retry_after=_LEDGER_BACK_SECONDS,
            )
        ticket = await self._admission.admit(caller, self._planner.tokens(request))
        tally = Tally(_record_id(), caller, catalog, route, request, time.time(), time.monotonic())
        try:
            plan, headroom = await self._plan(ticket, tally)
            async with await self._attempt(plan, headroom, ticket, tally) as opened:
                self._begin(opened, tally)
                headers = {**opened.answer.headers, **ticket.headers(), **tally.headers()}
                yield Reply(opened.answer.status, headers, self._stream(opened, tally))
        except BaseException as error:
            tally.end(*self._cut_short(error))
            raise
        finally:
            self._settle(ticket, tally)

    async def _plan(self, ticket: Ticket, tally: Tally) -> tuple[RoutePlan, Decimal | None]:
        """A plan that the budgets can pay, with what it may cost reserved, and what they had left before."""
        plan = self._plan_with(None, ticket, tally)
        headroom = None
        if ticket.budgeted:
            wanted, seen = cost_bound(plan.attempts), self._world.changes
            headroom = await ticket.headroom(wanted)
            if headroom is not None and (headroom < wanted or self._world.changes != seen):
                plan = self._plan_with(headroom, ticket, tally)
        tally.arm = plan.arm
        if not plan.attempts:
            raise self._planner.refusal(
                tally.caller, tally.route, tally.request, plan, ticket, tally.draw, tally.catalog
            )
        ticket.reserve(cost_bound(plan.attempts))
        return plan, headroom

    def _plan_with(self, headroom: Decimal | None, ticket: Ticket, tally: Tally) -> RoutePlan:
        return self._planner.plan(
            tally.caller, tally.route, tally.request, ticket.budgeted, headroom, tally.draw, tally.catalog
        )

    async def _attempt(self, plan: RoutePlan, headroom: Decimal | None, ticket: Ticket, tally: Tally) -> Opened:
        """The first good answer. After this, there is no other backend."""
        reserved = cost_bound(plan.attempts)

        def may_hedge(second: Attempt) -> bool:
            # Both are paid, and what is reserved is for the dearest one.
            return headroom is None or _reserved(ticket, second.cost_bound or Decimal(0))

        def plan_again() -> RoutePlan:
            return self._plan_with(None if headroom is None else reserved, ticket, tally)

        timeout = tally.route.objective.timeout
        deadline = None if timeout is None else tally.started + timeout
        attempts = Attempts(self._world, self._client, self._metrics, tally.request, tally.route, deadline, may_hedge)
        tally.attempts = attempts
        return await attempts.first_good(plan, plan_again)

    def _begin(self, opened: Opened, tally: Tally) -> None:
        tally.opened = opened
        opened.answer.explain = tally.explanation
        self._ledger.begin(tally.record(time.monotonic()))

    async def _stream(self, opened: Opened, tally: Tally) -> AsyncGenerator[bytes, None]:
        answer, place = opened.answer, opened.place
        try:
            async for chunk in answer.chunks():
                yield chunk
        except AttemptFailed as failed:
            self._world.failed(place, failed, time.monotonic())
            self._metrics.attempted(place.backend.name, failed.failure)
            tally.end(Outcome.FAILED, answer.status)
            yield wire_errors.stream_event(broken_stream(place.backend, failed))
        else:
            now = time.monotonic()
            if answer.rejected:
                self._world.rejected(place, now)
                tally.end(Outcome.REJECTED, answer.status)
            else:
                self._world.completed(place, tally.request, answer.usage, tally.first_token, now)
                tally.end(Outcome.COMPLETED, answer.status)

    def _cut_short(self, error: BaseException) -> tuple[Outcome, int]:
        """The outcome and the status of a request that `error` ended before its answer was complete."""
        match error:
            case BudgetExceeded() | LedgerUnavailable():
                return Outcome.REFUSED, error.status
            case RequestError() if 400 <= error.status < 500 and error.status != 429:
                return Outcome.REJECTED, error.status
            case RequestError():
                return Outcome.FAILED, error.status
            case ClientLeft():
                return Outcome.DISCONNECTED, _CLIENT_CLOSED_REQUEST
            case asyncio.CancelledError() if not self._world.halted:
                return Outcome.DISCONNECTED, _CLIENT_CLOSED_REQUEST
            case asyncio.CancelledError():
                return Outcome.FAILED, ShuttingDown.status
            case _:
                return Outcome.FAILED, 500

    def _settle(self, ticket: Ticket, tally: Tally) -> None:
        """Nothing may be awaited in here: between the two, the money would be counted twice, or not at all."""
        record = tally.record(time.monotonic())
        ticket.settle(record.cost, sum(charge.usage.total_tokens for charge in record.charges))
        self._ledger.end(record)
        self._metrics.settled(record)


def _record_id() -> str:
    """Unique, and no secret: to ask the system for it would let other threads in, and this one wait for its turn."""
    return f"{random.getrandbits(128):032x}"


def cost_bound(attempts: tuple[Attempt, ...]) -> Decimal:
    """The most that any one of them can cost, in US dollars."""
    return max((attempt.cost_bound for attempt in attempts if attempt.cost_bound is not None), default=Decimal(0))


def _reserved(ticket: Ticket, amount: Decimal) -> bool:
    try:
        ticket.reserve(amount)
    except ValueError:
        return False
    return True
