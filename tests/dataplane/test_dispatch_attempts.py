"""What becomes of attempts, over HTTP: fallback, retries, what providers ask for, probes, and hedges."""

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal

import aiohttp
import pytest
import pytest_asyncio
from tests.dataplane.conftest import eventually
from tests.dataplane.scripted import Answered, Platform, ask, platform, provider, recorded, route, team, words

from meritorder.core.usage import Outcome
from meritorder.testing.upstream import Behaviour

pytestmark = pytest.mark.asyncio(loop_scope="session")

HEDGED_EACH, HEDGED_FEW = 1.0, 0.1

# Each test has providers of its own: what the ingress has learnt of them stays.
NAMES = ["refusing", "broken", "cut-early", "half", "asking", "empty", "shy", "shaky", "again", "later", "once", "late"]
HEDGED = ["steady", "whole", "rare", "failing", "both-slow"]

MANIFESTS = [
    *(provider(name, 1, 2) for name in (*NAMES, *HEDGED)),
    *(provider(f"{name}-spare", 10, 20) for name in HEDGED),
    provider("spare", 10, 20),
    *(route(f"{name}-first", f"{name}/chat", "spare/chat", retries=0) for name in NAMES),
    route("again", "again/chat"),
    route("never-again", "once/chat", retries=0),
    route("hurried", "late/chat", objective={"timeout": 0.3}, retries=5),
    *(
        route(name, f"{name}/chat", f"{name}-spare/chat", hedge={"maxShare": share})
        for name, share in {**dict.fromkeys(HEDGED, HEDGED_EACH), "rare": HEDGED_FEW}.items()
    ),
    team("demo"),
    team("tight", budgets=[{"period": "total", "amount": 0.01}]),
]


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with platform(tmp_path_factory.mktemp("attempts"), *MANIFESTS) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def http(place: Platform) -> AsyncIterator[aiohttp.ClientSession]:
    place.upstream.reset_script()
    place.upstream.clear_requests()
    async with place.client("demo") as client:
        yield client


