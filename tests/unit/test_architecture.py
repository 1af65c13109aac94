"""Rules of the code as a whole that import-linter does not reach: circles of imports, long modules, full folders."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("engine", "streams", "domain", "tables", "agents", "cli", "examples")
LINES_MAX = 400
MODULES_MAX = 15  # in a folder


def modules_of(root: Path) -> dict[str, Path]:
    """All modules of the code, tests aside, by name."""
    files = [file for package in CODE for file in (root / package).rglob("*.py")]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports_of(file: Path, modules: Mapping[str, Path]) -> set[str]:
    """The modules that a module imports, those for type checking and inside of functions included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{part.name}") in modules else node.module for part in node.names}
    return found & modules.keys()


def circles(root: Path) -> dict[str, set[str]]:
    """The modules in circles of imports, and those between them, each with what it imports of them."""
    modules = modules_of(root)
    left = {name: imports_of(file, modules) - {name} for name, file in modules.items()}
    importers = {name: {other for other in left if name in left[other]} for name in left}
    while free := [name for name in left if not left[name] & left.keys() or not importers[name] & left.keys()]:
        for name in free:
            del left[name]
    return {name: imported & left.keys() for name, imported in left.items()}


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert len(modules_of(ROOT)) > 300
    assert circles(ROOT) == {}


def test_no_module_is_longer_than_400_lines() -> None:
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in modules_of(ROOT).items()}
    del lines["examples.sensors.app"]  # a whole application in one file, to be read from top to bottom
    assert {name: count for name, count in lines.items() if count > LINES_MAX} == {}


def test_no_folder_has_more_than_15_modules() -> None:
    in_folder = Counter(
        file.parent.relative_to(ROOT).as_posix() for file in modules_of(ROOT).values() if file.name != "__init__.py"
    )
    assert {folder: count for folder, count in in_folder.items() if count > MODULES_MAX} == {}
