"""The simulated upstream's answers, as OpenAI's API reference and SDK have them."""

import base64
import io
import json
import math
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from meritorder.testing.upstream import Behaviour, Rule, Script, ScriptedUpstream

KEY = "sk-right"
CHAT = {"model": "gpt-sim", "messages": [{"role": "user", "content": "hello big world"}]}
TEXT = {"model": "gpt-sim", "prompt": "hello big world"}
EMBED = {"model": "gpt-sim", "input": "hello big world"}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 16,
    "total_tokens": 19,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


@pytest.fixture
async def up() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(models=("gpt-sim", "other-sim"), api_key=KEY) as upstream:
        yield upstream


@pytest.fixture
async def http(up: ScriptedUpstream) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(up.base_url, headers={"Authorization": f"Bearer {KEY}"}) as session:
        yield session


@pytest.fixture
async def sdk(up: ScriptedUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=up.v1_url, api_key=KEY, max_retries=0) as client:
        yield client


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


async def events(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> list[Any]:
    """Return a stream's events, having checked their framing and the `[DONE]`."""
    async with http.post(path, json={**body, "stream": True}) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = await response.text()
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


async def test_chat_completion_is_whole_and_says_that_it_is_simulated(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        body = await response.json()
        assert response.headers["x-simulated"] == "true"
    assert body["object"] == "chat.completion"
    assert body["model"] == "gpt-sim"
    assert body["system_fingerprint"] == "fp_simulated"
    [choice] = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].startswith("Simulated answer")
    assert choice["finish_reason"] == "stop"
    assert body["usage"] == USAGE


async def test_chat_stream_has_role_tokens_and_finish_in_order(http: aiohttp.ClientSession) -> None:
    chunks = await events(http, "/v1/chat/completions", {**CHAT, "max_tokens": 2})
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Simulated"},
        {"content": " answer:"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_requested_usage_comes_in_a_last_chunk_without_choices(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> None:
    *others, last = await events(http, path, {**body, "stream_options": {"include_usage": True}})
    assert last["choices"] == []
    assert last["usage"] == USAGE
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in others)


async def test_usage_that_is_declined_is_not_mentioned(http: aiohttp.ClientSession) -> None:
    chunks = await events(http, "/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": False}})
    assert not any("usage" in chunk for chunk in chunks)


async def test_text_completion_answers_each_prompt_n_times(http: aiohttp.ClientSession) -> None:
    request = {**TEXT, "prompt": ["one", "two words"], "n": 2, "max_tokens": 3}
    _, body = await post(http, "/v1/completions", request)
    assert body["object"] == "text_completion"
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert {choice["text"] for choice in body["choices"]} == {"Simulated answer: no"}
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 12


async def test_streamed_text_adds_up_to_the_whole_one(http: aiohttp.ClientSession) -> None:
    _, whole = await post(http, "/v1/completions", TEXT)
    chunks = await events(http, "/v1/completions", TEXT)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("limits", "tokens", "finish_reason"),
    [
        pytest.param({}, 16, "stop", id="no limit"),
        pytest.param({"max_tokens": 5}, 5, "length", id="max_tokens"),
        pytest.param({"max_completion_tokens": 4}, 4, "length", id="max_completion_tokens"),
        pytest.param({"max_tokens": 9, "max_completion_tokens": 4}, 4, "length", id="the newer one wins"),
        pytest.param({"max_tokens": 16}, 16, "stop", id="a limit that cuts nothing"),
        pytest.param({"max_tokens": 99}, 16, "stop", id="a limit beyond the answer"),
    ],
)
async def test_answer_is_cut_at_the_requested_length(
    http: aiohttp.ClientSession, limits: dict[str, int], tokens: int, finish_reason: str
) -> None:
    _, body = await post(http, "/v1/chat/completions", {**CHAT, **limits})
    assert body["usage"]["completion_tokens"] == tokens
    assert len(body["choices"][0]["message"]["content"].split()) == tokens
    assert body["choices"][0]["finish_reason"] == finish_reason


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("  two   words ", 2),
        ([{"type": "text", "text": "a b"}, {"type": "image_url", "image_url": {"url": "x"}}], 2),
        (None, 0),
    ],
    ids=["text", "parts", "none"],
)
async def test_prompt_tokens_are_the_words_of_the_messages(
    http: aiohttp.ClientSession, content: object, tokens: int
) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
    _, body = await post(http, "/v1/chat/completions", {**CHAT, "messages": messages})
    assert body["usage"]["prompt_tokens"] == 2 + tokens


