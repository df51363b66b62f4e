"""What the ingress remembers of its backends: loads, circuits, quotas, latencies, and the hedges that are left."""

from collections.abc import Mapping
from decimal import Decimal

import pytest

from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Capabilities, Catalog, Endpoint, Hedge, Route, Tier
from meritorder.core.limits import Limits
from meritorder.core.plan import Attempt, Score
from meritorder.core.pricing import FREE, Price
from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage
from meritorder.ingress.world import Place, World

NOW = 1000.0
PRICE = Price.flat(Decimal(1), Decimal(1))
CHAT = Capabilities(frozenset({Endpoint.CHAT_COMPLETIONS}))
# Two models of one account, a third elsewhere, and one that is self-run.
ONE, TWO = (Backend(f"p/{name}", Tier.HOSTED, "provider-p", name, CHAT, PRICE) for name in ("one", "two"))
OTHER = Backend("q/other", Tier.HOSTED, "provider-q", "other", CHAT, PRICE)
OWN = Backend("own", Tier.SELF_RUN, "model-own", "own", CHAT, FREE, concurrency=2)
ALL = (ONE, TWO, OTHER, OWN)

CERTAIN = (Failure.UNREACHABLE, Failure.BUSY, Failure.CREDENTIALS)
UNCERTAIN = tuple(failure for failure in Failure if failure not in CERTAIN)


@pytest.fixture
def world() -> World:
    world = World()
    world.catalog = catalog(*ALL)
    return world


def catalog(*backends: Backend) -> Catalog:
    return Catalog({backend.name: backend for backend in backends}, {}, {})


def attempt(backend: Backend = ONE, saving: float | None = None) -> Attempt:
    score = Score(0.0, 0.0, 0.0, 0.0)
    return Attempt(backend, "http://x", score, input_tokens=100, output_tokens=50, saving=saving)


def failed(kind: Failure, retry_after: float | None = None, limits: Mapping[str, str] | None = None) -> AttemptFailed:
    error = AttemptFailed(kind, "failed", retry_after)
    error.limits = limits or {}
    return error


def fail(world: World, failure: Failure, retry_after: float | None = None, at: float = NOW) -> None:
    """One request that fails at once."""
    place = world.occupy(attempt(), at)
    world.failed(place, failed(failure, retry_after), at)
    world.vacate(place, at)


def answer(world: World, place: Place, at: float, first_token: float | None = None) -> None:
    """The whole way of an answer, from its beginning to its end."""
    world.opened(place, {}, first_token is not None, at if first_token is None else first_token)
    world.completed(place, request(), Usage(100, 50), first_token, at)
    world.vacate(place, at)


def request(text_bytes: int = 400, prefix: tuple[int, ...] = ()) -> InferenceRequest:
    return InferenceRequest(
        "id", Endpoint.CHAT_COMPLETIONS, "m", True, False, 500, lambda name: b"", text_bytes=text_bytes, prefix=prefix
    )


def state(world: World, at: float = NOW, backend: Backend = ONE) -> str:
    return world.circuits(at)[backend.name]


def blocked(world: World, at: float = NOW, backend: Backend = ONE) -> float | None:
    """For how many seconds the quota of `backend` lets nothing through."""
    refusal = world.snapshot().quotas[backend.name].blocked(backend.limits, 150, at)
    return None if refusal is None else refusal[1]


