"""A request as dispatch sees it: what routing may look at, and the body as it came."""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from meritorder.core.catalog import Endpoint, Modality, Override, Team
from meritorder.core.limits import Allowance
from meritorder.core.pricing import ServiceTier

MAX_BODY_BYTES = 20_000_000
"""The default limit: enough for a few images in base64, too little for a slip to fill the memory."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What this one request asks of the routing; None, or empty, where it asks nothing.

    `max_cost` is in US dollars, `max_ttft` in seconds, `min_quality` from 0 to 1; `backend` is the only one to be
    tried, `exclude` are those not to be.
    """

    max_cost: Decimal | None = None
    max_ttft: float | None = None
    min_quality: float | None = None
    backend: str | None = None
    exclude: frozenset[str] = frozenset()

    @property
    def used(self) -> frozenset[Override]:
        """Which of them it makes use of."""
        given = {
            Override.MAX_COST: self.max_cost is not None,
            Override.MAX_TTFT: self.max_ttft is not None,
            Override.MIN_QUALITY: self.min_quality is not None,
            Override.BACKEND: self.backend is not None,
            Override.EXCLUDE: bool(self.exclude),
        }
        return frozenset(override for override, is_used in given.items() if is_used)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """`body_for` writes the body for a backend that knows the model under the given name.

    It asks the backend for usage in the stream, too; `wants_usage_chunk` remembers whether the client did.

    `text_bytes` is the size of the prompt's text, tools and schemas included, and media not. `max_output_tokens` is
    the client's own limit, for all `choices` together; None where it set none. `modalities`, `tools` and
    `structured_output` are what the backend must be able to do, and `media_items` how many images, sounds and files
    there are. `prefix` are hashes of the prompt's beginning, each
    of which covers `PREFIX_BLOCK_BYTES` more than the one before. `user` and `session` are the client's own.
    """

    id: str
    endpoint: Endpoint
    model: str
    stream: bool
    wants_usage_chunk: bool
    body_size: int
    body_for: Callable[[str], bytes]
    text_bytes: int = 0
    max_output_tokens: int | None = None
    choices: int = 1
    modalities: frozenset[Modality] = frozenset()
    tools: bool = False
    structured_output: bool = False
    service_tier: ServiceTier = ServiceTier.DEFAULT
    prefix: tuple[int, ...] = ()
    user: str | None = None
    session: str | None = None
    overrides: Overrides = field(default_factory=Overrides)
    media_items: int = 0


PREFIX_BLOCK_BYTES = 1024
"""About 256 tokens; providers cache prompts in steps of 128 to 1024."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who holds the key. `key_id` is public: it names the key without being it.

    `allowances` are what bounds the request: those of the key and of its team, as far as they bound anything.
    """

    team: Team
    key_id: str
    allowances: tuple[Allowance, ...] = ()
