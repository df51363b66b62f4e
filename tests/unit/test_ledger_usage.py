"""The usage log: exactly one record per request, whatever happens to the database, the disk or the process."""

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Protocol

import msgspec
import pytest
from sqlalchemy import Engine, func, select

from meritorder.core.limits import Period
from meritorder.core.usage import Charge, Outcome, Usage, UsageRecord
from meritorder.ledger.database import exact_sum, insert, open_database, reading
from meritorder.ledger.schema import charges, leases, requests, spend
from meritorder.ledger.usage import UsageLog, find, wait_for

RECORD = UsageRecord(
    id="rec",
    request_id="req",
    team="demo",
    key_id="key_1",
    route="assistant",
    endpoint="chat/completions",
    backend="hosted/chat",
    tier="hosted",
    attempts=1,
    outcome=Outcome.COMPLETED,
    status=200,
    charges=(Charge("hosted/chat", "hosted", Usage(10, 20), Decimal("0.01")),),
    started_at=1_800_000_000.0,
    time_to_first_token=0.5,
    duration=1.5,
)
BEGUN = replace(
    RECORD,
    outcome=Outcome.DISCONNECTED,
    duration=0.5,
    charges=(Charge("hosted/chat", "hosted", Usage(10, 1), Decimal("0.002")),),
)
INTERRUPTED = replace(
    BEGUN,
    outcome=Outcome.FAILED,
    charges=(Charge("hosted/chat", "hosted", Usage(10, 1, estimated=True), Decimal("0.002")),),
)


class Server(Protocol):
    """That of the fixture `postgresql`."""

    def stop(self) -> None: ...
    def start(self) -> None: ...


def numbered(number: int, record: UsageRecord = RECORD) -> UsageRecord:
    return replace(record, id=f"rec_{number}", request_id=f"req_{number}")


def ids(count: int) -> list[str]:
    return [f"req_{number}" for number in range(count)]


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


# --- One record per request ---


def test_what_ended_is_stored_in_the_place_of_what_began(database: Engine, spool: Path) -> None:
    log = UsageLog(database, spool, "me")
    log.begin(BEGUN)
    log.end(RECORD)
    assert wait_for(database, ["req"]) == [RECORD]
    log.close()
    assert find(database, ["req"]) == [RECORD]


def test_a_request_that_never_began_is_recorded_too(database: Engine, spool: Path) -> None:
    log = UsageLog(database, spool, "me")
    log.end(RECORD)
    log.close()
    assert find(database, ["req"]) == [RECORD]


def test_one_that_has_not_ended_is_not_stored_before_the_log_is_closed(database: Engine, spool: Path) -> None:
    log = UsageLog(database, spool, "me")
    log.begin(numbered(0, BEGUN))
    log.end(numbered(1))
    assert wait_for(database, ["req_1"]) == [numbered(1)]
    assert find(database, ["req_0"]) == []
    log.close()
    assert find(database, ["req_0"]) == [numbered(0, INTERRUPTED)]


def test_close_returns_when_all_is_stored_and_leaves_nothing_on_the_disk(database: Engine, spool: Path) -> None:
    log = UsageLog(database, spool, "me", segment_bytes=10_000)
    records = [numbered(number) for number in range(3000)]
    for record in records:
        log.begin(replace(record, duration=0.0))
        log.end(record)
    log.close()
    assert find(database, ids(3000)) == records
    assert (log.waiting, log.spool_bytes, log.last_error, log.full) == (0, 0, None, False)
    assert [path.name for path in spool.iterdir()] == ["lock"]


def test_stored_segments_are_removed_while_the_process_goes_on(database: Engine, spool: Path) -> None:
    log = UsageLog(database, spool, "me", segment_bytes=10_000)
    for number in range(500):
        log.end(numbered(number))
    eventually(lambda: log.waiting == 0 and log.spool_bytes <= 2 * 10_000)
    log.close()


def test_the_lease_of_the_holder_is_lowered(database: Engine, spool: Path) -> None:
    row = {"scope": "team:demo", "resource": "usd", "amount": Decimal(1), "expires_at": 1e10}
    with database.begin() as connection:
        connection.execute(insert(connection, leases), [{**row, "holder": "me"}, {**row, "holder": "other"}])
    log = UsageLog(database, spool, "me")
    log.end(RECORD)
    log.close()
    with reading(database) as connection:
        found = connection.execute(select(leases.c.holder, leases.c.amount).order_by(leases.c.holder)).all()
    assert found == [("me", Decimal("0.99")), ("other", Decimal(1))]


