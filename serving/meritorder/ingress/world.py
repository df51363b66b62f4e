"""The state that decisions rest on: what is configured, what is up, what is in flight, what has just failed."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Catalog
from meritorder.core.status import ApplicationStatus
from meritorder.routing.snapshot import Snapshot

log = logging.getLogger(__name__)

_EMPTY = Catalog(backends={}, routes={}, teams={})

_REST_SECONDS = 2.0
"""How long a backend that is down is tried last: long enough to spare most requests a failed attempt, short
enough that nobody notices its return late."""

_LONGEST_REST_SECONDS = 60.0
_FAILURES_BEFORE_REST = 3
"""One poisoned request must not send everyone else to a dearer backend."""

_DOWN = frozenset({Failure.UNREACHABLE, Failure.BUSY, Failure.CREDENTIALS, Failure.NOT_FOUND})
"""Failures that the next request would meet, too."""


class World:
    """One per ingress process; `snapshot` is how decisions see it.

    It is changed in the event loop, but for `statuses`, which a thread reads from a file: that one is replaced as
    a whole and never changed, so whoever has taken it keeps one view.

    `problem` is why the manifests as they stand are not in force. `halted` says that this process ends now, and
    cuts off what is still open.
    """

    def __init__(self) -> None:
        self.catalog: Catalog = _EMPTY
        self.statuses: Mapping[str, ApplicationStatus] = {}
        self.problem: str | None = None
        self.halted = False
        self._in_flight: Counter[str] = Counter()
        self._in_application: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._rests_until: dict[str, float] = {}

    def snapshot(self) -> Snapshot:
        """The world as it is now. The loads are live views: a snapshot is for one decision, made at once."""
        return Snapshot(self.catalog, self.statuses, self._in_application, self._rests_until)

    @contextmanager
    def occupied(self, backend: Backend) -> Iterator[None]:
        """Count a request as in flight, from before its first byte is sent, so that a burst does not herd.

        There must be no await between the plan and this.
        """
        self._in_flight[backend.name] += 1
        self._in_application[backend.application] += 1
        try:
            yield
        finally:
            self._in_flight[backend.name] -= 1
            self._in_application[backend.application] -= 1

    def in_flight(self) -> Mapping[str, int]:
        """The open requests of each backend."""
        return self._in_flight

    def succeeded(self, backend: str) -> None:
        """Take note of an answer that was complete."""
        self._failures.pop(backend, None)
        if self._rests_until.pop(backend, None) is not None:
            log.info("%r answers again", backend)

    def failed(self, backend: str, failure: AttemptFailed, now: float) -> None:
        """Take note of a failure at `now`, in seconds on the clock that plans are made with."""
        self._failures[backend] += 1
        if failure.failure in _DOWN or self._failures[backend] >= _FAILURES_BEFORE_REST:
            rest = min(failure.retry_after or _REST_SECONDS, _LONGEST_REST_SECONDS)
            if backend not in self._rests_until:  # once an outage, and not once a request
                said = f"{failure.reason}: {failure.detail}" if failure.detail else failure.reason
                log.warning("%r %s; it is tried last until it answers again", backend, said)
            self._rests_until[backend] = now + rest
