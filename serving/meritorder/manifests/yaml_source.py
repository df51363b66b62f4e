"""YAML documents with their places: where a field was written, so that an error can name its line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Loc = Sequence[int | str]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the manifests: where it is, and a sentence that says what would be valid."""

    file: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        field = f"{self.field}: " if self.field else ""
        return f"{self.file}:{self.line}: {field}{self.message}"


class ManifestError(Exception):
    """The manifests cannot be used. `problems` has all that was found, not just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its `data`, and the nodes that remember where each part of it stands."""

    file: Path
    data: Any
    node: yaml.Node

    def line(self, loc: Loc) -> int:
        """The 1-based line of the field at `loc`, or of the nearest parent that was written."""
        node, line = self.node, self.node.start_mark.line
        for step in loc:
            found = _child(node, step)
            if found is None:
                break
            key, node = found
            line = key.start_mark.line
        return line + 1

    def problem(self, loc: Loc, message: str) -> Problem:
        return Problem(self.file, self.line(loc), dotted(loc), message)


def dotted(loc: Loc) -> str:
    """`("spec", "models", 0, "price")` as `spec.models[0].price`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).removeprefix(".")


def documents(file: Path, text: str) -> Iterator[Document]:
    """The documents of one file, empty ones left out.

    Raises:
        ManifestError: the text is not YAML, or one key is given twice in one mapping.
    """
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            node: yaml.Node = loader.get_node()  # type: ignore[no-untyped-call]
            document = Document(file, None, node)
            _refuse_repeated_keys(document, node, ())
            data = loader.construct_document(node)  # type: ignore[no-untyped-call]
            if data is not None:
                yield Document(file, data, node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ManifestError([Problem(file, line, "", f"not valid YAML: {error.problem}")]) from None
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: a scalar that looks like a date, and is none.
        raise ManifestError([Problem(file, 1, "", f"not valid YAML: {error}")]) from None
    finally:
        loader.dispose()


def _child(node: yaml.Node, step: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _refuse_repeated_keys(document: Document, node: yaml.Node, loc: tuple[int | str, ...]) -> None:
    # YAML lets the last one win without a word, which turns a slip into a wrong price.
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                place = Problem(document.file, key.start_mark.line + 1, dotted((*loc, key.value)), "given twice")
                raise ManifestError([place])
            seen.add(key.value)
            _refuse_repeated_keys(document, value, (*loc, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _refuse_repeated_keys(document, value, (*loc, index))
