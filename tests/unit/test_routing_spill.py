"""Self-run capacity is free until it saturates: what stays, what spills, and what comes back."""

import heapq
import random
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meritorder.core.catalog import Backend, Candidate, Capabilities, Catalog, Endpoint, Objective, Route, Tier
from meritorder.core.pricing import FREE, Price
from meritorder.core.request import InferenceRequest
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.routing.filters import capacity
from meritorder.routing.latency import Latency
from meritorder.routing.plan import plan
from meritorder.routing.shadow_price import ShadowPrice
from meritorder.routing.snapshot import Snapshot

CAPACITY, SERVICE = 8, 2.0
_CHAT = Capabilities(frozenset({Endpoint.CHAT_COMPLETIONS}))
OWN = Backend("own", Tier.SELF_RUN, "own", "own", _CHAT, FREE, CAPACITY)
PEAKER = Backend("peaker", Tier.HOSTED, "peaker", "peaker", _CHAT, Price.flat(Decimal(1), Decimal(4)))
DEAR = Backend("dear", Tier.HOSTED, "dear", "dear", _CHAT, Price.flat(Decimal(20), Decimal(80)))
REQUEST = InferenceRequest("id", Endpoint.CHAT_COMPLETIONS, "r", True, True, 500, lambda _: b"", text_bytes=400)


@dataclass
class Platform:
    """A self-run model and peakers, on a clock of its own. `sent` has the time and the backend of each request."""

    backends: tuple[Backend, ...] = (OWN, PEAKER, DEAR)
    price: ShadowPrice = field(default_factory=ShadowPrice)
    in_flight: dict[str, int] = field(default_factory=lambda: {"own": 0, "peaker": 0, "dear": 0})
    leaving: list[tuple[float, str]] = field(default_factory=list)
    sent: list[tuple[float, str]] = field(default_factory=list)
    fullest: int = 0
    objective: Objective = field(default_factory=Objective)
    latencies: dict[str, Latency] = field(default_factory=dict)
    running: int = 0
    expected: float | None = None

    def arrive(self, now: float, *candidates: str, request: InferenceRequest = REQUEST) -> str:
        self.leave_until(now)
        catalog = Catalog({one.name: one for one in self.backends}, {}, {})
        up = {
            one.application: ApplicationStatus(one.application, Phase.READY, "http://x", running_replicas=self.running)
            for one in self.backends
        }
        snapshot = Snapshot(catalog, up, self.in_flight, latencies=self.latencies, congestion={"own": self.price})
        route = Route("r", tuple(Candidate(name) for name in candidates or ("own", "peaker")), self.objective)
        first = plan(
            snapshot, route, request, key_id="k", headroom=None, budgeted=False, now=now, moment=0.0, draw=0.0
        ).attempts[0]  # fmt: skip
        name, self.expected = first.backend.name, first.ttft
        self.in_flight[name] += 1
        if name == "own":
            self.price.observe(self.in_flight["own"], capacity(first.backend, up["own"]), now, first.saving)
        self.fullest = max(self.fullest, self.in_flight["own"])
        heapq.heappush(self.leaving, (now + SERVICE, name))
        self.sent.append((now, name))
        return name

    def leave_until(self, now: float) -> None:
        while self.leaving and self.leaving[0][0] <= now:
            at, name = heapq.heappop(self.leaving)
            self.in_flight[name] -= 1
            if name == "own":
                self.price.observe(self.in_flight["own"], CAPACITY, at)

    def load(self, start: float, seconds: float, rate: float, rng: random.Random | None = None) -> list[str]:
        """So many requests per second, evenly or as chance has it."""
        now, names = start, []
        while now < start + seconds:
            names.append(self.arrive(now))
            now += rng.expovariate(rate) if rng else 1 / rate
        return names


FULL_RATE = CAPACITY / SERVICE


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_at_low_load_everything_stays(share: float) -> None:
    assert set(Platform().load(0, 120, share * FULL_RATE)) == {"own"}


