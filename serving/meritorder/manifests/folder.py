"""Manifests from files and folders of YAML."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from meritorder.manifests.kinds import API_VERSION, KINDS, Manifest, Model, Provider, Route, Team
from meritorder.manifests.yaml_source import Document, Loc, ManifestError, Problem, documents, dotted

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Written:
    """A manifest, and the document that it was written in, for errors that are found later."""

    manifest: Manifest
    document: Document


@dataclass(frozen=True, slots=True)
class ManifestSet:
    """All manifests that are in force together, by kind and name, in the order of the files."""

    written: Mapping[tuple[str, str], Written]

    def of(self, kind: str) -> Iterator[Written]:
        return (written for (its_kind, _), written in self.written.items() if its_kind == kind)

    @property
    def models(self) -> list[Model]:
        return [written.manifest for written in self.of("Model") if isinstance(written.manifest, Model)]

    @property
    def providers(self) -> list[Provider]:
        return [written.manifest for written in self.of("Provider") if isinstance(written.manifest, Provider)]

    @property
    def routes(self) -> list[Route]:
        return [written.manifest for written in self.of("Route") if isinstance(written.manifest, Route)]

    @property
    def teams(self) -> list[Team]:
        return [written.manifest for written in self.of("Team") if isinstance(written.manifest, Team)]


def read(paths: Sequence[Path]) -> ManifestSet:
    """Read every manifest below `paths`, each a YAML file or a folder of them.

    A manifest under a later path replaces one of the same kind and name under an earlier path, so that a
    folder can be adapted without a copy of it; twice under one path is an error.

    Raises:
        ManifestError: with every problem that was found, in all files.
    """
    problems: list[Problem] = []
    merged: dict[tuple[str, str], Written] = {}
    for path in paths:
        here: dict[tuple[str, str], Written] = {}
        for document in _documents(path, problems):
            written = _manifest(document, problems)
            if written is None:
                continue
            key = (written.manifest.kind, written.manifest.name)
            if key in here:
                first = here[key].document
                where = f"{first.file}:{first.line(('metadata', 'name'))}"
                problems.append(
                    document.problem(("metadata", "name"), f"{key[0]} {key[1]!r} is already defined in {where}")
                )
            here[key] = written
        merged |= here
    if problems:
        raise ManifestError(problems)
    if not merged:
        listed = ", ".join(str(path) for path in paths)
        raise ManifestError([Problem(paths[0], 1, "", f"no manifests found in {listed}; expected *.yaml files")])
    return ManifestSet(merged)


def files(path: Path) -> list[Path]:
    """The YAML files at `path`, sorted; hidden ones, such as an editor's, left out."""
    if path.is_file():
        return [path]
    return sorted(
        file for file in path.rglob("*") if file.suffix in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _documents(path: Path, problems: list[Problem]) -> Iterator[Document]:
    if not path.exists():
        problems.append(Problem(path, 1, "", "no such file or folder"))
        return
    for file in files(path):
        try:
            yield from documents(file, file.read_text(encoding="utf-8"))
        except ManifestError as error:
            problems.extend(error.problems)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(file, 1, "", f"cannot be read: {error}"))


def _manifest(document: Document, problems: list[Problem]) -> Written | None:
    data = document.data
    if not isinstance(data, dict):
        problems.append(document.problem((), f"expected a mapping with apiVersion, kind, metadata and spec, got {data!r:.60}"))
        return None
    name = data.get("kind")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        said = "kind is missing" if name is None else f"{name!r} is not a kind"
        problems.append(document.problem(("kind",), f"{said}; valid: {', '.join(KINDS)}"))
        return None
    try:
        return Written(_anchored(kind.model_validate(data), document.file), document)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            problems.append(document.problem(details["loc"], _sentence(kind, data, details)))
        return None


def _anchored(manifest: Manifest, file: Path) -> Manifest:
    # What a relative path means must not depend on the folder in which a program happens to run.
    if not isinstance(manifest, Model) or not manifest.spec.source.startswith("file://"):
        return manifest
    folder = manifest.spec.source.removeprefix("file://")
    absolute = os.path.abspath(file.parent / os.path.expanduser(folder))
    return manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"source": f"file://{absolute}"})})


def _sentence(kind: type[BaseModel], data: Any, details: ErrorDetails) -> str:
    loc, given = details["loc"], details["input"]
    match details["type"]:
        case "extra_forbidden":
            valid = _fields_at(kind, loc[:-1])
            return f"unknown field{_suggest(str(loc[-1]), valid)}; valid here: {', '.join(valid)}"
        case "missing":
            return "this field is required"
        case "literal_error" if loc and loc[-1] == "apiVersion":
            return f"{given!r} is not a version that is served; valid: {API_VERSION}"
        case "literal_error" | "enum":
            expected = str(details.get("ctx", {}).get("expected", ""))
            return f"{given!r} is not valid{_suggest(str(given), _quoted(expected))}; valid: {expected}"
        case "value_error":
            return details["msg"].removeprefix("Value error, ")
        case "string_pattern_mismatch" if loc and loc[-1] == "name" and loc[0] == "metadata":
            return f"{given!r} is not a valid name; use lower-case letters, digits and dashes (RFC 1123), such as 'my-model'"
        case _:
            message = details["msg"]
            return f"{message[:1].lower()}{message[1:]}, got {given!r:.80}"


def _fields_at(kind: type[BaseModel], loc: Loc) -> list[str]:
    """The field names that the schema has at `loc`."""
    schema: Any = kind.model_json_schema(by_alias=True)
    node, definitions = schema, schema.get("$defs", {})
    for step in loc:
        node = _resolve(node, definitions)
        node = node.get("items", {}) if isinstance(step, int) else node.get("properties", {}).get(step, {})
    return list(_resolve(node, definitions).get("properties", {}))


def _resolve(node: Any, definitions: Any) -> Any:
    for option in node.get("anyOf", ()):
        if "$ref" in option:
            node = option
    return definitions[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node


def _quoted(expected: str) -> list[str]:
    return [part for index, part in enumerate(expected.split("'")) if index % 2]


def _suggest(word: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(valid), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


__all__ = ["ManifestError", "ManifestSet", "Problem", "Written", "dotted", "files", "read"]
