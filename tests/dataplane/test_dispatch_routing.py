"""Which backend answers, over HTTP: the order, what a request needs, what it asks for, splits, caches, and the cost."""

from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any, ClassVar

import aiohttp
import pytest
import pytest_asyncio
from tests.dataplane.scripted import Platform, ask, model, platform, provider, recorded, route, team, words

from meritorder.core.usage import Charge, Usage
from meritorder.testing.upstream import Behaviour

pytestmark = pytest.mark.asyncio(loop_scope="session")

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}

ARMS = [
    {"name": "old", "weight": 1, "candidates": ["old/chat"]},
    {"name": "new", "weight": 1, "candidates": ["new/chat"]},
]

MANIFESTS = [
    model("ours", capabilities={"contextWindow": 8192}),
    provider("cheap", 1, 2),
    provider("twin", 1, 2),
    provider("dear", 10, 20, contextWindow=100_000, modalities=["image"]),
    # Each can do all that `dear` can but for one thing, and is cheaper.
    provider("short", 1, 2, contextWindow=120, modalities=["image"]),
    provider("blind", 1, 2),
    provider("toolless", 1, 2, modalities=["image"], tools=False),
    provider("formless", 1, 2, modalities=["image"], structuredOutput=False),
    provider("chatless", 1, 2, endpoints=["embeddings"]),
    provider("untried", 9, 18),
    provider("old"),
    provider("new"),
    provider("fresh", 1, 0),
    provider("caching", 1.1, 0, price={"cachedInput": 0.1}),
    provider("slow", 1, 2),
    route("by-price", "dear/chat", "cheap/chat"),
    route("with-a-new-one", "dear/chat", "untried/chat"),
    route("by-place", "twin/chat", "cheap/chat"),
    route("ours-first", "cheap/chat", "ours"),
    *(route(name, f"{name}/chat", "dear/chat") for name in ("short", "blind", "toolless", "formless", "chatless")),
    route("graded", {"provider": "cheap/chat", "quality": 0.5}, {"provider": "dear/chat", "quality": 0.9}),
    route("floored", {"provider": "cheap/chat", "quality": 0.5}, {"provider": "dear/chat", "quality": 0.9},
          objective={"qualityFloor": 0.8}),
    route("worth-it", {"provider": "cheap/chat", "quality": 0.5}, {"provider": "dear/chat", "quality": 0.9},
          objective={"qualityWorth": 1}),
    route("punctual", "slow/chat", "dear/chat"),
    *(route(f"by-{what}", "old/chat", "new/chat", split={"stickyBy": what, "arms": ARMS})
      for what in ("key", "user", "session", "request")),
    route("cached", "fresh/chat", "caching/chat"),
    route("forgetful", "fresh/chat", "caching/chat", affinity=False),
    team("free"),
    team("bound", overrides=["maxCost"]),
]  # fmt: skip


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with platform(tmp_path_factory.mktemp("routing"), *MANIFESTS) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def http(place: Platform) -> AsyncIterator[aiohttp.ClientSession]:
    place.upstream.reset_script()
    place.upstream.clear_requests()
    async with place.client("free") as client:
        yield client


class TestOrder:
    async def test_the_cheapest_goes_first(self, http: aiohttp.ClientSession) -> None:
        assert (await ask(http, "by-price")).backend == "cheap/chat"

    async def test_of_the_same_price_the_route_s_first(self, http: aiohttp.ClientSession) -> None:
        assert (await ask(http, "by-place")).backend == "twin/chat"

    async def test_a_cheaper_one_gets_its_chance_where_nobody_knows_yet_how_long_its_answers_are(
        self, http: aiohttp.ClientSession
    ) -> None:
        for _ in range(3):  # of 16 tokens, which is far less than what is assumed without any
            assert (await ask(http, "dear/chat")).status == 200
        assert (await ask(http, "with-a-new-one")).backend == "untried/chat"

    async def test_what_is_paid_for_goes_before_what_costs_anything(self, http: aiohttp.ClientSession) -> None:
        assert (await ask(http, "ours-first")).backend == "ours"

    async def test_quality_is_bought_where_it_is_worth_its_price(self, http: aiohttp.ClientSession) -> None:
        assert (await ask(http, "graded")).backend == "cheap/chat"
        assert (await ask(http, "worth-it")).backend == "dear/chat"

    async def test_a_backend_can_be_called_by_its_own_name(self, http: aiohttp.ClientSession, place: Platform) -> None:
        assert (await ask(http, "dear/chat")).backend == "dear/chat"
        [received] = place.received("dear")
        assert received.body["model"] == "sim-dear"


