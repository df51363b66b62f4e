"""Answers in OpenAI's format: what the ledger needs of them, and whether they are answers at all.

Only what decides something is checked. Usage in a shape of its own, say, is no reason to break a stream that
the client can read well: it is estimated then.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from meritorder.core.catalog import Endpoint
from meritorder.core.pricing import ServiceTier
from meritorder.core.request import InferenceRequest
from meritorder.core.tokens import estimated_tokens
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
    service_tier: Any = None


_decoder = msgspec.json.Decoder(_Answer)
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

_MOST_TOKENS = 10**12
"""More than any answer has; a number beyond it is a fault, and would not fit into the database."""

_MOST_TOKEN_BYTES = 16
"""Hardly any token of any tokenizer is longer, so an event of one token counts as one, and a longer one as several."""

_NOTHING: Mapping[str, Any] = {}
_SERVICE_TIERS = {tier.value: tier for tier in ServiceTier}


class StreamReader:
    """Reads a stream event by event as it passes: usage, the end, and errors; the bytes stay as they are.

    `tokens` is an estimate: each event that says something counts as one, or as one for every 16 bytes of text that it
    has, begun ones included, where those are more. A stream opens with an event that has nothing but a role, which
    OpenAI sends before the model has begun to think, and which counts as none. `service_tier` is the one that the
    request was served in, None where no event names one that is known.
    """

    __slots__ = ("done", "service_tier", "tokens", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.service_tier: ServiceTier | None = None
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
        self.tokens += _tokens_in(answer.choices or ())
        if answer.service_tier is not None:
            self.service_tier = _service_tier(answer) or self.service_tier
        if answer.usage is None:
            return False
        self.usage = _usage(answer.usage, generative=True) or self.usage
        return not answer.choices


def whole_answer(endpoint: Endpoint, body: bytes) -> tuple[Usage | None, ServiceTier | None]:
    """The usage that a whole answer of `endpoint` reports, and the service tier that it came from, if any.

    Raises:
        MalformedAnswer: the body is no JSON object.
    """
    answer = _decode(body)
    return _usage(answer.usage, endpoint.generative), _service_tier(answer)


def is_error(body: bytes) -> bool:
    """Whether a client can read in `body` why its request was rejected: a JSON object. OpenAI's has `error`, and
    that of others has what it has."""
    try:
        _object_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def estimate(request: InferenceRequest, tokens: int) -> Usage:
    """Usage where none was reported. `tokens` is the output, as `StreamReader` or `output_tokens_in` estimate it."""
    return Usage(estimated_tokens(request.text_bytes), tokens, estimated=True)


def output_tokens_in(endpoint: Endpoint, body: bytes) -> int:
    """An estimate for a whole answer. What surrounds its text counts, too: rather too dear than free."""
    return estimated_tokens(len(body)) if endpoint.generative else 0


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


def _tokens_in(choices: Sequence[_Choice]) -> int:
    if not any(map(_says_something, choices)):
        return 0
    return max(1, -(-sum(map(_text_bytes, choices)) // _MOST_TOKEN_BYTES))


def _text_bytes(choice: _Choice) -> int:
    delta = choice.delta
    if not isinstance(delta, dict):
        return _bytes(choice.text)
    size = _bytes(delta.get("content"))
    if size and len(delta) == 1:  # as in nearly all events
        return size
    size += _bytes(delta.get("reasoning_content") or delta.get("reasoning")) + _bytes(delta.get("refusal"))
    calls = delta.get("tool_calls")
    functions = [_dict(_dict(call).get("function")) for call in (calls if isinstance(calls, list) else ())]
    functions.append(_dict(delta.get("function_call")))
    return size + sum(_bytes(function.get("name")) + _bytes(function.get("arguments")) for function in functions)


def _bytes(text: Any) -> int:
    if not isinstance(text, str):
        return 0
    return len(text) if text.isascii() else len(text.encode())


def _service_tier(answer: _Answer) -> ServiceTier | None:
    said = answer.service_tier
    return _SERVICE_TIERS.get(said) if isinstance(said, str) else None


def _usage(usage: Any, generative: bool) -> Usage | None:
    """None where a count is missing that a bill rests on: an estimate is better than an exact zero.

    The newer spelling, `input_tokens`, is that of OpenAI's responses and of Anthropic.
    """
    if not isinstance(usage, dict):
        return None
    newer = "prompt_tokens" not in usage and "input_tokens" in usage
    given = _count(usage, "input_tokens" if newer else "prompt_tokens")
    made_name = "output_tokens" if newer else "completion_tokens"
    made = _count(usage, made_name)
    if made is None and not generative and usage.get(made_name) is None:
        made = 0
    if given is None or made is None:
        return None
    input_details = _dict(usage.get("input_tokens_details" if newer else "prompt_tokens_details"))
    output_details = _dict(usage.get("output_tokens_details" if newer else "completion_tokens_details"))
    reasoning = _count(output_details, "reasoning_tokens") or 0
    if reasoning and _count(usage, "total_tokens") == given + made + reasoning:
        made += reasoning  # xAI counts it beside the completion
    read = _first_count((input_details, "cached_tokens"), (usage, "cache_read_input_tokens"))
    written = _first_count(
        (input_details, "cache_write_tokens"),
        (input_details, "cache_creation_tokens"),  # LiteLLM
        (usage, "cache_creation_input_tokens"),
    )
    if newer and ("cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage):
        given += read + written  # Anthropic counts both beside the input
    # Parts that do not fit into the whole are cut, the cheapest first: rather too dear than free.
    audio_in, image_in, written, read = _within(
        given, _count(input_details, "audio_tokens"), _count(input_details, "image_tokens"), written, read
    )
    audio_out, image_out, reasoning = _within(
        made, _count(output_details, "audio_tokens"), _count(output_details, "image_tokens"), reasoning
    )
    return Usage(given, made, read, written, audio_in, image_in, reasoning, audio_out, image_out)


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _NOTHING


def _first_count(*places: tuple[Mapping[str, Any], str]) -> int:
    return next((count for fields, name in places if (count := _count(fields, name))), 0)


def _within(whole: int, *parts: int | None) -> list[int]:
    """The parts in their order, each as far as there is room left for it."""
    fitted = []
    for part in parts:
        fitted.append(min(part or 0, whole))
        whole -= fitted[-1]
    return fitted


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _status_of(error: Any) -> int | None:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None
