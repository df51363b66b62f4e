"""One HTTP exchange. Every byte that is sent passes here, so that the log is exact."""

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import NoReturn

from aiohttp import web

from meritorder.testing.upstream.errors import ApiError
from meritorder.testing.upstream.log import ReceivedRequest, RequestLog

# SO_LINGER on, with no time: closing resets the connection instead of ending it in good order.
_RESET = struct.pack("ii", 1, 0)
_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"


class Exchange:
    """The answer to one request, from its first byte to its end.

    A method that sends raises ConnectionError if the client has gone; a client that goes while nothing is
    being sent cancels the task instead (aiohttp's `handler_cancellation`).
    """

    def __init__(self, request: web.Request, entry: ReceivedRequest, log: RequestLog) -> None:
        self._request = request
        self._entry = entry
        self._log = log
        self._headers: dict[str, str] = {}
        # Returned to aiohttp if nothing was sent; it only ever meets a connection that is closed by then.
        self.response: web.StreamResponse = web.Response(status=500)

    @property
    def client_gone(self) -> bool:
        """Whether the connection is closed."""
        return self._request.transport is None

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Send these headers too, with whatever the answer will be. The last value of a name counts."""
        self._headers.update((name.lower(), value) for name, value in headers.items())

    async def send_body(self, body: bytes, completion_tokens: int) -> None:
        """Send a whole 200 answer."""
        await self._send_whole(200, body)
        self._entry.completion_tokens = completion_tokens
        self._log.close(self._entry, "completed")

    async def send_malformed_body(self, body: bytes) -> None:
        """Send a 200 answer whose body is none."""
        await self._send_whole(200, body)
        self._log.close(self._entry, "failed")

    async def send_error(self, error: ApiError) -> None:
        """Send a whole error answer."""
        self.add_headers(error.headers)
        await self._send_whole(error.status, error.body())
        self._log.close(self._entry, "failed")

    async def send_part(self, body: bytes) -> None:
        """Send half of a body, with the content length of all of it."""
        response = web.StreamResponse(headers=self._all_headers(_JSON))
        response.content_length = len(body)
        await self._begin(response)
        await response.write(body[: len(body) // 2])

    async def open_stream(self) -> None:
        """Send the headers of a stream."""
        await self._begin(web.StreamResponse(headers=self._all_headers(_SSE)))

    async def send_event(self, event: bytes, tokens: int = 0) -> None:
        """Send one event of a stream and count it, and the tokens in it."""
        await self.response.write(event)
        self._entry.chunks_sent += 1
        self._entry.completion_tokens += tokens
        self._log.changed()

    async def end_stream(self, last: bytes, *, completion_tokens: int | None = None) -> None:
        """Send the last bytes of a stream, which are not counted as an event, and end it in good order.

        It is complete if `completion_tokens` says what the answer has in all.
        """
        await self.response.write_eof(last)
        if completion_tokens is not None:
            self._entry.completion_tokens = completion_tokens
        self._log.close(self._entry, "failed" if completion_tokens is None else "completed")

    def cut(self) -> None:
        """Close the connection in the middle of the answer; what was sent still arrives."""
        self._log.close(self._entry, "failed")
        if self._request.transport is not None:
            self._request.transport.close()

    def refuse(self) -> None:
        """Reset the connection before any byte of an answer."""
        self._log.close(self._entry, "failed")
        transport = self._request.transport
        if transport is not None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()

    async def wait_for_disconnect(self) -> NoReturn:
        """Stay silent until the client goes, which cancels this."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nothing resolves this future")

    async def _send_whole(self, status: int, body: bytes) -> None:
        response = web.Response(status=status, body=body, headers=self._all_headers(_JSON))
        await self._begin(response)
        await response.write_eof()

    async def _begin(self, response: web.StreamResponse) -> None:
        self.response = response
        await response.prepare(self._request)
        self._entry.status = response.status
        self._entry.first_byte_s = self._log.clock.monotonic()
        self._log.changed()

    def _all_headers(self, content_type: str) -> dict[str, str]:
        return {
            "content-type": content_type,
            "x-request-id": self._entry.id,
            **self._headers,
            "x-simulated": "true",
        }
