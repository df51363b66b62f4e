"""How many tokens a request will have: what is expected, for the score, and what is hardly exceeded, for the bounds.

Only the backend knows its tokenizer. What it reports as usage teaches how many bytes of text make a token there; until
then the stated rules of `core.tokens` hold.
"""

from meritorder.core.catalog import Capabilities, Endpoint, Modality
from meritorder.core.request import InferenceRequest
from meritorder.core.tokens import BYTES_PER_TOKEN, SAFE_BYTES_PER_TOKEN
from meritorder.core.usage import Usage
from meritorder.routing.estimates import Mean, Quantile

_EMBEDDINGS = Endpoint.EMBEDDINGS  # to look a member of an enum up takes longer than to compare it

DEFAULT_OUTPUT_BOUND = 4096
"""Tokens of an answer, as a bound, where neither the request nor the backend has a limit."""

DEFAULT_EXPECTED_OUTPUT = 256
"""Tokens of an answer until answers have been seen."""

_TEMPLATE_TOKENS = 8
_MOST_TEMPLATE_TOKENS = 64
"""What a chat template adds to the text: a few tokens per message, and some models' own preamble."""

_WEIGHT_OF_ALL = 20.0
"""How many answers of a backend's own count as much as those of all. How long an answer is lies in the request more
than in the backend; and one that has not been tried must not seem dearer than it is, or it never will be."""

_LEARNT_AFTER = 20
_LEAST_BYTES = 256
"""Of shorter texts the template is the larger part, and they say nothing on the tokenizer."""

_MARGIN = 0.8
_LEAST_BYTES_PER_TOKEN, _MOST_SAFE_BYTES_PER_TOKEN = 1.0, 3.0
"""A token of a byte-level tokenizer has at least one byte; and what was English so far may be code next."""

_MOST_BYTES_PER_TOKEN = 10

_MEDIA = {
    Modality.IMAGE: (1000, 300.0, 5000, 20.0),
    Modality.AUDIO: (100, 1000.0, 500, 32.0),
    Modality.FILE: (500, 40.0, 5000, 2.0),
}
"""Tokens that are expected, at least and one per so many bytes; then the same as a bound.

Nothing says how many pixels, seconds or pages there are, so the size of the body has to; of media that are given by
their address, only the number is known. Most models count an image as some 85 to 5,000 tokens, a second of sound as 10
to 32, and a page of a PDF as some hundreds to 3,000. Sources:
https://platform.openai.com/docs/guides/images-vision, https://docs.claude.com/en/docs/build-with-claude/vision,
https://ai.google.dev/gemini-api/docs/tokens
"""


class TokenRatio:
    """What a backend's usage has taught about its tokenizer, and about how long its answers are.

    `bytes_per_token` is the mean, and `safe_bytes_per_token` so few that a text hardly ever has more tokens than they
    say. `outputs` is the length of all backends' answers, which they share.
    """

    __slots__ = ("_low", "_output", "_outputs", "_ratio", "bytes_per_token", "safe_bytes_per_token")

    def __init__(self, outputs: Mean | None = None) -> None:
        self.bytes_per_token: float = BYTES_PER_TOKEN
        self.safe_bytes_per_token: float = SAFE_BYTES_PER_TOKEN
        self._ratio = Mean(memory=200)
        self._low = Quantile(0.02)
        self._output = Mean(memory=100)
        self._outputs = answer_lengths() if outputs is None else outputs

    def observe(self, request: InferenceRequest, usage: Usage) -> None:
        """Learn from a complete answer. What was only estimated teaches nothing."""
        if usage.estimated:
            return
        if request.endpoint.generative:
            length = usage.output_tokens / max(1, request.choices)
            self._output.add(length)
            self._outputs.add(length)
        tokens = usage.input_tokens - _TEMPLATE_TOKENS
        if tokens > 0 and request.text_bytes >= _LEAST_BYTES and not request.modalities:
            self._learn(max(_LEAST_BYTES_PER_TOKEN, request.text_bytes / tokens))

    def _learn(self, ratio: float) -> None:
        self._ratio.add(ratio)
        self._low.add(ratio)
        if self._ratio.count >= _LEARNT_AFTER:
            safe = min(self._low.value * _MARGIN, _MOST_SAFE_BYTES_PER_TOKEN)
            self.bytes_per_token = self._ratio.value
            self.safe_bytes_per_token = max(safe, _LEAST_BYTES_PER_TOKEN)

    def expected_input(self, text_bytes: int) -> int:
        """Tokens of a prompt, without its media."""
        return int(text_bytes / self.bytes_per_token) + _TEMPLATE_TOKENS

    def most_input(self, text_bytes: int) -> int:
        """As many as a prompt of this size will hardly exceed, without its media."""
        return int(text_bytes / self.safe_bytes_per_token) + _MOST_TEMPLATE_TOKENS

    def expected_output(self, request: InferenceRequest) -> float:
        """Tokens of the answer, all choices together."""
        if request.endpoint is _EMBEDDINGS:
            return 0.0
        own, shared = self._output, self._outputs
        mean = (own.value * own.count + shared.value * _WEIGHT_OF_ALL) / (own.count + _WEIGHT_OF_ALL)
        expected = mean * request.choices
        limit = request.max_output_tokens
        return expected if limit is None or expected <= limit else limit


def answer_lengths() -> Mean:
    """What backends share as their `outputs`: the default until the first answer, which then counts alone."""
    lengths = Mean(memory=100)
    lengths.value = DEFAULT_EXPECTED_OUTPUT
    return lengths


def least_input(text_bytes: int) -> int:
    """Fewer tokens than a text of this size has with any tokenizer, unless it is hardly a text."""
    return text_bytes // _MOST_BYTES_PER_TOKEN


def most_output(request: InferenceRequest, capabilities: Capabilities) -> int:
    """As many tokens as the answer can have: the client's own limit, else the backend's, else the stated bound."""
    if request.endpoint is _EMBEDDINGS:
        return 0
    if request.max_output_tokens is not None:
        return request.max_output_tokens
    return (capabilities.max_output_tokens or DEFAULT_OUTPUT_BOUND) * request.choices


def media_tokens(request: InferenceRequest) -> tuple[int, int]:
    """How many tokens the images, sounds and files are expected to have, and how many they will hardly exceed."""
    if not request.modalities:
        return 0, 0
    size = max(0, request.body_size - request.text_bytes)
    rules = [_MEDIA[modality] for modality in request.modalities]
    # Which bytes and items are whose is unknown, so they all count as those with the most tokens.
    items = max(1, request.media_items)
    expected = max(max(items * least, int(size / per)) for least, per, _, _ in rules)
    leasts = [least for _, _, least, _ in rules]
    others = max(0, items - len(rules))
    most = sum(leasts) + others * max(leasts) + max(int(size / per) for _, _, _, per in rules)
    return expected, most
