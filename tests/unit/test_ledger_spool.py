"""The spool: whatever its end, each request that was written is read, and exactly one record comes of it."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from meritorder.core.usage import Charge, Outcome, Usage, UsageRecord
from meritorder.ledger.errors import StateError
from meritorder.ledger.records import find, store
from meritorder.ledger.schema import charges, requests, spend
from meritorder.ledger.spool import (
    MOST_ENDED_ELSEWHERE,
    SpoolReader,
    SpoolWriter,
    claim_abandoned,
    claim_new,
    encode,
)

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
    outcome=Outcome.DISCONNECTED,
    status=200,
    charges=(Charge("hosted/chat", "hosted", Usage(10), Decimal("0.01")),),
    started_at=1_800_000_000.0,
    time_to_first_token=0.5,
    duration=0.5,
)
EVERYTHING = 1 << 30


def begun(number: int) -> UsageRecord:
    return replace(RECORD, id=f"rec_{number}", request_id=f"req_{number}")


def ended(number: int) -> UsageRecord:
    charge = Charge("hosted/chat", "hosted", Usage(10, number), Decimal("0.01") * (number + 1))
    return replace(begun(number), outcome=Outcome.COMPLETED, charges=(charge,), duration=2.0)


def interrupted(number: int) -> UsageRecord:
    charge = Charge("hosted/chat", "hosted", Usage(10, estimated=True), Decimal("0.01"))
    return replace(begun(number), outcome=Outcome.FAILED, charges=(charge,))


def write(folder: Path, lines: Iterable[bytes], segment_bytes: int = 4096, capacity_bytes: int = EVERYTHING) -> None:
    with closing(SpoolWriter(folder, segment_bytes, capacity_bytes)) as writer:
        for line in lines:
            writer.append(line)


def read_all(folder: Path, *, ended: bool = True) -> list[UsageRecord]:
    reader = SpoolReader(folder)
    reader.writer_ended = ended
    found = []
    while records := reader.read():
        found += records
        reader.settled()
    return found


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- Segments ---


def test_what_was_written_is_read_in_order_and_then_removed(tmp_path: Path) -> None:
    records = [ended(number) for number in range(2000)]
    write(tmp_path, (encode("end", record) for record in records))
    assert len(segments(tmp_path)) > 10
    assert read_all(tmp_path) == records
    assert segments(tmp_path) == []


def test_a_segment_stays_while_a_request_that_began_in_it_has_not_ended(tmp_path: Path) -> None:
    writer, reader = SpoolWriter(tmp_path, 1, EVERYTHING), SpoolReader(tmp_path)
    for line in (encode("begin", begun(1)), encode("begin", begun(2)), encode("end", ended(2))):
        writer.append(line)  # each in a segment of its own
    assert reader.read() == [ended(2)]
    reader.settled()
    assert reader.read() == []
    assert segments(tmp_path) == ["00000001.jsonl", "00000003.jsonl"]
    writer.append(encode("end", ended(1)))
    assert reader.read() == [ended(1)]
    reader.settled()
    assert reader.read() == []
    assert segments(tmp_path) == ["00000004.jsonl"]  # the one that is being written
    assert reader.removed == writer.written - len(encode("end", ended(1)))
    writer.close()


def test_records_come_again_until_they_are_settled(tmp_path: Path) -> None:
    write(tmp_path, [encode("end", ended(1))])
    reader = SpoolReader(tmp_path)
    assert reader.read() == reader.read() == [ended(1)]
    reader.settled()
    assert reader.read() == []


def test_a_request_that_ended_elsewhere_is_not_taken_for_an_interrupted_one(tmp_path: Path) -> None:
    write(tmp_path, [encode("begin", begun(1)), encode("begin", begun(2))])
    reader = SpoolReader(tmp_path)
    assert reader.read() == []
    reader.ended_elsewhere([ended(1)])
    reader.writer_ended = True
    assert reader.read() == [interrupted(2)]


def test_nor_is_one_whose_end_is_known_before_its_beginning_is_read(tmp_path: Path) -> None:
    write(tmp_path, [encode("begin", begun(1)), encode("begin", begun(1)), encode("begin", begun(2))], segment_bytes=1)
    reader = SpoolReader(tmp_path)
    reader.ended_elsewhere([ended(1)])
    assert reader.read() == []
    reader.writer_ended = True
    assert reader.read() == [interrupted(2)]
    assert segments(tmp_path) == ["00000003.jsonl"]


def test_ends_whose_beginnings_were_never_written_are_not_kept_for_ever(tmp_path: Path) -> None:
    write(tmp_path, [encode("end", ended(1))])
    reader = SpoolReader(tmp_path)
    reader.ended_elsewhere(begun(number) for number in range(MOST_ENDED_ELSEWHERE + 5))
    assert reader.remembered == MOST_ENDED_ELSEWHERE
    reader.read()
    reader.settled()
    assert reader.read() == []  # all that was there is read
    assert reader.remembered == 0


def test_what_was_known_last_counts_where_a_request_began_twice(tmp_path: Path) -> None:
    write(tmp_path, [encode("begin", replace(begun(1), duration=0.0)), encode("begin", begun(1))], segment_bytes=1)
    assert read_all(tmp_path) == [interrupted(1)]
    assert segments(tmp_path) == []


@pytest.mark.parametrize(
    "rubbish", [b"\n", b"{}\n", b'["end",{}]\n', b"\0" * 5000 + b"\n", b"\xff\xfe\n", b"\0" * 600_000 + b"\n"]
)
def test_lines_that_a_failing_disk_left_behind_are_put_aside(tmp_path: Path, rubbish: bytes) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "00000001.jsonl").write_bytes(encode("end", ended(1)) + rubbish + encode("end", ended(2)))
    assert read_all(folder) == [ended(1), ended(2)]
    assert (tmp_path / "rejected.jsonl").read_bytes().replace(b"\n", b"") == rubbish.replace(b"\n", b"")
    assert stat.S_IMODE((tmp_path / "rejected.jsonl").stat().st_mode) == 0o600


def test_a_line_that_is_not_whole_yet_is_read_when_it_is(tmp_path: Path) -> None:
    file, line, reader = tmp_path / "00000001.jsonl", encode("end", ended(1)), SpoolReader(tmp_path)
    file.write_bytes(line[:20])
    assert reader.read() == []
    file.write_bytes(line)
    assert reader.read() == [ended(1)]


def test_a_spool_that_is_as_large_as_it_may_become_refuses_lines_until_some_are_removed(tmp_path: Path) -> None:
    line = encode("end", ended(1))
    writer, reader = SpoolWriter(tmp_path, 1, 2 * len(line)), SpoolReader(tmp_path)
    writer.append(line)
    writer.append(line)
    with pytest.raises(OSError, match="as large as it may become"):
        writer.append(line)
    while reader.read():
        reader.settled()
    writer.removed = reader.removed
    writer.append(line)
    writer.close()


FILL_A_DISK = """
import os, resource, sys
from pathlib import Path
from meritorder.ledger.spool import SpoolWriter

