"""The world at one moment, as routing sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from meritorder.core.catalog import Catalog
from meritorder.core.status import ApplicationStatus
from meritorder.routing.affinity import PrefixIndex
from meritorder.routing.health import Circuit
from meritorder.routing.latency import Latency
from meritorder.routing.quota import Quota
from meritorder.routing.shadow_price import ShadowPrice
from meritorder.routing.tokens import TokenRatio


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`statuses`, `in_flight` and `congestion` are by application, the others by backend name; what has no entry is
    unknown.

    `in_flight` counts the requests that this ingress has open. The mappings may be live views: a snapshot is for one
    decision, made at once.
    """

    catalog: Catalog
    statuses: Mapping[str, ApplicationStatus]
    in_flight: Mapping[str, int] = field(default_factory=dict)
    circuits: Mapping[str, Circuit] = field(default_factory=dict)
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    congestion: Mapping[str, ShadowPrice] = field(default_factory=dict)
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)
    tokenizers: Mapping[str, TokenRatio] = field(default_factory=dict)
