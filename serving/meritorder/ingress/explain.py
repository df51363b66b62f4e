"""`POST /v1/routes:explain`: the plan for a request, and nothing sent.

The body is that of a chat completion, a completion or embeddings; which of them is told by its fields. The answer is
what dispatch would decide at this moment, with the parts of every score and the reason for everything left out.
"""

import random
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import Response

from meritorder.core.catalog import Endpoint
from meritorder.core.errors import InternalError, RequestError
from meritorder.core.plan import Attempt, Rejected, RoutePlan
from meritorder.core.request import Caller, InferenceRequest
from meritorder.core.tokens import estimated_tokens
from meritorder.ingress.blocking import in_thread
from meritorder.ingress.body import Body, ClientLeft
from meritorder.ingress.http import Parts, authorization, request_id
from meritorder.ingress.planning import Planner
from meritorder.ledger.spending import budget_states
from meritorder.telemetry.logs import log_fault
from meritorder.wire import errors as wire_errors
from meritorder.wire.openai import parse_request

_MOST_WAITING = 8
"""Plans at once that wait for the database: every key may ask for them, and administration waits behind them."""

_OTHERS = {"input": Endpoint.EMBEDDINGS, "prompt": Endpoint.COMPLETIONS}
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def explain_handler(parts: Parts, planner: Planner, engine: Engine) -> Callable[[Request], Any]:
    """The handler. What the budgets have left is asked of the database, as this is on nobody's way to an answer."""

    async def explain(request: Request) -> Response:
        headers = dict(request.headers.raw)
        named = {"x-request-id": request_id(headers)}
        try:
            caller = parts.authenticator.caller(authorization(headers), parts.world.catalog)
            body = Body(headers, request.receive, parts.settings.max_body_bytes, parts.settings.body_seconds)
            content = await body.read()
            asked = parse_request(named["x-request-id"], _endpoint(content), content, headers)
            left = await in_thread(_left, engine, caller, most_waiting=_MOST_WAITING)
            explained = _explained(planner, caller, asked, left)
        except RequestError as error:
            parts.metrics.refused(error.code)
            return Response(wire_errors.body(error), error.status, {**wire_errors.headers(error), **named})
        except ClientLeft:
            return Response(status_code=499)
        except Exception as error:
            log_fault(named["x-request-id"], error)
            fault = InternalError()
            return Response(wire_errors.body(fault), fault.status, {**wire_errors.headers(fault), **named})
        return Response(msgspec.json.encode(explained), 200, named, media_type="application/json")

    return explain


def _endpoint(content: bytes) -> Endpoint:
    try:
        fields = _fields.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Endpoint.CHAT_COMPLETIONS  # whose parser says what is wrong
    if "messages" in fields:
        return Endpoint.CHAT_COMPLETIONS
    return next((endpoint for field, endpoint in _OTHERS.items() if field in fields), Endpoint.CHAT_COMPLETIONS)


def _left(engine: Engine, caller: Caller) -> Decimal | None:
    """What the tightest budget has left, in US dollars; None: there is none."""
    budgeted = [allowance for allowance in caller.allowances if allowance.budgets]
    states = budget_states(engine, budgeted, time.time()) if budgeted else ()
    return min((state.remaining for state in states), default=None)


def _explained(planner: Planner, caller: Caller, request: InferenceRequest, left: Decimal | None) -> dict[str, Any]:
    route = planner.route(caller, request)
    plan = planner.plan(caller, route, request, left is not None, left, random.random())
    return {
        "route": route.name,
        "arm": plan.arm,
        "endpoint": request.endpoint,
        "team": caller.team.name,
        "budget_left_usd": None if left is None else format(left, "f"),
        "prompt_tokens_estimated": estimated_tokens(request.text_bytes),
        "attempts": [_attempt(attempt) for attempt in plan.attempts],
        "rejected": [_rejected(rejected) for rejected in plan.rejected],
        "decision": _decision(plan),
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    score = attempt.score
    return {
        "backend": attempt.backend.name,
        "tier": attempt.backend.tier,
        "utility": score.utility,
        "score": {
            "quality": score.quality,
            "cost": score.cost,
            "lateness": score.lateness,
            "congestion": score.congestion,
        },
        "cost_bound_usd": None if attempt.cost_bound is None else format(attempt.cost_bound, "f"),
        "ttft_seconds": attempt.ttft,
        "input_tokens": attempt.input_tokens,
        "output_tokens": attempt.output_tokens,
        "cached_tokens": attempt.cached_tokens,
    }


def _rejected(rejected: Rejected) -> dict[str, Any]:
    return {
        "backend": rejected.backend.name,
        "tier": rejected.backend.tier,
        "rejection": rejected.rejection,
        "reason": rejected.reason,
        "retry_after_seconds": rejected.retry_after,
    }


def _decision(plan: RoutePlan) -> str:
    """The plan in one sentence."""
    if not plan.attempts:
        return "No candidate can be tried; the reasons are in `rejected`."
    first, *others = plan.attempts
    then = f", then {', '.join(repr(other.backend.name) for other in others)} if it fails" if others else ""
    resort = " as a last resort" if plan.last_resort else ""
    return f"{first.backend.name!r} is tried first{resort}{then}."
