"""What a prompt in OpenAI's format is made of: how much text, which media, and how it begins.

It is looked at to choose a backend, and never changed. What is of no known shape counts as text of its size, since some
backend may give it to its model: whether it is right is for that one to say.
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

_encode = msgspec.json.encode
_NOTHING = (b"", b"null", b"[]", b"{}", b"false")


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text_bytes` is the size of the text in UTF-8; a prompt of token ids counts as text of as many tokens.

    `media_items` is how many images, sounds and files there are; their payload is no text.
    """

    text_bytes: int = 0
    modalities: frozenset[Modality] = frozenset()
    media_items: int = 0


def of_messages(messages: Iterable[Any]) -> Prompt:
    """A chat. Each message has `content`, and `beside_content` what else of it (raw) models are given."""
    size, items = 0, 0
    modalities: set[Modality] = set()
    for message in messages:
        content = message.content
        if isinstance(content, str):
            size += _bytes(content)
        elif content:
            for part in content:
                modality = _modality_of(part)
                size += _text_of(part, modality)
                if modality is not None:
                    modalities.add(modality)
                    items += 1
        size += sum(len(raw) for raw in message.beside_content() if raw and is_given(raw))
    return Prompt(size, frozenset(modalities), items)


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


def prefix_hashes(*parts: bytes | msgspec.Raw) -> tuple[int, ...]:
    """Hashes of the beginning, block by block; each covers all before it. They mean nothing outside this process.

    Tools come before messages, as they do in what models are given. Blocks do not reach from one part into the next:
    what is left at the end of a part has no hash of its own, and counts in those that follow.
    """
    hashes: list[int] = []
    chain = 0
    for part in parts:
        view, end = memoryview(part), 0  # of a slice no more is copied than the slice
        while len(hashes) < _MOST_BLOCKS and end + PREFIX_BLOCK_BYTES <= len(view):
            chain = hash((chain, bytes(view[end : end + PREFIX_BLOCK_BYTES])))
            hashes.append(chain)
            end += PREFIX_BLOCK_BYTES
        if len(hashes) == _MOST_BLOCKS:
            break
        chain = hash((chain, bytes(view[end:])))
    return tuple(hashes)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _token_bytes(ids: Any) -> int:
    return len(ids) * BYTES_PER_TOKEN if isinstance(ids, list) else 0


def _modality_of(part: Any) -> Modality | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return _MODALITIES.get(kind) if isinstance(kind, str) else None


def _text_of(part: Any, modality: Modality | None) -> int:
    if isinstance(part, str):
        return _bytes(part)
    text = part.get("text") if isinstance(part, dict) else None
    if isinstance(text, str) and (modality is not None or part.get("type", "text") == "text"):
        return _bytes(text)
    return len(_encode(part)) if modality is None else 0
