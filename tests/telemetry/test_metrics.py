"""The exposition is valid, and every process's metrics can share one registry."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from functools import partial

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from controlplane.telemetry import ControlPlaneMetrics, GatewayMetrics, WorkerMetrics, metrics_handler


@pytest.fixture
def registry():
    made = CollectorRegistry()
    control = ControlPlaneMetrics(made)
    control.epoch.set(7)
    control.ranks.labels(state="active").set(31)
    control.recovery_phase.labels(phase="plan").observe(0.2)
    WorkerMetrics(made).receive_wait.labels(peer="3").set(0.001)
    GatewayMetrics(made).resumes.inc()
    return made


async def exposition(registry):
    app = web.Application()
    app.router.add_get("/metrics", metrics_handler(registry))
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/metrics")
        assert answer.content_type == "text/plain"
        return await answer.text()


async def test_values_are_served_in_prometheus_format(registry):
    families = {family.name: family for family in text_string_to_metric_families(await exposition(registry))}
    assert families["eep_epoch"].samples[0].value == 7
    assert families["eep_ranks"].samples[0].labels == {"state": "active"}
    assert {name.startswith("eep_") for name in families} == {True}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
async def test_promtool_finds_nothing_to_complain_of(registry):
    done = await asyncio.to_thread(
        partial(subprocess.run, input=await exposition(registry), capture_output=True, text=True, timeout=60),
        ["promtool", "check", "metrics"],
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
