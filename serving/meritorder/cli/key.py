"""`meritorder key`: make, list and revoke the keys that teams call with."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.table import Table

from meritorder.cli.options import output, state_dir_option
from meritorder.cli.running import find_running
from meritorder.ledger.database import connect
from meritorder.ledger.keys import KeyStore, load_secret


@click.group("key")
def command() -> None:
    """Make, list and revoke API keys."""


@command.command()
@click.option("--team", required=True, help="The team that pays: the name of a Team manifest.")
@click.option("--name", default="", help="What the key is for, in your own words.")
@state_dir_option
def create(team: str, name: str, state_dir: Path) -> None:
    """Make a key. It is printed once, alone on standard output, and cannot be had again."""
    _refuse_unknown_team(team, state_dir)
    with _store(state_dir) as store:
        key, text = store.create(team, name)
    click.echo(f"{key.id} for team {team!r}; keep it, it is not shown again:", err=True)
    click.echo(text)


@command.command("list")
@state_dir_option
def list_keys(state_dir: Path) -> None:
    """List the keys, without their secrets."""
    with _store(state_dir) as store:
        keys = store.list()
    if not keys:
        click.echo("no keys yet; meritorder key create --team TEAM makes one")
        return
    table = Table("id", "team", "name", "created", "state", box=None)
    for key in keys:
        state = "in force" if key.revoked_at is None else f"revoked {_day(key.revoked_at)}"
        table.add_row(key.id, key.team, key.name, _day(key.created_at), state)
    output().print(table)


@command.command()
@click.argument("key_id")
@state_dir_option
def revoke(key_id: str, state_dir: Path) -> None:
    """Revoke the key named KEY_ID, as `key list` shows it. A running platform refuses it within a second."""
    with _store(state_dir) as store:
        if not store.revoke(key_id):
            raise click.ClickException(f"no key {key_id!r} is in force; meritorder key list shows those there are")
    click.echo(f"{key_id} is revoked")


@contextlib.contextmanager
def _store(state_dir: Path) -> Iterator[KeyStore]:
    with contextlib.closing(connect(state_dir)) as connection:
        yield KeyStore(connection, load_secret(state_dir))


def _refuse_unknown_team(team: str, state_dir: Path) -> None:
    # A key for a team that does not exist would be refused at its first use: say so now, if that can be known.
    running = find_running(state_dir)
    if running is not None and team not in running.teams:
        raise click.ClickException(
            f"the running platform has no team {team!r}; it has {', '.join(running.teams) or 'none'}"
        )


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
