"""The composition root: everything that the ingress is made of is built here, once."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from meritorder.backends.client import BackendClient
from meritorder.core.usage import UsageRecord
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.configuration import StatusFollower, follow_manifests, repeat, take_over
from meritorder.ingress.dispatch import Dispatcher
from meritorder.ingress.http import HttpIngress, not_found
from meritorder.ingress.settings import Settings
from meritorder.ingress.world import World
from meritorder.ledger.database import connect
from meritorder.ledger.keys import KeyStore, load_secret
from meritorder.ledger.usage import UsageWriter
from meritorder.manifests import folder
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.yaml_source import ManifestError
from meritorder.telemetry.logs import log_request
from meritorder.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


def build(settings: Settings) -> Starlette:
    """The ASGI application. Files, sockets and threads are opened when it starts, and closed when it stops."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.router.routes.extend((await _assemble(settings, stack)).routes)
            yield

    return Starlette(lifespan=lifespan, exception_handlers={HTTPException: not_found})


async def _assemble(settings: Settings, stack: AsyncExitStack) -> HttpIngress:
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

    manifests = _read(settings)
    take_over(world, metrics, manifests)
    for following in (
        follow_manifests(world, metrics, settings.manifests, manifests),
        repeat(settings.status_poll_seconds, StatusFollower(world, settings.status_file).refresh),
        repeat(settings.key_poll_seconds, authenticator.refresh),
    ):
        stack.push_async_callback(_cancelled, asyncio.create_task(following))
    dispatcher = Dispatcher(world, client, metrics, settle)
    return HttpIngress(world, authenticator, dispatcher, metrics, settings.max_body_bytes)


def _read(settings: Settings) -> ManifestSet | ManifestError:
    try:
        return folder.read(settings.manifests)
    except ManifestError as error:
        return error


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