@pytest.mark.parametrize(
    "bad",
    [replace(RECORD, request_id="bad\0"), replace(RECORD, charges=(replace(RECORD.charges[0], usage=Usage(2**70)),))],
    ids=["a text that PostgreSQL does not take", "a number that is none"],
)
def test_a_record_that_cannot_be_stored_is_put_aside_and_the_others_are_stored(
    database: Engine, spool: Path, bad: UsageRecord
) -> None:
    log = UsageLog(database, spool, "me")
    for number in range(5):
        log.end(numbered(number))
    log.end(replace(bad, id="bad"))
    log.end(numbered(5))
    log.close()
    assert find(database, ids(6)) == [numbered(number) for number in range(6)]
    rejected = spool / "rejected.jsonl"
    if database.dialect.name == "postgresql" or "bad" not in bad.request_id:  # a NUL is nothing special to SQLite
        assert rejected.read_text().count('"bad"') == 1
    else:
        assert len(find(database, ["bad\0"])) == 1


def test_one_that_cannot_even_be_written_is_told_in_the_log_and_hurts_nobody(
    database: Engine, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = UsageLog(database, spool, "me")
    log.end(replace(RECORD, request_id="\udcff"))
    log.end(RECORD)
    log.close()
    assert find(database, ["req"]) == [RECORD]
    assert "a usage record cannot be written" in caplog.text
    assert "\\udcff" in caplog.text


def test_one_that_comes_after_the_end_is_told_in_the_log(
    database: Engine, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = UsageLog(database, spool, "me")
    log.close()
    log.end(RECORD)
    assert "a usage record came after the end" in caplog.text
    assert '"request_id":"req"' in caplog.text


# --- A process that dies ---

BEGIN_AND_HANG = """
import sys
from pathlib import Path
import msgspec
from meritorder.core.usage import UsageRecord
from meritorder.ledger.database import open_database
from meritorder.ledger.usage import UsageLog

place, spool = sys.argv[1], Path(sys.argv[2])
log = UsageLog(open_database(place if "://" in place else Path(place)), spool, "the one that dies")
for line in sys.stdin:
    event, record = msgspec.json.decode(line, type=tuple[str, UsageRecord])
    (log.begin if event == "begin" else log.end)(record)
    print("done", flush=True)
"""


def test_a_process_that_is_killed_after_the_first_byte_leaves_exactly_one_record(
    database: Engine, database_place: Path | str, spool: Path
) -> None:

    dying = subprocess.Popen(
        [sys.executable, "-c", BEGIN_AND_HANG, str(database_place), str(spool)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert dying.stdin is not None
    assert dying.stdout is not None
    events = [("begin", numbered(0, BEGUN)), ("begin", numbered(1, BEGUN)), ("end", numbered(1)), ("end", numbered(2))]
    for event in events:
        dying.stdin.write(msgspec.json.encode(event) + b"\n")
        dying.stdin.flush()
        assert dying.stdout.readline() == b"done\n"
    first_look = UsageLog(database, spool, "beside it")  # it lives: its records are its own
    first_look.close()
    assert find(database, ["req_0"]) == []
    dying.send_signal(signal.SIGKILL)
    assert dying.wait(timeout=20) == -signal.SIGKILL
    dying.stdin.close()
    dying.stdout.close()

    after = UsageLog(database, spool, "the next start")
    expected = [numbered(0, INTERRUPTED), numbered(1), numbered(2)]
    assert wait_for(database, ids(3)) == expected
    after.close()
    again = UsageLog(database, spool, "the start after that")
    again.close()
    assert find(database, ids(3)) == expected
    assert _total(database) == Decimal("0.022")
    assert [path.name for path in spool.iterdir()] == ["lock"]


def test_a_process_that_dies_later_is_taken_over_by_one_that_is_there(
    database: Engine, database_place: Path | str, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meritorder.ledger.usage._ADOPT_SECONDS", 0.05)
    there = UsageLog(database, spool, "there")
    code = BEGIN_AND_HANG.replace('print("done", flush=True)', "import os; os._exit(9)")

    line = msgspec.json.encode(("begin", BEGUN)) + b"\n"
    done = subprocess.run([sys.executable, "-c", code, str(database_place), str(spool)], input=line, timeout=60)
    assert done.returncode == 9
    assert wait_for(database, ["req"]) == [INTERRUPTED]
    there.close()


# --- A database that is away ---


def test_a_server_that_stops_under_load_loses_nothing_and_gets_nothing_twice(
    postgresql: Server, database_url: str, spool: Path
) -> None:
    engine = open_database(database_url)
    log = UsageLog(engine, spool, "me", segment_bytes=50_000)
    count = 0

    def serve_until(condition: Callable[[], bool], at_least: int = 300) -> None:
        nonlocal count
        until, deadline = count + at_least, time.monotonic() + 30
        while count < until or not condition():
            log.begin(numbered(count, BEGUN))
            log.end(numbered(count))
            count += 1
            time.sleep(0.001)  # the load: up to a thousand requests in a second
            assert time.monotonic() < deadline

    serve_until(lambda: log.waiting < count)  # it is storing
    postgresql.stop()
    try:
        serve_until(lambda: log.last_error is not None)
        assert "usage records cannot be stored: " in str(log.last_error)
        assert log.waiting > 0
        assert not log.full
    finally:
        postgresql.start()
    serve_until(lambda: log.last_error is None)
    log.close()
    assert find(engine, ids(count)) == [numbered(number) for number in range(count)]
    assert _total(engine) == count * Decimal("0.01")
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(requests)).scalar() == count
        assert connection.execute(select(exact_sum(charges.c.cost_usd))).scalar() == count * Decimal("0.01")
    engine.dispose()


def test_a_locked_database_is_waited_for(tmp_path: Path, spool: Path) -> None:
    engine = open_database(tmp_path)
    log = UsageLog(engine, spool, "me")
    with engine.begin():  # SQLite has one writer at a time
        log.end(RECORD)
        eventually(lambda: log.last_error is not None)
        assert log.last_error == "usage records cannot be stored: database is locked"
        assert log.waiting == 1
    assert wait_for(engine, ["req"]) == [RECORD]
    eventually(lambda: log.last_error is None)
    log.close()
    engine.dispose()


def test_what_a_database_that_stays_away_has_not_taken_waits_for_the_next_start(
    tmp_path: Path, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_database(tmp_path)
    log = UsageLog(engine, spool, "me", patience=0.1)
    with engine.begin():
        log.begin(numbered(0, BEGUN))
        log.end(numbered(1))
        log.close()
    assert "1 usage records wait in " in caplog.text
    assert find(engine, ids(2)) == []
    log = UsageLog(engine, spool, "the next")
    assert wait_for(engine, ids(2)) == [numbered(0, INTERRUPTED), numbered(1)]
    log.close()
    engine.dispose()


# --- A disk that is full ---


def test_records_that_the_disk_refuses_wait_in_memory_and_are_stored_from_there(
    database: Engine, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = UsageLog(database, spool, "me", capacity_bytes=0)
    records = [numbered(number) for number in range(1200)]
    for record in records:
        log.begin(replace(record, duration=0.0))
        log.end(record)
    assert wait_for(database, ids(1200)) == records
    assert "the usage spool " in str(log.last_error)
    log.close()
    assert caplog.text.count("records wait in memory") == 1
    assert _total(database) == Decimal(12)


def test_the_log_is_full_when_the_disk_and_the_database_refuse_records_and_then_memory_is(
    tmp_path: Path, spool: Path
) -> None:
    engine = open_database(tmp_path)
    log = UsageLog(engine, spool, "me", capacity_bytes=1000, memory_records=3)
    with engine.begin():
        seen = []
        for number in range(8):  # one line finds room on the disk
            log.end(numbered(number))
            seen.append(log.full)
        assert seen == [False, False, False, True, True, True, True, True]
        assert log.waiting == 8  # and those in flight are not lost
    eventually(lambda: not log.full)
    assert wait_for(engine, ids(8)) == [numbered(number) for number in range(8)]
    log.close()
    engine.dispose()


def test_what_is_in_memory_at_the_end_goes_to_the_disk_if_that_takes_it_now(tmp_path: Path, spool: Path) -> None:
    engine = open_database(tmp_path)
    log = UsageLog(engine, spool, "me", capacity_bytes=1000, patience=0.1)
    with engine.begin():
        log.begin(numbered(0, BEGUN))  # on the disk, and its end is in memory
        for number in range(5):
            log.end(numbered(number))
        log.close()
    log = UsageLog(engine, spool, "the next")
    assert wait_for(engine, ids(5)) == [numbered(number) for number in range(5)]
    log.close()
    engine.dispose()


# --- Speed ---


def test_beginning_and_ending_a_request_costs_it_nearly_nothing(database: Engine, spool: Path) -> None:
    log = UsageLog(database, spool, "me")
    records = [numbered(number) for number in range(500)]
    took = []
    gc.disable()
    try:
        for record in records:
            before = time.perf_counter()
            log.begin(record)
            log.end(record)
            took.append(time.perf_counter() - before)
    finally:
        gc.enable()
    log.close()
    assert sorted(took)[len(took) // 2] < 100e-6  # about 15 microseconds on a quiet machine


def _total(engine: Engine) -> Decimal | None:
    of_team = (spend.c.scope == "team:demo") & (spend.c.period == Period.TOTAL.value)
    with reading(engine) as connection:
        return connection.execute(select(spend.c.usd).where(of_team)).scalar()
