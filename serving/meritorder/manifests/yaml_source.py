"""YAML documents with their places: where a field was written, so that an error can name its line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from meritorder.manifests.yaml_loader import Loader, line_of, misuses

Loc = Sequence[int | str]

_LONGEST_KEY = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the manifests: where it is, and a sentence that says what would be valid.

    `line` is 0 where the file or folder as a whole is meant.
    """

    file: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        return ": ".join(part for part in (place, self.field, self.message) if part)


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
        node, line = self.node, line_of(self.node)
        for step in loc:
            found = _child(node, step)
            if found is None:
                break
            key, node = found
            line = line_of(key)
        return line

    def problem(self, loc: Loc, message: str) -> Problem:
        return Problem(self.file, self.line(loc), dotted(loc), message)


def dotted(loc: Loc) -> str:
    """`("spec", "models", 0, "price")` as `spec.models[0].price`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{_plain(step)}" for step in loc).removeprefix(".")


def _plain(key: str) -> str:
    # A key can be anything in YAML, but a problem is one line.
    return key if key.isprintable() and 0 < len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]!r}"


def documents(file: Path, text: str) -> Iterator[Document]:
    """The documents of one file, empty ones left out.

    Raises:
        ManifestError: the text is not YAML, or says what a manifest cannot. What can be read is yielded
            first.
    """
    problems: list[Problem] = []
    try:
        loader = Loader(text)
        while (node := _next_node(loader)) is not None:
            misused = list(misuses(node))
            problems += (Problem(file, line_of(at), dotted(loc), message) for at, loc, message in misused)
            data = None if misused else loader.construct_document(node)
            if data is not None:
                yield Document(file, data, node)
    except yaml.MarkedYAMLError as error:
        problems.append(_syntax_problem(file, error))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not text: it has the character U+{error.character:04X}"
        problems.append(Problem(file, line, "", message))
    except RecursionError:
        problems.append(Problem(file, 0, "", "nested too deeply to be a manifest"))
    if problems:
        raise ManifestError(problems)


def _next_node(loader: Loader) -> yaml.Node | None:
    return loader.get_node() if loader.check_node() else None


def _syntax_problem(file: Path, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    context = f"{error.context}, " if error.context else ""
    return Problem(file, mark.line + 1 if mark else 0, "", f"not valid YAML: {context}{error.problem}")


def _child(node: yaml.Node, step: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None
