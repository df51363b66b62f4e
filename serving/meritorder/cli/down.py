"""`meritorder down`: end the platform that runs here."""

import contextlib
import os
import signal
import time
from pathlib import Path

import click

from meritorder.cli.options import state_dir_option
from meritorder.cli.running import find_running

_PATIENCE_SECONDS = 60.0


@click.command("down")
@state_dir_option
def command(state_dir: Path) -> None:
    """End the running platform and wait until it is gone."""
    running = find_running(state_dir)
    if running is None:
        click.echo(f"nothing is running on {state_dir}")
        return
    with contextlib.suppress(ProcessLookupError):  # it has ended just now
        os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while find_running(state_dir) is not None:
        if time.monotonic() > deadline:
            raise click.ClickException(
                f"process {running.pid} has not ended within {_PATIENCE_SECONDS:.0f} s; kill -9 {running.pid} ends it"
            )
        time.sleep(0.1)
    click.echo("stopped")
