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
from meritorder.core.catalog import Backend, Capabilities, Endpoint, Tier
from meritorder.core.plan import Attempt, Score
from meritorder.core.pricing import Price, ServiceTier
from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage

pytestmark = pytest.mark.asyncio(loop_scope="session")

BACKEND = Backend("b", Tier.HOSTED, "app", "up", Capabilities(frozenset(Endpoint)), Price.flat(Decimal(1), Decimal(1)))
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


def attempt(url: str) -> Attempt:
    return Attempt(BACKEND, url, Score(0.0, 0.0, 0.0, 0.0))


def request(stream: bool = True) -> InferenceRequest:
    return InferenceRequest("req_1", Endpoint.CHAT_COMPLETIONS, "m", stream, False, 2, lambda name: b"{}")


async def failure(client: BackendClient, url: str, stream: bool = True) -> tuple[Failure, str]:
    with pytest.raises(AttemptFailed) as caught:
        await client.open(attempt(url), request(stream))
    return caught.value.failure, caught.value.reason


async def whole_answer(client: BackendClient, raw: RawBackend) -> list[bytes]:
    answer = await client.open(attempt(raw.url), request(stream=False))
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
    answer = await client.open(attempt(raw.url), request())
    with pytest.raises(AttemptFailed, match=r"was silent for 0\.2 s in the middle of its answer") as caught:
        await read(answer)
    await answer.close()
    assert caught.value.failure is Failure.TIMEOUT
    assert answer.usage.output_tokens == 1


class TestARequestThatHasLittleTimeLeft:
    async def test_it_is_given_up_then(self, raw: RawBackend) -> None:
        raw.reset((HOLD,))
        async with BackendClient(Timeouts()) as client, asyncio.timeout(5):
            with pytest.raises(AttemptFailed) as caught:
                await client.open(attempt(raw.url), request(), seconds=0.05)
        assert (caught.value.failure, caught.value.reason) == (Failure.TIMEOUT, "did not answer in time")
        assert caught.value.usage == Usage(1, 0, estimated=True), "the backend had it, and may charge for it"

    async def test_more_time_than_usual_is_not_given(self, client: BackendClient, raw: RawBackend) -> None:
        raw.reset((HOLD,))
        async with asyncio.timeout(5):
            with pytest.raises(AttemptFailed, match="did not answer in time"):
                await client.open(attempt(raw.url), request(), seconds=60)


LIMITS = (b"X-RateLimit-Remaining-Requests: 3", b"Anthropic-RateLimit-Tokens-Remaining: 9", b"server: x")
LIMITS_READ = {"x-ratelimit-remaining-requests": "3", "anthropic-ratelimit-tokens-remaining": "9"}


async def test_an_answer_tells_what_is_left_of_the_rate_limits(client: BackendClient, raw: RawBackend) -> None:
    raw.reset(whole(ANSWER, "200 OK", *LIMITS))
    answer = await client.open(attempt(raw.url), request(stream=False))
    assert answer.limits == LIMITS_READ
    assert not answer.headers.keys() & answer.limits.keys(), "they are the platform's own, and not the client's"
    await answer.close()


async def test_a_refusal_tells_it_too(client: BackendClient, raw: RawBackend) -> None:
    raw.reset(whole(b"{}", "429 Too Many Requests", *LIMITS, b"Retry-After: 7"))
    with pytest.raises(AttemptFailed) as caught:
        await client.open(attempt(raw.url), request())
    assert (caught.value.failure, caught.value.retry_after) == (Failure.BUSY, 7.0)
    assert caught.value.limits == LIMITS_READ | {"retry-after": "7"}
    assert caught.value.usage is None


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
            second = asyncio.create_task(failure(client, raw.url))
            await eventually(asked)
            await asyncio.sleep(0.1)
            raw.go.set()
            assert await second == (Failure.BROKEN_STREAM, "closed the connection")
        assert (len(raw.bodies), raw.connections) == (2, 1)


async def test_no_reason_names_an_address(client: BackendClient) -> None:
    _, reason = await failure(client, "http://name-that-is-nowhere.invalid:1234")
    assert "invalid" not in reason
    assert "1234" not in reason


async def test_a_compressed_answer_is_read_all_the_same(client: BackendClient, raw: RawBackend) -> None:
    raw.reset(whole(gzip.compress(b'{"choices":[]}'), "200 OK", b"content-encoding: gzip"))
    answer = await client.open(attempt(raw.url), request(stream=False))
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
        await client.open(attempt(raw.url), request())
    assert caught.value.reason == "is not available (HTTP 502)"
    assert detail in caught.value.detail
    assert bool(caught.value.detail) == bool(detail)


@pytest.mark.parametrize(
    "body",
    [b'{"error":{"message":"m"}}', b'{"detail":[{"loc":["body","top_k"],"msg":"m"}]}', b'{"object":"error"}', b"{}"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_rejection_is_passed_on_in_the_backend_s_own_words(
    client: BackendClient, raw: RawBackend, body: bytes, stream: bool
) -> None:
    raw.reset(whole(body, "422 Unprocessable Entity"))
    answer = await client.open(attempt(raw.url), request(stream))
    assert (answer.rejected, answer.status, await read(answer)) == (True, 422, [body])
    await answer.close()


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'"no"'])
async def test_a_rejection_that_no_client_can_read_is_none(client: BackendClient, raw: RawBackend, body: bytes) -> None:
    raw.reset(whole(body, "400 Bad Request"))
    reason = "refused without saying why (HTTP 400)"
    assert await failure(client, raw.url) == (Failure.MALFORMED, reason)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_an_answer_tells_the_service_tier_that_it_came_from(
    client: BackendClient, raw: RawBackend, stream: bool
) -> None:
    said = b'{"choices":[{"delta":{"content":"a"},"text":"a"}],"service_tier":"flex"}'
    raw.reset(streamed(b"data: " + said + b"\n\n", b"data: [DONE]\n\n") if stream else whole(said))
    answer = await client.open(attempt(raw.url), request(stream))
    await read(answer)
    await answer.close()
    assert answer.service_tier is ServiceTier.FLEX
