"""Check what no other tool checks about the layout of this repository.

* `serving/`, `operator/` and `loadtest/` are source roots and never packages: `operator/__init__.py` would take the
  place of Python's own `operator` module, and then nothing starts any more.
* `meritorder.core` imports the standard library and itself alone. import-linter can forbid packages by name, but
  not all that there are.

    python tools/check_layout.py [FOLDER]
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE_ROOTS = ("serving", "operator", "loadtest")
CORE = Path("serving/meritorder/core")
ALLOWED_IN_CORE = "meritorder.core"


def problems(repository: Path) -> Iterator[str]:
    for root in SOURCE_ROOTS:
        if (repository / root / "__init__.py").exists():
            yield f"{root}/__init__.py: {root}/ is a source root and must not be a package; remove this file"
    for file in sorted((repository / CORE).rglob("*.py")):
        for line, module in _imports(file):
            if not _allowed(module):
                where = file.relative_to(repository)
                yield f"{where}:{line}: {ALLOWED_IN_CORE} imports the standard library alone, and this is {module}"


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import would have to be resolved first; this project has none.
            yield node.lineno, "." * node.level + (node.module or "")


def _allowed(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names or f"{module}.".startswith(f"{ALLOWED_IN_CORE}.")


def main() -> int:
    repository = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])
    found = list(problems(repository))
    print("\n".join(found) or "The layout is as it should be.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
