"""Requests that are answered: the endpoints, the way through the route, and what is written down of it."""

import asyncio
import re
from collections import Counter
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from tests.dataplane.conftest import CLOSE, WAIT, Ingress, RawBackend, Upstreams, chat, eventually, whole

from meritorder.core.tokens import estimated_tokens
from meritorder.core.usage import Outcome
from meritorder.ledger.keys import KeyStore
from meritorder.testing.upstream import Behaviour, Rule, Script

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}'


class TestEndpoints:
    async def test_chat_completions(self, openai: AsyncOpenAI, upstreams: Upstreams, ingress: Ingress) -> None:
        answer = await openai.chat.completions.create(**chat())
        assert answer.choices[0].message.content
        [received] = upstreams.first.requests
        assert (received.path, received.model) == ("/v1/chat/completions", "sim-first")
        assert answer._request_id is not None
        record = await ingress.record(answer._request_id)
        assert answer.usage is not None
        assert (record.usage.input_tokens, record.usage.output_tokens) == (
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
        )
        assert (record.team, record.route, record.endpoint) == ("demo", "assistant", "chat/completions")
        assert (record.backend, record.tier, record.outcome) == ("first/chat", "hosted", Outcome.COMPLETED)
        assert record.cost == Decimal(answer.usage.prompt_tokens + 2 * answer.usage.completion_tokens) / 10**6

    async def test_completions(self, openai: AsyncOpenAI) -> None:
        answer = await openai.completions.create(model="assistant", prompt="hello", max_tokens=3)
        assert answer.choices[0].finish_reason == "length"

    async def test_streamed_completions(self, openai: AsyncOpenAI) -> None:
        events = await openai.completions.create(model="assistant", prompt="hello", stream=True)
        assert "".join([event.choices[0].text async for event in events])

    async def test_embeddings(self, openai: AsyncOpenAI, ingress: Ingress) -> None:
        answer = await openai.embeddings.create(model="first/embedding", input=["one", "two"], dimensions=4)
        assert [len(one.embedding) for one in answer.data] == [4, 4]

        assert answer._request_id is not None
        record = await ingress.record(answer._request_id)
        assert (record.usage.input_tokens, record.usage.output_tokens) == (answer.usage.prompt_tokens, 0)
        assert not record.usage.estimated

    @pytest.mark.parametrize("usage", [b"", b',"usage":{}', b',"usage":{"input_tokens":9}'])
    async def test_an_answer_whose_usage_cannot_be_read_is_not_free(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress, usage: bytes
    ) -> None:
        body = b'{"choices":[{"message":{"content":"' + b"word " * 500 + b'"}}]' + usage + b"}"
        upstreams.raw.reset(whole(body))
        async with http.post("/v1/chat/completions", json=chat("raw/chat")) as response:
            record = await ingress.record(response.headers["x-request-id"])
        assert record.usage.estimated
        assert record.usage.output_tokens == estimated_tokens(len(body))
        assert record.cost > Decimal("0.001")

    async def test_what_a_whole_answer_cost_is_in_its_headers_and_the_same_in_the_ledger(
        self, http: aiohttp.ClientSession, ingress: Ingress
    ) -> None:
        async with http.post("/v1/chat/completions", json=chat(max_tokens=3)) as response:
            usage = (await response.json())["usage"]
            cost = Decimal(response.headers["x-meritorder-cost-usd"])
            record = await ingress.record(response.headers["x-request-id"])
        assert cost == record.cost == Decimal(usage["prompt_tokens"] + 2 * 3) / 10**6
        assert response.headers["x-meritorder-attempts"] == "1"

    async def test_what_a_stream_costs_is_not_known_when_its_headers_go(self, http: aiohttp.ClientSession) -> None:
        async with http.post("/v1/chat/completions", json=chat(stream=True)) as response:
            assert response.headers["x-meritorder-backend"] == "first/chat"
            assert "x-meritorder-cost-usd" not in response.headers

    async def test_a_request_that_nothing_limits_is_told_of_no_limits(self, http: aiohttp.ClientSession) -> None:
        async with http.post("/v1/chat/completions", json=chat()) as response:
            assert not [name for name in response.headers if name.lower().startswith("x-ratelimit-")]

    async def test_the_record_names_the_key(self, http: aiohttp.ClientSession, ingress: Ingress) -> None:
        async with http.post("/v1/chat/completions", json=chat()) as response:
            record = await ingress.record(response.headers["x-request-id"])
        with ingress.database() as engine:
            [key] = [key for key in KeyStore(engine, b"").list() if key.team == "demo"]
        assert record.key_id == key.id

    async def test_models_are_the_routes_and_each_backend_by_its_own_name(self, openai: AsyncOpenAI) -> None:
        models = [model.id async for model in openai.models.list()]
        assert models == [
            *("assistant", "spilling", "raw-first", "once", "raw-once", "patient"),
            *("broken", "first/chat", "first/embedding", "first/patient-one", "first/patient-two"),
            *("second/chat", "small/chat", "raw/chat"),
        ]

    async def test_unknown_fields_survive_in_a_whole_answer(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        body = b'{ "x_new" : {"b":1.50,"a":[]}, "choices":[]  ,"usage":null}\n'
        upstreams.raw.reset(whole(body))
        async with http.post("/v1/chat/completions", json=chat("raw/chat")) as response:
            assert await response.read() == body
            assert response.headers["content-length"] == str(len(body))

    async def test_healthz_asks_nothing_else(self, ingress: Ingress) -> None:
        async with ingress.session(key="") as http, http.get("/healthz") as response:
            assert await response.json() == {"status": "alive"}

    async def test_readyz_says_why_a_model_failed(self, ingress: Ingress) -> None:
        async with ingress.session(key="") as http, http.get("/readyz") as response:
            assert response.status == 200
            report = await response.json()
        assert report["status"] == "ready"
        assert {
            "application": "model-broken",
            "phase": "Failed",
            "message": "the weights are not at hf://org/broken",
        } in (report["applications"])
        assert {"route": "assistant", "ready": ["first/chat", "second/chat"], "candidates": 2} in report["routes"]
        assert {"route": "broken", "ready": [], "candidates": 1} in report["routes"]
        assert report["configuration"] == {"generation": 1, "problem": None}


class TestRequestIds:
    @pytest.mark.parametrize("given", ["trace-1", "a" * 128, "0af7651916cd43dd:8448eb211c80319c"])
    async def test_a_plain_one_is_kept(self, http: aiohttp.ClientSession, ingress: Ingress, given: str) -> None:
        async with http.post("/v1/chat/completions", json=chat(), headers={"x-request-id": given}) as response:
            assert response.headers["x-request-id"] == given
        assert (await ingress.record(given)).outcome is Outcome.COMPLETED

    @pytest.mark.parametrize("given", ["", "a" * 129, "two words", "<script>", "ümlaut"])
    async def test_any_other_is_replaced(self, http: aiohttp.ClientSession, given: str) -> None:
        async with http.post("/v1/chat/completions", json=chat(), headers={"x-request-id": given}) as response:
            assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])

    async def test_one_that_is_used_twice_is_recorded_twice(
        self, http: aiohttp.ClientSession, ingress: Ingress
    ) -> None:
        for _ in range(2):
            async with http.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "again"}) as response:
                assert response.status == 200

        async def both() -> bool:
            return len(await asyncio.to_thread(ingress.records, ["again"])) == 2

        await eventually(both)