class TestWhatARequestNeeds:
    @pytest.mark.parametrize(
        ("route", "fields"),
        [
            pytest.param("short", {"messages": [{"role": "user", "content": words(400)}]}, id="a long context"),
            pytest.param("short", {"max_tokens": 200}, id="room for its answer"),
            pytest.param("blind", {"messages": [{"role": "user", "content": [IMAGE]}]}, id="eyes"),
            pytest.param("toolless", {"tools": [TOOL]}, id="tools"),
            pytest.param("formless", {"response_format": SCHEMA}, id="structured output"),
            pytest.param("formless", {"response_format": {"type": "json_object"}}, id="JSON"),
            pytest.param("chatless", {}, id="the endpoint"),
            pytest.param("floored", {}, id="the quality that the route promises"),
        ],
    )
    async def test_it_goes_where_that_is(
        self, http: aiohttp.ClientSession, place: Platform, route: str, fields: dict[str, Any]
    ) -> None:
        answered = await ask(http, route, **fields)
        assert (answered.status, answered.backend, answered.headers["x-meritorder-attempts"]) == (200, "dear/chat", "1")
        assert {one.model for one in place.upstream.requests} == {"sim-dear"}

    @pytest.mark.parametrize("route", ["short", "blind", "toolless", "formless"])
    async def test_it_goes_to_the_cheaper_one_where_it_does_not_need_it(
        self, http: aiohttp.ClientSession, route: str
    ) -> None:
        fields: dict[str, Any] = {"max_tokens": 5, "response_format": {"type": "text"}, "tools": []}
        assert (await ask(http, route, **fields)).backend == f"{route}/chat"

    async def test_it_is_refused_where_nobody_has_it(self, http: aiohttp.ClientSession, place: Platform) -> None:
        answered = await ask(http, "blind/chat", messages=[{"role": "user", "content": [IMAGE]}])
        assert (answered.status, answered.error["code"]) == (400, "no_candidate")
        assert "'blind/chat' does not take images" in answered.error["message"]
        answered = await ask(http, "short/chat", messages=[{"role": "user", "content": words(500)}])
        assert (answered.status, answered.error["code"]) == (400, "context_length_exceeded")
        assert not place.upstream.requests


