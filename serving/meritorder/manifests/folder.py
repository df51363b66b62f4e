"""Manifests from files and folders of YAML."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from meritorder.manifests.kinds import KINDS, Manifest, Model, Provider, Route, Team
from meritorder.manifests.messages import did_you_mean, explain, shown
from meritorder.manifests.yaml_source import Document, ManifestError, Problem, documents

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
    if not paths:
        raise ManifestError([Problem(Path(), 0, "", "no file or folder of manifests is given")])
    problems: list[Problem] = []
    merged: dict[tuple[str, str], Written] = {}
    for path in paths:
        merged |= _read_one(path, problems)
    if problems:
        raise ManifestError(problems)
    return ManifestSet(merged)


def files(path: Path) -> list[Path]:
    """The YAML files at `path`, sorted.

    Hidden files and folders are left out: they are an editor's, version control's, or the folder with a
    timestamp in which Kubernetes keeps the files of a ConfigMap that it links to from the visible one.

    Raises:
        OSError: the path, or a folder below it, cannot be read.
    """
    if not path.is_dir():
        path.stat()
        return [path]
    return sorted(
        folder / name
        for folder, names in _walk(path)
        for name in names
        if name.endswith(SUFFIXES) and not name.startswith(".") and (folder / name).is_file()
    )


def folders(path: Path) -> list[Path]:
    """The folders whose change can change `files(path)`: for a file, the one that it is in."""
    return [folder for folder, _ in _walk(path)] if path.is_dir() else [path.parent]


def _walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    def fail(error: OSError) -> None:
        raise error

    for folder, below, names in os.walk(path, onerror=fail):
        below[:] = [name for name in below if not name.startswith(".")]
        yield Path(folder), names


def _read_one(path: Path, problems: list[Problem]) -> dict[tuple[str, str], Written]:
    found: dict[tuple[str, str], Written] = {}
    problems_before = len(problems)
    for document in _documents(path, problems):
        written = _manifest(document, problems)
        if written is None:
            continue
        key = kind, name = written.manifest.kind, written.manifest.name
        if key in found:
            first = found[key].document
            where = f"{first.file}:{first.line(('metadata', 'name'))}"
            problems.append(document.problem(("metadata", "name"), f"{kind} {name!r} is defined in {where}, too"))
        found[key] = written
    if not found and len(problems) == problems_before:
        problems.append(Problem(path, 0, "", "no manifests found here; expected *.yaml files with some"))
    return found


def _documents(path: Path, problems: list[Problem]) -> Iterator[Document]:
    try:
        listed = files(path)
    except OSError as error:
        problems.append(Problem(Path(error.filename or path), 0, "", f"cannot be read: {error.strerror}"))
        return
    for file in listed:
        try:
            yield from documents(file, file.read_bytes().decode())
        except ManifestError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(Problem(file, 0, "", f"cannot be read: {error.strerror}"))
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            problems.append(Problem(file, line, "", f"not UTF-8 text: it has the byte {error.object[error.start]:#x}"))


def _manifest(document: Document, problems: list[Problem]) -> Written | None:
    data = document.data
    if not isinstance(data, dict):
        expected = "expected a mapping with apiVersion, kind, metadata, spec"
        problems.append(document.problem((), f"{expected}, got {shown(data)}"))
        return None
    name = data.get("kind")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        problems.append(document.problem(("kind",), _not_a_kind(name)))
        return None
    try:
        # By alias only: what a cluster would refuse (`base_url`) must not work on a laptop.
        manifest = kind.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        problems.extend(document.problem(loc, message) for loc, message in explain(kind, error))
        return None
    return Written(_anchored(manifest, document.file), document)


def _not_a_kind(name: Any) -> str:
    valid = f"one of {', '.join(KINDS)}"
    if name is None:
        return f"this field is required: {valid}"
    hint = did_you_mean(name, KINDS) if isinstance(name, str) else ""
    return f"expected {valid}, got {shown(name)}{hint}"


def _anchored(manifest: Manifest, file: Path) -> Manifest:
    # What a relative path means must not depend on the folder in which a program happens to run.
    match manifest:
        case Model(spec=spec) if spec.source.startswith("file://"):
            source = f"file://{_absolute(spec.source.removeprefix('file://'), file)}"
            return manifest.model_copy(update={"spec": spec.model_copy(update={"source": source})})
        case Provider(spec=spec) if spec.credentials is not None and spec.credentials.file is not None:
            path = _absolute(spec.credentials.file, file)
            credentials = spec.credentials.model_copy(update={"file": path})
            return manifest.model_copy(update={"spec": spec.model_copy(update={"credentials": credentials})})
    return manifest


def _absolute(path: str, manifest: Path) -> str:
    return os.path.abspath(manifest.parent / os.path.expanduser(path))
