"""The write-ahead spool: usage records on this machine's disk, until the database has them.

    SPOOL_DIR/
      lock                      held while a folder is made or adopted
      HOLDER.x1y2z3/            of one process, which holds a lock on it for as long as it lives
        00000001.jsonl          a segment: one line per event, ["begin", {...}] or ["end", {...}]
      rejected.jsonl            lines that no database takes, for a person to look at

Lines are appended by plain writes and never synced: they outlive this process, however it ends, and not a power
failure in the last seconds. Where reading stopped is kept nowhere: a segment is removed when the database has all of
it, and what is read twice is stored once, because records have ids. A segment with a request that has begun and
not ended stays, since it may be all that will ever be known of it.
"""

import contextlib
import errno
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

import msgspec

from meritorder.core.usage import Outcome, UsageRecord
from meritorder.ledger.errors import StateError

log = logging.getLogger(__name__)

_CHUNK_BYTES = 256 * 1024
_REJECTED = "rejected.jsonl"

MOST_ENDED_ELSEWHERE = 100_000
"""Ids whose beginnings are looked for. Of one that is forgotten, the segment stays until the process ends."""


class Line(msgspec.Struct, array_like=True, frozen=True):
    """What is known of a request: at its `begin`, if nothing more is heard of it, or at its `end`."""

    event: Literal["begin", "end"]
    record: UsageRecord


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Line)


def encode(event: Literal["begin", "end"], record: UsageRecord) -> bytes:
    """Raises ValueError where the record holds what is no text."""
    return _ENCODER.encode(Line(event, record)) + b"\n"


class Claim:
    """A folder of the spool that is this process's until it is released, or until the process ends."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self.holder = unquote(folder.name.rpartition(".")[0])
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the next process have what is left in the folder; without anything in it, it is removed."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        os.close(self._descriptor)


def claim_new(spool_dir: Path, holder: str) -> Claim:
    """A new folder for the process that is known as `holder`.

    Raises:
        StateError: it cannot be made, or not be locked.
    """
    try:
        with _alone(spool_dir):
            claim = _claim(Path(tempfile.mkdtemp(prefix=f"{quote(holder, safe='')}.", dir=spool_dir)))
    except OSError as error:
        raise StateError(f"{spool_dir} cannot be used for the usage spool: {error.strerror}") from error
    if claim is None:
        raise StateError(f"{spool_dir} cannot be used for the usage spool: its file system has no locks")
    return claim


def claim_abandoned(spool_dir: Path) -> list[Claim]:
    """The folders of processes that have ended."""
    with _alone(spool_dir):
        claims = [_claim(folder) for folder in sorted(spool_dir.iterdir()) if folder.is_dir()]
    return [claim for claim in claims if claim is not None]


def reject(spool_dir: Path, line: bytes) -> None:
    """Put a line aside that cannot be stored, so that it is not lost and does not stop those after it."""
    try:
        with open(spool_dir / _REJECTED, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(line.rstrip(b"\n") + b"\n")
    except OSError as error:
        log.error("%s cannot be written (%s), so this is its only trace: %r", _REJECTED, error.strerror, line)


class SpoolWriter:
    """Appends lines to the segments of one folder. For one thread; `removed` is counted by the one that reads."""

    def __init__(self, folder: Path, segment_bytes: int, capacity_bytes: int) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self.capacity_bytes = capacity_bytes
        self._descriptor: int | None = None
        self._number = 0
        self._size = 0
        self.written = 0
        self.removed = 0

    @property
    def bytes_on_disk(self) -> int:
        return self.written - self.removed

    def append(self, line: bytes) -> None:
        """Write the line, whole or not at all.

        Raises:
            OSError: the disk does not take it, or the spool is as large as it may become.
        """
        if self.bytes_on_disk + len(line) > self.capacity_bytes:
            raise OSError(errno.ENOSPC, "the spool is as large as it may become")
        if self._descriptor is None or self._size >= self._segment_bytes:
            self._rotate()
        assert self._descriptor is not None
        count = os.write(self._descriptor, line)
        if count != len(line):
            self._cut_off()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += count
        self.written += count

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _rotate(self) -> None:
        path = self._folder / f"{self._number + 1:08}.jsonl"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self.close()
        self._descriptor, self._number, self._size = descriptor, self._number + 1, 0

    def _cut_off(self) -> None:
        """Take away the part of a line that was written. Where that fails, too, the segment ends with it."""
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self.close()


@dataclass(eq=False)
class _Segment:
    path: Path
    offset: int = 0
    complete: bool = False  # all of it has been read, and nothing will be added
    open: set[str] = field(default_factory=set)  # the ids of what began in it and has not been stored yet

    def next_lines(self) -> bytes:
        """Whole lines that have not been read yet; empty where there are none."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            chunk = file.read(_CHUNK_BYTES)
        end = chunk.rfind(b"\n") + 1
        if end == 0 and len(chunk) == _CHUNK_BYTES:
            end = len(chunk)  # no line of ours is as long: it is what a disk that failed left behind
        self.offset += end
        return chunk[:end]


