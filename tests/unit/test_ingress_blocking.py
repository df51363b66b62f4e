"""The database, asked from the event loop: by threads of its own, and by no more than they can serve soon."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import create_engine

from meritorder.core.errors import LedgerUnavailable
from meritorder.ingress.blocking import THREADS, in_thread


@asynccontextmanager
async def hanging(calls: int) -> AsyncIterator[threading.Event]:
    """So many calls of a database that hangs, until it answers; more of them than there are threads wait."""
    answers, begun = threading.Event(), threading.Semaphore(0)

    def hang() -> bool:
        begun.release()
        return answers.wait(30)

    tasks = [asyncio.create_task(in_thread(hang)) for _ in range(calls)]
    for _ in range(min(calls, THREADS)):
        assert await asyncio.to_thread(begun.acquire, timeout=30)
    try:
        yield answers
    finally:
        answers.set()
        assert all(await asyncio.gather(*tasks))


async def test_a_result_comes_back() -> None:
    assert await in_thread(max, 1, 2) == 2


async def test_a_database_that_is_away_is_no_fault_of_ours() -> None:
    engine = create_engine("postgresql+psycopg://127.0.0.1:9/none")
    with pytest.raises(LedgerUnavailable) as caught:
        await in_thread(engine.connect)
    assert (caught.value.status, caught.value.retry_after) == (503, 5.0)


async def test_a_database_that_hangs_does_not_hold_up_other_threads() -> None:
    async with hanging(THREADS + 40):
        assert await asyncio.wait_for(asyncio.to_thread(max, 1, 2), 20) == 2


async def test_whoever_may_wait_waits() -> None:
    async with hanging(THREADS + 1) as answers:
        waiting = asyncio.create_task(in_thread(max, 1, 2, most_waiting=2))
        await asyncio.sleep(0)
        assert not waiting.done()
        answers.set()
        assert await waiting == 2


async def test_one_more_than_may_wait_is_refused_at_once_and_told_when_to_come_again() -> None:
    async with hanging(THREADS + 2):
        with pytest.raises(LedgerUnavailable, match="too many wait") as caught:
            await in_thread(max, 1, 2, most_waiting=2)
    assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
    assert await in_thread(max, 1, 2, most_waiting=0) == 2


async def test_one_that_gave_up_waiting_waits_no_more() -> None:
    async with hanging(THREADS) as answers:
        left = asyncio.create_task(in_thread(max, 1, 2))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        next_one = asyncio.create_task(in_thread(max, 1, 2, most_waiting=1))
        await asyncio.sleep(0)
        assert not next_one.done()
        answers.set()
        assert await next_one == 2
