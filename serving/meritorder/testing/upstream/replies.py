"""From a request to the reply it gets when nothing goes wrong."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from meritorder.testing.upstream.answers import answer
from meritorder.testing.upstream.behaviour import Behaviour
from meritorder.testing.upstream.parsing import (
    EmbeddingRequest,
    GenerationRequest,
    parse_chat,
    parse_completion,
    parse_embedding,
)
from meritorder.testing.upstream.rendering import (
    Tail,
    count_usage,
    embedding_body,
    event_prefix,
    event_tails,
    generation_body,
    head,
    models_body,
    usage_tail,
)
from meritorder.testing.upstream.script import Endpoint


@dataclass(frozen=True, slots=True)
class ModelsRequest:
    """Which models there are."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """What the reply's usage says, or would say if it had one."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class WholeReply:
    """An answer that is not streamed. It is due when the last of its tokens is."""

    body: bytes
    tokens: int = 1
    counted: Counted = Counted()


@dataclass(frozen=True, slots=True)
class StreamedReply:
    """A stream's events, without `[DONE]`; each is the prefix and a tail."""

    prefix: bytes
    tails: Iterable[Tail]
    counted: Counted


AnyRequest = GenerationRequest | EmbeddingRequest | ModelsRequest


def parse_request(endpoint: Endpoint, body: Any, models: tuple[str, ...]) -> AnyRequest:
    """Return what a request asks for.

    Raises:
        ApiError: 400, with the field in `param`.
    """
    match endpoint:
        case "chat":
            return parse_chat(body)
        case "completions":
            return parse_completion(body)
        case "embeddings":
            return parse_embedding(body)
        case "models":
            return ModelsRequest(models)


def make_reply(request: AnyRequest, behaviour: Behaviour, request_id: str, created: int) -> WholeReply | StreamedReply:
    """Return the reply; `created` is in seconds since 1970."""
    match request:
        case ModelsRequest(models):
            return WholeReply(models_body(models, behaviour.extra_fields))
        case EmbeddingRequest():
            counted = {"prompt_tokens": request.prompt_tokens, "total_tokens": request.prompt_tokens}
            usage = _usage(behaviour, counted)
            body = embedding_body(request, behaviour.extra_fields, usage)
            return WholeReply(body, counted=_counted(usage or counted))
        case GenerationRequest():
            fields = head(request, request_id, created, behaviour.extra_fields)
            return _generate(request, behaviour, fields)


def _generate(request: GenerationRequest, behaviour: Behaviour, fields: dict[str, Any]) -> WholeReply | StreamedReply:
    reply = answer(behaviour.text, behaviour.tokens, request.max_tokens)
    own = count_usage(request, reply)
    usage = _usage(behaviour, own)
    counted = _counted(usage or own)
    if not request.stream:
        return WholeReply(generation_body(request, fields, reply, usage), len(reply.tokens), counted)
    if usage is None or not request.include_usage:
        return StreamedReply(event_prefix(fields), event_tails(request, reply, null_usage=False), counted)
    tails = chain(event_tails(request, reply, null_usage=True), [usage_tail(usage)])
    return StreamedReply(event_prefix(fields), tails, counted)


def _usage(behaviour: Behaviour, counted: dict[str, Any]) -> dict[str, Any] | None:
    return counted if behaviour.usage == "counted" else behaviour.usage


def _counted(usage: Mapping[str, Any]) -> Counted:
    """What `usage` says; a script may have put anything in it."""
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    numbers = (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"))
    return Counted(*(number if isinstance(number, int) else 0 for number in numbers))
