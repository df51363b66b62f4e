"""HTTP in front of dispatch: read the request, write the answer, and notice when the client leaves.

Inference endpoints are plain ASGI: what lies between a client and its tokens is on this page.
"""

import asyncio
import re
import uuid
from collections.abc import Coroutine
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from meritorder.core.catalog import Endpoint
from meritorder.core.errors import BodyTooLarge, InvalidRequest, RequestError
from meritorder.core.request import Caller
from meritorder.core.status import Phase
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.dispatch import Dispatcher
from meritorder.ingress.world import World
from meritorder.telemetry.metrics import Metrics
from meritorder.wire import errors as wire_errors
from meritorder.wire.openai import parse_request

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class ClientLeft(Exception):
    """The connection closed before the request was read whole."""


class InferenceEndpoint:
    """One inference endpoint, as an ASGI application."""

    def __init__(self, endpoint: Endpoint, ingress: "HttpIngress") -> None:
        self._endpoint = endpoint
        self._ingress = ingress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id"))
        try:
            caller = self._ingress.caller(headers)
            body = await _read_body(headers, receive, self._ingress.max_body_bytes)
        except RequestError as error:
            await self._ingress.refuse(send, request_id, error)
        except ClientLeft:
            return
        else:
            answer = self._answer(caller, request_id, body, send)
            await _while_connected(receive, answer)

    async def _answer(self, caller: Caller, request_id: str, body: bytes, send: Send) -> None:
        try:
            request = parse_request(request_id, self._endpoint, body)
            async with (
                self._ingress.dispatcher.dispatch(caller, request) as reply,
                aclosing(reply.chunks) as chunks,
            ):
                await _start(send, reply.status, {**reply.headers, "x-request-id": request_id})
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except RequestError as error:
            await self._ingress.refuse(send, request_id, error)


class HttpIngress:
    """The HTTP surface. `routes` is what an ASGI application is made of."""

    def __init__(
        self,
        world: World,
        authenticator: Authenticator,
        dispatcher: Dispatcher,
        metrics: Metrics,
        max_body_bytes: int,
    ) -> None:
        self._world = world
        self._authenticator = authenticator
        self._metrics = metrics
        self.dispatcher = dispatcher
        self.max_body_bytes = max_body_bytes

    @property
    def routes(self) -> list[Route]:
        inference = [
            Route(f"/v1/{endpoint}", InferenceEndpoint(endpoint, self), methods=["POST"]) for endpoint in Endpoint
        ]
        return [
            *inference,
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    def caller(self, headers: dict[bytes, bytes]) -> Caller:
        authorization = headers.get(b"authorization")
        text = authorization.decode("latin-1") if authorization else None
        return self._authenticator.caller(text, self._world.catalog)

    async def refuse(self, send: Send, request_id: str, error: RequestError) -> None:
        """Answer with `error`."""
        self._metrics.refused(error.code)
        await _start(send, error.status, {**wire_errors.headers(error), "x-request-id": request_id})
        await send({"type": "http.response.body", "body": wire_errors.body(error), "more_body": False})

    async def models(self, request: Request) -> Response:
        """The names that the caller may call, as OpenAI lists models."""
        try:
            caller = self.caller(dict(request.headers.raw))
        except RequestError as error:
            self._metrics.refused(error.code)
            return Response(wire_errors.body(error), error.status, wire_errors.headers(error))
        names = self._world.catalog.callable_by(caller.team)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "meritorder"} for name in names]
        return _json({"object": "list", "data": models})

    async def healthz(self, request: Request) -> Response:
        """The process is alive; nothing else is asked."""
        return _json({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """Whether any route can be answered, and what every application is waiting for."""
        catalog, statuses = self._world.catalog, self._world.statuses
        applications = [
            {"application": status.application, "phase": status.phase.value, "message": status.message}
            for status in statuses.values()
        ]
        up = {status.application for status in statuses.values() if status.phase is Phase.READY}
        routes = [
            {
                "route": route.name,
                "ready": [name for name in route.candidates if catalog.backends[name].application in up],
                "candidates": len(route.candidates),
            }
            for route in catalog.routes.values()
        ]
        ready = any(route["ready"] for route in routes)
        report = {
            "status": "ready" if ready else "not ready",
            "routes": routes,
            "applications": applications,
            "configuration": {"generation": catalog.generation, "problem": self._world.problem},
        }
        return _json(report, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        for backend, count in self._world.in_flight().items():
            self._metrics.in_flight.labels(backend).set(count)
        return Response(self._metrics.exposition(), media_type=None, headers={"content-type": Metrics.content_type})


async def not_found(request: Request, error: Exception) -> Response:
    """A path or a method that is not served, in OpenAI's error shape."""
    status = getattr(error, "status_code", 404)
    said = InvalidRequest(
        f"{request.method} {request.url.path[:200]} is not served here; POST /v1/chat/completions, /v1/completions "
        "or /v1/embeddings, or GET /v1/models.",
        code="unknown_url",
    )
    said.status = status
    return Response(wire_errors.body(said), status, wire_errors.headers(said))


async def _read_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > limit:
        raise BodyTooLarge(limit)
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise BodyTooLarge(limit)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _while_connected(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Do `work`, and cancel it when the client leaves."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
        if not task.cancelled():
            task.result()
    finally:
        watch.cancel()
        task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, headers: dict[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


def _request_id(given: bytes | None) -> str:
    return given.decode() if given and _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
