"""Whatever is in a file, reading it gives manifests or a ManifestError, and nothing else."""

import copy
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from meritorder.manifests.catalog import catalog
from meritorder.manifests.folder import read
from meritorder.manifests.yaml_source import ManifestError, Problem

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
VALID = [yaml.safe_load(file.read_text()) for file in sorted(QUICKSTART.glob("*.yaml"))]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.dates()
    | st.binary()
    | st.sampled_from(["Model", "Provider", "Route", "Team", "hf://a/b", "file://x", "simulated", "hosted/chat"])
)
keys = st.text() | st.integers() | st.sampled_from(["apiVersion", "kind", "metadata", "spec", "name", "models", "<<"])
structures = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
yaml_like = st.text(alphabet="abk:-[]{},&*!?|>'\"%@`#=<~ \n\t01.eExX_+é\ufeff\x00\ud83d", max_size=60)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests") / "m.yaml"


def check(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    lines = len(content.decode(errors="replace").splitlines())
    for problem in problems(file):
        assert problem.file == file
        assert 0 <= problem.line <= lines + 1
        assert problem.message
        assert "\n" not in str(problem)


def problems(file: Path) -> Sequence[Problem]:
    try:
        catalog(read([file]))
    except ManifestError as error:
        return error.problems
    return ()


def places(value: Any) -> list[list[Any]]:
    """The path to everything in `value`."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[], *([step, *rest] for step, inner in steps for rest in places(inner))]


@st.composite
def almost_valid(draw: st.DrawFn) -> Any:
    """A valid manifest in which something has another value, is missing, or is one too many."""
    manifest = copy.deepcopy(draw(st.sampled_from(VALID)))
    *parents, last = draw(st.sampled_from([place for place in places(manifest) if place]))
    target = manifest
    for step in parents:
        target = target[step]
    match draw(st.sampled_from(["replace", "remove", "add"])):
        case "remove":
            del target[last]
        case "add" if isinstance(target, dict):
            target[draw(keys)] = draw(structures)
        case _:
            target[last] = draw(structures)
    return manifest


@given(st.text(st.characters(codec="utf-8")) | yaml_like)
@example("&a [*a]")
@example("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]")
@example("? {a: b}\n: c")
@example("<<: [1]")
@example("a: =")
@example("0b_: 0x_")
@example("2026-99-99")
@example("!!timestamp x")
@example("!!set {a, b}")
@example("%YAML 9.9\n---\na")
@example("1:99:99")
@example("kind: Team\rkind: Team")
def test_any_text(file: Path, text: str) -> None:
    check(file, text.encode("utf-8", "surrogatepass"))


@given(st.binary())
def test_any_bytes(file: Path, content: bytes) -> None:
    check(file, content)


@given(structures)
def test_any_structure(file: Path, structure: Any) -> None:
    check(file, yaml.safe_dump(structure).encode())


@given(almost_valid())
def test_any_manifest_that_is_almost_valid(file: Path, manifest: Any) -> None:
    check(file, yaml.safe_dump(manifest).encode())


@given(st.decimals(min_value=0, max_value=999_999, places=9), st.sampled_from(["{}", "'{}'", '"{}"']))
def test_a_price_is_exactly_what_was_written(file: Path, price: Decimal, written_as: str) -> None:
    written = written_as.format(f"{price.normalize():f}")
    file.write_text(
        "apiVersion: meritorder.dev/v1alpha1\nkind: Provider\nmetadata: {name: hosted}\nspec:\n"
        f"  type: simulated\n  models: [{{name: chat, price: {{input: {written}, output: 0}}}}]\n"
    )
    assert catalog(read([file])).backends["hosted/chat"].price.input == price
