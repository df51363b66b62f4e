"""Several programs share the database."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meritorder.ledger.database import FILE, StateError, connect
from meritorder.ledger.keys import KeyStore, load_secret

CREATE_A_KEY = """
import sys
from pathlib import Path
from meritorder.ledger.database import connect
from meritorder.ledger.keys import KeyStore, load_secret

state_dir = Path(sys.argv[1])
connection = connect(state_dir)
KeyStore(connection, load_secret(state_dir)).create("from elsewhere")
connection.close()
"""


def test_what_another_program_writes_is_seen_however_many_connections_are_open(tmp_path: Path) -> None:
    # To open the file beside SQLite and to close it again would drop SQLite's locks on it, and the other program,
    # taking itself for the last, would remove the write-ahead log that is in use here.
    first, second = connect(tmp_path), connect(tmp_path)
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
        first.close()
        second.close()


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    connect(tmp_path / "new").close()
    assert stat.S_IMODE((tmp_path / "new" / FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_one_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    connection = connect(tmp_path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match="newer release"):
        connect(tmp_path)


def test_a_state_directory_that_is_none_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for state_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError) as caught:
            connect(state_dir)
        assert str(caught.value).startswith(f"{state_dir} cannot be used as the state directory: ")


def test_so_is_one_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("meritorder.ledger.database.os.open", refuse)  # root may write everywhere
    with pytest.raises(StateError, match="cannot be used as the state directory: Permission denied"):
        connect(tmp_path)


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"x" * 5000])
def test_a_damaged_database_is_told_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StateError, match=f"{FILE} cannot be opened: file is not a database"):
        connect(tmp_path)


def test_so_is_one_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StateError, match=f"{FILE} cannot be opened: unable to open database file"):
        connect(tmp_path)
