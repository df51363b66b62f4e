"""What is wrong with prices, each finding one sentence: they are missing, stale or inconsistent."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time
from decimal import Decimal
from itertools import groupby, pairwise

from pydantic.alias_generators import to_camel

from meritorder.core.pricing import NoPrice, Price, PriceSheet, PromptTier, Rates, ServiceTier
from meritorder.manifests.kinds import HostedModel, Provider
from meritorder.manifests.prices import CatalogueEntry, catalogue_entry

_RATES = tuple(field.name for field in fields(Rates))
_CHEAPER_SERVICE = (ServiceTier.BATCH, ServiceTier.FLEX)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a price. What is only a `warning` may be as it should be."""

    subject: str
    message: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.subject}: {'warning: ' if self.warning else ''}{self.message}"


def check_catalogue(entries: Sequence[CatalogueEntry], today: date, max_age_days: int) -> Iterator[Finding]:
    """What is wrong with entries of the catalogue; those that were reviewed together are stale together."""

    def review(entry: CatalogueEntry) -> tuple[str, date, str]:
        return entry.provider, entry.reviewed, entry.source

    for (provider, reviewed, source), together in groupby(sorted(entries, key=review), review):
        age = (today - reviewed).days
        if age > max_age_days:
            names = ", ".join(entry.names[0] for entry in together)
            yield Finding(provider, f"last reviewed on {reviewed}, {age} days ago; compare with {source}: {names}")
    for entry in entries:
        yield from check_price(str(entry), entry.price, today, generative=not entry.embedding)


def check_manifests(providers: Iterable[Provider], today: date) -> Iterator[Finding]:
    """What is wrong with the prices of hosted models, as their manifests and the catalogue have them."""
    for name, type_, model in _hosted(providers):
        entry = catalogue_entry(type_, _upstream(model))
        if model.price is not None:
            price = model.price.to_price()
            generative = any(endpoint.generative for endpoint in model.capabilities.endpoints)
            yield from check_price(name, price, today, generative)
            if entry is not None:
                yield from _check_against(entry, name, price, today)
        elif entry is None:
            nowhere = f"neither its manifest nor the catalogue for {type_!r} has a price of {_upstream(model)!r}"
            yield Finding(name, f"{nowhere}; set models[].price")


def used_entries(providers: Iterable[Provider]) -> Sequence[CatalogueEntry]:
    """The entries of the catalogue that decide what a hosted model costs, each once."""
    used = (catalogue_entry(type_, _upstream(model)) for _, type_, model in _hosted(providers) if model.price is None)
    return list({(entry.provider, entry.names): entry for entry in used if entry is not None}.values())


def check_price(subject: str, price: Price, today: date, generative: bool) -> Iterator[Finding]:
    """What is inconsistent in one price, from today on. `generative` is whether the model has output at all."""
    moment = _moment(today)
    try:
        in_force = price.sheet(moment)
    except NoPrice:
        in_force = price.sheets[0]
        yield Finding(subject, f"no price is in force before {in_force.effective_from}; add the sheet until then")
    for sheet in price.sheets[price.sheets.index(in_force) :]:
        since = f", from {sheet.effective_from}" if sheet.starts_at > moment else ""
        for tier, steps in sheet.tiers.items():
            for step in steps:
                yield from _check_rates(subject, f"{_place(tier, step)}{since}", step.rates, generative)
            for shorter, longer in pairwise(steps):
                yield from _check_rise(subject, f"{_place(tier, longer)}{since}", shorter.rates, longer.rates)
        yield from _check_service(subject, since, sheet)


def _check_rates(subject: str, place: str, rates: Rates, generative: bool) -> Iterator[Finding]:
    if rates.cached_input is not None and rates.cached_input > rates.input:
        message = f"cachedInput {rates.cached_input} is above input {rates.input}"
        yield Finding(subject, f"{message}{place}; a cache makes nothing dearer")
    if generative and rates.output < rates.input:
        message = f"output {rates.output} is below input {rates.input}"
        yield Finding(subject, f"{message}{place}; see whether they are mixed up", warning=True)
    for name in _RATES:
        if getattr(rates, name) == 0 and (generative or name != "output"):
            yield Finding(subject, f"{to_camel(name)} is 0{place}, as if it were free; correct it, or leave it out")


