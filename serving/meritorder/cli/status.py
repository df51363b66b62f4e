"""`meritorder status`: what runs, and what does not and why."""

import json
import sys
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from meritorder.cli.client import get_json
from meritorder.cli.options import output, state_dir_option
from meritorder.cli.running import STATUS_FILE, require_running
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.manifests.status_file import read_statuses

_STYLES = {Phase.READY: "green", Phase.FAILED: "red", Phase.STARTING: "yellow", Phase.PENDING: "yellow"}


@click.command("status")
@state_dir_option
def command(state_dir: Path) -> None:
    """Show every application and route. Exits with 1 where something has failed."""
    running = require_running(state_dir)
    console = output()
    console.print(
        f"{running.url}  (process {running.pid}; manifests: {', '.join(running.manifests)})",
        highlight=False,
        soft_wrap=True,
    )
    try:
        statuses = list(read_statuses(state_dir / STATUS_FILE).values())
    except FileNotFoundError:
        statuses = []
    console.print(applications_table(statuses))
    report = get_json(f"{running.url}/readyz")
    console.print(_routes_table(report))
    problem = report["configuration"]["problem"]
    if problem:
        console.print(
            f"[red]the manifests as they stand are not valid, and those of before stay in force:[/]\n{escape(problem)}"
        )
    if problem or any(status.phase is Phase.FAILED for status in statuses):
        sys.exit(1)


def applications_table(statuses: list[ApplicationStatus]) -> Table:
    """One row an application."""
    table = Table("application", "phase", "replicas", "what it waits for, or why it failed", box=None, pad_edge=False)
    for status in statuses:
        phase = f"[{_STYLES[status.phase]}]{status.phase.value}[/]"
        table.add_row(
            status.application, phase, f"{status.running_replicas}/{status.target_replicas}", escape(status.message)
        )
    return table


def _routes_table(report: dict[str, object]) -> Table:
    table = Table("model name", "ready backends", box=None, pad_edge=False)
    routes = report["routes"]
    assert isinstance(routes, list), json.dumps(routes)
    for route in routes:
        table.add_row(route["route"], ", ".join(route["ready"]) or "[red]none[/]")
    return table
