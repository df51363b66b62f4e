"""What a model would have made up: answers, their tokens, and vectors. All of it is deterministic.

One token is one word: a run of characters between white space. The white space before a word belongs to its
token, that at the very end to the last one, so the tokens of a text add up to the text.
"""

import base64
import hashlib
import math
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import Literal

DEFAULT_TOKENS = 16
_CANNED = "Simulated answer: no model ran, and these words are canned to fill the requested answer length."
_FIRST, *_OTHERS = _CANNED.split()
_CANNED_TOKENS = (f" {_FIRST}", *(f" {word}" for word in _OTHERS))
_TOKEN = re.compile(r"\s*\S+(?:\s+\Z)?")

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated text."""

    tokens: tuple[str, ...]
    finish_reason: FinishReason

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.tokens)


def count_tokens(text: str) -> int:
    """Return the number of words."""
    return len(text.split())


@lru_cache(maxsize=64)
def answer(text: str | None, length: int | None, limit: int | None) -> Answer:
    """Return `text`, or canned words, `length` tokens of them, cut after `limit` tokens.

    The finish reason is "length" only if something was cut off.
    """
    if text is not None:
        wanted = tuple(_TOKEN.findall(text))
    else:
        count = DEFAULT_TOKENS if length is None else length
        wanted = (_FIRST, *islice(cycle(_CANNED_TOKENS), 1, count))[:count]
    kept = wanted if limit is None else wanted[:limit]
    return Answer(kept, "length" if len(kept) < len(wanted) else "stop")


def vector(text: str, dimensions: int) -> bytes:
    """Return a unit vector made from a hash of the text, as little-endian 32-bit floats.

    As with OpenAI's models, a shorter vector points the same way as the beginning of a longer one.
    """
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(4 * dimensions)
    numbers = struct.unpack(f"<{dimensions}i", digest)
    norm = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return struct.pack(f"<{dimensions}f", *(number / norm for number in numbers))


@lru_cache(maxsize=256)
def vector_json(text: str, dimensions: int, as_base64: bool) -> str:
    """Return the vector as it stands in a response: a base64 string, or a list of numbers."""
    packed = vector(text, dimensions)
    if as_base64:
        return f'"{base64.b64encode(packed).decode("ascii")}"'
    return "[" + ",".join(map(repr, struct.unpack(f"<{dimensions}f", packed))) + "]"
