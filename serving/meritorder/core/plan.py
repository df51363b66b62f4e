"""What routing decides, and why."""

from dataclasses import dataclass
from enum import StrEnum

from meritorder.core.catalog import Backend


class Rejection(StrEnum):
    """Why a candidate is not tried, for a program; the sentence for a person is `Rejected.reason`."""

    ENDPOINT = "endpoint"
    NOT_READY = "not_ready"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One backend to try. `base_url` is the one below which `/v1/...` answers."""

    backend: Backend
    base_url: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that is left out. `reason` is for a person and completes "backend X ..."."""

    backend: Backend
    rejection: Rejection
    reason: str


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """Attempts in the order in which they are made, and every candidate that is left out."""

    attempts: tuple[Attempt, ...]
    rejected: tuple[Rejected, ...] = ()