class SpoolReader:
    """Reads the segments of one folder in their order, and removes those that have been stored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segments: dict[Path, _Segment] = {}
        self._open: dict[str, tuple[_Segment, UsageRecord]] = {}
        self._ended_elsewhere: dict[str, None] = {}  # in this order; their beginnings have not been read yet
        self._unsettled: list[UsageRecord] = []
        self.writer_ended = False
        self.removed = 0

    def read(self) -> list[UsageRecord]:
        """The next records that have ended; the same ones again until `settled` is called. Empty: none at present.

        Once `writer_ended` is set, these are followed by the requests that began and never ended, as failed.
        """
        if not self._unsettled:
            self._unsettled = self._read_ended()
            if not self._unsettled and self.writer_ended:
                self._unsettled = [_interrupted(begun) for _, begun in self._open.values()]
            if not self._unsettled:
                self._ended_elsewhere.clear()  # whatever they began with was written before they ended, and so is read
                self._remove()
        return self._unsettled

    def settled(self) -> None:
        """What was read last is stored."""
        for record in self._unsettled:
            self._forget(record.id)
        self._unsettled = []
        self._remove()

    def ended_elsewhere(self, records: Iterable[UsageRecord]) -> None:
        """These requests are stored, too, and what they began with here is not needed, even if it is yet to be read."""
        for record in records:
            self._forget(record.id)
            self._ended_elsewhere[record.id] = None
        while len(self._ended_elsewhere) > MOST_ENDED_ELSEWHERE:
            del self._ended_elsewhere[next(iter(self._ended_elsewhere))]

    @property
    def remembered(self) -> int:
        """How many ended elsewhere and may have a beginning here that has not been read yet."""
        return len(self._ended_elsewhere)

    def _forget(self, record_id: str) -> None:
        if record_id in self._open:
            segment, _ = self._open.pop(record_id)
            segment.open.discard(record_id)

    def _read_ended(self) -> list[UsageRecord]:
        # Listed before they are read: a segment that is not the last will not grow any more.
        paths = sorted(self._folder.glob("*.jsonl"))
        for path in paths:
            segment = self._segments.setdefault(path, _Segment(path))
            while not segment.complete and (lines := segment.next_lines()):
                if ended := list(self._ended(segment, lines)):
                    return ended
            if self.writer_ended or path is not paths[-1]:
                segment.complete = True
        return []

    def _ended(self, segment: _Segment, lines: bytes) -> Iterator[UsageRecord]:
        for text in lines.splitlines():
            try:
                line = _DECODER.decode(text)
            except (msgspec.DecodeError, ValueError) as error:
                log.error("a line of %s cannot be read (%s); it is kept in %s", segment.path, error, _REJECTED)
                reject(self._folder.parent, text)
                continue
            if line.event == "end":
                yield line.record
            elif line.record.id not in self._ended_elsewhere:
                self._forget(line.record.id)  # what it began with before is out of date
                segment.open.add(line.record.id)
                self._open[line.record.id] = segment, line.record

    def _remove(self) -> None:
        for segment in list(self._segments.values()):
            if segment.complete and not segment.open:
                segment.path.unlink(missing_ok=True)
                self.removed += segment.offset
                del self._segments[segment.path]


def _interrupted(begun: UsageRecord) -> UsageRecord:
    charges = tuple(replace(charge, usage=replace(charge.usage, estimated=True)) for charge in begun.charges)
    return replace(begun, outcome=Outcome.FAILED, charges=charges)


def _claim(folder: Path) -> Claim | None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # its process has just removed it, or it is another user's
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return Claim(folder, descriptor)


@contextlib.contextmanager
def _alone(spool_dir: Path) -> Iterator[None]:
    """Keep other processes from adopting a folder between its making and its locking."""
    spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(spool_dir / "lock", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
