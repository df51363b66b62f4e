"""HTTP in front of dispatch: read the request, write the answer.

Plain ASGI: what lies between a client and its tokens is on this page.
"""

import asyncio
import re
import uuid
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from meritorder.core.catalog import Endpoint
from meritorder.core.errors import InternalError, RequestError, ShuttingDown
from meritorder.core.request import Caller
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.body import Body, ClientLeft
from meritorder.ingress.dispatch import Dispatcher
from meritorder.ingress.drain import OpenRequests
from meritorder.ingress.world import World
from meritorder.telemetry.logs import log_fault
from meritorder.telemetry.metrics import Metrics
from meritorder.wire import errors as wire_errors
from meritorder.wire.openai import parse_request

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Parts:
    """What every inference endpoint works with."""

    world: World
    authenticator: Authenticator
    dispatcher: Dispatcher
    open_requests: OpenRequests
    metrics: Metrics
    max_body_bytes: int


class InferenceEndpoint:
    """One inference endpoint, as an ASGI application."""

    def __init__(self, endpoint: Endpoint, parts: Parts) -> None:
        self._endpoint = endpoint
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        response = _Response(send, request_id(headers), self._parts.metrics)
        body = Body(headers, receive, self._parts.max_body_bytes)
        try:
            caller = self._parts.authenticator.caller(authorization(headers), self._parts.world.catalog)
            content = await body.read()
        except RequestError as error:
            await response.refuse(error, unread=body)
        except ClientLeft:
            return
        else:
            await self._parts.open_requests.answer(receive, self._answer(caller, content, response))

    async def _answer(self, caller: Caller, body: bytes, response: "_Response") -> None:
        try:
            request = parse_request(response.request_id, self._endpoint, body)
            async with (
                self._parts.dispatcher.dispatch(caller, request) as reply,
                aclosing(reply.chunks) as chunks,
            ):
                await response.start(reply.status, reply.headers)
                async for chunk in chunks:
                    await response.write(chunk)
                await response.end()
        except RequestError as error:
            await response.refuse(error)
        except asyncio.CancelledError:
            if not self._parts.world.halted:
                raise  # the client left
            await response.break_off(ShuttingDown())
        except Exception as error:
            log_fault(response.request_id, error)
            await response.break_off(InternalError())


@dataclass(slots=True)
class _Response:
    """The answer to one request, on its way to the client."""

    _send: Send
    request_id: str
    _metrics: Metrics
    _started: bool = field(default=False, init=False)

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self._started = True
        # A backend's header may be anything but ASCII, and goes on as the bytes that it came as.
        named = {**headers, "x-request-id": self.request_id}
        raw = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, chunk: bytes) -> None:
        # Waits while the client does not read, so a slow one slows its backend, and fills no memory here.
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, error: RequestError, unread: Body | None = None) -> None:
        """Answer with `error`, and read what the client is still sending."""
        self._metrics.refused(error.code)
        body = wire_errors.body(error)
        await self.start(error.status, {**wire_errors.headers(error), "content-length": str(len(body))})
        if unread is not None:
            # As long as the last byte is missing, the server leaves the connection open in both directions.
            await self.write(body[:-1])
            await unread.discard()
            body = body[-1:]
        await self.write(body)
        await self.end()

    async def break_off(self, error: RequestError) -> None:
        """End with `error`: as the response where none has begun, and inside the stream where one has."""
        if not self._started:
            await self.refuse(error)
        else:
            self._metrics.refused(error.code)
            await self.write(wire_errors.stream_event(error))
            await self.end()


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The client's own id of the request where it is short and plain, or a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def authorization(headers: Mapping[bytes, bytes]) -> str | None:
    value = headers.get(b"authorization")
    return None if value is None else value.decode("latin-1")
