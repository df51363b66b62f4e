"""What a plan without attempts becomes, and what a caller may ask of the routing."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine

from meritorder.core.catalog import Backend, Candidate, Capabilities, Catalog, Endpoint, Override, Route, Team, Tier
from meritorder.core.errors import RequestError
from meritorder.core.limits import Budget, Period
from meritorder.core.plan import RoutePlan
from meritorder.core.pricing import FREE, Price
from meritorder.core.request import Caller, InferenceRequest, Overrides
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.ingress.admission import Admission, Ticket
from meritorder.ingress.leasing import LeaseAgent
from meritorder.ingress.planning import Planner
from meritorder.ingress.world import World

CHAT = frozenset({Endpoint.CHAT_COMPLETIONS})


def hosted(name: str, rate: int | None, *, tools: bool = True) -> Backend:
    price = None if rate is None else Price.flat(Decimal(rate), Decimal(rate))
    return Backend(f"{name}/chat", Tier.HOSTED, f"provider-{name}", name, Capabilities(CHAT, tools=tools), price)


CHEAP, DEAR = hosted("cheap", 10), hosted("dear", 100)
TEXT_ONLY, UNPRICED = hosted("text", 1, tools=False), hosted("new", None)
OWN = Backend("own", Tier.SELF_RUN, "model-own", "own", Capabilities(CHAT), FREE, concurrency=2)
BACKENDS = {backend.name: backend for backend in (CHEAP, DEAR, TEXT_ONLY, UNPRICED, OWN)}
ROUTES = {
    name: Route(name, tuple(Candidate(backend.name) for backend in backends))
    for name, backends in {
        "hosted": (DEAR, CHEAP),
        "any": (OWN, CHEAP),
        "mixed": (TEXT_ONLY, CHEAP),
        "unpriced": (UNPRICED,),
        "unpriced or dear": (UNPRICED, CHEAP),
    }.items()
}
TEAM = Team("demo", budgets=(Budget(Period.DAILY, Decimal("0.001")),))
CALLER = Caller(TEAM, "key_1", (TEAM.allowance,))


def asked(route: str = "hosted", **fields: Any) -> InferenceRequest:
    # 1,064 tokens of prompt at most, and 1,000 of answer: 0.02 USD at the cheap one.
    request = InferenceRequest("id", Endpoint.CHAT_COMPLETIONS, route, False, False, 2000, lambda name: b"{}")
    return replace(request, text_bytes=2000, max_output_tokens=1000, **fields)


def world(*, own: Phase = Phase.FAILED) -> World:
    world = World()
    world.catalog = Catalog(BACKENDS, ROUTES, {"demo": TEAM})
    phases = {name: Phase.READY for name in ("provider-cheap", "provider-dear", "provider-text", "provider-new")}
    world.statuses = {
        name: ApplicationStatus(name, phase, f"http://{name}") for name, phase in (phases | {"model-own": own}).items()
    }
    return world


@asynccontextmanager
async def admitted(database: Engine) -> AsyncIterator[Ticket]:
    """A request of the team, whose budget of 0.001 USD is all there."""
    async with LeaseAgent(database, "me") as agent:
        ticket = await Admission(agent).admit(CALLER, 10)
        assert await ticket.headroom(Decimal("0.001")) == Decimal("0.001")
        yield ticket


def planned(planner: Planner, request: InferenceRequest, left: str = "0.001") -> tuple[Route, RoutePlan]:
    route = planner.route(CALLER, request)
    return route, planner.plan(CALLER, route, request, True, Decimal(left), 0.5)


async def refusal(database: Engine, of: World, request: InferenceRequest) -> RequestError:
    planner = Planner(of)
    route, made = planned(planner, request)
    assert made.attempts == ()
    async with admitted(database) as ticket:
        return planner.refusal(CALLER, route, request, made, ticket, 0.5)


class TestABudgetThatIsTooSmall:
    async def test_is_a_402_that_names_the_least_that_the_request_may_cost(self, database: Engine) -> None:
        error = await refusal(database, world(), asked())
        assert (error.status, error.code) == (402, "budget_exceeded")
        assert "The daily budget of the team 'demo' is 0.001 USD, of which 0.001 remain" in error.message
        assert "the request may cost 0.02064;" in error.message
        assert error.retry_after is not None

    @pytest.mark.parametrize("route", ["mixed", "unpriced or dear"])
    async def test_whatever_the_others_can_never_do(self, database: Engine, route: str) -> None:
        error = await refusal(database, world(), asked(route, tools=True))
        assert (error.status, error.code) == (402, "budget_exceeded")

    async def test_but_not_where_a_free_one_may_be_back_soon(self, database: Engine) -> None:
        error = await refusal(database, world(), asked("any"))
        assert (error.status, error.code) == (503, "model_not_ready")
        assert "'own' has failed; 'cheap/chat'" in error.message

    async def test_nor_where_a_free_one_says_when_it_is_back(self, database: Engine) -> None:
        busy = world(own=Phase.READY)
        busy.snapshot().quotas["own"].refused(30.0, time.monotonic())
        error = await refusal(database, busy, asked("any"))
        assert (error.status, error.code) == (429, "backends_busy")

    async def test_does_not_keep_a_request_from_what_is_free(self) -> None:
        _, made = planned(Planner(world(own=Phase.READY)), asked("any"), left="0")
        assert [attempt.backend for attempt in made.attempts] == [OWN]
        assert made.attempts[0].cost_bound == 0


async def test_a_model_without_a_price_is_refused_to_whoever_has_a_budget(database: Engine) -> None:
    error = await refusal(database, world(), asked("unpriced"))
    assert (error.status, error.code) == (403, "unpriced_model")
    assert "'new/chat' has no price, and this key has a budget" in error.message


def test_and_not_to_others() -> None:
    planner = Planner(world())
    route = planner.route(CALLER, asked("unpriced"))
    made = planner.plan(CALLER, route, asked("unpriced"), False, None, 0.5)
    assert [attempt.backend for attempt in made.attempts] == [UNPRICED]


class TestOverrides:
    ALL = Overrides(Decimal(1), 1.0, 0.5, "cheap/chat", frozenset({"dear/chat"}))

    def test_a_team_may_set_all_of_them_unless_told(self) -> None:
        assert Planner(world()).route(CALLER, asked(overrides=self.ALL)).name == "hosted"

    @pytest.mark.parametrize(
        ("override", "overrides"),
        [
            (Override.MAX_COST, Overrides(max_cost=Decimal(1))),
            (Override.MAX_TTFT, Overrides(max_ttft=1.0)),
            (Override.MIN_QUALITY, Overrides(min_quality=0.5)),
            (Override.BACKEND, Overrides(backend="cheap/chat")),
            (Override.EXCLUDE, Overrides(exclude=frozenset({"cheap/chat"}))),
        ],
    )
    def test_one_that_a_team_may_not_set_is_a_403_that_names_it(self, override: Override, overrides: Overrides) -> None:
        caller = Caller(replace(TEAM, overrides=frozenset(Override) - {override}), "key_1")
        with pytest.raises(RequestError) as caught:
            Planner(world()).route(caller, asked(overrides=overrides))
        error = caught.value
        assert (error.status, error.code, error.param) == (403, "override_not_allowed", f"meritorder.{override.value}")

    def test_a_backend_that_the_route_does_not_have_is_a_400_that_lists_those_it_has(self) -> None:
        with pytest.raises(RequestError) as caught:
            Planner(world()).route(CALLER, asked(overrides=Overrides(backend="own")))
        error = caught.value
        assert (error.status, error.code, error.param) == (400, "invalid_request", "meritorder.backend")
        assert error.message.endswith("'hosted' has no candidate 'own'; it has dear/chat, cheap/chat.")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, 500 + 1000, id="the client's own limit"),
        pytest.param({"max_output_tokens": None}, 500 + 256, id="an answer of the usual length"),
        pytest.param({"max_output_tokens": None, "choices": 3}, 500 + 3 * 256, id="for each choice"),
        pytest.param({"text_bytes": 0}, 1 + 1000, id="no prompt is empty"),
    ],
)
def test_the_rates_are_charged_with_the_prompt_and_the_answer(fields: dict[str, Any], expected: int) -> None:
    assert Planner(World()).tokens(replace(asked(), **fields)) == expected
