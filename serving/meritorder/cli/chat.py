"""`meritorder chat`: ask the running platform."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from meritorder.cli.client import get_json, stream_chat
from meritorder.cli.options import state_dir_option
from meritorder.cli.running import LOCAL_KEY_FILE, require_running


@click.command("chat")
@click.argument("prompt", nargs=-1)
@click.option("--model", "-m", help="The model name to call; the first that you may call if left out.")
@state_dir_option
def command(prompt: tuple[str, ...], model: str | None, state_dir: Path) -> None:
    """Ask PROMPT and print the answer as it comes; without PROMPT, talk line by line.

    It calls with the key in MERITORDER_API_KEY, or with the one that `up` has made for this machine.
    """
    running = require_running(state_dir)
    # Not an option: the process list would show it.
    key = os.environ.get("MERITORDER_API_KEY") or _local_key(state_dir)
    model = model or _first_model(running.url, key)
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


def _first_model(url: str, key: str) -> str:
    listed = get_json(f"{url}/v1/models", key)
    if "error" in listed:
        raise click.ClickException(listed["error"]["message"])
    if not listed["data"]:
        raise click.ClickException("the key's team may call nothing; see `routes` of its Team manifest")
    return str(listed["data"][0]["id"])


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


def _local_key(state_dir: Path) -> str:
    try:
        return (state_dir / LOCAL_KEY_FILE).read_text().strip()
    except FileNotFoundError:
        raise click.ClickException(
            "no key: set MERITORDER_API_KEY (meritorder key create --team TEAM makes one)"
        ) from None
