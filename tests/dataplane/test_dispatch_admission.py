"""Who is let in, over HTTP: budgets, prices that nobody knows, rates, requests at once, and keys of their own.

A rate is per calendar minute, and a test may run into the next one. So where a limit of N is reached, 2 N + 1 requests
are sent: at least one of them is too many.
"""

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable, Coroutine
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.dataplane.conftest import eventually
from tests.dataplane.scripted import Answered, Platform, ask, model, platform, provider, recorded, route, team, words

from meritorder.core.limits import Budget, Limits, Period
from meritorder.core.usage import Outcome
from meritorder.testing.upstream import Behaviour

pytestmark = pytest.mark.asyncio(loop_scope="session")

RPM, TPM, AT_ONCE = 3, 1000, 2
SPENT_BY_ONE = Decimal("0.001")

MANIFESTS = [
    model("ours"),
    provider("paid", 1, 2),
    provider("dear", 100, 200),
    provider("unpriced", None),
    route("both", "ours", "paid/chat"),
    route("cheap-or-dear", "dear/chat", "paid/chat"),
    route("some-unpriced", "unpriced/chat", "paid/chat"),
    team("free"),
    team("rich", budgets=[{"period": "monthly", "amount": 1000}]),
    team("daily", budgets=[{"period": "daily", "amount": float(SPENT_BY_ONE)}]),
    team("total", budgets=[{"period": "hourly", "amount": 5}, {"period": "total", "amount": 0.00001}]),
    team("modest", budgets=[{"period": "daily", "amount": 0.05}]),
    team("thrifty", budgets=[{"period": "daily", "amount": 0.01}]),
    team("by-requests", limits={"rpm": RPM}),
    team("by-tokens", limits={"tpm": TPM}),
    team("by-place", limits={"concurrency": AT_ONCE}),
]


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with platform(tmp_path_factory.mktemp("admission"), *MANIFESTS) as made:
        yield made


@pytest.fixture(autouse=True)
def _afresh(place: Platform) -> None:
    place.upstream.reset_script()
    place.upstream.clear_requests()


async def first(wanted: int, attempts: int, send: Callable[[], Coroutine[Any, Any, Answered]]) -> Answered:
    """The first answer with that status; all before it are good."""
    for _ in range(attempts):
        answered = await send()
        if answered.status == wanted:
            return answered
        assert answered.status == 200, answered.body
    pytest.fail(f"none of {attempts} requests was answered with {wanted}")


