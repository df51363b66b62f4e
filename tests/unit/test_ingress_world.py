"""What the ingress remembers of its backends: loads, failures, and how long one rests."""

from decimal import Decimal

import pytest

from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Endpoint, Tier
from meritorder.core.pricing import Price
from meritorder.ingress.world import World

NOW = 1000.0
ONE, TWO = (
    Backend(f"p/{name}", Tier.HOSTED, "app", name, frozenset(Endpoint), Price(Decimal(1), Decimal(1)))
    for name in ("one", "two")
)
DOWN = (Failure.UNREACHABLE, Failure.BUSY, Failure.CREDENTIALS, Failure.NOT_FOUND)
PERHAPS = tuple(failure for failure in Failure if failure not in DOWN)


def failed(failure: Failure, retry_after: float | None = None) -> AttemptFailed:
    return AttemptFailed(failure, "failed", retry_after)


def rest(world: World) -> float | None:
    until = world.snapshot().rests_until.get("a")
    return None if until is None else until - NOW


@pytest.mark.parametrize("failure", DOWN)
def test_a_backend_that_is_down_rests_at_once(failure: Failure) -> None:
    world = World()
    world.failed("a", failed(failure), NOW)
    assert rest(world) == 2.0


@pytest.mark.parametrize("failure", PERHAPS)
def test_one_that_fails_for_a_request_s_sake_perhaps_rests_after_the_third_in_a_row(failure: Failure) -> None:
    world = World()
    for expected in (None, None, 2.0):
        world.failed("a", failed(failure), NOW)
        assert rest(world) == expected


@pytest.mark.parametrize(("asked", "expected"), [(None, 2.0), (0.5, 0.5), (7.0, 7.0), (3600.0, 60.0)])
def test_it_rests_for_as_long_as_it_asks_within_limits(asked: float | None, expected: float) -> None:
    world = World()
    world.failed("a", failed(Failure.BUSY, asked), NOW)
    assert rest(world) == expected


def test_a_success_ends_the_rest_and_the_row_of_failures() -> None:
    world = World()
    for _ in range(2):
        world.failed("a", failed(Failure.SERVER_ERROR), NOW)
    world.succeeded("a")
    world.failed("a", failed(Failure.SERVER_ERROR), NOW)
    assert rest(world) is None
    world.failed("a", failed(Failure.UNREACHABLE), NOW)
    world.succeeded("a")
    assert rest(world) is None


def test_one_backend_s_failure_is_nothing_to_another() -> None:
    world = World()
    world.failed("b", failed(Failure.UNREACHABLE), NOW)
    assert rest(world) is None


def test_a_request_counts_as_in_flight_however_it_ends() -> None:
    world = World()

    def fails() -> None:
        with world.occupied(ONE), world.occupied(ONE):
            assert world.snapshot().in_flight["app"] == 2
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert world.snapshot().in_flight["app"] == 0
    assert world.in_flight()["p/one"] == 0


def test_requests_are_counted_by_application_for_decisions_and_by_backend_for_metrics() -> None:
    world = World()
    with world.occupied(ONE), world.occupied(TWO):
        assert world.snapshot().in_flight == {"app": 2}
        assert world.in_flight() == {"p/one": 1, "p/two": 1}


def test_an_outage_is_logged_once_with_its_reason_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    world, down = World(), failed(Failure.UNREACHABLE)
    down.detail = "its name does not resolve"
    with caplog.at_level("INFO", "meritorder.ingress.world"):
        for moment in range(3):
            world.failed("a", down, NOW + moment)
        world.succeeded("a")
        world.succeeded("a")
    assert caplog.messages == [
        "'a' failed: its name does not resolve; it is tried last until it answers again",
        "'a' answers again",
    ]