class TestLoads:
    def test_a_request_counts_from_before_its_first_byte_until_it_is_vacated(self, world: World) -> None:
        places = [world.occupy(attempt(), NOW) for _ in range(2)]
        assert world.in_flight()["p/one"] == 2
        for left, place in enumerate(reversed(places)):
            world.vacate(place, NOW)
            assert world.in_flight()["p/one"] == 1 - left

    def test_decisions_see_applications_and_metrics_see_backends(self, world: World) -> None:
        for backend in (ONE, TWO, OTHER):
            world.occupy(attempt(backend), NOW)
        assert world.snapshot().in_flight == {"provider-p": 2, "provider-q": 1}
        assert world.in_flight() == {"p/one": 1, "p/two": 1, "q/other": 1}

    def test_a_place_knows_how_many_its_application_had_already(self, world: World) -> None:
        places = [world.occupy(attempt(backend), NOW) for backend in (ONE, TWO, OTHER)]
        assert [place.others for place in places] == [0, 1, 0]
        assert [place.backend for place in places] == [ONE, TWO, OTHER]

    def test_a_snapshot_sees_what_comes_after_it(self, world: World) -> None:
        snapshot = world.snapshot()
        world.occupy(attempt(), NOW)
        assert snapshot.in_flight["provider-p"] == 1

    def test_each_change_is_counted_so_that_a_plan_knows_that_it_is_old(self, world: World) -> None:
        before = world.changes
        world.vacate(world.occupy(attempt(), NOW), NOW)
        assert world.changes == before + 2

    def test_capacity_of_one_s_own_has_a_price_that_rises_while_it_is_full(self, world: World) -> None:
        assert world.shadow_prices(NOW) == {"model-own": 0.0}
        for _ in range(2):
            world.occupy(attempt(OWN, saving=0.001), NOW)
        assert 0.0 < world.shadow_prices(NOW + 1)["model-own"] < world.shadow_prices(NOW + 3)["model-own"]


