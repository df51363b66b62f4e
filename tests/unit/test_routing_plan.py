"""Which backends are tried, in which order, and what is said of those that are not."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.core.catalog import (
    Arm,
    Backend,
    Candidate,
    Capabilities,
    Catalog,
    Endpoint,
    Modality,
    Objective,
    Route,
    Split,
    StickyBy,
    Tier,
)
from meritorder.core.limits import Limits
from meritorder.core.plan import Rejection, RoutePlan
from meritorder.core.pricing import FREE, Price, PriceSheet, PromptTier, Rates, ServiceTier
from meritorder.core.request import InferenceRequest, Overrides
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.routing.filters import is_full
from meritorder.routing.health import Circuit
from meritorder.routing.latency import Latency
from meritorder.routing.plan import plan
from meritorder.routing.quota import Quota
from meritorder.routing.snapshot import Snapshot

NOW, MOMENT = 1000.0, 1_790_000_000.0
CHAT, EMBEDDINGS = Endpoint.CHAT_COMPLETIONS, Endpoint.EMBEDDINGS


def hosted(name: str, rate: str | None = "1", **fields: Any) -> Backend:
    """A hosted backend; `rate` is in US dollars per million tokens of input, and output is four times as dear."""
    capabilities = fields.pop("capabilities", Capabilities(frozenset({CHAT})))
    price = None if rate is None else Price.flat(Decimal(rate), Decimal(rate) * 4)
    return Backend(name, Tier.HOSTED, fields.pop("application", f"app-{name}"), name, capabilities, price, **fields)


def self_run(name: str, concurrency: int | None = 4, **fields: Any) -> Backend:
    capabilities = fields.pop("capabilities", Capabilities(frozenset({CHAT})))
    return Backend(name, Tier.SELF_RUN, f"app-{name}", name, capabilities, FREE, concurrency, **fields)


def asked(**fields: Any) -> InferenceRequest:
    request = InferenceRequest("id", CHAT, "route", True, True, 500, lambda model: b"", text_bytes=400)
    return replace(request, **fields)


def planned(
    *backends: Backend,
    request: InferenceRequest | None = None,
    statuses: Mapping[str, ApplicationStatus] | None = None,
    in_flight: Mapping[str, int] | None = None,
    qualities: Mapping[str, float] | None = None,
    headroom: Decimal | None = None,
    budgeted: bool = False,
    objective: Objective | None = None,
    split: Split | None = None,
    **state: Any,
) -> RoutePlan:
    if statuses is None:
        statuses = {one.application: ready(one.application) for one in backends}
    loads = {f"app-{name}": count for name, count in (in_flight or {}).items()}
    snapshot = Snapshot(Catalog({one.name: one for one in backends}, {}, {}), statuses, loads, **state)
    candidates = tuple(Candidate(one.name, (qualities or {}).get(one.name, 1.0)) for one in backends)
    route = Route("route", candidates, objective or Objective(), split)
    return plan(
        snapshot, route, request or asked(), key_id="key_1", headroom=headroom, budgeted=budgeted, now=NOW,
        moment=MOMENT, draw=0.5,
    )  # fmt: skip


def ready(application: str) -> ApplicationStatus:
    return ApplicationStatus(application, Phase.READY, f"http://{application}")


def order(made: RoutePlan) -> str:
    return " ".join(attempt.backend.name for attempt in made.attempts)


def rejections(made: RoutePlan) -> dict[str, tuple[Rejection, str]]:
    return {one.backend.name: (one.rejection, one.reason) for one in made.rejected}


def opened(*, since: float = NOW - 0.5) -> Circuit:
    circuit = Circuit()
    circuit.failure(since, certain=True)
    return circuit


def seen_at(seconds: float) -> Latency:
    latency = Latency()
    latency.observe_first_token(seconds, prompt_tokens=100, in_flight=0, concurrency=None, now=NOW - 1)
    return latency


CHEAP, MIDDLING, DEAR = hosted("cheap", "1"), hosted("middling", "2"), hosted("dear", "3")
OWN = self_run("own")


class TestOrder:
    def test_the_cheapest_is_tried_first_whatever_the_routes_order(self) -> None:
        assert order(planned(DEAR, CHEAP, OWN, MIDDLING)) == "own cheap middling dear"

    def test_where_utility_is_equal_the_routes_order_holds(self) -> None:
        assert order(planned(hosted("b"), hosted("a"), hosted("c"))) == "b a c"

    def test_a_full_hosted_backend_comes_after_all_with_room(self) -> None:
        cheap = replace(CHEAP, concurrency=2)
        made = {load: order(planned(cheap, DEAR, in_flight={"cheap": load})) for load in (1, 2)}
        assert made == {1: "cheap dear", 2: "dear cheap"}

    def test_so_does_one_whose_account_is_full(self) -> None:
        cheap = replace(CHEAP, limits=Limits(concurrency=2))
        assert order(planned(cheap, DEAR, in_flight={"cheap": 2})) == "dear cheap"

    def test_backends_of_one_account_fill_it_together(self) -> None:
        one, two = (hosted(f"p/{name}", application="app-p", concurrency=2) for name in ("one", "two"))
        assert order(planned(one, DEAR, two, in_flight={"p": 2})) == "dear p/one p/two"

    def test_a_full_self_run_backend_comes_after_a_hosted_one_with_room(self) -> None:
        made = {load: order(planned(OWN, CHEAP, DEAR, in_flight={"own": load})) for load in (0, 3, 4, 9)}
        assert made == {0: "own cheap dear", 3: "own cheap dear", 4: "cheap own dear", 9: "cheap own dear"}

    def test_and_queues_where_all_hosted_ones_are_full(self) -> None:
        cheap = replace(CHEAP, concurrency=2)
        assert order(planned(OWN, cheap, in_flight={"own": 50, "cheap": 2})) == "own cheap"

    def test_of_self_run_backends_the_one_with_less_load_is_first(self) -> None:
        assert order(planned(OWN, self_run("other"), in_flight={"own": 3, "other": 1})) == "other own"
        assert order(planned(OWN, self_run("other"), in_flight={"own": 9, "other": 5})) == "other own"

    def test_a_backend_of_unknown_concurrency_is_never_full(self) -> None:
        assert order(planned(CHEAP, DEAR, in_flight={"cheap": 10_000})) == "cheap dear"
        assert order(planned(self_run("own", None), DEAR, in_flight={"own": 10_000})) == "own dear"

    def test_quality_is_worth_what_the_route_says(self) -> None:
        qualities = {"own": 0.5, "dear": 1.0}
        made = [
            order(planned(OWN, DEAR, qualities=qualities, objective=Objective(quality_worth=worth)))
            for worth in (0.0, 1.0)
        ]
        assert made == ["own dear", "dear own"]

    def test_a_full_self_run_backend_spills_to_a_worse_answer_too(self) -> None:
        made = planned(OWN, DEAR, qualities={"dear": 0.5}, objective=Objective(quality_worth=1.0), in_flight={"own": 4})
        assert order(made) == "dear own"

    @pytest.mark.parametrize(("seconds", "expected"), [(0.4, "own cheap"), (30.0, "cheap own")])
    def test_being_late_costs_in_proportion(self, seconds: float, expected: str) -> None:
        made = planned(OWN, CHEAP, objective=Objective(ttft_slo=0.5), latencies={"own": seen_at(seconds)})
        assert order(made) == expected
        own = next(attempt for attempt in made.attempts if attempt.backend is OWN)
        assert own.score.lateness == pytest.approx(0.01 * max(0.0, seconds - 0.5) / 0.5)

    def test_an_unpriced_backend_is_taken_for_a_dear_one(self) -> None:
        assert order(planned(hosted("unknown", None), DEAR)) == "dear unknown"

    def test_what_is_cached_makes_a_dearer_backend_cheaper(self) -> None:
        price = Price.flat(Decimal(2), Decimal(4), Decimal("0.2"))
        cached = replace(hosted("cached"), price=price)
        request = asked(text_bytes=40_000, prefix=tuple(range(39)))
        snapshot = Snapshot(
            Catalog({"cheap": CHEAP, "cached": cached}, {}, {}),
            {name: ready(name) for name in ("app-cheap", "app-cached")},
        )
        snapshot.prefixes.remember("cached", request.prefix, NOW - 60)
        arguments: dict[str, Any] = dict(key_id="", headroom=None, budgeted=False, now=NOW, moment=MOMENT, draw=0.0)
        route = Route("route", (Candidate("cheap"), Candidate("cached")))
        made = plan(snapshot, route, request, **arguments)
        assert order(made) == "cached cheap"
        assert made.attempts[0].cached_tokens == 39 * 256
        assert order(plan(snapshot, replace(route, affinity=False), request, **arguments)) == "cheap cached"


class TestWhatIsSaid:
    def test_an_attempt_says_where_and_at_what_price(self) -> None:
        [attempt] = planned(CHEAP, request=asked(max_output_tokens=100)).attempts
        assert attempt.base_url == "http://app-cheap"
        # 400 bytes are at most 200 tokens and 64 of a template; 100 more are written at four times the price.
        assert attempt.cost_bound == Decimal("0.000664")
        assert attempt.score.cost == pytest.approx((108 + 100 * 4) / 1e6)
        assert (attempt.input_tokens, attempt.output_tokens) == (108, 100)

    def test_a_self_run_backend_costs_nothing_more(self) -> None:
        [attempt] = planned(OWN).attempts
        assert (attempt.cost_bound, attempt.score.cost, attempt.score.congestion) == (Decimal(0), 0.0, 0.0)

    def test_and_its_work_saves_what_the_best_hosted_one_with_room_costs(self) -> None:
        own, cheap = planned(OWN, CHEAP, request=asked(max_output_tokens=100)).attempts
        assert own.saving == pytest.approx(cheap.score.cost / (108 + 4 * 100))
        assert cheap.saving is None
        assert planned(OWN).attempts[0].saving is None

    def test_an_unpriced_backend_has_no_bound(self) -> None:
        assert planned(hosted("unknown", None)).attempts[0].cost_bound is None


class TestLeftOut:
    @pytest.mark.parametrize(
        ("capabilities", "request_fields", "rejection", "reason"),
        [
            ({}, {"endpoint": EMBEDDINGS}, Rejection.ENDPOINT, "does not serve /v1/embeddings"),
            (
                {"modalities": frozenset({Modality.FILE})},
                {"modalities": frozenset(Modality)},
                Rejection.MODALITY,
                "does not take audio or images",
            ),
            ({"tools": False}, {"tools": True}, Rejection.TOOLS, "does not call tools"),
            (
                {"structured_output": False},
                {"structured_output": True},
                Rejection.STRUCTURED_OUTPUT,
                "does not give structured output",
            ),
            (
                {"context_window": 1000},
                {"text_bytes": 10_000},
                Rejection.CONTEXT_WINDOW,
                "has a context window of 1000 tokens, and the request may need 5065",
            ),
            (
                {"context_window": 1000},
                {"max_output_tokens": 2000, "choices": 2},
                Rejection.CONTEXT_WINDOW,
                "has a context window of 1000 tokens, and the request may need 1264",
            ),
        ],
    )
    def test_what_cannot_do_it(
        self, capabilities: dict[str, Any], request_fields: dict[str, Any], rejection: Rejection, reason: str
    ) -> None:
        everything = Capabilities(frozenset(Endpoint), modalities=frozenset(Modality))
        able = hosted("able", capabilities=everything)
        unable = hosted("unable", capabilities=Capabilities(**{"endpoints": frozenset({CHAT}), **capabilities}))
        made = planned(unable, able, request=asked(**request_fields))
        assert (order(made), rejections(made)) == ("able", {"unable": (rejection, reason)})

    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (None, "waits to be deployed"),
            (ApplicationStatus("app-cheap", Phase.PENDING), "waits to be deployed"),
            (ApplicationStatus("app-cheap", Phase.STARTING, "http://a"), "is starting"),
            (ApplicationStatus("app-cheap", Phase.READY, None), "is starting"),
            (ApplicationStatus("app-cheap", Phase.FAILED, None, "connect to 10.0.0.7 failed"), "has failed"),
        ],
    )
    def test_what_is_not_ready(self, status: ApplicationStatus | None, reason: str) -> None:
        statuses = {"app-dear": ready("app-dear")} | ({"app-cheap": status} if status else {})
        made = planned(CHEAP, DEAR, statuses=statuses)
        assert (order(made), rejections(made)) == ("dear", {"cheap": (Rejection.NOT_READY, reason)})

    def test_what_has_failed_and_rests(self) -> None:
        made = planned(CHEAP, DEAR, circuits={"cheap": opened()})
        assert order(made) == "dear"
        [rejected] = made.rejected
        assert (rejected.rejection, rejected.reason) == (Rejection.CIRCUIT_OPEN, "has failed and rests for 1.5 s more")
        assert rejected.retry_after == pytest.approx(1.5)

    def test_what_has_rested_is_tried_again_and_not_while_another_request_does(self) -> None:
        circuit = opened(since=NOW - 10)
        assert order(planned(CHEAP, DEAR, circuits={"cheap": circuit})) == "cheap dear"
        assert circuit.try_probe(NOW)
        made = planned(CHEAP, DEAR, circuits={"cheap": circuit})
        assert order(made) == "dear"
        assert rejections(made)["cheap"][1] == "has failed, and another request tries whether it is back"

    def test_what_asked_to_be_left_alone(self) -> None:
        quota = Quota()
        quota.refused(7.0, NOW - 2)
        made = planned(CHEAP, quotas={"cheap": quota})
        [rejected] = made.rejected
        assert (rejected.rejection, rejected.retry_after) == (Rejection.QUOTA, 5.0)
        assert (order(made), made.last_resort) == ("", False)

    @pytest.mark.parametrize(
        ("fields", "rejection", "reason"),
        [
            ({"budgeted": True}, Rejection.UNPRICED, "has no price, and this key has a budget"),
            (
                {"request": asked(overrides=Overrides(max_cost=Decimal(1)))},
                Rejection.UNPRICED,
                "has no price, and the request has a maximal cost",
            ),
        ],
    )
    def test_what_has_no_price_where_money_counts(
        self, fields: dict[str, Any], rejection: Rejection, reason: str
    ) -> None:
        made = planned(OWN, hosted("unknown", None), **fields)
        assert (order(made), rejections(made)) == ("own", {"unknown": (rejection, reason)})

    def test_what_has_no_price_for_the_service_tier_or_not_yet(self) -> None:
        made = planned(CHEAP, OWN, request=asked(service_tier=ServiceTier.FLEX), budgeted=True)
        assert rejections(made)["cheap"][1] == "has no price for the service tier 'flex', and this key has a budget"

    def test_what_may_cost_more_than_the_budget_has_left(self) -> None:
        request = asked(max_output_tokens=100)
        made = planned(CHEAP, OWN, request=request, headroom=Decimal("0.000663"), budgeted=True)
        reason = "may cost 0.000664 USD, and the budget has room for 0.000663 USD"
        assert (order(made), rejections(made)) == ("own", {"cheap": (Rejection.BUDGET, reason)})
        assert order(planned(CHEAP, OWN, request=request, headroom=Decimal("0.000664"), budgeted=True)) == "own cheap"

    def test_what_is_not_good_enough_for_the_route_or_the_request(self) -> None:
        qualities = {"own": 0.5, "cheap": 0.7, "dear": 0.9}
        request = asked(overrides=Overrides(min_quality=0.8))
        made = planned(OWN, CHEAP, DEAR, qualities=qualities, objective=Objective(quality_floor=0.6), request=request)
        assert order(made) == "dear"
        assert rejections(made) == {
            "own": (Rejection.QUALITY, "has quality 0.5, below the request's 0.8"),
            "cheap": (Rejection.QUALITY, "has quality 0.7, below the request's 0.8"),
        }
        made = planned(OWN, CHEAP, qualities=qualities, objective=Objective(quality_floor=0.6))
        assert rejections(made) == {"own": (Rejection.QUALITY, "has quality 0.5, below the route's 0.6")}

    def test_what_may_cost_more_than_the_request_allows(self) -> None:
        made = planned(
            CHEAP, OWN, request=asked(max_output_tokens=100, overrides=Overrides(max_cost=Decimal("0.0005")))
        )
        assert order(made) == "own"
        assert rejections(made)["cheap"] == (
            Rejection.MAX_COST,
            "may cost 0.000664 USD, which is over the request's 0.0005 USD",
        )

    def test_what_is_expected_to_be_slower_than_the_request_allows(self) -> None:
        request = asked(overrides=Overrides(max_ttft=0.5))
        made = planned(OWN, CHEAP, request=request, latencies={"own": seen_at(2.0)})
        reason = "is expected to begin after 2.00 s, and the request allows 0.5 s"
        assert (order(made), rejections(made)) == ("cheap", {"own": (Rejection.MAX_TTFT, reason)})

    def test_what_the_request_excludes(self) -> None:
        made = planned(OWN, CHEAP, request=asked(overrides=Overrides(exclude=frozenset({"own", "nobody"}))))
        assert (order(made), rejections(made)) == ("cheap", {"own": (Rejection.EXCLUDED, "is excluded by the request")})

    def test_all_but_what_the_request_asks_for(self) -> None:
        made = planned(OWN, CHEAP, request=asked(overrides=Overrides(backend="cheap")))
        reason = "is not tried, because the request asks for 'cheap' alone"
        assert (order(made), rejections(made)) == ("cheap", {"own": (Rejection.EXCLUDED, reason)})

    def test_everything_where_the_request_asks_for_no_candidate(self) -> None:
        made = planned(OWN, CHEAP, request=asked(overrides=Overrides(backend="nobody")))
        assert order(made) == ""
        reason = "is not tried, because the request asks for 'nobody' alone, which is no candidate of 'route'"
        assert set(rejections(made).values()) == {(Rejection.EXCLUDED, reason)}


class TestSplit:
    SPLIT = Split(StickyBy.REQUEST, (Arm("a", 1, frozenset({"cheap"})), Arm("b", 1, frozenset({"dear"}))))

    def test_a_request_goes_to_its_arm_and_to_what_is_in_none(self) -> None:
        made = planned(OWN, CHEAP, DEAR, split=self.SPLIT)
        assert (made.arm, order(made)) == ("b", "own dear")
        assert rejections(made) == {"cheap": (Rejection.OTHER_ARM, "is not in the request's arm 'b'")}

    def test_a_backend_in_both_arms_is_open_to_both(self) -> None:
        split = Split(
            StickyBy.REQUEST,
            (Arm("a", 1, frozenset({"cheap"})), Arm("b", 1, frozenset({"cheap", "dear"}))),
        )
        assert order(planned(CHEAP, DEAR, split=split)) == "cheap dear"

    def test_who_names_a_backend_gets_it_and_counts_for_no_arm(self) -> None:
        made = planned(OWN, CHEAP, DEAR, split=self.SPLIT, request=asked(overrides=Overrides(backend="cheap")))
        assert (made.arm, order(made)) == (None, "cheap")


class TestLastResort:
    def test_where_all_circuits_are_open_all_are_tried_the_longest_rested_first(self) -> None:
        circuits = {"own": opened(since=NOW - 0.1), "cheap": opened(since=NOW - 0.2), "dear": opened(since=NOW - 0.3)}
        made = planned(OWN, CHEAP, DEAR, circuits=circuits)
        assert (order(made), made.rejected, made.last_resort) == ("dear cheap own", (), True)

    def test_not_where_something_sound_is_left(self) -> None:
        made = planned(OWN, CHEAP, DEAR, circuits={"own": opened(), "cheap": opened()})
        assert (order(made), len(made.rejected), made.last_resort) == ("dear", 2, False)

    def test_nor_where_another_reason_speaks_against_it(self) -> None:
        made = planned(CHEAP, circuits={"cheap": opened()}, headroom=Decimal(0), budgeted=True)
        assert (order(made), made.last_resort) == ("", False)
        assert rejections(made)["cheap"][0] is Rejection.BUDGET

    def test_a_prompt_that_hardly_fits_is_tried_where_nothing_else_is_left(self) -> None:
        small = self_run("small", capabilities=Capabilities(frozenset({CHAT}), context_window=4096))
        request = asked(text_bytes=12_000)  # 3,000 tokens of English, and 6,000 on the safe side
        made = planned(small, DEAR, request=request)
        assert (order(made), rejections(made)["small"][0]) == ("dear", Rejection.CONTEXT_WINDOW)
        made = planned(small, DEAR, request=request, statuses={"app-small": ready("app-small")})
        assert (order(made), made.last_resort) == ("small", True)

    def test_and_after_what_has_failed_but_has_room(self) -> None:
        small = self_run("small", capabilities=Capabilities(frozenset({CHAT}), context_window=4096))
        made = planned(small, DEAR, request=asked(text_bytes=12_000), circuits={"dear": opened()})
        assert (order(made), made.last_resort) == ("dear small", True)

    def test_one_that_surely_does_not_fit_is_not_tried(self) -> None:
        small = self_run("small", capabilities=Capabilities(frozenset({CHAT}), context_window=4096))
        made = planned(small, request=asked(text_bytes=100_000))
        assert (order(made), rejections(made)["small"][0]) == ("", Rejection.CONTEXT_WINDOW)


# Any catalogue, any state, any request.

_names = ("a", "b", "c", "d")
_maybe_small = st.none() | st.integers(1, 5000)
_capabilities = st.builds(
    Capabilities,
    st.sampled_from([frozenset({CHAT}), frozenset(Endpoint)]),
    _maybe_small,
    _maybe_small,
    st.frozensets(st.sampled_from(Modality)),
    st.booleans(),
    st.booleans(),
)
_rates = st.decimals(0, 1000, places=4)
_all_rates = st.builds(Rates, _rates, _rates, *[st.none() | _rates] * 7)
_prices = st.none() | st.builds(
    lambda low, high, above: Price(
        (PriceSheet({ServiceTier.DEFAULT: (PromptTier(-1, low), PromptTier(above, high))}),)
    ),
    _all_rates,
    _all_rates,
    st.integers(0, 3000),
)
_limits = st.builds(Limits, _maybe_small, _maybe_small, _maybe_small)


@st.composite
def _backends(draw: st.DrawFn) -> list[Backend]:
    return [
        Backend(
            name,
            tier := draw(st.sampled_from(Tier)),
            draw(st.sampled_from([f"app-{name}", "app-shared"])),
            name,
            draw(_capabilities),
            draw(_prices) if tier is Tier.HOSTED else FREE,
            draw(st.none() | st.integers(1, 4)),
            draw(_limits),
        )
        for name in _names[: draw(st.integers(1, 4))]
    ]


_overrides = st.builds(
    Overrides,
    st.none() | st.decimals(0, 1, places=5),
    st.none() | st.floats(0, 5),
    st.none() | st.floats(0, 1),
    st.none() | st.sampled_from((*_names, "nobody")),
    st.frozensets(st.sampled_from(_names), max_size=2),
)
_requests = st.builds(
    asked,
    endpoint=st.sampled_from(Endpoint),
    body_size=st.integers(0, 10**7),
    text_bytes=st.integers(0, 10**6),
    max_output_tokens=st.none() | st.integers(0, 10**5),
    choices=st.integers(1, 3),
    modalities=st.just(frozenset()) | st.frozensets(st.sampled_from(Modality)),
    tools=st.booleans(),
    structured_output=st.booleans(),
    service_tier=st.sampled_from([*[ServiceTier.DEFAULT] * 3, ServiceTier.FLEX]),
    prefix=st.sampled_from([(), (1, 2), (1, 2, 3, 4, 5, 6)]),
    overrides=st.just(Overrides()) | _overrides,
)


@st.composite
def _plans(draw: st.DrawFn) -> tuple[list[Backend], dict[str, int], RoutePlan, RoutePlan]:
    backends = draw(_backends())
    circuits = {one.name: opened(since=NOW - draw(st.floats(0, 4))) for one in backends if draw(st.booleans())}
    quotas, latencies = {}, {}
    for one in backends:
        quotas[one.name] = Quota()
        quotas[one.name].sent(draw(st.integers(0, 5000)), NOW - draw(st.floats(0, 100)))
        latencies[one.name] = seen_at(draw(st.floats(0, 10)))
    split = Split(
        draw(st.sampled_from(StickyBy)),
        (Arm("x", 1, frozenset({"a", "b"})), Arm("y", 3, frozenset({"c"}))),
    )
    arguments: dict[str, Any] = {
        "request": draw(_requests),
        "in_flight": {one.application.removeprefix("app-"): draw(st.integers(0, 6)) for one in backends},
        "qualities": {one.name: draw(st.floats(0, 1)) for one in backends},
        "objective": Objective(draw(st.floats(0, 0.5)), draw(st.floats(0, 1)), draw(st.none() | st.floats(0.1, 5))),
        "split": draw(st.none() | st.just(split)),
        "headroom": draw(st.none() | st.decimals(0, 1, places=4)),
        "budgeted": draw(st.booleans()),
        "circuits": circuits,
        "quotas": quotas,
        "latencies": latencies,
    }
    return backends, arguments["in_flight"], planned(*backends, **arguments), planned(*backends, **arguments)


@given(_plans())
def test_every_candidate_is_tried_or_explained_and_the_order_is_that_of_utility(
    case: tuple[list[Backend], dict[str, int], RoutePlan, RoutePlan],
) -> None:
    backends, in_flight, made, again = case

    def full(backend: Backend) -> bool:
        return is_full(backend, in_flight[backend.application.removeprefix("app-")])

    names = [one.backend.name for one in made.attempts] + [one.backend.name for one in made.rejected]
    assert sorted(names) == [one.name for one in backends]
    assert all(one.reason for one in made.rejected)
    assert made == again
    assert all(one.cost_bound is None or float(one.cost_bound) >= 0 for one in made.attempts)
    if not made.last_resort:
        ranks = [(one.backend.tier is Tier.HOSTED and full(one.backend), -one.score.utility) for one in made.attempts]
        assert ranks == sorted(ranks)
