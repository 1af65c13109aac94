"""However a worker is started, it does not listen on the network unless it is protected or told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.processes import FAUST, ORDERS, Site
from tests.kafka import unused_port


def test_no_way_of_starting_a_worker_opens_it_to_the_network(tmp_path: Path) -> None:
    ways: tuple[tuple[Sequence[str], Sequence[str], Mapping[str, str]], ...] = (
        (ORDERS, ("worker",), {"ORDERS_WEB_HOST": "0.0.0.0"}),
        (ORDERS, ("worker", "--web-host", "::"), {}),
        (ORDERS, ("run",), {"ORDERS_WEB_HOST": "192.0.2.1"}),
        (FAUST, ("worker",), {"ORDERS_WEB_HOST": "0.0.0.0"}),
        (FAUST, ("worker", "--web-bind", "0.0.0.0"), {}),
        (FAUST, ("worker",), {"WEB_BIND": "0.0.0.0"}),  # Faust's own variable, which wins over what an app says
    )
    site = Site(tmp_path, unused_port(), broker="memory://")
    with ThreadPoolExecutor(len(ways)) as threads:
        ended = threads.map(lambda way: site.run(*way[1], command=way[0], **way[2]), ways)
    for way, done in zip(ways, ended, strict=True):
        assert done.returncode == 1, (way, done.stderr)
        assert "ORDERS_API_TOKEN" in done.stderr, way
        assert "ORDERS_WEB_INSECURE" in done.stderr, way
        assert "Traceback" not in done.stderr, way


def test_no_address_at_all_is_a_setting_that_cannot_be_used(tmp_path: Path) -> None:
    done = Site(tmp_path, unused_port(), broker="memory://", web_host="").run("worker")
    assert done.returncode == 1
    assert "ORDERS_WEB_HOST=: not an address to listen on" in done.stderr
    assert "Traceback" not in done.stderr
