"""Requests in OpenAI's format: read the fields that dispatch needs, keep the rest as bytes.

Source: OpenAI's API reference, https://platform.openai.com/docs/api-reference.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from meritorder.core.catalog import Endpoint
from meritorder.core.errors import InvalidRequest
from meritorder.core.pricing import ServiceTier
from meritorder.core.request import InferenceRequest
from meritorder.wire import overrides
from meritorder.wire.prompts import Prompt, is_given, of_messages, of_texts, prefix_hashes
from meritorder.wire.validation import invalid_field, plain

_NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]
"""OpenAI's bound on `n`. Each choice is reserved for, so without one a single request could reserve everything."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Request(msgspec.Struct):
    model: _NonEmpty
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: _Choices | None = None

    service_tier: Any = None
    user: Any = None


_ABSENT = msgspec.Raw(b"")


class _Message(msgspec.Struct):
    role: _NonEmpty
    content: str | list[Any] | None = None
    name: msgspec.Raw = _ABSENT
    tool_calls: msgspec.Raw = _ABSENT
    function_call: msgspec.Raw = _ABSENT
    reasoning: msgspec.Raw = _ABSENT
    reasoning_content: msgspec.Raw = _ABSENT
    refusal: msgspec.Raw = _ABSENT

    def beside_content(self) -> tuple[msgspec.Raw, ...]:
        return self.name, self.tool_calls, self.function_call, self.reasoning, self.reasoning_content, self.refusal


class _ChatRequest(_Request, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def prompt_and_choices(self) -> tuple[Prompt, int]:
        return of_messages(self.messages), self.n or 1

    @property
    def output_limit(self) -> int | None:
        # Where both are given, which one counts is the backend's affair.
        given = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return max(given, default=None)


class _CompletionRequest(_Request, kw_only=True):
    prompt: str | list[Any]
    best_of: _Choices | None = None

    def prompt_and_choices(self) -> tuple[Prompt, int]:
        prompt, number = of_texts(self.prompt)
        return prompt, number * max(self.n or 1, self.best_of or 1)

    @property
    def output_limit(self) -> int | None:
        return _DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class _EmbeddingRequest(msgspec.Struct, kw_only=True):
    model: _NonEmpty
    input: str | list[Any]
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: Any = None

    def prompt_and_choices(self) -> tuple[Prompt, int]:
        return of_texts(self.input)[0], 1

    @property
    def output_limit(self) -> int | None:
        return 0


_DECODERS: dict[Endpoint, msgspec.json.Decoder[Any]] = {
    Endpoint.CHAT_COMPLETIONS: msgspec.json.Decoder(_ChatRequest),
    Endpoint.COMPLETIONS: msgspec.json.Decoder(_CompletionRequest),
    Endpoint.EMBEDDINGS: msgspec.json.Decoder(_EmbeddingRequest),
}
_DEFAULT_COMPLETION_TOKENS = 16
"""Of the completions endpoint. Source: https://platform.openai.com/docs/api-reference/completions/create"""

_BEGINNING = ("tools", "messages", "prompt", "input")
"""The fields that a prompt is made of, in the order in which models are given them."""

_SHAPING = ("tools", "functions", "response_format", "prediction")
"""The fields that are given to models beside the prompt."""

_SERVICE_TIERS = {tier.value: tier for tier in ServiceTier}
_NO_HEADERS: Mapping[bytes, bytes] = {}
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.encode


def parse_request(
    request_id: str, endpoint: Endpoint, body: bytes, headers: Mapping[bytes, bytes] = _NO_HEADERS
) -> InferenceRequest:
    """Read a request body, and those of its `headers` that say where it may go.

    Raises:
        InvalidRequest: the body is not JSON, or a field is missing or of the wrong type; `param` names it.
    """
    try:
        parsed = _DECODERS[endpoint].decode(body)
        fields = _raw_fields.decode(body)
    except msgspec.ValidationError as error:
        raise invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {_detail(error, body)}.", code="invalid_json") from None
    stream = bool(getattr(parsed, "stream", False))
    options = getattr(parsed, "stream_options", None)
    if options is not None and not stream:
        raise InvalidRequest(
            "'stream_options' is only allowed when 'stream' is true; remove it or set 'stream'.",
            param="stream_options",
        )

    asked = overrides.read_overrides(fields.pop(overrides.FIELD, None), headers)
    prompt, choices = parsed.prompt_and_choices()
    limit = parsed.output_limit
    shaping = [fields[name] for name in _SHAPING if is_given(fields.get(name))]

    def body_for(upstream_model: str) -> bytes:
        return _encode(fields | _changes(upstream_model, fields, stream))

    return InferenceRequest(
        id=request_id,
        endpoint=endpoint,
        model=parsed.model,
        stream=stream,
        wants_usage_chunk=bool(options and options.include_usage),
        body_size=len(body),
        body_for=body_for,
        text_bytes=prompt.text_bytes + sum(map(len, shaping)),
        max_output_tokens=None if limit is None else limit * choices,
        choices=choices,
        modalities=prompt.modalities,
        media_items=prompt.media_items,
        tools=is_given(fields.get("tools")) or is_given(fields.get("functions")),
        structured_output=_is_structured(fields.get("response_format")),
        service_tier=_SERVICE_TIERS.get(str(getattr(parsed, "service_tier", "")), ServiceTier.DEFAULT),
        prefix=prefix_hashes(*(fields[name] for name in _BEGINNING if name in fields)),
        user=parsed.user if isinstance(parsed.user, str) else None,
        session=overrides.session_of(headers),
        overrides=asked,
    )


def _is_structured(response_format: msgspec.Raw | None) -> bool:
    # `{"type": "text"}` is the default, and asks for nothing.
    return is_given(response_format) and b'"json_' in bytes(response_format or b"")


def _detail(error: Exception, body: bytes) -> str:
    if not body:
        return "it is empty"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return plain(str(error).removeprefix("JSON is malformed: "))


def _changes(upstream_model: str, fields: dict[str, msgspec.Raw], stream: bool) -> dict[str, Any]:
    changes: dict[str, Any] = {"model": upstream_model}
    if stream:
        # The ledger needs usage whether or not the client does; the chunk is taken out again on the way back.
        raw = fields.get("stream_options")
        options = msgspec.json.decode(raw, type=dict[str, msgspec.Raw] | None) if raw else None
        changes["stream_options"] = {**(options or {}), "include_usage": True}
    return changes
