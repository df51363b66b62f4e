"""Merit Order: one endpoint that ranks your own GPUs and hosted APIs for every request.

Folders, from the ground up; an import goes downwards only (import-linter checks it):

* `core`: plain types and rules that everything shares; standard library only.
* `wire`, `routing`: pure functions, of bytes and of snapshots.
* `manifests`, `ledger`, `backends`, `telemetry`, `system`, `testing`: one kind of I/O each.
* `ingress`, `deployments`, `cli`: the programs that put the parts together.
"""

__version__ = "0.1.0"
