"""What `meritorder prices check` finds, rule by rule, and how the commands say it."""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import time_machine
from click.testing import CliRunner, Result

from meritorder.cli.main import main
from meritorder.core.pricing import Price, PriceSheet, PromptTier, Rates, ServiceTier
from meritorder.manifests.kinds import Provider
from meritorder.manifests.price_checks import (
    Finding,
    check_catalogue,
    check_manifests,
    check_price,
    used_entries,
)
from meritorder.manifests.price_sheets import PriceSheetSpec
from meritorder.manifests.prices import CatalogueEntry, catalogue

TODAY = date(2026, 6, 15)
KNOWN = next(entry for entry in catalogue() if entry.provider == "openai" and not entry.embedding)
FIRST = KNOWN.price.sheets[0].tiers[ServiceTier.DEFAULT][0].rates


def price(written: Any) -> Price:
    return PriceSheetSpec.model_validate(written, by_alias=True, by_name=False).to_price()


def found(written: Any, generative: bool = True) -> list[str]:
    return [str(finding) for finding in check_price("m", price(written), TODAY, generative)]


def provider(*models: dict[str, Any], type: str = "openai") -> Provider:
    spec = {"type": type, "models": models} | ({} if type == "simulated" else {"credentials": {"env": "KEY"}})
    head = {"apiVersion": "meritorder.dev/v1alpha1", "kind": "Provider", "metadata": {"name": "p"}}
    return Provider.model_validate(head | {"spec": spec}, by_alias=True, by_name=False)


def missing_or_different(*models: dict[str, Any], type: str = "openai", today: date = TODAY) -> Sequence[Finding]:
    return list(check_manifests([provider(*models, type=type)], today))


def entry(reviewed: date, name: str = "m", provider: str = "acme", **others: Any) -> CatalogueEntry:
    written = others.pop("price", {"input": 1, "output": 2})
    return CatalogueEntry(provider, (name,), price(written), "https://acme.example", reviewed, **others)


class TestInconsistent:
    @pytest.mark.parametrize(
        "written",
        [
            pytest.param({"input": 1, "output": 1}, id="flat"),
            pytest.param({"input": 1, "cachedInput": 1, "cacheWrite": 1.25, "output": 5, "audioInput": 9}, id="parts"),
            pytest.param(
                {
                    "input": 2,
                    "output": 4,
                    "tiers": [{"aboveInputTokens": 9, "input": 4, "output": 4}],
                    "serviceTiers": {"batch": {"input": 2, "output": 2}, "priority": {"input": 9, "output": 9}},
                },
                id="tiers",
            ),
        ],
    )
    def test_nothing_is_found_where_nothing_is(self, written: Any) -> None:
        assert found(written) == []

    def test_cached_input_above_input(self) -> None:
        # A manifest and the catalogue are refused with that; a price from elsewhere might not be.
        rates = Rates(Decimal(1), Decimal(2), cached_input=Decimal(4))
        odd = Price((PriceSheet({ServiceTier.DEFAULT: (PromptTier(-1, rates),)}),))
        (finding,) = check_price("m", odd, TODAY, generative=True)
        assert str(finding) == "m: cachedInput 4 is above input 1; a cache makes nothing dearer"
        assert not finding.warning

    @pytest.mark.parametrize("service", ["batch", "flex"])
    def test_a_patient_service_above_the_default(self, service: str) -> None:
        written = {"input": 1, "output": 2, "serviceTiers": {service: {"input": 0.5, "output": 3}}}
        message = f"m: output 3 is above the default 2 in {service}; who can wait pays no more"
        assert found(written) == [message]

    def test_a_patient_service_above_the_default_for_long_prompts_alone(self) -> None:
        long = [{"aboveInputTokens": 100, "input": 9, "output": 9}]
        written = {"input": 4, "output": 8, "serviceTiers": {"batch": {"input": 2, "output": 4, "tiers": long}}}
        assert found(written) == [
            "m: input 9 is above the default 4 in batch above 100 input tokens; who can wait pays no more",
            "m: output 9 is above the default 8 in batch above 100 input tokens; who can wait pays no more",
        ]

    def test_output_below_input_is_a_warning(self) -> None:
        (finding,) = check_price("m", price({"input": 2, "output": 1}), TODAY, generative=True)
        assert finding.warning
        assert str(finding) == "m: warning: output 1 is below input 2; see whether they are mixed up"

    @pytest.mark.parametrize(("field", "named"), [("input", "input"), ("output", "output")])
    def test_a_longer_prompt_for_less(self, field: str, named: str) -> None:
        tier = {"aboveInputTokens": 100, "input": 4, "output": 8} | {field: 1.5}
        findings = [one for one in found({"input": 2, "output": 4, "tiers": [tier]}) if "falls" in one]
        usual = {"input": 2, "output": 4}[field]
        message = f"{named} falls from {usual} to 1.5 above 100 input tokens; longer prompts cost no less"
        assert f"m: {message}" in findings

    def test_a_cache_that_a_longer_prompt_has_no_rate_for_is_no_fall(self) -> None:
        tier = {"aboveInputTokens": 100, "input": 4, "output": 8}
        assert found({"input": 2, "cachedInput": 0.2, "output": 4, "tiers": [tier]}) == []

    @pytest.mark.parametrize("field", ["input", "output", "cachedInput", "cacheWrite", "reasoning", "imageOutput"])
    def test_a_rate_of_zero(self, field: str) -> None:
        findings = found({"input": 0 if field == "input" else 1, "output": 1} | {field: 0})
        assert f"m: {field} is 0, as if it were free; correct it, or leave it out" in findings

    def test_an_embedding_model_has_no_output_to_pay_for(self) -> None:
        assert found({"input": 1, "output": 0}, generative=False) == []
        assert found({"input": 0, "output": 0}, generative=False) != []

    def test_sheets_to_come_count_and_sheets_that_were_do_not(self) -> None:
        past, present = {"input": 0, "output": 1}, {"input": 1, "output": 1, "effectiveFrom": "2026-06-15"}
        future = {"input": 1, "output": 0.5, "effectiveFrom": "2027-01-01"}
        assert found([past, present, future]) == [
            "m: warning: output 0.5 is below input 1, from 2027-01-01; see whether they are mixed up"
        ]

    def test_a_price_that_has_not_begun(self) -> None:
        message = "m: no price is in force before 2026-07-01; add the sheet until then"
        assert found([{"input": 1, "output": 1, "effectiveFrom": "2026-07-01"}]) == [message]