line = b"x" * 99 + b"\\n"
resource.setrlimit(resource.RLIMIT_FSIZE, (1050, 1050))  # ten lines and a half
writer = SpoolWriter(Path(sys.argv[1]), 1 << 20, 1 << 30)
for number in range(15):
    try:
        writer.append(line)
    except OSError as error:
        print(number)
"""


def test_a_disk_that_is_full_in_the_middle_of_a_line_has_none_of_it(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-c", FILL_A_DISK, str(tmp_path)], stdout=subprocess.PIPE, timeout=60)
    assert told.stdout.split() == [b"10", b"11", b"12", b"13", b"14"]
    assert (tmp_path / "00000001.jsonl").read_bytes() == (b"x" * 99 + b"\n") * 10


# --- Who reads whose ---


def test_the_folder_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    mine = claim_new(tmp_path, "me")
    other = claim_new(tmp_path, "me")
    assert claim_abandoned(tmp_path) == []
    write(mine.folder, [encode("end", ended(1))])
    mine.release()
    other.release()
    [left] = claim_abandoned(tmp_path)  # the other was empty
    assert (left.folder, left.holder) == (mine.folder, "me")
    assert claim_abandoned(tmp_path) == []
    left.release()


@pytest.mark.parametrize("holder", ["ingress-5d4f.x", "with/slash", "ü", "..", "%2F", ""])
def test_a_holder_may_have_any_name(tmp_path: Path, holder: str) -> None:
    claim = claim_new(tmp_path / "spool", holder)
    assert claim.holder == holder
    assert claim.folder.parent == tmp_path / "spool"
    assert stat.S_IMODE(claim.folder.stat().st_mode) == stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    claim.release()
    assert not claim.folder.exists()


def test_a_spool_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file cannot be used for the usage spool: "):
        claim_new(tmp_path / "file", "me")


# --- Whatever happens ---


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_each_request_is_recorded_once_wherever_the_writing_and_the_reading_stopped(
    database: Engine, data: st.DataObject
) -> None:
    """The writer writes, and its reader stores some of it; both die, and the end of the bytes may be missing. Then
    readers follow that die, too, until one comes to the end."""
    _empty(database)
    events = data.draw(_events())
    lines = [encode("begin", begun(number)) if event == "begin" else encode("end", ended(number))
             for event, number in events]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "spool"
        folder.mkdir()
        stored = _write_and_store_some(database, folder, lines, data)
        before = _lines_in(folder)
        _lose_the_end(folder, data)
        lost = before - _lines_in(folder)
        for _ in range(data.draw(st.integers(0, 3))):
            _store(database, folder, data.draw(st.integers(0, 3)), data.draw(st.booleans()))
        _store(database, folder, EVERYTHING, True)
        assert segments(folder) == []

    known = [event for event, line in zip(events, lines, strict=True) if line not in lost]
    expected = {number: interrupted(number) for event, number in known if event == "begin"}
    expected |= {number: ended(number) for event, number in known if event == "end"}
    expected |= {number: ended(number) for number in stored}
    assert find(database, [f"req_{number}" for number in range(10)]) == [expected[at] for at in sorted(expected)]


def _lines_in(folder: Path) -> set[bytes]:
    return {text + b"\n" for file in folder.iterdir() for text in file.read_bytes().split(b"\n")[:-1]}


@st.composite
def _events(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Begins and ends of up to ten requests in any order, but no end before its begin; some never begin or end."""
    events: list[tuple[str, int]] = []
    for number in range(draw(st.integers(0, 10))):
        parts = draw(st.sampled_from([("begin", "end"), ("begin", "end"), ("begin",), ("end",)]))
        at = 0
        for part in parts:
            at = draw(st.integers(at, len(events)))
            events.insert(at, (part, number))
            at += 1
    return events


