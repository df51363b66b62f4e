"""msgspec's words about a wrong field, as a sentence about that field."""

import re

from meritorder.core.errors import InvalidRequest

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")


def invalid_field(text: str, inside: str = "") -> InvalidRequest:
    """Of "Expected `str`, got `int` - at `$.messages[0].role`"; `inside` is the field that was decoded, if not all."""
    match = _PLACE.match(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    path = (inside + path.replace("[...]", "[]")).removeprefix(".")
    if missing := _MISSING.match(what):
        param = f"{path}.{missing[1]}".removeprefix(".")
        return InvalidRequest(f"'{param}' is required and is missing.", param=param, code="missing_field")
    if not path:
        return InvalidRequest(f"The body must be a JSON object: {plain(what)}.", code="invalid_type")
    return InvalidRequest(f"'{path}' is not valid: {plain(what)}.", param=path, code="invalid_type")


def plain(text: str) -> str:
    """As a part of a sentence."""
    return re.sub(r"\bstr\b", "string", text[:1].lower() + text[1:]).replace("`", "").replace(" | ", " or ")
