"""Server-sent events: a stream is cut into the same events however its bytes arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.wire import sse
from meritorder.wire.sse import EventSplitter, EventTooLong, data_of, is_silent

LINES = st.sampled_from(
    [b"data: {}", b"data:x", b"data", b": ping", b":", b"event: a", b"id: 1", b"\rdata: \r", b"\xff"]
)
NEWLINE = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A stream of lines, empty ones among them, that may end anywhere."""
    parts = draw(st.lists(st.tuples(LINES | st.just(b""), NEWLINE), max_size=20))
    return b"".join(line + end for line, end in parts) + draw(st.sampled_from([b"", b"data: cut", b"\r"]))


def split(*chunks: bytes) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.pending


@given(stream=streams(), data=st.data())
def test_any_chunking_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert split(*chunks) == split(stream)
    assert split(*(bytes([byte]) for byte in stream)) == split(stream)


@given(stream=streams())
def test_no_byte_is_lost_or_added(stream: bytes) -> None:
    events, pending = split(stream)
    assert b"".join(events) + pending == stream


@given(stream=streams())
def test_an_event_ends_at_its_first_empty_line(stream: bytes) -> None:
    events, pending = split(stream)
    for event in events:
        assert event.endswith((b"\n\n", b"\n\r\n"))
        assert b"\n\n" not in event[:-1]
        assert b"\n\r\n" not in event[:-1]
    assert b"\n\n" not in pending
    assert b"\n\r\n" not in pending


@pytest.mark.parametrize(
    ("stream", "events", "pending"),
    [
        (b"", [], b""),
        (b"data: a\n\n", [b"data: a\n\n"], b""),
        (b"data: a\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"], b""),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"data: a\r\n\r\n", b"data: b\r\n\r\n"], b""),
        (b"data: a\n\r\ndata: b\r\n\n", [b"data: a\n\r\n", b"data: b\r\n\n"], b""),
        (b": ping\n\ndata: a\n\n", [b": ping\n\n", b"data: a\n\n"], b""),
        (b"data: a\ndata: b\n\n", [b"data: a\ndata: b\n\n"], b""),
        (b"data: a\n", [], b"data: a\n"),
        (b"data: a\r\r", [], b"data: a\r\r"),
    ],
)
def test_events(stream: bytes, events: list[bytes], pending: bytes) -> None:
    assert split(stream) == (events, pending)


def test_an_event_without_an_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    splitter = EventSplitter()
    splitter.feed(b"x" * 100)
    with pytest.raises(EventTooLong):
        splitter.feed(b"x")


def test_a_long_stream_of_short_events_may_be_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    assert len(split(b"data: a\n\n" * 1000)[0]) == 1000


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}'),
        (b'data:{"a":1}\r\n\r\n', b'{"a":1}'),
        (b"data: [DONE]\n\n", b"[DONE]"),
        (b"data:\n\n", b""),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: x\ndata: a\nid: 1\n\n", b"a"),
        (b"\n\ndata: a\n\n", b"a"),
        (b": ping\n\n", None),
        (b"event: x\n\n", None),
        (b"\n\n", None),
        (b"xdata: a\n\n", None),
    ],
)
def test_data(event: bytes, data: bytes | None) -> None:
    assert data_of(event) == data


@pytest.mark.parametrize(
    ("event", "silent"),
    [
        (b": ping\n\n", True),
        (b":\r\n\r\n", True),
        (b"event: x\nid: 1\nretry: 5\n\n", True),
        (b"\n\n", True),
        (b"<html>\n\n", False),
        (b": ping\nHTTP/1.1 500\n\n", False),
    ],
)
def test_an_event_without_data_is_silent_or_none_at_all(event: bytes, silent: bool) -> None:
    assert is_silent(event) is silent


def test_an_event_that_is_made_is_an_event() -> None:
    assert split(sse.event(b'{"a":1}')) == ([b'data: {"a":1}\n\n'], b"")
