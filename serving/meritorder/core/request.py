"""A request as dispatch sees it: what routing may look at, and the body as it came."""

from collections.abc import Callable
from dataclasses import dataclass

from meritorder.core.catalog import Endpoint, Team

MAX_BODY_BYTES = 20_000_000
"""The default limit: enough for a few images in base64, too little for a slip to fill the memory."""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """`body_for` writes the body for a backend that knows the model under the given name.

    It asks the backend for usage in the stream, too; `wants_usage_chunk` remembers whether the client did.
    """

    id: str
    endpoint: Endpoint
    model: str
    stream: bool
    wants_usage_chunk: bool
    body_size: int
    body_for: Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who holds the key. `key_id` is public: it names the key without being it."""

    team: Team
    key_id: str