class TestMissing:
    def test_a_model_that_neither_its_manifest_nor_the_catalogue_knows(self) -> None:
        (finding,) = missing_or_different({"name": "chat", "upstreamName": "nobody-knows"})
        assert str(finding) == (
            "p/chat: neither its manifest nor the catalogue for 'openai' has a price of 'nobody-knows'; "
            "set models[].price"
        )

    def test_a_name_of_the_catalogue_at_a_provider_of_another_type(self) -> None:
        assert len(missing_or_different({"name": KNOWN.names[0]}, type="simulated")) == 1

    @pytest.mark.parametrize(
        "model",
        [
            {"name": "chat", "upstreamName": KNOWN.names[0]},
            {"name": KNOWN.names[0]},
            {"name": "chat", "upstreamName": "nobody-knows", "price": {"input": 1, "output": 2}},
        ],
    )
    def test_a_price_of_either_will_do(self, model: dict[str, Any]) -> None:
        assert missing_or_different(model) == []

    def test_an_embedding_model_of_a_manifest_needs_no_price_for_output(self) -> None:
        model = {"name": "m", "price": {"input": 1, "output": 0}, "capabilities": {"endpoints": ["embeddings"]}}
        assert missing_or_different(model) == []


class TestDifferent:
    def test_a_manifest_and_the_catalogue(self) -> None:
        written = {"input": str(FIRST.input * 2), "cachedInput": str(FIRST.cached_input), "output": str(FIRST.output)}
        (finding,) = missing_or_different({"name": KNOWN.names[0], "price": written}, today=KNOWN.reviewed)
        assert str(finding).startswith(
            f"p/{KNOWN.names[0]}: warning: its manifest and the catalogue, reviewed on {KNOWN.reviewed}, differ: "
            f"input {FIRST.input * 2} and {FIRST.input}, "
        )
        assert str(finding).endswith(f"; {KNOWN.source} says which is right")

    def test_a_tier_that_the_manifest_leaves_out(self) -> None:
        known = next(
            entry
            for entry in catalogue()
            if entry.provider == "openai" and len(entry.price.sheets[0].tiers[ServiceTier.DEFAULT]) > 1
        )
        rates = known.price.sheets[0].tiers[ServiceTier.DEFAULT][0].rates
        written = {"input": str(rates.input), "output": str(rates.output)}
        written |= {"cachedInput": str(rates.cached_input)} if rates.cached_input else {}
        written |= {"cacheWrite": str(rates.cache_write)} if rates.cache_write else {}
        (finding,) = missing_or_different({"name": known.names[0], "price": written}, today=known.reviewed)
        assert f"differ: input {rates.input} and {rates.input * 2} above" in str(finding)

    def test_the_same_price_written_out(self) -> None:
        same = [one for one in catalogue() if one.provider == "openai" and one.embedding]
        for known in same:
            rates = known.price.sheets[0].tiers[ServiceTier.DEFAULT][0].rates
            model = {"name": known.names[0], "price": {"input": f"{rates.input}0", "output": 0}}
            assert missing_or_different(model | {"capabilities": {"endpoints": ["embeddings"]}}) == []


