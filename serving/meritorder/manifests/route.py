"""The parts of a `Route`: who may answer, and how one of them is chosen."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Annotated, Self

from pydantic import Field, StrictBool, model_validator

from meritorder.core.catalog import StickyBy
from meritorder.manifests.fields import Count, Money, Name, Seconds, Share, Strict, misplaced
from meritorder.manifests.messages import did_you_mean

HostedName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9-]+/.+$",
        description="the name of a hosted model, PROVIDER/MODEL, such as openai/gpt-5",
    ),
]


class Candidate(Strict):
    """Exactly one of a self-run model's name, and a hosted model as `<provider>/<model>`.

    `quality` is what share of the route's requests it does well.
    """

    model: Name | None = None
    provider: HostedName | None = None
    quality: Share = 1.0

    @model_validator(mode="after")
    def _one_backend(self) -> Self:
        if (self.model is None) == (self.provider is None):
            raise ValueError("give exactly one of model: NAME and provider: PROVIDER/MODEL")
        return self

    @property
    def backend(self) -> str:
        return self.model or self.provider or ""


class Objective(Strict):
    """What the route promises, and what keeping it is worth: see `core.catalog.Objective`."""

    quality_floor: Share = 0.0
    quality_worth: Money = Decimal(0)
    ttft_slo: Seconds | None = Field(default=None, alias="ttftSLO")
    lateness_cost: Money | None = None
    timeout: Seconds | None = None

    @model_validator(mode="after")
    def _lateness_is_defined(self) -> Self:
        if self.lateness_cost is not None and self.ttft_slo is None:
            raise misplaced("latenessCost", "has no effect without ttftSLO, which says what is late")
        return self


class Arm(Strict):
    """A share of the traffic. `weight` is relative to those of the other arms."""

    name: Name
    weight: Count
    candidates: Annotated[
        tuple[Annotated[str, Field(description="a candidate of the route, as MODEL or PROVIDER/MODEL")], ...],
        Field(min_length=1),
    ]


class Split(Strict):
    """An A/B test or a canary. Candidates that no arm names are open to all arms."""

    sticky_by: StickyBy = StickyBy.KEY
    arms: Annotated[tuple[Arm, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _arms_are_told_apart(self) -> Self:
        for index in repeated([arm.name for arm in self.arms]):
            raise misplaced(("arms", index, "name"), f"{self.arms[index].name!r} is listed twice")
        return self


class Hedge(Strict):
    """A second attempt while the first is slow, for at most `maxShare` of the requests."""

    max_share: Annotated[Share, Field(gt=0, description="a number above 0 and up to 1, such as 0.05, without quotes")]


class RouteSpec(Strict):
    """Of `candidates` that are worth the same the earlier is preferred; the next takes what the one before cannot."""

    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1)]
    objective: Objective = Objective()
    split: Split | None = None
    hedge: Hedge | None = None
    affinity: StrictBool = True
    retries: Annotated[
        int, Field(ge=0, le=5, strict=True, description="a whole number from 0 to 5, without quotes")
    ] = 1

    @model_validator(mode="after")
    def _arms_name_candidates(self) -> Self:
        known = [candidate.backend for candidate in self.candidates]
        for arm_index, arm in enumerate(self.split.arms if self.split else ()):
            place = ("split", "arms", arm_index, "candidates")
            for index, name in enumerate(arm.candidates):
                if name not in known:
                    message = f"{name!r} is no candidate of this route{did_you_mean(name, known)}"
                    raise misplaced((*place, index), f"{message}; its candidates: {', '.join(known)}")
            for index in repeated(arm.candidates):
                raise misplaced((*place, index), f"{arm.candidates[index]!r} is listed twice")
        return self

    @model_validator(mode="after")
    def _the_quality_floor_can_be_met(self) -> Self:
        floor = self.objective.quality_floor
        if (best := max(candidate.quality for candidate in self.candidates)) < floor:
            raise misplaced(("objective", "qualityFloor"), f"leaves no candidate: the best has the quality {best:g}")
        good = {candidate.backend for candidate in self.candidates if candidate.quality >= floor}
        for index, reach in enumerate(self._reaches()):
            if not good & reach:
                message = f"none of them has the quality {floor:g}, which objective.qualityFloor asks for"
                raise misplaced(("split", "arms", index, "candidates"), message)
        return self

    @model_validator(mode="after")
    def _a_hedge_has_a_second_candidate(self) -> Self:
        if self.hedge and not any(len(reach) > 1 for reach in self._reaches()):
            raise misplaced("hedge", "has no effect where a request has one candidate; add a second one")
        return self

    def _reaches(self) -> list[set[str]]:
        """The candidates of a request in each arm; without a split there is one."""
        candidates = {candidate.backend for candidate in self.candidates}
        arms = self.split.arms if self.split else ()
        shared = candidates.difference(*(arm.candidates for arm in arms))
        return [shared.union(arm.candidates) for arm in arms] or [candidates]


def repeated(names: Sequence[str]) -> Iterator[int]:
    """Where a name stands that has stood before."""
    return (index for index, name in enumerate(names) if name in names[:index])
