"""The world at one moment, as routing sees it."""

from collections.abc import Mapping
from dataclasses import dataclass

from meritorder.core.catalog import Catalog
from meritorder.core.status import ApplicationStatus


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`statuses` and `in_flight` are by application, `rests_until` is by backend name.

    `in_flight` counts the requests that this ingress has open; `rests_until` is the moment, on the clock that
    `now` is read from, until which a backend that has just failed rests.
    """

    catalog: Catalog
    statuses: Mapping[str, ApplicationStatus]
    in_flight: Mapping[str, int]
    rests_until: Mapping[str, float]
