"""A good answer to one attempt: read far enough to know that it is one, and not further."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp

from meritorder.backends.failures import AttemptFailed, Failure, from_exception, limit_headers
from meritorder.core.pricing import ServiceTier
from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage
from meritorder.wire.annotations import annotated
from meritorder.wire.answers import (
    ErrorEvent,
    MalformedAnswer,
    StreamReader,
    estimate,
    is_error,
    output_tokens_in,
    whole_answer,
)
from meritorder.wire.sse import DONE, EventSplitter, EventTooLong, data_of

_KEPT_HEADERS = ("content-type", "retry-after", "x-simulated")
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""A proxy between here and the client must not collect a stream; nginx does unless told."""

_END_OF_BODY_SECONDS = 1.0


class _UsageEvent(bytes):
    """An event with nothing but usage, which is told more when it goes out."""


class Answer:
    """What a backend answers. Iterate over `chunks` for its body, then ask for `usage`; `close` it in any case.

    `explain`, where it is set before `chunks`, says what the usage event of a stream tells beside the usage.
    `limits` are the headers in which a provider says what is left of its rate limits.

    Closing before the end cuts the connection, which is how a backend learns that nobody listens any more.
    """

    def __init__(self, response: aiohttp.ClientResponse, request: InferenceRequest, silence: float) -> None:
        self.status = response.status
        self.headers = {name: value for name in _KEPT_HEADERS if (value := response.headers.get(name)) is not None}
        self.limits = limit_headers(response.headers)
        self.explain: Callable[[], Mapping[str, Any]] | None = None
        self._response = response
        self._request = request
        self._silence = silence
        self._reader = StreamReader()
        self._splitter = EventSplitter()
        self._first: list[bytes] = []
        self._whole: Usage | None = None
        self._whole_tier: ServiceTier | None = None
        self._broken: AttemptFailed | None = None

    @property
    def rejected(self) -> bool:
        """The backend found the request itself at fault; the body says why."""
        return self.status >= 400

    @property
    def streamed(self) -> bool:
        return self._request.stream and not self.rejected

    @property
    def tokens(self) -> int:
        """How many tokens of a stream came so far, estimated; 0 until an event has said something."""
        return self._reader.tokens

    @property
    def service_tier(self) -> ServiceTier | None:
        """The one that the backend says it served the request in, which need not be the one that was asked for."""
        return self._whole_tier or self._reader.service_tier

    @property
    def usage(self) -> Usage:
        """What has been used so far: as the backend reports it, or counted where it has not."""
        if self.rejected:
            return Usage()
        return self._whole or self._reader.usage or estimate(self._request, self._reader.tokens)

    async def peek(self) -> None:
        """Read up to the first event that says something, or all of the body where it is not streamed.

        Raises:
            AttemptFailed: what came is no answer.
        """
        if self.streamed:
            self.headers |= _STREAM_HEADERS
            while not (self._reader.tokens or self._reader.done):
                self._first += self._read(await self._next_chunk())
                if self._broken:
                    raise self._broken
        else:
            body = await self._response.read()
            self._check(body)
            self.headers["content-length"] = str(len(body))
            self._first = [body]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, whole events at a time.

        Raises:
            AttemptFailed: the stream broke; what has been yielded until then ends with a whole event.
        """
        if self._first:
            yield self._join(self._first)
        while self.streamed and not self._reader.done:
            try:
                async with asyncio.timeout(self._silence):
                    chunk = await self._next_chunk()
            except TimeoutError:
                reason = f"was silent for {self._silence:g} s in the middle of its answer"
                raise AttemptFailed(Failure.TIMEOUT, reason) from None
            if events := self._read(chunk):
                yield self._join(events)
            if self._broken:
                raise self._broken

    async def close(self) -> None:
        """Return the connection to the pool where the answer was read to its end; cut it where it was not."""
        if self._reader.done:
            # The end of the body follows [DONE] at once; having read it, the connection can be used again.
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
                async with asyncio.timeout(_END_OF_BODY_SECONDS):
                    while await self._response.content.readany():
                        pass
        self._response.close()  # which leaves a connection alone that is back in the pool

    def abort(self) -> None:
        """Cut the connection, at once."""
        self._response.close()

    def _join(self, events: list[bytes]) -> bytes:
        if self.explain is not None and any(type(event) is _UsageEvent for event in events):
            explanation = self.explain()
            events = [annotated(event, explanation) if type(event) is _UsageEvent else event for event in events]
        return b"".join(events)

    def _check(self, body: bytes) -> None:
        try:
            if not self.rejected:
                reported, self._whole_tier = whole_answer(self._request.endpoint, body)
                self._whole = reported or estimate(self._request, output_tokens_in(self._request.endpoint, body))
            elif not is_error(body):
                raise AttemptFailed(Failure.MALFORMED, f"refused without saying why (HTTP {self.status})")
        except MalformedAnswer:
            raise AttemptFailed(Failure.MALFORMED, "sent a body that is not JSON") from None

    async def _next_chunk(self) -> bytes:
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise from_exception(error) or error from None
        if chunk:
            return chunk
        if data_of(self._splitter.pending) == DONE:
            return b"\n\n"  # that the last event lacks its empty line harms nobody
        raise AttemptFailed(Failure.BROKEN_STREAM, "ended its stream too soon")

    def _read(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes and that the client wants to see; `_broken` says why there is no more."""
        wanted: list[bytes] = []
        try:
            for event in self._splitter.feed(chunk):
                if not self._reader.read(event):
                    wanted.append(event)
                elif self._request.wants_usage_chunk:
                    wanted.append(_UsageEvent(event))
        except MalformedAnswer:
            self._broken = AttemptFailed(Failure.MALFORMED, "sent what is no event with JSON")
        except EventTooLong:
            self._broken = AttemptFailed(Failure.MALFORMED, "sent an event without an end")
        except ErrorEvent as error:
            said = f" (status {error.status})" if error.status else ""
            self._broken = AttemptFailed(Failure.SERVER_ERROR, f"reported an error in its stream{said}")
        return wanted
