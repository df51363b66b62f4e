"""What self-run replicas cost: the minutes in which they ran, and how their price is shared among those who used them.

Every ingress notes the replicas that run, several times a minute; of a minute that several have noted, or one more
than once, the greatest number stands. A replica that ran for a part of a minute is charged for all of it. Minutes in
which no ingress ran are in no bill.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from sqlalchemy import Engine, case, func

from meritorder.core.catalog import Catalog, Tier
from meritorder.core.status import ApplicationStatus
from meritorder.ledger.database import insert
from meritorder.ledger.schema import replica_minutes

OUTPUT_TOKEN_WORK = 4
"""How much of a replica's time an output token takes, in input tokens that are not in its cache.

A prompt is computed in parallel; an answer takes one decode step per token, which is bound by memory bandwidth.
Hosted APIs, which run the same engines, ask between three and five times as much for output for that reason.
"""

NANO = 9
"""Bills are shared in units of 10**-9 dollars."""

_SECONDS = 60
_PATIENCE_MINUTES = 24 * 60
"""How long minutes are kept that the database does not take."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The running replicas of one backend. `hour_price` is in US dollars per replica; None: nobody has said it."""

    backend: str
    replicas: int
    hour_price: Decimal | None


def running(catalog: Catalog, statuses: Mapping[str, ApplicationStatus]) -> list[Sample]:
    """What runs now of the self-run backends; `statuses` are by application."""
    return [
        Sample(backend.name, status.running_replicas, backend.replica_hour_price)
        for backend in catalog.backends.values()
        if backend.tier is Tier.SELF_RUN
        and (status := statuses.get(backend.application)) is not None
        and status.running_replicas > 0
    ]


def record_minute(engine: Engine, minute: float, samples: Iterable[Sample]) -> None:
    """Note `samples` for the minute that begins at `minute`, in seconds since the epoch.

    Doing it again changes nothing: of several numbers the greatest stands, of several prices the last.
    """
    rows = [
        {"backend": one.backend, "minute": minute, "replicas": one.replicas, "hour_price_usd": one.hour_price}
        for one in sorted(samples, key=lambda one: one.backend)  # in one order, so that two ingresses cannot deadlock
    ]
    if not rows:
        return
    new = insert(engine, replica_minutes)
    given, stored = new.excluded, replica_minutes.c
    upsert = new.on_conflict_do_update(
        index_elements=[stored.backend, stored.minute],
        set_={
            "replicas": case((given.replicas > stored.replicas, given.replicas), else_=stored.replicas),
            "hour_price_usd": func.coalesce(given.hour_price_usd, stored.hour_price_usd),
        },
    )
    with engine.begin() as connection:
        connection.execute(upsert, rows)


class ReplicaTime:
    """Notes what runs, and keeps it while the database cannot be reached: for up to a day."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[float, dict[str, Sample]] = {}

    def note(self, samples: Iterable[Sample], now: float) -> None:
        """Record `samples` for the minute of `now`, in seconds since the epoch, and what waits. Blocks on the database.

        To be called by one thread at a time, and at least once a minute; more often misses fewer replicas that run
        for a part of one.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not take it; the next call tries it again.
        """
        minute = now // _SECONDS * _SECONDS
        seen = self._waiting.setdefault(minute, {})
        for one in samples:
            if one.backend not in seen or one.replicas >= seen[one.backend].replicas:
                seen[one.backend] = one
        while len(self._waiting) > _PATIENCE_MINUTES:
            del self._waiting[min(self._waiting)]
        for past in sorted(self._waiting):
            record_minute(self._engine, past, self._waiting[past].values())
            del self._waiting[past]


@dataclass(frozen=True, slots=True)
class ReplicaHours:
    """Replica-minutes of one backend, in one hour and at one price: those of all its replicas together.

    `hour` counts hours since the epoch; `price` is in US dollars per replica and hour, None where it is not known.
    """

    backend: str
    hour: int
    price: Decimal | None
    minutes: int


def bills(used: Iterable[ReplicaHours]) -> Mapping[tuple[str, int], int]:
    """What each backend cost in each hour, in 10**-9 dollars.

    All hours of a backend together are its exact bill, rounded once: what rounding an hour leaves over goes to the
    next. Minutes without a price are left out.
    """
    made: dict[tuple[str, int], int] = {}
    exact: dict[str, Fraction] = {}
    for one in sorted(used, key=lambda one: (one.backend, one.hour)):
        if one.price is None:
            continue
        before = exact.get(one.backend, Fraction(0))
        after = before + Fraction(one.price) * one.minutes * 10**NANO / 60
        exact[one.backend] = after
        hour = (one.backend, one.hour)
        made[hour] = made.get(hour, 0) + round(after) - round(before)
    return made


def shares(bill: int, work: Sequence[int]) -> Iterator[int]:
    """`bill` divided in proportion to `work`, which is not all zero: each within one unit, together all of it."""
    total, done, given = sum(work), 0, 0
    for one in work:
        done += one
        share = bill * done // total - given
        given += share
        yield share