class TestCircuits:
    @pytest.mark.parametrize("failure", CERTAIN)
    def test_a_failure_that_the_next_request_would_meet_opens_it(self, world: World, failure: Failure) -> None:
        fail(world, failure)
        assert state(world) == "open"

    @pytest.mark.parametrize("failure", UNCERTAIN)
    def test_one_that_the_request_may_be_at_fault_for_opens_it_at_the_third_in_a_row(
        self, world: World, failure: Failure
    ) -> None:
        for expected in ("closed", "closed", "open"):
            fail(world, failure)
            assert state(world) == expected

    def test_an_answer_ends_the_row(self, world: World) -> None:
        for _ in range(4):
            fail(world, Failure.SERVER_ERROR)
            fail(world, Failure.SERVER_ERROR)
            answer(world, world.occupy(attempt(), NOW), NOW)
        assert state(world) == "closed"

    def test_so_does_a_refusal_of_the_request_itself(self, world: World) -> None:
        for _ in range(4):
            fail(world, Failure.SERVER_ERROR)
            fail(world, Failure.SERVER_ERROR)
            place = world.occupy(attempt(), NOW)
            world.opened(place, {}, False, NOW)
            world.rejected(place, NOW)
        assert state(world) == "closed"

    def test_one_backend_s_failure_is_nothing_to_another_of_its_account(self, world: World) -> None:
        fail(world, Failure.UNREACHABLE)
        assert (state(world, backend=ONE), state(world, backend=TWO)) == ("open", "closed")

    def test_it_rests_and_then_lets_one_request_through(self, world: World) -> None:
        fail(world, Failure.UNREACHABLE)
        assert state(world, NOW + 1.9) == "open"
        later = NOW + 2.1
        assert state(world, later) == "half-open"
        assert world.may_try("p/one", later)
        assert not world.may_try("p/one", later), "the first is the probe"

    def test_a_probe_whose_answer_begins_closes_it_and_need_not_end_first(self, world: World) -> None:
        fail(world, Failure.UNREACHABLE)
        later = NOW + 2.1
        assert world.may_try("p/one", later)
        world.opened(world.occupy(attempt(), later), {}, True, later + 0.1)
        assert state(world, later + 0.1) == "closed"

    def test_a_probe_that_fails_opens_it_for_longer(self, world: World) -> None:
        fail(world, Failure.UNREACHABLE)
        assert world.may_try("p/one", NOW + 2.1)
        fail(world, Failure.UNREACHABLE, at=NOW + 2.1)
        assert [state(world, NOW + 2.1 + rested) for rested in (2.1, 3.9, 4.1)] == ["open", "open", "half-open"]

    def test_a_probe_that_is_given_up_leaves_its_place_to_the_next(self, world: World) -> None:
        fail(world, Failure.UNREACHABLE)
        later = NOW + 2.1
        assert world.may_try("p/one", later)
        place = world.occupy(attempt(), later)
        world.abandoned(place)
        world.vacate(place, later)
        assert world.may_try("p/one", later)

    def test_a_probe_that_meets_a_rate_limit_leaves_its_place_too(self, world: World) -> None:
        fail(world, Failure.UNREACHABLE)
        later = NOW + 2.1
        assert world.may_try("p/one", later)
        fail(world, Failure.BUSY, retry_after=1.0, at=later)
        assert blocked(world, later + 1) is None
        assert world.may_try("p/one", later + 1), "and it is not the probe for ever"

    def test_a_hedge_is_no_probe(self, world: World) -> None:
        assert world.is_sound("p/one")
        fail(world, Failure.UNREACHABLE)
        assert not world.is_sound("p/one")
        assert not world.is_sound("p/one"), "and to ask takes nothing"
        assert world.may_try("p/one", NOW + 2.1)

    def test_an_answer_to_what_was_sent_before_it_opened_does_not_close_it(self, world: World) -> None:
        early = world.occupy(attempt(), NOW - 1)
        fail(world, Failure.UNREACHABLE)
        answer(world, early, NOW + 0.5)
        assert state(world, NOW + 0.5) == "open"

    def test_it_rests_for_as_long_as_the_backend_asks(self, world: World) -> None:
        fail(world, Failure.UNREACHABLE, retry_after=30.0)
        assert [state(world, NOW + 29), state(world, NOW + 31)] == ["open", "half-open"]

    def test_it_outlives_a_change_of_the_manifests(self, world: World) -> None:
        fail(world, Failure.UNREACHABLE)
        world.catalog = catalog(*ALL)
        assert state(world) == "open"

    def test_a_backend_that_is_gone_from_the_manifests_may_still_end_its_requests(self, world: World) -> None:
        place = world.occupy(attempt(), NOW)
        world.catalog = catalog(OTHER)
        answer(world, place, NOW + 1)
        assert world.circuits(NOW) == {"q/other": "closed"}

    def test_an_outage_is_logged_once_with_its_reason_and_its_end(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        down = failed(Failure.UNREACHABLE)
        down.detail = "its name does not resolve"
        with caplog.at_level("INFO", "meritorder.ingress.world"):
            for moment in range(3):
                world.failed(world.occupy(attempt(), NOW + moment), down, NOW + moment)
            for moment in (10, 11):
                answer(world, world.occupy(attempt(), NOW + moment), NOW + moment)
        assert caplog.messages == [
            "'p/one' failed: its name does not resolve; it gets no requests but a probe now and then until it answers "
            "again",
            "'p/one' answers again",
        ]


class TestQuotas:
    def test_a_busy_backend_that_names_a_time_is_well_and_left_alone_until_then(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        fail(world, Failure.BUSY, retry_after=7.0)
        assert state(world) == "closed"
        assert [blocked(world), blocked(world, NOW + 6), blocked(world, NOW + 7)] == [7.0, 1.0, None]
        assert caplog.messages == []

    def test_an_answer_to_an_earlier_request_does_not_shorten_it(self, world: World) -> None:
        early = world.occupy(attempt(), NOW)
        fail(world, Failure.BUSY, retry_after=7.0)
        answer(world, early, NOW + 1)
        assert blocked(world, NOW + 1) == 6.0

    def test_the_time_is_for_the_model_that_named_it(self, world: World) -> None:
        fail(world, Failure.BUSY, retry_after=7.0)
        assert blocked(world, backend=TWO) is None

    @pytest.mark.parametrize("way", ["answer", "refusal"])
    def test_a_provider_s_own_headers_are_read(self, world: World, way: str) -> None:
        headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12s"}
        place = world.occupy(attempt(), NOW)
        if way == "answer":
            world.opened(place, headers, True, NOW)
        else:
            world.failed(place, failed(Failure.SERVER_ERROR, limits=headers), NOW)
        assert blocked(world) == 12.0
        assert blocked(world, NOW + 12) is None

    def test_the_models_of_an_account_share_its_minute(self, world: World) -> None:
        limits = Limits(requests_per_minute=2)
        for backend in (ONE, TWO):
            world.occupy(attempt(backend), NOW)
        for backend, left in ((ONE, 0), (TWO, 0), (OTHER, 2)):
            assert (world.snapshot().quotas[backend.name].blocked(limits, 150, NOW) is None) == bool(left)

    def test_tokens_beyond_those_that_were_expected_count_when_they_are_known(self, world: World) -> None:
        place = world.occupy(attempt(), NOW)
        minute = world.snapshot().quotas["p/one"].minute
        assert minute.tokens == 150
        world.completed(place, request(), Usage(100, 250), None, NOW)
        assert minute.tokens == 350

    def test_what_is_self_run_has_no_account(self, world: World) -> None:
        place = world.occupy(attempt(OWN), NOW)
        world.completed(place, request(), Usage(100, 250), None, NOW)
        assert world.snapshot().quotas["own"].minute.requests == 0


class TestWhatAnswersTeach:
    def test_the_time_to_first_token_of_a_stream(self, world: World) -> None:
        answer(world, world.occupy(attempt(), NOW), NOW + 3, first_token=NOW + 0.5)
        latency = world.snapshot().latencies["p/one"]
        assert latency.predict(100, 0, None, NOW + 3) == pytest.approx(0.5)

    def test_not_that_of_an_answer_that_comes_whole(self, world: World) -> None:
        answer(world, world.occupy(attempt(), NOW), NOW + 3)
        assert world.snapshot().latencies["p/one"].predict(100, 0, None, NOW + 3) is None

    def test_how_long_answers_are(self, world: World) -> None:
        for _ in range(200):
            answer(world, world.occupy(attempt(), NOW), NOW)
        assert world.snapshot().tokenizers["p/one"].expected_output(request()) == pytest.approx(50)

    def test_which_beginnings_of_prompts_are_in_its_cache(self, world: World) -> None:
        place = world.occupy(attempt(), NOW)
        world.completed(place, request(prefix=(1, 2, 3)), Usage(100, 50), None, NOW)
        assert world.snapshot().prefixes.matches((1, 2, 4), NOW) == {"p/one": 2}

    def test_a_stream_that_broke_teaches_nothing_of_the_kind(self, world: World) -> None:
        place = world.occupy(attempt(), NOW)
        world.failed(place, failed(Failure.BROKEN_STREAM), NOW)
        snapshot = world.snapshot()
        assert snapshot.prefixes.matches((1,), NOW) == {}
        assert snapshot.latencies["p/one"].predict(100, 0, None, NOW) is None


class TestHedges:
    ROUTE = Route("r", (), hedge=Hedge(max_share=0.25))

    def learnt(self, world: World) -> None:
        for _ in range(20):
            answer(world, world.occupy(attempt(), NOW), NOW + 1, first_token=NOW + 0.2)

    def test_the_delay_is_the_95th_percentile_of_the_time_to_first_token(self, world: World) -> None:
        self.learnt(world)
        assert world.hedge_delay(attempt(), self.ROUTE) == pytest.approx(0.2)

    def test_a_backend_of_which_nothing_is_known_is_not_hedged(self, world: World) -> None:
        assert world.hedge_delay(attempt(), self.ROUTE) is None

    def test_nor_is_a_route_that_does_not_ask_for_it(self, world: World) -> None:
        self.learnt(world)
        route = Route("r", ())
        world.earn_hedge(route)
        assert world.hedge_delay(attempt(), route) is None
        assert not world.hedge(route)

    def test_each_request_earns_a_share_of_a_hedge(self, world: World) -> None:
        hedged = 0
        for number in range(1, 401):
            world.earn_hedge(self.ROUTE)
            hedged += world.hedge(self.ROUTE)
            assert hedged <= 0.25 * number
        assert hedged == 100

    def test_what_was_never_used_is_saved_for_a_few(self, world: World) -> None:
        for _ in range(1000):
            world.earn_hedge(self.ROUTE)
        assert [world.hedge(self.ROUTE) for _ in range(6)] == [True] * 5 + [False]

    def test_to_ask_for_the_delay_earns_nothing(self, world: World) -> None:
        for _ in range(1000):  # as a request does for each attempt
            world.hedge_delay(attempt(), self.ROUTE)
        assert not world.hedge(self.ROUTE)

    def test_routes_do_not_share_theirs(self, world: World) -> None:
        for _ in range(10):
            world.earn_hedge(self.ROUTE)
        assert not world.hedge(Route("other", (), hedge=Hedge(max_share=0.25)))
