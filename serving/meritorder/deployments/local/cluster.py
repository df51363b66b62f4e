"""A private Ray cluster on this machine that runs the applications of a set of manifests.

Ray lives in a supervised child process, not in this one: importing it is slow, it installs signal handlers,
prints, and leaves processes behind when its driver dies badly. The child (`supervisor`) owns everything that
Ray starts and ends it; the two talk in JSON lines over pipes. When this process dies, even by SIGKILL, the
child sees the pipe close and stops.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.applications import applications
from meritorder.manifests.kinds import Model, Provider

SUPERVISOR = "meritorder.deployments.local.supervisor"

START_TIMEOUT = 120.0
"""Seconds until Ray and Serve must be up; 6 to 10 on two idle cores."""

STOP_TIMEOUT = 10.0
"""Seconds that the child has to end everything before it is killed."""


class ClusterError(Exception):
    """The local cluster cannot run. The message is one sentence for a person."""


class LocalCluster:
    """Ray and Serve on loopback, privately: other Ray clusters on the machine are neither used nor disturbed.

    All methods may be called from any thread, and none raises for a single application: what is wrong with
    one is in its status. `state_dir` receives the log file (`state_dir/logs/cluster.log`, of one run) and Ray's
    own (`state_dir/ray`).
    """

    def __init__(self, state_dir: Path, *, http_port: int = 0) -> None:
        """`http_port` is where the applications answer on 127.0.0.1; 0 chooses a free one."""
        self.state_dir = state_dir.absolute()
        self.log_file = self.state_dir / "logs" / "cluster.log"
        self._http_port = http_port
        self._child: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()
        self._statuses: dict[str, ApplicationStatus] = {}
        self._base_url: str | None = None
        self._failure: str | None = None
        self._ended = True

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT`, known once `start` has returned."""
        if self._base_url is None:
            raise ClusterError("the local cluster has not been started")
        return self._base_url

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start Ray and Serve and wait until Serve takes applications. It can be started again after `stop`.

        Raises:
            ClusterError: it did not come up; nothing is left running.
        """
        if self._child is not None:
            raise ClusterError("the local cluster is already running")
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._statuses, self._base_url, self._failure, self._ended = {}, None, None, False
        self.log_file.write_bytes(b"")  # it is the log of one run
        # A session of its own: Ctrl-C in the terminal reaches only the parent, which then stops in order.
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "meritorder.deployments.local.supervisor",
                    str(self.state_dir),
                    str(self._http_port),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._child.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._child.stdout,), daemon=True)
        self._reader.start()
        with self._changed:
            self._changed.wait_for(lambda: self._base_url is not None or self._ended, timeout)
        if self._base_url is None:
            failure = self._failure or f"it did not start within {timeout:.0f} s"
            self.stop()
            raise ClusterError(f"the local cluster is not running: {failure}; see {self.log_file}")

    def apply(
        self, models: Iterable[Model], providers: Iterable[Provider], *, simulated_url: str | None = None
    ) -> None:
        """Deploy, update and remove applications until exactly those of `models` and `providers` run.

        Returns at once; `statuses` tells how it goes on. Providers of type `simulated` are sent to
        `simulated_url` (such as `http://127.0.0.1:9000/v1`). Relative `file://` sources are taken from the
        current folder.

        Raises:
            ClusterError: the cluster is not running.
        """
        planned = applications(models, providers, simulated_url=simulated_url)
        with self._changed:
            known = self._statuses
            self._statuses = {
                app["name"]: known.get(app["name"], ApplicationStatus(app["name"], Phase.PENDING)) for app in planned
            }
            self._changed.notify_all()
        self._send({"apply": planned})

    @property
    def failure(self) -> str | None:
        """Why it has ended by itself; None while it runs, or where it has been stopped."""
        with self._changed:
            return self._failure if self._ended and self._child is not None else None

    def statuses(self) -> Mapping[str, ApplicationStatus]:
        """The newest status of every applied application, by its name (`model-faq`, `provider-openai`)."""
        with self._changed:
            if self._ended and self._failure:
                return {name: _lost(status, self._failure) for name, status in self._statuses.items()}
            return dict(self._statuses)

    def wait(self, timeout: float) -> bool:
        """Wait until a status changes or the cluster ends; False when `timeout` seconds passed without."""
        with self._changed:
            return self._changed.wait(timeout)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """End everything that was started, and wait for it. Calling it twice does no harm."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            # The group is the child's own, and holds all of Ray that did not make a group for itself.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if self._reader:
            self._reader.join()
        with self._changed:
            self._ended, self._base_url, self._statuses = True, None, {}
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _send(self, command: Mapping[str, Any]) -> None:
        child = self._child
        if child is None or child.stdin is None:
            raise ClusterError("the local cluster is not running")
        try:
            child.stdin.write(json.dumps(command) + "\n")
            child.stdin.flush()
        except OSError as error:
            raise ClusterError(f"the local cluster has ended; see {self.log_file}") from error

    def _read(self, events: IO[str]) -> None:
        with events:
            for line in events:
                self._note(json.loads(line))
        with self._changed:
            self._ended = True
            self._failure = self._failure or "its supervisor ended"
            self._changed.notify_all()

    def _note(self, event: Mapping[str, Any]) -> None:
        with self._changed:
            if "serving" in event:
                self._base_url = event["serving"]
            if "failed" in event:
                self._failure = event["failed"]
            for status in event.get("statuses", ()):
                if status["application"] in self._statuses:
                    self._statuses[status["application"]] = ApplicationStatus.from_json(status)
            self._changed.notify_all()


def _lost(status: ApplicationStatus, why: str) -> ApplicationStatus:
    return ApplicationStatus(status.application, Phase.FAILED, status.endpoint, f"the local cluster ended: {why}")
