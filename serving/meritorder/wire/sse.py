"""Server-sent events: cut a byte stream into whole events, and read the data of one.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import Iterator

DONE = b"[DONE]"


class EventSplitter:
    """Whole events out of chunks that end anywhere. An event keeps its bytes, blank line included."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes; what is left over waits for the next chunk."""
        data = self._pending + chunk if self._pending else chunk
        if b"\r" in data:
            return self._feed_with_returns(data)
        events = data.split(b"\n\n")
        self._pending = events.pop()
        return [event + b"\n\n" for event in events]

    @property
    def pending(self) -> bytes:
        """The beginning of an event whose end has not come."""
        return self._pending

    def _feed_with_returns(self, data: bytes) -> list[bytes]:
        events, start = [], 0
        for end in _blank_lines(data):
            events.append(data[start:end])
            start = end
        self._pending = data[start:]
        return events


def _blank_lines(data: bytes) -> Iterator[int]:
    """Where each event ends when lines may end in CR LF."""
    position = 0
    while True:
        ends = [(at, len(mark)) for mark in (b"\n\n", b"\r\n\r\n", b"\n\r\n") if (at := data.find(mark, position)) >= 0]
        if not ends:
            return
        at, length = min(ends)
        position = at + length
        yield position


def data_of(event: bytes) -> bytes | None:
    """The data of an event, its lines joined; None where it has none, as a comment that keeps a stream alive."""
    if event.startswith(b"data:") and event.find(b"\n") >= len(event.rstrip(b"\r\n")):
        return event[5:].strip()
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines).strip() if lines else None


def event(data: bytes) -> bytes:
    """One event with `data`, which must be a single line."""
    return b"data: " + data + b"\n\n"
