"""Which arm of an A/B test or a canary a request belongs to."""

from hashlib import blake2b
from math import inf, log

from meritorder.core.catalog import Route, Split, StickyBy
from meritorder.core.request import InferenceRequest


def arm_of(route: Route, request: InferenceRequest, key_id: str, draw: float) -> str | None:
    """The name of the arm; None where the route has no split. `draw` is from [0, 1), for splits that are not sticky.

    A request without the user or the session that its route sticks to counts as its key.
    """
    split = route.split
    if split is None:
        return None
    match split.sticky_by:
        case StickyBy.REQUEST:
            return _drawn(split, draw)
        case StickyBy.USER:
            value = request.user or key_id
        case StickyBy.SESSION:
            value = request.session or key_id
        case StickyBy.KEY:
            value = key_id
    return _hashed(split, route.name, value)


def _drawn(split: Split, draw: float) -> str:
    left = draw * sum(arm.weight for arm in split.arms)
    for arm in split.arms:
        left -= arm.weight
        if left < 0:
            return arm.name
    return split.arms[-1].name  # where the weights' sum was rounded


def _hashed(split: Split, route: str, value: str) -> str:
    """The same in every process, and after a change of weights as far as can be: who moves, moves to an arm whose
    weight has risen in proportion. Source: https://en.wikipedia.org/wiki/Rendezvous_hashing (weighted)
    """
    chosen, least = "", inf
    for arm in split.arms:
        # Each arm waits for a time drawn with its weight as the rate, and the first wins.
        time = -log(_uniform(f"{route}\0{arm.name}\0{value}")) / arm.weight if arm.weight > 0 else inf
        if time < least or not chosen:
            chosen, least = arm.name, time
    return chosen


def _uniform(text: str) -> float:
    """A number in (0, 1] that looks random and is not."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64
