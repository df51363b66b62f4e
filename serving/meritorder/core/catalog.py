"""What can be called: backends, the public names that lead to them, and the teams that may call.

A `Catalog` is the manifests with every reference resolved. It is built once per change of configuration and
is immutable, so a request keeps one view of the world from start to end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from meritorder.core.money import Price


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


@dataclass(frozen=True, slots=True)
class Backend:
    """One thing that answers requests: a self-run model, or one model of a hosted provider.

    `name` is public and unique (`faq`, `openai/gpt-5`); `application` is the Ray Serve application behind it
    (several backends of one provider share one); `upstream_model` is the name that the application expects.
    `concurrency` is how many requests the application serves at once before more of them queue; None means unknown.
    """

    name: str
    tier: Tier
    application: str
    upstream_model: str
    endpoints: frozenset[Endpoint]
    price: Price
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A public model name and the backends that may answer for it, in order of preference."""

    name: str
    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Team:
    """Who pays. `routes` is the set of names that the team may call; None allows all."""

    name: str
    routes: frozenset[str] | None = None

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
