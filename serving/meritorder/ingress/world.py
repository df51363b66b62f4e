"""The state that decisions rest on: what is configured, what is up, what is in flight, and what was observed.

What the observations mean is for `routing` to say; here they are kept, and fed with what becomes of requests.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from meritorder.backends.failures import AttemptFailed, Failure
from meritorder.core.catalog import Backend, Catalog, Route, Tier
from meritorder.core.plan import Attempt
from meritorder.core.request import InferenceRequest
from meritorder.core.status import ApplicationStatus
from meritorder.core.usage import Usage
from meritorder.routing.affinity import PrefixIndex
from meritorder.routing.filters import capacity
from meritorder.routing.health import Circuit
from meritorder.routing.latency import Latency
from meritorder.routing.quota import MinuteWindow, Quota
from meritorder.routing.shadow_price import ShadowPrice
from meritorder.routing.snapshot import Snapshot
from meritorder.routing.tokens import TokenRatio, answer_lengths

log = logging.getLogger(__name__)

_EMPTY = Catalog(backends={}, routes={}, teams={})

_CERTAIN = frozenset({Failure.UNREACHABLE, Failure.BUSY, Failure.CREDENTIALS})
"""Failures that the next request would meet, too."""

_MOST_HEDGES_SAVED = 5.0
"""However long a route was never slow, so many hedges at once are the most that it may make."""


@dataclass(slots=True)  # and not frozen, which takes thrice as long to make; nobody changes it
class Place:
    """A request's place at a backend. `others` are those that its application had already; `since` is monotonic."""

    attempt: Attempt
    others: int
    since: float

    @property
    def backend(self) -> Backend:
        return self.attempt.backend


