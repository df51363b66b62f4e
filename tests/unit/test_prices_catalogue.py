"""The price catalogue that comes with the package: what is in it, and what it answers."""

import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

import meritorder.manifests
from meritorder.core.pricing import ServiceTier
from meritorder.core.usage import Usage
from meritorder.manifests.price_checks import check_catalogue
from meritorder.manifests.prices import (
    CatalogueEntry,
    catalogue,
    catalogue_entry,
    catalogue_price,
    read_catalogue_file,
)

FOLDER = Path(meritorder.manifests.__file__).parent / "price_catalogue"
ENTRIES = catalogue()
HEAD = "provider: acme\nsource: https://acme.example/prices\nreviewed: 2026-06-01\nmodels:\n"


class TestWhatIsInIt:
    def test_major_providers(self) -> None:
        expected = {"openai", "anthropic", "gemini", "mistral", "deepseek", "xai", "cohere", "groq", "together"}
        assert {entry.provider for entry in ENTRIES} == expected == {file.stem for file in FOLDER.iterdir()}

    def test_nothing_inconsistent(self) -> None:
        last_review = max(entry.reviewed for entry in ENTRIES)
        assert [str(finding) for finding in check_catalogue(ENTRIES, last_review, max_age_days=10_000)] == []

    @pytest.mark.parametrize("entry", ENTRIES, ids=str)
    def test_each_entry_has_a_public_source_and_is_found_by_all_its_names(self, entry: CatalogueEntry) -> None:
        assert entry.source.startswith("https://")
        for name in entry.names:
            assert catalogue_entry(entry.provider, name) is entry

    @pytest.mark.parametrize("entry", ENTRIES, ids=str)
    def test_a_batch_is_half_the_price_as_it_is_with_all_of_these_providers(self, entry: CatalogueEntry) -> None:
        for sheet in entry.price.sheets:
            default, batch = sheet.tiers[ServiceTier.DEFAULT][0].rates, sheet.tiers.get(ServiceTier.BATCH)
            if batch is not None:
                assert batch[0].rates.input * 2 == default.input
                assert batch[0].rates.output * 2 == default.output


class TestLookingUp:
    @pytest.mark.parametrize("entry", ENTRIES, ids=str)
    def test_another_date_is_another_model(self, entry: CatalogueEntry) -> None:
        for name in entry.names:
            for other in (f"{name}-2099-01-01", f"{name}-latest", name[:-1], name.upper()):
                known = catalogue_entry(entry.provider, other)
                assert known is None or other in known.names

    @pytest.mark.parametrize("type_", ["openai-compatible", "simulated", "", "../prices", "acme"])
    def test_a_type_without_a_file_has_no_prices(self, type_: str) -> None:
        assert all(catalogue_price(type_, name) is None for entry in ENTRIES for name in entry.names)

    def test_a_price_changes_on_its_day(self) -> None:
        entries = read_catalogue_file(
            HEAD + "- name: m\n  price:\n  - {input: 1, output: 2}\n"
            "  - {effectiveFrom: 2027-01-01, input: 2, output: 4}\n"
        )
        price = entries[0].price
        assert price.cost(Usage(10**6), datetime(2026, 12, 31, 23, tzinfo=UTC).timestamp()) == 1
        assert price.cost(Usage(10**6), datetime(2027, 1, 1, tzinfo=UTC).timestamp()) == 2

    def test_no_file_is_read_before_a_price_is_asked_for(self) -> None:
        program = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from meritorder.manifests import catalog, prices
assert not [file for file in opened if "price_catalogue" in file]
prices.catalogue_price("groq", "no-such-model")
assert [file.rsplit("/", 1)[1] for file in opened if "price_catalogue" in file] == ["groq.yaml"]
"""
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


class TestAFile:
    def test_an_entry_has_its_own_source_and_day_where_it_says_so(self) -> None:
        plain, own = read_catalogue_file(
            HEAD + "- {name: a, aliases: [a-2026-01-01], price: {input: 1, output: 2}}\n"
            "- {name: b, source: 'https://b.example', reviewed: 2026-07-01, embedding: true, "
            "price: {input: 1, output: 0}}\n"
        )
        assert plain == CatalogueEntry(
            "acme", ("a", "a-2026-01-01"), plain.price, "https://acme.example/prices", date(2026, 6, 1)
        )
        assert own == CatalogueEntry("acme", ("b",), own.price, "https://b.example", date(2026, 7, 1), embedding=True)
        assert plain.price.cost(Usage(10**6, 10**6), 0.0) == Decimal(3)

    @pytest.mark.parametrize(
        "models",
        [
            pytest.param("- {name: a}", id="no price"),
            pytest.param("- {name: a, price: {input: 1}}", id="half a price"),
            pytest.param("- {name: a, price: {input: 1, output: 2}, context: 5}", id="a field that nothing reads"),
            pytest.param(" []", id="no models"),
        ],
    )
    def test_what_is_no_entry(self, models: str) -> None:
        with pytest.raises(ValidationError):
            read_catalogue_file(HEAD + models)

    def test_one_name_for_two_models(self) -> None:
        models = "- {name: a, aliases: [b], price: {input: 1, output: 2}}\n- {name: b, price: {input: 1, output: 2}}\n"
        with pytest.raises(ValueError, match="listed twice: b"):
            read_catalogue_file(HEAD + models)
