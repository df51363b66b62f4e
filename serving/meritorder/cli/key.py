"""`meritorder key`: make, list and revoke the keys that teams call with."""

import contextlib
import time
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from meritorder.cli.ledger import opened
from meritorder.cli.options import database_option, output, state_dir_option
from meritorder.cli.running import find_running
from meritorder.core.limits import Budget, Limits, Period
from meritorder.ledger.keys import ApiKey, KeyLimits, KeyStore, load_secret


class _BudgetType(click.ParamType[Budget]):
    name = "AMOUNT/PERIOD"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Budget:
        if isinstance(value, Budget):
            return value
        amount, _, period = str(value).partition("/")
        try:
            budget = Budget(Period(period), Decimal(amount))
        except (ValueError, InvalidOperation):
            budget = None
        if budget is None or not budget.amount.is_finite() or budget.amount < 0:
            self.fail(f"{value!r} is not an amount in US dollars and one of {', '.join(Period)}, as in 10/monthly")
        return budget


@click.group("key")
def command() -> None:
    """Make, list and revoke API keys."""


@command.command()
@click.option("--team", help="The team that pays: the name of a Team manifest.")
@click.option("--admin", is_flag=True, help="A key for /admin/v1 in the place of a team's; it cannot call models.")
@click.option("--name", default="", help="What the key is for, in your own words.")
@click.option("--budget", "budgets", type=_BudgetType(), multiple=True, metavar="AMOUNT/PERIOD",
              help="What the key may cost in US dollars, as in 10/monthly; hourly, daily, monthly or total. "
              "May be given once for each period.")  # fmt: skip
@click.option("--rpm", type=click.IntRange(min=1), help="How many requests the key may send in a minute.")
@click.option("--tpm", type=click.IntRange(min=1), help="How many tokens, of prompts and answers, in a minute.")
@click.option("--concurrency", type=click.IntRange(min=1), help="How many requests at once.")
@state_dir_option
@database_option
def create(
    team: str | None,
    admin: bool,
    name: str,
    budgets: tuple[Budget, ...],
    rpm: int | None,
    tpm: int | None,
    concurrency: int | None,
    state_dir: Path,
    database: str | None,
) -> None:
    """Make a key. It is printed once, alone on standard output, and cannot be had again.

    Its limits are those of this key alone; those of its team bound it, too.
    """
    limits = KeyLimits(Limits(rpm, tpm, concurrency), budgets)
    if (team is None) != admin:
        raise click.UsageError("name the team that pays with --team, or make a key for the administration with --admin")
    if admin and limits != KeyLimits():
        raise click.UsageError("a key for the administration calls no models, so it has no limits; leave them out")
    if len({budget.period for budget in budgets}) < len(budgets):
        raise click.UsageError("there are two budgets for one period; give one for each")
    if team is not None and database is None:
        _refuse_unknown_team(team, state_dir)
    with _store(state_dir, database) as store:
        key, text = store.create(team or "", name, limits, admin=admin)
    whose = "for the administration" if admin else f"for team {team!r}"
    click.echo(f"{key.id} {whose}; keep it, it is not shown again:", err=True)
    click.echo(text)


@command.command("list")
@state_dir_option
@database_option
def list_keys(state_dir: Path, database: str | None) -> None:
    """List the keys, without their secrets."""
    with _store(state_dir, database) as store:
        keys = store.list()
    if not keys:
        click.echo("no keys yet; meritorder key create --team TEAM makes one")
        return
    table = Table("id", "team", "name", "limits", "created", "state", box=None)
    for key in keys:
        state = "in force" if key.revoked_at is None else f"revoked {_day(key.revoked_at)}"
        team = "(admin)" if key.admin else key.team
        table.add_row(key.id, team, key.name, _limits(key), _day(key.created_at), state)
    output().print(table)


@command.command()
@click.argument("key_id")
@state_dir_option
@database_option
def revoke(key_id: str, state_dir: Path, database: str | None) -> None:
    """Revoke the key named KEY_ID, as `key list` shows it. A running platform refuses it within a second."""
    with _store(state_dir, database) as store:
        if not store.revoke(key_id):
            raise click.ClickException(f"no key {key_id!r} is in force; meritorder key list shows those there are")
    click.echo(f"{key_id} is revoked")


@contextlib.contextmanager
def _store(state_dir: Path, database: str | None) -> Iterator[KeyStore]:
    with opened(state_dir, database) as engine:
        yield KeyStore(engine, load_secret(state_dir))


def _limits(key: ApiKey) -> str:
    limits = key.limits.limits
    parts = [f"{budget.amount:f} USD {budget.period}" for budget in key.limits.budgets]
    rates = (
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.concurrency, "at once"),
    )
    return ", ".join([*parts, *(f"{number:,} {unit}" for number, unit in rates if number is not None)])


def _refuse_unknown_team(team: str, state_dir: Path) -> None:
    # A key for a team that does not exist would be refused at its first use: say so now, if that can be known.
    running = find_running(state_dir)
    if running is not None and team not in running.teams:
        raise click.ClickException(
            f"the running platform has no team {team!r}; it has {', '.join(running.teams) or 'none'}"
        )


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
