"""`POST /v1/routes:explain`: what dispatch would do with a request at this moment, and why; nothing is sent."""

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.dataplane.conftest import eventually
from tests.dataplane.scripted import Platform, ask, model, platform, provider, recorded, route, team, words

from meritorder.core.limits import Budget, Period
from meritorder.testing.upstream import Behaviour

pytestmark = pytest.mark.asyncio(loop_scope="session")

MONTHLY = Decimal(2)

ARMS = [
    {"name": "old", "weight": 1, "candidates": ["cheap/chat"]},
    {"name": "new", "weight": 1, "candidates": ["dear/chat"]},
]

MANIFESTS = [
    model("ours", capabilities={"contextWindow": 200}),
    provider("cheap", 1, 2),
    provider("dear", 10, 20, modalities=["image"]),
    provider("unpriced", None),
    provider("resting", 1, 2),
    provider("vectors", 1, 0, endpoints=["embeddings"]),
    route(
        "assistant", "ours", "cheap/chat", {"provider": "dear/chat", "quality": 0.9}, objective={"qualityWorth": 0.01}
    ),
    route("everything", "ours", "cheap/chat", "dear/chat", "unpriced/chat", "vectors/chat"),
    route("resting-first", "resting/chat", "cheap/chat"),
    route("split", "cheap/chat", "dear/chat", split={"stickyBy": "user", "arms": ARMS}),
    team("free"),
    team("budgeted", budgets=[{"period": "monthly", "amount": float(MONTHLY)}, {"period": "total", "amount": 100}]),
    team("narrow", routes=["assistant"], overrides=["maxCost"]),
]


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with platform(tmp_path_factory.mktemp("explain"), *MANIFESTS) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def http(place: Platform) -> AsyncIterator[aiohttp.ClientSession]:
    place.upstream.reset_script()
    place.upstream.clear_requests()
    async with place.client("free") as client:
        yield client


async def explain(
    http: aiohttp.ClientSession, model: str, status: int = 200, headers: dict[str, str] | None = None, **fields: Any
) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": words(10)}], **fields}
    async with http.post("/v1/routes:explain", json=body, headers=headers) as response:
        assert response.status == status, await response.text()
        return await response.json()


def reasons(plan: Any) -> dict[str, str]:
    return {one["backend"]: one["rejection"] for one in plan["rejected"]}


class TestThePlan:
    async def test_it_has_the_parts_of_every_score_in_the_order_of_the_attempts(
        self, http: aiohttp.ClientSession, place: Platform
    ) -> None:
        plan = await explain(http, "assistant", max_tokens=100)
        assert [attempt["backend"] for attempt in plan["attempts"]] == ["ours", "cheap/chat", "dear/chat"]
        assert [attempt["tier"] for attempt in plan["attempts"]] == ["self-run", "hosted", "hosted"]
        for attempt in plan["attempts"]:
            parts = attempt["score"]
            total = parts["quality"] - parts["cost"] - parts["lateness"] - parts["congestion"]
            assert attempt["utility"] == pytest.approx(total)
        ours, cheap, dear = plan["attempts"]
        assert ours["score"] == {"quality": 0.01, "cost": 0.0, "lateness": 0.0, "congestion": 0.0}
        assert dear["score"]["quality"] == pytest.approx(0.009)
        for attempt, input, output in ((cheap, 1e-6, 2e-6), (dear, 1e-5, 2e-5)):
            expected = attempt["input_tokens"] * input + attempt["output_tokens"] * output
            assert attempt["score"]["cost"] == pytest.approx(expected)
            # Reserved is the most that it can cost, which is more.
            assert Decimal(attempt["cost_bound_usd"]) >= Decimal(expected)
        assert Decimal(ours["cost_bound_usd"]) == 0
        assert plan["prompt_tokens_estimated"] == 10
        assert plan["route"] == "assistant"
        assert plan["team"] == "free"
        assert plan["decision"].startswith("'ours' is tried first, then 'cheap/chat', 'dear/chat' if it fails")

    async def test_nothing_is_sent_and_nothing_recorded(self, http: aiohttp.ClientSession, place: Platform) -> None:
        async with http.post("/v1/routes:explain", json={"model": "assistant", "messages": [{"role": "user"}]}) as got:
            assert got.status == 200
        answered = await ask(http, "assistant")
        await recorded(place, answered)
        assert len(place.upstream.requests) == 1
        assert place.ingress.records([got.headers["x-request-id"]]) == []

    async def test_dispatch_does_as_it_says(self, http: aiohttp.ClientSession) -> None:
        for fields in (
            {},
            {"meritorder": {"exclude": ["ours"]}},
            {"messages": [{"role": "user", "content": words(900)}]},
        ):
            plan = await explain(http, "assistant", **fields)
            assert (await ask(http, "assistant", **fields)).backend == plan["attempts"][0]["backend"]

    async def test_a_split_s_arm_is_that_of_the_request(self, http: aiohttp.ClientSession) -> None:
        for user in ("a", "b", "c", "d"):
            plan = await explain(http, "split", user=user)
            answered = await ask(http, "split", user=user)
            assert answered.headers["x-meritorder-arm"] == plan["arm"]
            assert answered.backend == plan["attempts"][0]["backend"]
            assert list(reasons(plan).values()) == ["other_arm"]


