"""`meritorder chat`: ask the running platform."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from meritorder.cli.client import first_model, stream_chat
from meritorder.cli.options import state_dir_option
from meritorder.cli.running import calling_key, require_running


@click.command("chat")
@click.argument("prompt", nargs=-1)
@click.option("--model", "-m", help="The model name to call; the first that you may call if left out.")
@state_dir_option
def command(prompt: tuple[str, ...], model: str | None, state_dir: Path) -> None:
    """Ask PROMPT and print the answer as it comes; without PROMPT, talk line by line.

    It calls with the key in MERITORDER_API_KEY, or with the one that `up` has made for this machine.
    """
    running = require_running(state_dir)
    key = calling_key(state_dir)
    model = model or first_model(running.url, key)
    messages: list[dict[str, str]] = []
    questions = [" ".join(prompt)] if prompt else _typed()
    for question in questions:
        messages.append({"role": "user", "content": question})
        streamed = stream_chat(running.url, key, {"model": model, "messages": messages})
        answer = ""
        for delta in streamed.deltas:
            answer += delta
            click.echo(delta, nl=False)
        click.echo()
        who = streamed.backend + (", simulated" if streamed.simulated else "")
        click.echo(click.style(f"[{who}]", dim=True), err=True)
        messages.append({"role": "assistant", "content": answer})


def _typed() -> Iterator[str]:
    """The lines that a person types, until the end of input."""
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