@given(st.integers(0, 2**32), st.floats(0.2, 5.0))
@settings(max_examples=20)
def test_a_request_spills_exactly_when_the_replica_is_full(seed: int, share: float) -> None:
    platform, rng, now = Platform(), random.Random(seed), 0.0
    for _ in range(300):
        now += rng.expovariate(share * FULL_RATE)
        platform.leave_until(now)
        full = platform.in_flight["own"] >= CAPACITY
        assert platform.arrive(now) == ("peaker" if full else "own")
    assert platform.fullest <= CAPACITY


@pytest.mark.parametrize("share", [1.5, 3.0])
def test_when_it_saturates_just_the_overflow_spills_and_it_stays_full(share: float) -> None:
    platform = Platform()
    platform.load(0, 10, share * FULL_RATE)
    names = platform.load(10, 100, share * FULL_RATE)
    assert names.count("own") / 100 == pytest.approx(FULL_RATE, rel=0.05)


def test_a_burst_does_not_herd() -> None:
    platform = Platform()
    names = [platform.arrive(0.0) for _ in range(20)]
    assert names == ["own"] * CAPACITY + ["peaker"] * 12


def test_when_the_load_falls_everything_comes_back_once() -> None:
    platform = Platform()
    for start, share in ((0, 0.5), (60, 3.0), (120, 0.5)):
        platform.load(start, 60, share * FULL_RATE)
    spilled = [now for now, name in platform.sent if name == "peaker"]
    assert 60 <= min(spilled) < 65
    assert 115 < max(spilled) <= 120 + SERVICE
    # The share that spills, in steps of five seconds, rises once and falls once.
    shares = [
        sum(name == "peaker" for now, name in platform.sent if start <= now < start + 5) > 0
        for start in range(0, 180, 5)
    ]
    assert sum(one != other for one, other in pairwise(shares)) == 2


def test_a_promised_latency_spills_before_the_replica_is_full_and_is_forgiven_when_it_is_not() -> None:
    """Each request in flight makes the others half a second slower; the route promises two."""
    latency, loads = Latency(), []
    platform = Platform(objective=Objective(ttft_slo=2.0), latencies={"own": latency})
    for start, share in ((0, 3.0), (60, 0.4)):
        for step in range(int(60 * share * FULL_RATE)):
            now = start + step / (share * FULL_RATE)
            platform.leave_until(now)
            others = platform.in_flight["own"]
            if platform.arrive(now) == "own":
                seconds = 0.1 + 0.5 * others
                latency.observe_first_token(seconds, prompt_tokens=100, in_flight=others, concurrency=CAPACITY, now=now)
                if now < 60:
                    loads.append(others)
    assert max(loads[30:]) < CAPACITY - 1
    assert sum(name == "own" for now, name in platform.sent if 10 < now < 60) > 60
    assert {name for now, name in platform.sent if now > 60 + SERVICE} == {"own"}


def test_with_chance_arrivals_near_capacity_it_is_neither_idle_nor_queueing() -> None:
    platform = Platform()
    names = platform.load(0, 600, FULL_RATE, random.Random(1))
    # Erlang's loss formula: 8 places at a load of 8 lose 23.6 %.
    assert names.count("peaker") / len(names) == pytest.approx(0.236, abs=0.03)


def test_when_no_peaker_is_left_it_queues() -> None:
    platform = Platform()
    names = [platform.arrive(0.0, "own") for _ in range(20)]
    assert (set(names), platform.fullest) == ({"own"}, 20)


def test_under_lasting_scarcity_the_last_places_are_kept_for_what_would_be_dear_elsewhere() -> None:
    """Two kinds of requests, three times what fits: the replica should save the dearer money."""
    platform, rng, now = Platform(), random.Random(2), 0.0
    kept = {"peaker": 0, "dear": 0}
    while now < 300:
        now += rng.expovariate(3 * FULL_RATE)
        elsewhere = rng.choice(("peaker", "dear"))
        if platform.arrive(now, "own", elsewhere) == "own" and now > 30:
            kept[elsewhere] += 1
    assert kept["dear"] > 2 * kept["peaker"]
    assert sum(kept.values()) / 270 > 0.85 * FULL_RATE


