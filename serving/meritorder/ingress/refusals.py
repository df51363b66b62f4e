"""Why a request gets no answer, in a sentence that says what to do."""

import difflib
from collections.abc import Sequence

from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Catalog, Route
from meritorder.core.errors import (
    BackendsBusy,
    BackendsFailed,
    DeadlineExceeded,
    NoCandidate,
    NotAllowed,
    NotReady,
    RequestError,
    UnknownModel,
    UnsupportedEndpoint,
)
from meritorder.core.plan import Rejection, RoutePlan
from meritorder.core.request import Caller, InferenceRequest

_NOT_READY_RETRY_SECONDS = 5.0

PASSING = frozenset({Rejection.NOT_READY, Rejection.CIRCUIT_OPEN, Rejection.QUOTA, Rejection.MAX_TTFT})
"""Reasons that may be gone when the request is sent again."""


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
    reasons = {rejected.rejection for rejected in plan.rejected}
    if reasons == {Rejection.ENDPOINT}:
        endpoints = {endpoint for rejected in plan.rejected for endpoint in rejected.backend.capabilities.endpoints}
        served = " and ".join(f"/v1/{endpoint}" for endpoint in sorted(endpoints))
        return UnsupportedEndpoint(
            f"{route.name!r} does not serve /v1/{request.endpoint}; it serves {served}.", param="model"
        )
    said = "; ".join(f"{rejected.backend.name!r} {rejected.reason}" for rejected in plan.rejected)
    if not reasons & PASSING:
        return _never(route, reasons, said)
    waits = [rejected.retry_after for rejected in plan.rejected if rejected.retry_after is not None]
    if reasons & PASSING == {Rejection.QUOTA}:
        return BackendsBusy(
            f"No backend can take a request for {route.name!r} now: {said}. Try again later.",
            retry_after=min(waits, default=_NOT_READY_RETRY_SECONDS),
        )
    return NotReady(
        f"No backend can answer for {route.name!r} now: {said}. Try again later; GET /readyz says more.",
        retry_after=min(waits, default=_NOT_READY_RETRY_SECONDS),
    )


def _never(route: Route, reasons: set[Rejection], said: str) -> RequestError:
    """What stands against the candidates does not pass by itself."""
    if Rejection.UNPRICED in reasons:
        return NotAllowed(
            f"A budget, or max_cost_usd, needs prices for {route.name!r}: {said}. Have a price added to its Provider.",
            param="model",
            code="unpriced_model",
        )
    if reasons == {Rejection.CONTEXT_WINDOW}:
        return NoCandidate(
            f"The prompt is too long for {route.name!r}: {said}. Send a shorter one.",
            param="messages",
            code="context_length_exceeded",
        )
    return NoCandidate(
        f"No backend of {route.name!r} can take this request: {said}. Change the request, or call another model.",
        param="model",
    )


def all_failed(failures: Sequence[tuple[Backend, AttemptFailed]]) -> RequestError:
    """Every attempt of the plan failed, or there was no time left to make one."""
    if not failures:
        return DeadlineExceeded("The route's time for a request was over before a backend was tried; send it again.")
    # Whoever failed twice in the same way is named once.
    said = "; ".join(dict.fromkeys(f"{backend.name!r} {failed.reason}" for backend, failed in failures))
    kinds = {failed.failure for _, failed in failures}
    passes = kinds - {Failure.CREDENTIALS, Failure.FORBIDDEN, Failure.NOT_FOUND}
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
