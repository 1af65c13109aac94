"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from engine.faust.app import EngineApp
from tests.apps import make_settings, running
from tests.integration.web import client_of


@pytest_asyncio.fixture(params=["memory", "embedded"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineApp]:
    """Run the whole application."""
    async with running(make_settings(f"{request.param}://", tmp_path, partitions=2)) as app:
        yield app


@pytest_asyncio.fixture
async def client(app: EngineApp) -> AsyncIterator[httpx.AsyncClient]:
    """Give an HTTP client of the application."""
    async with client_of(app) as client:
        yield client