class TestBudgets:
    async def test_a_spent_budget_says_what_it_is_whose_it_is_and_when_it_resets(self, place: Platform) -> None:
        # An answer may be dearer than it says it can be: that is the one thing by which a budget can be exceeded.
        place.script(paid=Behaviour(usage={"prompt_tokens": 2, "completion_tokens": 1000}))
        async with place.client("daily") as http:
            assert (await ask(http, "paid/chat", max_tokens=100)).status == 200
            refused = await ask(http, "paid/chat", max_tokens=100)
        tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
        assert (refused.status, refused.error["code"]) == (402, "budget_exceeded")
        said = refused.error["message"]
        assert said.startswith(
            "The daily budget of the team 'daily' is 0.001 USD, of which 0.00 remain, and the request"
        )
        assert said.endswith(f"ask for a shorter answer (max_tokens), or wait until it resets at {tomorrow} 00:00 UTC.")
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        assert len(place.received("paid")) == 1
        record = await recorded(place, refused)
        assert (record.outcome, record.status, record.charges) == (Outcome.REFUSED, 402, ())

    async def test_one_that_never_resets_names_no_time(self, place: Platform) -> None:
        async with place.client("total") as http:
            refused = await ask(http, "paid/chat", max_tokens=100)
        assert refused.status == 402
        assert refused.error["message"].startswith(
            "The whole budget of the team 'total' is 0.00001 USD, of which 0.00001"
        )
        assert refused.error["message"].endswith("or it does not reset, so ask for a larger one.")
        assert "retry-after" not in refused.headers

    async def test_what_costs_nothing_can_be_had_without_money(self, place: Platform) -> None:
        async with place.client("total") as http:
            answered = await ask(http, "both")
            assert (answered.status, answered.backend) == (200, "ours")
            place.ingress.say({name: url for name, url in place.endpoints.items() if name != "model-ours"})
            try:
                refused = await eventually(lambda: answer_with(http, "both", 503))
                assert "'ours' waits to be deployed; 'paid/chat' may cost " in refused.error["message"], "it may yet be"
            finally:
                place.ingress.say(place.endpoints)
            assert (await eventually(lambda: answer_with(http, "both", 200))).backend == "ours"

    async def test_what_is_too_dear_for_the_rest_of_it_is_passed_over(self, place: Platform) -> None:
        async with place.client("thrifty") as http:
            answered = await ask(http, "cheap-or-dear", max_tokens=100)
            assert answered.backend == "paid/chat"
            refused = await ask(http, "dear/chat", max_tokens=100)  # 0.02 USD for the answer alone
            assert refused.status == 402

    async def test_what_is_reserved_and_not_used_is_had_back(self, place: Platform) -> None:
        # Each may cost more than a third of the budget, and costs a fraction of it.
        place.script(paid=Behaviour(tokens=5))
        async with place.client("modest") as http:
            answers = [await ask(http, "paid/chat", max_tokens=10_000) for _ in range(12)]
        assert {answered.status for answered in answers} == {200}

    async def test_so_it_is_after_an_error(self, place: Platform) -> None:
        place.script(paid=Behaviour(status=400))
        async with place.client("modest") as http:
            answers = [await ask(http, "paid/chat", max_tokens=10_000) for _ in range(12)]
            assert {answered.status for answered in answers} == {400}
            assert (await recorded(place, answers[-1])).cost == 0


class TestUnknownPrices:
    async def test_nobody_with_a_budget_calls_a_model_without_one(self, place: Platform) -> None:
        async with place.client("rich") as http:
            refused = await ask(http, "unpriced/chat")
        assert (refused.status, refused.error["code"]) == (403, "unpriced_model")
        assert "'unpriced/chat' has no price, and this key has a budget" in refused.error["message"]
        assert not place.upstream.requests

    async def test_a_route_has_its_other_candidates(self, place: Platform) -> None:
        async with place.client("rich") as http:
            assert (await ask(http, "some-unpriced")).backend == "paid/chat"

    async def test_without_a_budget_it_is_called_and_its_cost_is_unknown_and_not_zero(self, place: Platform) -> None:
        async with place.client("free") as http:
            answered = await ask(http, "unpriced/chat")
        assert answered.status == 200
        assert "x-meritorder-cost-usd" not in answered.headers
        [charge] = (await recorded(place, answered)).charges
        assert (charge.cost, charge.usage.output_tokens) == (None, 16)


