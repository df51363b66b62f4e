"""What Serve reports of an application, as one status: pure."""

from collections.abc import Mapping
from typing import Any

from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.failures import LogsOf, explain


def observe(name: str, endpoint: str, details: Mapping[str, Any] | None, logs_of: LogsOf) -> ApplicationStatus:
    """The status of application `name` from its part of `GET /api/serve/applications/`, None when Serve has none.

    Ready means that a replica runs; whether HAProxy knows of it already is for the caller to see.
    """
    if details is None:
        return ApplicationStatus(name, Phase.PENDING)
    replicas = [replica for deployment in _deployments(details) for replica in deployment.get("replicas") or ()]
    running = sum(replica["state"] == "RUNNING" for replica in replicas)
    phase = _phase(details["status"], running)
    message = "" if phase is Phase.READY else explain(details, logs_of)
    if not message and phase is Phase.FAILED:
        message = "it ended without a reason; see the log files"
    if not message and details["status"] == "UNHEALTHY" and not running:
        message = "its replica died and is being replaced"
    return ApplicationStatus(name, phase, endpoint, message, running, target_replicas(details))


def replica_ids(details: Mapping[str, Any]) -> list[str]:
    """The replicas that exist, in whatever state."""
    return [
        replica["replica_id"] for deployment in _deployments(details) for replica in deployment.get("replicas") or ()
    ]


def target_replicas(details: Mapping[str, Any]) -> int:
    return sum(deployment.get("target_num_replicas") or 0 for deployment in _deployments(details))


def _deployments(details: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((details.get("deployments") or {}).values())


def _phase(status: str, running: int) -> Phase:
    if running:
        return Phase.READY
    # `UNHEALTHY` without a replica: it died, and Serve starts another.
    return Phase.FAILED if status == "DEPLOY_FAILED" else Phase.STARTING
