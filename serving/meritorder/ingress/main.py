"""The composition root: everything that the ingress is made of is built here, once."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from meritorder.backends.client import BackendClient
from meritorder.core.catalog import Endpoint
from meritorder.core.usage import UsageRecord
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.configuration import ManifestFollower, StatusFollower, repeat
from meritorder.ingress.dispatch import Dispatcher
from meritorder.ingress.drain import OpenRequests, on_stop
from meritorder.ingress.http import InferenceEndpoint, Parts
from meritorder.ingress.operations import Operations, not_served
from meritorder.ingress.settings import Settings
from meritorder.ingress.world import World
from meritorder.ledger.database import connect
from meritorder.ledger.keys import KeyStore, load_secret
from meritorder.ledger.usage import UsageWriter
from meritorder.telemetry.logs import log_request
from meritorder.telemetry.metrics import Metrics


def build(settings: Settings) -> Starlette:
    """The ASGI application. Files, sockets and threads are opened when it starts, and closed when it stops."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.router.routes.extend(await _assemble(settings, stack))
            yield

    app = Starlette(lifespan=lifespan, exception_handlers={HTTPException: not_served})
    app.router.redirect_slashes = False  # a client that follows loses its body, or its key
    return app


async def _assemble(settings: Settings, stack: AsyncExitStack) -> list[Route]:
    world, metrics = World(), Metrics()
    usage = UsageWriter(settings.state_dir)
    stack.callback(usage.close)
    database = connect(settings.state_dir)
    stack.callback(database.close)
    authenticator = Authenticator(KeyStore(database, load_secret(settings.state_dir)))
    client = await stack.enter_async_context(BackendClient(settings.timeouts))

    def settle(record: UsageRecord) -> None:
        usage.record(record)
        log_request(record)

    manifests = ManifestFollower(world, metrics, settings.manifests)
    statuses = StatusFollower(world, settings.status_file)
    _run(stack, manifests.follow())
    _run(stack, repeat(settings.status_poll_seconds, "the status file", statuses.refresh))
    _run(stack, repeat(settings.key_poll_seconds, "the keys", authenticator.refresh))
    await manifests.first()

    open_requests = OpenRequests(world)
    on_stop(settings.drain_seconds, open_requests.halt)
    dispatcher = Dispatcher(world, client, metrics, settle)
    parts = Parts(world, authenticator, dispatcher, open_requests, metrics, settings)
    operations = Operations(world, authenticator, metrics)
    return [
        *(Route(f"/v1/{endpoint}", InferenceEndpoint(endpoint, parts), methods=["POST"]) for endpoint in Endpoint),
        Route("/v1/models", operations.models),
        Route("/healthz", operations.healthz),
        Route("/readyz", operations.readyz),
        Route("/metrics", operations.metrics),
    ]


def _run(stack: AsyncExitStack, work: Coroutine[None, None, None]) -> None:
    """Do `work`, which never ends by itself, until the stack is left."""
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(stop)