def _check_rise(subject: str, place: str, shorter: Rates, longer: Rates) -> Iterator[Finding]:
    for name in _RATES:
        before, after = _rate(shorter, name), _rate(longer, name)
        if after < before:
            message = f"{to_camel(name)} falls from {before} to {after}"
            yield Finding(subject, f"{message}{place}; longer prompts cost no less")


def _check_service(subject: str, since: str, sheet: PriceSheet) -> Iterator[Finding]:
    standard = sheet.tiers.get(ServiceTier.DEFAULT, ())
    for tier in _CHEAPER_SERVICE:
        patient = sheet.tiers.get(tier, ())
        for step in _steps_of(standard, patient):
            for name in _RATES:
                rate, usual = _rate(_at(patient, step.above), name), _rate(_at(standard, step.above), name)
                if rate > usual and (own := getattr(_at(patient, step.above), name)) is not None:
                    message = f"{to_camel(name)} {own} is above the default {usual}"
                    yield Finding(subject, f"{message}{_place(tier, step)}{since}; who can wait pays no more")


def _check_against(entry: CatalogueEntry, subject: str, price: Price, today: date) -> Iterator[Finding]:
    try:
        ours, theirs = price.sheet(_moment(today)).tiers, entry.price.sheet(_moment(today)).tiers
    except NoPrice:
        return
    differences = [
        f"{difference}{_place(tier, step)}"
        for tier in ours
        for step in _steps_of(ours[tier], theirs.get(tier, ()))
        for difference in _differences(_at(ours[tier], step.above), _at(theirs[tier], step.above))
    ]
    if differences:
        message = f"its manifest and the catalogue, reviewed on {entry.reviewed}, differ"
        said = f"{message}: {', '.join(differences)}; {entry.source} says which is right"
        yield Finding(subject, said, warning=True)  # who has negotiated a price pays another one


def _differences(one: Rates, other: Rates) -> Iterator[str]:
    for name in _RATES:
        is_written = getattr(one, name) is not None or getattr(other, name) is not None
        if is_written and _rate(one, name) != _rate(other, name):
            yield f"{to_camel(name)} {_rate(one, name)} and {_rate(other, name)}"


def _hosted(providers: Iterable[Provider]) -> Iterator[tuple[str, str, HostedModel]]:
    for provider in providers:
        for model in provider.spec.models:
            yield f"{provider.name}/{model.name}", provider.spec.type, model


def _upstream(model: HostedModel) -> str:
    return model.upstream_name or model.name


def _steps_of(one: Sequence[PromptTier], other: Sequence[PromptTier]) -> list[PromptTier]:
    """A step for each length of prompt at which either changes; none where there is nothing to compare."""
    if not one or not other:
        return []
    return sorted({step.above: step for step in (*one, *other)}.values(), key=lambda step: step.above)


def _at(steps: Sequence[PromptTier], above: int) -> Rates:
    return [step.rates for step in steps if step.above <= above][-1]


def _rate(rates: Rates, name: str) -> Decimal:
    """The rate that is charged, which is that of all input or output where there is none of its own."""
    own: Decimal | None = getattr(rates, name)
    if own is not None:
        return own
    return rates.output if name in ("reasoning", "audio_output", "image_output") else rates.input


def _place(tier: ServiceTier, step: PromptTier) -> str:
    service = "" if tier is ServiceTier.DEFAULT else f" in {tier.value}"
    return service + (f" above {step.above} input tokens" if step.above >= 0 else "")


def _moment(day: date) -> float:
    return datetime.combine(day, time(), UTC).timestamp()
