"""Ending a tree of processes on Linux, with those that tried to leave it."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36

KILL_TIMEOUT = 8.0
"""Seconds to end a whole cluster; it takes 0.1 to 0.5."""


def adopt_orphans() -> None:
    """From now on, a descendant whose parent dies becomes a child of this process instead of init's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


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


def end_descendants(timeout: float) -> bool:
    """Kill everything below this process and reap it; False when something was left after `timeout` seconds.

    Needs `adopt_orphans` to have been called before they were started.
    """
    deadline = time.monotonic() + timeout
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
