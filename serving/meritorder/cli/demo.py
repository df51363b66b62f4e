"""The platform at work: a few real requests, and a table of what became of each."""

import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meritorder.cli.client import Streamed, stream_chat
from meritorder.cli.place import Place
from meritorder.cli.running import LOCAL_KEY_FILE
from meritorder.core.catalog import Backend, Catalog, Endpoint, Tier
from meritorder.core.usage import UsageRecord
from meritorder.ledger.database import open_database
from meritorder.ledger.records import wait_for
from meritorder.manifests.catalog import catalog
from meritorder.manifests.folder import ManifestSet

QUESTION = "What is a merit order?"
LONG_QUESTION = "Tell me the story of one request."
OVERFLOW = 8
"""How many requests more than the self-run model has room for are sent at once."""

_MAX_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Shown:
    """One request of the demonstration: what it was for, and what came of it, or the error."""

    purpose: str
    came: Streamed | click.ClickException


def show(console: Console, place: Place, manifests: ManifestSet, key: str) -> None:
    """Send the requests and print the table."""
    resolved = catalog(manifests)
    shown = list(_requests(console, place.url, resolved, key))
    if not shown:
        console.print("There is no chat model to show.")
        return
    engine = open_database(place.database or place.state_dir)
    try:
        records = wait_for(engine, [one.came.request_id for one in shown if isinstance(one.came, Streamed)])
    finally:
        engine.dispose()
    console.print(_table(shown, records))
    for line in _summary(shown, records):
        console.print(line, highlight=False, soft_wrap=True)


def curl_line(place: Place, manifests: ManifestSet) -> str:
    """A line for a shell that gets an answer."""
    resolved = catalog(manifests)
    team = next(iter(resolved.teams.values()))  # whose key `up` has made
    model = next(iter(resolved.callable_by(team)))
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'
    key_file = shlex.quote(str(place.state_dir / LOCAL_KEY_FILE))
    return (
        f"\nTry it:\n  curl {place.url}/v1/chat/completions -H 'Content-Type: application/json' "
        f'-H "Authorization: Bearer $(cat {key_file})" -d {shlex.quote(body)}'
    )


def _requests(console: Console, url: str, resolved: Catalog, key: str) -> Iterator[Shown]:
    self_run, hosted = _first(resolved, Tier.SELF_RUN), _first(resolved, Tier.HOSTED)
    for backend, where in ((self_run, "self-run"), (hosted, "hosted")):
        if backend is not None:
            console.print(f"\n[bold]{QUESTION}[/] (asked of {backend.name}, {where})", highlight=False)
            yield Shown(where, _ask(console, url, key, backend.name, QUESTION))
    route = _spilling_route(resolved)
    if route is None or self_run is None:
        return
    count = (self_run.concurrency or OVERFLOW) + OVERFLOW
    console.print(f"\n[bold]{count} requests at once[/] to {route}", highlight=False)
    with ThreadPoolExecutor(count) as pool:
        burst = pool.map(lambda _: _ask(None, url, key, route, LONG_QUESTION), range(count))
        yield from (Shown(f"burst {number}/{count}", one) for number, one in enumerate(burst, 1))


def _ask(console: Console | None, url: str, key: str, model: str, question: str) -> Streamed | click.ClickException:
    body = {"model": model, "max_tokens": _MAX_TOKENS, "messages": [{"role": "user", "content": question}]}
    try:
        streamed = stream_chat(url, key, body)
        for delta in streamed.deltas:
            if console is not None:
                console.print(delta, end="", markup=False, highlight=False, soft_wrap=True)
    except click.ClickException as error:
        return error
    finally:
        if console is not None:
            console.print()
    return streamed


def _first(resolved: Catalog, tier: Tier) -> Backend | None:
    chat = (each for each in resolved.backends.values() if Endpoint.CHAT_COMPLETIONS in each.capabilities.endpoints)
    return next((each for each in chat if each.tier is tier), None)


def _spilling_route(resolved: Catalog) -> str | None:
    """The first route with a self-run model first, and a hosted one behind it."""
    for route in resolved.routes.values():
        tiers = [resolved.backends[name].tier for name in route.backends]
        if tiers[0] is Tier.SELF_RUN and Tier.HOSTED in tiers:
            return route.name
    return None


def _table(shown: Sequence[Shown], records: Sequence[UsageRecord]) -> Table:
    table = Table(
        "request", "backend", "in", "out", "cost, USD", "TTFT, ms", title="What became of them", box=box.SIMPLE
    )
    for column in table.columns[2:]:
        column.justify = "right"
    by_id = {record.request_id: record for record in records}
    for one in shown:
        if not isinstance(one.came, Streamed):
            table.add_row(one.purpose, "[red]failed, see below[/]", "", "", "", "")
            continue
        record = by_id.get(one.came.request_id)
        backend = one.came.backend + (" [dim](simulated)[/]" if one.came.simulated else "")
        table.add_row(one.purpose, backend, *(_figures(record) if record else ("not settled",)))
    return table


def _figures(record: UsageRecord) -> tuple[str, str, str, str]:
    mark = "~" if record.usage.estimated else ""
    ttft = "" if record.time_to_first_token is None else f"{record.time_to_first_token * 1000:.0f}"
    return f"{mark}{record.usage.input_tokens}", f"{mark}{record.usage.output_tokens}", f"{record.cost:.6f}", ttft


def _summary(shown: Sequence[Shown], records: Sequence[UsageRecord]) -> Iterator[str]:
    for one in shown:
        if isinstance(one.came, click.ClickException):
            yield f"[red]failed:[/] {one.purpose}: {escape(one.came.message)}"
    total = sum((record.cost for record in records), start=Decimal(0))
    yield "in, out: tokens. TTFT: time to first token. A self-run replica is paid for anyway, so it adds no cost."
    burst = {one.came.request_id for one in shown if isinstance(one.came, Streamed) and one.purpose.startswith("burst")}
    tiers = [record.tier for record in records if record.request_id in burst]
    split = f"the replica served {tiers.count(Tier.SELF_RUN)}, and {tiers.count(Tier.HOSTED)} spilled over"
    yield f"{len(records)} requests for {total:.6f} USD in all; of the burst, {split}."
