"""Server-sent events: cut a byte stream into whole events, and read the data of one.

A line may end in LF or CR LF. The standard's third form, a CR alone, is not taken for an end of line: no
backend sends it, and whether a CR is alone cannot be known before the next chunk.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re

DONE = b"[DONE]"

MAX_EVENT_BYTES = 32 * 1024 * 1024
"""An image in base64 fits; a backend that never ends its event does not fill the memory."""

_EMPTY_LINE = re.compile(rb"\n\r?\n")


class EventTooLong(ValueError):
    """An event is longer than MAX_EVENT_BYTES."""


class EventSplitter:
    """Whole events out of chunks that end anywhere. An event keeps its bytes, the empty line included."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes; what is left over waits for the next chunk.

        Raises:
            EventTooLong: there is no end to an event.
        """
        data: bytes | bytearray = chunk
        searched = 0
        if self._pending:
            # Grown in place and searched once, or a long event in small chunks takes quadratic time.
            searched = max(0, len(self._pending) - 2)
            self._pending += chunk
            data = self._pending
        events, start = [], 0
        for empty_line in _EMPTY_LINE.finditer(data, searched):
            events.append(bytes(data[start : empty_line.end()]))
            start = empty_line.end()
        if start or data is chunk:
            self._pending = bytearray(data[start:])
        if len(self._pending) > MAX_EVENT_BYTES:
            raise EventTooLong
        return events

    @property
    def pending(self) -> bytes:
        """The beginning of an event whose end has not come."""
        return bytes(self._pending)


def data_of(event: bytes) -> bytes | None:
    """The data of an event, its lines joined; None where it has none, as a comment that keeps a stream alive."""
    if event.startswith(b"data:") and event.find(b"\n") >= len(event.rstrip(b"\r\n")):
        return event[5:].strip()  # one line, as nearly all are
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines).strip() if lines else None


def is_silent(event: bytes) -> bool:
    """Whether an event without data is one: comments and the other fields of the standard, and nothing else."""
    return all(not line or line.startswith((b":", b"event:", b"id:", b"retry:")) for line in event.splitlines())


def event(data: bytes) -> bytes:
    """One event with `data`, which must be a single line."""
    return b"data: " + data + b"\n\n"
