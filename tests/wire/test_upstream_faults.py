"""Answers that go wrong, clients that leave, and what the log of the simulated upstream says about them."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from meritorder.testing.upstream import Behaviour, ReceivedRequest, Rule, Script, ScriptedUpstream
from meritorder.testing.upstream.behaviour import FailMode

CHAT = {"model": "gpt-sim", "messages": [{"role": "user", "content": "hi"}]}
HOUR_MS = 3_600_000


@pytest.fixture
async def up() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
async def http(up: ScriptedUpstream) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(up.base_url, headers={"Authorization": "Bearer any"}) as session:
        yield session


async def receive(http: aiohttp.ClientSession, stream: bool) -> tuple[int, bytes, bool]:
    """Return the status, what arrived of the body, and whether the body came to its end."""
    received = b""
    async with http.post("/v1/chat/completions", json={**CHAT, "stream": stream}) as response:
        try:
            async for data in response.content.iter_any():
                received += data
        except aiohttp.ClientPayloadError:
            return response.status, received, False
        return response.status, received, True


async def ended(up: ScriptedUpstream) -> ReceivedRequest:
    """Return the only request, once it is over."""
    await up.wait_until(lambda requests: requests and requests[0].outcome)
    [request] = up.requests
    return request


async def test_scripted_error_has_its_status_headers_and_code(
    up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    headers = {"Retry-After": "2", "x-ratelimit-remaining-requests": "0"}
    behaviour = Behaviour(status=429, error_code="insufficient_quota", error_message="Out.", headers=headers)
    up.set_script(Script.always(behaviour))
    async with http.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        body = await response.json()
        assert response.status == 429
        assert response.headers["retry-after"] == "2"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
    error = {"message": "Out.", "type": "requests", "param": None, "code": "insufficient_quota"}
    assert body == {"error": error}
    request = await ended(up)
    assert (request.status, request.outcome) == (429, "failed")


async def test_script_may_send_another_content_type(up: ScriptedUpstream, http: aiohttp.ClientSession) -> None:
    up.set_script(Script.always(Behaviour(status=502, headers={"Content-Type": "text/html"})))
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.headers.getall("content-type") == ["text/html"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_refused_connection_sends_no_byte(
    up: ScriptedUpstream, http: aiohttp.ClientSession, stream: bool
) -> None:
    up.set_script(Script.always(Behaviour(refuse_connection=True)))
    with pytest.raises(aiohttp.ClientConnectionError):
        await receive(http, stream)
    request = await ended(up)
    assert (request.outcome, request.status, request.first_byte_s) == ("failed", None, None)


@pytest.mark.parametrize("chunks", [0, 1, 3, 99])
async def test_stream_is_cut_after_the_given_number_of_chunks(
    up: ScriptedUpstream, http: aiohttp.ClientSession, chunks: int
) -> None:
    up.set_script(Script.always(Behaviour(tokens=4, fail_after_chunks=chunks)))
    status, received, to_its_end = await receive(http, stream=True)
    sent = min(chunks, 6)  # the role, four tokens and the finish reason
    assert (status, received.count(b"\n\n"), to_its_end) == (200, sent, False)
    assert b"[DONE]" not in received
    request = await ended(up)
    assert (request.outcome, request.chunks_sent) == ("failed", sent)


async def test_error_event_ends_the_stream_without_done(up: ScriptedUpstream, http: aiohttp.ClientSession) -> None:
    up.set_script(Script.always(Behaviour(fail_after_chunks=2, fail_mode="error_event", error_type="odd")))
    _, received, to_its_end = await receive(http, stream=True)
    *chunks, last, rest = received.split(b"\n\n")
    assert (len(chunks), rest, to_its_end) == (2, b"", True)
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "odd"
    request = await ended(up)
    assert (request.outcome, request.chunks_sent) == ("failed", 2)


async def test_malformed_stream_is_neither_sse_nor_json_nor_utf8(
    up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    up.set_script(Script.always(Behaviour(fail_after_chunks=1, fail_mode="malformed")))
    _, received, to_its_end = await receive(http, stream=True)
    bad = received.partition(b"\n\n")[2]
    assert to_its_end
    assert not bad.startswith(b"data:")
    with pytest.raises(UnicodeDecodeError):
        bad.decode()
    with pytest.raises(json.JSONDecodeError):
        json.loads(bad.partition(b"data: ")[2].decode(errors="replace"))
    assert (await ended(up)).outcome == "failed"


@pytest.mark.parametrize(
    ("mode", "status", "to_its_end"),
    [("close", 200, False), ("error_event", 500, True), ("malformed", 200, True)],
)
async def test_whole_answer_fails_in_the_middle_of_its_body(
    up: ScriptedUpstream, http: aiohttp.ClientSession, mode: FailMode, status: int, to_its_end: bool
) -> None:
    up.set_script(Script.always(Behaviour(fail_after_chunks=0, fail_mode=mode)))
    got, received, complete = await receive(http, stream=False)
    assert (got, complete) == (status, to_its_end)
    assert received
    if mode == "error_event":
        assert json.loads(received)["error"]["type"] == "server_error"
    assert (await ended(up)).outcome == "failed"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        pytest.param(Behaviour(ttft_ms=HOUR_MS), None, id="while it waits for the first token"),
        pytest.param(Behaviour(hang=True), None, id="while it hangs"),
        pytest.param(Behaviour(fail_after_chunks=1, fail_mode="stall"), 200, id="while it stalls"),
        pytest.param(Behaviour(ttft_ms=HOUR_MS, status=500), None, id="while it waits for an error"),
    ],
)
async def test_client_that_leaves_is_noticed(
    up: ScriptedUpstream, http: aiohttp.ClientSession, behaviour: Behaviour, status: int | None, stream: bool
) -> None:
    up.set_script(Script.always(behaviour))
    leaving = asyncio.create_task(receive(http, stream))
    await up.wait_until(lambda requests: requests and requests[0].body and requests[0].status == status)
    leaving.cancel()
    request = await ended(up)
    assert (request.outcome, request.status) == ("client_disconnected", status)
    assert request.ended_s is not None
    assert request.ended_s - request.started_s < 5


async def test_client_that_leaves_between_tokens_is_noticed(up: ScriptedUpstream, http: aiohttp.ClientSession) -> None:
    up.set_script(Script.always(Behaviour(itl_ms=HOUR_MS)))
    async with http.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        await response.content.readline()
        response.close()
    request = await ended(up)
    assert (request.outcome, request.chunks_sent) == ("client_disconnected", 2)


async def test_client_that_leaves_a_stream_without_pauses_is_noticed(
    up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    up.set_script(Script.always(Behaviour(tokens=100_000)))
    async with http.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        await response.content.readline()
        response.close()
    request = await ended(up)
    assert request.outcome == "client_disconnected"
    assert request.chunks_sent < 100_000


async def test_sdk_that_closes_its_stream_is_noticed(up: ScriptedUpstream) -> None:
    up.set_script(Script.always(Behaviour(itl_ms=HOUR_MS)))
    async with openai.AsyncOpenAI(base_url=up.v1_url, api_key="any", max_retries=0) as sdk:
        stream = await sdk.completions.create(model="gpt-sim", prompt="hi", stream=True)
        await anext(aiter(stream))
        await stream.close()
        assert (await ended(up)).outcome == "client_disconnected"


async def test_sdk_retries_until_the_rule_has_expired(up: ScriptedUpstream) -> None:
    flaky = Behaviour(status=429, headers={"retry-after-ms": "1"})
    up.set_script(Script(rules=[Rule(times=2, behaviour=flaky)]))
    async with openai.AsyncOpenAI(base_url=up.v1_url, api_key="any", max_retries=2) as sdk:
        await sdk.completions.create(model="gpt-sim", prompt="hi")
    assert [request.outcome for request in up.requests] == ["failed", "failed", "completed"]


async def test_client_that_leaves_in_the_middle_of_its_body_is_logged(up: ScriptedUpstream) -> None:
    port = int(up.base_url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    await writer.drain()
    await up.wait_until(lambda requests: requests)
    writer.close()
    await writer.wait_closed()
    request = await ended(up)
    assert (request.outcome, request.body) == ("client_disconnected", None)


async def test_log_holds_what_was_received_but_no_header_values(
    up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    headers = {"X-Secret-Header": "hidden-value"}
    async with http.post("/v1/chat/completions?key=hidden-query", json=CHAT, headers=headers) as response:
        request_id = response.headers["x-request-id"]
        assert request_id in (await response.json())["id"]
    request = await ended(up)
    assert request.id == request_id
    assert (request.method, request.path, request.endpoint) == ("POST", "/v1/chat/completions", "chat")
    assert (request.model, request.body, request.key_accepted) == ("gpt-sim", CHAT, True)
    assert {"authorization", "x-secret-header", "content-type"} <= set(request.header_names)
    assert request.outcome == "completed"
    assert request.first_byte_s is not None
    assert request.ended_s is not None
    assert request.started_s <= request.first_byte_s <= request.ended_s
    assert "hidden" not in json.dumps(request.as_json())
    assert "Bearer" not in json.dumps(request.as_json())


async def test_log_drops_the_oldest_and_can_be_cleared() -> None:
    async with (
        ScriptedUpstream(keep_requests=2) as up,
        aiohttp.ClientSession(up.base_url, headers={"Authorization": "Bearer any"}) as http,
    ):
        for _ in range(3):
            await receive(http, stream=False)
        assert [request.id for request in up.requests] == ["simulated-2", "simulated-3"]
        up.clear_requests()
        assert up.requests == ()


async def test_wait_for_a_request_that_never_comes_times_out(up: ScriptedUpstream) -> None:
    with pytest.raises(TimeoutError):
        await up.wait_until(lambda requests: requests, timeout_s=0.01)


async def test_stopping_breaks_off_running_answers_and_then_refuses(http: aiohttp.ClientSession) -> None:
    up = ScriptedUpstream(Script.always(Behaviour(hang=True)))
    await up.start()
    url = f"{up.v1_url}/chat/completions"

    async def ask() -> Any:
        async with http.post(url, json=CHAT) as response:
            return await response.read()

    asking = asyncio.create_task(ask())
    await up.wait_until(lambda requests: requests and requests[0].model)
    async with asyncio.timeout(5):
        await up.close()
    with pytest.raises(aiohttp.ClientConnectionError):
        await asking
    assert up.requests[0].outcome == "failed"
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask()
