"""What the upstream received and how it ended: the evidence for tests of retries and cancellation.

Header values and query strings are never kept: keys travel in them.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from meritorder.testing.upstream.clock import Clock
from meritorder.testing.upstream.script import Endpoint

Outcome = Literal["completed", "client_disconnected", "failed"]


@dataclass(slots=True)
class ReceivedRequest:
    """One request, updated while it is answered. Times are monotonic seconds of the upstream's clock."""

    id: str
    method: str
    path: str
    endpoint: Endpoint
    header_names: tuple[str, ...]
    """In lower case, in the order received."""
    started_s: float
    model: str | None = None
    body: Any = None
    """The parsed JSON; None while, or because, there is none."""
    key_accepted: bool = False
    status: int | None = None
    """Of the answer, once it has begun."""
    first_byte_s: float | None = None
    ended_s: float | None = None
    outcome: Outcome | None = None
    """None while running; completed: a 200 was sent to its end; client_disconnected: the client went first;
    failed: anything else, such as an error status or a connection cut by the script."""
    chunks_sent: int = 0
    """Events of a stream, `[DONE]` not counted."""
    prompt_tokens: int = 0
    """Of a request that was accepted."""
    cached_tokens: int = 0
    """Those of the prompt that its usage says were in a cache."""
    completion_tokens: int = 0
    """Of an answer that was completed; of a stream that was not, the tokens that were sent."""

    @property
    def is_charged(self) -> bool:
        """Whether a provider would want money for it: it gave an answer, a part of one, or worked for nobody.

        What it failed at itself before the first token is free.
        """
        return self.outcome in ("completed", "client_disconnected") or self.completion_tokens > 0

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Served:
    """What a model has to be paid for, in requests and tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, request: ReceivedRequest) -> "Served":
        """Return the sum with `request`, which has ended."""
        if not request.is_charged:
            return self
        return Served(
            self.requests + 1,
            self.prompt_tokens + request.prompt_tokens,
            self.cached_tokens + request.cached_tokens,
            self.completion_tokens + request.completion_tokens,
        )


@dataclass(slots=True)
class RequestLog:
    """The last `keep` requests; a load test must not fill the memory."""

    clock: Clock
    keep: int
    _requests: deque[ReceivedRequest] = field(init=False)
    _changed: list[asyncio.Future[None]] = field(init=False, default_factory=list)
    _count: int = field(init=False, default=0)
    _served: dict[str, Served] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._requests = deque(maxlen=self.keep)

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """The requests in the order of their arrival."""
        return tuple(self._requests)

    @property
    def served(self) -> Mapping[str, Served]:
        """What has ended and is to be paid, by model, since the start or the last `clear`."""
        return dict(self._served)

    def open(self, method: str, path: str, endpoint: Endpoint, header_names: tuple[str, ...]) -> ReceivedRequest:
        """Begin the record of one request."""
        self._count += 1
        request_id = f"simulated-{self._count}"
        entry = ReceivedRequest(request_id, method, path, endpoint, header_names, self.clock.monotonic())
        self._requests.append(entry)
        self.changed()
        return entry

    def close(self, entry: ReceivedRequest, outcome: Outcome) -> None:
        """End a record. Only the first outcome counts: what follows it is clearing up."""
        if entry.outcome is None:
            entry.outcome = outcome
            entry.ended_s = self.clock.monotonic()
            if entry.model is not None:
                self._served[entry.model] = self._served.get(entry.model, Served()).plus(entry)
            self.changed()

    def clear(self) -> None:
        """Forget all requests; those still running are not logged again."""
        self._requests.clear()
        self._served.clear()
        self.changed()

    def changed(self) -> None:
        """Tell those who wait that some record has changed."""
        for waiter in self._changed:
            if not waiter.done():
                waiter.set_result(None)
        self._changed.clear()

    async def wait_until(self, condition: Callable[[Sequence[ReceivedRequest]], object], timeout_s: float) -> None:
        """Return once the condition holds for the requests.

        Raises:
            TimeoutError: it did not for `timeout_s` seconds of real time.
        """
        async with asyncio.timeout(timeout_s):
            while not condition(self.requests):
                waiter = asyncio.get_running_loop().create_future()
                self._changed.append(waiter)
                await waiter
