"""The whole platform on one machine: ingress, simulated upstream and local cluster, kept in step with manifests."""

import asyncio
import contextlib
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meritorder.cli.running import STATUS_FILE
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.local import ClusterError, LocalCluster
from meritorder.manifests.catalog import model_application, provider_application
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.status_file import write_statuses
from meritorder.manifests.watch import changes
from meritorder.manifests.yaml_source import ManifestError

_STOP_SECONDS = 10.0
_UPSTREAM_START_SECONDS = 20.0


class PlatformError(Exception):
    """The platform cannot run. The message is one sentence for a person."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a platform lives and listens."""

    state_dir: Path
    host: str
    port: int

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class Process:
    """A Python module that runs as a child, with its output in a log file; it does not outlive this process."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path, *, stdout: int | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout or file,
                stderr=file,
                # Ctrl-C in the terminal reaches only this process, which then stops everything in order.
                start_new_session=True,
            )

    def stop(self) -> None:
        """End it: asked first, and killed where it does not listen."""
        self.popen.terminate()
        try:
            self.popen.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class Platform:
    """Starts everything for `manifests`, and follows what changes at `paths`. A context manager.

    `start` returns when Serve takes applications; `step` is then called again and again.
    """

    def __init__(self, paths: Sequence[Path], manifests: ManifestSet, place: Place) -> None:
        self._paths = paths
        self.manifests = manifests
        self._place = place
        self._logs = place.state_dir / "logs"
        self._cluster = LocalCluster(place.state_dir)
        self._stack = contextlib.ExitStack()
        self._ingress: Process | None = None
        self._simulated: tuple[frozenset[str], Process, str] | None = None
        self._changes: queue.SimpleQueue[ManifestSet | ManifestError] = queue.SimpleQueue()
        self._published: list[ApplicationStatus] = []

    def __enter__(self) -> "Platform":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_ingress(self) -> None:
        """Start the ingress; `step` finds out if it ends."""
        self._publish([ApplicationStatus(name, Phase.PENDING) for name in self._applications()])
        manifests = [argument for path in self._paths for argument in ("--manifests", str(path))]
        place = self._place
        arguments = [
            *manifests,
            *("--state-dir", str(place.state_dir), "--status-file", str(place.state_dir / STATUS_FILE)),
            *("--host", place.host, "--port", str(place.port), "--exit-with-parent"),
        ]
        self._ingress = Process("meritorder.ingress", arguments, self._logs / "ingress.log")
        self._stack.callback(self._ingress.stop)

    def start_cluster(self) -> None:
        """Start Ray and Serve, and deploy.

        Raises:
            PlatformError: something did not start.
        """
        try:
            self._stack.callback(self._cluster.stop)
            self._cluster.start()
            self._apply()
        except ClusterError as error:
            raise PlatformError(str(error)) from None
        threading.Thread(target=lambda: asyncio.run(self._watch()), name="manifests", daemon=True).start()

    def step(self, timeout: float) -> list[ApplicationStatus] | ManifestSet | ManifestError | None:
        """Wait up to `timeout` seconds for something to happen, act on it, and return it.

        Raises:
            PlatformError: a part that everything depends on has ended.
        """
        self._check_alive()
        with contextlib.suppress(queue.Empty):
            read = self._changes.get_nowait()
            if isinstance(read, ManifestSet):
                self.manifests = read
                self._apply()
            return read
        self._cluster.wait(timeout)
        statuses = list(self._cluster.statuses().values())
        if statuses == self._published:
            return None
        self._publish(statuses)
        return statuses

    def _apply(self) -> None:
        self._cluster.apply(self.manifests.models, self.manifests.providers, simulated_url=self._simulated_url())

    def _publish(self, statuses: list[ApplicationStatus]) -> None:
        write_statuses(self._place.state_dir / STATUS_FILE, statuses)
        self._published = statuses

    def _applications(self) -> Iterator[str]:
        yield from (provider_application(provider) for provider in self.manifests.providers)
        yield from (model_application(model) for model in self.manifests.models)

    def _check_alive(self) -> None:
        for process in (self._ingress, self._simulated[1] if self._simulated else None):
            if process is not None and process.popen.poll() is not None:
                raise PlatformError(f"a part of the platform has ended by itself; {_last_words(process)}")

    def _simulated_url(self) -> str | None:
        """The base URL of the simulated upstream, started where a provider wants it."""
        wanted = frozenset(
            model.upstream_name or model.name
            for provider in self.manifests.providers
            if provider.spec.type == "simulated"
            for model in provider.spec.models
        )
        if self._simulated is not None:
            models, process, url = self._simulated
            if wanted <= models:
                return url
            process.stop()
            self._simulated = None
        if not wanted:
            return None
        process, url = self._start_simulated(wanted)
        self._simulated = (wanted, process, url)
        self._stack.callback(process.stop)
        return url

    def _start_simulated(self, models: frozenset[str]) -> tuple[Process, str]:
        arguments = [argument for model in sorted(models) for argument in ("--model", model)]
        arguments += ["--script", str(Path(__file__).with_name("simulated.yaml"))]
        process = Process(
            "meritorder.testing.upstream", arguments, self._logs / "simulated.log", stdout=subprocess.PIPE
        )
        line = _first_line(process, _UPSTREAM_START_SECONDS)
        if not line.startswith("simulated upstream on "):
            process.stop()
            raise PlatformError(f"the simulated provider did not start; {_last_words(process)}")
        return process, line.removeprefix("simulated upstream on ").strip() + "/v1"

    async def _watch(self) -> None:
        async for read in changes(self._paths, self.manifests):
            self._changes.put(read)


def _first_line(process: Process, timeout: float) -> str:
    assert process.popen.stdout is not None
    readable, _, _ = select.select([process.popen.stdout], [], [], timeout)
    return process.popen.stdout.readline().decode() if readable else ""


def _last_words(process: Process) -> str:
    lines = process.log.read_text(errors="replace").strip().splitlines()
    return f"it last said: {lines[-1][:300]} (all of it is in {process.log})" if lines else f"see {process.log}"