def _write_and_store_some(database: Engine, folder: Path, lines: list[bytes], data: st.DataObject) -> set[int]:
    """Write all lines, and let a reader beside the writer store what there is at some moments."""
    reader = SpoolReader(folder)
    stored: set[int] = set()
    with closing(SpoolWriter(folder, data.draw(st.sampled_from([1, 900, 1 << 20])), EVERYTHING)) as writer:
        for line in lines:
            writer.append(line)
            if data.draw(st.integers(0, 3)) == 0 and (records := reader.read()):
                store(database, "me", records)
                reader.settled()
                stored |= {int(record.request_id.removeprefix("req_")) for record in records}
    return stored


def _lose_the_end(folder: Path, data: st.DataObject) -> None:
    """Cut what is in the spool at any byte; the last segments may be gone altogether."""
    paths = sorted(folder.iterdir())
    if data.draw(st.booleans()) and paths:
        for path in paths[1 + data.draw(st.integers(0, len(paths) - 1)) :]:
            path.unlink()
        last = sorted(folder.iterdir())[-1]
        os.truncate(last, data.draw(st.integers(0, last.stat().st_size)))


def _store(database: Engine, folder: Path, batches: int, last_is_settled: bool) -> None:
    """Store some batches of what is left, and die before or after the last of them is settled."""
    reader = SpoolReader(folder)
    reader.writer_ended = True
    for at in range(batches):
        if not (records := reader.read()):
            return
        store(database, "me", records)
        if last_is_settled or at < batches - 1:
            reader.settled()


def _empty(database: Engine) -> None:
    with database.begin() as connection:
        for table in (requests, charges, spend):
            connection.execute(delete(table))
