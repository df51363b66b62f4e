"""Stopping without losing anything: what is open may end, for a time; then it is ended here.

On SIGTERM the server refuses new connections, closes idle ones, and waits for the requests that are open. If
it had to wait for too long it would be killed, and with it the usage records that it has not written.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine

from meritorder.ingress.world import World


class OpenRequests:
    """The requests that are being read and answered."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, client_left: Coroutine[None, None, None], work: Coroutine[None, None, None]) -> None:
        """Do `work`, and cancel it when `client_left` returns."""
        task = asyncio.create_task(work)
        watch = asyncio.create_task(client_left)
        self._tasks.add(task)
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            self._tasks.discard(task)
        if not task.cancelled():
            task.result()

    def halt(self) -> None:
        """End all of them now; each tells its client."""
        self._world.halted = True
        for task in self._tasks:
            task.cancel()


def on_stop(seconds: float, halt: Callable[[], None]) -> None:
    """Call `halt` this long after a SIGTERM, which goes its usual way all the same."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.call_later(seconds, halt)
        # granian handles SIGINT as it does SIGTERM, whose handler is now this one.
        os.kill(os.getpid(), signal.SIGINT)

    loop.add_signal_handler(signal.SIGTERM, stop)
