"""What is known of a Ray Serve application: written by whoever runs it, read by the ingress.

`meritorder up` writes it to a file; on a cluster it is the `status` of the custom resource.
"""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    PENDING = "Pending"  # known, not begun
    STARTING = "Starting"
    READY = "Ready"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class ApplicationStatus:
    """One application. `endpoint` is the base URL below which `/v1/...` answers, None until it is known.

    `message` is one sentence for a person: why it is not ready, or empty.
    """

    application: str
    phase: Phase
    endpoint: str | None = None
    message: str = ""
    running_replicas: int = 0
    target_replicas: int = 0
