"""Why a request gets no answer, in a sentence that says what to do."""

import difflib
from collections.abc import Sequence

from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Catalog, Route
from meritorder.core.errors import (
    BackendsBusy,
    BackendsFailed,
    DeadlineExceeded,
    NotAllowed,
    NotReady,
    RequestError,
    UnknownModel,
    UnsupportedEndpoint,
)
from meritorder.core.plan import Rejection, RoutePlan
from meritorder.core.request import Caller, InferenceRequest

_NOT_READY_RETRY_SECONDS = 5.0


def find_route(catalog: Catalog, caller: Caller, model: str) -> Route:
    """The route of that name.

    Raises:
        UnknownModel: there is none; it names close ones that the caller may use.
        NotAllowed: there is one, and the team may not call it.
    """
    route = catalog.routes.get(model)
    if route is not None and caller.team.may_call(route.name):
        return route
    allowed = list(catalog.callable_by(caller.team))
    if route is None:
        raise UnknownModel(model[:200], difflib.get_close_matches(model[:200], allowed, n=3, cutoff=0.5))
    raise NotAllowed(
        f"Team {caller.team.name!r} may not call {model!r}; it may call {', '.join(allowed) or 'nothing'}.",
        param="model",
    )


def nothing_to_try(route: Route, request: InferenceRequest, plan: RoutePlan) -> RequestError:
    """The plan has no attempt."""
    if all(rejected.rejection is Rejection.ENDPOINT for rejected in plan.rejected):
        served = sorted({str(endpoint) for rejected in plan.rejected for endpoint in rejected.backend.endpoints})
        return UnsupportedEndpoint(
            f"{route.name!r} does not serve /v1/{request.endpoint}; it serves "
            f"{' and '.join(f'/v1/{endpoint}' for endpoint in served)}.",
            param="model",
        )
    said = "; ".join(f"{rejected.backend.name!r} {rejected.reason}" for rejected in plan.rejected)
    return NotReady(
        f"No backend can answer for {route.name!r} now: {said}. Try again later; GET /readyz says more.",
        retry_after=_NOT_READY_RETRY_SECONDS,
    )


def all_failed(failures: Sequence[tuple[Backend, AttemptFailed]]) -> RequestError:
    """Every attempt of the plan failed."""
    said = "; ".join(f"{backend.name!r} {failed.reason}" for backend, failed in failures)
    kinds = {failed.failure for _, failed in failures}
    passes = kinds - {Failure.CREDENTIALS, Failure.NOT_FOUND}
    advice = "Try again later." if passes else "Ask those who run this platform: it does not pass by itself."
    message = f"No backend answered: {said}. {advice}"
    if kinds == {Failure.BUSY}:
        waits = [failed.retry_after for _, failed in failures if failed.retry_after is not None]
        return BackendsBusy(message, retry_after=min(waits, default=1.0))
    if kinds == {Failure.TIMEOUT}:
        return DeadlineExceeded(message)
    return BackendsFailed(message)


def broken_stream(backend: Backend, failed: AttemptFailed) -> RequestError:
    """The answer had begun, so there is no other backend to go to."""
    return BackendsFailed(
        f"{backend.name!r} {failed.reason}; the answer is incomplete, send the request again.",
        code="stream_broken",
    )
