"""What a request consumed, and the one record that is written of it."""

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `cached_input_tokens` are part of `input_tokens`.

    `estimated` is set where the backend reported nothing, as when a client leaves in mid-stream; the numbers
    are then counted from what passed through.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    estimated: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.cached_input_tokens <= self.input_tokens or self.output_tokens < 0:
            raise ValueError(f"not a token count: {self}")


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    REJECTED = "rejected"  # the request itself is at fault (4xx); another backend would refuse it too
    FAILED = "failed"  # no backend answered, the stream broke after its first byte, or the ingress had to stop
    DISCONNECTED = "disconnected"  # the client left


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """Exactly one per request that was let in, whatever became of it.

    `key_id` names the caller's key without being it. `backend` and the times are None where no backend answered.
    `started_at` is in seconds since the epoch, the other times in seconds since then. `cost` is the marginal cost
    in US dollars.
    """

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
    usage: Usage
    cost: Decimal
    started_at: float
    time_to_first_token: float | None
    duration: float
