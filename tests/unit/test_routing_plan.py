"""Which backends are tried, in which order, and what is said of those that are not."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

import pytest

from meritorder.core.catalog import Backend, Catalog, Endpoint, Route, Tier
from meritorder.core.money import Price
from meritorder.core.plan import Rejection, RoutePlan
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.routing.plan import plan
from meritorder.routing.snapshot import Snapshot

NOW = 1000.0
CHAT, EMBEDDINGS = Endpoint.CHAT_COMPLETIONS, Endpoint.EMBEDDINGS


def backend(name: str, concurrency: int | None = 2, endpoints: frozenset[Endpoint] = frozenset({CHAT})) -> Backend:
    return Backend(name, Tier.HOSTED, f"app-{name}", name, endpoints, Price(Decimal(1), Decimal(1)), concurrency)


def ready(name: str) -> ApplicationStatus:
    return ApplicationStatus(f"app-{name}", Phase.READY, f"http://{name}")


def planned(
    *backends: Backend,
    statuses: Mapping[str, ApplicationStatus] | None = None,
    in_flight: Mapping[str, int] | None = None,
    rests_until: Mapping[str, float] | None = None,
    endpoint: Endpoint = CHAT,
) -> RoutePlan:
    if statuses is None:
        statuses = {one.application: ready(one.name) for one in backends}
    catalog = Catalog({one.name: one for one in backends}, {}, {})
    route = Route("route", tuple(one.name for one in backends))
    loads = {f"app-{name}": count for name, count in (in_flight or {}).items()}
    return plan(Snapshot(catalog, statuses, loads, rests_until or {}), route, endpoint, NOW)


def order(made: RoutePlan) -> str:
    return " ".join(attempt.backend.name for attempt in made.attempts)


A, B, C = backend("a"), backend("b"), backend("c")


@pytest.mark.parametrize(
    ("in_flight", "rests_until", "expected"),
    [
        pytest.param({}, {}, "a b c", id="the route's own order"),
        pytest.param({"a": 1, "b": 1}, {}, "a b c", id="busy is not full"),
        pytest.param({"a": 2}, {}, "b c a", id="a full one comes after those with room"),
        pytest.param({"a": 3, "b": 2}, {}, "c a b", id="full ones keep their order"),
        pytest.param({"a": 2, "b": 2, "c": 2}, {}, "a b c", id="where all are full, the first queues"),
        pytest.param({}, {"a": NOW + 1}, "b c a", id="one that has just failed comes last"),
        pytest.param({"b": 2}, {"a": NOW + 1}, "c b a", id="after a full one, too"),
        pytest.param({}, {"a": NOW}, "a b c", id="until it has rested"),
        pytest.param({}, {"a": NOW - 1}, "a b c", id="and from then on"),
        pytest.param({}, {"a": NOW + 9, "b": NOW + 1, "c": NOW + 5}, "a b c", id="resting ones keep their order"),
        pytest.param({"a": 2}, {"a": NOW + 1}, "b c a", id="full and resting is resting"),
    ],
)
def test_order(in_flight: dict[str, int], rests_until: dict[str, float], expected: str) -> None:
    assert order(planned(A, B, C, in_flight=in_flight, rests_until=rests_until)) == expected


def test_a_backend_of_unknown_concurrency_is_never_full() -> None:
    assert order(planned(backend("a", concurrency=None), B, in_flight={"a": 10_000})) == "a b"


def test_an_attempt_says_where() -> None:
    assert [attempt.base_url for attempt in planned(A, B).attempts] == ["http://a", "http://b"]


def test_backends_of_one_application_fill_it_together() -> None:
    one, two = (replace(backend(f"p/{name}"), application="app-p") for name in ("one", "two"))
    statuses = {"app-p": ready("p"), "app-b": ready("b")}
    made = {load: order(planned(one, B, two, statuses=statuses, in_flight={"p": load})) for load in (1, 2)}
    assert made == {1: "p/one b p/two", 2: "b p/one p/two"}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (None, "waits to be deployed"),
        (ApplicationStatus("app-a", Phase.PENDING), "waits to be deployed"),
        (ApplicationStatus("app-a", Phase.STARTING, "http://a"), "is starting"),
        (ApplicationStatus("app-a", Phase.READY, None), "is starting"),
        (ApplicationStatus("app-a", Phase.FAILED, None, "connect to 10.0.0.7 failed"), "has failed"),
    ],
)
def test_a_backend_that_is_not_ready_is_left_out(status: ApplicationStatus | None, reason: str) -> None:
    statuses = {"app-b": ready("b")} | ({"app-a": status} if status else {})
    made = planned(A, B, statuses=statuses)
    assert order(made) == "b"
    [rejected] = made.rejected
    assert (rejected.backend, rejected.rejection, rejected.reason) == (A, Rejection.NOT_READY, reason)


def test_a_backend_that_does_not_serve_the_endpoint_is_left_out() -> None:
    embedding = backend("e", endpoints=frozenset({EMBEDDINGS}))
    made = planned(A, embedding, endpoint=EMBEDDINGS)
    assert order(made) == "e"
    [rejected] = made.rejected
    assert (rejected.rejection, rejected.reason) == (Rejection.ENDPOINT, "does not serve /v1/embeddings")


def test_backends_of_one_provider_share_its_status() -> None:
    shared = {"app-a": ready("a")}
    one = Backend("p/one", Tier.HOSTED, "app-a", "one", frozenset({CHAT}), Price(Decimal(1), Decimal(1)))
    two = Backend("p/two", Tier.HOSTED, "app-a", "two", frozenset({CHAT}), Price(Decimal(1), Decimal(1)))
    assert [attempt.base_url for attempt in planned(one, two, statuses=shared).attempts] == ["http://a", "http://a"]


def test_every_candidate_is_either_tried_or_explained() -> None:
    made = planned(A, B, C, statuses={"app-b": ready("b")}, in_flight={"b": 5})
    assert {attempt.backend for attempt in made.attempts} | {one.backend for one in made.rejected} == {A, B, C}
