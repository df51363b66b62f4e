"""What the upstream says it has to be paid for, and rules for the requests of some users."""

import asyncio
from typing import Any

import aiohttp
import pytest

from meritorder.testing.upstream import Behaviour, Rule, Script, ScriptedUpstream, Served

MODEL = "gpt-sim"
PROMPT = "one two three"


async def chat(upstream: ScriptedUpstream, **fields: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], **fields}
    headers = {"authorization": "Bearer any"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{upstream.v1_url}/chat/completions", json=body) as response,
    ):
        return await response.read()


@pytest.mark.parametrize(
    ("behaviour", "fields", "served"),
    [
        pytest.param(Behaviour(tokens=5), {}, Served(1, 3, 0, 5), id="a whole answer"),
        pytest.param(Behaviour(tokens=5), {"stream": True}, Served(1, 3, 0, 5), id="a stream"),
        pytest.param(Behaviour(tokens=5), {"n": 2}, Served(1, 3, 0, 10), id="two choices"),
        pytest.param(Behaviour(tokens=5), {"max_tokens": 4}, Served(1, 3, 0, 4), id="one that is cut short"),
        pytest.param(Behaviour(tokens=5, usage=None), {"stream": True}, Served(1, 3, 0, 5), id="without usage"),
        pytest.param(
            Behaviour(
                usage={"prompt_tokens": 90, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 60}}
            ),
            {"stream": True},
            Served(1, 90, 60, 7),
            id="the script's usage",
        ),
        pytest.param(Behaviour(status=500), {}, Served(), id="an error"),
        pytest.param(Behaviour(fail_after_chunks=2), {}, Served(), id="half of a whole answer"),
        pytest.param(
            Behaviour(fail_after_chunks=3, fail_mode="error_event"),
            {"stream": True},
            Served(1, 3, 0, 2),
            id="a stream that breaks after a role and two tokens",
        ),
        pytest.param(
            Behaviour(fail_after_chunks=3, fail_mode="close"),
            {"stream": True},
            Served(1, 3, 0, 2),
            id="one that is cut",
        ),
        pytest.param(
            Behaviour(fail_after_chunks=1, fail_mode="error_event"), {"stream": True}, Served(), id="before a token"
        ),
    ],
)
async def test_what_a_request_is_worth(behaviour: Behaviour, fields: dict[str, Any], served: Served) -> None:
    async with ScriptedUpstream(Script.always(behaviour)) as upstream:
        try:
            await chat(upstream, **fields)
        except aiohttp.ClientPayloadError:
            assert behaviour.failure == "close"
        await upstream.wait_until(lambda requests: requests[-1].outcome)
        assert upstream.served == {MODEL: served}


@pytest.mark.parametrize(
    ("behaviour", "stream", "tokens"),
    [
        pytest.param(Behaviour(hang=True), True, 0, id="before the answer"),
        pytest.param(Behaviour(fail_after_chunks=4, fail_mode="stall"), True, 3, id="in the middle of a stream"),
        pytest.param(Behaviour(fail_after_chunks=4, fail_mode="stall"), False, 0, id="in the middle of a whole answer"),
    ],
)
async def test_a_client_that_leaves_pays_for_its_prompt_and_what_it_was_sent(
    behaviour: Behaviour, stream: bool, tokens: int
) -> None:
    async with ScriptedUpstream(Script.always(behaviour)) as upstream:
        client = asyncio.create_task(chat(upstream, stream=stream))
        events = behaviour.fail_after_chunks or 0
        await upstream.wait_until(
            lambda requests: requests and requests[0].prompt_tokens and requests[0].chunks_sent >= events * stream
        )
        assert upstream.served == {}, "it has not ended"
        client.cancel()
        await upstream.wait_until(lambda requests: requests[0].outcome == "client_disconnected")
        assert upstream.served == {MODEL: Served(1, 3, 0, tokens)}


async def test_the_sums_do_not_depend_on_how_many_requests_are_kept() -> None:
    async with ScriptedUpstream(Script.always(Behaviour(tokens=2)), keep_requests=1) as upstream:
        for _ in range(3):
            await chat(upstream)
        assert len(upstream.requests) == 1
        assert upstream.served == {MODEL: Served(3, 9, 0, 6)}
        upstream.clear_requests()
        assert upstream.served == {}


async def test_a_rule_may_be_for_some_users() -> None:
    script = Script(rules=[Rule(user="*:short", behaviour=Behaviour(tokens=1)), Rule(behaviour=Behaviour(tokens=2))])
    async with ScriptedUpstream(script) as upstream:
        for user in ("a:short", "short:a", None, "b:short"):
            await chat(upstream, **({} if user is None else {"user": user}))
        assert [one.completion_tokens for one in upstream.requests] == [1, 2, 2, 1]
