"""`meritorder prices`: the price catalogue, and what is wrong with prices."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import click
from rich.table import Table

from meritorder.cli.options import output, read_manifests
from meritorder.core.pricing import NoPrice, ServiceTier
from meritorder.manifests.price_checks import check_catalogue, check_manifests, used_entries
from meritorder.manifests.prices import CatalogueEntry, catalogue


@click.group("prices", invoke_without_command=True)
@click.option("--provider", metavar="TYPE", help="Only this type of provider, such as openai.")
@click.pass_context
def command(context: click.Context, provider: str | None) -> None:
    """List the price catalogue: US dollars per million tokens, as of today."""
    if context.invoked_subcommand is not None:
        return
    entries = catalogue()
    known = sorted({entry.provider for entry in entries})
    if provider is not None and provider not in known:
        raise click.ClickException(f"the catalogue has no prices of {provider!r}; it has those of {', '.join(known)}")
    table = Table("provider", "model", box=None)
    for heading in ("input", "cached", "cache write", "output"):
        table.add_column(heading, justify="right")
    table.add_column("also has")
    table.add_column("reviewed")
    for entry in entries:
        if provider in (None, entry.provider):
            _add_rows(table, entry)
    output().print(table)


@command.command()
@click.option(
    "-f",
    "--manifests",
    "paths",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Check the prices of these manifests, and of the catalogue only what they use.",
)
@click.option(
    "--max-age-days",
    type=click.IntRange(min=0),
    default=90,
    show_default=True,
    help="How old a review may be.",
)
def check(paths: tuple[Path, ...], max_age_days: int) -> None:
    """Say which prices are missing, stale or inconsistent, and end with exit code 1 if any is."""
    today = datetime.now(UTC).date()
    providers = read_manifests(paths).providers if paths else []
    entries = used_entries(providers) if paths else catalogue()
    findings = [*check_manifests(providers, today), *check_catalogue(entries, today, max_age_days)]
    for finding in findings:
        click.echo(str(finding), err=True)
    problems = sum(not finding.warning for finding in findings)
    if problems:
        raise click.ClickException(f"the prices are not in order ({problems} problem{'s' if problems > 1 else ''})")
    click.echo("the prices are in order")


def _add_rows(table: Table, entry: CatalogueEntry) -> None:
    """One row per length of prompt that has rates of its own."""
    reviewed = str(entry.reviewed)
    try:
        sheet = entry.price.sheet(datetime.now(UTC).timestamp())
    except NoPrice:
        begins = f"from {entry.price.sheets[0].effective_from}"
        table.add_row(entry.provider, entry.names[0], *[""] * 4, begins, reviewed)
        return
    others = ", ".join(tier.value for tier in sheet.tiers if tier is not ServiceTier.DEFAULT)
    for step in sheet.tiers[ServiceTier.DEFAULT]:
        rates = step.rates
        model = entry.names[0] if step.above < 0 else f"  above {step.above} input tokens"
        shown = (_shown(rate) for rate in (rates.input, rates.cached_input, rates.cache_write, rates.output))
        table.add_row(entry.provider, model, *shown, others, reviewed)


def _shown(rate: Decimal | None) -> str:
    return "" if rate is None else format(rate, "f")
