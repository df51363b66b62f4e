"""`meritorder`: the list of commands."""

import importlib
from typing import Any

import click

from meritorder import __version__
from meritorder.ledger.errors import StateError

_COMMANDS = {
    "up": "meritorder.cli.up",
    "down": "meritorder.cli.down",
    "status": "meritorder.cli.status",
    "chat": "meritorder.cli.chat",
    "explain": "meritorder.cli.explain",
    "key": "meritorder.cli.key",
    "usage": "meritorder.cli.usage",
    "validate": "meritorder.cli.validate",
    "prices": "meritorder.cli.prices",
}


class _Lazy(click.Group):
    """Imports a command's module when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: Any = importlib.import_module(_COMMANDS[name]).command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except StateError as error:
            raise click.ClickException(str(error)) from None


@click.command(cls=_Lazy)
@click.version_option(__version__, prog_name="meritorder")
def main() -> None:
    """One endpoint that ranks your own GPUs and hosted APIs for every request."""
