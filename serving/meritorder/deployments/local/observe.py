"""What Serve reports of an application, as one status: pure."""

from collections.abc import Mapping
from typing import Any

from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.local.failures import LogsOf, explain

KEEPS_RUNNING = "the last change could not be deployed, and the version before keeps running: "


def observe(name: str, endpoint: str, details: Mapping[str, Any] | None, logs_of: LogsOf) -> ApplicationStatus:
    """The status of application `name` from its part of `GET /api/serve/applications/`, None when Serve has none.

    Ready means that a replica runs; whether HAProxy knows of it already is for the caller to see.
    """
    if details is None:
        return ApplicationStatus(name, Phase.PENDING)
    replicas = [replica for deployment in _deployments(details) for replica in deployment.get("replicas") or ()]
    running = sum(replica["state"] == "RUNNING" for replica in replicas)
    phase = _phase(details["status"], running)
    message = _message(phase, details, logs_of)
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


def _message(phase: Phase, details: Mapping[str, Any], logs_of: LogsOf) -> str:
    failed = details["status"] == "DEPLOY_FAILED"
    if phase is Phase.READY and not failed:
        return ""
    message = explain(details, logs_of)
    if failed:
        message = message or "it ended without a reason; see the log files"
        return KEEPS_RUNNING + message if phase is Phase.READY else message
    if not message and details["status"] == "UNHEALTHY":
        return "its replica died and is being replaced"
    return message


def _phase(status: str, running: int) -> Phase:
    if running:
        return Phase.READY
    # `UNHEALTHY` without a replica: it died, and Serve starts another.
    return Phase.FAILED if status == "DEPLOY_FAILED" else Phase.STARTING
