"""Which backends are tried for a request, in which order, and why: filter, score, order.

The order is by utility, in US dollars, and where that is equal by what is in a cache, and then the route's own. A
hosted backend that is full comes after all that are not; a self-run one that is full queues, which its shadow price
says.

Two reasons against a candidate are doubts only: an open circuit is an inference from the past, and a context window
that a prompt hardly fits into is an estimate. Where no candidate is without doubts, those with nothing else against
them are tried all the same, the longest rested first and the hardly fitting last: nothing is lost by asking.
"""

from decimal import Decimal

from meritorder.core.catalog import Route, Tier
from meritorder.core.plan import Attempt, Rejected, Rejection, RoutePlan, Score
from meritorder.core.request import InferenceRequest
from meritorder.routing.candidates import Option, Terms, consider
from meritorder.routing.filters import answer_room, closed_backends
from meritorder.routing.score import work
from meritorder.routing.shadow_price import ShadowPrice
from meritorder.routing.snapshot import Snapshot
from meritorder.routing.split import arm_of
from meritorder.routing.tokens import media_tokens

NOMINAL_REFERENCE = 0.001
"""US dollars that a request is assumed to cost elsewhere where there is no elsewhere, so that self-run backends can be
compared: about what a thousand tokens cost at a middling price."""

_IDLE = ShadowPrice()
_HOSTED = Tier.HOSTED  # to look a member of an enum up takes longer than to compare it


def plan(
    snapshot: Snapshot,
    route: Route,
    request: InferenceRequest,
    *,
    key_id: str,
    headroom: Decimal | None,
    budgeted: bool,
    now: float,
    moment: float,
    draw: float,
) -> RoutePlan:
    """Rank the candidates of `route` for one request.

    `headroom` is what the budgets have left, in US dollars, None if it is not to be looked at; `budgeted` says that
    there are budgets, for which a price must be known. `now` is in seconds on the snapshot's clock, `moment` the same
    in seconds since the epoch, `draw` from [0, 1) for splits that are drawn.
    """
    # Whoever names a backend gets it, and does not count for an arm.
    arm = None if request.overrides.backend is not None else arm_of(route, request, key_id, draw)
    closed = closed_backends(route, request, arm)
    media, room = media_tokens(request), answer_room(request)
    prefixes = snapshot.prefixes.matches(request.prefix, now) if route.affinity else {}
    terms = Terms(snapshot, route, request, headroom, budgeted, now, moment, closed, media, room, prefixes)
    sound: list[Option] = []
    doubtful: list[Option] = []
    rejected: list[Rejected] = []
    for number, candidate in enumerate(route.candidates):
        verdict = consider(terms, number, candidate)
        if isinstance(verdict, Rejected):
            rejected.append(verdict)
        elif verdict.doubt is None:
            sound.append(verdict)
        else:
            doubtful.append(verdict)
    if sound:
        rejected += [option.doubt for option in doubtful if option.doubt is not None]
    return RoutePlan(_ordered(terms, sound or doubtful), tuple(rejected), arm, bool(doubtful and not sound))


def _ordered(terms: Terms, options: list[Option]) -> tuple[Attempt, ...]:
    alternatives = [option.value for option in options if option.backend.tier is _HOSTED and not option.full]
    alternative = max(alternatives, default=None)
    ranked = []
    for option in options:
        congestion, saving = 0.0, None
        if option.backend.tier is not _HOSTED:
            congestion, saving = _congestion(terms, option, alternative)
        rank = (option.full, congestion - option.value, -option.cached_tokens, option.number)
        ranked.append((rank, option, _attempt(option, congestion, saving)))
    ranked.sort()  # no two have the same number, so options are never compared
    if options and options[0].doubt is not None:
        ranked.sort(key=lambda one: _doubt(one[1]))
    return tuple([attempt for _, _, attempt in ranked])


def _doubt(option: Option) -> tuple[bool, float]:
    """The less, the sooner is it tried where all are doubtful."""
    hardly_fits = option.doubt is not None and option.doubt.rejection is Rejection.CONTEXT_WINDOW
    return hardly_fits, option.opened_at


def _congestion(terms: Terms, option: Option, alternative: float | None) -> tuple[float, float | None]:
    """The price of a place, and what a unit of work saves there; `alternative` is the value of the best hosted option
    with room."""
    backend = option.backend
    units = work(option.input_tokens, option.cached_tokens, option.output_tokens)
    reference = NOMINAL_REFERENCE if alternative is None else max(0.0, option.value - alternative)
    price = terms.snapshot.congestion.get(backend.application, _IDLE)
    congestion = price.price(reference, units, option.in_flight, option.capacity, terms.now)
    return congestion, None if alternative is None else reference / units


def _attempt(option: Option, congestion: float, saving: float | None) -> Attempt:
    return Attempt(
        option.backend,
        option.base_url,
        Score(option.quality, option.cost, option.lateness, congestion),
        option.bound,
        option.ttft,
        option.cached_tokens,
        option.input_tokens,
        int(option.output_tokens),
        saving,
    )
