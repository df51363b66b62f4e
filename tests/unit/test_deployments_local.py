"""What surrounds a local cluster: environment, credentials, processes. The cluster itself is in `dataplane`."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meritorder.deployments.credentials import Credential, CredentialError, credential
from meritorder.deployments.egress import proxy_for
from meritorder.deployments.local.environment import Ports, environment
from meritorder.deployments.local.supervisor import free_ports
from meritorder.manifests.kinds import Credentials
from meritorder.system import processes
from meritorder.system.processes import descendants

RUN_DIR = Path("/tmp/mo-abcdefgh")
PORTS = Ports(8000, 8001, 8002, 8003, 8004)


def made(inherited: dict[str, str]) -> dict[str, str]:
    state_dir = Path("/home/u/project/.meritorder")
    return environment(inherited, run_dir=RUN_DIR, state_dir=state_dir, ports=PORTS, token="t", cpus=2)


def test_sockets_have_paths_that_linux_takes() -> None:
    env = made({})
    node_id, temporary_suffix = "/" + "f" * 56, ".1234567.tmp"
    for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"):
        assert len(env[name] + node_id + temporary_suffix) <= 107
    session = "/r/session_2026-11-22_11-44-37_414183_1234567/sockets/plasma_store"
    assert len(str(RUN_DIR) + session) <= 107


def test_another_cluster_is_neither_joined_nor_believed() -> None:
    env = made({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN": "theirs", "RAY_AUTH_TOKEN_PATH": "/x", "HOME": "/h"})
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"} & env.keys()
    assert env["RAY_AUTH_TOKEN"] == "t"
    assert env["RAY_AUTH_MODE"] == "token"
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"
    assert env["HOME"] == "/h"


def test_compiled_modules_are_kept_somewhere_even_where_python_is_told_not_to() -> None:
    assert "PYTHONPYCACHEPREFIX" not in made({})
    env = made({"PYTHONDONTWRITEBYTECODE": "1"})
    assert "PYTHONDONTWRITEBYTECODE" not in env
    assert env["PYTHONPYCACHEPREFIX"] == "/home/u/project/.meritorder/pycache"


def test_ports_are_free_and_different() -> None:
    ports = free_ports(0)
    assert len({ports.http, ports.fallback_http, ports.fallback_grpc, ports.haproxy_metrics, ports.haproxy_stats}) == 5


def test_descendants_are_found_through_all_generations() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        below = descendants(child.pid)
        assert len(below) == 1
        child.communicate(b"\n")


@pytest.mark.parametrize("parent", ["os.getppid()", "os.getpid()"], ids=["runs", "has ended"])
def test_a_child_does_not_outlive_its_parent(parent: str) -> None:
    script = f"import os; from meritorder.system.processes import exit_with_parent; exit_with_parent({parent})"
    ended = subprocess.run([sys.executable, "-c", script], check=False).returncode
    assert ended == (0 if parent == "os.getppid()" else -signal.SIGTERM)


def test_a_kernel_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PR_SET_CHILD_SUBREAPER", -1)
    with pytest.raises(OSError, match="prctl"):
        processes.adopt_orphans()


def test_a_key_is_in_no_representation() -> None:
    key = Credential(variable="K")
    assert key.authorization({"K": " sk-secret\n"}) == "Bearer sk-secret"
    assert "sk-secret" not in repr(key)


@pytest.mark.parametrize("value", ["", "  \n", "two words", "line\nbreak", "schlüssel"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(CredentialError, match="the environment variable K") as error:
        Credential(variable="K").authorization({"K": value})
    assert not value.strip() or value not in str(error.value)


def test_a_file_that_disappears_for_a_moment_keeps_its_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-secret\n")
    key = Credential(file=file)
    assert key.authorization() == "Bearer sk-secret"
    file.write_text("")
    assert key.authorization() == "Bearer sk-secret"
    file.unlink()
    assert key.authorization() == "Bearer sk-secret"


def test_a_file_that_never_was_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=f"the file {tmp_path}/key"):
        Credential(file=tmp_path / "key").authorization()


def test_a_secret_is_a_file_in_the_folder_of_secrets() -> None:
    manifest = Credentials.model_validate({"secretRef": {"name": "acme", "key": "api-key"}})
    assert credential(manifest, {}).file == Path("/var/run/secrets/meritorder/acme/api-key")
    assert credential(manifest, {"MERITORDER_SECRETS_DIR": "/s"}).file == Path("/s/acme/api-key")


def test_the_way_out_is_the_companys_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.corp:3128")
    monkeypatch.setenv("http_proxy", "http://proxy.corp:3128")
    monkeypatch.setenv("no_proxy", "internal.corp")
    assert proxy_for("https://api.example.com/v1") == "http://proxy.corp:3128"
    assert proxy_for("https://llm.internal.corp/v1") is None
    assert proxy_for("http://127.0.0.1:9000/v1") is None
