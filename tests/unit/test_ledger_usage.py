"""Usage records: none is lost, none is written twice, and no request waits for them."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meritorder.core.usage import Outcome, Usage, UsageRecord
from meritorder.ledger.database import connect
from meritorder.ledger.usage import UsageWriter, find, wait_for

RECORD = UsageRecord(
    request_id="req_1",
    team="demo",
    key_id="key_1",
    route="assistant",
    endpoint="chat/completions",
    backend="hosted/chat",
    tier="hosted",
    attempts=2,
    outcome=Outcome.COMPLETED,
    status=200,
    usage=Usage(10, 20, 5, estimated=True),
    cost=Decimal("0.000000123456789012345678901234567890"),
    started_at=1_800_000_000.25,
    time_to_first_token=0.125,
    duration=1.5,
)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect(tmp_path)
    yield connection
    connection.close()


def numbered(count: int) -> list[UsageRecord]:
    return [replace(RECORD, request_id=f"req_{number}") for number in range(count)]


def write(folder: Path, records: list[UsageRecord]) -> None:
    writer = UsageWriter(folder)
    for record in records:
        writer.record(record)
    writer.close()


def test_a_record_comes_back_as_it_was(tmp_path: Path, connection: sqlite3.Connection) -> None:
    write(tmp_path, [RECORD])
    assert find(connection, ["req_1"]) == [RECORD]


def test_one_without_a_backend_too(tmp_path: Path, connection: sqlite3.Connection) -> None:
    record = replace(RECORD, backend=None, tier=None, time_to_first_token=None, outcome=Outcome.FAILED)
    write(tmp_path, [record])
    assert find(connection, ["req_1"]) == [record]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cost=st.decimals(min_value=0, allow_nan=False, allow_infinity=False, places=15))
def test_money_is_kept_exactly(tmp_path: Path, connection: sqlite3.Connection, cost: Decimal) -> None:
    connection.execute("DELETE FROM usage")
    write(tmp_path, [replace(RECORD, cost=cost)])
    assert find(connection, ["req_1"])[0].cost == cost


def test_close_returns_when_all_is_written(tmp_path: Path, connection: sqlite3.Connection) -> None:
    records = numbered(5000)
    write(tmp_path, records)
    assert find(connection, [record.request_id for record in records]) == records


def test_records_that_come_together_are_written_together(
    tmp_path: Path, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    original = UsageWriter._insert

    def insert(self: UsageWriter, batch: Any) -> None:
        batches.append(len(batch))
        original(self, batch)

    monkeypatch.setattr(UsageWriter, "_insert", insert)
    writer = UsageWriter(tmp_path)
    connection.execute("BEGIN IMMEDIATE")  # the first batch waits for this, and the others for the first
    for record in numbered(1000):
        writer.record(record)
    connection.execute("COMMIT")
    writer.close()
    assert sum(batches) == 1000
    assert len(batches) <= 3


def test_many_threads_may_record(tmp_path: Path, connection: sqlite3.Connection) -> None:
    writer = UsageWriter(tmp_path)
    records = numbered(800)

    def record(part: list[UsageRecord]) -> None:
        for one in part:
            writer.record(one)

    threads = [threading.Thread(target=record, args=(records[at::8],)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert connection.execute("SELECT COUNT(*) FROM usage").fetchone() == (800,)


def test_a_locked_database_is_waited_for_and_nothing_is_written_twice(
    tmp_path: Path, connection: sqlite3.Connection
) -> None:
    writer = UsageWriter(tmp_path)
    connection.execute("BEGIN EXCLUSIVE")
    waits = threading.Event()
    monitor = _OnMessage("wait for the database", waits)
    logging.getLogger("meritorder.ledger.usage").addHandler(monitor)
    try:
        writer.record(RECORD)
        assert waits.wait(10)
        connection.execute("COMMIT")
        assert wait_for(connection, ["req_1"]) == [RECORD]
    finally:
        logging.getLogger("meritorder.ledger.usage").removeHandler(monitor)
        writer.close()
    assert find(connection, ["req_1"]) == [RECORD]


def test_a_database_that_stays_locked_at_the_end_is_given_up_and_reported(
    tmp_path: Path, connection: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    writer = UsageWriter(tmp_path, patience=0.2)
    connection.execute("BEGIN EXCLUSIVE")
    writer.record(RECORD)
    writer.close()
    connection.execute("ROLLBACK")
    assert "1 usage records are lost; what they said is in the log lines above" in caplog.text


def test_one_record_that_cannot_be_written_does_not_take_the_others_along(
    tmp_path: Path, connection: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    bad = replace(RECORD, request_id="req_bad", usage=Usage(2**70, 0))
    write(tmp_path, [*numbered(3), bad, replace(RECORD, request_id="req_last")])
    found = find(connection, ["req_0", "req_1", "req_2", "req_bad", "req_last"])
    assert [record.request_id for record in found] == ["req_0", "req_1", "req_2", "req_last"]
    assert "the usage record of req_bad cannot be written" in caplog.text


def test_a_request_id_may_come_twice(tmp_path: Path, connection: sqlite3.Connection) -> None:
    again = replace(RECORD, duration=9.0)
    write(tmp_path, [RECORD, again])
    assert find(connection, ["req_1"]) == [RECORD, again]


def test_records_are_found_in_the_order_asked_for(tmp_path: Path, connection: sqlite3.Connection) -> None:
    write(tmp_path, numbered(3))
    assert [record.request_id for record in find(connection, ["req_2", "none", "req_0"])] == ["req_2", "req_0"]


def test_waiting_for_a_record_that_never_comes_ends(connection: sqlite3.Connection) -> None:
    assert wait_for(connection, ["none"], timeout=0.1) == []


class _OnMessage(logging.Handler):
    def __init__(self, text: str, event: threading.Event) -> None:
        super().__init__()
        self._text, self._event = text, event

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._event.set()
