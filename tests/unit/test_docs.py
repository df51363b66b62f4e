"""The reference says what the code does."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from meritorder.core.catalog import Override
from meritorder.core.plan import Rejection
from meritorder.ingress.openapi import document
from meritorder.manifests.kinds import KINDS

ROOT = Path(__file__).parents[2]
REFERENCE = re.sub(r"(?s)```.*?```", "", (ROOT / "docs/reference/manifests.md").read_text())


def _fields(schema: dict[str, Any], definitions: dict[str, Any]) -> set[str]:
    """The names of all fields below a schema."""
    found = set()
    for part in schema.get("anyOf", []):
        found |= _fields(part, definitions)
    if "$ref" in schema:
        return found | _fields(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    for name, value in schema.get("properties", {}).items():
        found |= {name} | _fields(value, definitions)
    return found | (_fields(schema["items"], definitions) if "items" in schema else set())


def _in_code(text: str) -> set[str]:
    """The words that are written as code."""
    return {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", code)}


def _choices(schema: Any) -> set[str]:
    """The values of all fields of which there are a few."""
    if isinstance(schema, list):
        return {value for each in schema for value in _choices(each)}
    if not isinstance(schema, dict):
        return set()
    return {*schema.get("enum", ())} | _choices(list(schema.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_has_every_field_and_every_choice(kind: str) -> None:
    schema = KINDS[kind].model_json_schema(by_alias=True)
    section = REFERENCE.split(f"\n## {kind}\n")[1].split("\n## ")[0]
    spec = _fields(schema["properties"]["spec"], schema["$defs"])
    assert spec - _in_code(section) == set()
    choices = {word for choice in _choices(schema["$defs"]) for word in re.findall(r"\w+", choice)}
    assert choices - _in_code(REFERENCE) == set()


def test_each_promise_of_the_stream_contract_has_its_group_of_tests() -> None:
    page = (ROOT / "docs/reference/stream-contract.md").read_text()
    promises = [re.sub(r"\W", "", heading).lower() for heading in re.findall(r"(?m)^## (.*)$", page)]
    tests = ast.parse((ROOT / "tests/dataplane/test_stream_contract.py").read_text())
    groups = [node.name.removeprefix("Test").lower() for node in tests.body if isinstance(node, ast.ClassDef)]
    assert groups == promises


def test_the_page_on_routing_has_every_rejection_and_every_override() -> None:
    words = _in_code((ROOT / "docs/reference/routing.md").read_text())
    assert {rejection.value for rejection in Rejection} - words == set()
    assert {override.value for override in Override} - words == set()


def test_the_description_for_programs_has_every_rejection_and_every_override() -> None:
    schemas = document()["components"]["schemas"]
    described = schemas["RejectedCandidate"]["properties"]["rejection"]["enum"]
    assert described == [rejection.value for rejection in Rejection]
    assert list(schemas["Overrides"]["properties"]) == [override.value for override in Override]


LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", target.read_text())
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
