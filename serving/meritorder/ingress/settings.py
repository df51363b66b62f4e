"""The settings of the ingress, each with its unit, its default and the reason for it."""

from dataclasses import dataclass, field
from pathlib import Path

from meritorder.backends.client import Timeouts


@dataclass(frozen=True, slots=True)
class Settings:
    """`manifests` are files or folders; `status_file` is written by whoever runs the applications."""

    manifests: tuple[Path, ...]
    state_dir: Path
    status_file: Path

    host: str = "127.0.0.1"
    """Loopback: whoever wants more says so."""

    port: int = 8080

    max_body_bytes: int = 20_000_000
    """Large enough for a few images in base64, small enough that a slip does not fill the memory."""

    timeouts: Timeouts = field(default_factory=Timeouts)

    key_poll_seconds: float = 0.5
    """A revoked key stops working within this time; a look costs a microsecond of SQLite."""

    status_poll_seconds: float = 0.1
    """Traffic moves to a backend that has become ready, or away from one that has not, within this time."""

    drain_seconds: float = 30.0
    """How long open requests may go on after a request to stop; Kubernetes kills a pod after 30 s unless told."""