async def test_scripted_text_arrives_unchanged(up: ScriptedUpstream, http: aiohttp.ClientSession) -> None:
    text = '  Grüße,\n\n世界 — "ok" \\n 🎉 \n'
    up.set_script(Script.always(Behaviour(text=text)))
    chunks = await events(http, "/v1/chat/completions", CHAT)
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == text
    assert sum(map(bool, deltas)) == 6
    _, whole = await post(http, "/v1/chat/completions", CHAT)
    assert whole["choices"][0]["message"]["content"] == text


async def test_lone_surrogate_is_sent_as_a_json_escape(up: ScriptedUpstream, http: aiohttp.ClientSession) -> None:
    extra: dict[str, Any] = {"cut_emoji": "\ud83c"}
    up.set_script(Script.always(Behaviour(extra_fields=extra)))
    request = {**CHAT, "messages": [{"role": "user", "content": "\ud83c"}]}
    status, body = await post(http, "/v1/chat/completions", request)
    assert (status, body["cut_emoji"]) == (200, "\ud83c")


async def test_scripted_usage_replaces_the_counted_one(up: ScriptedUpstream, http: aiohttp.ClientSession) -> None:
    usage: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16, "new": {"a": 1}}
    up.set_script(Script.always(Behaviour(usage=usage)))
    assert (await post(http, "/v1/chat/completions", CHAT))[1]["usage"] == usage
    assert (await post(http, "/v1/embeddings", EMBED))[1]["usage"] == usage
    chunks = await events(http, "/v1/completions", {**TEXT, "stream_options": {"include_usage": True}})
    assert chunks[-1]["usage"] == usage


async def test_null_usage_is_reported_nowhere(up: ScriptedUpstream, http: aiohttp.ClientSession) -> None:
    up.set_script(Script.always(Behaviour(usage=None)))
    assert "usage" not in (await post(http, "/v1/chat/completions", CHAT))[1]
    assert "usage" not in (await post(http, "/v1/embeddings", EMBED))[1]
    chunks = await events(http, "/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_extra_fields_are_in_the_answer_and_in_each_chunk(
    up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    extra: dict[str, Any] = {"service_tier": "flex", "x_new": {"deep": [1, None, "é"]}}
    rules = [
        Rule(behaviour=Behaviour(extra_fields=extra)),
        Rule(endpoint="models", behaviour=Behaviour(extra_fields=extra)),
    ]
    up.set_script(Script(rules=rules))
    async with http.get("/v1/models") as response:
        bodies = [await response.json()]
    for path, request in [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", TEXT),
        ("/v1/embeddings", EMBED),
    ]:
        bodies.append((await post(http, path, request))[1])
    request = {**CHAT, "stream_options": {"include_usage": True}}
    bodies.extend(await events(http, "/v1/chat/completions", request))
    assert all(body.items() >= extra.items() for body in bodies)


async def test_embeddings_are_deterministic_unit_vectors(http: aiohttp.ClientSession) -> None:
    _, body = await post(http, "/v1/embeddings", {**EMBED, "input": ["one", "two words", "one"]})
    vectors = [item["embedding"] for item in body["data"]]
    assert [item["index"] for item in body["data"]] == [0, 1, 2]
    assert vectors[0] == vectors[2] != vectors[1]
    assert all(len(vector) == 1536 and math.isclose(math.hypot(*vector), 1, rel_tol=1e-6) for vector in vectors)
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


async def test_base64_embeddings_hold_the_same_numbers(http: aiohttp.ClientSession) -> None:
    request = {**EMBED, "dimensions": 8}
    _, as_float = await post(http, "/v1/embeddings", request)
    _, as_base64 = await post(http, "/v1/embeddings", {**request, "encoding_format": "base64"})
    packed = base64.b64decode(as_base64["data"][0]["embedding"])
    assert list(struct.unpack("<8f", packed)) == as_float["data"][0]["embedding"]


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]], ids=["one text", "several texts"])
async def test_embeddings_of_token_ids_count_the_ids(http: aiohttp.ClientSession, tokens: list[Any]) -> None:
    status, body = await post(http, "/v1/embeddings", {**EMBED, "input": tokens, "dimensions": 2})
    assert status == 200
    assert body["usage"]["prompt_tokens"] == 3