class TestWhatIsLeftOut:
    async def test_every_rejected_candidate_has_its_reason(self, http: aiohttp.ClientSession) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        plan = await explain(http, "everything", messages=[{"role": "user", "content": [image]}])
        assert [attempt["backend"] for attempt in plan["attempts"]] == ["dear/chat"]
        assert reasons(plan) == {
            "ours": "modality", "cheap/chat": "modality", "unpriced/chat": "modality", "vectors/chat": "endpoint",
        }  # fmt: skip
        said = {one["backend"]: one["reason"] for one in plan["rejected"]}
        assert said["cheap/chat"] == "does not take images"
        assert said["vectors/chat"] == "does not serve /v1/chat/completions"

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            pytest.param(
                {"messages": [{"role": "user", "content": words(900)}]}, {"ours": "context_window"}, id="long"
            ),
            pytest.param(
                {"max_tokens": 100, "meritorder": {"max_cost_usd": "0.001"}},
                {"dear/chat": "max_cost", "unpriced/chat": "unpriced"},
                id="a maximal cost",
            ),
            pytest.param(
                {"meritorder": {"backend": "cheap/chat"}},
                dict.fromkeys(("ours", "dear/chat", "unpriced/chat", "vectors/chat"), "excluded"),
                id="one alone",
            ),
        ],
    )
    async def test_what_the_request_asks_for(
        self, http: aiohttp.ClientSession, fields: dict[str, Any], expected: dict[str, str]
    ) -> None:
        plan = await explain(http, "everything", **fields)
        assert reasons(plan) == {"vectors/chat": "endpoint"} | expected

    async def test_one_that_rests_says_for_how_long(self, http: aiohttp.ClientSession, place: Platform) -> None:
        place.script(resting=Behaviour(status=429, headers={"retry-after": "60"}))
        assert (await ask(http, "resting-first")).backend == "cheap/chat"
        [rejected] = (await explain(http, "resting-first"))["rejected"]
        assert (rejected["backend"], rejected["rejection"]) == ("resting/chat", "quota")
        assert 50 < rejected["retry_after_seconds"] <= 60

    async def test_a_plan_without_attempts_is_an_answer_and_no_error(self, http: aiohttp.ClientSession) -> None:
        plan = await explain(http, "vectors/chat")
        assert (plan["attempts"], reasons(plan)) == ([], {"vectors/chat": "endpoint"})
        assert plan["decision"] == "No candidate can be tried; the reasons are in `rejected`."

    async def test_the_endpoint_is_told_by_the_body(self, http: aiohttp.ClientSession) -> None:
        async with http.post("/v1/routes:explain", json={"model": "everything", "input": "a"}) as response:
            plan = await response.json()
        assert plan["endpoint"] == "embeddings"
        assert [attempt["backend"] for attempt in plan["attempts"]] == ["vectors/chat"]


class TestMoney:
    async def test_without_a_budget_none_is_left(self, http: aiohttp.ClientSession) -> None:
        assert (await explain(http, "assistant"))["budget_left_usd"] is None

    async def test_what_the_tightest_budget_has_left(self, place: Platform, http: aiohttp.ClientSession) -> None:
        async with place.client("budgeted") as budgeted:
            assert Decimal((await explain(budgeted, "assistant"))["budget_left_usd"]) == MONTHLY
            answered = await ask(budgeted, "cheap/chat")
            cost = (await recorded(place, answered)).cost
            assert cost > 0

            async def counted() -> bool:
                return Decimal((await explain(budgeted, "assistant"))["budget_left_usd"]) == MONTHLY - cost

            await eventually(counted)

    async def test_what_is_too_dear_for_it_is_left_out(self, place: Platform, http: aiohttp.ClientSession) -> None:
        budget = Budget(Period.DAILY, Decimal("0.001"))
        async with await place.new_client("budgeted", None, budget) as bounded:
            plan = await explain(bounded, "everything", max_tokens=100)
        assert plan["budget_left_usd"] == "0.001"
        assert reasons(plan) == {"dear/chat": "budget", "unpriced/chat": "unpriced", "vectors/chat": "endpoint"}


class TestRefusals:
    @pytest.mark.parametrize(
        ("team", "model", "fields", "status", "code"),
        [
            ("free", "no-such-model", {}, 404, "model_not_found"),
            ("narrow", "everything", {}, 403, "model_not_allowed"),
            ("narrow", "assistant", {"meritorder": {"backend": "ours"}}, 403, "override_not_allowed"),
            ("free", "assistant", {"meritorder": {"backend": "vectors/chat"}}, 400, "invalid_request"),
            ("free", "assistant", {"meritorder": {"colour": "red"}}, 400, "invalid_request"),
            ("free", "assistant", {"messages": []}, 400, "invalid_type"),
        ],
    )
    async def test_what_dispatch_would_refuse_is_refused(
        self, place: Platform, http: aiohttp.ClientSession, team: str, model: str, fields: Any, status: int, code: str
    ) -> None:
        async with place.client(team) as client:
            error = (await explain(client, model, status, **fields))["error"]
            dispatched = await ask(client, model, **fields)
        assert error["code"] == code
        assert (dispatched.status, dispatched.error) == (status, error)

    async def test_a_key_is_needed(self, place: Platform, http: aiohttp.ClientSession) -> None:
        async with place.ingress.session("") as nobody:
            assert (await explain(nobody, "assistant", 401))["error"]["code"] == "missing_api_key"
