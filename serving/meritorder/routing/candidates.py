"""One candidate and one request: what speaks against it, or what is to be expected of it."""

from dataclasses import dataclass
from decimal import Decimal

from meritorder.core.catalog import Backend, Candidate, Route, Tier
from meritorder.core.plan import Rejected, Rejection
from meritorder.core.pricing import NoPrice
from meritorder.core.request import PREFIX_BLOCK_BYTES, InferenceRequest
from meritorder.routing.filters import (
    Refusal,
    capacity,
    endpoint_of,
    incapable,
    is_full,
    not_good_enough,
    not_ready,
    too_slow,
    unaffordable,
)
from meritorder.routing.score import PROVIDER_CACHE_TOKENS, UNPRICED, Dollars, dollars, lateness
from meritorder.routing.snapshot import Snapshot
from meritorder.routing.tokens import TokenRatio, least_input, most_output

_FREE = Decimal(0)
_NEVER = float("-inf")
_HOSTED = Tier.HOSTED  # to look a member of an enum up takes longer than to compare it
_UNTAUGHT = TokenRatio()


@dataclass(slots=True)  # and not frozen, which takes thrice as long to make; nobody changes it
class Terms:
    """What is the same for all candidates of a plan.

    `closed` are candidates that are out from the start, `media_tokens` how many are expected and how many at most,
    `answer_room` the tokens of a context window that the answer needs, `prefixes` how much of
    the prompt's beginning each backend has seen, in blocks; the others are as in `plan`.
    """

    snapshot: Snapshot
    route: Route
    request: InferenceRequest
    headroom: Decimal | None
    budgeted: bool
    now: float
    moment: float
    closed: dict[str, Refusal]
    media_tokens: tuple[int, int]
    answer_room: int
    prefixes: dict[str, int]


@dataclass(slots=True)
class Option:
    """A candidate against which nothing but a `doubt` speaks.

    `number` is its place in the route, `value` its utility in US dollars without congestion, of which `quality`, `cost`
    and `lateness` are the parts. `capacity` is how many requests it serves at once; `full` hosted backends would queue.
    `opened_at` is that of the circuit.
    """

    number: int
    backend: Backend
    base_url: str
    value: float
    quality: float
    cost: float
    lateness: float
    bound: Decimal | None
    ttft: float | None
    input_tokens: int
    cached_tokens: int
    output_tokens: float
    in_flight: int
    capacity: int | None
    full: bool
    doubt: Rejected | None
    opened_at: float


def consider(terms: Terms, number: int, candidate: Candidate) -> Option | Rejected:
    """The filters in turn, those that are cheap and that last first; then the estimates, and the filters on them."""
    snapshot, request = terms.snapshot, terms.request
    name = candidate.backend
    backend = snapshot.catalog.backends[name]
    refusal = (
        terms.closed.get(name)
        or incapable(backend.capabilities, request)
        or not_good_enough(candidate.quality, terms.route, request.overrides)
    )
    if refusal:
        return Rejected(backend, *refusal)
    ratio = snapshot.tokenizers.get(name, _UNTAUGHT)
    most_input = ratio.most_input(request.text_bytes)
    window = backend.capabilities.context_window
    doubt = None
    if window is not None and most_input + terms.media_tokens[0] + terms.answer_room > window:
        doubt = _hardly_fits(terms, backend, window, most_input)
        if least_input(request.text_bytes) + terms.answer_room > window:
            return doubt
    status = snapshot.statuses.get(backend.application)
    base_url = endpoint_of(status)
    if base_url is None:
        return Rejected(backend, *not_ready(status))
    circuit = snapshot.circuits.get(name)
    opened_at = _NEVER
    if circuit is not None and (reason := circuit.closed_to(terms.now)):
        opened_at = circuit.opened_at
        doubt = doubt or Rejected(backend, Rejection.CIRCUIT_OPEN, reason, circuit.retry_after(terms.now))
    places = capacity(backend, status)
    return _estimate(terms, number, candidate, backend, base_url, ratio, most_input, doubt, opened_at, places)


