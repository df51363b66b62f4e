"""What `up` waits for, and how long each part took."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from meritorder.core.status import ApplicationStatus, Phase


class Progress:
    """A line for each part as it becomes ready or fails; below them, what is still waited for.

    Where the output is no terminal, the lines are all there is.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._reported: dict[str, Phase] = {}
        self._said: dict[str, str] = {}
        self._spinner: Status | None = None
        self.statuses: list[ApplicationStatus] = []
        self.settled = False

    def __enter__(self) -> Self:
        self._spinner = self._console.status("") if self._console.is_terminal else None
        if self._spinner:
            self._spinner.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spinner:
            self._spinner.stop()

    def waits_for(self, what: str) -> None:
        if self._spinner:
            self._spinner.update(f"waiting for {escape(what)}")

    def done(self, part: str, detail: str = "") -> None:
        self._line("[green]ready[/] ", part, detail)

    def show(self, statuses: list[ApplicationStatus]) -> None:
        """Report what has changed since the last call."""
        self.statuses = statuses
        waiting = []
        for status in statuses:
            if status.phase is Phase.READY and self._reported.get(status.application) is not Phase.READY:
                self.done(
                    status.application,
                    f"{status.running_replicas} replicas" if status.running_replicas > 1 else "",
                )
            elif status.phase is Phase.FAILED and self._said.get(status.application) != status.message:
                self._line("[red]failed[/]", status.application, status.message)
                self._said[status.application] = status.message
            elif status.phase in (Phase.PENDING, Phase.STARTING):
                waiting.append(status.application + (f" ({status.message})" if status.message else ""))
            self._reported[status.application] = status.phase
        self.settled = not waiting
        self.waits_for(", ".join(waiting))

    def _line(self, mark: str, part: str, detail: str) -> None:
        elapsed = time.monotonic() - self._began
        self._console.print(f"{mark} {part:<24} after {elapsed:5.1f} s  {escape(detail)}", highlight=False)
