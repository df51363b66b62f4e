"""The applications of a local cluster: what is wanted, deployed, and seen.

It knows Serve only as the two calls of `Serve`, and runs without Ray.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.applications import is_model
from meritorder.deployments.local.observe import observe, replica_ids, target_replicas
from meritorder.deployments.local.preflight import refusal
from meritorder.deployments.local.probe import answers
from meritorder.deployments.local.restarts import MAX_RESTARTS, Restarts

PROVIDERS_FIRST = 20.0
"""Seconds that new models wait for the providers: their imports of vLLM take all cores of a small machine."""

MAX_LOG = 1_000_000
"""Bytes at the end of a worker's log that are searched for the reason of a failure."""

STAYS_IN_FORCE = "the last change cannot be deployed, and the version before stays in force: "

Entry = dict[str, Any]


class Serve(Protocol):
    """What is asked of Ray Serve."""

    def deploy(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Run exactly `entries`; what is unchanged is left alone."""

    def applications(self) -> Mapping[str, Any]:
        """The `applications` of `GET /api/serve/applications/`."""


@dataclasses.dataclass
class Application:
    """One wanted application.

    `refused` says why it is not, or no longer, deployed; `refused_change` why a newer entry than `entry`, which
    runs, cannot take its place.
    """

    entry: Entry
    attempt: int = 0
    refused: str | None = None
    refused_change: str | None = None
    answered: bool = False
    restarts: Restarts = dataclasses.field(default_factory=Restarts)
    status: ApplicationStatus | None = None

    @property
    def failed(self) -> bool:
        return self.status is not None and self.status.phase is Phase.FAILED


class Fleet:
    """Keeps Serve at what is wanted."""

    def __init__(
        self,
        serve: Serve,
        base_url: str,
        logs: Path,
        resources: Mapping[str, float],
        answers: Callable[[str], bool] = answers,
    ) -> None:
        """`base_url` is HAProxy's, `logs` the folder of Ray's log files, `resources` all that the machine has."""
        self._serve = serve
        self._answers = answers
        self._base_url = base_url
        self._logs = logs
        self._resources = resources
        self._wanted: dict[str, Application] = {}
        self._models_wait_until: float | None = None

    def apply(self, entries: list[Entry]) -> None:
        """Want exactly `entries`. What runs unchanged keeps running; what has failed is tried again.

        An entry that cannot be deployed here does not take the place of its earlier version, which stays.
        """
        before = self._wanted
        self._wanted = {entry["name"]: self._next(before.get(entry["name"]), entry) for entry in entries}
        waiting = any(is_model(app.entry) and name not in before for name, app in self._wanted.items())
        self._models_wait_until = time.monotonic() + PROVIDERS_FIRST if waiting else None
        self._deploy(except_models_not_in=before if waiting else None)

    def advance(self) -> None:
        """Deploy the models once the providers are through."""
        if self._models_wait_until is None:
            return
        providers = [app.status for app in self._wanted.values() if not is_model(app.entry)]
        settled = all(status and status.phase in (Phase.READY, Phase.FAILED) for status in providers)
        if settled or time.monotonic() > self._models_wait_until:
            self._models_wait_until = None
            self._deploy()

    def statuses(self) -> list[ApplicationStatus]:
        """Look at Serve, and stop what restarts without end."""
        seen = self._serve.applications()
        for name, app in self._wanted.items():
            app.status = self._look(name, app, seen.get(name))
        if any(app.refused is None and self._restarts_without_end(app, seen) for app in self._wanted.values()):
            self._deploy()
        return [app.status for app in self._wanted.values() if app.status]

    def _next(self, before: Application | None, entry: Entry) -> Application:
        runs = before is not None and before.refused is None and not before.failed
        if before and runs and before.entry == entry:
            before.refused_change = None
            return before
        why = refusal(entry, self._resources)
        if before and runs and why:
            before.refused_change = why
            return before
        # Serve builds an application anew only when its arguments have changed.
        attempt = before.attempt + 1 if before and before.entry == entry else 0
        return Application(entry, attempt, refused=why)

    def _deploy(self, except_models_not_in: Mapping[str, Application] | None = None) -> None:
        entries = []
        for name, app in self._wanted.items():
            held = except_models_not_in is not None and is_model(app.entry) and name not in except_models_not_in
            if app.refused is None and not held:
                entries.append({**app.entry, "args": {**app.entry["args"], "attempt": app.attempt}})
        self._serve.deploy(entries)

    def _look(self, name: str, app: Application, details: Mapping[str, Any] | None) -> ApplicationStatus:
        endpoint = self._base_url + app.entry["route_prefix"]
        if app.refused is not None:
            return ApplicationStatus(name, Phase.FAILED, endpoint, app.refused)
        status = observe(name, endpoint, details, self._logs_of)
        if status.phase is not Phase.READY:
            app.answered = False
        elif not app.answered:
            app.answered = self._answers(endpoint)  # Serve calls a replica running before HAProxy knows of it
            if not app.answered:
                status = dataclasses.replace(status, phase=Phase.STARTING)
        if app.refused_change is not None:
            said = [STAYS_IN_FORCE + app.refused_change, status.message]
            return dataclasses.replace(status, message="; ".join(filter(None, said)))
        return status

    def _restarts_without_end(self, app: Application, seen: Mapping[str, Any]) -> bool:
        details = seen.get(app.entry["name"])
        if not details or not app.restarts.too_many(replica_ids(details), target_replicas(details), time.monotonic()):
            return False
        why = app.status.message if app.status else ""
        app.refused = f"stopped: it had to be restarted more than {MAX_RESTARTS} times; {why or 'see the log files'}"
        return True

    def _logs_of(self, pid: int) -> str:
        text = []
        for file in sorted(self._logs.glob(f"worker-*-{pid}.*")):
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - MAX_LOG))
                text.append(stream.read().decode(errors="replace"))
        return "\n".join(text)