class TestRates:
    async def test_requests_per_minute(self, place: Platform) -> None:
        async with place.client("by-requests") as http:
            answered = await ask(http, "ours")
            assert answered.headers["x-ratelimit-limit-requests"] == str(RPM)
            assert 0 <= int(answered.headers["x-ratelimit-remaining-requests"]) < RPM
            assert 0 < int(answered.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
            assert not any("tokens" in name.lower() for name in answered.headers if name.lower().startswith("x-rate"))
            refused = await first(429, 2 * RPM, lambda: ask(http, "ours"))
        assert refused.error["code"] == "rate_limit_exceeded"
        assert refused.error["type"] == "rate_limit_error"
        assert refused.error["message"].startswith(
            f"The limit of {RPM} requests per minute of the team 'by-requests' is reached, 0 remain; send the "
        )
        assert 0 < int(refused.headers["retry-after"]) <= 60

    async def test_tokens_per_minute_of_prompt_and_answer_together(self, place: Platform) -> None:
        async def send() -> Answered:
            # 200 tokens of answer are asked for, and 16 come, so that 216 are what it is charged in the end.
            return await ask(http, "ours", messages=[{"role": "user", "content": words(200)}], max_tokens=200)

        async with place.client("by-tokens") as http:
            answered = await send()
            assert answered.headers["x-ratelimit-limit-tokens"] == str(TPM)
            left = int(answered.headers["x-ratelimit-remaining-tokens"])
            assert left <= TPM - 400
            refused = await first(429, 2 * (TPM // 216 + 1), send)
        assert refused.error["message"].startswith(
            f"The request may use 400 tokens, prompt and answer together, and of the {TPM:,} per minute of the team "
            "'by-tokens' "
        )
        assert 0 < int(refused.headers["retry-after"]) <= 60

    async def test_what_no_minute_has_room_for_is_not_worth_a_retry(self, place: Platform) -> None:
        async with place.client("by-tokens") as http:
            refused = await ask(http, "ours", max_tokens=TPM + 1)
        assert refused.status == 429
        assert "send a shorter prompt or a smaller max_tokens" in refused.error["message"]
        assert "retry-after" not in refused.headers

    async def test_requests_at_once(self, place: Platform) -> None:
        place.script(ours=Behaviour(hang=True))
        async with place.client("by-place") as http:
            open_ones = [asyncio.create_task(ask(http, "ours")) for _ in range(AT_ONCE)]
            await place.wait_for("ours", AT_ONCE)
            refused = await ask(http, "ours")
            assert refused.status == 429
            assert refused.error["message"].startswith(
                f"The limit of {AT_ONCE} requests at once of the team 'by-place' is reached, 0 remain;"
            )
            assert refused.headers["retry-after"] == "1"
            place.upstream.reset_script()
            open_ones.pop().cancel()  # its client leaves, and so there is a place
            assert (await eventually(lambda: answer_with(http, "ours", 200))).backend == "ours"
            open_ones.pop().cancel()

    async def test_a_refused_request_has_no_record(self, place: Platform) -> None:
        async with place.client("by-requests") as http:
            refused = await first(429, 2 * RPM + 1, lambda: ask(http, "ours"))
        async with place.client("free") as http:
            await recorded(place, await ask(http, "ours"))
        assert place.ingress.records([refused.request_id]) == []


class TestKeysOfTheirOwn:
    async def test_a_key_has_its_rate_beside_its_team_s(self, place: Platform) -> None:
        async with (
            await place.new_client("rich", Limits(requests_per_minute=1)) as bounded,
            place.client("rich") as other,
        ):
            refused = await first(429, 3, lambda: ask(bounded, "ours"))
            assert "requests per minute of the key 'key_" in refused.error["message"]
            assert (await ask(other, "ours")).status == 200, "the other keys of the team go on"

    async def test_a_key_has_its_budget_beside_its_team_s(self, place: Platform) -> None:
        budget = Budget(Period.DAILY, Decimal("0.0001"))
        async with (
            await place.new_client("rich", None, budget) as bounded,
            place.client("rich") as other,
        ):
            refused = await ask(bounded, "paid/chat", max_tokens=100)
            assert refused.status == 402
            assert refused.error["message"].startswith("The daily budget of the key 'key_")
            assert (await ask(other, "paid/chat", max_tokens=100)).status == 200

    async def test_the_tighter_of_two_budgets_counts(self, place: Platform) -> None:
        async with await place.new_client("total", None, Budget(Period.MONTHLY, Decimal(100))) as http:
            refused = await ask(http, "paid/chat", max_tokens=100)
        assert refused.error["message"].startswith("The whole budget of the team 'total'")


async def answer_with(http: aiohttp.ClientSession, model: str, status: int) -> Answered | None:
    answered = await ask(http, model)
    return answered if answered.status == status else None
