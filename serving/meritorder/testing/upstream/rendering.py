"""Answers as bytes in OpenAI's wire format.

An event of a stream is a prefix, which differs per request (id, time, model), and a tail, which depends on
its token alone. Tails are kept, so that a load test measures its target and not this server.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from meritorder.testing.upstream.answers import Answer, FinishReason, vector_json
from meritorder.testing.upstream.parsing import EmbeddingRequest, GenerationEndpoint, GenerationRequest

FINGERPRINT = "fp_simulated"
DONE = b"data: [DONE]\n\n"
# Neither a line of SSE, nor JSON where SSE is expected to carry it, nor UTF-8.
MALFORMED = b'\xff\xfe{"simulated": malformed\n\ndata: {"choices": [\xff\n\n'

_OBJECTS = {
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
    ("completions", False): "text_completion",
    ("completions", True): "text_completion",
}


@dataclass(frozen=True, slots=True)
class Tail:
    """The part of an event that does not depend on the request."""

    data: bytes
    new_token: bool
    """Whether the event begins a token other than the first, and so is due one inter-token time later."""
    tokens: int = 0
    """How many tokens of the answer are in it."""


def head(request: GenerationRequest, request_id: str, created: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a whole answer and each of its chunks begin with."""
    return {
        "id": f"{'chatcmpl' if request.endpoint == 'chat' else 'cmpl'}-{request_id}",
        "object": _OBJECTS[request.endpoint, request.stream],
        "created": created,
        "model": request.model,
        "system_fingerprint": FINGERPRINT,
        **extra,
    }


def count_usage(request: GenerationRequest, answer: Answer) -> dict[str, Any]:
    """Return the usage object for an answer that is sent whole."""
    completion_tokens = len(answer.tokens) * request.choices
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": request.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def generation_body(
    request: GenerationRequest, fields: dict[str, Any], answer: Answer, usage: Mapping[str, Any] | None
) -> bytes:
    """Return the body of an answer that is not streamed."""
    choice: dict[str, Any] = {"logprobs": None, "finish_reason": answer.finish_reason}
    if request.endpoint == "chat":
        choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
    else:
        choice["text"] = answer.text
    body = {**fields, "choices": [{"index": i, **choice} for i in range(request.choices)]}
    if usage is not None:
        body["usage"] = usage
    return _encode(_to_json(body))


def event_prefix(fields: dict[str, Any]) -> bytes:
    """Return what each event of one stream begins with; a tail completes it."""
    return _encode(f"data: {_to_json(fields)[:-1]},")


def event_tails(request: GenerationRequest, answer: Answer, null_usage: bool) -> Iterator[Tail]:
    """Give the tails of a stream's events, without the one that holds the usage.

    With `null_usage` each says `"usage": null`, as all of a stream do for which usage was requested.
    """
    endpoint, choices = request.endpoint, range(request.choices)
    if endpoint == "chat":
        for index in choices:
            yield Tail(_role_tail(index, null_usage), new_token=False)
    for number, text in enumerate(answer.tokens):
        for index in choices:
            yield Tail(_text_tail(endpoint, text, index, null_usage), number > 0 and index == 0, tokens=1)
    for index in choices:
        yield Tail(_finish_tail(endpoint, answer.finish_reason, index, null_usage), new_token=False)


def usage_tail(usage: Mapping[str, Any]) -> Tail:
    """Return the tail of the last event of a stream, which has usage and no choice."""
    return Tail(_tail({"choices": [], "usage": usage}), new_token=False)


def embedding_body(request: EmbeddingRequest, extra: Mapping[str, Any], usage: Mapping[str, Any] | None) -> bytes:
    """Return the body of an embeddings answer."""
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":'
        f"{vector_json(text, request.dimensions, request.as_base64)}}}"
        for index, text in enumerate(request.inputs)
    )
    fields = {"object": "list", "model": request.model, **extra}
    if usage is not None:
        fields["usage"] = usage
    return _encode(f'{_to_json(fields)[:-1]},"data":[{data}]}}')


def models_body(models: tuple[str, ...], extra: Mapping[str, Any]) -> bytes:
    """Return the list of models."""
    data = [{"id": model, "object": "model", "created": 0, "owned_by": "simulated"} for model in models]
    return _encode(_to_json({"object": "list", "data": data, **extra}))


def _role_tail(index: int, null_usage: bool) -> bytes:
    delta = {"delta": {"role": "assistant", "content": "", "refusal": None}}
    return _choice_tail(delta, None, index, null_usage)


@lru_cache(maxsize=4096)
def _text_tail(endpoint: GenerationEndpoint, text: str, index: int, null_usage: bool) -> bytes:
    delta = {"delta": {"content": text}} if endpoint == "chat" else {"text": text}
    return _choice_tail(delta, None, index, null_usage)


def _finish_tail(endpoint: GenerationEndpoint, reason: FinishReason, index: int, null_usage: bool) -> bytes:
    delta: dict[str, Any] = {"delta": {}} if endpoint == "chat" else {"text": ""}
    return _choice_tail(delta, reason, index, null_usage)


def _choice_tail(delta: Mapping[str, Any], reason: FinishReason | None, index: int, null_usage: bool) -> bytes:
    choice = {"index": index, **delta, "logprobs": None, "finish_reason": reason}
    return _tail({"choices": [choice], **({"usage": None} if null_usage else {})})


def _tail(fields: Mapping[str, Any]) -> bytes:
    return _encode(f"{_to_json(fields)[1:]}\n\n")


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _encode(json_text: str) -> bytes:
    """Encode as raw UTF-8, as OpenAI does. A lone surrogate, which UTF-8 lacks, becomes its JSON escape."""
    return json_text.encode("utf-8", "backslashreplace")
