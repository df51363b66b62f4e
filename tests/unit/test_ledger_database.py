"""The database: several programs share it, two kinds of it behave alike, and none is opened that is not ours."""

import multiprocessing
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, func, inspect, literal, select, text, update

from meritorder.core.pricing import EXACT
from meritorder.ledger import migrations
from meritorder.ledger.database import FILE, StateError, exact_sum, insert, lock_scopes, open_database, reading, whole
from meritorder.ledger.keys import KeyStore, load_secret
from meritorder.ledger.schema import api_keys, metadata, revisions, spend
from meritorder.ledger.usage import find

CREATE_A_KEY = """
import sys
from pathlib import Path
from meritorder.ledger.database import open_database
from meritorder.ledger.keys import KeyStore, load_secret

state_dir = Path(sys.argv[1])
engine = open_database(state_dir)
KeyStore(engine, load_secret(state_dir)).create("from elsewhere")
engine.dispose()
"""

OPEN_IT = """
import sys
from pathlib import Path
from meritorder.ledger.database import open_database

print("ready", flush=True)
sys.stdin.read()
open_database(sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1])).dispose()
"""

THE_DEVELOPMENT_BEFORE = """
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY, team TEXT NOT NULL, name TEXT NOT NULL, digest BLOB NOT NULL UNIQUE,
    created_at REAL NOT NULL, revoked_at REAL) STRICT;
CREATE TABLE usage (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, started_at REAL NOT NULL, team TEXT NOT NULL,
    key_id TEXT NOT NULL, route TEXT NOT NULL, endpoint TEXT NOT NULL, backend TEXT, tier TEXT,
    attempts INTEGER NOT NULL, outcome TEXT NOT NULL, status INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
    cached_input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, estimated INTEGER NOT NULL,
    cost_usd TEXT NOT NULL, time_to_first_token REAL, duration REAL NOT NULL) STRICT;
CREATE INDEX usage_by_request ON usage (request_id);
INSERT INTO api_keys VALUES ('key_1', 'demo', 'old', x'00ff', 1.5, NULL);
INSERT INTO usage VALUES (7, 'req_1', 2.5, 'demo', 'key_1', 'assistant', 'chat/completions', 'hosted/chat', 'hosted',
    1, 'completed', 200, 10, 4, 20, 1, '0.000012', 0.25, 1.5);
INSERT INTO usage VALUES (8, 'req_2', 3.5, 'demo', 'key_1', 'assistant', 'chat/completions', NULL, NULL,
    1, 'failed', 502, 0, 0, 0, 0, '0', NULL, 1.5);
PRAGMA user_version = 1;
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Where no tables are yet."""
    if request.param == "sqlite":
        yield tmp_path / "empty"
        return
    server = request.getfixturevalue("postgresql")
    name = server.create()
    yield server.url(name)
    server.drop(name)


# --- Tables ---


def test_the_migrations_lead_to_the_tables_that_the_code_names(empty_place: Path | str) -> None:
    engine = open_database(empty_place)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        uniques = inspect(connection).get_unique_constraints("api_keys")
    assert [unique["column_names"] for unique in uniques] == [["digest"]]
    engine.dispose()


def test_the_last_migration_is_the_version_that_is_worked_with() -> None:
    assert ScriptDirectory(str(Path(migrations.__file__).parent)).get_current_head() == migrations.HEAD


def test_to_open_it_again_changes_nothing(empty_place: Path | str) -> None:
    open_database(empty_place).dispose()
    engine = open_database(empty_place)
    with engine.begin() as connection:
        connection.execute(insert(connection, revisions), {"name": "keys", "number": 1})
    engine.dispose()
    engine = open_database(empty_place)
    with reading(engine) as connection:
        assert connection.execute(select(revisions)).all() == [("keys", 1)]
    engine.dispose()


