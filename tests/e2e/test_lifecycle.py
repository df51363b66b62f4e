"""`up` and `down`: what starts stops, whatever happens, and can start again at once.

These platforms have providers only, which takes seconds.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

MANIFESTS = """\
apiVersion: meritorder.dev/v1alpha1
kind: Provider
metadata: {name: hosted}
spec:
  type: simulated
  models:
    - {name: chat, price: {input: 1, output: 1}}
---
apiVersion: meritorder.dev/v1alpha1
kind: Team
metadata: {name: demo}
"""


class Small:
    """A platform without vLLM, that a test starts and ends as it likes."""

    def __init__(self, folder: Path, port: int) -> None:
        self.manifests = folder / "manifests.yaml"
        self.manifests.write_text(MANIFESTS)
        self.state_dir = folder / "state"
        self.port = port
        self.mark = f"MERITORDER_TEST_RUN={folder}"
        self.environment = {
            **os.environ,
            "MERITORDER_STATE_DIR": str(self.state_dir),
            "MERITORDER_TEST_RUN": str(folder),
        }
        self.log = folder / "up.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def up(self, *arguments: str) -> "subprocess.Popen[bytes]":
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "meritorder.cli", "up", "-f", str(self.manifests), "--port", str(self.port),
                 *arguments],
                env=self.environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def pid_of(self, part: str) -> int:
        """The process of this platform whose command line has `part`."""
        return next(pid for pid, title in self._processes() if part in title)

    def left_running(self) -> set[str]:
        """The command lines of all its processes."""
        return {title[:200] for _, title in self._processes()}

    def _processes(self) -> Iterator[tuple[int, str]]:
        """Every process that descends from this platform: they inherit a mark in their environment.

        But for the ingress, whose server takes that place for its title, which has the port.
        """
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if marked or f"127.0.0.1:{self.port}" in title:
                yield int(entry.name), title


@pytest.fixture
def small(tmp_path: Path, port: int) -> Iterator[Small]:
    platform = Small(tmp_path, port)
    yield platform
    for process in platform.processes:
        if process.poll() is None:  # the test has failed
            process.terminate()
            process.wait(30)


def test_it_answers_soon_stops_whole_and_starts_again_at_once(small: Small, until: Any) -> None:
    for _ in range(2):
        began = time.monotonic()
        process = small.up("--demo")
        until(lambda: "Ctrl-C stops it" in small.log.read_text(), 60, f"it is up\n{small.log.read_text()}")
        print(f"up after {time.monotonic() - began:.1f} s")
        assert "hosted/chat (simulated)" in small.log.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert "nothing is left running" in small.log.read_text()
        assert small.left_running() == set()


@pytest.mark.parametrize("after", ["", "Ray and Serve"], ids=["at once", "while it deploys"])
def test_ctrl_c_during_the_start_leaves_nothing(small: Small, until: Any, after: str) -> None:
    process = small.up()
    until(lambda: len(small.left_running()) > 1 and after in small.log.read_text(), 60, "it has begun")
    process.send_signal(signal.SIGINT)
    process.wait(30)
    until(lambda: not small.left_running(), 5, "all is gone")


def test_a_kill_leaves_nothing_either(small: Small, until: Any) -> None:
    process = small.up()
    until(lambda: "Ctrl-C stops it" in small.log.read_text(), 60, "it is up")
    process.kill()
    process.wait(10)
    until(lambda: not small.left_running(), 30, "all is gone")


@pytest.mark.parametrize("part", ["worker-1", "local.driver", "testing.upstream"])
def test_a_part_that_dies_is_started_again(small: Small, until: Any, run: Any, part: str) -> None:
    small.up()
    until(lambda: "Ctrl-C stops it" in small.log.read_text(), 60, "it is up")
    os.kill(small.pid_of(part), signal.SIGKILL)
    until(lambda: "is started again" in small.log.read_text(), 60, "it is mended")
    until(lambda: "simulated" in run(small.environment, "chat", "hello").stdout.lower(), 60, "it answers again")


def test_down_ends_it_from_elsewhere_and_status_and_chat_say_so(small: Small, until: Any, run: Any) -> None:
    process = small.up()
    until(lambda: "Ctrl-C stops it" in small.log.read_text(), 60, "it is up")
    status = run(small.environment, "status")
    assert status.returncode == 0
    assert "provider-hosted" in status.stdout
    assert "simulated" in run(small.environment, "chat", "hello").stdout.lower()
    second = run(small.environment, "up", "-f", str(small.manifests), "--port", "1")
    assert second.returncode == 1
    assert "already running" in second.stderr
    assert run(small.environment, "down").stdout == "stopped\n"
    assert process.wait(5) == 0
    for command in (["status"], ["chat", "hello"]):
        after = run(small.environment, *command)
        assert after.returncode == 1
        assert "nothing is running" in after.stderr
    assert "nothing is running" in run(small.environment, "down").stdout


def test_a_port_in_use_is_one_line_and_nothing_starts(small: Small) -> None:
    with socket.create_server(("127.0.0.1", small.port)):
        process = small.up()
        assert process.wait(30) == 1
    lines = small.log.read_text().splitlines()
    assert len(lines) == 1
    assert f"port {small.port}" in lines[0]
    assert "--port" in lines[0]
