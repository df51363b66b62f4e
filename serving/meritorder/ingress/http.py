"""HTTP in front of dispatch: read the request, write the answer.

Plain ASGI: what lies between a client and its tokens is on this page.
"""

import asyncio
import re
import uuid
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from starlette.types import Message, Receive, Scope, Send

from meritorder.core.catalog import Endpoint
from meritorder.core.errors import InternalError, RequestError, ShuttingDown
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.body import Body, ClientLeft
from meritorder.ingress.dispatch import Dispatcher
from meritorder.ingress.drain import OpenRequests
from meritorder.ingress.settings import Settings
from meritorder.ingress.world import World
from meritorder.telemetry.logs import log_fault
from meritorder.telemetry.metrics import Metrics
from meritorder.wire import errors as wire_errors
from meritorder.wire.openai import parse_request

_FAREWELL_SECONDS = 1.0
"""How long a client may take to hear that the ingress ends, which does not wait for it."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Parts:
    """What every inference endpoint works with."""

    world: World
    authenticator: Authenticator
    dispatcher: Dispatcher
    open_requests: OpenRequests
    metrics: Metrics
    settings: Settings


class InferenceEndpoint:
    """One inference endpoint, as an ASGI application."""

    def __init__(self, endpoint: Endpoint, parts: Parts) -> None:
        self._endpoint = endpoint
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        settings = self._parts.settings
        body = Body(headers, receive, settings.max_body_bytes, settings.body_seconds)
        response = _Response(send, request_id(headers), body, self._parts.metrics, settings.client_stall_seconds)
        with suppress(ClientLeft):  # there is nobody to tell
            await self._parts.open_requests.answer(body.client_left(), self._answer(headers, body, response))

    async def _answer(self, headers: Mapping[bytes, bytes], body: Body, response: "_Response") -> None:
        try:
            caller = self._parts.authenticator.caller(authorization(headers), self._parts.world.catalog)
            request = parse_request(response.request_id, self._endpoint, await body.read(), headers)
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
        except ClientLeft:
            raise
        except asyncio.CancelledError:
            if not self._parts.world.halted:
                raise  # the client left
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await response.break_off(ShuttingDown())
        except Exception as error:
            log_fault(response.request_id, error)
            await response.break_off(InternalError())


@dataclass(slots=True)
class _Response:
    """The answer to one request, on its way to the client, which may stop reading it for `_stall_seconds`.

    All methods raise ClientLeft where it does so for longer.
    """

    _send: Send
    request_id: str
    _body: Body
    _metrics: Metrics
    _stall_seconds: float
    _started: bool = field(default=False, init=False)

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self._started = True
        # A backend's header may be anything but ASCII, and goes on as the bytes that it came as.
        named = {**headers, "x-request-id": self.request_id}
        raw = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in named.items()]
        await self._pass_on({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, chunk: bytes) -> None:
        await self._pass_on({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        await self._pass_on({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, error: RequestError, linger: bool = True) -> None:
        """Answer with `error`, and read what the client is still sending where there is time to `linger`."""
        self._metrics.refused(error.code)
        body = wire_errors.body(error)
        await self.start(error.status, {**wire_errors.headers(error), "content-length": str(len(body))})
        if linger and self._body.unread:
            # As long as the last byte is missing, the server leaves the connection open in both directions.
            await self.write(body[:-1])
            await self._body.discard()
            body = body[-1:]
        await self.write(body)
        await self.end()

    async def break_off(self, error: RequestError) -> None:
        """End with `error`: as the response where none has begun, and inside the stream where one has."""
        if not self._started:
            await self.refuse(error, linger=False)
        else:
            self._metrics.refused(error.code)
            await self.write(wire_errors.stream_event(error))
            await self.end()

    async def _pass_on(self, message: Message) -> None:
        # Waits while the client does not read, so a slow one slows its backend, and fills no memory here.
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._send(message)
        except TimeoutError:
            raise ClientLeft from None


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The client's own id of the request where it is short and plain, or a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def authorization(headers: Mapping[bytes, bytes]) -> str | None:
    value = headers.get(b"authorization")
    return None if value is None else value.decode("latin-1")
