"""Which files are read, and what they come to together."""

import os
from pathlib import Path

import pytest

from meritorder.core.catalog import Endpoint, Tier
from meritorder.core.pricing import FREE
from meritorder.manifests.catalog import catalog, model_application, provider_application
from meritorder.manifests.folder import files, folders, read
from meritorder.manifests.yaml_source import ManifestError

EXAMPLES = Path(__file__).parents[2] / "examples"


def model(name: str, source: str = "file:///weights") -> str:
    return (
        f"apiVersion: meritorder.dev/v1alpha1\nkind: Model\nmetadata: {{name: {name}}}\nspec: {{source: '{source}'}}\n"
    )


def team(name: str, label: str = "") -> str:
    labels = f", labels: {{from: {label}}}" if label else ""
    return f"apiVersion: meritorder.dev/v1alpha1\nkind: Team\nmetadata: {{name: {name}{labels}}}\n"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_the_quickstart_resolves() -> None:
    known = catalog(read([EXAMPLES / "quickstart"]), generation=7)

    assert known.generation == 7
    assert list(known.routes) == ["assistant", "faq", "hosted/chat", "hosted/embedding"]
    assert known.routes["assistant"].backends == ("faq", "hosted/chat")
    assert known.routes["faq"].backends == ("faq",)
    faq, chat = known.backends["faq"], known.backends["hosted/chat"]
    assert (faq.tier, faq.application, faq.upstream_model) == (Tier.SELF_RUN, "model-faq", "faq")
    assert (faq.price, faq.concurrency) == (FREE, 4)
    assert (chat.tier, chat.application, chat.upstream_model) == (Tier.HOSTED, "provider-hosted", "chat")
    assert known.backends["hosted/embedding"].capabilities.endpoints == {Endpoint.EMBEDDINGS}
    assert list(known.callable_by(known.teams["demo"])) == list(known.routes)


def test_a_real_provider_replaces_the_simulated_one_when_it_is_given_later() -> None:
    manifests = read([EXAMPLES / "quickstart", EXAMPLES / "hosted" / "openai.yaml"])

    assert [provider.spec.type for provider in manifests.providers] == ["openai"]
    known = catalog(manifests)
    assert known.routes["assistant"].backends == ("faq", "hosted/chat")
    assert known.backends["hosted/chat"].upstream_model != "chat"


def test_what_a_later_path_replaces_keeps_its_place_and_the_rest_stays(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", team("a", "first") + "---\n" + team("b", "first"))
    second = write(tmp_path / "second.yaml", team("c", "second") + "---\n" + team("a", "second"))

    teams = read([first, second]).teams

    assert [(each.name, each.metadata.labels["from"]) for each in teams] == [
        ("a", "second"),
        ("b", "first"),
        ("c", "second"),
    ]


def test_one_name_may_be_used_by_two_kinds(tmp_path: Path) -> None:
    write(tmp_path / "all.yaml", team("a") + "---\n" + model("a"))
    assert len(read([tmp_path]).written) == 2


def test_one_name_twice_under_one_path_is_an_error_that_names_both_places(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "# who pays\n" + team("demo"))
    write(tmp_path / "b" / "c.yaml", team("demo"))
    with pytest.raises(ManifestError) as caught:
        read([tmp_path])
    assert str(caught.value) == (
        f"{tmp_path}/b/c.yaml:3: metadata.name: Team 'demo' is defined in {tmp_path}/a.yaml:4, too"
    )


@pytest.mark.parametrize(
    ("source", "absolute"),
    [
        pytest.param("file://weights", "{folder}/weights", id="beside the manifest"),
        pytest.param("file://../weights", "{parent}/weights", id="beside its folder"),
        pytest.param("file:///opt/weights", "/opt/weights", id="absolute"),
        pytest.param("file://~/weights", "{home}/weights", id="in the home folder"),
    ],
)
def test_a_file_source_is_resolved_against_the_folder_of_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, absolute: str
) -> None:
    folder = tmp_path / "models"
    write(folder / "model.yaml", model("faq", source))
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)  # a relative path must not be resolved against this, nor stay relative

    (read_model,) = read([Path("models")]).models

    expected = absolute.format(folder=folder, parent=tmp_path, home="/home/someone")
    assert read_model.spec.source == f"file://{expected}"


def test_a_file_with_a_key_is_resolved_against_the_folder_of_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path / "providers/acme.yaml",
        "apiVersion: meritorder.dev/v1alpha1\nkind: Provider\nmetadata: {name: acme}\nspec:\n  type: openai\n"
        "  credentials: {file: keys/acme}\n  models: [{name: chat, price: {input: 1, output: 2}}]\n",
    )
    monkeypatch.chdir(tmp_path)

    (provider,) = read([Path("providers")]).providers

    assert provider.spec.credentials is not None
    assert provider.spec.credentials.file == str(tmp_path / "providers/keys/acme")


