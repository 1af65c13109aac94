"""Doors: packages whose public names are imported from their own modules when they are first asked for.

The names of a door stand once, in the stub `__init__.pyi` beside its `__init__.py`, which type checkers and editors
read as it is. So `from engine import Envelope` costs neither Faust nor a web server, and the pure parts of an
application may use the same door as all others.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def names_in(stub: Path) -> Mapping[str, tuple[str, str]]:
    """The names that a stub exports, each with its module and with its name there."""
    found = [node for node in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    return {name.asname or name.name: (node.module or "", name.name) for node in found for name in node.names}


def open_door(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make `__getattr__`, `__dir__` and `__all__` of a package from the stub beside its `file`."""
    homes = names_in(Path(file).with_suffix(".pyi"))

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = homes[name]
        value = getattr(importlib.import_module(module), original)
        setattr(sys.modules[package], name, value)  # asked for once
        return value

    return get, lambda: sorted(homes), sorted(homes)
