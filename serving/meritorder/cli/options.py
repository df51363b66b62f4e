"""Options and errors that several commands share."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from meritorder.manifests import folder
from meritorder.manifests.catalog import catalog
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.yaml_source import ManifestError

_UNWRAPPED_COLUMNS = 240

DATABASE_VARIABLE = "MERITORDER_DATABASE_URL"

manifests_option = click.option(
    "-f",
    "--manifests",
    "paths",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    metavar="PATH",
    help="A YAML file or a folder of them; of several, the later override the earlier.",
)


def default_state_dir() -> Path:
    """`$MERITORDER_STATE_DIR`, or the place that the XDG Base Directory Specification has for state."""
    if chosen := os.environ.get("MERITORDER_STATE_DIR"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "meritorder"


state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=default_state_dir,
    metavar="DIR",
    help="Where keys, the ledger and logs are kept.  [env: MERITORDER_STATE_DIR; default: ~/.local/state/meritorder]",
)

database_option = click.option(
    "--database",
    envvar=DATABASE_VARIABLE,
    metavar="URL",
    help="A PostgreSQL database, postgresql://user:password@host/name, in the place of the SQLite file in the state "
    f"directory.  [env: {DATABASE_VARIABLE}, where no list of processes shows it]",
)


def output() -> Console:
    """Standard output: as wide as the terminal, and where it is none as wide as nothing has to be wrapped."""
    return Console() if sys.stdout.isatty() else Console(width=_UNWRAPPED_COLUMNS)


def read_manifests(paths: Sequence[Path]) -> ManifestSet:
    """Read and check manifests, or end the command with all that is wrong with them."""
    try:
        manifests = folder.read(paths)
        catalog(manifests)
    except ManifestError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        count = len(error.problems)
        raise click.ClickException(f"the manifests are not valid ({count} problem{'s' if count > 1 else ''})") from None
    if not manifests.models and not manifests.providers:
        raise click.ClickException(
            "there is neither a Model nor a Provider among the manifests, so nothing could answer"
        )
    return manifests
