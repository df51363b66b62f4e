"""Why a candidate cannot be tried. Each filter gives its `Rejection` and a reason that completes "backend X ..."."""

from decimal import Decimal

from meritorder.core.catalog import Backend, Capabilities, Modality, Route
from meritorder.core.plan import Rejection
from meritorder.core.request import InferenceRequest, Overrides
from meritorder.core.status import ApplicationStatus, Phase

Refusal = tuple[Rejection, str]

_WAITS = {
    # Why it waits is for the operator, on /readyz: a log's last words may have an address in them.
    Phase.PENDING: "waits to be deployed",
    Phase.STARTING: "is starting",
    Phase.READY: "is starting",  # and does not listen yet
    Phase.FAILED: "has failed",
}
_READY = Phase.READY
_TAKES = {Modality.IMAGE: "images", Modality.AUDIO: "audio", Modality.FILE: "files"}


def closed_backends(route: Route, request: InferenceRequest, arm: str | None) -> dict[str, Refusal]:
    """The candidates that the request's overrides, or the arm of the split, leave out, by name. Empty for nearly all
    requests."""
    overrides = request.overrides
    closed: dict[str, Refusal] = {}
    if arm is not None and route.split is not None:
        mine = {name for one in route.split.arms if one.name == arm for name in one.candidates}
        theirs = {name for one in route.split.arms for name in one.candidates} - mine
        closed = {name: (Rejection.OTHER_ARM, f"is not in the request's arm {arm!r}") for name in theirs}
    for name in overrides.exclude:
        closed[name] = (Rejection.EXCLUDED, "is excluded by the request")
    if overrides.backend is not None:
        known = overrides.backend in route.backends
        asked = f"the request asks for {overrides.backend!r} alone"
        why = f"is not tried, because {asked}" + ("" if known else f", which is no candidate of {route.name!r}")
        closed |= {name: (Rejection.EXCLUDED, why) for name in route.backends if name != overrides.backend}
    return closed


def incapable(capabilities: Capabilities, request: InferenceRequest) -> Refusal | None:
    """What the backend can never do."""
    if request.endpoint not in capabilities.endpoints:
        return Rejection.ENDPOINT, f"does not serve /v1/{request.endpoint}"
    if request.modalities and not request.modalities <= capabilities.modalities:
        missing = sorted(_TAKES[modality] for modality in request.modalities - capabilities.modalities)
        return Rejection.MODALITY, f"does not take {' or '.join(missing)}"
    if request.tools and not capabilities.tools:
        return Rejection.TOOLS, "does not call tools"
    if request.structured_output and not capabilities.structured_output:
        return Rejection.STRUCTURED_OUTPUT, "does not give structured output"
    return None


def not_ready(status: ApplicationStatus | None) -> Refusal:
    """Said of an application that is not ready."""
    return Rejection.NOT_READY, _WAITS[Phase.PENDING if status is None else status.phase]


def answer_room(request: InferenceRequest) -> int:
    """Tokens of the context window that an answer needs. An engine without room for all of `max_tokens` refuses the
    request; where the client set no such limit, it uses what room there is."""
    if not request.endpoint.generative:
        return 0
    limit = request.max_output_tokens
    return 1 if limit is None else max(1, limit // max(1, request.choices))


def unaffordable(
    bound: Decimal | None, unpriced: str, overrides: Overrides, headroom: Decimal | None, budgeted: bool
) -> Refusal | None:
    """`bound` is the most that the request can cost, None if nothing says so, and `unpriced` says why then."""
    if bound is None:
        if budgeted or headroom is not None:
            return Rejection.UNPRICED, f"{unpriced}, and this key has a budget"
        if overrides.max_cost is not None:
            return Rejection.UNPRICED, f"{unpriced}, and the request has a maximal cost"
        return None
    if headroom is not None and bound > headroom:
        return Rejection.BUDGET, f"may cost {bound:f} USD, and the budget has room for {headroom:f} USD"
    if overrides.max_cost is not None and bound > overrides.max_cost:
        return Rejection.MAX_COST, f"may cost {bound:f} USD, which is over the request's {overrides.max_cost:f} USD"
    return None


def not_good_enough(quality: float, route: Route, overrides: Overrides) -> Refusal | None:
    """`quality` is the route's prior for the candidate."""
    if overrides.min_quality is not None and quality < overrides.min_quality:
        return Rejection.QUALITY, f"has quality {quality:g}, below the request's {overrides.min_quality:g}"
    if quality < route.objective.quality_floor:
        return Rejection.QUALITY, f"has quality {quality:g}, below the route's {route.objective.quality_floor:g}"
    return None


def too_slow(ttft: float | None, overrides: Overrides) -> Refusal | None:
    """`ttft` is the expected time to first token in seconds; what is unknown is not too slow."""
    if ttft is None or overrides.max_ttft is None or ttft <= overrides.max_ttft:
        return None
    return (
        Rejection.MAX_TTFT,
        f"is expected to begin after {ttft:.2f} s, and the request allows {overrides.max_ttft:g} s",
    )


def capacity(backend: Backend, status: ApplicationStatus | None) -> int | None:
    """How many requests it serves at once, with the replicas that run; where that is unknown, with those it should have
    at least. None: unknown."""
    if status is None or status.running_replicas < 1 or backend.replica_concurrency is None:
        return backend.concurrency
    return backend.replica_concurrency * status.running_replicas


def is_full(backend: Backend, in_flight: int) -> bool:
    """Whether one more request would queue. An account's limit is shared by all of its models."""
    account = backend.limits.concurrency
    return (backend.concurrency is not None and in_flight >= backend.concurrency) or (
        account is not None and in_flight >= account
    )


def endpoint_of(status: ApplicationStatus | None) -> str | None:
    """The base URL of an application that is ready."""
    return status.endpoint if status is not None and status.phase is _READY else None
