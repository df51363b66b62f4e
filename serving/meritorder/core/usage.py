"""What a request consumed, and the one record that is written of it."""

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. Cached, written, audio and image input are parts of `input_tokens` that exclude each
    other, as reasoning, audio and image output are of `output_tokens`.

    `estimated` is set where the backend reported nothing, as when a client leaves in mid-stream; the numbers
    are then counted from what passed through.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    audio_input_tokens: int = 0
    image_input_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    image_output_tokens: int = 0
    estimated: bool = False

    def __post_init__(self) -> None:
        given = (self.cached_input_tokens, self.cache_write_tokens, self.audio_input_tokens, self.image_input_tokens)
        made = (self.reasoning_tokens, self.audio_output_tokens, self.image_output_tokens)
        if min(*given, *made) < 0 or sum(given) > self.input_tokens or sum(made) > self.output_tokens:
            raise ValueError(f"not a token count: {self}")

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    REJECTED = "rejected"  # the request itself is at fault (4xx); another backend would refuse it too
    REFUSED = "refused"  # a budget is spent
    FAILED = "failed"  # no backend answered, the stream broke after its first byte, or the ingress had to stop
    DISCONNECTED = "disconnected"  # the client left


@dataclass(frozen=True, slots=True)
class Charge:
    """What one backend is owed for one attempt. `cost` is in US dollars; None: nothing says what it costs."""

    backend: str
    tier: str
    usage: Usage
    cost: Decimal | None


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """Exactly one per request that was let in, whatever became of it.

    `id` is unique; `request_id` is what the client may have chosen, and chosen twice. `key_id` names the caller's
    key without being it. `backend` and the times are None where no backend answered. `charges` are what the
    attempts cost: one where a backend answered, more where a hedge lost, none where nothing was used. `started_at`
    is in seconds since the epoch, the other times in seconds since then. `arm` is that of the route's split.
    """

    id: str
    request_id: str
    team: str
    key_id: str
    route: str
    endpoint: str
    backend: str | None
    tier: str | None
    attempts: int
    outcome: Outcome
    status: int
    charges: tuple[Charge, ...]
    started_at: float
    time_to_first_token: float | None
    duration: float
    arm: str | None = None

    @property
    def cost(self) -> Decimal:
        """The marginal cost of all attempts, as far as there are prices."""
        return sum((charge.cost for charge in self.charges if charge.cost is not None), Decimal(0))

    @property
    def usage(self) -> Usage:
        """Of the backend that answered."""
        return next((charge.usage for charge in self.charges if charge.backend == self.backend), Usage())
