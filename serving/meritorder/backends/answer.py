"""A good answer to one attempt: read far enough to know that it is one, and not further."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import aiohttp

from meritorder.backends.failures import AttemptFailed, Failure, from_exception
from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage
from meritorder.wire.answers import ErrorEvent, MalformedAnswer, StreamReader, estimate, usage_of
from meritorder.wire.sse import EventSplitter

_KEPT_HEADERS = ("content-type", "retry-after", "x-simulated")
_END_OF_BODY_SECONDS = 1.0


class Answer:
    """What a backend answers. Iterate over `chunks` for its body, then ask for `usage`; `close` it in any case.

    Closing before the end cuts the connection, which is how a backend learns that nobody listens any more.
    """

    def __init__(self, response: aiohttp.ClientResponse, request: InferenceRequest, silence: float) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = {
            name: value for name in _KEPT_HEADERS if (value := response.headers.get(name)) is not None
        }
        self._response = response
        self._request = request
        self._silence = silence
        self._reader = StreamReader()
        self._splitter = EventSplitter()
        self._first: list[bytes] = []
        self._reported: Usage | None = None

    @property
    def rejected(self) -> bool:
        """The backend found the request itself at fault; the body says why."""
        return self.status >= 400

    @property
    def streamed(self) -> bool:
        return self._request.stream and not self.rejected

    @property
    def usage(self) -> Usage:
        """What has been used so far: as the backend reports it, or counted where it has not."""
        if self.rejected:
            return Usage()
        return self._reader.usage or self._reported or estimate(self._request, self._reader.content_events)

    async def peek(self) -> None:
        """Read the first event with content, or all of the body where it is not streamed.

        Raises:
            AttemptFailed: what came is no answer.
        """
        if not self.streamed:
            body = await self._response.read()
            if not self.rejected:
                try:
                    self._reported = usage_of(body)
                except MalformedAnswer:
                    raise AttemptFailed(Failure.MALFORMED, "sent a body that is not JSON") from None
            self._first = [body]
            return
        while not (self._reader.content_events or self._reader.done):
            self._first += self._read(await self._next_chunk())

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, whole events at a time.

        Raises:
            AttemptFailed: the stream broke; what has been yielded until then ends with a whole event.
        """
        if self._first:
            yield b"".join(self._first)
        if not self.streamed:
            return
        while not self._reader.done:
            try:
                async with asyncio.timeout(self._silence):
                    chunk = await self._next_chunk()
            except TimeoutError:
                reason = f"was silent for {self._silence:g} s in the middle of its answer"
                raise AttemptFailed(Failure.TIMEOUT, reason) from None
            if events := self._read(chunk):
                yield b"".join(events)
        await self._finish()

    def close(self) -> None:
        """Return the connection to the pool where the answer was read to its end; cut it where it was not."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()

    async def _finish(self) -> None:
        # The end of the body follows [DONE] at once; having read it, the connection can be used again.
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(_END_OF_BODY_SECONDS):
                while await self._response.content.readany():
                    pass

    async def _next_chunk(self) -> bytes:
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise from_exception(error) or error from None
        if not chunk:
            raise AttemptFailed(Failure.BROKEN_STREAM, "ended its stream without [DONE]")
        return chunk

    def _read(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes and that the client wants to see."""
        wanted = []
        for event in self._splitter.feed(chunk):
            try:
                usage_only = self._reader.read(event)
            except MalformedAnswer:
                raise AttemptFailed(Failure.MALFORMED, "sent an event that is not JSON") from None
            except ErrorEvent as error:
                said = f" (status {error.status})" if error.status else ""
                raise AttemptFailed(Failure.SERVER_ERROR, f"reported an error in its stream{said}") from None
            if not usage_only or self._request.wants_usage_chunk:
                wanted.append(event)
        return wanted
