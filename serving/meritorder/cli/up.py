"""`meritorder up`: run everything that the manifests describe, on this machine, until told to stop."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

from meritorder.cli import demo as demonstration
from meritorder.cli.client import NoAnswer, get_json
from meritorder.cli.local_key import ensure_local_key
from meritorder.cli.options import (
    DATABASE_VARIABLE,
    database_option,
    manifests_option,
    read_manifests,
    state_dir_option,
)
from meritorder.cli.place import Place, PlatformError
from meritorder.cli.preflight import problems
from meritorder.cli.progress import Progress
from meritorder.cli.running import Running, announce, claimed
from meritorder.cli.status import applications_table
from meritorder.core.request import MAX_BODY_BYTES
from meritorder.core.status import ApplicationStatus
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.yaml_source import ManifestError

if TYPE_CHECKING:
    from meritorder.cli.platform import Platform

_STEP_SECONDS = 0.2


@click.command("up")
@manifests_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the endpoint listens.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(min=1),
    default=MAX_BODY_BYTES,
    show_default=True,
    help="Larger requests are refused with 413.",
)
@click.option("--demo", is_flag=True, help="Send a few requests when all is ready, and show what became of them.")
@state_dir_option
@database_option
def command(
    paths: tuple[Path, ...],
    host: str,
    port: int,
    max_body_bytes: int,
    demo: bool,
    state_dir: Path,
    database: str | None,
) -> None:
    """Run the platform in the foreground. Ctrl-C, or `meritorder down`, ends it and all that it started."""
    console = Console()
    os.environ.pop(DATABASE_VARIABLE, None)  # it is for the ingress, and Ray's processes would inherit it
    folders = tuple(path.absolute() for path in paths)
    place = Place(folders, state_dir.absolute(), host, port, max_body_bytes, database)
    manifests = read_manifests(place.paths)
    try:
        with _stops_on_signals(), claimed(place.state_dir):
            for problem in problems(manifests, host, port):
                raise PlatformError(problem)
            # Only now: what it imports may be among what the preflight has found missing.
            from meritorder.cli.platform import Platform

            with Platform(place, manifests) as platform:
                _run(platform, place, console, demo=demo)
    except PlatformError as error:
        raise click.ClickException(str(error)) from None
    except _Stopped:
        console.print("stopped; nothing is left running")


def _run(platform: "Platform", place: Place, console: Console, *, demo: bool) -> None:
    teams = platform.manifests.teams
    key = ensure_local_key(place.state_dir, teams[0].name, place.database) if teams else None
    with Progress(console) as progress:
        announce(place.state_dir, _running(platform, place))
        progress.waits_for("Ray and Serve")
        platform.start()
        progress.done("Ray and Serve")
        while not (progress.settled and _ingress_knows(place.url, progress.statuses)):
            event = platform.step(_STEP_SECONDS)
            if isinstance(event, list):
                progress.show(event)
            else:
                _report(event, platform, place, console)
    console.print(f"\n[bold]{place.url}/v1[/] answers in OpenAI's format.", highlight=False)
    if demo and key:
        demonstration.show(console, place, platform.manifests, key)
    if key:
        console.print(demonstration.curl_line(place, platform.manifests), soft_wrap=True, highlight=False, markup=False)
    else:
        console.print("There is no Team among the manifests, so nobody may call; add one.")
    console.print("\nCtrl-C stops it.")
    while True:
        event = platform.step(_STEP_SECONDS)
        if isinstance(event, list):
            console.print(applications_table(event))
        else:
            _report(event, platform, place, console)


def _report(
    event: ManifestSet | ManifestError | str | None, platform: "Platform", place: Place, console: Console
) -> None:
    """Say what has happened."""
    moment = time.strftime("%H:%M:%S")
    match event:
        case ManifestSet():
            announce(place.state_dir, _running(platform, place))
            console.print(f"{moment} the manifests have changed and are in force", highlight=False)
        case str():
            console.print(f"[yellow]{moment} {escape(event)}[/]", highlight=False, soft_wrap=True)
        case ManifestError():
            said = f"{moment} the manifests are not valid now, and those of before stay in force:"
            console.print(f"[red]{said}\n{escape(str(event))}[/]", highlight=False, soft_wrap=True)


def _running(platform: "Platform", place: Place) -> Running:
    teams = tuple(team.name for team in platform.manifests.teams)
    return Running(os.getpid(), place.url, tuple(str(path) for path in place.paths), teams)


def _ingress_knows(url: str, statuses: list[ApplicationStatus]) -> bool:
    """Whether the ingress is up and has taken over `statuses`."""
    try:
        report = get_json(f"{url}/readyz")
    except NoAnswer:
        return False
    known = {each["application"]: each["phase"] for each in report["applications"]}
    return known == {status.application: status.phase.value for status in statuses}


class _Stopped(Exception):
    """A request to stop, as an exception."""


@contextlib.contextmanager
def _stops_on_signals() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into an exception, once: a second one must not interrupt the clean-up."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
