"""Several programs share the database."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meritorder.ledger.database import FILE, connect
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
    with pytest.raises(RuntimeError, match="newer release"):
        connect(tmp_path)
