"""Usage records: written by one thread, so that no request waits for a disk."""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from meritorder.core.usage import Outcome, Usage, UsageRecord
from meritorder.ledger.database import connect

log = logging.getLogger(__name__)

_COLUMNS = (
    "request_id, started_at, team, key_id, route, endpoint, backend, tier, attempts, outcome, status, input_tokens, "
    "cached_input_tokens, output_tokens, estimated, cost_usd, time_to_first_token, duration"
)
_RETRY_SECONDS = 0.5
_BUSY_MILLISECONDS = 1000
_STOP = None


class UsageWriter:
    """The only writer of usage. `record` never blocks; `close` returns when all is written.

    A database that is locked, or a disk that is full, is waited for: for ever while the program runs, and for
    `patience` seconds at its end.
    """

    def __init__(self, state_dir: Path, patience: float = 2.0) -> None:
        self._patience = patience
        self._db = connect(state_dir)
        self._db.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        self._queue: queue.SimpleQueue[UsageRecord | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._run, name="usage-writer", daemon=True)
        self._thread.start()

    def record(self, record: UsageRecord) -> None:
        self._queue.put(record)

    def close(self) -> None:
        self._deadline = time.monotonic() + self._patience
        self._closing.set()
        self._queue.put(_STOP)
        self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            batch, running = self._next_batch()
            self._write(batch)
        self._db.close()

    def _next_batch(self) -> tuple[list[UsageRecord], bool]:
        batch = []
        item = self._queue.get()
        while item is not _STOP:
            batch.append(item)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _write(self, batch: Sequence[UsageRecord]) -> None:
        while batch:
            try:
                self._insert(batch)
                return
            except sqlite3.OperationalError as error:
                log.error("%d usage records wait for the database: %s", len(batch), error)
                if not self._wait_to_retry():
                    log.error("%d usage records are lost; what they said is in the log lines above", len(batch))
                    return
            except Exception as error:
                # It is the records, then, and not the database. One of them must not take the others along.
                if len(batch) == 1:
                    log.error("the usage record of %s cannot be written: %s", batch[0].request_id, error)
                    return
                for record in batch:
                    self._write([record])
                return

    def _insert(self, batch: Sequence[UsageRecord]) -> None:
        rows = [_row(record) for record in batch]
        marks = ", ".join("?" * len(rows[0]))
        with self._db:  # all of them or none, so that trying again writes nothing twice
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(f"INSERT INTO usage ({_COLUMNS}) VALUES ({marks})", rows)

    def _wait_to_retry(self) -> bool:
        """Wait a little; False where there is no more time to try again."""
        self._closing.wait(_RETRY_SECONDS)
        if not self._closing.is_set():
            return True
        time.sleep(min(_RETRY_SECONDS, max(0.0, self._deadline - time.monotonic())))
        return time.monotonic() < self._deadline


def find(connection: sqlite3.Connection, request_ids: Iterable[str]) -> list[UsageRecord]:
    """The records of `request_ids` that have been written, in the order of the ids."""
    query = f"SELECT {_COLUMNS} FROM usage WHERE request_id = ? ORDER BY id"
    return [_record(row) for request_id in request_ids for row in connection.execute(query, (request_id,)).fetchall()]


def wait_for(connection: sqlite3.Connection, request_ids: Sequence[str], timeout: float = 5.0) -> list[UsageRecord]:
    """As `find`, but waits up to `timeout` seconds until all are there."""
    deadline = time.monotonic() + timeout
    while len(found := find(connection, request_ids)) < len(request_ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _row(record: UsageRecord) -> tuple[object, ...]:
    usage = record.usage
    return (
        record.request_id, record.started_at, record.team, record.key_id, record.route, record.endpoint,
        record.backend, record.tier, record.attempts, record.outcome.value, record.status, usage.input_tokens,
        usage.cached_input_tokens, usage.output_tokens, int(usage.estimated), format(record.cost, "f"),
        record.time_to_first_token, record.duration,
    )  # fmt: skip


def _record(row: tuple[Any, ...]) -> UsageRecord:
    (request_id, started_at, team, key_id, route, endpoint, backend, tier, attempts, outcome, status,
     given, cached, output, estimated, cost, ttft, duration) = row  # fmt: skip
    return UsageRecord(
        request_id=request_id,
        team=team,
        key_id=key_id,
        route=route,
        endpoint=endpoint,
        backend=backend,
        tier=tier,
        attempts=attempts,
        outcome=Outcome(outcome),
        status=status,
        usage=Usage(given, output, cached, bool(estimated)),
        cost=Decimal(cost),
        started_at=started_at,
        time_to_first_token=ttft,
        duration=duration,
    )
