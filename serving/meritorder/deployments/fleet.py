"""The applications of a local cluster, inside its Ray driver: what is wanted, deployed, and seen."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.applications import is_model
from meritorder.deployments.observe import observe, replica_ids, target_replicas
from meritorder.deployments.preflight import refusal
from meritorder.deployments.probe import answers
from meritorder.deployments.restarts import MAX_RESTARTS, Restarts

PROVIDERS_FIRST = 20.0
"""Seconds that new models wait for the providers: their imports of vLLM take all cores of a small machine."""

MAX_LOG = 1_000_000
"""Bytes at the end of a worker's log that are searched for the reason of a failure."""

Entry = dict[str, Any]


@dataclasses.dataclass
class Application:
    """One wanted application. `refused` says why it is not, or no longer, deployed."""

    entry: Entry
    attempt: int = 0
    refused: str | None = None
    answered: bool = False
    restarts: Restarts = dataclasses.field(default_factory=Restarts)
    status: ApplicationStatus | None = None

    @property
    def failed(self) -> bool:
        return self.status is not None and self.status.phase is Phase.FAILED


def _serve() -> Any:
    # What the REST API calls, too.
    return _get_global_client()


class Fleet:
    """Deploys through Serve's declarative API, in this process: the REST API would need Ray's dashboard."""

    def __init__(self, base_url: str, logs: Path, resources: Mapping[str, float]) -> None:
        self._base_url = base_url
        self._logs = logs
        self._resources = resources
        self._wanted: dict[str, Application] = {}
        self._models_wait_until: float | None = None

    def apply(self, entries: list[Entry]) -> None:
        """Want exactly `entries`. What runs unchanged keeps running; what has failed is tried again."""
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
        seen = _serve().get_serve_details().get("applications", {})
        for name, app in self._wanted.items():
            app.status = self._look(name, app, seen.get(name))
        if any(app.refused is None and self._restarts_without_end(app, seen) for app in self._wanted.values()):
            self._deploy()
        return [app.status for app in self._wanted.values() if app.status]

    def _next(self, before: Application | None, entry: Entry) -> Application:
        if before and before.entry == entry and not before.failed:
            return before
        # Serve builds an application anew only when its arguments have changed.
        attempt = before.attempt + 1 if before and before.entry == entry else 0
        return Application(entry, attempt, refusal(entry, self._resources))

    def _deploy(self, except_models_not_in: Mapping[str, Application] | None = None) -> None:
        entries = []
        for name, app in self._wanted.items():
            held = except_models_not_in is not None and is_model(app.entry) and name not in except_models_not_in
            if app.refused is None and not held:
                entries.append({**app.entry, "args": {**app.entry["args"], "attempt": app.attempt}})
        _serve().deploy_apps(ServeDeploySchema.model_validate({"applications": entries}))

    def _look(self, name: str, app: Application, details: Mapping[str, Any] | None) -> ApplicationStatus:
        endpoint = self._base_url + app.entry["route_prefix"]
        if app.refused is not None:
            return ApplicationStatus(name, Phase.FAILED, endpoint, app.refused)
        status = observe(name, endpoint, details, self._logs_of)
        if status.phase is not Phase.READY:
            app.answered = False
        elif not app.answered:
            app.answered = answers(endpoint)  # Serve calls a replica running before HAProxy knows of it
            if not app.answered:
                return dataclasses.replace(status, phase=Phase.STARTING)
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
