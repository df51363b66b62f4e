"""A running platform follows its manifests."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

ROUTE = """\
apiVersion: meritorder.dev/v1alpha1
kind: Route
metadata: {name: helper}
spec: {candidates: [{model: faq}]}
"""

PROVIDER = """\
apiVersion: meritorder.dev/v1alpha1
kind: Provider
metadata: {name: late}
spec:
  type: simulated
  models:
    - {name: latecomer, price: {input: 1, output: 1}}
"""


@pytest.fixture
def manifest(platform: Any, until: Any) -> Any:
    """A file among the manifests, gone after the test."""
    file: Path = platform.manifests / "changed.yaml"
    generation = platform.readiness()["configuration"]["generation"]
    yield file
    file.unlink(missing_ok=True)
    until(
        lambda: _in_force(platform) and platform.readiness()["configuration"]["generation"] != generation, 5, "undone"
    )


def test_a_new_route_can_be_called_at_once(platform: Any, manifest: Path, until: Any) -> None:
    manifest.write_text(ROUTE)
    until(lambda: "helper" in _names(platform), 5, "the new route is listed")


def test_a_broken_manifest_is_reported_and_changes_nothing(platform: Any, manifest: Path, until: Any) -> None:
    manifest.write_text(ROUTE)
    until(lambda: "helper" in _names(platform), 5, "the new route is listed")
    manifest.write_text(ROUTE.replace("model: faq", "model: fqa"))
    until(lambda: not _in_force(platform), 5, "the mistake is seen")
    problem = platform.readiness()["configuration"]["problem"]
    assert "changed.yaml:4" in problem
    assert "did you mean 'faq'?" in problem
    assert "helper" in _names(platform)
    status = platform.command("status")
    assert status.returncode == 1
    assert "changed.yaml:4" in status.stdout.replace("\n", "")
    until(lambda: "did you mean 'faq'?" in platform.log.read_text(), 5, "`up` has said so, too")


def test_a_new_provider_is_deployed_and_answers(platform: Any, manifest: Path, until: Any) -> None:
    manifest.write_text(PROVIDER)
    until(lambda: platform.phase("provider-late")["phase"] == "Ready", 60, "the new provider is ready")
    answer = platform.client().chat.completions.create(
        model="late/latecomer", messages=[{"role": "user", "content": "hello"}]
    )
    assert "simulated" in answer.choices[0].message.content.lower()
    # What was running has not been disturbed.
    assert platform.phase("model-faq")["phase"] == "Ready"


def test_what_failed_is_said_in_one_sentence(platform: Any) -> None:
    broken = platform.phase("model-broken")
    assert broken["phase"] == "Failed"
    assert "/nowhere/to/be/found" in broken["message"]
    assert "\n" not in broken["message"]
    keyless = platform.phase("provider-keyless")
    assert keyless["phase"] == "Failed"
    assert "A_VARIABLE_THAT_IS_NOT_SET" in keyless["message"]
    status = platform.command("status")
    assert "/nowhere/to/be/found" in status.stdout
    assert status.returncode == 1


def _names(platform: Any) -> set[str]:
    return {model.id for model in platform.client().models.list()}


def _in_force(platform: Any) -> bool:
    return platform.readiness()["configuration"]["problem"] is None
