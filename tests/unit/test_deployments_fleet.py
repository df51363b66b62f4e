"""What a change of the manifests does to the applications that run, without Ray."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.applications import model_entry
from meritorder.deployments.local.fleet import Fleet
from meritorder.deployments.local.restarts import MAX_RESTARTS
from meritorder.manifests.kinds import Model

REFUSED = "the last change cannot be deployed, and the version before stays in force: "
TOO_MANY_CPUS = "a replica needs 64 CPUs, and this machine has 2"


class FakeServe:
    """Runs what it is given at once; `broken` applications fail."""

    def __init__(self) -> None:
        self.deployed: dict[str, dict[str, Any]] = {}
        self.broken: set[str] = set()
        self.generation = 0

    def deploy(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self.deployed = {entry["name"]: entry["args"] for entry in entries}

    def applications(self) -> Mapping[str, Any]:
        return {name: self._details(name) for name in self.deployed}

    def _details(self, name: str) -> dict[str, Any]:
        state = "STARTING" if name in self.broken else "RUNNING"
        replica = {"replica_id": f"{name}-{self.generation}", "state": state}
        engine = {"message": "", "replicas": [replica], "target_num_replicas": 1}
        status = "DEPLOY_FAILED" if name in self.broken else "RUNNING"
        return {"status": status, "message": "", "deployments": {"engine": engine}}


class Cluster:
    """A fleet on a fake Serve and a machine with two CPUs."""

    def __init__(self) -> None:
        self.serve = FakeServe()
        self._fleet = Fleet(self.serve, "http://x", Path("/none"), {"CPU": 2.0}, answers=lambda _: True)

    def apply(self, *models: Model) -> None:
        self._fleet.apply([model_entry(model) for model in models])

    def statuses(self) -> dict[str, ApplicationStatus]:
        self._fleet.advance()
        return {status.application: status for status in self._fleet.statuses()}

    def sequences(self, name: str) -> Any:
        """The `max_num_seqs` with which model `name` is deployed; None where it is not."""
        args = self.serve.deployed.get(f"model-{name}")
        return args and args["manifest"]["spec"]["engineArgs"]["max_num_seqs"]


def model(name: str, sequences: int, cpu: int = 1) -> Model:
    spec = {"source": "hf://org/name", "engineArgs": {"max_num_seqs": sequences}, "resources": {"cpu": cpu}}
    written = {"apiVersion": "meritorder.dev/v1alpha1", "kind": "Model", "metadata": {"name": name}, "spec": spec}
    return Model.model_validate(written)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.apply(model("faq", 1), model("other", 1))
    assert {status.phase for status in cluster.statuses().values()} == {Phase.READY}
    return cluster


def test_a_change_that_cannot_be_deployed_leaves_the_version_before(cluster: Cluster) -> None:
    cluster.apply(model("faq", 2, cpu=64), model("other", 2))
    assert (cluster.sequences("faq"), cluster.sequences("other")) == (1, 2)
    status = cluster.statuses()["model-faq"]
    assert (status.phase, status.message) == (Phase.READY, REFUSED + TOO_MANY_CPUS)


def test_the_version_before_outlasts_changes_elsewhere_and_a_second_mistake(cluster: Cluster) -> None:
    cluster.apply(model("faq", 2, cpu=64), model("other", 1))
    cluster.apply(model("faq", 2, cpu=64), model("other", 2))
    cluster.apply(model("faq", 3, cpu=65), model("other", 2))
    assert cluster.sequences("faq") == 1
    assert cluster.statuses()["model-faq"].message == REFUSED + TOO_MANY_CPUS.replace("64", "65")


@pytest.mark.parametrize("sequences", [1, 2], ids=["undone", "put right"])
def test_the_refusal_is_forgotten_when_the_change_is(cluster: Cluster, sequences: int) -> None:
    cluster.apply(model("faq", 2, cpu=64))
    cluster.apply(model("faq", sequences))
    status = cluster.statuses()["model-faq"]
    assert cluster.sequences("faq") == sequences
    assert (status.phase, status.message) == (Phase.READY, "")


def test_an_undone_change_does_not_restart_the_model(cluster: Cluster) -> None:
    before = cluster.serve.deployed["model-faq"]
    cluster.apply(model("faq", 2, cpu=64))
    cluster.apply(model("faq", 1))
    assert cluster.serve.deployed["model-faq"] == before


def test_without_a_version_before_nothing_is_deployed(cluster: Cluster) -> None:
    cluster.apply(model("new", 1, cpu=64))
    status = cluster.statuses()["model-new"]
    assert (status.phase, status.message) == (Phase.FAILED, TOO_MANY_CPUS)
    assert cluster.serve.deployed == {}


def test_a_version_before_that_failed_is_not_kept(cluster: Cluster) -> None:
    cluster.serve.broken = {"model-faq"}
    assert cluster.statuses()["model-faq"].phase is Phase.FAILED
    cluster.apply(model("faq", 2, cpu=64))
    status = cluster.statuses()["model-faq"]
    assert (status.phase, status.message) == (Phase.FAILED, TOO_MANY_CPUS)
    assert cluster.serve.deployed == {}


def test_what_has_failed_is_tried_again_with_other_arguments(cluster: Cluster) -> None:
    before = cluster.serve.deployed["model-faq"]
    cluster.serve.broken = {"model-faq"}
    cluster.statuses()
    cluster.serve.broken = set()
    cluster.apply(model("faq", 1))
    assert cluster.serve.deployed["model-faq"] != before, "or Serve would not build it anew"
    assert cluster.statuses()["model-faq"].phase is Phase.READY


def test_a_model_that_is_removed_is_removed_with_its_refused_change(cluster: Cluster) -> None:
    cluster.apply(model("faq", 2, cpu=64), model("other", 1))
    cluster.apply(model("other", 1))
    assert set(cluster.serve.deployed) == set(cluster.statuses()) == {"model-other"}


def test_what_restarts_without_end_is_stopped(cluster: Cluster) -> None:
    for generation in range(MAX_RESTARTS + 3):
        cluster.serve.generation = generation
        cluster.statuses()
    status = cluster.statuses()["model-faq"]
    assert status.phase is Phase.FAILED
    assert "stopped: it had to be restarted more than" in status.message
    assert cluster.serve.deployed == {}
