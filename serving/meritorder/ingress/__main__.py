"""`python -m meritorder.ingress`: serve until told to stop."""

import functools
from pathlib import Path

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


@click.command()
@click.option("--manifests", "-f", type=_PATH, multiple=True, required=True, help="A YAML file or a folder of them.")
@click.option("--state-dir", type=_PATH, required=True, help="Where the database is.")
@click.option("--status-file", type=_PATH, required=True, help="What is known of the applications, as JSON.")
@click.option("--host", default=_DEFAULTS.host, show_default=True)
@click.option("--port", default=_DEFAULTS.port, show_default=True)
@click.option("--max-body-bytes", default=_DEFAULTS.max_body_bytes, show_default=True)
@click.option("--exit-with-parent", "bound", is_flag=True, help="Stop when the process that started this one ends.")
def main(
    manifests: tuple[Path, ...],
    state_dir: Path,
    status_file: Path,
    host: str,
    port: int,
    max_body_bytes: int,
    bound: bool,
) -> None:
    """Serve the OpenAI-compatible endpoint."""
    if bound:
        exit_with_parent()
    settings = Settings(manifests, state_dir, status_file, host, port, max_body_bytes)
    server = Server(
        "meritorder.ingress",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        websockets=False,
        log_level=LogLevels.warning,
        workers_kill_timeout=settings.drain_seconds,
    )
    server.serve(target_loader=functools.partial(_load, settings), wrap_loader=False)


def _load(settings: Settings) -> Starlette:
    """Build the application; runs in the worker process."""
    configure()
    return build(settings)


if __name__ == "__main__":
    main()
