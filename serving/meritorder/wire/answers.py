"""Answers in OpenAI's format: what the ledger needs of them, and whether they are answers at all."""

from typing import Any

import msgspec

from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage
from meritorder.wire.sse import DONE, data_of


class MalformedAnswer(Exception):
    """The backend sent bytes that are no answer in OpenAI's format."""


class ErrorEvent(Exception):
    """The backend reported an error inside the stream. `status` is its HTTP status where it named one."""

    def __init__(self, status: int | None) -> None:
        super().__init__("the backend reported an error in the stream")
        self.status = status


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[_Choice] | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


class StreamReader:
    """Reads a stream event by event as it passes: usage, the end, and errors; the bytes stay as they are."""

    __slots__ = ("content_events", "done", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.done = False
        self.content_events = 0

    def read(self, event: bytes) -> bool:
        """Take in one event; True where it has nothing but usage, which only some clients ask for.

        Raises:
            MalformedAnswer: the event is no JSON object.
            ErrorEvent: the event is an error.
        """
        data = data_of(event)
        if data is None:
            return False
        if data == DONE:
            self.done = True
            return False
        answer = _decode(data)
        if answer.error is not None:
            raise ErrorEvent(_status_of(answer.error))
        if answer.choices:
            self.content_events += 1
        if answer.usage is not None:
            self.usage = _usage(answer.usage)
            return not answer.choices
        return False


def usage_of(body: bytes) -> Usage | None:
    """The usage that a whole answer reports, if any.

    Raises:
        MalformedAnswer: the body is no JSON object.
    """
    answer = _decode(body)
    return _usage(answer.usage) if answer.usage is not None else None


def estimate(request: InferenceRequest, content_events: int) -> Usage:
    """Usage where none was reported: four bytes of request a token, and a token per event of the answer.

    The first is OpenAI's rule of thumb for English text; the second is how engines stream.
    """
    return Usage(max(1, request.body_size // 4), content_events, estimated=True)


def _decode(data: bytes) -> _Answer:
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise MalformedAnswer from None


def _usage(usage: _Usage) -> Usage:
    prompt = max(0, usage.prompt_tokens or 0)
    details = usage.prompt_tokens_details
    cached = details.cached_tokens or 0 if details else 0
    return Usage(prompt, max(0, usage.completion_tokens or 0), min(max(0, cached), prompt))


def _status_of(error: Any) -> int | None:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None