class TestTheWayThroughARoute:
    async def test_what_the_first_backend_has_no_room_for_goes_to_the_second(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(hang=True)))
        waiting = [asyncio.create_task(backend_of(http, "spilling")) for _ in range(2)]
        await upstreams.first.wait_until(lambda requests: len(requests) == 2)
        assert await backend_of(http, "spilling") == "second/chat"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def test_a_burst_fills_the_first_to_the_brim_and_no_further(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        # Each answer begins long after the whole burst has come.
        slow = Script.always(Behaviour(ttft_ms=700))
        upstreams.first.set_script(slow)
        upstreams.second.set_script(slow)
        backends = await asyncio.gather(*(backend_of(http, "spilling") for _ in range(40)))
        assert Counter(backends) == {"small/chat": 2, "second/chat": 38}

    async def test_a_backend_that_is_down_is_spared_for_a_while(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(status=503)))
        assert [await backend_of(http) for _ in range(3)] == ["second/chat"] * 3
        assert len(upstreams.first.requests) == 1

    async def test_and_comes_back(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        upstreams.first.set_script(Script.always(Behaviour(status=503)))
        assert await backend_of(http) == "second/chat"
        upstreams.first.reset_script()

        async def back() -> bool:
            return await backend_of(http) == "first/chat"

        await eventually(back)

    async def test_it_is_still_asked_where_there_is_no_other(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(status=503)))
        for expected in (2, 4):  # each request tries again once, after a pause
            async with http.post("/v1/chat/completions", json=chat("first/chat")) as response:
                assert response.status == 502
            assert len(upstreams.first.requests) == expected

    async def test_all_are_gone_through_again_where_they_failed_for_reasons_that_pass(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.first.set_script(Script(rules=[Rule(times=1, behaviour=Behaviour(status=500))]))
        upstreams.second.set_script(Script.always(Behaviour(refuse_connection=True)))
        async with http.post("/v1/chat/completions", json=chat()) as response:
            assert response.status == 200
            assert response.headers["x-meritorder-backend"] == "first/chat"
            assert response.headers["x-meritorder-attempts"] == "3"
        assert (len(upstreams.first.requests), len(upstreams.second.requests)) == (2, 1)

    async def test_and_not_where_they_do_not(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        for upstream in (upstreams.first, upstreams.second):
            upstream.set_script(Script.always(Behaviour(status=401)))
        async with http.post("/v1/chat/completions", json=chat()) as response:
            assert response.status == 502
            said = (await response.json())["error"]["message"]
        assert "Ask those who run this platform" in said
        assert (len(upstreams.first.requests), len(upstreams.second.requests)) == (1, 1)

    async def test_one_that_breaks_every_stream_is_spared_too(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(fail_after_chunks=5, ttft_ms=1, itl_ms=20)))
        backends = [await backend_of(http, stream=True) for _ in range(4)]
        assert backends == ["first/chat"] * 3 + ["second/chat"]

    async def test_many_at_once(self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress) -> None:
        async def one(number: int) -> bytes:
            headers = {"x-request-id": f"burst-{number}"}
            body = chat(stream=number % 2 == 0)
            async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == 200
                return await response.read()

        await asyncio.gather(*(one(number) for number in range(200)))

        async def all_written() -> list[Any]:
            records = await asyncio.to_thread(ingress.records, [f"burst-{number}" for number in range(200)])
            return records if len(records) == 200 else []

        assert {record.outcome for record in await eventually(all_written)} == {Outcome.COMPLETED}


class TestConnectionsToBackends:
    async def test_a_connection_is_used_again(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        upstreams.raw.reset(whole(ANSWER))
        for _ in range(5):
            await backend_of(http, "raw/chat")
        assert upstreams.raw.connections <= 1

    async def test_a_backend_that_dies_at_work_does_not_get_the_request_again(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        raw: RawBackend = upstreams.raw
        raw.reset(whole(ANSWER), (WAIT, CLOSE), whole(ANSWER))
        assert await backend_of(http, "raw-first") == "raw/chat"
        request = asyncio.create_task(backend_of(http, "raw-first"))

        async def asked() -> bool:
            return len(raw.bodies) == 2

        await eventually(asked)
        await asyncio.sleep(0.5)  # it works
        raw.go.set()
        assert await request == "second/chat"
        assert len(raw.bodies) == 2

    async def test_a_new_one_that_is_closed_is_a_failure(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.raw.reset((CLOSE,))
        await backend_of(http, "raw-first")  # whatever connection there was is now used up
        upstreams.raw.reset((CLOSE,))
        async with http.post("/v1/chat/completions", json=chat("raw-once")) as response:
            assert response.status == 502
        assert len(upstreams.raw.bodies) == 1

    async def test_an_answer_in_pieces(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        answer = whole(ANSWER)
        upstreams.raw.reset((answer[:30], WAIT, answer[30:]))
        request = asyncio.create_task(backend_of(http, "raw/chat"))

        async def asked() -> bool:
            return bool(upstreams.raw.bodies)

        await eventually(asked)
        upstreams.raw.go.set()
        assert await request == "raw/chat"


class TestMetrics:
    async def test_what_is_counted(self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress) -> None:
        before = await metrics(http)
        upstreams.raw.reset(whole(ANSWER))
        await backend_of(http, "raw/chat")
        upstreams.first.set_script(Script.always(Behaviour(status=500)))
        await backend_of(http)
        async with http.post("/v1/chat/completions", json={}):
            pass
        after = await metrics(http)
        served = (
            'arm="",backend="raw/chat",endpoint="chat/completions",outcome="completed",route="raw/chat",team="demo"'
        )
        assert (
            grown(before, after)
            >= {
                f"meritorder_requests_total{{{served}}}": 1.0,
                'meritorder_tokens_total{backend="raw/chat",direction="output",team="demo"}': 7.0,
                'meritorder_cost_usd_total{backend="raw/chat",team="demo"}': 0.000019,
                'meritorder_attempts_total{backend="first/chat",outcome="server_error"}': 1.0,
                'meritorder_attempts_total{backend="second/chat",outcome="ok"}': 1.0,
                'meritorder_errors_total{code="missing_field"}': 1.0,
            }.items()
        )

    async def test_the_state_of_each_circuit(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        def states(of: dict[str, float]) -> list[float]:
            names = [
                f'meritorder_circuit_state{{backend="first/chat",state="{state}"}}' for state in ("closed", "open")
            ]
            return [of[name] for name in names]

        assert states(await metrics(http)) == [1.0, 0.0]
        upstreams.first.set_script(Script.always(Behaviour(status=503)))
        await backend_of(http)
        assert states(await metrics(http)) == [0.0, 1.0]

    async def test_requests_in_flight(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        upstreams.first.set_script(Script.always(Behaviour(hang=True)))
        request = asyncio.create_task(backend_of(http, "first/chat"))
        await upstreams.first.wait_until(lambda requests: requests)
        gauge = 'meritorder_in_flight_requests{backend="first/chat"}'
        assert (await metrics(http))[gauge] == 1.0
        request.cancel()

        async def none() -> bool:
            return (await metrics(http))[gauge] == 0.0

        await eventually(none)

    async def test_what_a_client_sends_is_no_label(self, http: aiohttp.ClientSession) -> None:
        async with http.post("/v1/chat/completions", json=chat("made-up-by-a-client")) as response:
            assert response.status == 404
        async with http.get("/metrics") as response:
            assert "made-up-by-a-client" not in await response.text()


async def backend_of(http: aiohttp.ClientSession, model: str = "assistant", **fields: Any) -> str:
    """Send a request, read its answer, and tell who gave it."""
    async with http.post("/v1/chat/completions", json=chat(model, **fields)) as response:
        await response.read()
        assert response.status == 200
        return response.headers["x-meritorder-backend"]


async def metrics(http: aiohttp.ClientSession) -> dict[str, float]:
    async with http.get("/metrics") as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def grown(before: dict[str, float], after: dict[str, float]) -> Any:
    """The metrics that have grown, and by how much."""
    return {
        name: round(value - before.get(name, 0.0), 9) for name, value in after.items() if value > before.get(name, 0.0)
    }.items()
