"""API keys: made once, shown once, kept as an HMAC."""

import multiprocessing
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import Engine

from meritorder.core.limits import Allowance, Budget, Limits, Period
from meritorder.ledger.database import StateError, open_database
from meritorder.ledger.keys import SECRET_FILE, KeyLimits, KeyStore, load_secret


@pytest.fixture
def secret(tmp_path: Path) -> bytes:
    return load_secret(tmp_path / "secret")


@pytest.fixture
def store(database: Engine, secret: bytes) -> KeyStore:
    return KeyStore(database, secret)


def test_a_key_is_found_by_its_digest(store: KeyStore) -> None:
    key, text = store.create("demo", "for the docs")
    assert text.startswith("mo-")
    assert store.active() == {store.digest(text): key}
    assert (key.team, key.name, key.revoked_at) == ("demo", "for the docs", None)


def test_no_two_keys_are_the_same(store: KeyStore) -> None:
    made = [store.create("demo") for _ in range(50)]
    assert len({text for _, text in made}) == len({key.id for key, _ in made}) == 50


def test_keys_are_listed_in_the_order_of_their_making(store: KeyStore) -> None:
    made = [store.create(team)[0] for team in ("one", "two", "three")]
    assert store.list() == made


def test_a_revoked_key_is_listed_and_not_active(store: KeyStore) -> None:
    key, _ = store.create("demo")
    other, text = store.create("demo")
    assert store.revoke(key.id)
    assert store.active() == {store.digest(text): other}
    [revoked, kept] = store.list()
    assert revoked.revoked_at is not None
    assert kept.revoked_at is None


def test_a_key_is_revoked_once(store: KeyStore) -> None:
    key, _ = store.create("demo")
    assert [store.revoke(key.id), store.revoke(key.id), store.revoke("key_none")] == [True, False, False]


@pytest.mark.parametrize(
    "limits",
    [
        KeyLimits(),
        KeyLimits(Limits(requests_per_minute=5)),
        KeyLimits(Limits(5, 6, 7), (Budget(Period.MONTHLY, Decimal("10.000000000000000000001")),)),
        KeyLimits(budgets=(Budget(Period.HOURLY, Decimal("1E-7")), Budget(Period.TOTAL, Decimal(0)))),
    ],
)
def test_a_key_keeps_its_limits(store: KeyStore, limits: KeyLimits) -> None:
    key, text = store.create("demo", limits=limits)
    assert store.active()[store.digest(text)].limits == limits
    assert store.list() == [key]
    assert key.allowance == Allowance(f"key:{key.id}", limits.limits, limits.budgets)


def test_a_key_for_the_administration_is_told_from_the_others(store: KeyStore) -> None:
    store.create("", "for me", admin=True)
    store.create("demo")
    assert [(key.team, key.admin) for key in store.list()] == [("", True), ("demo", False)]


def test_every_change_is_noticed_whoever_makes_it(store: KeyStore, secret: bytes, database_place: Path | str) -> None:
    engine = open_database(database_place)
    elsewhere = KeyStore(engine, secret)
    versions = [store.version(), store.version()]
    key, _ = elsewhere.create("demo")
    versions.append(store.version())
    store.revoke(key.id)
    versions.append(elsewhere.version())
    elsewhere.revoke(key.id)  # is already, so nothing changes
    versions.append(store.version())
    assert versions == [0, 0, 1, 2, 2]
    engine.dispose()


def test_the_key_itself_is_in_no_file(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    store = KeyStore(engine, load_secret(tmp_path))
    _, text = store.create("demo")
    digest = store.digest(text)
    engine.dispose()
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert digest in written
    assert text.encode() not in written
    assert text.removeprefix("mo-").encode() not in written


def test_a_digest_is_worth_nothing_without_the_secret(store: KeyStore, database: Engine) -> None:
    _, text = store.create("demo")
    assert KeyStore(database, b"another secret of thirty-two byte").digest(text) not in store.active()


@pytest.mark.parametrize("text", ["", "ümlaut", "\udcff", "x" * 100_000], ids=["empty", "umlaut", "no text", "long"])
def test_whatever_a_client_sends_has_a_digest(store: KeyStore, text: str) -> None:
    assert len(store.digest(text)) == 32


def test_only_the_owner_may_read_any_file(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    engine = open_database(folder)
    KeyStore(engine, load_secret(folder)).create("demo")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    engine.dispose()
    assert {"meritorder.db", "meritorder.db-wal", SECRET_FILE} <= modes.keys()
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_secret_is_made_once(tmp_path: Path) -> None:
    first = load_secret(tmp_path)
    assert load_secret(tmp_path) == first
    assert [file.name for file in tmp_path.iterdir()] == [SECRET_FILE]


def test_programs_that_come_at_once_agree_on_a_secret_and_a_schema(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from meritorder.ledger.database import open_database
from meritorder.ledger.keys import KeyStore, load_secret

folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
KeyStore(open_database(folder), load_secret(folder)).create("demo")
print(load_secret(folder).hex())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "new")]
    programs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2 * multiprocessing.cpu_count())
    ]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
    for program in programs:  # all of them stand at the start: go
        assert program.stdin is not None
        program.stdin.close()
        program.stdin = None  # or `communicate` would flush it
    secrets = {program.communicate(timeout=60)[0] for program in programs}
    assert [program.returncode for program in programs] == [0] * len(programs)
    assert len(secrets) == 1
    engine = open_database(tmp_path / "new")
    assert len(KeyStore(engine, b"").list()) == KeyStore(engine, b"").version() == len(programs)
    engine.dispose()


@pytest.mark.parametrize("content", [b"", b"too short", b"x" * 33])
def test_a_damaged_secret_is_not_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SECRET_FILE).write_bytes(content)
    with pytest.raises(StateError, match="is damaged; restore it, or remove it and make all keys anew"):
        load_secret(tmp_path)


def test_a_secret_that_cannot_be_read_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / SECRET_FILE).mkdir()
    with pytest.raises(StateError, match=f"{SECRET_FILE} cannot be read: Is a directory"):
        load_secret(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be used as the state directory"):
        load_secret(tmp_path / "file" / "below")
