"""docs/reference/stream-contract.md, heading by heading."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import aiohttp
import openai as sdk
import pytest
from openai import AsyncOpenAI
from tests.dataplane.conftest import (
    CLOSE,
    HOLD,
    WAIT,
    Ingress,
    RawBackend,
    Upstreams,
    chat,
    eventually,
    streamed,
    whole,
)

from meritorder.core.tokens import estimated_tokens
from meritorder.core.usage import Outcome, Usage
from meritorder.testing.upstream import Behaviour, ReceivedRequest, Rule, Script

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"secret of the backend","code":500}}\n\n'


async def stream(
    http: aiohttp.ClientSession, model: str, begun: asyncio.Event | None = None, **fields: Any
) -> tuple[aiohttp.ClientResponse, bytes]:
    """Send a request and read all of its answer; `begun` is set when the client has the head of it."""
    async with http.post("/v1/chat/completions", json=chat(model, stream=True, **fields)) as response:
        if begun:
            begun.set()
        return response, await response.read()


def error_of(body: bytes) -> dict[str, Any]:
    """The error in the last event of `body`."""
    last = body.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
    error: dict[str, Any] = json.loads(last.removeprefix(b"data: "))["error"]
    return error


class TestBeforeTheFirstTokenAnotherBackendMayAnswer:
    @pytest.mark.parametrize(
        "behaviour",
        [
            Behaviour(status=500),
            Behaviour(status=503),
            Behaviour(status=429),
            Behaviour(status=401),
            Behaviour(status=403),
            Behaviour(status=404),
            Behaviour(status=402),
            Behaviour(refuse_connection=True),
            Behaviour(fail_after_chunks=0, fail_mode="close"),
            Behaviour(fail_after_chunks=0, fail_mode="malformed"),
            Behaviour(fail_after_chunks=0, fail_mode="error_event"),
            Behaviour(fail_after_chunks=1, fail_mode="close"),
            Behaviour(fail_after_chunks=1, fail_mode="error_event"),
        ],
        ids=lambda behaviour: " ".join(
            f"{name}={value}" for name, value in behaviour.model_dump(exclude_unset=True).items()
        ),
    )
    async def test_a_failed_attempt_moves_on(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, behaviour: Behaviour
    ) -> None:
        upstreams.first.set_script(Script.always(behaviour))
        response, body = await stream(http, "assistant")
        assert response.status == 200
        assert response.headers["x-meritorder-backend"] == "second/chat"
        assert response.headers["x-meritorder-attempts"] == "2"
        assert body.endswith(DONE)
        assert len(upstreams.second.requests) == 1

    async def test_an_event_with_nothing_but_a_role_is_not_an_answer_yet(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.raw.reset(streamed(ROLE, ERROR))
        response, body = await stream(http, "raw-first")
        assert response.headers["x-meritorder-backend"] == "second/chat"
        assert body.count(b'"role"') == 1

    async def test_an_error_in_the_same_packet_as_the_first_token_comes_in_time(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.raw.reset(streamed(TOKEN + ERROR))
        response, _ = await stream(http, "raw-first")
        assert response.headers["x-meritorder-backend"] == "second/chat"

    async def test_an_empty_answer_is_an_answer(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        upstreams.raw.reset(streamed(ROLE, FINISH, DONE))
        response, body = await stream(http, "raw-first")
        assert response.headers["x-meritorder-backend"] == "raw/chat"
        assert body == ROLE + FINISH + DONE

    async def test_where_all_fail_the_answer_is_an_error_response(
        self, openai: AsyncOpenAI, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(status=500)))
        upstreams.second.set_script(Script.always(Behaviour(refuse_connection=True)))
        with pytest.raises(sdk.InternalServerError) as caught:
            await openai.chat.completions.create(**chat("once", stream=True))
        assert caught.value.status_code == 502
        assert caught.value.code == "backends_failed"
        assert "'first/chat' failed (HTTP 500); 'second/chat' is not available (HTTP 502)" in str(caught.value)
        record = await ingress.record(caught.value.request_id or "")
        assert (record.outcome, record.status, record.attempts) == (Outcome.FAILED, 502, 2)
        assert (record.backend, record.charges) == (None, ())

    async def test_where_all_failed_for_a_reason_that_passes_they_are_gone_through_again(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        for upstream in (upstreams.first, upstreams.second):
            upstream.set_script(Script(rules=[Rule(times=1, behaviour=Behaviour(status=500))]))
        response, body = await stream(http, "assistant")
        assert response.headers["x-meritorder-backend"] == "first/chat"
        assert response.headers["x-meritorder-attempts"] == "3"
        assert body.endswith(DONE)
        record = await ingress.record(response.headers["x-request-id"])
        assert (record.outcome, record.attempts, len(record.charges)) == (Outcome.COMPLETED, 3, 1)

    async def test_where_all_are_busy_the_client_is_told_when_to_come_back_and_they_are_left_alone_until_then(
        self, openai: AsyncOpenAI, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        busy = [Behaviour(status=429, headers={"retry-after": seconds}) for seconds in ("700", "300")]
        upstreams.first.set_script(Script(rules=[Rule(times=1, behaviour=one) for one in busy]))
        for attempts in (2, 0):
            with pytest.raises(sdk.RateLimitError) as caught:
                await openai.chat.completions.create(**chat("patient", stream=True))
            assert caught.value.code == "backends_busy"
            assert 290 < int(caught.value.response.headers["retry-after"]) <= 300, "when the first is back"
            record = await ingress.record(caught.value.request_id or "")
            assert (record.outcome, record.status, record.attempts) == (Outcome.FAILED, 429, attempts)
            assert (record.backend, record.charges) == (None, ())
        assert len(upstreams.first.requests) == 2

    async def test_the_ledger_names_the_backend_that_answered(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(status=500)))
        response, _ = await stream(http, "assistant")
        record = await ingress.record(response.headers["x-request-id"])
        assert (record.backend, record.outcome, record.attempts) == ("second/chat", Outcome.COMPLETED, 2)
        assert record.time_to_first_token is not None
        assert record.cost > 0


BREAKS = [
    pytest.param((TOKEN, CLOSE), "closed the connection", id="the connection is cut"),
    pytest.param((TOKEN, TOKEN[:20], CLOSE), "closed the connection", id="the connection is cut in an event"),
    pytest.param((TOKEN, None), "ended its stream too soon", id="the stream ends too soon"),
    pytest.param((TOKEN, ERROR), "reported an error in its stream (status 500)", id="the backend reports an error"),
    pytest.param((TOKEN, b"data: {nonsense\n\n"), "sent what is no event with JSON", id="an event is malformed"),
    pytest.param((TOKEN, b"<html>\n\n"), "sent what is no event with JSON", id="there is HTML in between"),
]


def usage_in(body: bytes) -> dict[str, Any]:
    """The usage in the event before the last one."""
    usage: dict[str, Any] = json.loads(body.split(b"\n\n")[-3].removeprefix(b"data: "))["usage"]
    return usage


class TestAfterTheFirstTokenTheAnswerStaysWithItsBackend:
    @pytest.mark.parametrize(("parts", "reason"), BREAKS)
    async def test_a_broken_stream_ends_with_one_error_event(
        self,
        http: aiohttp.ClientSession,
        upstreams: Upstreams,
        ingress: Ingress,
        parts: tuple[bytes | None, ...],
        reason: str,
    ) -> None:
        upstreams.raw.reset(reply(parts))
        response, body = await stream(http, "raw-first", upstreams.raw.go)
        assert response.status == 200
        assert body.startswith(TOKEN)
        assert error_of(body) == {
            "message": f"'raw/chat' {reason}; the answer is incomplete, send the request again.",
            "type": "server_error",
            "param": None,
            "code": "stream_broken",
        }
        assert upstreams.second.requests == ()
        record = await ingress.record(response.headers["x-request-id"])
        assert (record.outcome, record.backend, record.attempts) == (Outcome.FAILED, "raw/chat", 1)
        assert (record.usage.output_tokens, record.usage.estimated) == (1, True)

    async def test_what_came_in_the_same_packet_before_the_error_is_delivered(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.raw.reset(streamed(TOKEN, WAIT, TOKEN + TOKEN + ERROR))
        _, body = await stream(http, "raw/chat", upstreams.raw.go)
        assert body.count(TOKEN) == 3

    async def test_the_sdk_raises_at_the_error_event(self, openai: AsyncOpenAI, upstreams: Upstreams) -> None:
        upstreams.first.set_script(Script.always(Behaviour(fail_after_chunks=4, text="one two three four five")))
        answer = await openai.chat.completions.create(**chat(stream=True))
        seen: list[str] = []

        async def read() -> None:
            async for event in answer:
                seen.append(event.choices[0].delta.content or "")

        with pytest.raises(sdk.APIError, match="'first/chat' closed the connection"):
            await read()
        assert "".join(seen).split() == ["one", "two", "three"]

    async def test_a_backend_s_own_error_text_is_not_passed_on(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.raw.reset(streamed(TOKEN, WAIT, ERROR))
        _, body = await stream(http, "raw/chat", upstreams.raw.go)
        assert error_of(body)["code"] == "stream_broken"
        assert b"secret of the backend" not in body


class TestDoneMeansThatTheAnswerIsComplete:
    @pytest.mark.parametrize(("parts", "reason"), BREAKS)
    async def test_a_broken_stream_never_has_it(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, parts: tuple[bytes | None, ...], reason: str
    ) -> None:
        upstreams.raw.reset(reply(parts))
        _, body = await stream(http, "raw/chat", upstreams.raw.go)
        assert body.startswith(TOKEN)
        assert b"[DONE]" not in body

    async def test_a_complete_stream_ends_with_it(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        response, body = await stream(http, "assistant")
        assert body.endswith(DONE)
        assert body.count(DONE) == 1
        assert (await ingress.record(response.headers["x-request-id"])).outcome is Outcome.COMPLETED

    async def test_it_may_lack_its_empty_line(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        upstreams.raw.reset(streamed(TOKEN, b"data: [DONE]"))
        _, body = await stream(http, "raw/chat")
        assert body == TOKEN + DONE

    async def test_the_client_need_not_wait_for_what_follows_it(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.raw.reset((*streamed(TOKEN, DONE, end=False), HOLD))
        async with asyncio.timeout(0.9):  # the backend's connection is given up after a second
            _, body = await stream(http, "raw/chat")
        assert body.endswith(DONE)


class TestTheUsageEventComesToWhoAsksForIt:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            pytest.param({}, False, id="not asked"),
            pytest.param({"stream_options": None}, False, id="null"),
            pytest.param({"stream_options": {}}, False, id="options without it"),
            pytest.param({"stream_options": {"include_usage": False}}, False, id="asked not to"),
            pytest.param({"stream_options": {"include_usage": True}}, True, id="asked"),
        ],
    )
    async def test_usage_event(
        self,
        http: aiohttp.ClientSession,
        upstreams: Upstreams,
        ingress: Ingress,
        fields: dict[str, Any],
        expected: bool,
    ) -> None:
        upstreams.raw.reset(streamed(TOKEN, USAGE, DONE))
        response, body = await stream(http, "raw/chat", **fields)
        assert body.startswith(TOKEN)
        assert body.endswith(DONE)
        assert (b'"usage"' in body) == expected
        assert body.count(b"data: ") == (3 if expected else 2)
        record = await ingress.record(response.headers["x-request-id"])
        assert (record.usage.input_tokens, record.usage.output_tokens, record.usage.estimated) == (3, 1, False)

    async def test_it_tells_who_answered_and_what_it_cost(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(status=500)))
        response, body = await stream(http, "assistant", stream_options={"include_usage": True})
        record = await ingress.record(response.headers["x-request-id"])
        usage = usage_in(body)
        assert usage.pop("meritorder") == {
            "request_id": response.headers["x-request-id"],
            "backend": "second/chat",
            "attempts": 2,
            "cost_usd": format(record.cost, "f"),
        }
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (
            record.usage.input_tokens,
            record.usage.output_tokens,
        )
        assert record.cost == Decimal(10 * record.usage.input_tokens + 20 * record.usage.output_tokens) / 10**6

    async def test_all_else_in_it_stays_as_it_was(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        odd = b'{ "x_new":1.50 ,"choices": [ ],"usage":{"prompt_tokens":3,"completion_tokens":1,"x_cost": 1e-3}}'
        upstreams.raw.reset(streamed(TOKEN, b"data: " + odd + b"\n\n", DONE))
        _, body = await stream(http, "raw/chat", stream_options={"include_usage": True})
        assert b'"x_new":1.50' in body
        assert b'"x_cost":1e-3' in body
        told = usage_in(body)
        assert told.pop("meritorder")["cost_usd"] == "0.000005"
        assert told == {"prompt_tokens": 3, "completion_tokens": 1, "x_cost": 1e-3}

    async def test_the_sdk_reads_it(self, openai: AsyncOpenAI) -> None:
        events = await openai.chat.completions.create(**chat(stream=True, stream_options={"include_usage": True}))
        [usage] = [event.usage async for event in events if event.usage]
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.model_extra is not None
        assert usage.model_extra["meritorder"]["backend"] == "first/chat"

    async def test_the_backend_is_always_asked(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        upstreams.raw.reset(streamed(TOKEN, DONE))
        await stream(http, "raw/chat", stream_options={"continuous_usage_stats": True})
        sent = json.loads(upstreams.raw.bodies[0])
        assert sent["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}

    async def test_usage_inside_a_content_event_stays(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        both = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":9,"completion_tokens":8}}\n\n'
        upstreams.raw.reset(streamed(both, DONE))
        response, body = await stream(http, "raw/chat")
        assert body == both + DONE
        record = await ingress.record(response.headers["x-request-id"])
        assert (record.usage.input_tokens, record.usage.output_tokens) == (9, 8)

    @pytest.mark.parametrize("usage", [b'"many"', b'{"prompt_tokens":"x"}', b'{"prompt_tokens":-1}', b"[]", b"1e99"])
    async def test_usage_in_a_shape_of_its_own_does_not_break_the_stream(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress, usage: bytes
    ) -> None:
        odd = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":' + usage + b"}\n\n"
        upstreams.raw.reset(streamed(odd, DONE))
        response, body = await stream(http, "raw/chat")
        assert body == odd + DONE
        assert (await ingress.record(response.headers["x-request-id"])).outcome is Outcome.COMPLETED


class TestEventsPassThroughByteForByte:
    @pytest.mark.parametrize(
        "events",
        [
            pytest.param((ROLE, TOKEN, FINISH, DONE), id="as a stream is"),
            pytest.param(
                (b'data:{ "choices" : [{"delta":{"content":"\\u00e9"}}], "x_new":1.0 }\n\n', DONE), id="spaces"
            ),
            pytest.param((TOKEN.replace(b"\n", b"\r\n"), DONE.replace(b"\n", b"\r\n")), id="CR LF"),
            pytest.param((b": ping\n\n", b": ping\n\n", TOKEN, b": ping\n\n", DONE), id="comments"),
            pytest.param((b"event: message\nid: 7\n" + TOKEN, DONE), id="other fields of an event"),
            pytest.param((b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n', DONE), id="data in two lines"),
            pytest.param((b'data: {"choices":[],"prompt_filter_results":[]}\n\n', TOKEN, DONE), id="no choice"),
            pytest.param((b'data: {"choices":[{"new_kind_of_delta":1}]}\n\n', DONE), id="a choice of a new kind"),
        ],
    )
    @pytest.mark.parametrize("size", [1, 7, 4096])
    async def test_events(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, events: Sequence[bytes], size: int
    ) -> None:
        sent = b"".join(events)
        upstreams.raw.reset(streamed(*(sent[at : at + size] for at in range(0, len(sent), size))))
        _, body = await stream(http, "raw/chat")
        assert body == sent

    async def test_unknown_fields_of_a_request_survive(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        upstreams.raw.reset(streamed(TOKEN, DONE))
        new = b'"x_new": {"b" :1.50, "a":[ 1e3,"\\u00e9\xc3\xa9" ]}'
        body = b'{"stream":true,"model":"raw/chat",' + new + b',"messages":[ {"role":"user", "zz":null} ]}'
        async with http.post("/v1/chat/completions", data=body) as response:
            assert response.status == 200
        [received] = upstreams.raw.bodies
        assert b'{"b" :1.50, "a":[ 1e3,"\\u00e9\xc3\xa9" ]}' in received
        assert b'[ {"role":"user", "zz":null} ]' in received
        assert json.loads(received)["model"] == "sim-raw"


class TestAClientThatLeavesStopsTheBackend:
    @pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
    async def test_while_it_waits_for_the_first_byte(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress, streams: bool
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(hang=True)))
        request_id = f"leaves-early-{streams}"
        async with left_after(http, chat("first/chat", stream=streams), request_id):
            await upstreams.first.wait_until(lambda requests: requests and requests[0].body)
        await upstreams.first.wait_until(lambda requests: requests[0].outcome == "client_disconnected", 1.0)
        record = await ingress.record(request_id)
        assert (record.outcome, record.status, record.backend) == (Outcome.DISCONNECTED, 499, "first/chat")
        assert record.time_to_first_token is None
        assert record.usage == Usage(estimated_tokens(len("hello")), 0, estimated=True), "it had the prompt"
        assert record.cost == Decimal(record.usage.input_tokens) / 10**6

    async def test_in_the_second_attempt(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(status=500)))
        upstreams.second.set_script(Script.always(Behaviour(hang=True)))
        async with left_after(http, chat("assistant"), "leaves-second"):
            await upstreams.second.wait_until(lambda requests: requests and requests[0].body)
        await upstreams.second.wait_until(lambda requests: requests[0].outcome == "client_disconnected", 1.0)
        record = await ingress.record("leaves-second")
        assert (record.outcome, record.status, record.attempts) == (Outcome.DISCONNECTED, 499, 2)
        assert [charge.backend for charge in record.charges] == ["second/chat"], "what answers 500 charges nothing"

    async def test_in_mid_stream(self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress) -> None:
        upstreams.first.set_script(Script.always(Behaviour(fail_after_chunks=4, fail_mode="stall")))
        async with http.post("/v1/chat/completions", json=chat("first/chat", stream=True)) as response:
            await read_until(response, b'"content":"Simulated"')
            response.close()
        await upstreams.first.wait_until(gone, 1.0)
        record = await ingress.record(response.headers["x-request-id"])
        assert (record.outcome, record.backend) == (Outcome.DISCONNECTED, "first/chat")
        assert record.usage.estimated
        assert 1 <= record.usage.output_tokens <= 3
        assert record.cost > 0

    async def test_while_tokens_flow(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        upstreams.first.set_script(Script.always(Behaviour(tokens=100_000, itl_ms=1)))
        async with http.post("/v1/chat/completions", json=chat("first/chat", stream=True)) as response:
            await read_until(response, b'"content":"Simulated"')
            response.close()
        await upstreams.first.wait_until(gone, 1.0)

    async def test_that_only_stops_sending(self, ingress: Ingress, upstreams: Upstreams) -> None:
        upstreams.first.set_script(Script.always(Behaviour(hang=True)))
        _, writer = await asyncio.open_connection("127.0.0.1", ingress.port)
        body = json.dumps(chat("first/chat")).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ingress.keys['demo']}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await upstreams.first.wait_until(lambda requests: requests and requests[0].body)
        writer.write_eof()
        await upstreams.first.wait_until(gone, 1.0)
        writer.close()

    async def test_its_place_at_the_backend_is_free_again(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(hang=True)))
        for number in range(2):
            async with left_after(http, chat("spilling"), f"leaves-{number}"):
                await upstreams.first.wait_until(partial(has_come, number))
        await upstreams.first.wait_until(lambda requests: all(gone([each]) for each in requests), 1.0)
        upstreams.first.reset_script()

        async def first_answers() -> bool:
            response, _ = await stream(http, "spilling")
            return response.headers["x-meritorder-backend"] == "small/chat"

        await eventually(first_answers)


class TestAClientThatIsSlowSlowsItsBackend:
    async def test_nothing_is_collected_and_nothing_lost(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, ingress: Ingress
    ) -> None:
        events = 400
        big = TOKEN.replace(b'"a"', b'"' + b"x" * 100_000 + b'"')
        upstreams.raw.reset(streamed(*([big] * events), DONE))
        before = resident_bytes(ingress.worker())
        async with http.post("/v1/chat/completions", json=chat("raw/chat", stream=True)) as response:
            sent = await stalled(upstreams.raw)
            grown = resident_bytes(ingress.worker()) - before
            body_size = sum([len(chunk) async for chunk in response.content.iter_any()])
        assert sent < events * len(big) / 2, "the backend had to wait"
        assert grown < 10_000_000, "what was sent is in the buffers of the sockets"
        assert body_size == events * len(big) + len(DONE)


class TestAnAnswerThatIsNoneIsAFailure:
    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(whole(b"<html>bad gateway</html>"), id="HTML"),
            pytest.param(whole(b""), id="nothing"),
            pytest.param(whole(b"{}", "302 Found", b"location: http://127.0.0.1:1/"), id="a redirect"),
            pytest.param(whole(b"<html>", "400 Bad Request"), id="a refusal that does not say why"),
            pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="another protocol"),
        ],
    )
    @pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
    async def test_before_the_first_byte_it_moves_on(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, answer: bytes, streams: bool
    ) -> None:
        upstreams.raw.reset((answer, CLOSE))
        async with http.post("/v1/chat/completions", json=chat("raw-first", stream=streams)) as response:
            assert response.status == 200
            assert response.headers["x-meritorder-backend"] == "second/chat"
            await response.read()

    async def test_a_whole_answer_that_is_cut_moves_on(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        upstreams.first.set_script(Script.always(Behaviour(fail_after_chunks=1)))
        async with http.post("/v1/chat/completions", json=chat()) as response:
            assert (await response.json())["choices"]
            assert response.headers["x-meritorder-backend"] == "second/chat"


@contextlib.asynccontextmanager
async def left_after(http: aiohttp.ClientSession, body: dict[str, Any], request_id: str) -> Any:
    """A request whose client leaves at the end of the block."""
    request = asyncio.create_task(_send(http, body, request_id))
    yield
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request


async def _send(http: aiohttp.ClientSession, body: dict[str, Any], request_id: str) -> None:
    async with http.post("/v1/chat/completions", json=body, headers={"x-request-id": request_id}) as response:
        await response.read()


async def read_until(response: aiohttp.ClientResponse, text: bytes) -> None:
    seen = b""
    while text not in seen:
        seen += await response.content.readany()


async def stalled(backend: RawBackend) -> int:
    """How much the backend could send until nobody took any more: it waits, and goes on waiting."""
    sent, looks = -1, 0
    while looks < 10:
        await asyncio.sleep(0.1)
        looks = looks + 1 if backend.blocked and backend.sent == sent else 0
        sent = backend.sent
    return sent


def has_come(number: int, requests: Sequence[ReceivedRequest]) -> bool:
    """Whether the request of that number, from 0, is there with its body."""
    return len(requests) > number and requests[number].body is not None


def gone(requests: Sequence[ReceivedRequest]) -> bool:
    return requests[0].outcome == "client_disconnected"


def reply(parts: tuple[bytes | None, ...]) -> tuple[bytes, ...]:
    """A stream of `parts`: None ends it in good order, CLOSE cuts the connection."""
    first, *rest = [part for part in parts if part is not None]
    return streamed(first, WAIT, *rest, end=CLOSE not in parts)


def resident_bytes(process: int) -> int:
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * 4096