async def test_models_are_owned_by_simulated(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/models") as response:
        body = await response.json()
    assert [model["id"] for model in body["data"]] == ["gpt-sim", "other-sim"]
    assert {model["owned_by"] for model in body["data"]} == {"simulated"}


async def test_health_needs_no_key(up: ScriptedUpstream) -> None:
    async with aiohttp.ClientSession() as anyone, anyone.get(f"{up.base_url}/healthz") as response:
        assert response.status == 200
        assert (await response.json())["simulated"] is True
    assert up.requests == ()


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        ("/v1/chat/completions", [], 400, None, None),
        ("/v1/chat/completions", {"messages": []}, 400, "model", None),
        ("/v1/chat/completions", {**CHAT, "model": "no-such"}, 404, "model", "model_not_found"),
        ("/v1/chat/completions", {"model": "gpt-sim"}, 400, "messages", None),
        ("/v1/chat/completions", {**CHAT, "messages": []}, 400, "messages", None),
        ("/v1/chat/completions", {**CHAT, "messages": ["hi"]}, 400, "messages[0]", None),
        ("/v1/chat/completions", {**CHAT, "messages": [{"content": 1}]}, 400, "messages[0].content", None),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 0}, 400, "max_tokens", None),
        ("/v1/chat/completions", {**CHAT, "max_completion_tokens": "9"}, 400, "max_completion_tokens", None),
        ("/v1/chat/completions", {**CHAT, "n": True}, 400, "n", None),
        ("/v1/chat/completions", {**CHAT, "stream": "yes"}, 400, "stream", None),
        ("/v1/chat/completions", {**CHAT, "stream_options": {}}, 400, "stream_options", None),
        ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": 1}, 400, "stream_options", None),
        ("/v1/completions", {"model": "gpt-sim"}, 400, "prompt", None),
        ("/v1/completions", {**TEXT, "prompt": []}, 400, "prompt", None),
        ("/v1/completions", {**TEXT, "prompt": [1, "a"]}, 400, "prompt", None),
        ("/v1/embeddings", {**EMBED, "input": ["a", ""]}, 400, "input", None),
        ("/v1/embeddings", {**EMBED, "dimensions": 5000}, 400, "dimensions", None),
        ("/v1/embeddings", {**EMBED, "encoding_format": "hex"}, 400, "encoding_format", None),
        ("/v1/chat/completion", CHAT, 404, None, "unknown_url"),
    ],
)
async def test_wrong_request_is_refused_in_openais_shape(
    http: aiohttp.ClientSession, path: str, body: object, status: int, param: str | None, code: str | None
) -> None:
    got, error = await post(http, path, body)
    assert got == status
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert error["error"]["type"] == "invalid_request_error"
    assert (error["error"]["param"], error["error"]["code"]) == (param, code)


