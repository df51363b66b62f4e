"""What is not inference: the list of models, and how the ingress itself is doing."""

import time

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from meritorder.core.errors import MethodNotAllowed, RequestError, UnknownUrl
from meritorder.core.status import Phase
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.http import authorization, request_id
from meritorder.ingress.world import World
from meritorder.ledger.usage import UsageLog
from meritorder.routing.health import CircuitState
from meritorder.telemetry.metrics import Metrics
from meritorder.wire import errors as wire_errors


class Operations:
    """Handlers of GET requests."""

    def __init__(self, world: World, authenticator: Authenticator, metrics: Metrics, usage: UsageLog) -> None:
        self._usage = usage
        self._world = world
        self._authenticator = authenticator
        self._metrics = metrics

    async def models(self, request: Request) -> Response:
        """The names that the caller may call, as OpenAI lists models."""
        headers = dict(request.headers.raw)
        try:
            caller = self._authenticator.caller(authorization(headers), self._world.catalog)
        except RequestError as error:
            self._metrics.refused(error.code)
            return _refusal(request, error)
        names = self._world.catalog.callable_by(caller.team)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "meritorder"} for name in names]
        return _json({"object": "list", "data": models}, headers={"x-request-id": request_id(headers)})

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
        up = {status.application for status in statuses.values() if status.phase is Phase.READY and status.endpoint}
        routes = [
            {
                "route": route.name,
                "ready": [name for name in route.backends if catalog.backends[name].application in up],
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
        now = time.monotonic()
        for application, price in self._world.shadow_prices(now).items():
            self._metrics.shadow_price.labels(application).set(price)
        for backend, state in self._world.circuits(now).items():
            for each in CircuitState:
                self._metrics.circuit.labels(backend, each.value).set(each.value == state)
        self._metrics.ledger_waiting.set(self._usage.waiting)
        self._metrics.spool_bytes.set(self._usage.spool_bytes)
        return Response(self._metrics.exposition(), headers={"content-type": Metrics.content_type})


async def not_served(request: Request, error: Exception) -> Response:
    """A path or a method that is not served, in OpenAI's error shape."""
    assert isinstance(error, HTTPException)
    kind = MethodNotAllowed if error.status_code == 405 else UnknownUrl
    response = _refusal(request, kind(request.method, request.url.path[:200]))
    response.headers.update(error.headers or {})  # Allow, which a 405 must have
    return response


def _refusal(request: Request, error: RequestError) -> Response:
    headers = {**wire_errors.headers(error), "x-request-id": request_id(dict(request.headers.raw))}
    return Response(wire_errors.body(error), error.status, headers)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
