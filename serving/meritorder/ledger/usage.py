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
    "request_id, started_at, team, route, endpoint, backend, tier, attempts, outcome, status, input_tokens, "
    "cached_input_tokens, output_tokens, estimated, cost_usd, time_to_first_token, duration"
)
_RETRY_SECONDS = 1.0
_STOP = None


class UsageWriter:
    """The only writer of usage. `record` never blocks; `close` returns when all is written."""

    def __init__(self, state_dir: Path) -> None:
        self._db = connect(state_dir)
        self._queue: queue.SimpleQueue[UsageRecord | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage-writer", daemon=True)
        self._thread.start()

    def record(self, record: UsageRecord) -> None:
        self._queue.put(record)

    def close(self) -> None:
        self._closing.set()
        self._queue.put(_STOP)
        self._thread.join(timeout=10)

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
        rows = [_row(record) for record in batch]
        while rows:
            try:
                with self._db:
                    self._db.execute("BEGIN")
                    # A record that was written just before an error is not written twice.
                    marks = ", ".join("?" * len(rows[0]))
                    self._db.executemany(f"INSERT OR IGNORE INTO usage ({_COLUMNS}) VALUES ({marks})", rows)
                return
            except sqlite3.Error as error:
                log.error("usage records wait: %d cannot be written: %s", len(rows), error)
                if self._closing.wait(_RETRY_SECONDS):
                    log.error("usage records lost at exit: %d", len(rows))
                    return


def find(connection: sqlite3.Connection, request_ids: Iterable[str]) -> list[UsageRecord]:
    """The records of `request_ids` that have been written, in the order of the ids."""
    found = []
    for request_id in request_ids:
        row = connection.execute(f"SELECT {_COLUMNS} FROM usage WHERE request_id = ?", (request_id,)).fetchone()
        if row is not None:
            found.append(_record(row))
    return found


def wait_for(connection: sqlite3.Connection, request_ids: Sequence[str], timeout: float = 5.0) -> list[UsageRecord]:
    """As `find`, but waits up to `timeout` seconds until all are there."""
    deadline = time.monotonic() + timeout
    while len(found := find(connection, request_ids)) < len(request_ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _row(record: UsageRecord) -> tuple[object, ...]:
    usage = record.usage
    return (
        record.request_id, record.started_at, record.team, record.route, record.endpoint, record.backend,
        record.tier, record.attempts, record.outcome.value, record.status, usage.input_tokens,
        usage.cached_input_tokens, usage.output_tokens, int(usage.estimated), format(record.cost, "f"),
        record.time_to_first_token, record.duration,
    )  # fmt: skip


def _record(row: tuple[Any, ...]) -> UsageRecord:
    (request_id, started_at, team, route, endpoint, backend, tier, attempts, outcome, status,
     given, cached, output, estimated, cost, ttft, duration) = row  # fmt: skip
    return UsageRecord(
        request_id=request_id,
        team=team,
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
