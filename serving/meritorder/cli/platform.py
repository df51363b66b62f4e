"""The whole platform on one machine: ingress, simulated upstream and local cluster, kept in step with manifests."""

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping

from meritorder.cli.child import Process
from meritorder.cli.options import DATABASE_VARIABLE
from meritorder.cli.place import Place, PlatformError
from meritorder.cli.running import STATUS_FILE
from meritorder.cli.simulated import SimulatedUpstream
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.local.cluster import ClusterError, LocalCluster
from meritorder.manifests.catalog import model_application, provider_application
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.status_file import write_statuses
from meritorder.manifests.watch import changes
from meritorder.manifests.yaml_source import ManifestError

log = logging.getLogger(__name__)

_DRAIN_SECONDS = 2
"""For streams that are open at a Ctrl-C; the backends are gone by then."""

_RETRY_SECONDS = 1.0

_MAX_ENDS, _ENDS_WITHIN_SECONDS = 3, 600.0
"""How often parts may end by themselves before that is no accident any more."""


class Platform:
    """Runs everything for `manifests`, and follows what changes at their paths. A context manager.

    `start` returns when Serve takes applications; `step` is then called again and again.
    """

    def __init__(self, place: Place, manifests: ManifestSet) -> None:
        logs = place.state_dir / "logs"
        self.manifests = manifests
        self._place = place
        self._ingress_log = logs / "ingress.log"
        self._cluster = LocalCluster(place.state_dir)
        self._simulated = SimulatedUpstream(logs / "simulated.log")
        self._ingress: Process | None = None
        self._stack = contextlib.ExitStack()
        self._changes: queue.SimpleQueue[ManifestSet | ManifestError] = queue.SimpleQueue()
        self._published: list[ApplicationStatus] = []
        self._ends: list[float] = []

    def __enter__(self) -> "Platform":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start everything, and deploy.

        Raises:
            PlatformError: something did not start.
        """
        self._publish_pending()
        # In reverse order of their need: the ingress is the last to stop, and says to the end what it cannot do.
        self._stack.callback(self._stop_ingress)
        self._start_ingress()
        self._stack.callback(self._simulated.stop)
        self._simulated.serve(self.manifests)
        self._stack.callback(self._cluster.stop)
        self._start_cluster()
        threading.Thread(target=self._watch, name="manifests", daemon=True).start()

    def step(self, timeout: float) -> list[ApplicationStatus] | ManifestSet | ManifestError | str | None:
        """Wait up to `timeout` seconds for something to happen, act on it, and return it.

        What has ended by itself is started again, and a sentence about it returned.

        Raises:
            PlatformError: a part ends again and again.
        """
        if said := self._mend():
            return said
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

    def _mend(self) -> str | None:
        """Start one part again that has ended by itself, and say so."""
        if self._ingress is not None and self._ingress.ended:
            said = self._again("the ingress", self._ingress.last_words())
            self._start_ingress()
        elif self._simulated.process is not None and self._simulated.process.ended:
            said = self._again("the simulated provider", self._simulated.process.last_words())
            self._simulated.restart(self.manifests)
            self._apply()
        elif failure := self._cluster.failure:
            said = self._again("the local Ray cluster", f"{failure}; see {self._cluster.log_file}")
            self._publish_pending()  # so that the ingress does not ask what is not there
            self._cluster.stop()
            self._start_cluster()
        else:
            return None
        return said

    def _again(self, part: str, why: str) -> str:
        now = time.monotonic()
        self._ends = [moment for moment in self._ends if now - moment < _ENDS_WITHIN_SECONDS] + [now]
        if len(self._ends) > _MAX_ENDS:
            raise PlatformError(f"{part} has ended by itself, and parts of the platform do so again and again; {why}")
        return f"{part} has ended by itself and is started again; {why}"

    def _start_cluster(self) -> None:
        try:
            self._cluster.start()
        except ClusterError as error:
            raise PlatformError(str(error)) from None
        self._apply()

    def _start_ingress(self) -> None:
        place = self._place
        options = {
            "--state-dir": place.state_dir,
            "--status-file": place.state_dir / STATUS_FILE,
            "--host": place.host,
            "--port": place.port,
            "--drain-seconds": _DRAIN_SECONDS,
            "--max-body-bytes": place.max_body_bytes,
        }
        arguments = [word for path in place.paths for word in ("--manifests", str(path))]
        arguments += [str(word) for option in options.items() for word in option]
        self._ingress = Process("meritorder.ingress", arguments, self._ingress_log, environment=self._without_keys())

    def _stop_ingress(self) -> None:
        if self._ingress is not None:
            self._ingress.stop()

    def _without_keys(self) -> Mapping[str, str]:
        """The environment less the providers' keys, which are nobody's but their proxies'."""
        credentials = (provider.spec.credentials for provider in self.manifests.providers)
        names = {each.env for each in credentials if each is not None}
        kept = {name: value for name, value in os.environ.items() if name not in names}
        database = self._place.database
        return kept if database is None else kept | {DATABASE_VARIABLE: database}  # not for a list of processes

    def _apply(self) -> None:
        url = self._simulated.url
        # A cluster that has just ended is started again by the next step, which applies what is in force then.
        with contextlib.suppress(ClusterError):
            self._cluster.apply(self.manifests.models, self.manifests.providers, simulated_url=url)

    def _publish_pending(self) -> None:
        self._publish([ApplicationStatus(name, Phase.PENDING) for name in self._applications()])

    def _publish(self, statuses: list[ApplicationStatus]) -> None:
        write_statuses(self._place.state_dir / STATUS_FILE, statuses)
        self._published = statuses

    def _applications(self) -> Iterator[str]:
        yield from (provider_application(provider) for provider in self.manifests.providers)
        yield from (model_application(model) for model in self.manifests.models)

    def _watch(self) -> None:
        while True:
            try:
                asyncio.run(self._follow())
            except Exception:
                log.exception("the manifests cannot be followed, which is tried again")
                time.sleep(_RETRY_SECONDS)

    async def _follow(self) -> None:
        async for read in changes(self._place.paths, self.manifests):
            self._changes.put(read)
