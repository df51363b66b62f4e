"""`meritorder validate`: read manifests, and say what is wrong with them."""

from pathlib import Path

import click

from meritorder.cli.options import manifests_option, read_manifests
from meritorder.manifests.catalog import catalog


@click.command("validate")
@manifests_option
def command(paths: tuple[Path, ...]) -> None:
    """Check manifests without starting anything."""
    manifests = read_manifests(paths)
    counts = {kind: len(list(manifests.of(kind))) for kind in ("Model", "Provider", "Route", "Team")}
    click.echo("valid: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    for backend in catalog(manifests).backends.values():
        if backend.price is None:
            click.echo(f"note: {backend.name} has no price, so nobody with a budget can use it; give it one", err=True)
