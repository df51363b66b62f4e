"""When to stop restarting: pure.

Serve gives up a replica that never started, but one that started once it replaces for ever, at once and
without a pause. For a model that dies every time it is loaded, that is a machine busy with nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_RESTARTS = 3
WINDOW = 600.0
"""Seconds in which more than `MAX_RESTARTS` are too many."""


@dataclass
class Restarts:
    """The replicas of one application as it is configured now."""

    _earlier: frozenset[str] | None = None
    _first_seen: dict[str, float] = field(default_factory=dict)

    def too_many(self, replica_ids: Iterable[str], target: int, now: float) -> bool:
        """Record the replicas that exist at `now` (s); whether lately more were needed than `target` and some more.

        Those of the first call are of an earlier configuration, which the present one replaces.
        """
        if self._earlier is None:
            self._earlier = frozenset(replica_ids)
        for replica_id in set(replica_ids) - self._earlier:
            self._first_seen.setdefault(replica_id, now)
        recent = sum(now - seen < WINDOW for seen in self._first_seen.values())
        return recent > target + MAX_RESTARTS
