"""What a prompt in OpenAI's format is made of: how much text, which media, and how it begins.

It is looked at to choose a backend, and never changed. What is of no known shape counts as nothing: whether it is
right is for the backend to say.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from meritorder.core.catalog import Modality
from meritorder.core.request import PREFIX_BLOCK_BYTES
from meritorder.core.tokens import BYTES_PER_TOKEN

_MOST_BLOCKS = 64
"""So much of the beginning tells one prompt from another; a longer common one changes no decision."""

_MODALITIES = {
    "image_url": Modality.IMAGE,
    "input_audio": Modality.AUDIO,
    "file": Modality.FILE,
}
"""Types of content parts. Source: https://platform.openai.com/docs/api-reference/chat/create"""

_NOTHING = (b"", b"null", b"[]", b"{}", b"false")


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text_bytes` is the size of the text in UTF-8; a prompt of token ids counts as text of as many tokens."""

    text_bytes: int = 0
    modalities: frozenset[Modality] = frozenset()


def of_messages(messages: Iterable[Any]) -> Prompt:
    """A chat. Each message has `content` and `tool_calls` (raw)."""
    size, modalities = 0, set()
    for message in messages:
        content = message.content
        if isinstance(content, str):
            size += _bytes(content)
        elif content:
            for part in content:
                size += _text_of(part)
                if isinstance(part, dict) and part.get("type") in _MODALITIES:
                    modalities.add(_MODALITIES[part["type"]])
        if message.tool_calls:
            size += len(message.tool_calls)
    return Prompt(size, frozenset(modalities))


def of_texts(prompt: str | list[Any]) -> tuple[Prompt, int]:
    """One prompt or several, each a text or token ids; with their number."""
    if isinstance(prompt, str):
        return Prompt(_bytes(prompt)), 1
    if prompt and isinstance(prompt[0], int):
        return Prompt(len(prompt) * BYTES_PER_TOKEN), 1
    sizes = (_bytes(one) if isinstance(one, str) else _token_bytes(one) for one in prompt)
    return Prompt(sum(sizes)), max(1, len(prompt))


def is_given(raw: msgspec.Raw | None) -> bool:
    """Whether a field is there and says something."""
    return raw is not None and bytes(raw) not in _NOTHING


def prefix_hashes(*parts: bytes) -> tuple[int, ...]:
    """Hashes of the beginning, block by block; each covers all before it. They mean nothing outside this process.

    Tools come before messages, as they do in what models are given.
    """
    hashes: list[int] = []
    chain = 0
    for part in parts:
        for start in range(0, len(part) - PREFIX_BLOCK_BYTES + 1, PREFIX_BLOCK_BYTES):
            if len(hashes) == _MOST_BLOCKS:
                return tuple(hashes)
            chain = hash((chain, part[start : start + PREFIX_BLOCK_BYTES]))
            hashes.append(chain)
    return tuple(hashes)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _token_bytes(ids: Any) -> int:
    return len(ids) * BYTES_PER_TOKEN if isinstance(ids, list) else 0


def _text_of(part: Any) -> int:
    if isinstance(part, str):
        return _bytes(part)
    text = part.get("text") if isinstance(part, dict) else None
    return _bytes(text) if isinstance(text, str) else 0
