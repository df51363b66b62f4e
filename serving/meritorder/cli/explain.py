"""`meritorder explain`: where a request would go, and why."""

import json
import os
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meritorder.cli.client import first_model, post_json
from meritorder.cli.options import output, state_dir_option
from meritorder.cli.running import calling_key, require_running

_SHOWN = Decimal("0.001")
"""Of a millionth: the least difference that decides on an order."""

_UNKNOWN = "unknown"


def _base_url(_context: click.Context, _parameter: click.Parameter, url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        understood = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        understood = False
    if not understood:
        raise click.BadParameter(f"expected a URL such as https://models.example.com, got {url!r}")
    return url.rstrip("/").removesuffix("/v1")


@click.command("explain")
@click.argument("prompt", nargs=-1)
@click.option("--model", "-m", help="The model name to ask about; the body's, or else the first that you may call.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest answer.")
@click.option("--body", type=click.File(), metavar="FILE", help="The request itself, in JSON; - is standard input.")
@click.option("--url", callback=_base_url, help="Another ingress than the one that `up` runs on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print what the ingress answers.")
@state_dir_option
def command(
    prompt: tuple[str, ...],
    model: str | None,
    max_tokens: int | None,
    body: IO[str] | None,
    url: str | None,
    as_json: bool,
    state_dir: Path,
) -> None:
    """Show where a request with PROMPT would go, and why. Nothing is sent to a backend.

    The request is a chat completion, or what --body has: with tools, images or a `meritorder` object of overrides, for
    completions or embeddings.

    It asks with the key in MERITORDER_API_KEY, or with the one that `up` has made for this machine.
    """
    if bool(prompt) == (body is not None):
        raise click.UsageError("give either a PROMPT or a --body")
    request: dict[str, Any] = {"messages": [{"role": "user", "content": " ".join(prompt)}]}
    if body is not None:
        request = _read(body)
    address, key = _ingress(url, state_dir)
    if model is not None or "model" not in request:
        request["model"] = model or first_model(address, key)
    if max_tokens is not None:
        request["max_tokens"] = max_tokens
    explained = post_json(f"{address}/v1/routes:explain", key, request)
    if as_json:
        click.echo(json.dumps(explained, indent=2))
    else:
        _show(output(), explained)


def _read(body: IO[str]) -> dict[str, Any]:
    try:
        request = json.load(body)
    except ValueError as error:
        raise click.ClickException(f"the --body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise click.ClickException("the --body is no JSON object; give the body of a request")
    return request


def _ingress(url: str | None, state_dir: Path) -> tuple[str, str]:
    """Where to ask, and with which key. This machine's key is for this machine, and goes nowhere else."""
    if url is None:
        return require_running(state_dir).url, calling_key(state_dir)
    key = os.environ.get("MERITORDER_API_KEY")
    if not key:
        raise click.ClickException(f"no key for {url}: set MERITORDER_API_KEY to a key of one of its teams")
    return url, key


def _show(console: Console, explained: dict[str, Any]) -> None:
    console.print(_title(explained), highlight=False, markup=False, soft_wrap=True)
    if explained["attempts"]:
        console.print(_attempts(explained["attempts"]))
        console.print(
            "utility = quality - cost - lateness - congestion. These and `at most` are in millionths of a US dollar.",
            highlight=False,
            soft_wrap=True,
        )
    if explained["rejected"]:
        console.print(_rejected(explained["rejected"]))
    console.print(explained["decision"], highlight=False, markup=False, soft_wrap=True)


def _title(explained: dict[str, Any]) -> str:
    arm, left = explained["arm"], explained["budget_left_usd"]
    parts = [
        f"{explained['route']}, /v1/{explained['endpoint']}",
        f"arm {arm}" if arm is not None else "",
        f"about {explained['prompt_tokens_estimated']:,} tokens of prompt",
        f"team {explained['team']}",
        f"{left} USD of its budget left" if left is not None else "no budget",
    ]
    return "; ".join(part for part in parts if part)


def _attempts(attempts: list[dict[str, Any]]) -> Table:
    table = Table("", "backend", "tier", box=box.SIMPLE, pad_edge=False)
    for heading in ("utility", "quality", "cost", "lateness", "congestion", "at most", "TTFT, ms", "cached"):
        table.add_column(heading, justify="right")
    for number, attempt in enumerate(attempts, 1):
        score, bound, ttft = attempt["score"], attempt["cost_bound_usd"], attempt["ttft_seconds"]
        table.add_row(
            str(number),
            escape(attempt["backend"]),
            attempt["tier"],
            _millionths(attempt["utility"]),
            *(_millionths(score[part]) for part in ("quality", "cost", "lateness", "congestion")),
            _UNKNOWN if bound is None else _bound(bound),
            _UNKNOWN if ttft is None else f"{ttft * 1000:,.0f}",
            f"{attempt['cached_tokens']:,}",
        )
    return table


def _rejected(rejected: list[dict[str, Any]]) -> Table:
    table = Table("not tried", "rejection", "because it", box=box.SIMPLE, pad_edge=False)
    for one in rejected:
        table.add_row(escape(one["backend"]), one["rejection"], escape(one["reason"]))
    return table


def _millionths(dollars: float) -> str:
    return f"{round(dollars * 1e6, 3) + 0.0:,.3f}"  # the sum turns -0.0 into 0.0


def _bound(dollars: str) -> str:
    return f"{(Decimal(dollars) * 10**6).quantize(_SHOWN, ROUND_CEILING):,f}"
