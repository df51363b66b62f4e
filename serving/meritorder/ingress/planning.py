"""Planning against the world as it is: shared by dispatch, which acts on the plan, and explain, which shows it."""

import time
from collections.abc import Mapping
from decimal import Decimal

from meritorder.core.catalog import Catalog, Override, Route
from meritorder.core.errors import InvalidRequest, NotAllowed, RequestError
from meritorder.core.plan import Rejection, RoutePlan
from meritorder.core.request import Caller, InferenceRequest
from meritorder.core.tokens import estimated_tokens
from meritorder.ingress.admission import Ticket
from meritorder.ingress.refusals import PASSING, find_route, nothing_to_try
from meritorder.ingress.world import World
from meritorder.routing.plan import plan
from meritorder.routing.tokens import DEFAULT_EXPECTED_OUTPUT

_FIELDS: Mapping[Override, str] = {override: f"meritorder.{override.value}" for override in Override}


class Planner:
    """Plans requests. Nothing here waits."""

    def __init__(self, world: World) -> None:
        self._world = world

    def route(self, caller: Caller, request: InferenceRequest) -> Route:
        """The route that the request names.

        Raises:
            RequestError: there is none, the team may not call it, or asks of the routing what it may not.
        """
        route = find_route(self._world.catalog, caller, request.model)
        asked = request.overrides
        for override in sorted(asked.used - caller.team.overrides):
            raise NotAllowed(
                f"Team {caller.team.name!r} may not set {_FIELDS[override]}; leave it out, or have it added to the "
                "team's overrides.",
                param=_FIELDS[override],
                code="override_not_allowed",
            )
        if asked.backend is not None and asked.backend not in route.backends:
            raise InvalidRequest(
                f"'{_FIELDS[Override.BACKEND]}' is not valid: {route.name!r} has no candidate {asked.backend[:200]!r}; "
                f"it has {', '.join(route.backends)}.",
                param=_FIELDS[Override.BACKEND],
            )
        return route

    def tokens(self, request: InferenceRequest) -> int:
        """How many tokens the rates are to be charged with until it is known; settling corrects it."""
        output = request.max_output_tokens
        expected = DEFAULT_EXPECTED_OUTPUT * request.choices if output is None else output
        return estimated_tokens(request.text_bytes) + expected

    def plan(
        self,
        caller: Caller,
        route: Route,
        request: InferenceRequest,
        budgeted: bool,
        headroom: Decimal | None,
        draw: float,
        catalog: Catalog | None = None,
    ) -> RoutePlan:
        """Rank the candidates; the arguments are those of `routing.plan.plan`.

        `catalog` is that which the route is of, where it may have been replaced since.
        """
        return plan(
            self._world.snapshot(catalog),
            route,
            request,
            key_id=caller.key_id,
            headroom=headroom,
            budgeted=budgeted,
            now=time.monotonic(),
            moment=time.time(),
            draw=draw,
        )

    def refusal(
        self,
        caller: Caller,
        route: Route,
        request: InferenceRequest,
        made: RoutePlan,
        ticket: Ticket,
        draw: float,
        catalog: Catalog | None = None,
    ) -> RequestError:
        """Why a plan without attempts gives no answer."""
        dear = {one.backend.name for one in made.rejected if one.rejection is Rejection.BUDGET}
        if not dear or any(one.rejection in PASSING for one in made.rejected):
            return nothing_to_try(route, request, made)
        unbound = self.plan(caller, route, request, True, None, draw, catalog)
        bounds = [one.cost_bound for one in unbound.attempts if one.backend.name in dear and one.cost_bound is not None]
        return ticket.refusal(min(bounds, default=Decimal(0)))
