"""The environment variables of a private Ray cluster: pure.

Everything that Ray starts inherits what `meritorder up` was given, and so the keys that providers take from there
(`credentials.env`) reach the models' replicas, too, who have no use for them. Only the providers' replicas need
them, but all of Ray's processes are forked from one. Where that is not wanted, `credentials.file` keeps a key
out of every environment; on a cluster the Secret is mounted into the providers' pods alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meritorder.deployments.loopback import VARIABLE as LOOPBACK

# Settings of another cluster, or of the job that this process may itself run in.
FOREIGN = (
    "RAY_ADDRESS",
    "RAY_NAMESPACE",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_JOB_ID",
    "RAY_TMPDIR",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_RUNTIME_ENV_HOOK",
)


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports on 127.0.0.1, all different."""

    http: int
    fallback_http: int
    fallback_grpc: int
    haproxy_metrics: int
    haproxy_stats: int


def environment(
    inherited: Mapping[str, str], *, run_dir: Path, state_dir: Path, ports: Ports, token: str, cpus: int
) -> dict[str, str]:
    """The variables for Ray's processes, who inherit them from the driver.

    `run_dir` must be short: sockets below it have paths of up to 80 more bytes, and Linux allows 107.
    """
    env = {name: value for name, value in inherited.items() if name not in FOREIGN}
    haproxy = run_dir / "h"
    env |= {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(run_dir / "haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(haproxy / "log"),  # nobody listens: no access log
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(cpus, 4)),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        # A model that fails to load fails again: say so at once instead of after three long attempts.
        "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",
        # No load balancer but our own HAProxy has to notice that a replica leaves.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # The only way to keep Ray's own servers on loopback: otherwise it replaces 127.0.0.1 as the address of
        # the node by that of a network interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        LOOPBACK: "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_register_timeout_seconds": "120",
        "TMPDIR": str(run_dir / "t"),
        "VLLM_RPC_BASE_PATH": str(run_dir / "t"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if env.pop("PYTHONDONTWRITEBYTECODE", None):
        # Each process would compile vLLM and torch again: 6 s, every time.
        env.setdefault("PYTHONPYCACHEPREFIX", str(state_dir / "pycache"))
    return env
