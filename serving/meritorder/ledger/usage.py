"""Usage records on their way into the database: exactly one per request, and no request waits for them.

`begin` and `end` append a line to the spool; a thread stores what the spool holds. So a database that is away costs
nothing but room on the disk, and a process that dies leaves its records to the next one on the same machine.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from meritorder.core.usage import UsageRecord
from meritorder.ledger.database import impatient, reason
from meritorder.ledger.records import find as find
from meritorder.ledger.records import store
from meritorder.ledger.records import wait_for as wait_for
from meritorder.ledger.spool import Claim, SpoolReader, SpoolWriter, claim_abandoned, claim_new, encode, reject

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 0.1
_RETRY_SECONDS = 0.5
_ADOPT_SECONDS = 10.0
_BUSY_SECONDS = 1.0
_BATCH = 500


class UsageLog:
    """The way of one process, the one known as `holder`, into the ledger.

    `begin`, `end` and `close` are for one thread, such as that of an event loop. `spool_dir` is on a local disk; the
    processes of a machine share it. Records that its disk refuses wait in memory. `patience` is how many seconds
    `close` waits for the database.
    """

    def __init__(
        self,
        engine: Engine,
        spool_dir: Path,
        holder: str,
        *,
        patience: float = 2.0,
        memory_records: int = 10_000,
        segment_bytes: int = 4 * 2**20,
        capacity_bytes: int = 2**30,
    ) -> None:
        self._engine = impatient(engine, _BUSY_SECONDS)
        self._spool_dir = spool_dir
        self._patience = patience
        self._memory_records = memory_records
        self._own = _Source(claim_new(spool_dir, holder))
        self._adopted: list[_Source] = []
        self._adopt_at = 0.0
        self._writer = SpoolWriter(self._own.claim.folder, segment_bytes, capacity_bytes)
        self._memory: deque[UsageRecord] = deque()
        self._ended = self._stored = 0  # each is written by one thread, so that neither needs a lock
        self._disk_error: str | None = None
        self._store_error: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage-log", daemon=True)
        self._thread.start()

    def begin(self, record: UsageRecord) -> None:
        """Say what is to be recorded if nothing more is heard of the request. Before its first byte leaves."""
        self._append("begin", record)

    def end(self, record: UsageRecord) -> None:
        """Record the request, in the place of what `begin` said if that was called."""
        self._append("end", record)

    @property
    def full(self) -> bool:
        """Whether new requests have to be refused: the disk takes nothing, and memory holds as many as it may.

        Requests that are already in flight still find room.
        """
        return len(self._memory) >= self._memory_records

    @property
    def waiting(self) -> int:
        """How many records of this process have ended and are not stored yet."""
        return self._ended - self._stored

    @property
    def spool_bytes(self) -> int:
        """What this process's records take up on the disk."""
        return self._writer.bytes_on_disk

    @property
    def last_error(self) -> str | None:
        """What keeps records from being stored, in a sentence; None: nothing."""
        return self._store_error or self._disk_error

    def close(self) -> None:
        """Return when all is stored; what the database has not taken in time stays in the spool for the next start."""
        self._writer.close()
        self._closing.set()
        self._thread.join()

    def _append(self, event: Literal["begin", "end"], record: UsageRecord) -> None:
        try:
            line = encode(event, record)
        except ValueError as error:
            log.error("a usage record cannot be written (%s): %r", error, record)
            return
        if self._closing.is_set():
            log.error("a usage record came after the end: %s", line.decode())
            return
        if event == "end":
            self._ended += 1
        try:
            self._writer.append(line)
            self._disk_error = None
        except OSError as error:
            if self._disk_error is None:
                self._disk_error = f"the usage spool {self._spool_dir} cannot be written: {error.strerror}"
                log.error("%s; records wait in memory", self._disk_error)
            if event == "end":
                self._memory.append(record)

    # --- The thread ---

    def _run(self) -> None:
        while not self._closing.wait(_INTERVAL_SECONDS if self._store_error is None else _RETRY_SECONDS):
            self._work()
        deadline = time.monotonic() + self._patience
        while not self._work() and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(_RETRY_SECONDS, left))
        self._leave()

    def _work(self) -> bool:
        """Store all that there is; False where it has to be tried again."""
        try:
            self._adopt()
            while self._store_some():
                pass
        except Exception as error:
            # Whatever it is, the thread has to go on, and the records are where they were.
            said = f"usage records cannot be stored: {reason(error)}"
            if said != self._store_error:
                log.error("%s; %d wait, and it is tried again", said, self.waiting, exc_info=not _of_database(error))
            self._store_error = said
            return False
        self._store_error = None
        return True

    def _adopt(self) -> None:
        if time.monotonic() < self._adopt_at or self._closing.is_set():
            return
        self._adopt_at = time.monotonic() + _ADOPT_SECONDS
        for claim in claim_abandoned(self._spool_dir):
            source = _Source(claim)
            source.reader.writer_ended = True
            self._adopted.append(source)
            log.info("the usage spool of %s, which has ended, is taken over", claim.holder)

    def _store_some(self) -> bool:
        """Store a batch of each source; False where there was nothing."""
        some = self._store_memory()
        for source in [self._own, *self._adopted]:
            records = source.reader.read()
            if records:
                self._store(source.claim.holder, records)
                source.reader.settled()
                self._stored += len(records) if source is self._own else 0
                some = True
            elif source is not self._own:
                source.claim.release()
                self._adopted.remove(source)
        self._writer.removed = self._own.reader.removed
        return some

    def _store_memory(self) -> bool:
        closing = self._closing.is_set()  # asked first: once it is set, nothing more comes into memory
        count = min(len(self._memory), _BATCH)
        records = [self._memory[at] for at in range(count)]  # others only ever append to it
        if records:
            self._store(self._own.claim.holder, records)
            self._own.reader.ended_elsewhere(records)
            for _ in records:
                self._memory.popleft()
            self._stored += count
        elif closing:
            self._own.reader.writer_ended = True  # what has begun now, and not ended, never will
        return bool(records)

    def _store(self, holder: str, records: Sequence[UsageRecord]) -> None:
        try:
            store(self._engine, holder, records)
        except Exception as error:
            if not _of_records(error):
                raise
            if len(records) == 1:
                log.error("a usage record cannot be stored (%s), and is put aside", reason(error))
                reject(self._spool_dir, encode("end", records[0]))
                return
            # One of them must not keep the others from being stored.
            middle = len(records) // 2
            self._store(holder, records[:middle])
            self._store(holder, records[middle:])

    def _leave(self) -> None:
        """Leave what is not stored to the next process."""
        self._writer.capacity_bytes = sys.maxsize  # too much on the disk is better than lost
        try:
            for record in self._memory:
                self._writer.append(encode("end", record))
        except OSError as error:
            log.error("usage records are lost: the database is away, and the disk refuses them (%s)", error.strerror)
            for record in self._memory:
                log.error("this usage record may be lost: %s", encode("end", record).decode())
        self._writer.close()
        if left := self.waiting:
            log.warning("%d usage records wait in %s for the next start", left, self._own.claim.folder)
        for source in [self._own, *self._adopted]:
            source.claim.release()


class _Source:
    """A folder of the spool, of this process or of one that has ended."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.reader = SpoolReader(claim.folder)


def _of_records(error: Exception) -> bool:
    """Whether the database is well and does not take what is in the records."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError)
    return isinstance(error, StatementError | ValueError | ArithmeticError)


def _of_database(error: Exception) -> bool:
    return isinstance(error, SQLAlchemyError)