class TestFallback:
    @pytest.mark.parametrize(
        ("name", "behaviour"),
        [
            pytest.param("refusing", Behaviour(refuse_connection=True), id="it cannot be reached"),
            pytest.param("broken", Behaviour(status=500), id="an error of its own"),
            pytest.param("cut-early", Behaviour(fail_after_chunks=1), id="its stream breaks before the first token"),
            pytest.param("half", Behaviour(fail_after_chunks=0, fail_mode="malformed"), id="it answers with rubbish"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    async def test_the_next_answers(
        self, http: aiohttp.ClientSession, place: Platform, name: str, behaviour: Behaviour, stream: bool
    ) -> None:
        place.script(**{name.replace("-", "_"): behaviour})
        answered = await ask(http, f"{name}-first", stream=stream, meritorder={"exclude": []})
        assert (answered.status, answered.backend) == (200, "spare/chat")
        record = await recorded(place, answered)
        assert (record.backend, record.outcome) == ("spare/chat", Outcome.COMPLETED)
        assert [charge.backend for charge in record.charges] == ["spare/chat"], "a failure costs nothing"
        made = len(place.upstream.requests)
        assert (record.attempts, answered.headers["x-meritorder-attempts"]) == (made, str(made))

    async def test_an_error_of_the_request_s_own_is_passed_on(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        place.script(once=Behaviour(status=400, error_message="no such voice", error_code="bad_voice"))
        answered = await ask(http, "once-first")
        assert (answered.status, answered.error["message"]) == (400, "no such voice")
        assert not place.received("spare")
        record = await recorded(place, answered)
        assert (record.outcome, record.charges) == (Outcome.REJECTED, ())


class TestRetries:
    async def test_what_failed_in_passing_is_tried_again(self, http: aiohttp.ClientSession, place: Platform) -> None:
        place.script(again=[Behaviour(status=500), Behaviour()])
        answered = await ask(http, "again")
        assert (answered.status, answered.headers["x-meritorder-attempts"]) == (200, "2")

    async def test_not_where_the_route_does_not_want_it(self, http: aiohttp.ClientSession, place: Platform) -> None:
        place.script(once=[Behaviour(status=500), Behaviour()])
        answered = await ask(http, "never-again")
        assert (answered.status, answered.error["code"]) == (502, "backends_failed")
        assert len(place.received("once")) == 1
        assert (await recorded(place, answered)).outcome is Outcome.FAILED

    async def test_a_short_retry_after_is_waited_for(self, http: aiohttp.ClientSession, place: Platform) -> None:
        place.script(again=[Behaviour(status=429, headers={"retry-after-ms": "300", "retry-after": "1"}), Behaviour()])
        answered = await ask(http, "again")
        assert answered.status == 200
        refused, taken = place.received("again")
        assert refused.ended_s is not None
        assert taken.started_s - refused.ended_s >= 0.95

    async def test_not_after_the_route_s_time(self, http: aiohttp.ClientSession, place: Platform) -> None:
        place.script(late=Behaviour(hang=True))
        text = words(25)
        answered = await ask(http, "hurried", messages=[{"role": "user", "content": text}])
        assert (answered.status, answered.error["code"]) == (504, "deadline_exceeded")
        record = await recorded(place, answered)
        assert 0.3 <= record.duration < 3
        # It was at work when it was given up, so its prompt has to be paid.
        [charge] = record.charges
        assert (charge.backend, charge.cost) == ("late/chat", Decimal("0.000025"))
        await place.upstream.wait_until(lambda requests: requests[-1].outcome == "client_disconnected")
        assert place.upstream.served["sim-late"].prompt_tokens == 25


class TestWhatProvidersAskFor:
    async def test_one_that_asks_to_be_left_alone_is(self, http: aiohttp.ClientSession, place: Platform) -> None:
        place.script(asking=Behaviour(status=429, headers={"retry-after": "60"}))
        backends = [(await ask(http, "asking-first")).backend for _ in range(5)]
        assert backends == ["spare/chat"] * 5
        assert len(place.received("asking")) == 1
        place.upstream.reset_script()
        refused = await ask(http, "asking/chat")
        assert (refused.status, refused.error["code"]) == (429, "backends_busy")
        assert "'asking/chat' asked to be left alone for" in refused.error["message"]
        assert 50 < int(refused.headers["retry-after"]) <= 60
        assert len(place.received("asking")) == 1

    async def test_one_that_says_there_is_nothing_left_is_not_asked_for_more(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        limits = {
            "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1m0s",
        }  # fmt: skip
        place.script(empty=Behaviour(headers=limits))
        first = await ask(http, "empty-first")
        assert first.backend == "empty/chat"
        assert not any(name.lower().startswith("x-ratelimit") for name in first.headers), "it is the platform's account"
        assert (await ask(http, "empty-first")).backend == "spare/chat"
        assert len(place.received("empty")) == 1

    async def test_one_that_has_failed_is_tried_by_one_request_alone(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        place.script(shaky=[Behaviour(refuse_connection=True), Behaviour(hang=True), Behaviour()])
        assert (await ask(http, "shaky-first")).backend == "spare/chat"
        assert await circuit(http, "shaky/chat") == "open"
        await eventually(lambda: circuit_is(http, "shaky/chat", "half-open"))
        probe = asyncio.create_task(ask(http, "shaky-first"))
        await place.wait_for("shaky", 2)
        others = await asyncio.gather(*(ask(http, "shaky-first") for _ in range(10)))
        assert {answered.backend for answered in others} == {"spare/chat"}
        assert len(place.received("shaky")) == 2
        probe.cancel()  # its client leaves, so another one may try
        await eventually(lambda: answered_by(http, "shaky-first", "shaky/chat"))
        assert await circuit(http, "shaky/chat") == "closed"

    async def test_one_that_is_all_there_is_is_tried_all_the_same(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        place.script(shy=[Behaviour(refuse_connection=True), Behaviour()])
        assert (await ask(http, "shy-first")).backend == "spare/chat"
        assert await circuit(http, "shy/chat") == "open"
        assert (await ask(http, "shy/chat")).status == 200


class TestHedges:
    async def test_a_slow_one_is_overtaken_and_both_are_paid(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        await warm_up(http, "steady")
        place.script(steady=Behaviour(hang=True))
        answered = await ask(http, "steady", stream=True, messages=[{"role": "user", "content": words(30)}])
        assert (answered.status, answered.backend) == (200, "steady-spare/chat")
        assert answered.headers["x-meritorder-attempts"] == "2"
        await place.upstream.wait_until(lambda _: place.received("steady")[-1].outcome == "client_disconnected")
        record = await recorded(place, answered)
        winner, loser = record.charges
        assert (winner.backend, loser.backend) == ("steady-spare/chat", "steady/chat")
        assert (winner.cost, loser.cost) == (Decimal("0.00062"), Decimal("0.00003"))
        assert (loser.usage.input_tokens, loser.usage.output_tokens, loser.usage.estimated) == (30, 0, True)
        assert place.upstream.served["sim-steady-spare"].completion_tokens == 16
        assert await metric(http, "meritorder_hedges_total", route="steady") == 1

    async def test_the_usage_event_tells_the_cost_of_both(self, http: aiohttp.ClientSession, place: Platform) -> None:
        await warm_up(http, "steady")
        place.script(steady=Behaviour(hang=True))
        answered = await ask(http, "steady", stream=True, stream_options={"include_usage": True})
        told = answered.events[-1]["usage"]["meritorder"]
        record = await recorded(place, answered)
        assert len(record.charges) == 2
        assert (Decimal(told["cost_usd"]), told["attempts"]) == (record.cost, 2)

    async def test_the_slow_one_may_still_be_first(self, http: aiohttp.ClientSession, place: Platform) -> None:
        await warm_up(http, "both-slow")
        place.script(both_slow=Behaviour(ttft_ms=500), both_slow_spare=Behaviour(hang=True))
        answered = await ask(http, "both-slow", stream=True)
        assert (answered.backend, answered.headers["x-meritorder-attempts"]) == ("both-slow/chat", "2")
        await place.upstream.wait_until(
            lambda _: place.received("both-slow-spare")[-1].outcome == "client_disconnected"
        )
        assert [charge.backend for charge in (await recorded(place, answered)).charges] == [
            "both-slow/chat", "both-slow-spare/chat",
        ]  # fmt: skip

    async def test_a_second_one_that_fails_ends_nothing(self, http: aiohttp.ClientSession, place: Platform) -> None:
        await warm_up(http, "failing")
        place.script(failing=Behaviour(ttft_ms=500), failing_spare=Behaviour(status=500))
        answered = await ask(http, "failing", stream=True)
        assert (answered.status, answered.backend) == (200, "failing/chat")
        assert [charge.backend for charge in (await recorded(place, answered)).charges] == ["failing/chat"]

    async def test_an_answer_that_is_not_streamed_is_not_slow_because_it_is_long(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        await warm_up(http, "whole")
        place.script(whole=Behaviour(ttft_ms=500))
        answered = await ask(http, "whole")
        assert (answered.backend, answered.headers["x-meritorder-attempts"]) == ("whole/chat", "1")

    async def test_no_more_are_hedged_than_the_route_s_share(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        before = 20
        await warm_up(http, "rare", before)
        place.script(rare=Behaviour(ttft_ms=500))
        slow = 10
        answers = await asyncio.gather(*(ask(http, "rare", stream=True) for _ in range(slow)))
        assert {answered.status for answered in answers} == {200}
        hedged = await metric(http, "meritorder_hedges_total", route="rare")
        assert hedged == len(place.received("rare-spare"))
        assert 1 <= hedged <= HEDGED_FEW * (before + slow)

    async def test_a_budget_that_has_no_room_for_two_is_not_overspent_by_them(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        await warm_up(http, "steady")
        place.script(steady=Behaviour(ttft_ms=500))
        async with place.client("tight") as tight:
            # The spare one may cost 0.008 USD, which is in the budget, and not beside the reservation for one of them.
            answered = await ask(tight, "steady", stream=True, max_tokens=390)
        assert (answered.backend, answered.headers["x-meritorder-attempts"]) == ("steady/chat", "1")


async def warm_up(http: aiohttp.ClientSession, model: str, count: int = 20) -> None:
    """Let the ingress learn how soon its first candidate answers; streams tell."""
    for _ in range(count):
        assert (await ask(http, model, stream=True, meritorder={"backend": f"{model}/chat"})).status == 200


async def answered_by(http: aiohttp.ClientSession, model: str, backend: str) -> Answered | None:
    answered = await ask(http, model)
    return answered if answered.backend == backend else None


async def metrics(http: aiohttp.ClientSession) -> list[str]:
    async with http.get("/metrics") as response:
        return (await response.text()).splitlines()


async def metric(http: aiohttp.ClientSession, name: str, **labels: str) -> float:
    """The value of a series, the sum where there are several."""
    return value(await metrics(http), name, **labels)


def value(lines: list[str], name: str, **labels: str) -> float:
    parts = [f"{label}={json.dumps(text)}" for label, text in labels.items()]
    wanted = [one for one in lines if one.startswith(name) and all(part in one for part in parts)]
    return sum(float(one.rpartition(" ")[2]) for one in wanted)


async def circuit(http: aiohttp.ClientSession, backend: str) -> str:
    lines = await metrics(http)
    states = ("closed", "open", "half-open")
    [state] = [one for one in states if value(lines, "meritorder_circuit_state", backend=backend, state=one)]
    return state


async def circuit_is(http: aiohttp.ClientSession, backend: str, state: str) -> bool:
    return await circuit(http, backend) == state
