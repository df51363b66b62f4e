"""Requests in OpenAI's format: read the fields that dispatch needs, keep the rest as bytes.

Source: OpenAI's API reference, https://platform.openai.com/docs/api-reference.
"""

import re
from typing import Annotated, Any

import msgspec

from meritorder.core.catalog import Endpoint
from meritorder.core.errors import InvalidRequest
from meritorder.core.request import InferenceRequest

_NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Request(msgspec.Struct):
    model: _NonEmpty
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Message(msgspec.Struct):
    role: _NonEmpty
    content: str | list[Any] | None = None


class _ChatRequest(_Request, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _CompletionRequest(_Request, kw_only=True):
    prompt: str | list[Any]


class _EmbeddingRequest(msgspec.Struct, kw_only=True):
    model: _NonEmpty
    input: str | list[Any]
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


_DECODERS: dict[Endpoint, msgspec.json.Decoder[Any]] = {
    Endpoint.CHAT_COMPLETIONS: msgspec.json.Decoder(_ChatRequest),
    Endpoint.COMPLETIONS: msgspec.json.Decoder(_CompletionRequest),
    Endpoint.EMBEDDINGS: msgspec.json.Decoder(_EmbeddingRequest),
}
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.encode


def parse_request(request_id: str, endpoint: Endpoint, body: bytes) -> InferenceRequest:
    """Read a request body.

    Raises:
        InvalidRequest: the body is not JSON, or a field is missing or of the wrong type; `param` names it.
    """
    try:
        parsed = _DECODERS[endpoint].decode(body)
        fields = _raw_fields.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {_detail(error, body)}.", code="invalid_json") from None
    stream = bool(getattr(parsed, "stream", False))
    options = getattr(parsed, "stream_options", None)
    if options is not None and not stream:
        raise InvalidRequest(
            "'stream_options' is only allowed when 'stream' is true; remove it or set 'stream'.",
            param="stream_options",
        )

    def body_for(upstream_model: str) -> bytes:
        return _encode(fields | _overrides(upstream_model, fields, stream))

    return InferenceRequest(
        id=request_id,
        endpoint=endpoint,
        model=parsed.model,
        stream=stream,
        wants_usage_chunk=bool(options and options.include_usage),
        body_size=len(body),
        body_for=body_for,
    )


def _detail(error: Exception, body: bytes) -> str:
    if not body:
        return "it is empty"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return _lower(str(error).removeprefix("JSON is malformed: "))


def _overrides(upstream_model: str, fields: dict[str, msgspec.Raw], stream: bool) -> dict[str, Any]:
    overrides: dict[str, Any] = {"model": upstream_model}
    if stream:
        # The ledger needs usage whether or not the client does; the chunk is taken out again on the way back.
        raw = fields.get("stream_options")
        options = msgspec.json.decode(raw, type=dict[str, msgspec.Raw] | None) if raw else None
        overrides["stream_options"] = {**(options or {}), "include_usage": True}
    return overrides


_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")


def _invalid_field(text: str) -> InvalidRequest:
    """msgspec's "Expected `str`, got `int` - at `$.messages[0].role`", as a sentence about that field."""
    match = _PLACE.match(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    path = path.replace("[...]", "[]").removeprefix(".")
    if missing := _MISSING.match(what):
        param = f"{path}.{missing[1]}".removeprefix(".")
        return InvalidRequest(f"'{param}' is required and is missing.", param=param, code="missing_field")
    if not path:
        return InvalidRequest(f"The body must be a JSON object: {_lower(what)}.", code="invalid_type")
    return InvalidRequest(f"'{path}' is not valid: {_lower(what)}.", param=path, code="invalid_type")


def _lower(text: str) -> str:
    return re.sub(r"\bstr\b", "string", text[:1].lower() + text[1:]).replace("`", "").replace(" | ", " or ")
