"""The upstream as something to start and stop: the handle that tests and the command line share."""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from aiohttp import web

from meritorder.testing.upstream.clock import Clock, SystemClock
from meritorder.testing.upstream.control import ControlPlane
from meritorder.testing.upstream.log import ReceivedRequest, RequestLog, Served
from meritorder.testing.upstream.playbook import Playbook
from meritorder.testing.upstream.provider import MAX_BODY_BYTES, SimulatedProvider
from meritorder.testing.upstream.script import Script

# Answers are broken off at the stop; this bounds what a client that does not read can add. Seconds.
_SHUTDOWN_S = 1.0


class ScriptedUpstream:
    """A simulated provider on a TCP port, in the running event loop.

        async with ScriptedUpstream(Script.always(Behaviour(status=503))) as up:
            client = AsyncOpenAI(base_url=up.v1_url, api_key="any")

    Once closed its port refuses connections; it cannot be started again.

    Args:
        script: what it does; nothing special by default.
        models: the names it answers to; a request for another is a 404.
        api_key: the accepted key; None accepts any that is not empty.
        host: a name or address of an interface. Port 0 is a free one.
        clock: for latencies, limits and the log.
        keep_requests: how many requests the log holds before it drops the oldest.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        models: Sequence[str] = ("gpt-sim",),
        api_key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Clock | None = None,
        keep_requests: int = 10_000,
    ) -> None:
        clock = clock or SystemClock()
        self._host = host
        self._port = port
        self._log = RequestLog(clock, keep_requests)
        self._playbook = Playbook(script or Script(), clock)
        self._provider = SimulatedProvider(tuple(models), api_key, self._playbook, self._log, clock)
        self._runner: web.AppRunner | None = None
        self._base_url = ""

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be had.
        """
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        ControlPlane(self._playbook, self._log).add_routes(app)
        self._provider.add_routes(app)
        app.on_shutdown.append(self._provider.stop)
        # Cancelling handlers is how a client that goes is noticed while nothing is being sent to it.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        host, port = runner.addresses[0][:2]
        self._base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def close(self) -> None:
        """Stop listening and break off running answers, whose outcome is then `failed`."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT`, without a path; empty before the start."""
        return self._base_url

    @property
    def v1_url(self) -> str:
        """What OpenAI's SDK takes as its base URL."""
        return f"{self._base_url}/v1"

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """What was received on the provider's endpoints, oldest first; running ones change later."""
        return self._log.requests

    @property
    def served(self) -> Mapping[str, Served]:
        """What each model has to be paid for since the start or `clear_requests`, by its name, ended requests only.

        An answer: its usage. A stream that broke after a token: the prompt, and the tokens that were sent. A client
        that left before a token: the prompt. An error, or an answer that it broke off before a token: nothing.
        """
        return self._log.served

    def clear_requests(self) -> None:
        """Forget what was received."""
        self._log.clear()

    def set_script(self, script: Script) -> None:
        """Put a script in force, with all counts at zero."""
        self._playbook.load(script)

    def reset_script(self) -> None:
        """Go back to the script of the start."""
        self._playbook.reset()

    async def wait_until(
        self, condition: Callable[[Sequence[ReceivedRequest]], object], timeout_s: float = 5.0
    ) -> None:
        """Return once the condition holds for the requests; it is asked whenever one of them changes.

        Raises:
            TimeoutError: it did not for `timeout_s` seconds of real time.
        """
        await self._log.wait_until(condition, timeout_s)