def test_other_sources_stay_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "model.yaml", model("faq", "hf://org/name@main"))
    assert read([tmp_path]).models[0].spec.source == "hf://org/name@main"


def test_a_folder_is_read_to_its_depth_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    for name in ("b.yaml", "a/c.yml", "a/b/d.yaml"):
        write(tmp_path / name, team(name[-6]))
    for name in (".b.yaml.swp", ".hidden.yaml", ".git/x.yaml", "README.md", "b.yaml~"):
        write(tmp_path / name, "not: [a manifest")

    assert files(tmp_path) == [tmp_path / name for name in ("a/b/d.yaml", "a/c.yml", "b.yaml")]
    assert folders(tmp_path) == [tmp_path, tmp_path / "a", tmp_path / "a/b"]


def test_a_file_is_read_whatever_its_name_is(tmp_path: Path) -> None:
    file = write(tmp_path / "manifests.txt", team("demo"))
    assert [each.name for each in read([file]).teams] == ["demo"]


def test_the_files_of_a_config_map_are_read_once(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap as links to `..data`, itself a link to a folder with a timestamp."""
    write(tmp_path / "..2026_01_01" / "team.yaml", team("demo"))
    (tmp_path / "..data").symlink_to("..2026_01_01")
    (tmp_path / "team.yaml").symlink_to("..data/team.yaml")

    assert files(tmp_path) == [tmp_path / "team.yaml"]
    assert [each.name for each in read([tmp_path]).teams] == ["demo"]


def test_a_byte_order_mark_and_empty_documents_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "team.yaml"
    file.write_bytes(b"\xef\xbb\xbf---\n# nothing\n---\n" + team("demo").encode() + b"---\n")
    assert [each.name for each in read([file]).teams] == ["demo"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("missing", "{path}: cannot be read: No such file or directory", id="no such path"),
        pytest.param("empty", "{path}: no manifests found here; expected *.yaml files with some", id="empty folder"),
        pytest.param("other", "{path}: no manifests found here; expected *.yaml files with some", id="no YAML"),
        pytest.param("void.yaml", "{path}: no manifests found here; expected *.yaml files with some", id="empty file"),
    ],
)
def test_a_path_without_manifests_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other" / "README.md", "hello")
    write(tmp_path / "void.yaml", "# later\n")
    good = write(tmp_path / "team.yaml", team("demo"))

    with pytest.raises(ManifestError) as caught:
        read([good, tmp_path / name])

    assert str(caught.value) == message.format(path=tmp_path / name)


def test_no_path_at_all_is_an_error() -> None:
    with pytest.raises(ManifestError, match="no file or folder of manifests is given"):
        read([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["team.yaml", "below"])
def test_what_may_not_be_read_is_an_error_and_not_left_out(tmp_path: Path, name: str) -> None:
    write(tmp_path / "team.yaml", team("demo"))
    write(tmp_path / "below" / "more.yaml", team("more"))
    (tmp_path / name).chmod(0)
    try:
        with pytest.raises(ManifestError, match=f"{name}: cannot be read: Permission denied"):
            read([tmp_path])
    finally:
        (tmp_path / name).chmod(0o755)


def test_the_problems_of_all_files_are_reported_together(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "kind: [")
    write(tmp_path / "b.yaml", team("UPPER"))
    write(tmp_path / "c.yaml", team("demo") + "---\nhello\n")
    with pytest.raises(ManifestError) as caught:
        read([tmp_path, tmp_path / "missing"])
    assert [problem.file.name for problem in caught.value.problems] == ["a.yaml", "b.yaml", "c.yaml", "missing"]


def test_a_model_is_full_when_all_of_its_replicas_are(tmp_path: Path) -> None:
    spec = "{source: file:///w, engineArgs: {max_num_seqs: 8}, scaling: {minReplicas: 3}}"
    write(tmp_path / "model.yaml", model("faq").replace("{source: 'file:///weights'}", spec))
    manifests = read([tmp_path])
    assert catalog(manifests).backends["faq"].concurrency == 24
    assert model_application(manifests.models[0]) == "model-faq"


def test_applications_of_a_model_and_of_a_provider_never_share_a_name(tmp_path: Path) -> None:
    write(tmp_path / "model.yaml", model("hosted"))
    manifests = read([tmp_path, EXAMPLES / "hosted"])
    assert model_application(manifests.models[0]) != provider_application(manifests.providers[0])


def test_a_team_without_routes_may_call_everything_and_one_with_them_only_those(tmp_path: Path) -> None:
    some = team("some") + "spec: {routes: [assistant, hosted/chat]}\n"
    write(tmp_path / "teams.yaml", some + "---\n" + team("all"))
    known = catalog(read([EXAMPLES / "quickstart", tmp_path]))
    assert list(known.callable_by(known.teams["some"])) == ["assistant", "hosted/chat"]
    assert list(known.callable_by(known.teams["all"])) == list(known.routes)
