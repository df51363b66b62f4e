"""What can be called: backends, the public names that lead to them, and the teams that may call.

A `Catalog` is the manifests with every reference resolved. It is built once per change of configuration and
is immutable, so a request keeps one view of the world from start to end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import cached_property

from meritorder.core.limits import Allowance, Budget, Limits
from meritorder.core.pricing import Price


class Endpoint(StrEnum):
    """An inference endpoint of the OpenAI API; the value is its path below `/v1/`."""

    CHAT_COMPLETIONS = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"

    @property
    def generative(self) -> bool:
        """Whether its answers have output tokens, which are paid for."""
        return self is not Endpoint.EMBEDDINGS


class Tier(StrEnum):
    """Who runs the backend, and so what one more request costs."""

    SELF_RUN = "self-run"
    HOSTED = "hosted"


class Modality(StrEnum):
    """What a prompt is made of, besides text."""

    IMAGE = "image"
    AUDIO = "audio"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. `context_window` and `max_output_tokens` are in tokens; None: unknown."""

    endpoints: frozenset[Endpoint]
    context_window: int | None = None
    max_output_tokens: int | None = None
    modalities: frozenset[Modality] = frozenset()
    tools: bool = True
    structured_output: bool = True


@dataclass(frozen=True, slots=True)
class Backend:
    """One thing that answers requests: a self-run model, or one model of a hosted provider.

    `name` is public and unique (`faq`, `openai/gpt-5`); `application` is the Ray Serve application behind it
    (several backends of one provider share one); `upstream_model` is the name that the application expects.
    `price` None is an unknown price, which is no price of zero. `concurrency` is how many requests the application
    serves at once before more of them queue; None: unknown. For self-run models that is with the least replicas, and
    `replica_concurrency` is that of one. `limits` are those of the account, shared by all
    backends of the application. `replica_hour_price` is in US dollars, for self-run models.
    """

    name: str
    tier: Tier
    application: str
    upstream_model: str
    capabilities: Capabilities
    price: Price | None
    concurrency: int | None = None
    limits: Limits = field(default_factory=Limits)
    replica_hour_price: Decimal | None = None
    replica_concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend of a route. `quality` is the route's prior, from 0 to 1: what share of its requests it does well."""

    backend: str
    quality: float = 1.0


@dataclass(frozen=True, slots=True)
class Objective:
    """What a route promises, and what keeping it is worth.

    `quality_floor` is the least `quality` of a candidate; `quality_worth` is in US dollars per request and per 1.0
    of quality. `ttft_slo` is the time to first token in seconds; `lateness_cost` is in US dollars per request that
    is late by once the objective. `timeout` bounds all attempts, in seconds, until an answer begins.
    """

    quality_floor: float = 0.0
    quality_worth: float = 0.0
    ttft_slo: float | None = None
    lateness_cost: float = 0.01
    timeout: float | None = None


class StickyBy(StrEnum):
    """What decides on the arm of a split; requests that agree in it get the same arm."""

    KEY = "key"
    USER = "user"  # the request's `user`
    SESSION = "session"  # the header x-meritorder-session
    REQUEST = "request"  # nothing: each request is drawn for itself


@dataclass(frozen=True, slots=True)
class Arm:
    """A share of a route's traffic. `weight` is relative to those of the other arms."""

    name: str
    weight: int
    candidates: frozenset[str]


@dataclass(frozen=True, slots=True)
class Split:
    """An A/B test or a canary. Candidates that no arm names are open to all arms."""

    sticky_by: StickyBy
    arms: tuple[Arm, ...]


@dataclass(frozen=True, slots=True)
class Hedge:
    """A second attempt while the first is slow: after the 95th percentile of its time to first token.

    `max_share` bounds how many of the route's requests are hedged, from 0 to 1.
    """

    max_share: float


@dataclass(frozen=True)
class Route:
    """A public model name and the backends that may answer for it.

    Of candidates with the same utility the earlier is tried first. `retries` is how often all of them are gone
    through again where they failed for a reason that passes. With `affinity`, a prompt is worth more where its
    beginning has been before.
    """

    name: str
    candidates: tuple[Candidate, ...]
    objective: Objective = field(default_factory=Objective)
    split: Split | None = None
    hedge: Hedge | None = None
    affinity: bool = True
    retries: int = 1

    @cached_property
    def backends(self) -> tuple[str, ...]:
        return tuple(candidate.backend for candidate in self.candidates)


class Override(StrEnum):
    """What a request may ask of the routing; the values are the fields of the body's `meritorder` object."""

    MAX_COST = "max_cost_usd"
    MAX_TTFT = "max_ttft_ms"
    MIN_QUALITY = "min_quality"
    BACKEND = "backend"
    EXCLUDE = "exclude"


@dataclass(frozen=True, slots=True)
class Team:
    """Who pays. `routes` is the set of names that the team may call; None allows all."""

    name: str
    routes: frozenset[str] | None = None
    limits: Limits = field(default_factory=Limits)
    budgets: tuple[Budget, ...] = ()
    overrides: frozenset[Override] = frozenset(Override)

    @property
    def allowance(self) -> Allowance:
        return Allowance(f"team:{self.name}", self.limits, self.budgets)

    def may_call(self, route: str) -> bool:
        return self.routes is None or route in self.routes


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that can be called, by public name. `generation` counts the configurations put in force."""

    backends: Mapping[str, Backend]
    routes: Mapping[str, Route]
    teams: Mapping[str, Team]
    generation: int = 0

    def callable_by(self, team: Team) -> Iterable[str]:
        """The route names that `team` may call, in the order of the manifests."""
        return (name for name in self.routes if team.may_call(name))
