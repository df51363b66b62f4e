"""The reference says what the code does."""

from pathlib import Path
from typing import Any

import pytest

from meritorder.manifests.kinds import KINDS

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference/manifests.md").read_text()


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


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_has_every_field(kind: str) -> None:
    schema = KINDS[kind].model_json_schema(by_alias=True)
    section = REFERENCE.split(f"\n## {kind}\n")[1].split("\n## ")[0]
    spec = _fields(schema["properties"]["spec"], schema["$defs"])
    assert {name for name in spec if name not in section} == set()
