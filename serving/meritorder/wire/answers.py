"""Answers in OpenAI's format: what the ledger needs of them, and whether they are answers at all.

Only what decides something is checked. Usage in a shape of its own, say, is no reason to break a stream that
the client can read well: it is estimated then.
"""

from typing import Any

import msgspec

from meritorder.core.catalog import Endpoint
from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage
from meritorder.wire.sse import DONE, data_of, is_silent


class MalformedAnswer(Exception):
    """The backend sent bytes that are no answer in OpenAI's format."""


class ErrorEvent(Exception):
    """The backend reported an error inside the stream. `status` is its HTTP status where it named one."""

    def __init__(self, status: int | None) -> None:
        super().__init__("the backend reported an error in the stream")
        self.status = status


class _Choice(msgspec.Struct):
    delta: Any = msgspec.UNSET
    text: Any = msgspec.UNSET


class _Answer(msgspec.Struct):
    usage: Any = None
    choices: list[_Choice] | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)

_MOST_TOKENS = 10**12
"""More than any answer has; a number beyond it is a fault, and would not fit into the database."""


_BYTES_PER_TOKEN = 4
"""OpenAI's rule of thumb for English text."""


class StreamReader:
    """Reads a stream event by event as it passes: usage, the end, and errors; the bytes stay as they are.

    `tokens` counts the events that say something. A stream opens with one that has nothing but a role, which
    OpenAI sends before the model has begun to think.
    """

    __slots__ = ("done", "tokens", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.done = False
        self.tokens = 0

    def read(self, event: bytes) -> bool:
        """Take in one event; True where it has nothing but usage, which only some clients ask for.

        Raises:
            MalformedAnswer: the event is none, or has data that is no JSON object.
            ErrorEvent: the event is an error.
        """
        data = data_of(event)
        if data is None:
            if not is_silent(event):
                raise MalformedAnswer
            return False
        if data == DONE:
            self.done = True
            return False
        answer = _decode(data)
        if answer.error is not None:
            raise ErrorEvent(_status_of(answer.error))
        self.tokens += any(_says_something(choice) for choice in answer.choices or ())
        if answer.usage is None:
            return False
        self.usage = _usage(answer.usage, generative=True) or self.usage
        return not answer.choices


def usage_of(endpoint: Endpoint, body: bytes) -> Usage | None:
    """The usage that a whole answer of `endpoint` reports, if any.

    Raises:
        MalformedAnswer: the body is no JSON object.
    """
    return _usage(_decode(body).usage, endpoint.generative)


def is_error(body: bytes) -> bool:
    """Whether `body` is an error that a client of OpenAI can read."""
    try:
        return _decode(body).error is not None
    except MalformedAnswer:
        return False


def estimate(request: InferenceRequest, tokens: int) -> Usage:
    """Usage where none was reported. `tokens` is the output: an event of a stream has one, as engines stream."""
    return Usage(max(1, request.body_size // _BYTES_PER_TOKEN), tokens, estimated=True)


def output_tokens_in(endpoint: Endpoint, body: bytes) -> int:
    """An estimate for a whole answer. What surrounds its text counts, too: rather too dear than free."""
    return max(1, len(body) // _BYTES_PER_TOKEN) if endpoint.generative else 0


def _decode(data: bytes) -> _Answer:
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise MalformedAnswer from None


def _says_something(choice: _Choice) -> bool:
    if isinstance(choice.delta, dict):
        return any(value for name, value in choice.delta.items() if name != "role")
    if choice.delta is choice.text is msgspec.UNSET:
        return True  # in a way that nobody here knows
    return bool(choice.text)


def _usage(usage: Any, generative: bool) -> Usage | None:
    """None where a count is missing that a bill rests on: an estimate is better than an exact zero."""
    if not isinstance(usage, dict):
        return None
    completion = usage.get("completion_tokens")
    if completion is None and not generative:
        completion = 0
    prompt = _count(usage.get("prompt_tokens"))
    output = _count(completion)
    if prompt is None or output is None:
        return None
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return Usage(prompt, output, min(cached or 0, prompt))


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _status_of(error: Any) -> int | None:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None
