"""The hosted proxy, without Ray: on a loopback server, before a provider on another."""

import asyncio
import contextlib
import gzip
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import uvicorn
from aiohttp import web
from yarl import URL

from meritorder.deployments import hosted
from meritorder.deployments.credentials import Credential, CredentialError
from meritorder.deployments.hosted import HostedProxy, Upstream

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = "sk-secret-0123456789"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Provider:
    """Answers with whatever handler the test sets, and keeps the requests."""

    handler: Handler | None = None
    url: str = ""
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return await self.handler(request) if self.handler else web.json_response({"ok": True})


@pytest_asyncio.fixture(loop_scope="session")
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", provider.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield provider
    await runner.cleanup()


@contextlib.asynccontextmanager
async def serve(app: HostedProxy) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="on", log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@pytest_asyncio.fixture(loop_scope="session")
async def proxy(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setenv("TEST_KEY", KEY)
    async with serve(HostedProxy(Upstream("acme", provider.url, Credential(variable="TEST_KEY"), 8))) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="session")
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def test_bytes_pass_untouched_in_both_directions(
    provider: Provider, proxy: str, client: aiohttp.ClientSession
) -> None:
    sent, answered = b'{"model": "m",  "unknown":[1,{"a":null}]}', b'{"id" :"x", "new_field":1.50}\n'

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=answered, content_type="application/json")

    provider.handler = handler
    async with client.post(URL(f"{proxy}/v1/chat/completions?a=1&b=%2F", encoded=True), data=sent) as response:
        assert await response.read() == answered
    assert provider.bodies == [sent]
    assert provider.requests[0].raw_path == "/v1/chat/completions?a=1&b=%2F"


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
async def test_a_body_of_any_size_passes_for_it_is_the_ingress_that_limits_it(
    provider: Provider, proxy: str, client: aiohttp.ClientSession
) -> None:
    body = b"x" * (65 * 1024 * 1024)
    async with client.post(f"{proxy}/v1/chat/completions", data=body) as response:
        assert response.status == 200
    assert provider.bodies == [body]


async def test_the_key_replaces_every_credential_of_the_client(
    provider: Provider, proxy: str, client: aiohttp.ClientSession
) -> None:
    theirs = {
        "Authorization": "Bearer mo-team-key",
        "x-api-key": "mo-team-key",
        "Cookie": "session=1",
        "OpenAI-Organization": "org-of-someone-else",
        "X-Forwarded-For": "10.0.0.1",
        "X-Custom": "kept",
    }
    async with client.post(f"{proxy}/v1/chat/completions", json={}, headers=theirs) as response:
        assert response.status == 200
    got = provider.requests[0].headers
    assert got.getall("Authorization") == [f"Bearer {KEY}"]
    assert got["X-Custom"] == "kept"
    assert not {"x-api-key", "Cookie", "OpenAI-Organization", "X-Forwarded-For"} & set(got)


async def test_status_and_useful_headers_of_the_provider_are_passed_on(
    provider: Provider, proxy: str, client: aiohttp.ClientSession
) -> None:
    useful = {"retry-after": "7", "x-ratelimit-remaining-tokens": "5", "x-request-id": "req-1"}

    async def handler(_: web.Request) -> web.Response:
        headers = {**useful, "set-cookie": "a=b", "keep-alive": "timeout=5"}
        return web.json_response({"error": {"message": "slow down"}}, status=429, headers=headers)

    provider.handler = handler
    async with client.post(f"{proxy}/v1/chat/completions", json={}) as response:
        assert response.status == 429
        assert await response.json() == {"error": {"message": "slow down"}}
        assert useful.items() <= response.headers.items()
        assert not {"set-cookie", "keep-alive"} & {name.lower() for name in response.headers}


async def test_a_piece_arrives_before_the_next_is_sent(
    provider: Provider, proxy: str, client: aiohttp.ClientSession
) -> None:
    seen = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await seen.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    provider.handler = handler
    async with client.post(f"{proxy}/v1/chat/completions", json={"stream": True}) as response:
        assert await response.content.readany() == b"data: 1\n\n"
        seen.set()
        assert await response.content.read() == b"data: [DONE]\n\n"


@pytest.mark.parametrize("bytes_first", [True, False], ids=["during the answer", "before its first byte"])
async def test_a_client_that_leaves_cancels_the_request_at_the_provider(
    provider: Provider, proxy: str, client: aiohttp.ClientSession, bytes_first: bool
) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if bytes_first:
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return response

    provider.handler = handler
    request = asyncio.ensure_future(client.post(f"{proxy}/v1/chat/completions", json={}))
    await began.wait()
    if bytes_first:
        (await request).close()
    else:
        request.cancel()
    async with asyncio.timeout(2):
        await cancelled.wait()


