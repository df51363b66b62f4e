"""The stand-in for providers of type `simulated`, in a process of its own."""

import select
import subprocess
from pathlib import Path

from meritorder.cli.child import Process
from meritorder.manifests.folder import ManifestSet

_START_SECONDS = 20.0
_SCRIPT = Path(__file__).with_name("simulated.yaml")
_READY = "simulated upstream on "


class SimulatedUpstream:
    """Starts when a provider first wants it, and serves the models of all that do."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._models: frozenset[str] = frozenset()
        self._url: str | None = None
        self.process: Process | None = None

    def serve(self, manifests: ManifestSet) -> None:
        """Start it if `manifests` want it and it does not serve their models yet. Does not wait for it."""
        wanted = _simulated_models(manifests)
        if wanted <= self._models:
            return
        self.stop()
        arguments = [argument for model in sorted(wanted) for argument in ("--model", model)]
        arguments += ["--script", str(_SCRIPT)]
        self._models, self._url = wanted, None
        self.process = Process("meritorder.testing.upstream", arguments, self._log, stdout=subprocess.PIPE)

    @property
    def url(self) -> str | None:
        """Its base URL, `/v1` included; None while nobody wants it, or where it has not come up."""
        if self._url is None and self.process is not None:
            line = _first_line(self.process)
            self._url = line.removeprefix(_READY).strip() + "/v1" if line.startswith(_READY) else None
        return self._url

    def restart(self, manifests: ManifestSet) -> None:
        """Begin anew, at another URL."""
        self.stop()
        self._models = frozenset()
        self.serve(manifests)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None


def _simulated_models(manifests: ManifestSet) -> frozenset[str]:
    return frozenset(
        model.upstream_name or model.name
        for provider in manifests.providers
        if provider.spec.type == "simulated"
        for model in provider.spec.models
    )


def _first_line(process: Process) -> str:
    output = process.popen.stdout
    assert output is not None
    readable, _, _ = select.select([output], [], [], _START_SECONDS)
    return output.readline().decode() if readable else ""
