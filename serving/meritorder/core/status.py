"""What is known of a Ray Serve application: written by whoever runs it, read by the ingress.

`meritorder up` writes it to a file; on a cluster it is the `status` of the custom resource.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


class Phase(StrEnum):
    PENDING = "Pending"  # known, not begun
    STARTING = "Starting"
    READY = "Ready"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class ApplicationStatus:
    """One application. `endpoint` is the base URL below which `/v1/...` answers, None until it is known.

    `message` is one sentence for a person: why it is not ready, or why the last change to it is
    not in force; else empty.
    """

    application: str
    phase: Phase
    endpoint: str | None = None
    message: str = ""
    running_replicas: int = 0
    target_replicas: int = 0

    def to_json(self) -> dict[str, Any]:
        """Its fields as plain values, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The status with these fields.

        Raises:
            ValueError: they are not those of a status.
        """
        try:
            return cls(**{**fields, "phase": Phase(fields["phase"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"not the status of an application: {error!r}") from error
