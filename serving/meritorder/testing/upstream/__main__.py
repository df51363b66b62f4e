"""`python -m meritorder.testing.upstream`: the simulated upstream in a process of its own."""

import asyncio
import errno
import signal
from pathlib import Path

import click

from meritorder.testing.upstream.script import Script, ScriptError, load_script
from meritorder.testing.upstream.server import ScriptedUpstream


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="Port; 0 takes a free one.")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("gpt-sim",),
    show_default=True,
    help="Model name; repeatable.",
)
@click.option("--script", "script_file", type=click.Path(path_type=Path), help="YAML or JSON file of rules.")
@click.option(
    "--api-key",
    envvar="MERITORDER_UPSTREAM_KEY",
    help="The accepted key; any if left out. [env: MERITORDER_UPSTREAM_KEY, which `ps` does not show]",
)
@click.option(
    "--keep-requests",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="How many requests /_simulated/requests remembers.",
)
def main(
    host: str,
    port: int,
    models: tuple[str, ...],
    script_file: Path | None,
    api_key: str | None,
    keep_requests: int,
) -> None:
    """Serve a simulated provider in OpenAI's wire format until interrupted."""
    try:
        script = load_script(script_file) if script_file else Script()
    except ScriptError as error:
        raise click.ClickException(str(error)) from None
    upstream = ScriptedUpstream(
        script,
        models=models,
        # An empty variable is how a deployment leaves a setting out.
        api_key=api_key or None,
        host=host,
        port=port,
        keep_requests=keep_requests,
    )
    try:
        asyncio.run(_serve(upstream))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise click.ClickException(f"port {port} on {host} is in use") from None
        raise click.ClickException(f"cannot listen on {host}, port {port}: {error.strerror}") from None


async def _serve(upstream: ScriptedUpstream) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with upstream:
        click.echo(f"simulated upstream on {upstream.base_url}")
        await stopped.wait()


if __name__ == "__main__":
    main(prog_name="python -m meritorder.testing.upstream")
