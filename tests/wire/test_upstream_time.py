"""Latency and rate limits of the simulated upstream, on a clock that only moves when it is told to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest

from meritorder.testing.upstream import Behaviour, FakeClock, Rule, Script, ScriptedUpstream
from meritorder.testing.upstream.errors import ApiError
from meritorder.testing.upstream.limits import Gate, RequestRate, format_duration
from meritorder.testing.upstream.playbook import Pacer, Playbook

CHAT = {"model": "gpt-sim", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def up(clock: FakeClock) -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(clock=clock) as upstream:
        yield upstream


@pytest.fixture
async def http(up: ScriptedUpstream) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(up.base_url, headers={"Authorization": "Bearer any"}) as session:
        yield session


def chat(http: aiohttp.ClientSession, **fields: object) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    return http.post("/v1/chat/completions", json={**CHAT, **fields})


async def advance(clock: FakeClock, seconds: float) -> None:
    """Move time on once the upstream waits for it."""
    await clock.wait_for_sleepers()
    clock.advance(seconds)


async def test_first_token_comes_after_ttft_and_each_other_after_itl(
    clock: FakeClock, up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    up.set_script(Script.always(Behaviour(ttft_ms=300, itl_ms=20, tokens=3)))

    async def read() -> bytes:
        async with chat(http, stream=True) as response:
            return await response.read()

    reading = asyncio.create_task(read())
    await advance(clock, 0.299)
    await clock.wait_for_sleepers()
    assert up.requests[0].first_byte_s is None
    clock.advance(0.001)
    await up.wait_until(lambda requests: requests[0].chunks_sent == 2)  # the role and the first token
    await advance(clock, 0.020)
    await up.wait_until(lambda requests: requests[0].chunks_sent == 3)
    await advance(clock, 0.020)
    assert b"[DONE]" in await reading
    [request] = up.requests
    assert request.first_byte_s == pytest.approx(0.300)
    assert request.ended_s == pytest.approx(0.340)
    assert request.outcome == "completed"
    assert request.chunks_sent == 5


async def test_whole_answer_takes_as_long_as_the_stream(
    clock: FakeClock, up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    up.set_script(Script.always(Behaviour(ttft_ms=300, itl_ms=20, tokens=3)))

    async def read() -> bytes:
        async with chat(http) as response:
            return await response.read()

    reading = asyncio.create_task(read())
    await advance(clock, 0.300)
    await advance(clock, 0.040)
    await reading
    assert up.requests[0].first_byte_s == up.requests[0].ended_s == pytest.approx(0.340)


async def test_error_waits_for_ttft(clock: FakeClock, up: ScriptedUpstream, http: aiohttp.ClientSession) -> None:
    up.set_script(Script.always(Behaviour(ttft_ms=500, status=503)))

    async def status() -> int:
        async with chat(http) as response:
            return response.status

    answering = asyncio.create_task(status())
    await advance(clock, 0.5)
    assert await answering == 503
    assert up.requests[0].first_byte_s == pytest.approx(0.5)


async def waits(seed: int, jitter: float, requests: int = 1) -> list[list[float]]:
    """Return when, in seconds after its start, each of three waits of 100 ms ends, per request."""
    script = Script.always(Behaviour(jitter=jitter, seed=seed))
    playbook = Playbook(script, FakeClock())
    ends = []
    for _ in range(requests):
        clock = FakeClock()
        pacer = Pacer(playbook.meet("chat", "m"), clock, clock.monotonic())
        ends.append([await _end_of_wait(pacer, clock) for _ in range(3)])
    return ends


async def _end_of_wait(pacer: Pacer, clock: FakeClock) -> float:
    waiting = asyncio.create_task(pacer.wait(100))
    while not waiting.done():
        clock.advance(0.001)
        await asyncio.sleep(0)
    return clock.monotonic()


async def test_jitter_is_bounded_and_follows_from_the_seed() -> None:
    first, second = await waits(seed=1, jitter=0.5, requests=2)
    assert first != second
    assert await waits(seed=1, jitter=0.5, requests=2) == [first, second]
    assert await waits(seed=2, jitter=0.5) != [first]
    for ends in (first, second):
        gaps = [end - start for start, end in zip([0.0, *ends], ends, strict=False)]
        assert all(0.045 < gap < 0.155 for gap in gaps)


async def test_wait_that_took_too_long_shortens_the_next() -> None:
    clock = FakeClock()
    pacer = Pacer(Playbook(Script(), clock).meet("chat", "m"), clock, clock.monotonic())
    clock.advance(0.150)
    await pacer.wait(100)  # due 50 ms ago
    waiting = asyncio.create_task(pacer.wait(100))
    await advance(clock, 0.050)
    await waiting


async def test_requests_beyond_the_rate_get_a_429_that_says_when_to_retry(
    clock: FakeClock, up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    up.set_script(Script.always(Behaviour(requests_per_minute=2)))
    for remaining, reset in [("1", "30s"), ("0", "1m0s")]:
        async with chat(http) as response:
            assert response.status == 200
            assert response.headers["x-ratelimit-limit-requests"] == "2"
            assert response.headers["x-ratelimit-remaining-requests"] == remaining
            assert response.headers["x-ratelimit-reset-requests"] == reset
    clock.advance(0.5)
    async with chat(http, stream=True) as response:
        assert response.status == 429
        assert response.headers["retry-after"] == "30"
        assert response.headers["retry-after-ms"] == "29500"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        error = (await response.json())["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    clock.advance(29.5)
    async with chat(http) as response:
        assert response.status == 200
    async with chat(http) as response:
        assert response.status == 429


async def test_requests_beyond_the_concurrency_get_a_429_until_one_ends(
    clock: FakeClock, up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    up.set_script(Script.always(Behaviour(concurrency=1, ttft_ms=1000)))
    first = asyncio.create_task(_read(http))
    await clock.wait_for_sleepers()
    async with chat(http) as response:
        assert response.status == 429
        assert response.headers["retry-after"] == "1"
        assert response.headers["x-ratelimit-remaining-concurrency"] == "0"
    clock.advance(1)
    assert await first == 200
    second = asyncio.create_task(_read(http))
    await advance(clock, 1)
    assert await second == 200


async def _read(http: aiohttp.ClientSession) -> int:
    async with chat(http) as response:
        await response.read()
        return response.status


async def test_client_that_leaves_gives_its_slot_back(
    clock: FakeClock, up: ScriptedUpstream, http: aiohttp.ClientSession
) -> None:
    up.set_script(Script(rules=[Rule(behaviour=Behaviour(concurrency=1, ttft_ms=1000))]))
    leaving = asyncio.create_task(_read(http))
    await clock.wait_for_sleepers()
    leaving.cancel()
    await up.wait_until(lambda requests: requests[0].outcome == "client_disconnected")
    staying = asyncio.create_task(_read(http))
    await advance(clock, 1)
    assert await staying == 200


async def test_limits_of_two_rules_are_counted_apart(up: ScriptedUpstream, http: aiohttp.ClientSession) -> None:
    limited = Behaviour(requests_per_minute=1)
    up.set_script(Script(rules=[Rule(endpoint="chat", behaviour=limited), Rule(behaviour=limited)]))
    statuses = []
    for _ in range(2):
        async with chat(http) as response:
            statuses.append(response.status)
        body: dict[str, Any] = {"model": "gpt-sim", "prompt": "hi"}
        async with http.post("/v1/completions", json=body) as response:
            statuses.append(response.status)
    assert statuses == [200, 200, 429, 429]


def test_rate_is_refilled_evenly_and_not_beyond_one_minute(clock: FakeClock) -> None:
    rate = RequestRate(60, clock)
    assert sum(rate.take() for _ in range(100)) == 60
    assert rate.retry_after_s() == pytest.approx(1)
    clock.advance(10)
    assert sum(rate.take() for _ in range(100)) == 10
    clock.advance(3600)
    assert sum(rate.take() for _ in range(100)) == 60


def test_rate_does_not_lose_requests_to_rounding(clock: FakeClock) -> None:
    rate = RequestRate(7, clock)
    while rate.take():
        pass
    for _ in range(100):
        clock.advance(rate.retry_after_s())
        assert rate.take()
        assert not rate.take()


def test_refusal_by_concurrency_is_not_counted_against_the_rate(clock: FakeClock) -> None:
    gate = Gate(requests_per_minute=2, concurrency=1, clock=clock)
    with gate.admit():
        for _ in range(5):
            with pytest.raises(ApiError, match="1 at one time"), gate.admit():
                pass
    with gate.admit() as headers:
        assert headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (0.9999, "1s"), (8.64, "8.64s"), (60, "1m0s"), (372.5, "6m12.5s")],
)
def test_duration_is_written_as_openai_does(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
