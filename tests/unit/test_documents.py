"""README and guides: the commands, settings and links in them are ones that there are."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli import main
from engine.contracts.openapi import documented
from streams.app import shop_services
from streams.settings import APPLICATION, Settings
from tests.documents import folders
from tests.documents import settings as settings_document
from tests.unit.test_alerts import anchors_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "docs/commands.md", "docs/operations.md")
# What they lead to; few commands are in there.
GUIDES = [*sorted({f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - set(DOCUMENTS)), "bench/README.md"]
DECISIONS = sorted(f"docs/adr/{path.name}" for path in (ROOT / "docs/adr").glob("*.md"))
README_LINES_MAX = 220
# A file or folder of the code between backticks or in a link.
CODE_PATH = re.compile(
    r"(?<![\w/.{-])((?:engine|streams|domain|tables|agents|cli|tests|bench|ops|examples)/[\w./*-]*[\w*])"
)
MADE_BY_THE_READER = {"agents/product_sales.py"}
# `orders` where a shell would find a command: after a prompt, variables, a path or another command.
COMMAND = re.compile(r"^(?:\w+=\S+ |\S+/|docker compose exec worker )*orders (.+)$")


def commands_in(text: str) -> Iterator[str]:
    """The arguments of each `orders ...`: in blocks of shell, after prompts in other blocks, and between backticks."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    typed = [(language, line.strip()) for language, block in blocks for line in block.splitlines()]
    lines = [line.removeprefix("$ ") for language, line in typed if language == "sh" or line.startswith("$ ")]
    inline = re.findall(r"`([^`\n]*orders [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    yield from (found[1] for line in (*lines, *inline) if (found := COMMAND.match(line)))


def parse(arguments: list[str], command: click.Command = main, parent: click.Context | None = None) -> None:
    """Let click read a command line, as it is read when it is run, without running it."""
    with command.make_context(command.name or "orders", list(arguments), parent=parent) as context:
        if isinstance(command, click.Group):
            _, found, rest = command.resolve_command(context, arguments)
            assert found is not None
            parse(rest, found, context)


@pytest.mark.parametrize("document", [*DOCUMENTS, *GUIDES])
def test_command_lines_can_be_read(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = list(commands_in((ROOT / document).read_text()))
    assert len(found) > 5 or document in GUIDES
    for line in found:
        arguments = [argument.strip("[]") for argument in shlex.split(re.sub(r"\s[|>&].*", "", line), comments=True)]
        for argument in arguments:
            if re.fullmatch(r"[\w.-]+\.\w+|FILE", argument):  # what the reader has
                (tmp_path / argument).touch()
        try:
            parse(arguments)
        except click.exceptions.Exit:  # of --help
            assert "--help" in arguments, line
        except click.MissingParameter:  # a command that is only named
            assert re.fullmatch("[a-z -]+", line), line
            assert " -" not in line, line
        except click.UsageError as error:
            pytest.fail(f"orders {line}: {error.format_message()}")


@pytest.mark.parametrize("document", [*DOCUMENTS, *GUIDES, "docker-compose.yml", ".env.example"])
def test_settings_are_settings(document: str) -> None:
    known = {f"ORDERS_{name.upper()}" for name in Settings.model_fields} | APPLICATION.foreign_variables
    named = set(re.findall(r"\bORDERS_[A-Z_]+", (ROOT / document).read_text()))
    families = {name for name in named if name.endswith("_") and any(one.startswith(name) for one in known)}
    assert named - known - families == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES_MAX


def test_the_document_of_http_has_every_route() -> None:
    written = re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`?\s]*)", (ROOT / "docs/http.md").read_text())
    routes = {f"{found.route.method} {found.route.path}" for found in documented(shop_services())}
    assert routes - set(written) == set(), "routes that the document lacks"
    assert set(written) - routes <= {"GET /", "GET /live"}, "routes that there are not"


def test_the_document_of_the_settings_is_the_one_that_the_code_makes() -> None:
    assert (ROOT / "docs/settings.md").read_text() == settings_document.document(), "run `make docs`"


def test_the_folders_of_the_architecture_are_those_of_the_code() -> None:
    assert (ROOT / folders.DOCUMENT).read_text() == folders.document(), "run `make docs`"
    assert [path for path in folders.packages() if not folders.summary(path)] == [], "packages without a docstring"


def test_the_drawing_of_the_packages_has_their_order() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "layers"]
    drawing = (ROOT / folders.DOCUMENT).read_text().split("```")[1]
    assert re.findall(rf"^  ({'|'.join(layers)}) ", drawing, flags=re.MULTILINE) == layers


@pytest.mark.parametrize("document", [*DOCUMENTS, *GUIDES, *DECISIONS])
def test_files_of_the_code_that_are_named_are_there(document: str) -> None:
    named = set(CODE_PATH.findall((ROOT / document).read_text())) - MADE_BY_THE_READER
    assert [path for path in named if not list(ROOT.glob(path))] == []


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("document", [*DOCUMENTS, *GUIDES])
def test_links_lead_somewhere(document: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(str(target.resolve().relative_to(ROOT))), link
