"""The commands as a person meets them, where nothing has to run."""

import contextlib
import io
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from meritorder.cli.client import get_json, stream_chat
from meritorder.cli.local_key import ensure_local_key
from meritorder.cli.main import main
from meritorder.cli.preflight import available_bytes, problems
from meritorder.cli.progress import Progress
from meritorder.cli.running import Running, announce, claimed, find_running
from meritorder.cli.status import applications_table
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.manifests import folder

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
GIB = 1 << 30
COMMANDS = ("up", "down", "status", "chat", "explain", "key", "usage", "validate", "prices")


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERITORDER_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


class TestHelp:
    def test_lists_every_command(self) -> None:
        listed = run("--help").output.partition("Commands:\n")[2].splitlines()
        assert tuple(line.split()[0] for line in listed) == COMMANDS

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_explains_itself(self, command: str) -> None:
        helped = run(command, "--help")
        assert helped.exit_code == 0
        assert f" {command} [OPTIONS]" in helped.output


class TestValidate:
    def test_counts_what_is_valid(self) -> None:
        assert run("validate", "-f", str(QUICKSTART)).output == "valid: 1 Model, 1 Provider, 1 Route, 1 Team\n"

    def test_notes_what_has_no_price(self, tmp_path: Path) -> None:
        (tmp_path / "hosted.yaml").write_text(
            "apiVersion: meritorder.dev/v1alpha1\nkind: Provider\nmetadata: {name: hosted}\n"
            "spec: {type: simulated, models: [{name: chat}, {name: priced, price: {input: 1, output: 2}}]}\n"
        )
        result = run("validate", "-f", str(tmp_path))
        assert (result.exit_code, result.stdout) == (0, "valid: 1 Provider\n")
        assert result.stderr == "note: hosted/chat has no price, so nobody with a budget can use it; give it one\n"

    def test_names_every_problem_and_fails(self, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("apiVersion: meritorder.dev/v1alpha1\nkind: Rout\n---\nkind: 3\n")
        result = run("validate", "-f", str(tmp_path))
        assert result.exit_code == 1
        assert "bad.yaml:2: kind: " in result.output
        assert "bad.yaml:4: kind: " in result.output
        assert "2 problems" in result.output


class TestKey:
    def test_create_prints_the_key_alone_on_standard_output(self, state_dir: Path) -> None:
        result = run("key", "create", "--team", "demo")
        assert result.stdout.startswith("mo-")
        assert len(result.stdout.split()) == 1

    def test_list_shows_keys_without_their_secrets(self, state_dir: Path) -> None:
        key = run("key", "create", "--team", "demo", "--name", "laptop").stdout.strip()
        listed = run("key", "list").output
        assert "laptop" in listed
        assert "in force" in listed
        assert key not in listed

    def test_revoke_is_seen_in_the_list_and_works_once(self, state_dir: Path) -> None:
        key_id = run("key", "create", "--team", "demo").stderr.split()[0]
        assert run("key", "revoke", key_id).exit_code == 0
        assert "revoked" in run("key", "list").output
        again = run("key", "revoke", key_id)
        assert again.exit_code == 1
        assert "meritorder key list" in again.output


class TestLocalKey:
    def test_is_kept_while_it_is_in_force(self, state_dir: Path) -> None:
        assert ensure_local_key(state_dir, "demo") == ensure_local_key(state_dir, "demo")

    def test_is_made_anew_for_another_team_and_the_old_one_revoked(self, state_dir: Path) -> None:
        first = ensure_local_key(state_dir, "demo")
        assert ensure_local_key(state_dir, "other") != first
        assert run("key", "list").output.count("in force") == 1

    def test_can_be_read_by_its_owner_alone(self, state_dir: Path) -> None:
        ensure_local_key(state_dir, "demo")
        assert stat.S_IMODE((state_dir / "local.key").stat().st_mode) == 0o600


HOLD = """
import os, sys
from pathlib import Path
from meritorder.cli.running import Running, announce, claimed

with claimed(Path(sys.argv[1])):
    announce(Path(sys.argv[1]), Running(os.getpid(), "http://127.0.0.1:1", ("m",), ("demo",)))
    print("holds", flush=True)
    sys.stdin.read()
"""


class TestRunning:
    @pytest.fixture
    def other_process(self, state_dir: Path) -> Iterator[None]:
        """Another process that holds the state directory."""
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"holds\n"
            yield
            process.stdin.close()

    @pytest.mark.usefixtures("other_process")
    def test_a_second_platform_on_the_same_state_is_refused_by_name(self, state_dir: Path) -> None:
        running = find_running(state_dir)
        assert running is not None
        result = run("up", "-f", str(QUICKSTART))
        assert result.exit_code == 1
        assert f"process {running.pid}" in result.output
        assert "meritorder down" in result.output

    @pytest.mark.usefixtures("other_process")
    def test_a_key_for_a_team_that_is_not_there_is_refused(self) -> None:
        result = run("key", "create", "--team", "dmeo")
        assert result.exit_code == 1
        assert "it has demo" in result.output

    @pytest.mark.parametrize("command", [["status"], ["chat", "hello"]])
    def test_without_a_platform_the_commands_say_how_to_start_one(self, state_dir: Path, command: list[str]) -> None:
        result = run(*command)
        assert result.exit_code == 1
        assert "meritorder up -f DIR" in result.output

    def test_what_a_dead_platform_left_behind_is_not_taken_for_one(self, state_dir: Path) -> None:
        with claimed(state_dir):
            pass
        announce(state_dir, Running(os.getpid(), "http://127.0.0.1:1", (), ()))
        assert find_running(state_dir) is None
        assert "nothing is running" in run("down").output


HIDE = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest)
"""


class TestPreflight:
    def test_a_port_in_use_is_named_with_the_way_out(self, state_dir: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            result = run("up", "-f", str(QUICKSTART), "--port", str(port))
        assert result.exit_code == 1
        assert f"port {port} on 127.0.0.1 is in use" in result.output
        assert "--port" in result.output
        assert find_running(state_dir) is None

    def test_an_address_of_another_machine_is_refused(self) -> None:
        assert "cannot listen on 192.0.2.1" in _problems(host="192.0.2.1")

    @pytest.mark.parametrize(
        ("package", "extra"),
        [("watchfiles", "ingress"), ("granian", "ingress"), ("ray", "serving"), ("vllm", "vllm-cpu")],
    )
    def test_a_missing_package_is_one_line_that_names_its_extra(
        self, state_dir: Path, tmp_path: Path, package: str, extra: str
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(HIDE.format(package=package))
        result = subprocess.run(
            [sys.executable, "-m", "meritorder.cli", "up", "-f", str(QUICKSTART), "--port", str(_free_port())],
            env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert f"meritorder[{extra}]" in result.stderr
        assert find_running(state_dir) is None

    def test_too_little_memory_says_how_much_is_there_and_how_much_is_needed(
        self, state_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("meritorder.cli.preflight.available_bytes", lambda: GIB)
        result = run("up", "-f", str(QUICKSTART), "--port", str(_free_port()))
        assert result.exit_code == 1
        assert "1.0 GiB of memory are free and about 4.5 are needed" in result.output
        assert find_running(state_dir) is None

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({}, 8),
            ({"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "5"}, 8),
            (
                {
                    "sys/fs/cgroup/memory.max": str(4 * GIB),
                    "sys/fs/cgroup/memory.current": str(3 * GIB),
                    "sys/fs/cgroup/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
                },
                3,
            ),
            (
                {
                    "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
                    "sys/fs/cgroup/memory/memory.usage_in_bytes": str(2 * GIB),
                    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\n",
                },
                1,
            ),
        ],
        ids=["a machine", "no limit", "a container, cgroup v2", "a container, cgroup v1"],
    )
    def test_free_memory_is_what_the_containers_limit_leaves(
        self, tmp_path: Path, files: dict[str, str], expected: int
    ) -> None:
        for name, content in {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {8 * GIB // 1024} kB\n", **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        assert available_bytes(tmp_path) == expected * GIB


def _problems(host: str = "127.0.0.1") -> str:
    return "\n".join(problems(folder.read([QUICKSTART]), host, 0))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class TestErrors:
    def test_a_state_directory_that_cannot_be_one_is_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MERITORDER_STATE_DIR", "/dev/null/state")
        for command in (["key", "list"], ["up", "-f", str(QUICKSTART)]):
            result = run(*command)
            assert result.exit_code == 1
            assert "/dev/null/state" in result.output
            assert isinstance(result.exception, SystemExit)

    def test_manifests_that_nothing_could_answer_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "team.yaml").write_text((QUICKSTART / "team.yaml").read_text())
        result = run("up", "-f", str(tmp_path))
        assert result.exit_code == 1
        assert "neither a Model nor a Provider" in result.output

    def test_what_looks_like_markup_in_a_message_is_shown_as_it_is(self) -> None:
        output = io.StringIO()
        console = Console(file=output, width=200)
        status = ApplicationStatus("model-x", Phase.FAILED, message="cannot read [/data/model] for [generate]")
        with Progress(console) as progress:
            progress.show([status])
        console.print(applications_table([status]))
        assert output.getvalue().count("cannot read [/data/model] for [generate]") == 2


class TestClient:
    """The commands' own HTTP client."""

    @pytest.fixture
    def answers(self) -> Iterator[list[bytes]]:
        """What a server on loopback sends, one connection after another; its port is the last item."""
        scripted: list[bytes] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(scripted[0])

        with socket.create_server(("127.0.0.1", 0)) as server:
            scripted.append(b"")
            scripted.append(str(server.getsockname()[1]).encode())
            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            yield scripted
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)

    def test_it_never_goes_through_a_proxy_which_would_get_the_key(
        self, answers: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        answers[0] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
        assert get_json(f"http://127.0.0.1:{answers[1].decode()}/readyz", "mo-key") == {}

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n40\r\ndata: {",
            b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\ndata: {oops\n",
            b"HTTP/1.1 502 Bad\r\ncontent-length: 6\r\n\r\n<html>",
            b"nonsense",
            b"",
        ],
        ids=["cut", "no JSON", "a proxy's error", "no HTTP", "nothing"],
    )
    def test_whatever_goes_wrong_with_an_answer_is_a_sentence(self, answers: list[bytes], answer: bytes) -> None:
        answers[0] = answer
        with pytest.raises(click.ClickException):
            list(stream_chat(f"http://127.0.0.1:{answers[1].decode()}", "mo-key", {}).deltas)
        with pytest.raises(click.ClickException):
            get_json(f"http://127.0.0.1:{answers[1].decode()}/readyz")
