"""From a key to a caller: with the database there, and with it away."""

import asyncio
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from meritorder.core.catalog import Catalog, Team
from meritorder.core.errors import LedgerUnavailable, NotAllowed, RequestError, Unauthenticated
from meritorder.core.limits import Budget, Limits, Period
from meritorder.ingress import auth
from meritorder.ingress.auth import Authenticator
from meritorder.ledger.database import open_database
from meritorder.ledger.keys import KeyLimits, KeyStore

SECRET = b"s" * 32
BUDGET = Budget(Period.DAILY, Decimal(5))
CATALOG = Catalog({}, {}, {"demo": Team("demo"), "bounded": Team("bounded", limits=Limits(requests_per_minute=9))})


def bearer(text: str) -> str:
    return f"Bearer {text}"


def refused(authenticator: Authenticator, authorization: str | None, catalog: Catalog = CATALOG) -> RequestError:
    with pytest.raises(RequestError) as caught:
        authenticator.caller(authorization, catalog)
    return caught.value


class TestACaller:
    def test_has_the_key_s_team(self, database: Engine) -> None:
        keys = KeyStore(database, SECRET)
        key, text = keys.create("demo")
        caller = Authenticator(keys).caller(bearer(text), CATALOG)
        assert (caller.team, caller.key_id, caller.allowances) == (CATALOG.teams["demo"], key.id, ())

    def test_is_bounded_by_what_bounds_the_key_and_what_bounds_the_team(self, database: Engine) -> None:
        keys = KeyStore(database, SECRET)
        key, text = keys.create("bounded", limits=KeyLimits(budgets=(BUDGET,)))
        caller = Authenticator(keys).caller(bearer(text), CATALOG)
        assert [allowance.scope for allowance in caller.allowances] == [f"key:{key.id}", "team:bounded"]

    def test_is_the_same_one_until_the_manifests_change(self, database: Engine) -> None:
        keys = KeyStore(database, SECRET)
        _, text = keys.create("demo")
        authenticator = Authenticator(keys)
        assert authenticator.caller(bearer(text), CATALOG) is authenticator.caller(bearer(text), CATALOG)
        changed = Catalog({}, {}, {"demo": Team("demo", budgets=(BUDGET,))})
        assert [one.budgets for one in authenticator.caller(bearer(text), changed).allowances] == [(BUDGET,)]

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_may_write_the_scheme_as_it_likes(self, database: Engine, scheme: str) -> None:
        keys = KeyStore(database, SECRET)
        _, text = keys.create("demo")
        assert Authenticator(keys).caller(f"{scheme} {text}", CATALOG).team.name == "demo"


class TestNoCaller:
    @pytest.mark.parametrize(
        ("authorization", "code"),
        [
            (None, "missing_api_key"),
            ("", "missing_api_key"),
            ("Bearer", "invalid_api_key"),
            ("Basic mo-x", "invalid_api_key"),
            ("Bearer mo-wrong", "invalid_api_key"),
        ],
    )
    def test_without_a_good_key(self, database: Engine, authorization: str | None, code: str) -> None:
        error = refused(Authenticator(KeyStore(database, SECRET)), authorization)
        assert (error.status, error.code) == (401, code)

    def test_with_a_key_that_is_revoked(self, database: Engine) -> None:
        keys = KeyStore(database, SECRET)
        key, text = keys.create("demo")
        authenticator = Authenticator(keys)
        keys.revoke(key.id)
        authenticator.refresh()
        assert isinstance(refused(authenticator, bearer(text)), Unauthenticated)

    def test_of_a_team_without_a_manifest(self, database: Engine) -> None:
        keys = KeyStore(database, SECRET)
        _, text = keys.create("gone")
        assert refused(Authenticator(keys), bearer(text)).code == "team_not_found"

    def test_with_an_admin_key(self, database: Engine) -> None:
        keys = KeyStore(database, SECRET)
        _, text = keys.create("", admin=True)
        assert refused(Authenticator(keys), bearer(text)).code == "team_key_required"


