"""The ingress starts soon, and its image has neither Ray nor an engine."""

import subprocess
import sys

HEAVY = {"ray", "vllm", "torch", "numpy", "transformers", "uvicorn", "kubernetes"}


def test_the_ingress_imports_nothing_heavy() -> None:
    code = "import meritorder.ingress.__main__, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert HEAVY.isdisjoint(modules)
    assert "granian" in modules
