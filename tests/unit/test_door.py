"""The front door: its names are there, cost nothing until they are asked for, and are no names of its own modules."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.door import names_in

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("engine", "engine.cli", "engine.inspection", "engine.web")
HEAVY = ("faust", "mode", "aiokafka", "rocksdict", "aiohttp", "pydantic")


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_the_door_is_what_its_own_module_calls_so(room: str) -> None:
    package = importlib.import_module(room)
    for name, (module, original) in names_in(ROOT / room.replace(".", "/") / "__init__.pyi").items():
        assert getattr(package, name) is getattr(importlib.import_module(module), original)
        assert name in dir(package)


@pytest.mark.parametrize("room", ROOMS)
def test_no_name_of_the_door_is_hidden_by_a_module_beside_it(room: str) -> None:
    package = importlib.import_module(room)
    beside = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not beside & set(package.__all__)


def test_a_name_that_is_not_there_is_said_as_python_says_it() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Sevrice' from 'engine'"):
        from engine import Sevrice  # type: ignore[attr-defined]  # noqa: F401


def loaded_after(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has after a statement."""
    script = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_declaring_messages_through_the_door_loads_no_faust_no_web_server_and_no_store() -> None:
    loaded = loaded_after("import engine.web, engine.cli, engine.inspection\nfrom engine import Envelope, Message")
    assert not loaded & {*HEAVY, "streams", "domain", "tables", "agents", "cli"}


def imports_of(file: Path) -> set[str]:
    """The modules that a file imports from."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return found | {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}


@pytest.mark.parametrize("folder", ["streams", "domain", "tables", "agents", "cli", "examples"])
def test_applications_import_from_the_engine_by_its_door_alone(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    past_the_door = {
        (str(file.relative_to(ROOT)), module)
        for file in files
        for module in imports_of(file)
        if module.split(".")[0] == "engine" and module not in ROOMS
    }
    assert past_the_door == set()


def test_the_domain_takes_messages_and_times_of_the_door_and_nothing_else() -> None:
    homes = names_in(ROOT / "engine" / "__init__.pyi")
    nodes = [node for file in (ROOT / "domain").rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    taken = {
        homes[name.name][0]
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "engine"
        for name in node.names
    }
    assert taken == {"engine.declare.envelope", "engine.declare.times"}
    assert not any(name.name == "engine" for node in nodes if isinstance(node, ast.Import) for name in node.names)


def test_the_sensors_know_no_shop() -> None:
    loaded = loaded_after("import examples.sensors.app as sensors; sensors.service")
    assert not loaded & {"streams", "domain", "tables", "agents", "cli"}
