"""What is wrong with a manifest, as a sentence that says what would be valid.

pydantic's own messages speak to a programmer ("Input should be a valid tuple"). These are made from the
schema, so they name fields and values as they are written in YAML, and no field needs a message of its own.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from meritorder.manifests.fields import MISPLACED
from meritorder.manifests.yaml_source import Loc

Schema = Mapping[str, Any]

NEVER_SHOWN = frozenset({"credentials", "baseURL"})
"""Where a person may have pasted a key by mistake; what is written there is not repeated into a log."""

_LONGEST_SHOWN = 60
_NOUNS = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}


def explain(kind: type[BaseModel], error: ValidationError) -> Iterator[tuple[Loc, str]]:
    """Of each problem, where it is and the sentence that says it."""
    for details in error.errors(include_url=False):
        # pydantic counts only the valid items of a list, so one bad item makes the list too short as well.
        if not (details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]):
            yield _explain(kind, details)


def _explain(kind: type[BaseModel], details: ErrorDetails) -> tuple[Loc, str]:
    loc, context = details["loc"], details.get("ctx", {})
    node = _schema_at(kind, loc)
    match details["type"]:
        case "extra_forbidden":
            valid = list(_schema_at(kind, loc[:-1]).get("properties", ()))
            return loc, f"unknown field{did_you_mean(str(loc[-1]), valid)}; valid here: {', '.join(valid)}"
        case "missing":
            return loc, f"this field is required: {_expected(kind, node)}"
        case "value_error" if node.get("type") == "object":
            # An object's own validator knows better than the schema what it wanted.
            return loc, details["msg"].removeprefix("Value error, ")
        case error if error == MISPLACED:
            field = context["field"]
            return (*loc, *(field if isinstance(field, tuple) else (field,))), context["message"]
        case "too_short" if given := len(details["input"]):
            return loc, f"expected {_expected(kind, node)}, got a list of {given}"
        case _:
            return loc, f"expected {_expected(kind, node)}{_got(loc, node, details['input'])}"


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """A hint to append, or nothing. `base_url` is as close to `baseURL` as can be."""
    alike = {_bare(known): known for known in valid}
    close = difflib.get_close_matches(_bare(word), alike, n=1)
    return f" (did you mean {alike[close[0]]!r}?)" if close else ""


def _bare(word: str) -> str:
    return word.replace("_", "").replace("-", "").lower()


def shown(value: Any) -> str:
    """`value` as a person would name it: short, and in YAML's words."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case dict():
            return "a mapping"
        case list():
            return "a list" if value else "an empty list"
        case str() if len(value) > _LONGEST_SHOWN:
            return f"{value[:_LONGEST_SHOWN]!r}..."
        # Python refuses to print an integer of more than 4,300 digits, and nobody wants to read one.
        case int() if value.bit_length() > _LONGEST_SHOWN:
            return "a number of too many digits"
        case _:
            return repr(value)


def _got(loc: Loc, node: Schema, given: Any) -> str:
    if not NEVER_SHOWN.isdisjoint(loc):
        return ""
    valid = node.get("enum", ())
    hint = did_you_mean(given, valid) if isinstance(given, str) else ""
    if node.get("type") == "string" and not valid and isinstance(given, int | float):
        hint = "; put it in quotes to make it text"
    return f", got {shown(given)}{hint}"


def _expected(kind: type[BaseModel], node: Schema) -> str:
    match node:
        case {"const": value}:
            return str(value)
        case {"enum": values}:
            return f"one of {', '.join(values)}"
        case {"properties": fields}:
            return f"a mapping with {', '.join(fields)}"
        case {"type": "object"}:
            return "a mapping"
        case {"type": "array", "items": items}:
            several = {1: "a list of at least one", 2: "a list of at least two"}.get(node.get("minItems", 0), "a list")
            return f"{several}, each {_expected(kind, _resolve(items, _schema(kind)))}"
        case {"description": phrase}:
            return str(phrase)
        case _:
            return _NOUNS.get(node.get("type", ""), "another value")


@cache
def _schema(kind: type[BaseModel]) -> Schema:
    return kind.model_json_schema(by_alias=True)


def _schema_at(kind: type[BaseModel], loc: Loc) -> Schema:
    """The part of the schema that describes the field at `loc`; empty where there is no such field."""
    root = _schema(kind)
    node = root
    for step in loc:
        if isinstance(step, int):
            child = node.get("items", {})
        else:
            child = node.get("properties", {}).get(step, node.get("additionalProperties"))
        node = _resolve(child, root) if isinstance(child, Mapping) else {}
    return node


def _resolve(node: Schema, root: Schema) -> Schema:
    # An optional field is `anyOf` its type and null.
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        return _resolve(options[0], root)
    return root["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