class TestStale:
    def test_a_review_of_more_days_ago_than_allowed(self) -> None:
        entries = [entry(date(2026, 3, 16), "old"), entry(date(2026, 3, 17), "young")]
        findings = [str(finding) for finding in check_catalogue(entries, TODAY, max_age_days=90)]
        message = "last reviewed on 2026-03-16, 91 days ago; compare with https://acme.example: old"
        assert findings == [f"acme: {message}"]

    def test_one_sentence_for_what_was_reviewed_together(self) -> None:
        entries = [entry(date(2026, 1, 1), name) for name in "ab"] + [entry(date(2026, 1, 2), "c")]
        findings = [finding.message.rsplit(": ", 1)[1] for finding in check_catalogue(entries, TODAY, 90)]
        assert findings == ["a, b", "c"]

    def test_entries_are_checked_for_what_is_odd_in_them_too(self) -> None:
        entries = [entry(TODAY, price={"input": 1, "output": 0}), entry(TODAY, "e", embedding=True)]
        assert [finding.subject for finding in check_catalogue(entries, TODAY, 90)] == ["acme: m", "acme: m"]


def test_of_the_catalogue_manifests_use_what_they_do_not_price_themselves() -> None:
    name = KNOWN.names[0]
    own = {"name": "own", "upstreamName": name, "price": {"input": 1, "output": 2}}
    assert used_entries([provider({"name": name}, {"name": "again", "upstreamName": name})]) == [KNOWN]
    assert used_entries([provider(own)]) == []


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["prices", *arguments])


class TestCommands:
    def test_the_catalogue_as_a_table(self) -> None:
        lines = run().output.splitlines()
        heading = ["provider", "model", "input", "cached", "cache", "write", "output", "also", "has", "reviewed"]
        assert lines[0].split() == heading
        for one in catalogue():
            assert any(line.split()[:2] == [one.provider, one.names[0]] for line in lines)

    def test_one_provider(self) -> None:
        lines = run("--provider", "anthropic").output.splitlines()[1:]
        assert lines
        assert {line.split()[0] for line in lines} == {"anthropic"}

    def test_a_provider_that_is_not_in_the_catalogue(self) -> None:
        result = run("--provider", "acme")
        assert result.exit_code == 1
        assert "the catalogue has no prices of 'acme'; it has those of anthropic, cohere," in result.output

    @time_machine.travel("1999-01-01", tick=False)
    def test_a_price_that_has_not_begun_is_listed_with_its_day(self) -> None:
        not_begun = [one for one in catalogue() if one.price.sheets[0].effective_from]
        for one in not_begun:
            assert f"from {one.price.sheets[0].effective_from}" in run("--provider", one.provider).output

    def test_prices_that_are_in_order(self) -> None:
        with time_machine.travel(max(one.reviewed for one in catalogue()), tick=False):
            result = run("check", "--max-age-days", "10000")
        assert (result.exit_code, result.output) == (0, "the prices are in order\n")

    def test_prices_that_are_stale(self) -> None:
        oldest = min(one.reviewed for one in catalogue())
        with time_machine.travel(max(one.reviewed for one in catalogue()), tick=False):
            result = run("check", "--max-age-days", "0")
        assert result.exit_code == 1
        assert f"last reviewed on {oldest}" in result.output
        assert "Error: the prices are not in order (" in result.output

    def test_of_manifests_what_they_use(self, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text(
            "apiVersion: meritorder.dev/v1alpha1\nkind: Provider\nmetadata: {name: p}\nspec:\n  type: simulated\n"
            "  models:\n  - {name: known, price: {input: 2, output: 1}}\n  - {name: unknown}\n"
        )
        result = run("check", "-f", str(tmp_path), "--max-age-days", "0")
        assert result.exit_code == 1
        assert result.output.splitlines() == [
            "p/known: warning: output 1 is below input 2; see whether they are mixed up",
            "p/unknown: neither its manifest nor the catalogue for 'simulated' has a price of 'unknown'; "
            "set models[].price",
            "Error: the prices are not in order (1 problem)",
        ]

    def test_a_warning_alone_is_no_failure(self, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text(
            "apiVersion: meritorder.dev/v1alpha1\nkind: Provider\nmetadata: {name: p}\nspec:\n  type: simulated\n"
            "  models:\n  - {name: known, price: {input: 2, output: 1}}\n"
        )
        assert run("check", "-f", str(tmp_path)).exit_code == 0