async def test_an_answer_that_breaks_off_is_not_ended_as_if_it_were_complete(
    provider: Provider, proxy: str, client: aiohttp.ClientSession
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        assert request.transport
        request.transport.abort()
        return response

    provider.handler = handler
    async with client.post(f"{proxy}/v1/chat/completions", json={}) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_provider_that_cannot_be_reached_is_502(
    client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    app = HostedProxy(Upstream("acme", url, Credential(variable="TEST_KEY"), 8))
    async with serve(app) as proxy, client.post(f"{proxy}/v1/chat/completions", json={}) as response:
        assert response.status == 502
        text = await response.text()
        error = (await response.json())["error"]
    assert (error["type"], error["code"]) == ("server_error", "provider_unreachable"), "as the ingress says it"
    assert "acme" in error["message"]
    assert KEY not in text + caplog.text + repr(app.__dict__)


async def test_a_silent_provider_is_504(
    provider: Provider, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted, "SILENCE_TIMEOUT", 0.05)

    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    provider.handler = handler
    app = HostedProxy(Upstream("acme", provider.url, None, 8))
    async with serve(app) as proxy, client.post(f"{proxy}/v1/chat/completions", json={}) as response:
        assert response.status == 504
        assert (await response.json())["error"]["code"] == "provider_timeout"


async def test_a_compressed_answer_passes_as_it_is(
    provider: Provider, proxy: str, client: aiohttp.ClientSession
) -> None:
    packed = gzip.compress(b'{"a": 1}')

    async def handler(request: web.Request) -> web.Response:
        if "gzip" not in request.headers["accept-encoding"]:
            return web.Response(text=request.headers["accept-encoding"])
        return web.Response(body=packed, headers={"content-encoding": "gzip"})

    provider.handler = handler
    url = f"{proxy}/v1/embeddings"
    async with client.post(url, json={}, headers={"accept-encoding": "gzip"}) as response:
        assert response.headers["content-encoding"] == "gzip"
        assert await response.read() == packed
    async with client.post(url, json={}, skip_auto_headers=("accept-encoding",)) as response:
        assert await response.text() == "identity"


async def test_more_than_the_accounts_concurrency_is_refused_at_once(
    provider: Provider, client: aiohttp.ClientSession
) -> None:
    began, finish = asyncio.Event(), asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        began.set()
        await finish.wait()
        return web.Response()

    provider.handler = handler
    async with serve(HostedProxy(Upstream("acme", provider.url, None, 1))) as proxy:
        first = asyncio.ensure_future(client.post(f"{proxy}/v1/chat/completions", json={}))
        await began.wait()
        async with client.post(f"{proxy}/v1/chat/completions", json={}) as second:
            assert second.status == 429
            assert second.headers["retry-after"] == "1"
            assert (await second.json())["error"]["code"] == "provider_concurrency"
        finish.set()
        async with await first as response:
            assert response.status == 200


async def test_a_refused_key_is_not_quoted_to_the_client(
    provider: Provider, proxy: str, client: aiohttp.ClientSession
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status=401)

    provider.handler = handler
    async with client.post(f"{proxy}/v1/chat/completions", json={}) as response:
        assert response.status == 401
        assert KEY not in await response.text()
        assert (await response.json())["error"]["code"] == "provider_credential_refused"


async def test_a_changed_key_file_is_used_at_once(
    provider: Provider, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("sk-first\n")
    async with serve(HostedProxy(Upstream("acme", provider.url, Credential(file=file), 8))) as proxy:
        for key in ("sk-first", "sk-second-key"):
            file.write_text(key + "\n")
            async with client.get(f"{proxy}/v1/models") as response:
                assert response.status == 200
            assert provider.requests[-1].headers["Authorization"] == f"Bearer {key}"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/chat/completions"), ("DELETE", "/v1/models/m"), ("POST", "/admin"), ("POST", "/v1/%2e%2e/admin")],
)
async def test_nothing_else_is_offered(
    provider: Provider, proxy: str, client: aiohttp.ClientSession, method: str, path: str
) -> None:
    async with client.request(method, URL(proxy + path, encoded=True)) as response:
        assert response.status == 404
    assert provider.requests == []


async def test_health_does_not_ask_the_provider(provider: Provider, proxy: str, client: aiohttp.ClientSession) -> None:
    async with client.get(f"{proxy}/health") as response:
        assert response.status == 200
    assert provider.requests == []


async def test_a_missing_key_keeps_the_proxy_from_starting() -> None:
    with pytest.raises(CredentialError, match="the environment variable NO_SUCH_KEY"):
        HostedProxy(Upstream("acme", "https://api.example.com/v1", Credential(variable="NO_SUCH_KEY"), 8))
