"""The body of a request: read whole, up to a limit of its size and of its time.

It is the only one that listens to the client, so it also notices when the client leaves.
"""

import asyncio
import contextlib
from collections.abc import Mapping

from starlette.types import Receive

from meritorder.core.errors import BodyTooLarge, RequestTimeout

_LINGER_SECONDS = 2.0
"""How long a client may go on sending what is not wanted. One that is cut off sooner often never reads why."""


class ClientLeft(Exception):
    """There is no client any more, or none that takes its answer."""


class Body:
    """The body that is to come. `limit` is in bytes, `seconds` is how long it may take."""

    def __init__(self, headers: Mapping[bytes, bytes], receive: Receive, limit: int, seconds: float) -> None:
        self._receive = receive
        self._limit = limit
        self._seconds = seconds
        self._whole = asyncio.Event()
        self._announced = int(headers.get(b"content-length", b"0"))
        self._more = self._announced > 0 or b"transfer-encoding" in headers
        # Such a client sends nothing until it is told to, and an error tells it not to.
        self._waits = b"expect" in headers

    @property
    def unread(self) -> bool:
        """Whether more of it is to come."""
        return self._more

    async def read(self) -> bytes:
        """All of it.

        Raises:
            BodyTooLarge: it is over the limit; the rest is left unread.
            RequestTimeout: it has not come in time; the rest is left unread.
            ClientLeft: there is no client any more.
        """
        if self._announced > self._limit:
            raise BodyTooLarge(self._limit)
        try:
            async with asyncio.timeout(self._seconds):
                content = await self._read()
        except TimeoutError:
            raise RequestTimeout(self._seconds) from None
        self._whole.set()
        return content

    async def client_left(self) -> None:
        """Return when the client has left. While the body is still being read, `read` is who tells."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def discard(self) -> None:
        """Read what is left of it, for a while, so that the connection can be used for the next request."""
        with contextlib.suppress(TimeoutError, ClientLeft):
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._more and not self._waits:
                    await self._next()

    async def _read(self) -> bytes:
        chunks = [await self._next()]
        size = len(chunks[0])
        while self._more and size <= self._limit:
            chunks.append(await self._next())
            size += len(chunks[-1])
        if size > self._limit:
            raise BodyTooLarge(self._limit)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        self._more = message.get("more_body", False)
        return bytes(message.get("body", b""))
