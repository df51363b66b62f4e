"""The one platform that runs on a state directory: who it is, and that it is the only one."""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

RUNNING_FILE = "running.json"
STATUS_FILE = "status.json"
LOCAL_KEY_FILE = "local.key"
LOCK_FILE = "lock"

_LOCK_TRIES = 5
_LOCK_RETRY_SECONDS = 0.02


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """A platform that is up: its process, and where it answers."""

    pid: int
    url: str
    manifests: tuple[str, ...]
    teams: tuple[str, ...]


@contextlib.contextmanager
def claimed(state_dir: Path) -> Iterator[None]:
    """Hold `state_dir` for this process alone; the kernel lets go of it however the process ends."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = (state_dir / LOCK_FILE).open("a")
    except OSError as error:
        raise click.ClickException(f"the state directory {state_dir} cannot be used: {error.strerror}") from None
    with opened as lock:
        if not _locked(lock):
            running = _read(state_dir)
            who = f" (process {running.pid}, {running.url})" if running else ""
            raise click.ClickException(
                f"a platform is already running on {state_dir}{who}; end it with `meritorder down`, or give another "
                "--state-dir and --port"
            )
        _forget(state_dir)  # what a platform left behind that was killed
        try:
            yield
        finally:
            _forget(state_dir)


def announce(state_dir: Path, running: Running) -> None:
    """Let other commands find this platform."""
    fresh = state_dir / f".{RUNNING_FILE}.new"
    fresh.write_text(json.dumps(dataclasses.asdict(running), indent=1))
    os.replace(fresh, state_dir / RUNNING_FILE)


def find_running(state_dir: Path) -> Running | None:
    """The platform that holds `state_dir`, if one does."""
    if not (state_dir / LOCK_FILE).exists():
        return None
    with (state_dir / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(state_dir)
    return None


def require_running(state_dir: Path) -> Running:
    """As `find_running`, or the command ends."""
    running = find_running(state_dir)
    if running is None:
        raise click.ClickException(f"nothing is running on {state_dir}; start it with `meritorder up -f DIR`")
    return running


def calling_key(state_dir: Path) -> str:
    """The key in MERITORDER_API_KEY, or the one that `up` has made for this machine."""
    # Not an option: the process list would show it.
    if key := os.environ.get("MERITORDER_API_KEY"):
        return key
    try:
        return (state_dir / LOCAL_KEY_FILE).read_text().strip()
    except FileNotFoundError:
        raise click.ClickException(
            "no key: set MERITORDER_API_KEY (meritorder key create --team TEAM makes one)"
        ) from None


def _locked(lock: IO[str]) -> bool:
    """Take the lock, unless a platform has it; a command that only looks holds it for a moment."""
    for _ in range(_LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_LOCK_RETRY_SECONDS)
    return False


def _forget(state_dir: Path) -> None:
    for name in (RUNNING_FILE, STATUS_FILE):
        (state_dir / name).unlink(missing_ok=True)


def _read(state_dir: Path) -> Running | None:
    try:
        fields = json.loads((state_dir / RUNNING_FILE).read_text())
        return Running(**{**fields, "manifests": tuple(fields["manifests"]), "teams": tuple(fields["teams"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
