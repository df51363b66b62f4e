"""The composition root: everything that the ingress is made of is built here, once."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from meritorder.backends.client import BackendClient
from meritorder.core.catalog import Endpoint
from meritorder.core.usage import UsageRecord
from meritorder.ingress.admin import admin_routes
from meritorder.ingress.admission import Admission
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.configuration import ManifestFollower, StatusFollower, repeat
from meritorder.ingress.dispatch import Dispatcher, Ledger
from meritorder.ingress.drain import OpenRequests, on_stop
from meritorder.ingress.explain import explain_handler
from meritorder.ingress.http import InferenceEndpoint, Parts
from meritorder.ingress.leasing import LeaseAgent, new_holder
from meritorder.ingress.openapi import openapi_route
from meritorder.ingress.operations import Operations, not_served
from meritorder.ingress.planning import Planner
from meritorder.ingress.settings import Settings
from meritorder.ingress.world import World
from meritorder.ledger.database import open_database
from meritorder.ledger.keys import KeyStore, load_secret
from meritorder.ledger.replica_time import ReplicaTime, running
from meritorder.ledger.usage import UsageLog
from meritorder.telemetry.logs import log_request
from meritorder.telemetry.metrics import Metrics

SPOOL = "spool"
"""The folder, in the state directory, of usage records that are not in the database yet."""


def build(settings: Settings) -> Starlette:
    """The ASGI application. Files, sockets and threads are opened when it starts, and closed when it stops."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.router.routes.extend(await _assemble(settings, stack))
            # What lives as long as the process need not be looked through again and again, while requests wait.
            gc.collect()
            gc.freeze()
            yield

    app = Starlette(lifespan=lifespan, exception_handlers={HTTPException: not_served})
    app.router.redirect_slashes = False  # a client that follows loses its body, or its key
    return app


async def _assemble(settings: Settings, stack: AsyncExitStack) -> list[Route]:
    world, metrics, holder = World(), Metrics(), new_holder()
    engine = open_database(settings.database or settings.state_dir)
    stack.callback(engine.dispose)
    keys = KeyStore(engine, load_secret(settings.state_dir))
    authenticator = Authenticator(keys)
    # The agent gives leases back before the last records are written, and the client goes before both.
    usage = UsageLog(engine, settings.state_dir / SPOOL, holder)
    stack.callback(usage.close)
    agent = await stack.enter_async_context(LeaseAgent(engine, holder, all_stored=lambda: usage.waiting == 0))
    client = await stack.enter_async_context(BackendClient(settings.timeouts))

    def end(record: UsageRecord) -> None:
        usage.end(record)
        log_request(record)

    manifests = ManifestFollower(world, metrics, settings.manifests)
    statuses = StatusFollower(world, settings.status_file)
    replica_time = ReplicaTime(engine)

    def note_replicas() -> None:
        replica_time.note(running(world.catalog, world.statuses), time.time())

    _run(stack, manifests.follow())
    _run(stack, repeat(settings.status_poll_seconds, "the status file", statuses.refresh))
    _run(stack, repeat(settings.key_poll_seconds, "the keys", authenticator.refresh))
    await manifests.first()
    _run(stack, repeat(settings.replica_time_seconds, "the replicas' hours", note_replicas))

    open_requests = OpenRequests(world)
    on_stop(settings.drain_seconds, open_requests.halt)
    planner = Planner(world)
    ledger = Ledger(usage.begin, end, lambda: usage.full)
    dispatcher = Dispatcher(world, planner, Admission(agent), client, ledger, metrics)
    parts = Parts(world, authenticator, dispatcher, open_requests, metrics, settings)
    operations = Operations(world, authenticator, metrics, usage)
    return [
        *(Route(f"/v1/{endpoint}", InferenceEndpoint(endpoint, parts), methods=["POST"]) for endpoint in Endpoint),
        Route("/v1/routes:explain", explain_handler(parts, planner, engine), methods=["POST"]),
        Route("/v1/models", operations.models),
        *admin_routes(world, authenticator, engine, keys, metrics),
        openapi_route(),
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