class TestAnAdministrator:
    def test_has_an_admin_key(self, database: Engine) -> None:
        keys = KeyStore(database, SECRET)
        key, text = keys.create("", admin=True)
        assert Authenticator(keys).administrator(bearer(text)).id == key.id

    def test_a_team_s_key_is_not_enough(self, database: Engine) -> None:
        keys = KeyStore(database, SECRET)
        _, text = keys.create("demo")
        with pytest.raises(NotAllowed) as caught:
            Authenticator(keys).administrator(bearer(text))
        assert caught.value.code == "admin_key_required"


class Watched(KeyStore):
    """A store that does something each time before it asks the database."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def version(self) -> int:
        self.before()
        return super().version()


class TestWithTheDatabaseAway:
    async def test_seen_keys_go_on_and_nobody_is_told_that_a_key_is_wrong(
        self, database_url: str, postgresql: Any
    ) -> None:
        engine = open_database(database_url)
        keys = KeyStore(engine, SECRET)
        _, seen = keys.create("demo")
        _, admin = keys.create("", admin=True)
        authenticator = Authenticator(keys)
        _, unseen = keys.create("demo")
        await asyncio.to_thread(postgresql.stop)
        try:
            with pytest.raises(OperationalError):
                authenticator.refresh()
            assert authenticator.caller(bearer(seen), CATALOG).team.name == "demo"
            assert authenticator.administrator(bearer(admin)).admin
            for text in (unseen, "mo-wrong"):
                error = refused(authenticator, bearer(text))
                assert isinstance(error, LedgerUnavailable)
                assert (error.status, error.retry_after) == (503, 5.0)
                with pytest.raises(LedgerUnavailable):
                    authenticator.administrator(bearer(text))
        finally:
            postgresql.start()
        engine.dispose()  # of the connections that the server has closed
        authenticator.refresh()
        assert authenticator.caller(bearer(unseen), CATALOG).team.name == "demo"
        assert refused(authenticator, bearer("mo-wrong")).status == 401
        engine.dispose()

    @pytest.mark.parametrize("authorization", [None, "Basic mo-x", "Bearer "])
    def test_what_is_no_key_is_refused_as_ever(self, database: Engine, authorization: str | None) -> None:
        authenticator = away(database)
        assert refused(authenticator, authorization).status == 401

    def test_a_revoked_key_that_was_seen_works_until_the_database_is_back(self, database: Engine) -> None:
        keys = KeyStore(database, SECRET)
        key, text = keys.create("demo")
        authenticator = away(database)
        keys.revoke(key.id)
        assert authenticator.caller(bearer(text), CATALOG).key_id == key.id

    def test_a_database_that_is_just_being_asked_is_not_away(self, database: Engine) -> None:
        keys = Watched(database, SECRET)
        authenticator = Authenticator(keys)
        met: list[int] = []
        keys.before = lambda: met.append(refused(authenticator, bearer("mo-wrong")).status)
        authenticator.refresh()
        assert met == [401]

    def test_one_that_does_not_answer_is(self, database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = Watched(database, SECRET)
        authenticator = Authenticator(keys)
        asked, go_on = threading.Event(), threading.Event()

        def hang() -> None:
            asked.set()
            assert go_on.wait(10)

        keys.before = hang
        thread = threading.Thread(target=authenticator.refresh)
        thread.start()
        try:
            assert asked.wait(10)
            monkeypatch.setattr(auth, "_ANSWER_SECONDS", -1.0)  # so much time has passed
            assert refused(authenticator, bearer("mo-wrong")).status == 503
        finally:
            go_on.set()
            thread.join()
        assert refused(authenticator, bearer("mo-wrong")).status == 401


def away(engine: Engine) -> Authenticator:
    """One whose database has answered once, and then no more."""
    keys = Watched(engine, SECRET)
    authenticator = Authenticator(keys)

    def fail() -> None:
        raise OperationalError("SELECT", {}, Exception("the database is away"))

    keys.before = fail
    with pytest.raises(OperationalError):
        authenticator.refresh()
    return authenticator
