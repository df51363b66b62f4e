"""One attempt at one backend: the times it is given, and what it says when they have passed."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
import pytest_asyncio
from tests.dataplane.conftest import CLOSE, HOLD, WAIT, RawBackend, eventually, streamed, whole

from meritorder.backends.answer import Answer
from meritorder.backends.client import BackendClient, Timeouts
from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Endpoint, Tier
from meritorder.core.plan import Attempt
from meritorder.core.pricing import Price
from meritorder.core.request import InferenceRequest

pytestmark = pytest.mark.asyncio(loop_scope="session")

BACKEND = Backend("b", Tier.HOSTED, "app", "up", frozenset(Endpoint), Price(Decimal(1), Decimal(1)))
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
ANSWER = b'{"choices":[]}'
SHORT = Timeouts(connect=0.2, first_byte=0.3, silence=0.2)


@pytest_asyncio.fixture(loop_scope="session")
async def raw() -> AsyncIterator[RawBackend]:
    async with RawBackend().run() as backend:
        yield backend


@pytest_asyncio.fixture(loop_scope="session")
async def client() -> AsyncIterator[BackendClient]:
    async with BackendClient(SHORT) as client:
        yield client


def request(stream: bool = True) -> InferenceRequest:
    return InferenceRequest("req_1", Endpoint.CHAT_COMPLETIONS, "m", stream, False, 2, lambda name: b"{}")


async def failure(client: BackendClient, url: str, stream: bool = True) -> tuple[Failure, str]:
    with pytest.raises(AttemptFailed) as caught:
        await client.open(Attempt(BACKEND, url), request(stream))
    return caught.value.failure, caught.value.reason


async def whole_answer(client: BackendClient, raw: RawBackend) -> list[bytes]:
    answer = await client.open(Attempt(BACKEND, raw.url), request(stream=False))
    try:
        return await read(answer)
    finally:
        await answer.close()


async def read(answer: Answer) -> list[bytes]:
    return [chunk async for chunk in answer.chunks()]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((HOLD,), id="nothing"),
        pytest.param((*streamed(b": ping\n\n", end=False), HOLD), id="comments only"),
        pytest.param((whole(b'{"choices":[]}')[:-3], HOLD), id="half of a body"),
    ],
)
async def test_an_answer_must_begin_in_time(
    client: BackendClient, raw: RawBackend, parts: tuple[bytes, ...], stream: bool
) -> None:
    raw.reset(parts)
    assert await failure(client, raw.url, stream) == (Failure.TIMEOUT, "did not answer in time")


async def test_a_stream_must_not_be_silent_for_long(client: BackendClient, raw: RawBackend) -> None:
    raw.reset((*streamed(TOKEN, end=False), HOLD))
    answer = await client.open(Attempt(BACKEND, raw.url), request())
    with pytest.raises(AttemptFailed, match=r"was silent for 0\.2 s in the middle of its answer") as caught:
        await read(answer)
    await answer.close()
    assert caught.value.failure is Failure.TIMEOUT
    assert answer.usage.output_tokens == 1


async def test_a_port_that_nobody_listens_on(client: BackendClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert await failure(client, url) == (Failure.UNREACHABLE, "refused the connection")


async def test_a_host_that_does_not_accept_in_time(client: BackendClient) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        assert await failure(client, url) == (Failure.UNREACHABLE, "did not accept the connection in time")
        for one in waiting:
            one.close()


class TestAConnectionThatIsUsedAgain:
    async def test_one_that_fails_at_once_is_replaced(self, raw: RawBackend) -> None:
        raw.reset(whole(ANSWER), (CLOSE,), whole(ANSWER))
        async with BackendClient(Timeouts(at_once=5.0)) as client:
            for _ in range(2):
                assert await whole_answer(client, raw) == [ANSWER]
        assert (len(raw.bodies), raw.connections) == (3, 2)

    async def test_only_once(self, raw: RawBackend) -> None:
        raw.reset(whole(ANSWER), (CLOSE,))
        async with BackendClient(Timeouts(at_once=5.0)) as client:
            await whole_answer(client, raw)
            assert await failure(client, raw.url) == (Failure.BROKEN_STREAM, "closed the connection")
        assert (len(raw.bodies), raw.connections) == (3, 2)

    async def test_one_that_fails_later_may_have_been_worked_on_and_is_a_failure(self, raw: RawBackend) -> None:
        raw.reset(whole(ANSWER), (WAIT, CLOSE), whole(ANSWER))

        async def asked() -> bool:
            return len(raw.bodies) == 2

        async with BackendClient(Timeouts(at_once=0.05)) as client:
            await whole_answer(client, raw)
            attempt = asyncio.create_task(failure(client, raw.url))
            await eventually(asked)
            await asyncio.sleep(0.1)
            raw.go.set()
            assert await attempt == (Failure.BROKEN_STREAM, "closed the connection")
        assert (len(raw.bodies), raw.connections) == (2, 1)


async def test_no_reason_names_an_address(client: BackendClient) -> None:
    _, reason = await failure(client, "http://name-that-is-nowhere.invalid:1234")
    assert "invalid" not in reason
    assert "1234" not in reason


async def test_a_compressed_answer_is_read_all_the_same(client: BackendClient, raw: RawBackend) -> None:
    raw.reset(whole(gzip.compress(b'{"choices":[]}'), "200 OK", b"content-encoding: gzip"))
    answer = await client.open(Attempt(BACKEND, raw.url), request(stream=False))
    assert await read(answer) == [b'{"choices":[]}']
    assert "content-encoding" not in answer.headers
    await answer.close()


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (
            b'{"error":{"code":"provider_unreachable","message":"provider \'p\' cannot be reached"}}',
            "cannot be reached",
        ),
        (b'{"error":{"code":"invalid_api_key","message":"Incorrect API key provided: sk-12"}}', ""),
        (b"<html>", ""),
        (b"[]", ""),
    ],
    ids=["our own proxy", "a provider", "no JSON", "no object"],
)
async def test_only_our_own_proxy_is_quoted_in_the_log(
    client: BackendClient, raw: RawBackend, body: bytes, detail: str
) -> None:
    raw.reset(whole(body, "502 Bad Gateway"))
    with pytest.raises(AttemptFailed) as caught:
        await client.open(Attempt(BACKEND, raw.url), request())
    assert caught.value.reason == "is not available (HTTP 502)"
    assert detail in caught.value.detail
    assert bool(caught.value.detail) == bool(detail)
