"""``eepctl`` against a real API over a real etcd."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from controlplane.cli.main import app
from tests.admin.conftest import instance, one_etcd  # noqa: F401 - fixtures
from tests.admin.instance import OPERATOR


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command line in a thread of its own (it has its own loop); returns the result."""
    monkeypatch.setenv("EEP_CONFIG", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EEP_ENDPOINTS", raising=False)

    async def runner(*words, **environment):
        return await asyncio.to_thread(CliRunner().invoke, app, [str(word) for word in words], env=environment)

    return runner


@pytest.fixture
async def server(instance, tmp_path):  # noqa: F811 - the fixture of that name
    async with TestServer(instance.app(tmp_path)) as running:
        yield running


@pytest.fixture
def eepctl(run, server):
    """With endpoint and operator's token from the environment."""

    async def runner(*words, **environment):
        given = {"EEP_ENDPOINTS": str(server.make_url("")), "EEP_TOKEN": OPERATOR, **environment}
        return await run(*words, **given)

    return runner
