"""The price catalogue: what hosted models cost where a manifest does not say.

It is part of the package, one file per type of provider in `price_catalogue`, with facts that have been checked, where
they come from and the day of the check. A file is read when it is first needed; nothing is ever fetched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field

from meritorder.core.pricing import Price
from meritorder.manifests.fields import HttpUrl, ModelName, Strict
from meritorder.manifests.price_sheets import Day, PriceSheetSpec
from meritorder.manifests.yaml_source import documents

__all__ = ["CatalogueEntry", "PriceSheetSpec", "catalogue", "catalogue_entry", "catalogue_price"]

_FOLDER = files("meritorder.manifests") / "price_catalogue"
_SUFFIX = ".yaml"


class PricedModelSpec(Strict):
    """One model of a file. `aliases` are its other names; `source` and `reviewed` are those of the file if left out."""

    name: ModelName
    aliases: tuple[ModelName, ...] = ()
    embedding: bool = False
    source: HttpUrl | None = None
    reviewed: Day | None = None
    price: PriceSheetSpec


class CatalogueFile(Strict):
    """What one provider charges. `provider` is the `type` of a Provider, and the name of the file."""

    provider: str
    source: HttpUrl
    reviewed: Day
    models: Annotated[tuple[PricedModelSpec, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """What one model of a provider costs. `names` are all those under which it is sold, the main one first.

    `source` is the public page, and `reviewed` the last day of which it is known that the page says so. An
    `embedding` model has no output, whose rate is therefore zero.
    """

    provider: str
    names: tuple[str, ...]
    price: Price
    source: str
    reviewed: date
    embedding: bool = False

    def __str__(self) -> str:
        return f"{self.provider}: {self.names[0]}"


def catalogue() -> tuple[CatalogueEntry, ...]:
    """The whole catalogue, by type of provider."""
    providers = sorted(file.name.removesuffix(_SUFFIX) for file in _FOLDER.iterdir() if file.name.endswith(_SUFFIX))
    return tuple(entry for provider in providers for entry in _entries(provider))


def catalogue_entry(provider_type: str, upstream_model: str) -> CatalogueEntry | None:
    """The entry that has exactly this name or alias: a model of another date may have another price."""
    return _by_name(provider_type).get(upstream_model)


def catalogue_price(provider_type: str, upstream_model: str) -> Price | None:
    """The price of the model with exactly this name or alias; None where the catalogue has none."""
    entry = catalogue_entry(provider_type, upstream_model)
    return entry.price if entry else None


def read_catalogue_file(text: str) -> tuple[CatalogueEntry, ...]:
    """The entries of one file.

    Raises:
        ManifestError, pydantic.ValidationError: the file is not one of prices.
        ValueError: two of its models have one name.
    """
    (document,) = documents(Path("prices.yaml"), text)
    listed = CatalogueFile.model_validate(document.data, by_alias=True, by_name=False)
    names = [name for model in listed.models for name in (model.name, *model.aliases)]
    if len(names) != len(set(names)):
        raise ValueError(f"listed twice: {', '.join(sorted({name for name in names if names.count(name) > 1}))}")
    return tuple(
        CatalogueEntry(
            provider=listed.provider,
            names=(model.name, *model.aliases),
            price=model.price.to_price(),
            source=model.source or listed.source,
            reviewed=model.reviewed or listed.reviewed,
            embedding=model.embedding,
        )
        for model in listed.models
    )


@cache
def _entries(provider_type: str) -> tuple[CatalogueEntry, ...]:
    file = _FOLDER / f"{provider_type}{_SUFFIX}"
    return read_catalogue_file(file.read_text()) if file.is_file() else ()


@cache
def _by_name(provider_type: str) -> Mapping[str, CatalogueEntry]:
    return {name: entry for entry in _entries(provider_type) for name in entry.names}
