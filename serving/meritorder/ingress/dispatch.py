"""The story of one request: route, plan, attempt, stream, settle."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from meritorder.backends.answer import Answer
from meritorder.backends.client import BackendClient
from meritorder.backends.failures import AttemptFailed
from meritorder.core.catalog import Backend, Route
from meritorder.core.errors import RequestError, UnsupportedEndpoint
from meritorder.core.money import FREE
from meritorder.core.plan import Attempt, RoutePlan
from meritorder.core.request import Caller, InferenceRequest
from meritorder.core.usage import Outcome, Usage, UsageRecord
from meritorder.ingress.body import ClientLeft
from meritorder.ingress.refusals import all_failed, broken_stream, find_route, nothing_to_try
from meritorder.ingress.world import World
from meritorder.routing.plan import plan
from meritorder.telemetry.metrics import Metrics
from meritorder.wire import errors as wire_errors

_CLIENT_CLOSED_REQUEST = 499
"""No such status exists in HTTP, and nobody is there to see it; nginx writes it into its log."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client gets. `chunks` never raises: a stream that breaks ends with an error event."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncGenerator[bytes, None]


@dataclass(slots=True)
class _Tally:
    """What has happened to a request so far; it becomes its usage record."""

    started_at: float
    started: float
    outcome: Outcome | None = None
    status: int = 0
    attempts: int = 0
    backend: Backend | None = None
    answer: Answer | None = None
    first_token: float | None = None
    failures: list[tuple[Backend, AttemptFailed]] = field(default_factory=list)

    def end(self, outcome: Outcome, status: int) -> None:
        """The first end counts: how a connection goes down after the answer is nothing to the record."""
        if self.outcome is None:
            self.outcome, self.status = outcome, status


class Dispatcher:
    """Sends requests to backends. `settle` is called with exactly one record per request that is let in."""

    def __init__(
        self, world: World, client: BackendClient, metrics: Metrics, settle: Callable[[UsageRecord], None]
    ) -> None:
        self._world = world
        self._client = client
        self._metrics = metrics
        self._settle = settle

    @asynccontextmanager
    async def dispatch(self, caller: Caller, request: InferenceRequest) -> AsyncIterator[Reply]:
        """Find a backend that answers, and give its answer for as long as the context is open.

        Leaving the context, by whatever way, cancels what is still open at the backend and settles.

        Raises:
            RequestError: the request is refused, or nothing answers it.
        """
        route = find_route(self._world.catalog, caller, request.model)
        tally = _Tally(started_at=time.time(), started=time.monotonic())
        try:
            chosen = self._plan(route, request)
            async with self._attempt(chosen, request, tally) as answer:
                yield Reply(answer.status, {**answer.headers, **_explanation(tally)}, self._stream(answer, tally))
        except BaseException as error:
            tally.end(*self._cut_short(error))
            raise
        finally:
            self._finish(caller, route, request, tally)

    def _plan(self, route: Route, request: InferenceRequest) -> RoutePlan:
        made = plan(self._world.snapshot(), route, request.endpoint, time.monotonic())
        if not made.attempts:
            raise nothing_to_try(route, request, made)
        return made

    @asynccontextmanager
    async def _attempt(self, chosen: RoutePlan, request: InferenceRequest, tally: _Tally) -> AsyncIterator[Answer]:
        """The first good answer, the attempts made in order. After this, there is no other backend."""
        for attempt in chosen.attempts:
            tally.attempts += 1
            with self._world.occupied(attempt.backend):
                answer = await self._open(attempt, request, tally)
                if answer is not None:
                    try:
                        yield answer
                    finally:
                        await answer.close()
                    return
        raise all_failed(tally.failures)

    async def _open(self, attempt: Attempt, request: InferenceRequest, tally: _Tally) -> Answer | None:
        name = attempt.backend.name
        try:
            answer = await self._client.open(attempt, request)
        except AttemptFailed as failed:
            self._world.failed(name, failed, time.monotonic())
            self._metrics.attempted(name, failed.failure)
            tally.failures.append((attempt.backend, failed))
            return None
        self._metrics.attempted(name, "ok")
        tally.backend, tally.answer = attempt.backend, answer
        if answer.streamed:
            tally.first_token = time.monotonic()
        return answer

    async def _stream(self, answer: Answer, tally: _Tally) -> AsyncGenerator[bytes, None]:
        assert tally.backend is not None
        try:
            async for chunk in answer.chunks():
                yield chunk
        except AttemptFailed as failed:
            self._world.failed(tally.backend.name, failed, time.monotonic())
            self._metrics.attempted(tally.backend.name, failed.failure)
            tally.end(Outcome.FAILED, answer.status)
            yield wire_errors.stream_event(broken_stream(tally.backend, failed))
        else:
            self._world.succeeded(tally.backend.name)
            tally.end(Outcome.REJECTED if answer.rejected else Outcome.COMPLETED, answer.status)

    def _cut_short(self, error: BaseException) -> tuple[Outcome, int]:
        """The outcome and the status of a request that `error` ended before its answer was complete."""
        match error:
            case UnsupportedEndpoint():
                return Outcome.REJECTED, error.status
            case RequestError():
                return Outcome.FAILED, error.status
            case ClientLeft():
                return Outcome.DISCONNECTED, _CLIENT_CLOSED_REQUEST
            case asyncio.CancelledError() if not self._world.halted:
                return Outcome.DISCONNECTED, _CLIENT_CLOSED_REQUEST
            case _:
                return Outcome.FAILED, 500

    def _finish(self, caller: Caller, route: Route, request: InferenceRequest, tally: _Tally) -> None:
        backend = tally.backend
        usage = tally.answer.usage if tally.answer else Usage()
        first = tally.first_token
        record = UsageRecord(
            request_id=request.id,
            team=caller.team.name,
            key_id=caller.key_id,
            route=route.name,
            endpoint=request.endpoint,
            backend=backend.name if backend else None,
            tier=backend.tier if backend else None,
            attempts=tally.attempts,
            outcome=tally.outcome or Outcome.FAILED,
            status=tally.status,
            usage=usage,
            cost=(backend.price if backend else FREE).cost(usage),
            started_at=tally.started_at,
            time_to_first_token=None if first is None else first - tally.started,
            duration=time.monotonic() - tally.started,
        )
        self._settle(record)
        self._metrics.settled(record)


def _explanation(tally: _Tally) -> dict[str, str]:
    assert tally.backend is not None
    return {"x-meritorder-backend": tally.backend.name, "x-meritorder-attempts": str(tally.attempts)}
