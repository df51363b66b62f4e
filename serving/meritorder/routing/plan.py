"""Which backends are tried for a request, in which order, and why.

The order is the route's own, but for three things: a backend that is full comes after those that are not, so
that exactly the overflow spills; one that has just failed comes last; one that cannot answer is left out.
"""

from meritorder.core.catalog import Backend, Endpoint, Route
from meritorder.core.plan import Attempt, Rejected, Rejection, RoutePlan
from meritorder.core.status import Phase
from meritorder.routing.snapshot import Snapshot

_WAITS = {
    # Why it waits is for the operator, on /readyz: a log's last words may have an address in them.
    Phase.PENDING: "waits to be deployed",
    Phase.STARTING: "is starting",
    Phase.READY: "is starting",  # and does not listen yet
    Phase.FAILED: "has failed",
}


def plan(snapshot: Snapshot, route: Route, endpoint: Endpoint, now: float) -> RoutePlan:
    """Rank the candidates of `route` for one request; `now` is in seconds, on the snapshot's clock."""
    free: list[Attempt] = []
    full: list[Attempt] = []
    resting: list[Attempt] = []
    rejected: list[Rejected] = []
    for name in route.candidates:
        backend = snapshot.catalog.backends[name]
        verdict = _usable(snapshot, backend, endpoint)
        if isinstance(verdict, Rejected):
            rejected.append(verdict)
        elif snapshot.rests_until.get(name, now) > now:
            resting.append(Attempt(backend, verdict))
        elif _full(snapshot, backend):
            full.append(Attempt(backend, verdict))
        else:
            free.append(Attempt(backend, verdict))
    return RoutePlan((*free, *full, *resting), tuple(rejected))


def _full(snapshot: Snapshot, backend: Backend) -> bool:
    """Whether one more request would queue. An account's limit is shared by all of its models."""
    if backend.concurrency is None:
        return False
    return snapshot.in_flight.get(backend.application, 0) >= backend.concurrency


def _usable(snapshot: Snapshot, backend: Backend, endpoint: Endpoint) -> str | Rejected:
    """The base URL of `backend`, or why it cannot be tried."""
    if endpoint not in backend.endpoints:
        return Rejected(backend, Rejection.ENDPOINT, f"does not serve /v1/{endpoint}")
    status = snapshot.statuses.get(backend.application)
    if status is None:
        return Rejected(backend, Rejection.NOT_READY, _WAITS[Phase.PENDING])
    if status.phase is not Phase.READY or status.endpoint is None:
        return Rejected(backend, Rejection.NOT_READY, _WAITS[status.phase])
    return status.endpoint
