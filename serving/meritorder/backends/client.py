"""One attempt at one backend.

An attempt either fails here, before the client has seen a byte, and the next one may be made; or it returns an
`Answer` whose beginning has been read and found good.
"""

import asyncio
import contextlib
import io
import math
import time
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType
from typing import Self

import aiohttp
import msgspec

from meritorder.backends.answer import Answer
from meritorder.backends.failures import AttemptFailed, Failure, from_exception, from_status, limit_headers
from meritorder.core.plan import Attempt
from meritorder.core.request import InferenceRequest
from meritorder.wire.answers import estimate

_LARGE_BODY_BYTES = 1_000_000
"""aiohttp sends bytes at one go, during which nobody else is served, and a file in pieces."""


_ERROR_BODY_BYTES, _ERROR_BODY_SECONDS = 8192, 1.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds. `first_byte`: until an answer begins, or is complete where it is not streamed, long enough for
    a reasoning model. `silence`: the longest pause inside a stream. `at_once`: how soon a connection from the pool
    fails that was closed before the request came, a round trip; a backend that has begun to work fails later."""

    connect: float = 5.0
    first_byte: float = 300.0
    silence: float = 60.0
    at_once: float = 0.05


class BackendClient:
    """A pool of connections to all backends. Use it as a context manager, in a running event loop."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        reuse = aiohttp.TraceConfig()
        reuse.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            # No limit of its own: dispatch decides what is let in, and a queue here would be invisible.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            # `connect` has the look-up of the name in it, `sock_connect` has not.
            timeout=aiohttp.ClientTimeout(total=None, connect=self._timeouts.connect),
            headers={"Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[reuse],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def open(self, attempt: Attempt, request: InferenceRequest, seconds: float | None = None) -> Answer:
        """Send `request` and wait until its answer begins, for `seconds` at most where they are fewer than usual.

        Raises:
            AttemptFailed: nothing came that a client can use.
        """
        answer: Answer | None = None
        try:
            async with asyncio.timeout(min(math.inf if seconds is None else seconds, self._timeouts.first_byte)):
                response = await self._send(attempt, request)
                answer = Answer(response, request, self._timeouts.silence)
                if refusal := from_status(response.status, response.headers.get("retry-after")):
                    refusal.limits = limit_headers(response.headers)
                    refusal.detail = await _proxys_words(response)
                    raise refusal
                await answer.peek()
                return answer
        except BaseException as error:
            if answer is not None:
                await answer.close()
            if (failed := error if isinstance(error, AttemptFailed) else from_exception(error)) is None:
                raise
            if answer is not None and answer.tokens:
                failed.usage = answer.usage
            elif isinstance(error, TimeoutError) and failed.failure is Failure.TIMEOUT:
                failed.usage = estimate(request, 0)  # it had the request, and was at work
            raise failed from None

    async def _send(self, attempt: Attempt, request: InferenceRequest) -> aiohttp.ClientResponse:
        """The head of the response. A connection that proves to be closed is replaced by a new one, once."""
        used = SimpleNamespace(again_at=None)
        try:
            return await self._post(attempt, request, used)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # A backend may close an idle connection at the moment at which it is used again; to ask it once more
            # is better than to go to a dearer one then. Nothing tells that from a backend that has taken the
            # request and died of it, which must not get it twice, but the time that has passed.
            if used.again_at is None or time.monotonic() - used.again_at > self._timeouts.at_once:
                raise
        return await self._post(attempt, request, used)

    async def _post(self, attempt: Attempt, request: InferenceRequest, used: SimpleNamespace) -> aiohttp.ClientResponse:
        assert self._session is not None, "use BackendClient as a context manager"
        body = request.body_for(attempt.backend.upstream_model)
        return await self._session.post(
            f"{attempt.base_url}/v1/{request.endpoint}",
            data=body if len(body) < _LARGE_BODY_BYTES else io.BytesIO(body),
            headers={"content-type": "application/json", "x-request-id": request.id},
            allow_redirects=False,
            trace_request_ctx=used,
        )


async def _proxys_words(response: aiohttp.ClientResponse) -> str:
    """The sentence of our own hosted proxy, if the error is one of its own: a provider's is not for our logs."""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError, msgspec.MsgspecError, KeyError, TypeError):
        async with asyncio.timeout(_ERROR_BODY_SECONDS):
            error = msgspec.json.decode(await response.content.read(_ERROR_BODY_BYTES))["error"]
        if str(error["code"]).startswith("provider_"):
            return str(error["message"])
    return ""


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, _: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.again_at = time.monotonic()
