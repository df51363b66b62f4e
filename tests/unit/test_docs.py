"""The reference says what the code does."""

import re
from pathlib import Path
from typing import Any

import pytest

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
