"""The body of a request: read whole, up to a limit."""

import asyncio
import contextlib
from collections.abc import Mapping

from starlette.types import Receive

from meritorder.core.errors import BodyTooLarge

_LINGER_SECONDS = 2.0
"""How long a client may go on sending what is not wanted. One that is cut off sooner often never reads why."""


class ClientLeft(Exception):
    """The connection closed before the request was read whole."""


class Body:
    """The body that is to come. `limit` is in bytes."""

    def __init__(self, headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._announced = int(headers.get(b"content-length", b"0"))
        self._more = self._announced > 0 or b"transfer-encoding" in headers
        # Such a client sends nothing until it is told to, and an error tells it not to.
        self._waits = b"expect" in headers

    async def read(self) -> bytes:
        """All of it.

        Raises:
            BodyTooLarge: it is over the limit; the rest is left unread.
            ClientLeft: there is no client any more.
        """
        if self._announced > self._limit:
            raise BodyTooLarge(self._limit)
        chunks = [await self._next()]
        size = len(chunks[0])
        while self._more and size <= self._limit:
            chunks.append(await self._next())
            size += len(chunks[-1])
        if size > self._limit:
            raise BodyTooLarge(self._limit)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def discard(self) -> None:
        """Read what is left of it, for a while, so that the connection can be used for the next request."""
        with contextlib.suppress(TimeoutError, ClientLeft):
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._more and not self._waits:
                    await self._next()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        self._more = message.get("more_body", False)
        return bytes(message.get("body", b""))