def test_requests_of_different_length_and_the_same_prices_are_not_told_apart() -> None:
    platform, rng, now = Platform(), random.Random(3), 0.0
    early = 0
    while now < 300:
        now += rng.expovariate(2 * FULL_RATE)
        platform.leave_until(now)
        room = platform.in_flight["own"] < CAPACITY
        request = replace(REQUEST, text_bytes=rng.randrange(100, 40_000), max_output_tokens=rng.randrange(20, 2000))
        early += (platform.arrive(now, request=request) == "peaker") and room
    assert early == 0


class TestReplicas:
    MODEL = replace(OWN, replica_concurrency=CAPACITY // 2)  # two replicas are promised

    @pytest.mark.parametrize(("running", "expected"), [(0, CAPACITY), (1, 4), (2, 8), (5, 20)])
    def test_the_capacity_is_that_of_those_that_run_or_else_the_promised(self, running: int, expected: int) -> None:
        assert capacity(self.MODEL, ApplicationStatus("own", Phase.READY, "http://x", "", running)) == expected

    def test_of_nothing_more_is_known_than_the_manifests_say(self) -> None:
        assert capacity(self.MODEL, None) == CAPACITY
        up = ApplicationStatus("peaker", Phase.READY, "http://x", "", 3)
        assert capacity(PEAKER, up) is None
        assert capacity(replace(PEAKER, concurrency=5), up) == 5

    @pytest.mark.parametrize(("running", "kept"), [(1, 4), (2, 8), (3, 12)])
    def test_what_the_running_replicas_cannot_take_spills(self, running: int, kept: int) -> None:
        platform = Platform((self.MODEL, PEAKER), running=running)
        names = [platform.arrive(0.0) for _ in range(20)]
        assert names == ["own"] * kept + ["peaker"] * (20 - kept)

    @pytest.mark.parametrize(("running", "expected"), [(1, 1.75), (2, 1.0)])
    def test_the_queue_of_the_others_is_expected_too(self, running: int, expected: float) -> None:
        latency = Latency()
        latency.observe_first_token(1.0, prompt_tokens=100, in_flight=0, concurrency=4, now=0.0)
        platform = Platform((self.MODEL,), running=running, latencies={"own": latency})
        platform.in_flight["own"] = 6
        platform.arrive(0.0, "own")
        assert platform.expected == pytest.approx(expected)  # three wait, and four leave per second


class TestPrice:
    def test_it_is_nothing_up_to_half_of_the_capacity(self) -> None:
        assert [ShadowPrice().price(1.0, 1.0, load, 8, 0.0) for load in range(5)] == [0.0] * 5

    def test_it_rises_with_the_load_and_passes_the_reference_when_full(self) -> None:
        prices = [ShadowPrice().price(1.0, 1.0, load, 8, 0.0) for load in range(4, 20)]
        assert prices == sorted(set(prices))
        assert prices[3] < 1.0 < prices[4] < 1.000001

    def test_a_model_that_serves_one_at_a_time_is_free_until_it_does(self) -> None:
        assert ShadowPrice().price(1.0, 1.0, 0, 1, 0.0) == 0.0 < ShadowPrice().price(0.0, 1.0, 1, 1, 0.0)

    def test_mu_rises_while_it_is_full_up_to_what_work_saves_and_falls_when_it_is_idle(self) -> None:
        price = ShadowPrice()
        price.observe(8, 8, now=0.0, saving=0.002)
        assert [round(price.mu(now), 6) for now in (0, 5, 10, 1000)] == [0.0, 0.001, 0.002, 0.002]
        price.observe(0, 8, now=1000.0)
        assert price.mu(1002.0) == 0.0

    @given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50), st.none() | st.floats(0, 1)), max_size=30))
    def test_mu_is_never_negative_nor_above_what_work_saves(self, steps: list[tuple[float, int, float | None]]) -> None:
        price, now = ShadowPrice(), 0.0
        for wait, in_flight, saving in steps:
            now += wait
            price.observe(in_flight, 8, now, saving)
            assert 0 <= price.mu(now + 3) <= 1
