"""The recipe of docs/services.md: a new service is one new file, and a worker that starts then has it."""

from __future__ import annotations

import filecmp
import re
import shutil
from pathlib import Path

import httpx

from tests.e2e.processes import REPOSITORY, Site

PACKAGES = ("agents", "tables")
NO_CACHES = shutil.ignore_patterns("__pycache__")


def recipe() -> tuple[str, str]:
    """The new file's path and code, as docs/services.md gives them."""
    document = (REPOSITORY / "docs/services.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", document, flags=re.MULTILINE | re.DOTALL)
    path = re.search(r"`((?:agents|tables)/\w+\.py)`", document)
    assert path is not None
    return path[1], code


def test_the_readme_shows_a_part_of_the_recipe() -> None:
    section = (REPOSITORY / "README.md").read_text().split("\n## Add a service\n")[1].split("\n## ")[0]
    (part,) = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    assert f"\n{part}" in recipe()[1]


def differences(folder: Path) -> set[str]:
    """Files of the packages in `folder` that are not as in the repository, or not there."""
    copies = {file.relative_to(folder) for name in PACKAGES for file in (folder / name).rglob("*.py")}
    originals = {file.relative_to(REPOSITORY) for name in PACKAGES for file in (REPOSITORY / name).rglob("*.py")}
    changed = {file for file in copies & originals if not filecmp.cmp(folder / file, REPOSITORY / file, shallow=False)}
    return {str(file) for file in (copies ^ originals) | changed}


def place(site: Site, order_id: str, *lines: tuple[str, int]) -> str:
    """Place an order; its token."""
    price = {"amount": "1.00", "currency": "GBP"}
    items = [{"product_id": product_id, "quantity": quantity, "price": price} for product_id, quantity in lines]
    answer = httpx.post(f"{site.url}/orders", json={"order_id": order_id, "customer_id": "c-1", "items": items})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["token"])


def test_the_service_of_the_document_is_one_new_file_and_counts_orders_of_before_and_after(
    tmp_path: Path, unused_port: int
) -> None:
    site = Site(tmp_path, unused_port)
    with site.start("worker") as worker:
        worker.wait_until_ready()
        token = place(site, "o-1", ("A", 2), ("B", 1), ("A", 3))
        site.get("/orders/o-1", after=token, timeout="30s")
        assert site.status("/products/A/sales") == 404, "no such service yet"
        assert worker.stop() == 0

    for name in PACKAGES:  # in the worker's folder, so that Python finds these before the repository's
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=NO_CACHES)
    path, code = recipe()
    (tmp_path / path).write_text(code)
    assert differences(tmp_path) == {path}

    with site.start("worker") as worker:
        worker.wait_until_ready()
        token = place(site, "o-2", ("A", 1))
        expected = {"product_id": "A", "orders": 2, "pieces": 6}
        assert site.get("/products/A/sales", after=token, timeout="30s") == expected
        assert site.get("/products/B/sales", after=token, timeout="30s") == {
            "product_id": "B",
            "orders": 1,
            "pieces": 1,
        }
        assert site.status("/products/C/sales") == 404
        assert site.get("/tables/product-sales/A") == expected
        assert "/products/{product_id}/sales" in site.get("/openapi.json")["paths"]
        assert set(site.get("/asyncapi.json")["channels"]["product-orders"]["messages"]) == {"order.placed"}
        assert site.get("/orders/o-1")["item_count"] == 6, "everything else is still there"
        assert worker.stop() == 0
