"""YAML restricted to what JSON can say, because that is all that Kubernetes keeps of a manifest.

Keys are text, no mapping has one twice, nothing contains itself, and dates and binary data are not types: a
date stays the text that it is written as. PyYAML alone would let all of this through, or fail without a line.
"""

from collections.abc import Callable, Iterator
from typing import Any

import yaml

_STANDARD = "tag:yaml.org,2002:"
_SCALARS = {"bool": "true or false", "int": "a whole number", "float": "a number"}
_TYPES = {_STANDARD + name for name in ("null", "str", "seq", "map", *_SCALARS)}
_KEY_TYPES = {_STANDARD + "str", _STANDARD + "merge"}

Loc = tuple[int | str, ...]


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader without the types that JSON has not."""

    yaml_implicit_resolvers = {  # noqa: RUF012, the attribute is PyYAML's
        first: [(tag, regexp) for tag, regexp in resolvers if tag in _TYPES | _KEY_TYPES]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag in _TYPES
    }


def misuses(root: yaml.Node) -> Iterator[tuple[yaml.Node, Loc, str]]:
    """What YAML allows below `root` and a manifest does not: the node, where it is, and a sentence."""
    finished: set[int] = set()  # an alias leads to one node again and again; once is enough

    def visit(node: yaml.Node, loc: Loc, parents: frozenset[int]) -> Iterator[tuple[yaml.Node, Loc, str]]:
        if id(node) in parents:
            yield node, loc, "refers to itself"
        elif id(node) not in finished and isinstance(node, yaml.CollectionNode):
            yield from _misused_keys(node, loc)
            for step, child in _steps(node):
                yield from visit(child, (*loc, step), parents | {id(node)})
            finished.add(id(node))

    return visit(root, (), frozenset())


def line_of(node: yaml.Node) -> int:
    """The 1-based line on which `node` begins."""
    return int(node.start_mark.line) + 1


def _misused_keys(node: yaml.CollectionNode, loc: Loc) -> Iterator[tuple[yaml.Node, Loc, str]]:
    first_lines: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode):
            yield key, loc, "a key must be text, not a list or a mapping"
        elif key.tag not in _KEY_TYPES:
            yield key, (*loc, key.value), "a key must be text; put it in quotes"
        elif key.value in first_lines:
            # YAML lets the last one win without a word, which turns a slip into a wrong price.
            yield key, (*loc, key.value), f"given twice, first on line {first_lines[key.value]}"
        else:
            first_lines[key.value] = line_of(key)


def _steps(node: yaml.CollectionNode) -> Iterator[tuple[int | str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return ((str(key.value), value) for key, value in node.value)
    return iter(enumerate(node.value))


def _or_located_error(construct: Callable[[Any, Any], Any], noun: str) -> Callable[[Any, Any], Any]:
    # PyYAML lets Python's own error through where a scalar does not fit its type: `!!int x`.
    def constructor(loader: Loader, node: yaml.ScalarNode) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, LookupError):
            message = f"{node.value[:60]!r} cannot be read as {noun}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from None

    return constructor


def _refuse(_: Loader, node: yaml.Node) -> Any:
    message = f"the type {node.tag.removeprefix(_STANDARD)!r} is not one that JSON has"
    raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)


for _name, _noun in _SCALARS.items():
    _construct = Loader.yaml_constructors[_STANDARD + _name]
    Loader.add_constructor(_STANDARD + _name, _or_located_error(_construct, _noun))
Loader.add_constructor(None, _refuse)
