"""`meritorder usage`: who used what, and what it cost."""

import csv
import json
import sys
import time
from decimal import Decimal
from pathlib import Path

import click
from rich import box
from rich.markup import escape
from rich.table import Table

from meritorder.cli.ledger import opened
from meritorder.cli.options import database_option, output, state_dir_option
from meritorder.ledger.reports import By, Report, Row, parse_moment, timestamp, usage_report


def _moment(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else parse_moment(text, time.time())
    except ValueError as error:
        raise click.BadParameter(f"expected {error}, got {text!r}") from None


@click.command("usage")
@click.option("--by", type=click.Choice([by.value for by in By]), default=By.TEAM.value, help="What a row is.")
@click.option(
    "--since",
    callback=_moment,
    default="30d",
    show_default=True,
    metavar="DATE|7d|12h",
    help="A day in UTC, a time, or how long ago.",
)
@click.option("--until", callback=_moment, metavar="DATE|7d|12h", help="The same, not included.  [default: now]")
@click.option("--team", help="Only this team.")
@click.option("--key", help="Only this key, by its id.")
@click.option("--model", help="Only what was asked of this name.")
@click.option("--backend", help="Only what this backend did.")
@click.option("--format", "shape", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@state_dir_option
@database_option
def command(
    by: str,
    since: float,
    until: float | None,
    team: str | None,
    key: str | None,
    model: str | None,
    backend: str | None,
    shape: str,
    state_dir: Path,
    database: str | None,
) -> None:
    """Show requests, tokens and costs, added up.

    Marginal cost is what hosted models are owed. Amortised cost is what self-run replicas cost while they ran, shared
    by those who used them in each hour; the hours that nobody used are the row "(idle)".
    """
    until = time.time() if until is None else until
    if since >= until:
        raise click.UsageError("--since is not before --until; change one of them")
    filters = {By.TEAM: team, By.KEY: key, By.MODEL: model, By.BACKEND: backend}
    only = {dimension: label for dimension, label in filters.items() if label is not None}
    with opened(state_dir, database) as engine:
        report = usage_report(engine, By(by), since, until, only)
    match shape:
        case "json":
            click.echo(json.dumps(report.to_json(), indent=2))
        case "csv":
            _write_csv(report)
        case _:
            _show(report)


def _write_csv(report: Report) -> None:
    """Without the sum, which whoever adds up a column would count, too."""
    names = list(report.total.to_json())
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([report.by.value, *names[1:]])
    writer.writerows(row.to_json().values() for row in report.rows)


def _show(report: Report) -> None:
    console = output()
    console.print(f"{timestamp(report.since)} to {timestamp(report.until)}; costs in US dollars", highlight=False)
    table = Table(box=box.SIMPLE, pad_edge=False, show_footer=True, footer_style="bold")
    headings = (report.by.value, "requests", "errors", "input", "cached", "output", "marginal", "amortised", "total")
    for heading, total in zip(headings, _cells(report.total), strict=True):
        table.add_column(heading, total, justify="right")
    table.columns[0].justify = "left"
    for row in report.rows:
        table.add_row(*_cells(row))
    console.print(table)
    for line in _notes(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _cells(row: Row) -> list[str]:
    counts = (row.requests, row.errors, row.input_tokens, row.cached_input_tokens, row.output_tokens)
    least = "≥ " if row.unpriced_requests else ""
    marginal, amortised, total = (f"{cost:,.6f}" for cost in (row.marginal_usd, row.amortised_usd, row.total_usd))
    return [escape(row.label), *(f"{count:,}" for count in counts), least + marginal, amortised, least + total]


def _notes(report: Report) -> list[str]:
    """What the sums do not have, and what they rest on."""
    notes = []
    if count := report.total.unpriced_requests:
        notes.append(f"{count:,} requests have a charge without a known price, which is in no sum (≥).")
    for backend, minutes in sorted(report.unpriced_replicas.items()):
        hours = Decimal(minutes) / 60
        notes.append(
            f"{hours:,.1f} replica-hours of {backend!r} have no price: set spec.replicaHourPrice of the Model."
        )
    if count := report.total.estimated_requests:
        notes.append(f"{count:,} requests have tokens that were counted here, since the backend reported none.")
    return notes
