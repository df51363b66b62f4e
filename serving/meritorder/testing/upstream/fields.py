"""Reading one field of a request body, with OpenAI's error if it is not what it should be.

Each function raises ApiError with status 400 and the field's name in `param`. A null counts as left out.
"""

from typing import Any

from meritorder.testing.upstream.answers import count_tokens
from meritorder.testing.upstream.errors import invalid

_MAX_INPUTS = 2048


def texts(body: dict[str, Any], name: str) -> list[str | list[int]]:
    """Return a field that is a text, a list of token ids, or a list of either, as a list of one or more."""
    value: Any = body.get(name)
    if _is_text(value):
        return [value]
    if isinstance(value, list) and 0 < len(value) <= _MAX_INPUTS and all(map(_is_text, value)):
        return value
    message = f"'{name}' must be a string, an array of token ids, or an array of up to {_MAX_INPUTS} of them."
    raise invalid(message, name)


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(token) is int for token in value)
    return isinstance(value, str)


def text_tokens(text: str | list[int]) -> int:
    """Return the tokens of one of `texts`; a token id is one."""
    return count_tokens(text) if isinstance(text, str) else len(text)


def boolean(body: dict[str, Any], name: str) -> bool:
    """Return a flag, False if it is left out."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"'{name}' must be a boolean.", name)
    return bool(value)


def integer(body: dict[str, Any], name: str, low: int, high: int | None = None) -> int | None:
    """Return a number within bounds, None if it is left out."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise invalid(f"'{name}' must be an integer {bounds}.", name)
    return value