async def test_body_that_is_not_json_is_refused(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/chat/completions", data=b'{"model": \xff') as response:
        assert response.status == 400
        assert "parse the JSON" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        pytest.param(None, None, id="no header"),
        pytest.param("Bearer ", None, id="empty key"),
        pytest.param("Basic sk-right", None, id="other scheme"),
        pytest.param("Bearer sk-wrong-secret", "invalid_api_key", id="wrong key"),
        pytest.param("Bearer sk-right ünwise", "invalid_api_key", id="more than the key"),
    ],
)
@pytest.mark.parametrize("data", [json.dumps(CHAT), "no json"], ids=["json", "not json"])
async def test_wrong_key_is_refused_and_not_repeated(
    up: ScriptedUpstream, authorization: str | None, code: str | None, data: str
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    url = f"{up.v1_url}/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers, data=data) as response:
        assert response.status == 401
        text = await response.text()
        assert response.headers["x-simulated"] == "true"
    assert json.loads(text)["error"]["code"] == code
    assert "secret" not in text + repr(up.requests)
    assert up.requests[0].key_accepted is False
    assert up.requests[0].body == (CHAT if data.startswith("{") else None)


async def test_any_key_but_an_empty_one_is_accepted_if_none_is_set() -> None:
    async with ScriptedUpstream() as up, aiohttp.ClientSession(up.base_url) as session:
        for authorization, status in [("bearer x", 200), ("Bearer", 401)]:
            headers = {"Authorization": authorization}
            async with session.get("/v1/models", headers=headers) as response:
                assert response.status == status


async def test_big_body_is_read(http: aiohttp.ClientSession) -> None:
    request = {**CHAT, "messages": [{"role": "user", "content": "word " * 1_000_000}]}
    async with http.post("/v1/chat/completions", data=io.BytesIO(json.dumps(request).encode())) as response:
        body = await response.json()
    assert body["usage"]["prompt_tokens"] == 1_000_000


async def test_sdk_reads_whole_answers_streams_and_vectors(sdk: openai.AsyncOpenAI) -> None:
    messages: Any = CHAT["messages"]
    whole = await sdk.chat.completions.create(model="gpt-sim", messages=messages)
    stream = await sdk.chat.completions.create(
        model="gpt-sim", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    vectors = await sdk.embeddings.create(model="gpt-sim", input=["a", "b"], dimensions=4)
    assert [len(item.embedding) for item in vectors.data] == [4, 4]
    assert [model.id async for model in sdk.models.list()] == ["gpt-sim", "other-sim"]


async def test_sdk_keeps_unknown_fields(up: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    up.set_script(Script.always(Behaviour(extra_fields={"x_new": [1]})))
    completion = await sdk.completions.create(model="gpt-sim", prompt="hi")
    assert completion.model_extra == {"x_new": [1]}


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (Behaviour(status=429, headers={"retry-after": "3"}), openai.RateLimitError),
        (Behaviour(status=500), openai.InternalServerError),
        (Behaviour(status=503, error_code="overloaded"), openai.InternalServerError),
        (Behaviour(status=403, error_type="forbidden"), openai.PermissionDeniedError),
        (Behaviour(refuse_connection=True), openai.APIConnectionError),
    ],
    ids=["429", "500", "503", "403", "refused"],
)
async def test_sdk_raises_its_own_error(
    up: ScriptedUpstream, sdk: openai.AsyncOpenAI, behaviour: Behaviour, error: type[openai.APIError]
) -> None:
    up.set_script(Script.always(behaviour))
    with pytest.raises(error) as caught:
        await sdk.completions.create(model="gpt-sim", prompt="hi")
    if isinstance(caught.value, openai.APIStatusError):
        assert "simulated" in caught.value.message


async def test_sdk_raises_on_an_error_within_the_stream(up: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    up.set_script(Script.always(Behaviour(fail_after_chunks=2, fail_mode="error_event", error_code="late")))
    stream = await sdk.completions.create(model="gpt-sim", prompt="hi", stream=True)
    chunks = aiter(stream)
    assert [(await anext(chunks)).choices[0].text for _ in range(2)] == ["Simulated", " answer:"]
    with pytest.raises(openai.APIError, match="simulated") as caught:
        await anext(chunks)
    assert caught.value.code == "late"
