"""The guard of the layout finds what it is there for, and nothing in this repository."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def check(repository: Path) -> tuple[int, str]:
    command = [sys.executable, str(REPOSITORY / "tools" / "check_layout.py"), str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout.strip()


def write(repository: Path, name: str, text: str = "") -> None:
    (repository / name).parent.mkdir(parents=True, exist_ok=True)
    (repository / name).write_text(text)


def test_this_repository_is_laid_out_as_it_should_be() -> None:
    assert check(REPOSITORY) == (0, "The layout is as it should be.")


@pytest.mark.parametrize("root", ["serving", "operator", "loadtest"])
def test_a_source_root_that_became_a_package_is_found(tmp_path: Path, root: str) -> None:
    write(tmp_path, f"{root}/__init__.py")
    status, output = check(tmp_path)
    assert status == 1
    assert output.startswith(f"{root}/__init__.py: ")


def test_a_package_below_a_source_root_is_as_it_should_be(tmp_path: Path) -> None:
    write(tmp_path, "operator/meritorder_operator/__init__.py")
    assert check(tmp_path)[0] == 0


@pytest.mark.parametrize(
    "line",
    [
        "import pydantic",
        "import json, pydantic.fields",
        "from pydantic import BaseModel",
        "import meritorder.wire",
        "from meritorder import corelike",
        "from meritorder.core_extra import x",
        "from . import money",
        "def f():\n    import pydantic",
    ],
)
def test_an_import_in_core_that_is_not_of_the_standard_library_is_found(tmp_path: Path, line: str) -> None:
    write(tmp_path, "serving/meritorder/core/sub/a.py", f"import json\n{line}\n")
    status, output = check(tmp_path)
    assert status == 1
    assert output.startswith("serving/meritorder/core/sub/a.py:")
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    "line", ["import decimal", "from collections.abc import Iterable", "import meritorder.core.pricing"]
)
def test_an_import_in_core_of_the_standard_library_or_of_itself_is_allowed(tmp_path: Path, line: str) -> None:
    write(tmp_path, "serving/meritorder/core/a.py", line)
    assert check(tmp_path)[0] == 0
