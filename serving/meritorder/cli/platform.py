"""The whole platform on one machine: ingress, simulated upstream and local cluster, kept in step with manifests."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meritorder.cli.child import Process
from meritorder.cli.running import STATUS_FILE
from meritorder.cli.simulated import SimulatedUpstream
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.local import ClusterError, LocalCluster
from meritorder.manifests.catalog import model_application, provider_application
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.status_file import write_statuses
from meritorder.manifests.watch import changes
from meritorder.manifests.yaml_source import ManifestError

_DRAIN_SECONDS = "2"
"""For streams that are open at a Ctrl-C; the backends are gone by then."""

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


class PlatformError(Exception):
    """The platform cannot run. The message is one sentence for a person."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a platform lives, where it listens, and to how much."""

    state_dir: Path
    host: str
    port: int
    max_body_bytes: int

    @property
    def url(self) -> str:
        """Where this machine reaches it."""
        host = _ANY_ADDRESS.get(self.host) or (f"[{self.host}]" if ":" in self.host else self.host)
        return f"http://{host}:{self.port}"


class Platform:
    """Runs everything for `manifests`, and follows what changes at `paths`. A context manager.

    `start` returns when Serve takes applications; `step` is then called again and again.
    """

    def __init__(self, paths: Sequence[Path], manifests: ManifestSet, place: Place) -> None:
        logs = place.state_dir / "logs"
        self.manifests = manifests
        self._paths = paths
        self._place = place
        self._ingress_log = logs / "ingress.log"
        self._cluster = LocalCluster(place.state_dir)
        self._simulated = SimulatedUpstream(logs / "simulated.log")
        self._ingress: Process | None = None
        self._stack = contextlib.ExitStack()
        self._changes: queue.SimpleQueue[ManifestSet | ManifestError] = queue.SimpleQueue()
        self._published: list[ApplicationStatus] = []

    def __enter__(self) -> "Platform":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start everything, and deploy.

        Raises:
            PlatformError: something did not start.
        """
        self._publish([ApplicationStatus(name, Phase.PENDING) for name in self._applications()])
        # In reverse order of their need: the ingress is the last to stop, and says to the end what it cannot do.
        self._start_ingress()
        self._stack.callback(self._simulated.stop)
        self._simulated.serve(self.manifests)
        self._stack.callback(self._cluster.stop)
        try:
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
        for process in (self._ingress, self._simulated.process):
            if process is not None and process.ended:
                raise PlatformError(f"a part of the platform has ended by itself; {process.last_words()}")
        with contextlib.suppress(queue.Empty):
            read = self._changes.get_nowait()
            if isinstance(read, ManifestSet):
                self.manifests = read
                self._simulated.serve(read)
                self._apply()
            return read
        self._cluster.wait(timeout)
        statuses = list(self._cluster.statuses().values())
        if statuses == self._published:
            return None
        self._publish(statuses)
        return statuses

    def _start_ingress(self) -> None:
        place = self._place
        arguments = [argument for path in self._paths for argument in ("--manifests", str(path))]
        arguments += ["--state-dir", str(place.state_dir), "--status-file", str(place.state_dir / STATUS_FILE)]
        arguments += ["--host", place.host, "--port", str(place.port), "--drain-seconds", _DRAIN_SECONDS]
        arguments += ["--max-body-bytes", str(place.max_body_bytes)]
        self._ingress = Process("meritorder.ingress", arguments, self._ingress_log)
        self._stack.callback(self._ingress.stop)

    def _apply(self) -> None:
        self._cluster.apply(self.manifests.models, self.manifests.providers, simulated_url=self._simulated.url)

    def _publish(self, statuses: list[ApplicationStatus]) -> None:
        write_statuses(self._place.state_dir / STATUS_FILE, statuses)
        self._published = statuses

    def _applications(self) -> Iterator[str]:
        yield from (provider_application(provider) for provider in self.manifests.providers)
        yield from (model_application(model) for model in self.manifests.models)

    async def _watch(self) -> None:
        async for read in changes(self._paths, self.manifests):
            self._changes.put(read)
