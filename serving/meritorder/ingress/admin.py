"""Administration over HTTP: teams, keys, budgets and usage, for holders of an admin key.

Everything here blocks on the database, and so runs in threads; nothing here is on the path of an inference request.
What is configured comes from the manifests and is changed there alone.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meritorder.core.catalog import Team
from meritorder.core.errors import InternalError, InvalidRequest, RequestError, UnknownKey
from meritorder.core.limits import Budget, Limits, Period
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.blocking import in_thread
from meritorder.ingress.body import Body, ClientLeft
from meritorder.ingress.http import authorization, request_id
from meritorder.ingress.world import World
from meritorder.ledger.keys import ApiKey, KeyLimits, KeyStore
from meritorder.ledger.reports import By, parse_moment, plain, timestamp, usage_report
from meritorder.ledger.spending import BudgetState, budget_states
from meritorder.telemetry.logs import log_fault
from meritorder.telemetry.metrics import Metrics
from meritorder.wire import errors as wire_errors
from meritorder.wire.validation import invalid_field

_MAX_BODY_BYTES = 64_000
_BODY_SECONDS = 10.0
_DEFAULT_SINCE = "30d"
_FILTERS = (By.TEAM, By.KEY, By.MODEL, By.BACKEND)
_LONGEST_SHOWN = 60
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?$", re.DOTALL)

_Handler = Callable[[Request], Awaitable[Response]]
_Rate = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]


class _NewLimits(msgspec.Struct, forbid_unknown_fields=True):
    requests_per_minute: _Rate | None = None
    tokens_per_minute: _Rate | None = None
    concurrency: _Rate | None = None


class _NewBudget(msgspec.Struct, forbid_unknown_fields=True):
    period: Period
    amount_usd: Decimal


class _NewKey(msgspec.Struct, forbid_unknown_fields=True):
    team: str
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    limits: _NewLimits = msgspec.field(default_factory=_NewLimits)
    budgets: list[_NewBudget] = []


def admin_routes(
    world: World,
    authenticator: Authenticator,
    engine: Engine,
    keys: KeyStore,
    metrics: Metrics,
    clock: Callable[[], float] = time.time,
) -> list[Route]:
    """Everything under `/admin/v1`. `clock` gives seconds since the epoch."""
    admin = _Administration(world, authenticator, engine, keys, metrics, clock)
    return [
        admin.route("/admin/v1/teams", GET=admin.teams),
        admin.route("/admin/v1/budgets", GET=admin.budgets),
        admin.route("/admin/v1/keys", GET=admin.list_keys, POST=admin.create_key),
        admin.route("/admin/v1/keys/{id}", DELETE=admin.revoke_key),
        admin.route("/admin/v1/usage", GET=admin.usage),
    ]


@dataclass(frozen=True, slots=True)
class _Administration:
    _world: World
    _authenticator: Authenticator
    _engine: Engine
    _keys: KeyStore
    _metrics: Metrics
    _clock: Callable[[], float] = field(repr=False)

    def route(self, path: str, **handlers: _Handler) -> Route:
        """Serves `handlers`, by their methods, to holders of an admin key."""

        async def answer(request: Request) -> Response:
            headers = dict(request.headers.raw)
            name = request_id(headers)
            try:
                self._authenticator.administrator(authorization(headers))
                response = await handlers["GET" if request.method == "HEAD" else request.method](request)
            except RequestError as error:
                response = self._refusal(error)
            except ClientLeft:
                response = Response(status_code=499)  # nobody sees it
            except Exception as error:
                log_fault(name, error)
                response = self._refusal(InternalError())
            response.headers["x-request-id"] = name
            response.headers["cache-control"] = "no-store"
            return response

        return Route(path, answer, methods=list(handlers))

    async def teams(self, request: Request) -> Response:
        _check_parameters(request)
        teams = list(self._world.catalog.teams.values())
        states = await in_thread(budget_states, self._engine, [team.allowance for team in teams], self._clock())
        return _list([_team(team, states) for team in teams])

    async def budgets(self, request: Request) -> Response:
        _check_parameters(request)
        teams = list(self._world.catalog.teams.values())

        def states() -> list[BudgetState]:
            in_force = [key for key in self._keys.list() if key.revoked_at is None]
            allowances = [team.allowance for team in teams] + [key.allowance for key in in_force]
            return budget_states(self._engine, allowances, self._clock())

        return _list([{"scope": state.scope, **_budget(state)} for state in await in_thread(states)])

    async def list_keys(self, request: Request) -> Response:
        _check_parameters(request)
        return _list([_key(key) for key in await in_thread(self._keys.list)])

    async def create_key(self, request: Request) -> Response:
        _check_parameters(request)
        headers = dict(request.headers.raw)
        body = await Body(headers, request.receive, _MAX_BODY_BYTES, _BODY_SECONDS).read()
        wanted = _new_key(body, self._world.catalog.teams)
        limits = KeyLimits(
            Limits(**msgspec.structs.asdict(wanted.limits)),
            tuple(Budget(budget.period, budget.amount_usd) for budget in wanted.budgets),
        )
        key, text = await in_thread(self._keys.create, wanted.team, wanted.name, limits)
        return _json({**_key(key), "key": text}, 201)

    async def revoke_key(self, request: Request) -> Response:
        _check_parameters(request)
        key_id = request.path_params["id"].replace("\0", "")  # PostgreSQL has no such text
        if not await in_thread(self._keys.revoke, key_id):
            raise UnknownKey(key_id[:_LONGEST_SHOWN])
        return _json({"id": key_id, "revoked": True})

    async def usage(self, request: Request) -> Response:
        _check_parameters(request, "by", "since", "until", *_FILTERS)
        given, now = request.query_params, self._clock()
        by = _by(given.get("by", By.TEAM))
        since = _moment("since", given.get("since", _DEFAULT_SINCE), now)
        until = _moment("until", given["until"], now) if "until" in given else now
        if since >= until:
            raise InvalidRequest("'since' is not before 'until'; change one of them.", param="since")
        only = {label: given[label] for label in _FILTERS if label in given}
        report = await in_thread(usage_report, self._engine, by, since, until, only)
        return _json(report.to_json())

    def _refusal(self, error: RequestError) -> Response:
        self._metrics.refused(error.code)
        return Response(wire_errors.body(error), error.status, wire_errors.headers(error))


def _check_parameters(request: Request, *known: str) -> None:
    """Refuse a query parameter that is unknown, or there twice: it would be a filter that filters nothing."""
    seen = [name for name, _ in request.query_params.multi_items()]
    for name in seen:
        shown = name[:_LONGEST_SHOWN]
        if name not in known:
            valid = f"valid here: {', '.join(known)}" if known else "there is none here"
            raise InvalidRequest(f"{shown!r} is no query parameter of this; {valid}.", param=shown)
        if seen.count(name) > 1:
            raise InvalidRequest(f"The query parameter {shown!r} is there twice; send it once.", param=shown)
        if "\0" in request.query_params[name]:  # PostgreSQL has no such text
            raise InvalidRequest(f"{shown!r} is not valid: it has a zero byte.", param=shown)


def _by(text: str) -> By:
    try:
        return By(text)
    except ValueError:
        message = f"'by' is not valid: expected one of {', '.join(By)}, got {text[:_LONGEST_SHOWN]!r}."
        raise InvalidRequest(message, param="by") from None


def _moment(name: str, text: str, now: float) -> float:
    try:
        return parse_moment(text, now)
    except ValueError as error:
        message = f"{name!r} is not valid: expected {error}, got {text[:_LONGEST_SHOWN]!r}."
        raise InvalidRequest(message, param=name) from None


def _new_key(body: bytes, teams: Mapping[str, Team]) -> _NewKey:
    try:
        wanted = msgspec.json.decode(body, type=_NewKey)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The body is not valid JSON; send an object with 'team'.", code="invalid_json") from None
    if wanted.team not in teams:
        known = ", ".join(teams) or "none"
        message = f"There is no team {wanted.team[:_LONGEST_SHOWN]!r}; the manifests have {known}."
        raise InvalidRequest(message, param="team")
    if not wanted.name.isprintable():
        raise InvalidRequest("'name' is not valid: it has characters that cannot be printed.", param="name")
    periods = [budget.period for budget in wanted.budgets]
    for index, budget in enumerate(wanted.budgets):
        amount = budget.amount_usd
        if not (amount.is_finite() and 0 <= amount < 10**9 and amount == round(amount, 6)):
            where = f"budgets[{index}].amount_usd"
            expected = "US dollars, from 0 to 999999999 and with up to six decimals"
            raise InvalidRequest(f"'{where}' is not valid: expected {expected}.", param=where)
        if budget.period in periods[:index]:
            where = f"budgets[{index}].period"
            raise InvalidRequest(f"'{where}' is not valid: there is a {budget.period} budget already.", param=where)
    return wanted


def _invalid(text: str) -> InvalidRequest:
    if unknown := _UNKNOWN_FIELD.match(text):
        name, inside = unknown[1][:_LONGEST_SHOWN], unknown[2]
        where = f"{inside.replace('[...]', '[]')}.{name}" if inside else name
        return InvalidRequest(f"'{where}' is no field of a new key; remove it.", param=where)
    return invalid_field(text)


def _team(team: Team, states: list[BudgetState]) -> dict[str, Any]:
    return {
        "name": team.name,
        "routes": None if team.routes is None else sorted(team.routes),
        "limits": asdict(team.limits),
        "budgets": [_budget(state) for state in states if state.scope == team.allowance.scope],
        "overrides": sorted(team.overrides),
    }


def _key(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "team": key.team or None,
        "name": key.name,
        "admin": key.admin,
        "limits": asdict(key.limits.limits),
        "budgets": [{"period": one.period, "amount_usd": plain(one.amount)} for one in key.limits.budgets],
        "created_at": timestamp(key.created_at),
        "revoked_at": None if key.revoked_at is None else timestamp(key.revoked_at),
    }


def _budget(state: BudgetState) -> dict[str, Any]:
    return {
        "period": state.budget.period,
        "amount_usd": plain(state.budget.amount),
        "spent_usd": plain(state.spent),
        "remaining_usd": plain(state.remaining),
        "resets_at": None if state.resets_at is None else timestamp(state.resets_at),
    }


def _list(entries: list[dict[str, Any]]) -> Response:
    return _json({"object": "list", "data": entries})


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
