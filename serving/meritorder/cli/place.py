"""Where a platform lives, where it listens, and to how much."""

from dataclasses import dataclass, field
from pathlib import Path

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


class PlatformError(Exception):
    """The platform cannot run. The message is one sentence for a person."""


@dataclass(frozen=True, slots=True)
class Place:
    """What `up` was told. `paths` are the manifests; `database` is a URL, None for SQLite in the state directory."""

    paths: tuple[Path, ...]
    state_dir: Path
    host: str
    port: int
    max_body_bytes: int
    database: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Where this machine reaches the endpoint."""
        host = _ANY_ADDRESS.get(self.host) or (f"[{self.host}]" if ":" in self.host else self.host)
        return f"http://{host}:{self.port}"
