"""What the requests of a spill-over measurement say: shares, how full the replica was, and changes of direction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as its client saw it. Times are in seconds on one clock; `cost` is in US dollars.

    `open` is how many requests of this client were under way when it was sent, itself included. `backend` None: it
    failed.
    """

    phase: str
    backend: str | None
    open: int
    sent: float
    first_token: float | None
    ended: float
    cost: Decimal = Decimal(0)


def share(seen: Sequence[Seen], backend: str) -> float:
    """Which part of the requests that were answered went to `backend`; 0 of none."""
    answered = [one for one in seen if one.backend is not None]
    return sum(one.backend == backend for one in answered) / len(answered) if answered else 0.0


def in_flight(seen: Iterable[Seen], backend: str, start: float, end: float) -> float:
    """How many requests `backend` had on average between two moments."""
    busy = (min(one.ended, end) - max(one.sent, start) for one in seen if one.backend == backend)
    return sum(seconds for seconds in busy if seconds > 0) / (end - start)


def at(seen: Iterable[Seen], backend: str, moment: float) -> int:
    """How many requests `backend` had when another was sent at `moment`."""
    return sum(one.backend == backend and one.sent < moment < one.ended for one in seen)


def timeline(seen: Sequence[Seen], backend: str, step: float = 1.0) -> list[tuple[int, int]]:
    """For each `step` seconds since the first request: how many were sent that went to `backend`, and how many
    elsewhere."""
    answered = [one for one in seen if one.backend is not None]
    if not answered:
        return []
    start = min(one.sent for one in answered)
    counts = [[0, 0] for _ in range(int((max(one.sent for one in answered) - start) / step) + 1)]
    for one in answered:
        counts[int((one.sent - start) / step)][one.backend != backend] += 1
    return [(here, elsewhere) for here, elsewhere in counts]


def changes(steps: Sequence[tuple[int, int]]) -> int:
    """How often spilling began or ended, from step to step; those without requests change nothing."""
    spilled = [elsewhere > 0 for here, elsewhere in steps if here or elsewhere]
    return sum(one != other for one, other in pairwise(spilled))


def bars(seconds: Sequence[tuple[int, int]], width: int = 60) -> str:
    """A line per second: `#` is what stayed, `o` what spilled over."""
    most = max((here + elsewhere for here, elsewhere in seconds), default=0)
    scale = min(1.0, width / most) if most else 1.0
    rows = []
    for second, (here, elsewhere) in enumerate(seconds):
        marks = "#" * round(here * scale) + "o" * round(elsewhere * scale)
        rows.append(f"{second:4d} s  {here:3d} + {elsewhere:3d}  {marks}".rstrip())
    return "\n".join(rows)
