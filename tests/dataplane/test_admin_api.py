"""The administration over HTTP, on both databases; every answer is as the OpenAPI document describes it."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from sqlalchemy import Engine, insert
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route as HttpRoute

from meritorder.core.catalog import Catalog, Override, Team
from meritorder.core.errors import NotAllowed
from meritorder.core.limits import Budget, Limits, Period
from meritorder.ingress.admin import admin_routes
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.main import build
from meritorder.ingress.openapi import document, openapi_route
from meritorder.ingress.operations import not_served
from meritorder.ingress.settings import Settings
from meritorder.ingress.world import World
from meritorder.ledger.database import open_database
from meritorder.ledger.keys import KeyLimits, KeyStore
from meritorder.ledger.replica_time import Sample, record_minute
from meritorder.ledger.schema import charges, requests, spend
from meritorder.telemetry.metrics import Metrics

NOW = datetime(2026, 3, 15, 12, 30, tzinfo=UTC).timestamp()
MARCH = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
DOCUMENT = document()

RED = Team(
    "red",
    frozenset({"faq", "assistant"}),
    Limits(requests_per_minute=60, concurrency=4),
    (Budget(Period.MONTHLY, Decimal("100.50")), Budget(Period.TOTAL, Decimal(1000))),
    frozenset({Override.MAX_COST}),
)
BLUE = Team("blue")


@dataclass
class Admin:
    """An ingress that serves the administration alone, and its parts."""

    engine: Engine
    keys: KeyStore
    authenticator: Authenticator
    world: World
    http: httpx.AsyncClient

    async def __call__(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        """Send a request with the admin key; its answer has to be `status`, and as described."""
        response = await self.http.request(method, path, **options)
        assert response.status_code == status, response.text
        check_described(method, response)
        return response.json()

    async def refused(self, method: str, path: str, status: int, **options: Any) -> dict[str, Any]:
        error: dict[str, Any] = (await self(method, path, status, **options))["error"]
        return error


@pytest.fixture
async def admin(database: Engine) -> AsyncIterator[Admin]:
    async for made in _admin(database):
        yield made


async def _admin(engine: Engine) -> AsyncIterator[Admin]:
    keys = KeyStore(engine, b"s" * 32)
    _, key = keys.create("", "the platform team", admin=True)
    world = World()
    world.catalog = Catalog({}, {}, {"red": RED, "blue": BLUE})
    authenticator = Authenticator(keys)
    routes = admin_routes(world, authenticator, engine, keys, Metrics(), lambda: NOW)
    app = Starlette(routes=[*routes, openapi_route()], exception_handlers={HTTPException: not_served})
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://ingress", headers=headers
    ) as http:
        yield Admin(engine, keys, authenticator, world, http)


def check_described(method: str, response: httpx.Response) -> None:
    """The answer is one that the document names for this operation."""
    path = response.url.path
    if path.startswith("/admin/v1/keys/"):
        path = "/admin/v1/keys/{id}"
    answers = DOCUMENT["paths"][path][method.lower()]["responses"]
    status = str(response.status_code)
    described = answers.get(status) or answers[f"{status[0]}XX"]
    if "$ref" in described:
        described = DOCUMENT["components"]["responses"][described["$ref"].rsplit("/", 1)[1]]
    schema = described["content"]["application/json"]["schema"]
    OAS31Validator({**schema, "components": DOCUMENT["components"]}).validate(response.json())
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]


OPERATIONS = [
    (method.upper(), path.replace("{id}", "key_1"))
    for path, methods in DOCUMENT["paths"].items()
    for method in methods
    if path.startswith("/admin/")
]


class TestWhoIsLetIn:
    @pytest.mark.parametrize(("method", "path"), OPERATIONS)
    async def test_nobody_without_a_key(self, admin: Admin, method: str, path: str) -> None:
        error = await admin.refused(method, path, 401, headers={"authorization": ""})
        assert error["code"] == "missing_api_key"
        assert "meritorder key create --admin" in error["message"]

    @pytest.mark.parametrize(("method", "path"), OPERATIONS)
    async def test_nobody_with_the_key_of_a_team(self, admin: Admin, method: str, path: str) -> None:
        _, key = admin.keys.create("red")
        admin.authenticator.refresh()
        error = await admin.refused(method, path, 403, headers={"authorization": f"Bearer {key}"})
        assert error["code"] == "admin_key_required"

    async def test_nobody_whose_key_is_revoked(self, admin: Admin) -> None:
        made, key = admin.keys.create("", admin=True)
        admin.keys.revoke(made.id)
        admin.authenticator.refresh()
        await admin.refused("GET", "/admin/v1/teams", 401, headers={"authorization": f"Bearer {key}"})

    def test_an_admin_key_calls_no_model(self, admin: Admin) -> None:
        authorization = admin.http.headers["authorization"]
        with pytest.raises(NotAllowed, match="send a team's key") as refused:
            admin.authenticator.caller(authorization, admin.world.catalog)
        assert refused.value.code == "team_key_required"


class TestTeams:
    async def test_have_their_limits_and_what_is_left_of_their_budgets(self, admin: Admin) -> None:
        spent(admin.engine, "team:red", Period.MONTHLY, MARCH, "20.123456789")
        spent(admin.engine, "team:red", Period.MONTHLY, MARCH - 86400 * 28, "99")  # February's
        spent(admin.engine, "team:red", Period.TOTAL, 0.0, "1000.5")
        red, blue = (await admin("GET", "/admin/v1/teams"))["data"]
        assert red == {
            "name": "red",
            "routes": ["assistant", "faq"],
            "limits": {"requests_per_minute": 60, "tokens_per_minute": None, "concurrency": 4},
            "budgets": [
                {
                    "period": "monthly",
                    "amount_usd": "100.5",
                    "spent_usd": "20.123456789",
                    "remaining_usd": "80.376543211",
                    "resets_at": "2026-04-01T00:00:00Z",
                },
                {
                    "period": "total",
                    "amount_usd": "1000",
                    "spent_usd": "1000.5",
                    "remaining_usd": "0",
                    "resets_at": None,
                },
            ],
            "overrides": ["max_cost_usd"],
        }
        assert (blue["routes"], blue["budgets"], len(blue["overrides"])) == (None, [], len(Override))


class TestBudgets:
    async def test_are_those_of_teams_and_of_keys_in_force(self, admin: Admin) -> None:
        limits = KeyLimits(budgets=(Budget(Period.DAILY, Decimal("0.5")),))
        key, _ = admin.keys.create("blue", limits=limits)
        revoked, _ = admin.keys.create("blue", limits=limits)
        admin.keys.revoke(revoked.id)
        spent(admin.engine, f"key:{key.id}", Period.DAILY, NOW // 86400 * 86400, "0.2")
        listed = (await admin("GET", "/admin/v1/budgets"))["data"]
        assert [(one["scope"], one["period"]) for one in listed] == [
            ("team:red", "monthly"),
            ("team:red", "total"),
            (f"key:{key.id}", "daily"),
        ]
        assert listed[-1]["remaining_usd"] == "0.3"
        assert listed[-1]["resets_at"] == "2026-03-16T00:00:00Z"


class TestKeys:
    async def test_a_key_is_shown_once_and_works(self, admin: Admin) -> None:
        made = await admin("POST", "/admin/v1/keys", 201, json={"team": "red", "name": "continuous integration"})
        admin.authenticator.refresh()
        caller = admin.authenticator.caller(f"Bearer {made['key']}", admin.world.catalog)
        assert (caller.team, caller.key_id) == (RED, made["id"])
        listed = (await admin("GET", "/admin/v1/keys"))["data"]
        assert listed[-1] == {name: value for name, value in made.items() if name != "key"}
        assert made["key"] not in str(listed)

    async def test_a_key_has_the_limits_that_it_was_made_with(self, admin: Admin) -> None:
        limits = {"requests_per_minute": 10, "tokens_per_minute": 5000, "concurrency": 2}
        budgets = [{"period": "daily", "amount_usd": "0.10"}, {"period": "total", "amount_usd": 25}]
        made = await admin("POST", "/admin/v1/keys", 201, json={"team": "red", "limits": limits, "budgets": budgets})
        assert made["limits"] == limits
        assert made["budgets"] == [{"period": "daily", "amount_usd": "0.1"}, {"period": "total", "amount_usd": "25"}]
        stored = admin.keys.list()[-1]
        assert stored.limits == KeyLimits(
            Limits(10, 5000, 2), (Budget(Period.DAILY, Decimal("0.10")), Budget(Period.TOTAL, Decimal(25)))
        )

    async def test_an_admin_key_has_no_team(self, admin: Admin) -> None:
        [key] = (await admin("GET", "/admin/v1/keys"))["data"]
        assert (key["admin"], key["team"], key["revoked_at"]) == (True, None, None)

    @pytest.mark.parametrize(
        ("body", "param", "said"),
        [
            (b"", None, "not valid JSON"),
            (b"{", None, "not valid JSON"),
            (b'{"team": "red", "name": "\xff"}', None, "not valid JSON"),
            (b"[]", None, "must be a JSON object"),
            (b"{}", "team", "is required"),
            (b'{"team": 1}', "team", "expected string"),
            (b'{"team": "green"}', "team", "the manifests have red, blue"),
            (b'{"team": ""}', "team", "There is no team ''"),
            (b'{"team": "red", "admin": true}', "admin", "no field of a new key"),
            (b'{"team": "red", "limits": {"rpm": 1}}', "limits.rpm", "no field of a new key"),
            (b'{"team": "red", "limits": {"concurrency": 0}}', "limits.concurrency", ">= 1"),
            (b'{"team": "red", "name": "a\\u0000b"}', "name", "cannot be printed"),
            (b'{"team": "red", "name": "%s"}' % (b"x" * 201), "name", "length <= 200"),
            (b'{"team": "red", "budgets": [{"period": "daily"}]}', "budgets[0].amount_usd", "is required"),
            (b'{"team": "red", "budgets": [{"period": "weekly", "amount_usd": 1}]}', "budgets[0].period", "weekly"),
            (b'{"team": "red", "budgets": [{"period": "daily", "amount_usd": -1}]}', "budgets[0].amount_usd", "from 0"),
            (b'{"team": "red", "budgets": [{"period": "daily", "amount_usd": true}]}', "budgets[0].amount_usd", "bool"),
            (
                b'{"team": "red", "budgets": [{"period": "daily", "amount_usd": "1E-999999"}]}',
                "budgets[0].amount_usd",
                "up to six decimals",
            ),
            (
                b'{"team": "red", "budgets": [{"period": "daily", "amount_usd": "NaN"}]}',
                "budgets[0].amount_usd",
                "from 0",
            ),
            (
                b'{"team": "red", "budgets": [%s, %s]}' % ((b'{"period": "daily", "amount_usd": 1}',) * 2),
                "budgets[1].period",
                "a daily budget already",
            ),
        ],
    )
    async def test_a_wrong_body_is_refused_by_its_field(
        self, admin: Admin, body: bytes, param: str | None, said: str
    ) -> None:
        error = await admin.refused("POST", "/admin/v1/keys", 400, content=body)
        assert error["param"] == param
        assert said in error["message"]
        assert len(admin.keys.list()) == 1

    async def test_a_body_that_is_too_large_is_refused(self, admin: Admin) -> None:
        error = await admin.refused("POST", "/admin/v1/keys", 413, content=b" " * 100_000)
        assert error["code"] == "request_too_large"

    async def test_a_revoked_key_is_refused_and_stays_in_the_list(self, admin: Admin) -> None:
        made, key = admin.keys.create("red")
        assert await admin("DELETE", f"/admin/v1/keys/{made.id}") == {"id": made.id, "revoked": True}
        assert (await admin("GET", "/admin/v1/keys"))["data"][-1]["revoked_at"] is not None
        admin.authenticator.refresh()
        error = await admin.refused("GET", "/admin/v1/keys", 401, headers={"authorization": f"Bearer {key}"})
        assert error["code"] == "invalid_api_key"

    @pytest.mark.parametrize("key_id", ["key_none", "%00", "key%20with%20spaces"])
    async def test_a_key_that_is_not_in_force_cannot_be_revoked(self, admin: Admin, key_id: str) -> None:
        error = await admin.refused("DELETE", f"/admin/v1/keys/{key_id}", 404)
        assert error["code"] == "key_not_found"


class TestUsage:
    @pytest.fixture(autouse=True)
    def some(self, admin: Admin) -> None:
        used(admin.engine, "red", NOW - 60, "openai/gpt", 100, 10, "0.000123")
        used(admin.engine, "blue", NOW - 60, "faq", 5, 5, "0")
        used(admin.engine, "red", NOW - 40 * 86400, "openai/gpt", 1, 1, "1")
        record_minute(admin.engine, NOW // 60 * 60 - 60, [Sample("faq", 1, Decimal("6")), Sample("new", 2, None)])

    async def test_is_by_team_and_of_the_last_30_days_unless_said_otherwise(self, admin: Admin) -> None:
        report = await admin("GET", "/admin/v1/usage")
        assert (report["by"], report["since"], report["until"]) == (
            "team",
            "2026-02-13T12:00:00Z",
            "2026-03-15T12:30:00Z",
        )
        blue, red = report["data"]
        assert blue["label"] == "blue"
        assert (blue["marginal_usd"], blue["amortised_usd"], blue["total_usd"]) == ("0", "0.1", "0.1")
        assert red == {
            "label": "red",
            "requests": 1,
            "errors": 0,
            "input_tokens": 100,
            "cached_input_tokens": 0,
            "output_tokens": 10,
            "marginal_usd": "0.000123",
            "amortised_usd": "0",
            "total_usd": "0.000123",
            "unpriced_requests": 0,
            "estimated_requests": 0,
        }
        assert report["total"]["total_usd"] == "0.100123"
        assert report["unpriced_replica_minutes"] == {"new": 2}

    @pytest.mark.parametrize(
        ("query", "labels"),
        [
            ("by=backend", ["faq", "openai/gpt"]),
            ("by=day&since=60d", ["2026-02-03", "2026-03-15"]),
            ("by=key&team=red", ["key_red"]),
            ("by=model&backend=faq", ["assistant"]),
            ("since=2026-01-01&until=2026-03-01", ["red"]),
            ("team=nobody", []),
        ],
    )
    async def test_is_what_was_asked_for(self, admin: Admin, query: str, labels: list[str]) -> None:
        assert [row["label"] for row in (await admin("GET", f"/admin/v1/usage?{query}"))["data"]] == labels

    @pytest.mark.parametrize(
        ("query", "param", "said"),
        [
            ("by=colour", "by", "expected one of team, key, model, backend, day, got 'colour'"),
            ("since=yesterday", "since", "expected a day such as 2026-01-31"),
            ("until=", "until", "expected a day"),
            ("since=2026-03-02&until=2026-03-01", "since", "not before 'until'"),
            ("tema=red", "tema", "valid here: by, since, until, team, key, model, backend"),
            ("team=red&team=blue", "team", "there twice"),
            ("team=%00", "team", "a zero byte"),
        ],
    )
    async def test_a_wrong_parameter_is_refused_by_name(self, admin: Admin, query: str, param: str, said: str) -> None:
        error = await admin.refused("GET", f"/admin/v1/usage?{query}", 400)
        assert error["param"] == param
        assert said in error["message"]


class TestAway:
    @pytest.fixture
    async def on_postgresql(self, database_url: str) -> AsyncIterator[Admin]:
        engine = open_database(database_url)
        async for made in _admin(engine):
            yield made
        engine.dispose()

    @pytest.fixture
    def stopped(self, on_postgresql: Admin, postgresql: Any) -> Iterator[None]:
        postgresql.stop()
        yield
        postgresql.start()

    @pytest.mark.usefixtures("stopped")
    @pytest.mark.parametrize(
        ("method", "path"), [one for one in OPERATIONS if one[0] != "POST"] + [("POST", "/admin/v1/keys")]
    )
    async def test_a_database_that_is_away_is_an_error_to_try_again(
        self, on_postgresql: Admin, method: str, path: str
    ) -> None:
        body = {"team": "red"} if method == "POST" else None
        response = await on_postgresql.http.request(method, path, json=body)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"
        assert response.json()["error"]["code"] == "ledger_unavailable"

    async def test_a_database_that_is_back_is_used_again(self, on_postgresql: Admin, postgresql: Any) -> None:
        await on_postgresql("GET", "/admin/v1/keys")
        postgresql.stop()
        postgresql.start()
        await on_postgresql("GET", "/admin/v1/keys")

    async def test_a_fault_of_ours_is_an_error_without_its_details(self, admin: Admin, monkeypatch: Any) -> None:
        monkeypatch.setattr(KeyStore, "list", lambda self: 1 / 0)
        error = await admin.refused("GET", "/admin/v1/keys", 500)
        assert error["code"] == "internal_error"
        assert "zero" not in error["message"]


class TestHttp:
    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PUT", "/admin/v1/keys", {"GET", "HEAD", "POST"}),
            ("GET", "/admin/v1/keys/key_1", {"DELETE"}),
            ("POST", "/admin/v1/usage", {"GET", "HEAD"}),
        ],
    )
    async def test_another_method_is_refused_and_the_right_ones_named(
        self, admin: Admin, method: str, path: str, allowed: set[str]
    ) -> None:
        response = await admin.http.request(method, path)
        assert response.status_code == 405
        assert set(response.headers["allow"].split(", ")) == allowed

    async def test_no_answer_is_kept_by_a_cache(self, admin: Admin) -> None:
        assert (await admin.http.get("/admin/v1/keys")).headers["cache-control"] == "no-store"

    async def test_a_head_has_no_body(self, admin: Admin) -> None:
        assert (await admin.http.head("/admin/v1/keys")).status_code == 200


class TestDescription:
    def test_is_valid_openapi_3_1(self) -> None:
        OpenAPIV31SpecValidator(DOCUMENT).validate()

    def test_every_part_of_it_is_referred_to(self) -> None:
        said = str(DOCUMENT)
        for kind in ("schemas", "responses", "parameters", "requestBodies"):
            for name in DOCUMENT["components"][kind]:
                assert f"'#/components/{kind}/{name}'" in said

    def test_the_reference_has_every_operation_and_every_column(self) -> None:
        reference = Path(__file__).parents[2] / "docs" / "reference"
        operations, columns = (reference / "admin-api.md").read_text(), (reference / "usage.md").read_text()
        for path in DOCUMENT["paths"]:
            assert f"{path}`" in operations or not path.startswith("/admin/")
        for column in DOCUMENT["components"]["schemas"]["UsageRow"]["required"][1:]:
            assert f"`{column}`" in columns

    async def test_is_served_to_everyone(self, admin: Admin) -> None:
        response = await admin.http.get("/openapi.json", headers={"authorization": ""})
        assert response.status_code == 200
        assert response.json() == DOCUMENT

    async def test_describes_all_that_is_served_and_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "manifests").mkdir()
        app = build(Settings((tmp_path / "manifests",), tmp_path / "state", tmp_path / "status.json"))
        async with app.router.lifespan_context(app):
            served = {
                (route.path, method)
                for route in app.routes
                if isinstance(route, HttpRoute)
                for method in (route.methods or set()) - {"HEAD"}
            }
        described = {(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods}
        assert served == described


def spent(engine: Engine, scope: str, period: Period, start: float, usd: str) -> None:
    with engine.begin() as connection:
        row = {"scope": scope, "period": period.value, "period_start": start, "usd": Decimal(usd)}
        connection.execute(insert(spend), row)


def used(engine: Engine, team: str, at: float, backend: str, given: int, output: int, cost: str) -> None:
    number = f"{team}-{at}"
    tokens = {column.name: 0 for column in charges.columns if column.name.endswith("_tokens")}
    tier = "hosted" if "/" in backend else "self-run"
    charge = {
        **tokens, "request": number, "number": 0, "backend": backend, "tier": tier,
        "input_tokens": given, "output_tokens": output, "estimated": False, "cost_usd": Decimal(cost),
    }  # fmt: skip
    request = {
        "id": number, "request_id": number, "started_at": at, "team": team, "key_id": f"key_{team}",
        "route": "assistant", "endpoint": "chat/completions", "backend": backend, "tier": tier,
        "attempts": 1, "outcome": "completed", "status": 200, "duration": 1.0,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(requests), request)
        connection.execute(insert(charges), charge)