def test_programs_that_come_at_once_make_the_tables_once(empty_place: Path | str) -> None:
    programs = [
        subprocess.Popen([sys.executable, "-c", OPEN_IT, str(empty_place)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2 * multiprocessing.cpu_count())
    ]  # fmt: skip
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
    for program in programs:  # all of them stand at the start: go
        assert program.stdin is not None
        program.stdin.close()
        program.stdin = None  # or `communicate` would flush it
    said = [program.communicate(timeout=60)[1] for program in programs]
    assert [program.returncode for program in programs] == [0] * len(programs), said


def test_one_of_a_newer_release_is_refused(database: Engine, database_place: Path | str) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StateError, match=r"written by a newer release \(schema 9999, this one knows 0001\)"):
        open_database(database_place)


def test_what_the_development_before_held_is_taken_over(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.executescript(THE_DEVELOPMENT_BEFORE)
    engine = open_database(tmp_path)
    assert [(key.id, key.team, key.name) for key in KeyStore(engine, b"").list()] == [("key_1", "demo", "old")]
    first, second = find(engine, ["req_1", "req_2"])
    assert (first.backend, first.cost, first.usage.cached_input_tokens) == ("hosted/chat", Decimal("0.000012"), 4)
    assert (second.status, second.charges) == (502, ())
    with reading(engine) as connection:
        assert "usage" not in inspect(connection).get_table_names()
        assert connection.execute(text("PRAGMA user_version")).scalar() == 2
    engine.dispose()


# --- SQLite's file ---


def test_what_another_program_writes_is_seen_however_many_connections_are_open(tmp_path: Path) -> None:
    # To open the file beside SQLite and to close it again would drop SQLite's locks on it, and the other program,
    # taking itself for the last, would remove the write-ahead log that is in use here.
    first, second = open_database(tmp_path), open_database(tmp_path)
    try:
        store = KeyStore(first, load_secret(tmp_path))
        store.active()
        for count in (1, 2, 3):
            before = store.version()
            subprocess.run([sys.executable, "-c", CREATE_A_KEY, str(tmp_path)], check=True, timeout=60)
            assert store.version() != before
            assert len(store.active()) == count
            store.create("from here")
            store.revoke(store.list()[-1].id)
    finally:
        first.dispose()
        second.dispose()


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    open_database(tmp_path / "new").dispose()
    assert stat.S_IMODE((tmp_path / "new" / FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_readers_and_a_writer_work_at_once(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    with engine.begin() as writer, reading(engine) as reader:
        writer.execute(insert(writer, revisions), {"name": "keys", "number": 1})
        assert reader.execute(select(func.count()).select_from(revisions)).scalar() == 0
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize("name", ["with space", "ümläut", "per%cent", "quest?ion", "ha#sh"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    open_database(tmp_path / name).dispose()
    assert (tmp_path / name / FILE).exists()


def test_a_state_directory_that_is_none_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for state_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError) as caught:
            open_database(state_dir)
        assert str(caught.value).startswith(f"{state_dir} cannot be used as the state directory: ")


def test_so_is_one_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("meritorder.ledger.database.os.open", refuse)  # root may write everywhere
    with pytest.raises(StateError, match="cannot be used as the state directory: Permission denied"):
        open_database(tmp_path)


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"x" * 5000])
def test_a_damaged_database_is_told_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StateError, match=f"{FILE} cannot be opened: file is not a database"):
        open_database(tmp_path)


def test_so_is_one_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StateError, match=f"{FILE} cannot be opened: unable to open database file"):
        open_database(tmp_path)


# --- PostgreSQL's URL ---


@pytest.mark.parametrize(
    "url",
    ["secret", "mysql://u:secret@host/name", "postgresql://u:secret@host", "postgresql://u:secret@host:no/name", ""],
)
def test_a_url_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(StateError, match="is not of the form postgresql://user:password@host:port/name") as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_cannot_be_reached_is_named_without_the_password() -> None:
    with pytest.raises(StateError) as caught:
        open_database("postgresql://u:secret@127.0.0.1:1/ledger?password=secret")
    assert str(caught.value).startswith("the PostgreSQL database 'ledger' at 127.0.0.1:1 cannot be opened: ")
    assert "refused" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_wrong_password_is_told_in_a_sentence(database_url: str) -> None:
    user, _, rest = database_url.rpartition("@")
    with pytest.raises(StateError, match="password authentication failed"):
        open_database(f"{user}x@{rest}")


def test_no_session_can_keep_locks_for_long_that_it_does_not_use(database_url: str) -> None:
    engine = open_database(database_url)
    with reading(engine) as connection:
        settings = ("lock_timeout", "idle_in_transaction_session_timeout")
        assert [connection.execute(text(f"SHOW {name}")).scalar() for name in settings] == ["10s", "30s"]
    engine.dispose()


# --- Where the two differ ---


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(amounts=st.lists(st.integers(-(10**60), 10**60).map(lambda unit: EXACT.scaleb(Decimal(unit), -30)), max_size=8))
def test_a_sum_of_money_is_exact(database: Engine, amounts: list[Decimal]) -> None:
    rows = [{"scope": "s", "period": "total", "period_start": at, "usd": usd} for at, usd in enumerate(amounts)]
    with database.begin() as connection:
        connection.execute(delete(spend))
        if rows:
            connection.execute(insert(connection, spend), rows)
        found = connection.execute(select(exact_sum(spend.c.usd))).scalar()
    with localcontext(EXACT):
        assert found == (sum(amounts) if amounts else None)


@pytest.mark.parametrize(("number", "floor"), [(0.0, 0), (3.2, 3), (3.5, 3), (3.999, 3), (1.8e9, 1_800_000_000)])
def test_a_number_is_cut_down_to_a_whole_one(database: Engine, number: float, floor: int) -> None:
    with reading(database) as connection:
        assert connection.execute(select(whole(literal(number)))).scalar() == floor


def test_a_reader_sees_one_moment(database: Engine) -> None:
    count = select(func.count()).select_from(revisions)
    with reading(database) as reader:
        assert reader.execute(count).scalar() == 0
        with database.begin() as writer:
            writer.execute(insert(writer, revisions), {"name": "keys", "number": 1})
        assert reader.execute(count).scalar() == 0
    with reading(database) as reader:
        assert reader.execute(count).scalar() == 1


def test_two_that_change_the_same_scopes_do_so_one_after_the_other(database: Engine) -> None:
    scopes = [f"team:{number}" for number in range(20)]
    row = {"period": "total", "period_start": 0.0, "usd": Decimal(0)}
    with database.begin() as connection:
        connection.execute(insert(connection, spend), [{"scope": scope, **row} for scope in scopes])

    def add(ordered: list[str]) -> None:
        for _ in range(10):
            with database.begin() as connection:
                lock_scopes(connection, ordered)
                for scope in ordered:  # read, add here, write: nothing is lost only if nobody is in between
                    was = connection.execute(select(spend.c.usd).where(spend.c.scope == scope)).scalar_one()
                    connection.execute(update(spend).where(spend.c.scope == scope).values(usd=was + 1))

    threads = [threading.Thread(target=add, args=(order,)) for order in (scopes, scopes[::-1], scopes[5:] + scopes[:5])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(database) as connection:
        assert set(connection.execute(select(spend.c.usd)).scalars()) == {Decimal(30)}


def test_columns_keep_what_they_are_given(database: Engine) -> None:
    row = {
        "id": "k", "team": "t", "name": "ümlaut 🔌", "digest": bytes(range(256)), "admin": True,
        "limits": {"budgets": []}, "created_at": 1_800_000_000.123456, "revoked_at": None,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(connection, api_keys), row)
    with reading(database) as connection:
        assert connection.execute(select(api_keys)).mappings().one() == row
