"""The settings of the ingress, each with its unit, its default and the reason for it."""

from dataclasses import dataclass, field
from pathlib import Path

from meritorder.backends.client import Timeouts
from meritorder.core.request import MAX_BODY_BYTES


@dataclass(frozen=True, slots=True)
class Settings:
    """`manifests` are files or folders; `status_file` is written by whoever runs the applications."""

    manifests: tuple[Path, ...]
    state_dir: Path
    status_file: Path

    database: str | None = field(default=None, repr=False)
    """A postgresql:// URL, which may have a password in it; None: SQLite in the state directory."""

    host: str = "127.0.0.1"
    """Loopback: whoever wants more says so."""

    port: int = 8080

    max_body_bytes: int = MAX_BODY_BYTES

    body_seconds: float = 30.0
    """How long a request may take to come; the largest needs 5 Mbit/s for it. One that has stopped holds memory."""

    client_stall_seconds: float = 120.0
    """How long a client may not read its answer; its request holds a place at the backend, which others wait for."""

    timeouts: Timeouts = field(default_factory=Timeouts)

    key_poll_seconds: float = 0.5
    """A revoked key stops working within this time; a look costs a microsecond of SQLite."""

    status_poll_seconds: float = 0.1
    """Traffic moves to a backend that has become ready, or away from one that has not, within this time."""

    replica_time_seconds: float = 20.0
    """How often the running replicas are noted, whose minutes are charged for; thrice in each."""

    drain_seconds: float = 20.0
    """How long open requests may go on after a request to stop; Kubernetes kills a pod after 30 s unless told."""

    settle_seconds: float = 5.0
    """How long the last usage records may take after that; then the worker is killed."""
