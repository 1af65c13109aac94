"""How the web page is served: as files of this package that need nothing else, under a strict policy."""

from __future__ import annotations

import re
from importlib.resources import files

import httpx
import pytest

from tests.integration.web import check_problem

PACKAGES = ("engine.web.page", "tables.page")
FILES = [(package, file.name) for package in PACKAGES for file in files(package).joinpath("assets").iterdir()]
ASSETS = sorted({name for _, name in FILES})
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@pytest.mark.parametrize("path", ["/", "/assets/app.js", "/assets/base.css", "/assets/icon.svg", "/assets/chart.js"])
async def test_a_file_is_served_with_its_type_under_the_policy_and_only_once(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    kind = "html" if path == "/" else path.rpartition(".")[2]
    assert answer.headers["Content-Type"].partition(";")[0] == TYPES[kind]
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Encoding"] == "gzip"
    plain = await client.get(path, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.content == answer.content
    again = await client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "%2e%2e", "%2e%2e%2fviews.py", "__init__.py", "views.py"])
async def test_only_files_of_the_page_are_served(client: httpx.AsyncClient, name: str) -> None:
    check_problem(await client.get(f"/assets/{name}"), 404)


async def test_the_chart_library_is_the_installed_one(client: httpx.AsyncClient) -> None:
    answer = await client.get("/assets/chart.js")
    assert "Chart.js v4" in answer.text[:100]
    assert "Released under the MIT License" in answer.text[:300]


@pytest.mark.parametrize(("package", "name"), sorted(FILES))
def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline(package: str, name: str) -> None:
    text = files(package).joinpath("assets", name).read_text()
    there = {found for owner, found in FILES if owner in ("engine.web.page", package)}
    assert re.findall(r"https?://(?!www\.w3\.org/)[^\s\"']*", text) == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    if name.endswith(".html"):
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", text)
    for wanted in re.findall(r"from \"\./([^\"]+)\"|/assets/([\w.-]+)", text):
        assert "".join(wanted) in {*there, "chart.js"}
