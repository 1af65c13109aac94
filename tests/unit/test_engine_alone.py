"""The engine knows no application: importing it, or any module of it, loads none of the shop's packages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OF_THE_SHOP = "{'streams', 'domain', 'tables', 'agents', 'cli'}"
LOADED = f"assert not (found := {{name.split('.')[0] for name in sys.modules}} & {OF_THE_SHOP}), found"
EVERY_MODULE = "[importlib.import_module(info.name) for info in pkgutil.walk_packages(engine.__path__, 'engine.')]"


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param("import engine, sys", id="the package"),
        pytest.param(f"import engine, importlib, pkgutil, sys; {EVERY_MODULE}", id="every module of it"),
    ],
)
def test_importing_the_engine_loads_no_package_of_the_shop(statements: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{statements}; {LOADED}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
