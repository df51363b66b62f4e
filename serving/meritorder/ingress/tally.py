"""What has happened to a request so far; it becomes its usage record."""

import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal

from meritorder.core.catalog import Backend, Catalog, Route
from meritorder.core.pricing import NoPrice, ServiceTier
from meritorder.core.request import Caller, InferenceRequest
from meritorder.core.usage import Charge, Outcome, Usage, UsageRecord
from meritorder.ingress.attempts import Attempts, Opened


@dataclass(slots=True)
class Tally:
    """`started_at` is in seconds since the epoch, `started` on the monotonic clock."""

    id: str
    caller: Caller
    catalog: Catalog
    route: Route
    request: InferenceRequest
    started_at: float
    started: float
    draw: float = field(default_factory=random.random)
    arm: str | None = None
    outcome: Outcome | None = None
    status: int = 0
    attempts: Attempts | None = None
    opened: Opened | None = None

    @property
    def first_token(self) -> float | None:
        """When a stream began, on the monotonic clock."""
        return self.opened.at if self.opened is not None and self.opened.answer.streamed else None

    def end(self, outcome: Outcome, status: int) -> None:
        """The first end counts: how a connection goes down after the answer is nothing to the record."""
        if self.outcome is None:
            self.outcome, self.status = outcome, status

    def charges(self) -> tuple[Charge, ...]:
        """What the attempts cost: the answer, and what other backends did for nothing."""
        made = []
        if self.opened is not None and not self.opened.answer.rejected:
            answer = self.opened.answer
            made.append(self._charge(self.opened.place.backend, answer.usage, answer.service_tier))
        for backend, usage in self.attempts.spent if self.attempts else ():
            made.append(self._charge(backend, usage))
        return tuple(made)

    def record(self, now: float) -> UsageRecord:
        """The usage record, as it stands at `now`."""
        opened, first = self.opened, self.first_token
        spent = self.attempts.spent if self.attempts else []
        # Where no backend answered, the one that the client waited for last is the one to name.
        backend = opened.place.backend if opened else spent[-1][0] if spent else None
        return UsageRecord(
            id=self.id,
            request_id=self.request.id,
            team=self.caller.team.name,
            key_id=self.caller.key_id,
            route=self.route.name,
            endpoint=self.request.endpoint,
            backend=backend.name if backend else None,
            tier=backend.tier if backend else None,
            attempts=self.attempts.made if self.attempts else 0,
            outcome=self.outcome or Outcome.FAILED,
            status=self.status or (opened.answer.status if opened else 500),
            charges=self.charges(),
            started_at=self.started_at,
            time_to_first_token=None if first is None else first - self.started,
            duration=now - self.started,
            arm=self.arm,
        )

    def headers(self) -> Mapping[str, str]:
        """What the client is told of the answer; of a stream's cost, its usage event tells."""
        assert self.opened is not None
        assert self.attempts is not None
        told = {
            "x-meritorder-backend": self.opened.place.backend.name,
            "x-meritorder-attempts": str(self.attempts.made),
        }
        if self.arm is not None:
            told["x-meritorder-arm"] = self.arm
        if not self.opened.answer.streamed and (cost := self._cost()) is not None:
            told["x-meritorder-cost-usd"] = format(cost, "f")
        return told

    def explanation(self) -> Mapping[str, object]:
        """The same and the cost, for a stream's usage event."""
        assert self.opened is not None
        assert self.attempts is not None
        cost = self._cost()
        return {
            "request_id": self.request.id,
            "backend": self.opened.place.backend.name,
            "attempts": self.attempts.made,
            "cost_usd": None if cost is None else format(cost, "f"),
        }

    def _cost(self) -> Decimal | None:
        costs = [charge.cost for charge in self.charges()]
        return None if None in costs else sum((cost for cost in costs if cost is not None), Decimal(0))

    def _charge(self, backend: Backend, usage: Usage, tier: ServiceTier | None = None) -> Charge:
        """`tier` is the one that the backend says it has served, which need not be the one that was asked for."""
        cost = None
        for each in (tier, self.request.service_tier):
            if cost is None and backend.price is not None and each is not None:
                with suppress(NoPrice):
                    cost = backend.price.cost(usage, self.started_at, each)
        return Charge(backend.name, backend.tier, usage, cost)
