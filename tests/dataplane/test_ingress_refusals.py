"""Requests that get no answer: the status, OpenAI's error shape, and a sentence that says what to do."""

import asyncio
import io
import json
from decimal import Decimal
from typing import Any

import aiohttp
import openai as sdk
import pytest
from tests.dataplane.conftest import Ingress, Upstreams, chat, whole

from meritorder.core.usage import Outcome
from meritorder.testing.upstream import Behaviour, Script

pytestmark = pytest.mark.asyncio(loop_scope="session")

INFERENCE = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
LIMIT = 20_000_000


async def error(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The error, after a look at its shape."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = await response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return dict(body["error"])


class TestKeys:
    @pytest.mark.parametrize(
        ("authorization", "code", "message"),
        [
            (None, "missing_api_key", "No API key was given"),
            ("Bearer mo-wrong", "invalid_api_key", "The API key is wrong or has been revoked"),
            ("Bearer ", "invalid_api_key", "The Authorization header is not of the Bearer scheme"),
            ("Basic bW86bW8=", "invalid_api_key", "The Authorization header is not of the Bearer scheme"),
            ("Bearer schlüssel", "invalid_api_key", "The API key is wrong or has been revoked"),
        ],
    )
    @pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), *(("POST", path) for path in INFERENCE)])
    async def test_no_good_key(
        self, ingress: Ingress, method: str, path: str, authorization: str | None, code: str, message: str
    ) -> None:
        headers = {"authorization": authorization} if authorization is not None else {}
        async with ingress.session(key="") as http, http.request(method, path, headers=headers) as response:
            assert response.status == 401
            assert response.headers["www-authenticate"] == "Bearer"
            said = await error(response)
        assert said["code"] == code
        assert said["type"] == "invalid_request_error"
        assert said["message"].startswith(message)
        assert "meritorder key create --team" in said["message"]

    async def test_the_sdk_raises_its_own_exception(self, ingress: Ingress) -> None:
        async with ingress.openai(key="mo-wrong") as client:
            with pytest.raises(sdk.AuthenticationError) as caught:
                await client.chat.completions.create(**chat())
        assert caught.value.code == "invalid_api_key"
        assert "mo-wrong" not in str(caught.value)

    async def test_a_request_without_a_key_reaches_no_backend(self, ingress: Ingress, upstreams: Upstreams) -> None:
        async with ingress.session(key="") as http, http.post(INFERENCE[0], json=chat()) as response:
            assert response.status == 401
        assert upstreams.first.requests == ()


class TestModels:
    async def test_an_unknown_model_is_told_the_close_ones(self, ingress: Ingress) -> None:
        async with ingress.openai() as client:
            with pytest.raises(sdk.NotFoundError) as caught:
                await client.chat.completions.create(**chat("asistant"))
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"
        assert "The model 'asistant' does not exist. Did you mean 'assistant'" in str(caught.value)

    async def test_where_nothing_is_close_it_is_told_where_to_look(self, http: aiohttp.ClientSession) -> None:
        async with http.post(INFERENCE[0], json=chat("zzzzzzzz")) as response:
            assert response.status == 404
            assert (await error(response))["message"].endswith("GET /v1/models lists those that you may call.")

    async def test_a_team_is_not_told_of_models_that_it_may_not_call(self, ingress: Ingress) -> None:
        async with ingress.session(ingress.keys["narrow"]) as http:
            async with http.post(INFERENCE[0], json=chat("first/cha")) as response:
                assert response.status == 404
                assert "first/chat" not in (await error(response))["message"]
            async with http.get("/v1/models") as response:
                assert [model["id"] for model in (await response.json())["data"]] == ["assistant"]

    async def test_a_model_that_the_team_may_not_call(self, ingress: Ingress) -> None:
        async with ingress.openai(ingress.keys["narrow"]) as client:
            with pytest.raises(sdk.PermissionDeniedError, match="it may call assistant") as caught:
                await client.chat.completions.create(**chat("first/chat"))
        assert caught.value.code == "model_not_allowed"

    async def test_an_endpoint_that_the_model_does_not_serve(self, ingress: Ingress) -> None:
        async with ingress.openai() as client:
            with pytest.raises(sdk.BadRequestError) as caught:
                await client.embeddings.create(model="first/chat", input="x")
        assert "'first/chat' does not serve /v1/embeddings; it serves /v1/chat/completions" in str(caught.value)
        record = await ingress.record(caught.value.request_id or "")
        assert (record.outcome, record.status, record.attempts) == (Outcome.REJECTED, 400, 0)

    async def test_a_model_that_has_failed(self, ingress: Ingress) -> None:
        async with ingress.openai() as client:
            with pytest.raises(sdk.InternalServerError) as caught:
                await client.chat.completions.create(**chat("broken"))
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "5"
        assert "No backend can answer for 'broken' now: 'broken' has failed." in str(caught.value)
        record = await ingress.record(caught.value.request_id or "")
        assert (record.outcome, record.status, record.backend) == (Outcome.FAILED, 503, None)