def _estimate(
    terms: Terms,
    number: int,
    candidate: Candidate,
    backend: Backend,
    base_url: str,
    ratio: TokenRatio,
    most_input: int,
    doubt: Rejected | None,
    opened_at: float,
    places: int | None,
) -> Option | Rejected:
    snapshot, request, now = terms.snapshot, terms.request, terms.now
    name = backend.name
    input_tokens = ratio.expected_input(request.text_bytes) + terms.media_tokens[0]
    output_tokens = ratio.expected_output(request)
    quota = snapshot.quotas.get(name)
    if quota is not None and (blocked := quota.blocked(backend.limits, input_tokens + output_tokens, now)):
        return Rejected(backend, Rejection.QUOTA, *blocked)

    hosted = backend.tier is _HOSTED
    rate, bound, unpriced = _price(terms, backend, input_tokens, most_input) if hosted else (None, _FREE, "")
    cached_tokens = _cached(terms, name, ratio, rate, input_tokens) if name in terms.prefixes else 0
    in_flight = snapshot.in_flight.get(backend.application, 0)
    latency = snapshot.latencies.get(name)
    ttft = None
    if latency is not None:
        ttft = latency.predict(input_tokens - cached_tokens, in_flight, places, now)
    refusal = unaffordable(bound, unpriced, request.overrides, terms.headroom, terms.budgeted)
    if refusal := refusal or too_slow(ttft, request.overrides):
        return Rejected(backend, *refusal)

    objective = terms.route.objective
    quality = objective.quality_worth * candidate.quality
    cost = 0.0 if rate is None else rate.expected(input_tokens, cached_tokens, output_tokens)
    late = lateness(objective, ttft)
    return Option(
        number, backend, base_url, quality - cost - late, quality, cost, late, bound, ttft, input_tokens, cached_tokens,
        output_tokens, in_flight, places, hosted and is_full(backend, in_flight), doubt, opened_at,
    )  # fmt: skip


def _hardly_fits(terms: Terms, backend: Backend, window: int, most_input: int) -> Rejected:
    needed = most_input + terms.media_tokens[0] + terms.answer_room
    reason = f"has a context window of {window} tokens, and the request may need {needed}"
    return Rejected(backend, Rejection.CONTEXT_WINDOW, reason)


def _price(terms: Terms, backend: Backend, input_tokens: int, most_input: int) -> tuple[Dollars, Decimal | None, str]:
    """The rates to expect, the most that the request can cost, and why nothing says so where the latter is None."""
    price, request = backend.price, terms.request
    if price is None:
        return dollars(UNPRICED), None, "has no price"
    most_input += terms.media_tokens[1]
    try:
        rates = price.rates(input_tokens, terms.moment, request.service_tier)
        most_rates = price.rates(most_input, terms.moment, request.service_tier)
    except NoPrice as error:
        return dollars(UNPRICED), None, str(error)
    rate = dollars(rates)
    output_tokens = most_output(request, backend.capabilities)
    bound = rate.bound(most_input, output_tokens, request.modalities)
    if most_rates is not rates:  # nor need longer prompts be dearer
        bound = max(bound, dollars(most_rates).bound(most_input, output_tokens, request.modalities))
    return rate, bound, ""


def _cached(terms: Terms, name: str, ratio: TokenRatio, rate: Dollars | None, input_tokens: int) -> int:
    """How many tokens of the prompt should be in the backend's cache, where that makes it cheaper; `rate` is None for a
    self-run backend, which has less work then."""
    if rate is not None and rate.cached_input is None:
        return 0
    tokens = min(input_tokens, int(terms.prefixes[name] * PREFIX_BLOCK_BYTES / ratio.bytes_per_token))
    return 0 if rate is not None and tokens < PROVIDER_CACHE_TOKENS else tokens
