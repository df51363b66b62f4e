"""Processes of Linux that end with others: a child with its parent, and a whole tree with those that left it."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

KILL_TIMEOUT = 8.0
"""Seconds to end a tree of processes; a whole Ray cluster takes 0.1 to 0.5."""


def exit_with_parent(parent: int) -> None:
    """Get a SIGTERM when `parent`, which started this process, ends in whatever way."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), signal.SIGTERM)


def adopt_orphans() -> None:
    """From now on, a descendant whose parent dies becomes a child of this process instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> set[int]:
    """The processes below `pid`, without `pid`, zombies included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                # `pid (comm) state ppid ...`; comm may contain anything, so count from its end.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    frontier = [pid]
    while frontier:
        below = children.get(frontier.pop(), [])
        found.update(below)
        frontier.extend(below)
    return found


def end_descendants(timeout: float = KILL_TIMEOUT) -> bool:
    """Kill everything below this process and reap it; False when something was left after `timeout` seconds.

    Shared memory that they had open goes with them: a killed engine cannot remove its own. Needs `adopt_orphans`
    to have been called before they were started.
    """
    deadline = time.monotonic() + timeout
    shared = _shared_memory(descendants(os.getpid()))
    try:
        return _kill_descendants(deadline)
    finally:
        for file in shared:
            file.unlink(missing_ok=True)


def _kill_descendants(deadline: float) -> bool:
    while below := descendants(os.getpid()):
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _shared_memory(pids: set[int]) -> set[Path]:
    """The files of POSIX shared memory and semaphores that any of `pids` has mapped (proc(5), maps)."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                file = line.partition("/dev/shm/")[2]
                if file and not file.endswith(" (deleted)"):
                    found.add(Path("/dev/shm", file))
    return found


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
