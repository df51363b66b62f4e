"""What routing decides, and why."""

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from meritorder.core.catalog import Backend


class Rejection(StrEnum):
    """Why a candidate is not tried, for a program; the sentence for a person is `Rejected.reason`."""

    ENDPOINT = "endpoint"
    MODALITY = "modality"
    TOOLS = "tools"
    STRUCTURED_OUTPUT = "structured_output"
    CONTEXT_WINDOW = "context_window"
    NOT_READY = "not_ready"
    CIRCUIT_OPEN = "circuit_open"
    QUOTA = "quota"
    UNPRICED = "unpriced"
    BUDGET = "budget"
    QUALITY = "quality"
    MAX_COST = "max_cost"
    MAX_TTFT = "max_ttft"
    EXCLUDED = "excluded"
    OTHER_ARM = "other_arm"


# A plan has a score and an attempt for each candidate, and a frozen dataclass takes thrice as long to make as a tuple.
class Score(NamedTuple):
    """The utility of a candidate for a request and its parts, all in US dollars: `quality - cost - lateness -
    congestion`. Source: DESIGN, "Price and order"."""

    quality: float
    cost: float
    lateness: float
    congestion: float

    @property
    def utility(self) -> float:
        return self.quality - self.cost - self.lateness - self.congestion


class Attempt(NamedTuple):
    """One backend to try. `base_url` is the one below which `/v1/...` answers.

    `cost_bound` is the most that it can cost, in US dollars: None where nothing says so. `ttft` is the expected time
    to first token in seconds, None where nothing was observed yet; `cached_tokens` are those of the prompt that are
    expected to be in the backend's cache. `input_tokens` and `output_tokens` are expected, too. `saving`, of a self-run
    backend, is what a unit of its work saves: US dollars that the best hosted alternative is worse, None without one.
    """

    backend: Backend
    base_url: str
    score: Score
    cost_bound: Decimal | None = None
    ttft: float | None = None
    cached_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    saving: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that is left out. `reason` is for a person and completes "backend X ...".

    `retry_after` is in seconds, where it is known when the reason passes.
    """

    backend: Backend
    rejection: Rejection
    reason: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """Attempts in the order in which they are made, and every candidate that is left out.

    With `last_resort`, no candidate is sound, and the attempts are of those against which nothing but an open circuit
    or an estimated length speaks: they are made without asking circuits.
    """

    attempts: tuple[Attempt, ...]
    rejected: tuple[Rejected, ...] = ()
    arm: str | None = None
    last_resort: bool = False
