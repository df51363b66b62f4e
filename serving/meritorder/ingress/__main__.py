"""`python -m meritorder.ingress`: serve until told to stop."""

import functools
import math
import os
from pathlib import Path
from typing import Any

import click
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server import Server
from starlette.applications import Starlette

from meritorder.ingress.main import build
from meritorder.ingress.parent import exit_with_parent
from meritorder.ingress.settings import Settings
from meritorder.telemetry.logs import configure

_PATH = click.Path(path_type=Path)
_DEFAULTS = Settings((), Path(), Path())

_OPEN_REQUESTS = 16_384
"""How many requests may be open; further connections wait unseen. A stream is open for long and does little."""

_SETTLE_SECONDS = 10.0
"""After the drain time, for the last usage records to be written; then the worker is killed."""

_LOGGERS = {"_granian": {"handlers": [], "propagate": True}}
"""granian's own log lines go where ours go, and look as ours do."""


@click.command()
@click.option("--manifests", "-f", type=_PATH, multiple=True, required=True, help="A YAML file or a folder of them.")
@click.option("--state-dir", type=_PATH, required=True, help="Where the database is.")
@click.option("--status-file", type=_PATH, required=True, help="What is known of the applications, as JSON.")
@click.option("--host", default=_DEFAULTS.host, show_default=True)
@click.option("--port", default=_DEFAULTS.port, show_default=True)
@click.option("--max-body-bytes", default=_DEFAULTS.max_body_bytes, show_default=True)
@click.option(
    "--drain-seconds", default=_DEFAULTS.drain_seconds, show_default=True, help="For open requests, at a stop."
)
def main(**options: Any) -> None:
    """Serve the OpenAI-compatible endpoint."""
    configure()
    settings = Settings(**options)
    server = Server(
        "meritorder.ingress",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        websockets=False,
        backpressure=_OPEN_REQUESTS,
        log_level=LogLevels.warning,
        log_dictconfig={"loggers": _LOGGERS},
        workers_kill_timeout=math.ceil(settings.drain_seconds + _SETTLE_SECONDS),
    )
    server.serve(target_loader=functools.partial(_load, settings, os.getpid()), wrap_loader=False)


def _load(settings: Settings, parent: int) -> Starlette:
    """Build the application; runs in the worker process, which must not go on alone when the first one is killed."""
    exit_with_parent(parent)
    configure()
    return build(settings)


if __name__ == "__main__":
    main()