class TestBodies:
    @pytest.mark.parametrize(
        ("body", "param", "message"),
        [
            (b"", None, "The body is not valid JSON: it is empty."),
            (b'{"model": "assistant", ', None, "The body is not valid JSON"),
            (b"[]", None, "The body must be a JSON object"),
            (b"{}", "model", "'model' is required and is missing."),
            (b'{"model":"assistant"}', "messages", "'messages' is required and is missing."),
            (b'{"messages":[{"role":"user"}]}', "model", "'model' is required and is missing."),
            (b'{"model":"assistant","messages":"hi"}', "messages", "expected array, got string"),
        ],
    )
    async def test_a_bad_body_is_told_the_field(
        self, http: aiohttp.ClientSession, upstreams: Upstreams, body: bytes, param: str | None, message: str
    ) -> None:
        async with http.post(INFERENCE[0], data=body) as response:
            assert response.status == 400
            said = await error(response)
        assert said["param"] == param
        assert message in said["message"]
        assert upstreams.first.requests == ()

    async def test_the_sdk_raises_its_own_exception(self, ingress: Ingress) -> None:
        async with ingress.openai() as client:
            with pytest.raises(sdk.BadRequestError) as caught:
                await client.chat.completions.create(**chat(temperature="hot"))
        assert caught.value.param == "temperature"

    async def test_a_body_over_the_limit_is_refused(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        async with http.post(INFERENCE[0], data=io.BytesIO(b"x" * (LIMIT + 1))) as response:
            assert response.status == 413
            said = await error(response)
        assert said["code"] == "request_too_large"
        assert "larger than the limit of 20,000,000 bytes" in said["message"]

    async def test_a_body_of_unknown_length_is_refused_when_it_passes_the_limit(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        async with http.post(INFERENCE[0], data=pieces(LIMIT // 1_000_000 + 1)) as response:
            assert response.status == 413
            assert (await error(response))["code"] == "request_too_large"

    async def test_a_body_in_chunks_is_read_whole(self, http: aiohttp.ClientSession, upstreams: Upstreams) -> None:
        async def chunks() -> Any:
            for byte in json.dumps(chat()).encode():
                yield bytes([byte])

        async with http.post(INFERENCE[0], data=chunks()) as response:
            assert response.status == 200

    async def test_a_body_just_below_the_limit_is_passed_on(
        self, http: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.raw.reset(whole(b'{"choices":[]}'))
        padding = "x" * (LIMIT - 200)
        body = json.dumps(chat("raw/chat", x_padding=padding)).encode()
        async with http.post(INFERENCE[0], data=io.BytesIO(body)) as response:
            assert response.status == 200
        assert padding.encode() in upstreams.raw.bodies[0]


class TestTheConnectionAfterAnError:
    @pytest.mark.parametrize(
        ("key", "body", "status"),
        [
            pytest.param("", b"x" * 100_000, 401, id="no key, and a body that nobody reads"),
            pytest.param(None, b"{}", 400, id="a bad body"),
            pytest.param(None, b"x" * (LIMIT + 1_000_000), 413, id="a body over the limit"),
        ],
    )
    async def test_it_can_be_used_again(self, ingress: Ingress, key: str | None, body: bytes, status: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", ingress.port)
        authorization = "" if key == "" else f"authorization: Bearer {ingress.keys['demo']}\r\n"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{authorization}content-length: {len(body)}\r\n\r\n"
        for _ in range(2):
            writer.write(head.encode() + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()
        await writer.wait_closed()

    async def test_a_client_that_sends_for_ever_is_cut_off(self, ingress: Ingress) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", ingress.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
            with pytest.raises(ConnectionError):
                await send_for_ever(writer)
        writer.close()

    async def test_a_client_that_asks_first_is_told_not_to_send(self, ingress: Ingress) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", ingress.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nexpect: 100-continue\r\n\r\n"
        )
        async with asyncio.timeout(1.5):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 401 ")
        writer.close()


class TestUrlsAndMethods:
    @pytest.mark.parametrize("path", ["/", "/v1", "/v1/models/", "/v1/responses", "/v1//chat/completions"])
    async def test_a_url_that_is_not_served(self, http: aiohttp.ClientSession, path: str) -> None:
        async with http.post(path, json={}, allow_redirects=False) as response:
            assert response.status == 404
            assert (await error(response))["code"] == "unknown_url"

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "/v1/chat/completions", "POST"),
            ("PUT", "/v1/embeddings", "POST"),
            ("DELETE", "/v1/models", "GET, HEAD"),
            ("POST", "/healthz", "GET, HEAD"),
        ],
    )
    async def test_a_method_that_is_not_served(
        self, http: aiohttp.ClientSession, method: str, path: str, allowed: str
    ) -> None:
        async with http.request(method, path) as response:
            assert response.status == 405
            assert sorted(response.headers["allow"].split(", ")) == sorted(allowed.split(", "))
            said = await error(response)
        assert said["code"] == "method_not_allowed"
        assert said["message"].startswith(f"{method} {path} is not served here")

    @pytest.mark.parametrize(
        ("path", "status"), [("/healthz", 200), ("/v1/models", 200), ("/nowhere", 404), ("/v1/embeddings", 405)]
    )
    async def test_head_has_a_head_and_no_body(self, http: aiohttp.ClientSession, path: str, status: int) -> None:
        async with http.head(path) as response:
            assert response.status == status
            assert int(response.headers["content-length"]) > 0
            assert await response.read() == b""


class TestTheBackendRefusesTheRequestItself:
    @pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
    async def test_its_answer_is_passed_on_and_nobody_else_is_asked(
        self, ingress: Ingress, upstreams: Upstreams, streams: bool
    ) -> None:
        upstreams.first.set_script(
            Script.always(Behaviour(status=400, error_code="context_length_exceeded", error_message="Too long."))
        )
        async with ingress.openai() as client:
            with pytest.raises(sdk.BadRequestError, match=r"Too long\.") as caught:
                await client.chat.completions.create(**chat(stream=streams))
        assert caught.value.code == "context_length_exceeded"
        assert upstreams.second.requests == ()
        record = await ingress.record(caught.value.request_id or "")
        assert (record.outcome, record.status) == (Outcome.REJECTED, 400)
        assert (record.cost, record.usage.output_tokens) == (Decimal(0), 0)


async def send_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 100_000)
        await writer.drain()


async def pieces(megabytes: int) -> Any:
    for _ in range(megabytes):
        yield b"x" * 1_000_000