class World:
    """One per ingress process; `snapshot` is how decisions see it. All times are monotonic seconds.

    It is changed in the event loop, but for `statuses`, which a thread reads from a file: that one is replaced as
    a whole and never changed, so whoever has taken it keeps one view.

    `problem` is why the manifests as they stand are not in force. `halted` says that this process ends now, and
    cuts off what is still open. `changes` counts how often the loads have changed.
    """

    def __init__(self) -> None:
        self.statuses: Mapping[str, ApplicationStatus] = {}
        self.problem: str | None = None
        self.halted = False
        self.changes = 0
        self._catalog: Catalog = _EMPTY
        self._in_flight: Counter[str] = Counter()
        self._in_application: Counter[str] = Counter()
        self._minutes: defaultdict[str, MinuteWindow] = defaultdict(MinuteWindow)
        self._circuits: dict[str, Circuit] = {}
        self._quotas: dict[str, Quota] = {}
        self._latencies: dict[str, Latency] = {}
        self._tokenizers: dict[str, TokenRatio] = {}
        self._outputs = answer_lengths()
        self._congestion: dict[str, ShadowPrice] = {}
        self._prefixes = PrefixIndex()
        self._hedges: dict[str, float] = {}

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    @catalog.setter
    def catalog(self, catalog: Catalog) -> None:
        """Put `catalog` in force. What is known of a backend stays as long as there is one of that name."""
        self._catalog = catalog
        for name, backend in catalog.backends.items():
            self._circuits.setdefault(name, Circuit())
            self._quotas.setdefault(name, Quota(self._minutes[backend.application]))
            self._latencies.setdefault(name, Latency())
            self._tokenizers.setdefault(name, TokenRatio(self._outputs))
            if backend.tier is Tier.SELF_RUN:
                self._congestion.setdefault(backend.application, ShadowPrice())

    def snapshot(self, catalog: Catalog | None = None) -> Snapshot:
        """The world as it is now. Most of it are live views: a snapshot is for one decision, made at once.

        `catalog` is the one that a request began with, which may have been replaced.
        """
        return Snapshot(
            catalog or self._catalog,
            self.statuses,
            self._in_application,
            self._circuits,
            self._quotas,
            self._latencies,
            self._congestion,
            self._prefixes,
            self._tokenizers,
        )

    def may_try(self, backend: str, now: float) -> bool:
        """Whether a planned attempt may be made: False where another request just tries whether the backend is back."""
        return self._circuits[backend].try_probe(now)

    def is_sound(self, backend: str) -> bool:
        """Whether nothing is known against it, so that it needs no probe."""
        return self._circuits[backend].opened_at == float("-inf")

    def occupy(self, attempt: Attempt, now: float) -> Place:
        """Count a request as in flight, from before its first byte is sent, so that a burst does not herd.

        There must be no await between the plan and this. `vacate` has to follow.
        """
        backend = attempt.backend
        place = Place(attempt, self._in_application[backend.application], now)
        self._load(backend, 1, now, attempt.saving)
        if backend.tier is Tier.HOSTED:
            self._quotas[backend.name].sent(attempt.input_tokens + attempt.output_tokens, now)
        return place

    def vacate(self, place: Place, now: float) -> None:
        self._load(place.backend, -1, now, None)

    def _load(self, backend: Backend, change: int, now: float, saving: float | None) -> None:
        self.changes += 1
        self._in_flight[backend.name] += change
        self._in_application[backend.application] += change
        if (congestion := self._congestion.get(backend.application)) is not None:
            congestion.observe(self._in_application[backend.application], self._capacity(backend), now, saving)

    def opened(self, place: Place, limits: Mapping[str, str], streamed: bool, now: float) -> None:
        """Take note that an answer has begun."""
        backend, attempt = place.backend, place.attempt
        self._read_limits(backend, limits, now)
        if self._circuits[backend.name].opened_at > float("-inf"):
            self._succeeded(backend, place.since, now)  # the probe need not wait for a long answer to end
        if streamed:
            self._latencies[backend.name].observe_first_token(
                now - place.since,
                prompt_tokens=attempt.input_tokens - attempt.cached_tokens,
                in_flight=place.others,
                concurrency=self._capacity(backend),
                now=now,
            )

    def completed(
        self, place: Place, request: InferenceRequest, usage: Usage, first_token: float | None, now: float
    ) -> None:
        """Take note of an answer that was complete; `first_token` is when a stream began."""
        backend, attempt = place.backend, place.attempt
        name = backend.name
        self._succeeded(backend, place.since, now)
        self._tokenizers[name].observe(request, usage)
        if first_token is None:
            self._latencies[name].observe_whole(
                now - place.since, in_flight=place.others, concurrency=self._capacity(backend)
            )
        else:
            self._latencies[name].observe_rest(
                now - first_token, output_tokens=usage.output_tokens, in_flight=place.others, now=now
            )
        if backend.tier is Tier.HOSTED:
            self._quotas[name].settled(usage.total_tokens - attempt.input_tokens - attempt.output_tokens, now)
        if request.prefix:
            self._prefixes.remember(name, request.prefix, now)

    def rejected(self, place: Place, now: float) -> None:
        """Take note that the backend found the request itself at fault: it works."""
        self._succeeded(place.backend, place.since, now)
        self._unsent(place)

    def failed(self, place: Place, failure: AttemptFailed, now: float) -> None:
        """Take note of a failure."""
        backend, name = place.backend, place.backend.name
        if failure.usage is None:
            self._unsent(place)
        self._read_limits(backend, failure.limits, now)
        asked = failure.retry_after
        if failure.failure is Failure.BUSY and asked is not None:
            self._quotas[name].refused(asked, now)  # it is well, and has said when to come again
            self._circuits[name].abandoned(place.since)
            return
        certain = failure.failure in _CERTAIN
        if self._circuits[name].failure(now, place.since, certain=certain, retry_after=asked):
            said = f"{failure.reason}: {failure.detail}" if failure.detail else failure.reason
            log.warning("%r %s; it gets no requests but a probe now and then until it answers again", name, said)

    def abandoned(self, place: Place) -> None:
        """Take note that an attempt was given up without a result."""
        self._circuits[place.backend.name].abandoned(place.since)

    def earn_hedge(self, route: Route) -> None:
        """Take note of a request, which earns its route the share of a hedge."""
        if route.hedge is not None:
            saved = self._hedges.get(route.name, 0.0) + route.hedge.max_share
            self._hedges[route.name] = min(saved, _MOST_HEDGES_SAVED)

    def hedge_delay(self, attempt: Attempt, route: Route) -> float | None:
        """After how many seconds without a first token a second backend is tried, too; None: not at all."""
        if route.hedge is None:
            return None
        others = self._in_application[attempt.backend.application]
        return self._latencies[attempt.backend.name].p95_ttft(attempt.input_tokens - attempt.cached_tokens, others)

    def hedge(self, route: Route) -> bool:
        """Take one hedge of the route's share; False: it is used up."""
        saved = self._hedges.get(route.name, 0.0)
        if saved < 1:
            return False
        self._hedges[route.name] = saved - 1
        return True

    def in_flight(self) -> Mapping[str, int]:
        """The open requests of each backend."""
        return self._in_flight

    def shadow_prices(self, now: float) -> Mapping[str, float]:
        """Of each self-run application, in US dollars per unit of work."""
        return {application: price.mu(now) for application, price in self._congestion.items()}

    def circuits(self, now: float) -> Mapping[str, str]:
        """The state of each backend's circuit."""
        return {name: self._circuits[name].state(now) for name in self._catalog.backends}

    def _succeeded(self, backend: Backend, sent: float, now: float) -> None:
        if self._circuits[backend.name].success(now, sent):
            log.info("%r answers again", backend.name)

    def _capacity(self, backend: Backend) -> int | None:
        return capacity(backend, self.statuses.get(backend.application))

    def _unsent(self, place: Place) -> None:
        """What was not worked on takes nothing from the account: one huge request that is refused blocks nobody."""
        if place.backend.tier is Tier.HOSTED:
            self._quotas[place.backend.name].unsent(
                place.attempt.input_tokens + place.attempt.output_tokens, place.since
            )

    def _read_limits(self, backend: Backend, headers: Mapping[str, str], now: float) -> None:
        if headers:
            self._quotas[backend.name].read(headers, now, time.time())
