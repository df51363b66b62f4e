"""The statuses of applications as a file: how `meritorder up` tells the ingress what runs where.

On a cluster the same facts are in the status of the custom resources.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from meritorder.core.status import ApplicationStatus


def write_statuses(file: Path, statuses: Iterable[ApplicationStatus]) -> None:
    """Replace `file` in one step: a reader sees the old or the new, never half of it."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(json.dumps([status.to_json() for status in statuses], indent=1))
    os.replace(fresh, file)


def read_statuses(file: Path) -> Mapping[str, ApplicationStatus]:
    """The statuses in `file`, by application.

    Raises:
        FileNotFoundError: nobody has written it yet.
        ValueError: it is not such a file.
    """
    entries = json.loads(file.read_text())
    if not isinstance(entries, list):
        raise ValueError("not a list of statuses")
    statuses = [ApplicationStatus.from_json(entry) for entry in entries]
    return {status.application: status for status in statuses}
