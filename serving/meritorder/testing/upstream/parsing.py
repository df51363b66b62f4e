"""The few request fields that the upstream acts on. All others are accepted, logged and ignored."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from meritorder.testing.upstream.answers import count_tokens
from meritorder.testing.upstream.errors import invalid
from meritorder.testing.upstream.fields import boolean, integer, text_tokens, texts

_DEFAULT_DIMENSIONS = 1536
_MAX_DIMENSIONS = 4096
_MAX_CHOICES = 128


GenerationEndpoint = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A chat or text completion."""

    endpoint: GenerationEndpoint
    model: str
    prompt_tokens: int
    choices: int
    max_tokens: int | None
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to be turned into vectors."""

    model: str
    inputs: tuple[str, ...]
    prompt_tokens: int
    dimensions: int
    as_base64: bool


def parse_body(raw: bytes) -> Any:
    """Return the JSON value of a request body.

    Raises:
        ApiError: 400, it is not JSON.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise invalid("We could not parse the JSON body of your request.") from None


def model_of(body: Any) -> str:
    """Return the model that a request names.

    Raises:
        ApiError: 400, it names none.
    """
    if not isinstance(body, dict):
        raise invalid("The body of your request must be a JSON object.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("You must provide a model parameter.", "model")
    return model


def parse_chat(body: dict[str, Any]) -> GenerationRequest:
    """Read a chat completion request. Prompt tokens are the words of the messages' text parts.

    Raises:
        ApiError: 400, with the field in `param`.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("Expected 'messages' to be an array with at least one message.", "messages")
    prompt_tokens = sum(_message_tokens(message, i) for i, message in enumerate(messages))
    return _generation("chat", body, prompt_tokens, prompts=1)


def parse_completion(body: dict[str, Any]) -> GenerationRequest:
    """Read a text completion request; several prompts get one choice (or `n`) each.

    Raises:
        ApiError: 400, with the field in `param`.
    """
    prompts = texts(body, "prompt")
    return _generation("completions", body, sum(map(text_tokens, prompts)), prompts=len(prompts))


def parse_embedding(body: dict[str, Any]) -> EmbeddingRequest:
    """Read an embeddings request.

    Raises:
        ApiError: 400, with the field in `param`.
    """
    inputs = texts(body, "input")
    if "" in inputs:
        raise invalid("'input' cannot be an empty string.", "input")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise invalid("'encoding_format' must be 'float' or 'base64'.", "encoding_format")
    return EmbeddingRequest(
        model=model_of(body),
        inputs=tuple(text if isinstance(text, str) else json.dumps(text) for text in inputs),
        prompt_tokens=sum(map(text_tokens, inputs)),
        dimensions=integer(body, "dimensions", 1, _MAX_DIMENSIONS) or _DEFAULT_DIMENSIONS,
        as_base64=encoding == "base64",
    )


def _generation(
    endpoint: GenerationEndpoint, body: dict[str, Any], prompt_tokens: int, prompts: int
) -> GenerationRequest:
    stream = boolean(body, "stream")
    options = body.get("stream_options")
    if options is not None and not stream:
        raise invalid("'stream_options' is only allowed when 'stream' is enabled.", "stream_options")
    if options is not None and not isinstance(options, dict):
        raise invalid("'stream_options' must be an object.", "stream_options")
    limit = integer(body, "max_completion_tokens", 1) if endpoint == "chat" else None
    return GenerationRequest(
        endpoint=endpoint,
        model=model_of(body),
        prompt_tokens=prompt_tokens,
        choices=prompts * (integer(body, "n", 1, _MAX_CHOICES) or 1),
        max_tokens=integer(body, "max_tokens", 1) if limit is None else limit,
        stream=stream,
        include_usage=boolean(options or {}, "include_usage"),
    )


def _message_tokens(message: Any, index: int) -> int:
    if not isinstance(message, dict):
        raise invalid(f"'messages[{index}]' must be an object.", f"messages[{index}]")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return sum(count_tokens(text) for text in parts if isinstance(text, str))
    if content is not None and not isinstance(content, str):
        param = f"messages[{index}].content"
        raise invalid(f"'{param}' must be a string or an array.", param)
    return count_tokens(content or "")
