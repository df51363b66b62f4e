"""Whatever is in a file, reading it gives manifests or a ManifestError, and what is valid is kept as it is written."""

import copy
from collections.abc import Sequence
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from meritorder.manifests.catalog import catalog
from meritorder.manifests.folder import read
from meritorder.manifests.kinds import KINDS, Manifest
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

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
counts = st.integers(1, 1_000_000)
tokens = st.integers(1, 10**12)
shares = st.floats(0, 1)
seconds = st.floats(0, 86_400, exclude_min=True) | st.integers(1, 86_400)
dollars = st.decimals(0, 999_999, places=9).map(lambda amount: f"{amount:f}")


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping in which each of the fields may be missing."""
    return st.fixed_dictionaries({}, optional=fields)


def subsets(*values: str, least: int = 0) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True, min_size=least, max_size=len(values))


rates = st.fixed_dictionaries({"input": dollars, "output": dollars}, optional={"cacheWrite": dollars})


@st.composite
def capabilities(draw: st.DrawFn, longest: int = 10**12) -> dict[str, Any]:
    window = draw(st.integers(1, longest))
    return draw(
        some(
            endpoints=subsets("chat/completions", "completions", "embeddings", least=1),
            contextWindow=st.just(window),
            maxOutputTokens=st.integers(1, window),
            modalities=subsets("image", "audio", "file"),
            tools=st.booleans(),
            structuredOutput=st.booleans(),
        )
    )


@st.composite
def model_specs(draw: st.DrawFn) -> dict[str, Any]:
    longest = draw(tokens)
    engine = some(
        max_model_len=st.just(longest),
        max_num_seqs=counts,
        enable_auto_tool_choice=st.booleans(),
        seed=st.integers(-(2**31), 2**31),
    )
    written = some(
        engineArgs=engine,
        capabilities=capabilities(longest),
        replicaHourPrice=dollars,
        resources=some(cpu=counts),
        scaling=some(minReplicas=counts),
    )
    return {"source": "hf://organisation/name", **draw(written)}


hosted_models = st.fixed_dictionaries(
    {"name": names}, optional={"upstreamName": names, "capabilities": capabilities(), "price": rates}
)
provider_fields: dict[str, st.SearchStrategy[Any]] = {
    "type": st.just("simulated"),
    "models": st.lists(hosted_models, min_size=1, max_size=3, unique_by=itemgetter("name")),
}
provider_specs = st.fixed_dictionaries(
    provider_fields, optional={"limits": some(rpm=counts, tpm=tokens, concurrency=counts)}
)


@st.composite
def route_specs(draw: st.DrawFn) -> dict[str, Any]:
    backends = draw(st.lists(names | st.builds("{}/{}".format, names, names), min_size=1, max_size=4, unique=True))
    candidates = [{"provider" if "/" in name else "model": name, **draw(some(quality=shares))} for name in backends]
    worst = min(candidate.get("quality", 1.0) for candidate in candidates)
    objective = some(qualityFloor=st.floats(0, worst), qualityWorth=dollars, timeout=seconds)
    on_time = st.fixed_dictionaries({"ttftSLO": seconds}, optional={"latenessCost": dollars})
    fields: dict[str, st.SearchStrategy[Any]] = {
        "name": names,
        "weight": counts,
        "candidates": subsets(*backends, least=1),
    }
    arms = st.lists(st.fixed_dictionaries(fields), min_size=2, max_size=3, unique_by=itemgetter("name"))
    sticky = some(stickyBy=st.sampled_from(["key", "user", "session", "request"]))
    optional: dict[str, st.SearchStrategy[Any]] = {
        "objective": st.builds(lambda one, other: one | other, objective, on_time | st.just({})),
        "affinity": st.booleans(),
        "retries": st.integers(0, 5),
    }
    if len(backends) > 1 and draw(st.booleans()):
        optional["split"] = st.builds(lambda arms, sticky: {"arms": arms, **sticky}, arms, sticky)
    elif len(backends) > 1:
        optional["hedge"] = st.fixed_dictionaries({"maxShare": st.floats(0, 1, exclude_min=True)})
    return {"candidates": candidates, **draw(some(**optional))}


periods = st.sampled_from(["hourly", "daily", "monthly", "total"])
amounts = st.decimals(0, 999_999_999, places=6).map(lambda amount: f"{amount:f}")
team_specs = some(
    routes=st.lists(names, min_size=1, max_size=3),
    budgets=st.lists(st.fixed_dictionaries({"period": periods, "amount": amounts}), unique_by=itemgetter("period")),
    limits=some(rpm=counts, tpm=tokens, concurrency=counts),
    overrides=subsets("maxCost", "maxTTFT", "minQuality", "backend", "exclude"),
)
SPECS = {"Model": model_specs(), "Provider": provider_specs, "Route": route_specs(), "Team": team_specs}


def valid_manifests() -> st.SearchStrategy[dict[str, Any]]:
    def manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": "meritorder.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}

    kinds = [st.builds(manifest, st.just(kind), names, spec) for kind, spec in SPECS.items()]
    return st.one_of(kinds)


def read_one(file: Path, manifest: Any) -> Manifest:
    file.write_text(yaml.safe_dump(manifest))
    (written,) = read([file]).written.values()
    return written.manifest


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
    manifest = copy.deepcopy(draw(st.sampled_from(VALID) | valid_manifests()))
    *parents, last = draw(st.sampled_from([place for place in places(manifest) if place]))
    target: Any = manifest
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


@pytest.mark.parametrize(
    "left_out",
    [
        pytest.param({"exclude_none": True, "exclude_defaults": True}, id="as it is deployed"),
        pytest.param({"exclude_none": True}, id="with its defaults, as an API server writes it back"),
        pytest.param({}, id="with all fields"),
    ],
)
@given(manifest=valid_manifests())
def test_a_manifest_that_is_written_back_means_the_same(
    file: Path, left_out: dict[str, Any], manifest: dict[str, Any]
) -> None:
    once = read_one(file, manifest)
    again = once.model_dump(mode="json", by_alias=True, **left_out)
    assert read_one(file, again) == once
    assert KINDS[once.kind].model_validate(again, by_alias=True, by_name=False) == once


@given(valid_manifests())
def test_every_field_that_is_written_is_kept_under_its_name(file: Path, manifest: dict[str, Any]) -> None:
    kept = read_one(file, manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
    written, read_back = ({tuple(place) for place in places(each) if "price" not in place} for each in (manifest, kept))
    assert written == read_back  # but for prices, which are kept as lists of sheets


@given(st.decimals(min_value=0, max_value=999_999, places=9), st.sampled_from(["{}", "'{}'", '"{}"']))
def test_a_price_is_exactly_what_was_written(file: Path, price: Decimal, written_as: str) -> None:
    written = written_as.format(f"{price.normalize():f}")
    file.write_text(
        "apiVersion: meritorder.dev/v1alpha1\nkind: Provider\nmetadata: {name: hosted}\nspec:\n"
        f"  type: simulated\n  models: [{{name: chat, price: {{input: {written}, output: 0}}}}]\n"
    )
    kept = catalog(read([file])).backends["hosted/chat"].price
    assert kept is not None
    assert kept.rates(1, moment=0).input == price


@given(st.decimals(min_value=0, max_value=999_999_999, places=6), st.sampled_from(["{}", "'{}'"]))
def test_a_budget_is_exactly_what_was_written(file: Path, amount: Decimal, written_as: str) -> None:
    written = written_as.format(f"{amount.normalize():f}")
    file.write_text(
        "apiVersion: meritorder.dev/v1alpha1\nkind: Team\nmetadata: {name: demo}\nspec:\n"
        f"  budgets: [{{period: total, amount: {written}}}]\n"
    )
    (budget,) = catalog(read([file])).teams["demo"].budgets
    assert budget.amount == amount
