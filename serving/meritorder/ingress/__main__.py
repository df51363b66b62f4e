"""`python -m meritorder.ingress`: serve until told to stop."""

import functools
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import click
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server import Server
from starlette.applications import Starlette

from meritorder.ingress.main import build
from meritorder.ingress.settings import Settings
from meritorder.ledger.database import StateError, open_database
from meritorder.ledger.keys import load_secret
from meritorder.system.processes import exit_with_parent
from meritorder.telemetry.logs import configure

log = logging.getLogger(__name__)

_PATH = click.Path(path_type=Path)
_DEFAULTS = Settings((), Path(), Path())

_OPEN_REQUESTS = 16_384
"""How many requests may be open; further connections wait unseen. A stream is open for long and does little."""

_LOGGERS = {"_granian": {"handlers": [], "propagate": True}}
"""granian's own log lines go where ours go, and look as ours do."""


@click.command()
@click.option("--manifests", "-f", type=_PATH, multiple=True, required=True, help="A YAML file or a folder of them.")
@click.option("--state-dir", type=_PATH, required=True, help="Where the database is.")
@click.option("--status-file", type=_PATH, required=True, help="What is known of the applications, as JSON.")
@click.option(
    "--database",
    envvar="MERITORDER_DATABASE_URL",
    help="A postgresql:// URL; SQLite in the state directory without one.  [env: MERITORDER_DATABASE_URL]",
)
@click.option("--host", default=_DEFAULTS.host, show_default=True)
@click.option("--port", default=_DEFAULTS.port, show_default=True)
@click.option("--max-body-bytes", default=_DEFAULTS.max_body_bytes, show_default=True)
@click.option("--body-seconds", default=_DEFAULTS.body_seconds, show_default=True, help="For a request to come whole.")
@click.option(
    "--client-stall-seconds",
    default=_DEFAULTS.client_stall_seconds,
    show_default=True,
    help="For a client to go on reading its answer.",
)
@click.option(
    "--drain-seconds", default=_DEFAULTS.drain_seconds, show_default=True, help="For open requests, at a stop."
)
def main(**options: Any) -> None:
    """Serve the OpenAI-compatible endpoint."""
    configure()
    settings = Settings(**options)
    try:
        open_database(settings.database or settings.state_dir).dispose()
        load_secret(settings.state_dir)
    except StateError as error:  # told here, as a worker that cannot start has only a traceback to give
        log.error("the ingress cannot start: %s", error)
        sys.exit(1)
    server = Server(
        "meritorder.ingress",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        websockets=False,
        backpressure=_OPEN_REQUESTS,
        log_level=LogLevels.warning,
        log_dictconfig={"loggers": _LOGGERS},
        workers_kill_timeout=math.ceil(settings.drain_seconds + settings.settle_seconds),
    )
    server.serve(target_loader=functools.partial(_load, settings, os.getpid()), wrap_loader=False)


def _load(settings: Settings, parent: int) -> Starlette:
    """Build the application; runs in the worker process, which must not go on alone when the first one is killed."""
    exit_with_parent(parent)
    configure()
    return build(settings)


if __name__ == "__main__":
    main()
