"""The table of folders in docs/architecture.md, made from the docstrings of the packages."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = "docs/architecture.md"
PACKAGES = ("engine", "streams", "domain", "tables", "agents", "cli", "examples")
BEGIN = "<!-- Made from the packages' docstrings by `make docs`. -->\n"
END = "<!-- The end of what is made. -->\n"


def document() -> str:
    """The text of docs/architecture.md with the table as it should be."""
    before, _, rest = (ROOT / DOCUMENT).read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def table() -> str:
    """One line for each folder that is a package with a docstring, those of a package behind it."""
    lines = [f"| `{path.parent}/` | {summary(path)} |" for path in packages()]
    return "| folder | |\n|---|---|\n" + "".join(f"{line}\n" for line in lines)


def packages() -> list[Path]:
    """The `__init__.py` of each package, in the order of PACKAGES."""
    found = [path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")]
    return sorted(found, key=lambda path: (PACKAGES.index(path.parts[0]), path.parent.parts))


def summary(path: Path) -> str:
    """The first paragraph of a package's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split())
