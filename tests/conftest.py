"""Databases for the tests: SQLite, and a real PostgreSQL server of the Debian package, started on first use.

* `database`: an engine, once on SQLite and once on PostgreSQL; the tables are there, and empty.
* `database_place`: what `open_database` takes to open the database of `database` again: a folder or a URL.
* `database_url`: the URL of a PostgreSQL database of the test's own, with the tables.
* `postgresql`: the server itself, to stop and start it, and to make databases without tables.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from meritorder.ledger.database import open_database

_SECONDS_TO_START = 60
_USER = "postgres"  # that of Debian's package: the server refuses to run as root
_MIGRATED = "migrated"


class PostgreSQL:
    """A server on a port of its own, that keeps nothing when the tests are over."""

    def __init__(self, folder: Path) -> None:
        self._programs = _find_programs()
        self._folder = folder
        self._password = secrets.token_hex(8)
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        password = folder / "password"
        password.write_text(self._password)
        if os.geteuid() == 0:
            shutil.chown(folder, _USER, _USER)
            shutil.chown(password, _USER, _USER)
        self._run(
            "initdb", f"--pgdata={folder / 'data'}", "--username=test", f"--pwfile={password}", "--no-sync",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8",
        ).check_returncode()  # fmt: skip
        self.start()

    def url(self, name: str) -> str:
        return f"postgresql://test:{self._password}@127.0.0.1:{self._port}/{name}"

    def start(self) -> None:
        """Start the server; returns when it answers."""
        settings = {
            "listen_addresses": "127.0.0.1", "port": self._port, "unix_socket_directories": "", "fsync": "off",
            "full_page_writes": "off", "shared_buffers": "32MB", "max_connections": 100,
        }  # fmt: skip
        command = [*_as_its_user(), str(self._programs / "postgres"), "-D", str(self._folder / "data")]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, *(f"-c{name}={value}" for name, value in settings.items())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder,
            )  # fmt: skip
        deadline = time.monotonic() + _SECONDS_TO_START
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start:\n{(self._folder / 'log').read_text()}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server and close all connections at once, as when its machine is taken away."""
        if self._process is not None:
            self._run("pg_ctl", "stop", f"--pgdata={self._folder / 'data'}", "--mode=immediate", "--wait")
            self._process.wait(timeout=_SECONDS_TO_START)
            self._process = None

    def create(self, template: str = "template0") -> str:
        """The name of a new database."""
        self._count += 1
        name = f"test_{self._count}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return name

    def drop(self, name: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*_as_its_user(), str(self._programs / program), *arguments],
            cwd=self._folder, stdout=subprocess.DEVNULL, check=False, timeout=_SECONDS_TO_START,
        )  # fmt: skip


def _find_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        # A test that is skipped tests nothing, and nobody notices.
        pytest.fail("there is no PostgreSQL server; install it with: apt-get install postgresql", pytrace=False)
    return found[-1].parent


def _as_its_user() -> list[str]:
    """The beginning of a command that must not run as root, and must not outlive this process."""
    user = [f"--reuid={_USER}", f"--regid={_USER}", "--init-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *user, "--pdeathsig=INT", "--"]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    # Not pytest's own folder for temporary files: none but root may enter it.
    folder = Path(tempfile.mkdtemp(prefix="meritorder-postgresql-"))
    server = None
    try:
        server = PostgreSQL(folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def _migrated(postgresql: PostgreSQL) -> str:
    """The name of a database with the tables, to be copied: to make them takes longer."""
    with psycopg.connect(postgresql.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {_MIGRATED}")
    open_database(postgresql.url(_MIGRATED)).dispose()
    return _MIGRATED


@pytest.fixture
def database_url(postgresql: PostgreSQL, _migrated: str) -> Iterator[str]:
    name = postgresql.create(_migrated)
    yield postgresql.url(name)
    postgresql.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    if request.param == "sqlite":
        return tmp_path / "state"
    url: str = request.getfixturevalue("database_url")
    return url


@pytest.fixture
def database(database_place: Path | str) -> Iterator[Engine]:
    engine = open_database(database_place)
    with contextlib.ExitStack() as stack:
        stack.callback(engine.dispose)
        yield engine
