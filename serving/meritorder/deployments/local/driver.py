"""The Ray driver of a local cluster: starts Ray and Serve, applies commands, reports statuses.

Commands come as JSON lines on standard input, events go out the same way; `supervisor` starts and ends it.

    {"apply": [<entry of a Serve config>, ...]}
    {"serving": "http://127.0.0.1:8000"}   {"statuses": [{...}, ...]}   {"failed": "one sentence"}
"""

import json
import os
import queue
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from meritorder.core.status import ApplicationStatus
from meritorder.deployments.local.fleet import Fleet
from meritorder.deployments.loopback import ADDRESS
from meritorder.system.processes import adopt_orphans, end_descendants

POLL = 0.25
"""Seconds between two looks at Serve."""


class LocalServe:
    """Serve's declarative API in this process: the REST API, which does the same, would need Ray's dashboard."""

    def deploy(self, entries: Iterable[Mapping[str, Any]]) -> None:
        client: Any = _get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": list(entries)}))

    def applications(self) -> Mapping[str, Any]:
        client: Any = _get_global_client()
        found: Mapping[str, Any] = client.get_serve_details().get("applications", {})
        return found


def start(run_dir: Path, http_port: int) -> Path:
    """Start Ray and Serve, and return the folder of Ray's log files."""
    ray.init(
        address="local",  # never a cluster that already runs here
        namespace="serve",
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address=ADDRESS,
        _temp_dir=str(run_dir / "r"),
    )
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=ADDRESS, port=http_port))
    node = ray._private.worker._global_node
    assert node is not None
    return Path(node.get_logs_dir_path())


def run(fleet: Fleet, commands: IO[str], events: IO[str], end: Callable[[], None]) -> None:
    """Apply what comes and report what changes; calls `end`, in a thread, when no more can come."""
    received: queue.SimpleQueue[list[dict[str, Any]]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(commands, received, end), daemon=True).start()
    reported: list[ApplicationStatus] = []
    while True:
        try:
            fleet.apply(received.get(timeout=POLL))
        except queue.Empty:
            fleet.advance()
        statuses = fleet.statuses()
        if statuses != reported:
            emit(events, {"statuses": [status.to_json() for status in statuses]})
            reported = statuses


def emit(events: IO[str], event: Mapping[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


def main(run_dir: Path, http_port: int) -> None:
    # Whatever prints to standard output ends in the log; events have a descriptor of their own.
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    adopt_orphans()
    try:
        logs = start(run_dir, http_port)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        base_url = f"http://{ADDRESS}:{http_port}"
        emit(events, {"serving": base_url})
        run(Fleet(LocalServe(), base_url, logs, resources), sys.stdin, events, lambda: _end(run_dir))
    except BaseException as error:
        traceback.print_exc()
        emit(events, {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]})
        raise


def _read(commands: IO[str], received: "queue.SimpleQueue[list[dict[str, Any]]]", end: Callable[[], None]) -> None:
    for line in commands:
        received.put(json.loads(line)["apply"])
    end()


def _end(run_dir: Path) -> None:
    # Only reached when the supervisor was killed: it would have ended this process, too.
    # The folder first: without its raylet, Ray may end this process at any moment.
    shutil.rmtree(run_dir, ignore_errors=True)
    end_descendants()
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
