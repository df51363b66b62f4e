"""Arms of a split: as large as their weights, and the same for whoever comes again."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meritorder.core.catalog import Arm, Endpoint, Route, Split, StickyBy
from meritorder.core.request import InferenceRequest
from meritorder.routing.split import arm_of

REQUEST = InferenceRequest("id", Endpoint.CHAT_COMPLETIONS, "route", False, False, 10, lambda _: b"")
BY_KEY = StickyBy.KEY
_weights = st.lists(st.integers(1, 100), min_size=2, max_size=4)


def route(*weights: int, by: StickyBy = BY_KEY, name: str = "route") -> Route:
    arms = tuple(Arm(f"arm-{number}", weight, frozenset()) for number, weight in enumerate(weights))
    return Route(name, (), split=Split(by, arms))


def arm(
    where: Route, key: str = "key", *, user: str | None = None, session: str | None = None, draw: float = 0.0
) -> str:
    chosen = arm_of(where, replace(REQUEST, user=user, session=session), key, draw)
    assert chosen is not None
    return chosen


def test_a_route_without_a_split_has_no_arms() -> None:
    assert arm_of(Route("route", ()), REQUEST, "key", 0.5) is None


@pytest.mark.parametrize("weights", [(1, 1), (99, 1), (5, 3, 2)])
@pytest.mark.parametrize("by", [StickyBy.KEY, StickyBy.REQUEST])
def test_arms_are_as_large_as_their_weights(weights: tuple[int, ...], by: StickyBy) -> None:
    where, many = route(*weights, by=by), 20_000
    counted = Counter(arm(where, f"key-{number}", draw=number / many) for number in range(many))
    for number, weight in enumerate(weights):
        assert counted[f"arm-{number}"] / many == pytest.approx(weight / sum(weights), abs=0.012)


def test_the_same_in_every_process() -> None:
    assert [arm(route(1, 1), f"key-{number}") for number in range(8)] == [
        "arm-1", "arm-0", "arm-0", "arm-0", "arm-0", "arm-1", "arm-1", "arm-1",
    ]  # fmt: skip


@given(st.text(), st.text(min_size=1), st.floats(0, 1, exclude_max=True))
def test_it_sticks_to_what_the_route_says(key: str, value: str, draw: float) -> None:
    by_user, by_session = route(1, 1, by=StickyBy.USER), route(1, 1, by=StickyBy.SESSION)
    assert arm(by_user, key, user=value, draw=draw) == arm(by_user, "other", user=value, session=key)
    assert arm(by_session, key, session=value, draw=draw) == arm(by_session, "other", session=value, user=key)
    assert arm(route(1, 1), key, user=value) == arm(route(1, 1), key, session=value, draw=draw)


@given(st.text())
def test_without_a_user_or_a_session_it_sticks_to_the_key(key: str) -> None:
    assert (
        arm(route(1, 1, by=StickyBy.USER), key) == arm(route(1, 1, by=StickyBy.SESSION), key) == arm(route(1, 1), key)
    )


def test_two_routes_split_the_same_keys_differently() -> None:
    same = sum(arm(route(1, 1), f"k{n}") == arm(route(1, 1, name="other"), f"k{n}") for n in range(2000))
    assert same / 2000 == pytest.approx(0.5, abs=0.05)


@given(_weights, st.integers(0, 3), st.integers(1, 100))
@settings(max_examples=50)
def test_more_weight_for_an_arm_moves_nobody_but_to_it(weights: list[int], which: int, more: int) -> None:
    which %= len(weights)
    heavier = [weight + more * (number == which) for number, weight in enumerate(weights)]
    for number in range(100):
        before, after = arm(route(*weights), f"k{number}"), arm(route(*heavier), f"k{number}")
        assert after in (before, f"arm-{which}")


@given(_weights, st.floats(0, 1, exclude_max=True), st.text())
def test_an_arm_is_always_found(weights: list[int], draw: float, key: str) -> None:
    for by in StickyBy:
        assert arm(route(*weights, by=by), key, draw=draw).startswith("arm-")