class TestOverrides:
    @pytest.mark.parametrize("by_header", [False, True], ids=["in the body", "by header"])
    @pytest.mark.parametrize(
        ("asked", "backend"),
        [
            pytest.param({"backend": "dear/chat"}, "dear/chat", id="this one and no other"),
            pytest.param({"exclude": ["cheap/chat"]}, "dear/chat", id="any but this"),
            pytest.param({"min_quality": 0.8}, "dear/chat", id="at least so good"),
            pytest.param({"max_cost_usd": "0.02", "min_quality": 0.1}, "cheap/chat", id="several at once"),
        ],
    )
    async def test_a_request_gets_what_it_asks_for(
        self, http: aiohttp.ClientSession, place: Platform, by_header: bool, asked: dict[str, Any], backend: str
    ) -> None:
        headers = {f"x-meritorder-{name.replace('_', '-')}": _header(value) for name, value in asked.items()}
        if by_header:
            answered = await ask(http, "graded", headers=headers)
        else:
            answered = await ask(http, "graded", meritorder=asked)
        assert answered.backend == backend
        [received] = place.upstream.requests
        assert "meritorder" not in received.body, "no backend is told"
        assert not any(name.startswith("x-meritorder") for name in received.header_names)

    async def test_a_maximal_cost_counts_against_the_most_that_the_request_can_cost(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        enough, too_little = "0.001", "0.0005"  # 200 tokens of answer at most, for 20 dollars a million
        asked = {"exclude": ["cheap/chat"], "max_cost_usd": too_little}
        answered = await ask(http, "graded", max_tokens=200, meritorder=asked)
        assert (answered.status, answered.error["code"]) == (400, "no_candidate")
        assert "which is over the request's 0.0005 USD" in answered.error["message"]
        assert not place.upstream.requests
        asked["max_cost_usd"] = enough
        answered = await ask(http, "graded", max_tokens=10, meritorder=asked)
        assert answered.backend == "dear/chat"
        assert (await recorded(place, answered)).cost <= Decimal(enough)

    async def test_who_is_known_to_be_slower_is_not_asked(self, http: aiohttp.ClientSession, place: Platform) -> None:
        place.script(slow=Behaviour(ttft_ms=300))
        assert (await ask(http, "punctual", stream=True)).backend == "slow/chat"
        assert (await ask(http, "punctual", stream=True, meritorder={"max_ttft_ms": 100})).backend == "dear/chat"
        assert (await ask(http, "punctual", stream=True, meritorder={"max_ttft_ms": 10_000})).backend == "slow/chat"

    async def test_the_body_wins_over_a_header(self, http: aiohttp.ClientSession) -> None:
        headers = {"x-meritorder-backend": "cheap/chat"}
        assert (await ask(http, "graded", headers=headers, meritorder={"backend": "dear/chat"})).backend == "dear/chat"

    async def test_a_backend_that_the_route_does_not_have(self, http: aiohttp.ClientSession) -> None:
        answered = await ask(http, "graded", meritorder={"backend": "twin/chat"})
        assert (answered.status, answered.error["param"]) == (400, "meritorder.backend")
        assert "it has cheap/chat, dear/chat" in answered.error["message"]

    @pytest.mark.parametrize(
        ("asked", "param"),
        [
            ({"backend": "cheap/chat"}, "meritorder.backend"),
            ({"exclude": ["cheap/chat"]}, "meritorder.exclude"),
            ({"min_quality": 0}, "meritorder.min_quality"),
            ({"max_ttft_ms": 1}, "meritorder.max_ttft_ms"),
        ],
    )
    async def test_a_team_that_may_not(
        self, http: aiohttp.ClientSession, place: Platform, asked: dict[str, Any], param: str
    ) -> None:
        async with place.client("bound") as bound:
            answered = await ask(bound, "graded", meritorder=asked)
            assert (answered.status, answered.error["code"]) == (403, "override_not_allowed")
            assert answered.error["param"] == param
            assert not place.upstream.requests
            assert (await ask(bound, "graded", meritorder={"max_cost_usd": 1})).status == 200, "what it may, it may"


class TestSplits:
    @pytest.mark.parametrize("what", ["user", "session"])
    async def test_requests_that_agree_in_it_get_the_same_arm(
        self, http: aiohttp.ClientSession, place: Platform, what: str
    ) -> None:
        arms: dict[str, str] = {}
        for name in [f"someone-{number}" for number in range(12)] * 2:
            headers = {"x-meritorder-session": name} if what == "session" else None
            fields = {"user": name} if what == "user" else {}
            answered = await ask(http, f"by-{what}", headers=headers, **fields)
            arm = answered.headers["x-meritorder-arm"]
            assert answered.backend == f"{arm}/chat"
            assert arms.setdefault(name, arm) == arm
        assert set(arms.values()) == {"old", "new"}

    async def test_a_key_keeps_its_arm_whoever_uses_it(self, http: aiohttp.ClientSession, place: Platform) -> None:
        seen = set()
        for _ in range(10):  # keys have random ids: that all of them get one arm is one case in 512
            async with await place.new_client("free") as client:
                arms = {(await ask(client, "by-key", user=f"u{n}")).headers["x-meritorder-arm"] for n in range(3)}
                assert len(arms) == 1
                seen |= arms
            if len(seen) == 2:
                return
        pytest.fail(f"all keys are in {seen}")

    async def test_the_arm_is_in_the_ledger_and_in_the_metrics(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        answers = [await ask(http, "by-request") for _ in range(24)]
        arms = Counter(answered.headers["x-meritorder-arm"] for answered in answers)
        assert set(arms) == {"old", "new"}
        for answered in answers:
            record = await recorded(place, answered)
            assert record.arm == answered.headers["x-meritorder-arm"]
            assert record.backend == f"{record.arm}/chat"
        async with http.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        for arm, count in arms.items():
            [line] = [one for one in lines if one.startswith("meritorder_requests_total{") and f'arm="{arm}"' in one
                      and 'route="by-request"' in one]  # fmt: skip
            assert float(line.rpartition(" ")[2]) == count

    async def test_the_other_arm_is_no_fallback(self, http: aiohttp.ClientSession, place: Platform) -> None:
        place.script(old=Behaviour(status=500), new=Behaviour(status=500))
        answered = await ask(http, "by-user", user="somebody")
        assert answered.status == 502
        assert len({one.model for one in place.upstream.requests}) == 1

    async def test_whoever_names_a_backend_counts_for_no_arm(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        place.upstream.reset_script()
        answered = await ask(http, "by-user", user="somebody", meritorder={"backend": "old/chat"})
        assert answered.backend == "old/chat"
        assert "x-meritorder-arm" not in answered.headers


class TestAffinity:
    """`caching` is a tenth dearer than `fresh`, and ten times cheaper for what it has in its cache."""

    async def test_a_long_beginning_goes_back_to_the_cache_that_has_it(self, http: aiohttp.ClientSession) -> None:
        system = {"role": "system", "content": words(2000)}

        async def backend(number: int, route: str = "cached", **fields: Any) -> str | None:
            question = {"role": "user", "content": f"question {number}"}
            return (await ask(http, route, messages=[system, question], **fields)).backend

        assert await backend(0) == "fresh/chat"
        assert await backend(1, meritorder={"backend": "caching/chat"}) == "caching/chat"
        assert await backend(2) == "caching/chat"
        assert await backend(3, "forgetful") == "fresh/chat", "its route does not care"

    async def test_others_go_where_they_went(self, http: aiohttp.ClientSession) -> None:
        for text in (words(10), "another " + words(2000)):
            assert (await ask(http, "cached", messages=[{"role": "user", "content": text}])).backend == "fresh/chat"


class TestCost:
    USAGE: ClassVar[dict[str, Any]] = {
        "prompt_tokens": 2000, "completion_tokens": 9, "total_tokens": 2009,
        "prompt_tokens_details": {"cached_tokens": 1500},
    }  # fmt: skip
    COST = Decimal("0.0007")  # 500 tokens at 1.1 and 1500 at 0.1 dollars a million

    async def test_the_header_of_a_whole_answer_is_the_ledger_s_cost(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        place.script(caching=Behaviour(usage=dict(self.USAGE)))
        answered = await ask(http, "caching/chat")
        assert Decimal(answered.headers["x-meritorder-cost-usd"]) == self.COST
        record = await recorded(place, answered)
        usage = Usage(2000, 9, cached_input_tokens=1500)
        assert record.charges == (Charge("caching/chat", "hosted", usage, self.COST),)

    async def test_so_is_the_one_in_the_usage_event_of_a_stream(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        place.script(caching=Behaviour(usage=dict(self.USAGE)))
        answered = await ask(http, "caching/chat", stream=True, stream_options={"include_usage": True})
        usage = answered.events[-1]["usage"]
        told = usage.pop("meritorder")
        assert usage == self.USAGE, "the backend's own is left alone"
        assert told == {
            "request_id": answered.request_id, "backend": "caching/chat", "attempts": 1, "cost_usd": told["cost_usd"],
        }  # fmt: skip
        assert Decimal(told["cost_usd"]) == (await recorded(place, answered)).cost == self.COST

    async def test_a_self_run_model_costs_nothing_more(self, http: aiohttp.ClientSession, place: Platform) -> None:
        answered = await ask(http, "ours")
        assert Decimal(answered.headers["x-meritorder-cost-usd"]) == 0
        assert (await recorded(place, answered)).cost == 0


def _header(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
