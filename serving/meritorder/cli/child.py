"""Processes that `up` starts: Python modules that do not outlive it.

python -m meritorder.cli.child MODULE [ARGUMENT ...]
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from meritorder.system.processes import exit_with_parent

_STOP_SECONDS = 15.0


class Process:
    """A Python module that runs as a child, with its output in a log file."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> None:
        """`log` is begun anew. `stdout` is as for `subprocess.Popen`, where standard output is not for the log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "meritorder.cli.child", str(os.getpid()), module, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout or file,
                stderr=file,
                # Ctrl-C in the terminal reaches only this process, which then stops everything in order.
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self.popen.poll() is not None

    def stop(self, patience: float = _STOP_SECONDS) -> None:
        """End it: asked first, and killed where it has not listened after `patience` seconds."""
        self.popen.terminate()
        try:
            self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()

    def last_words(self) -> str:
        """Its last log line, and where the rest is."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        if not lines:
            return f"see {self.log}"
        said = lines[-1]
        with contextlib.suppress(ValueError, TypeError, KeyError):
            said = str(json.loads(said)["message"])  # a line of our own logs
        return f"it last said {said[:300]!r} (all of it is in {self.log})"


def main(parent: int, module: str, arguments: Sequence[str]) -> None:
    """Run `module` as `python -m` would, until `parent` ends."""
    exit_with_parent(parent)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
