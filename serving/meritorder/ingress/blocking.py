"""What blocks on the database, done in a thread; nothing of it is on the path of an inference request."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf
from typing import Any, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from meritorder.core.errors import LedgerUnavailable

THREADS = 4

_RETRY_SECONDS = 5.0
_QUEUE_SECONDS = 1.0
"""After which there should be room again: each call takes milliseconds, unless the database hangs."""

_Result = TypeVar("_Result")

# Threads of its own: however many ask, what keeps the ingress up to date finds a thread of the event loop's.
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blocking")
_calls: set[Future[Any]] = set()  # that have not ended


async def in_thread(work: Callable[..., _Result], *arguments: Any, most_waiting: float = inf) -> _Result:
    """What `work` returns.

    Raises:
        LedgerUnavailable: the database does not answer, or as many calls as `most_waiting` wait for a thread.
    """
    if len(_calls) >= THREADS + most_waiting:
        message = "The ledger's database is busy, and too many wait for it; try again later."
        raise LedgerUnavailable(message, retry_after=_QUEUE_SECONDS)
    call = _threads.submit(work, *arguments)
    _calls.add(call)
    call.add_done_callback(_calls.discard)  # and not when it is no longer awaited: its thread may still be taken
    try:
        return await asyncio.wrap_future(call)
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        message = "The ledger's database cannot be reached or is busy; try again later."
        raise LedgerUnavailable(message, retry_after=_RETRY_SECONDS) from error
