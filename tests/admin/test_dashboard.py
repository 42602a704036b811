"""The page: self-contained, locked down, and alive in a real browser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import shutil

import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from controlplane.admin import Authentication, Role, make_app
from controlplane.telemetry import ControlPlaneMetrics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (  # noqa: SIM905 - flags read best as typed
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=3000"
).split()


async def page_of(api):
    answer = await api.get("/")
    assert answer.status == 200
    return await answer.text(), answer.headers["Content-Security-Policy"]


async def test_nothing_is_fetched_from_elsewhere(api):
    html, policy = await page_of(api)
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy


async def test_the_policy_lets_exactly_the_pages_own_script_and_style_run(api):
    html, policy = await page_of(api)
    for tag in ("script", "style"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert (
        re.findall(r"\son\w+=|style=\"|innerHTML", html) == []
    )  # the policy would forbid, or data could become markup


async def test_every_control_has_a_name_and_every_table_a_caption(api):
    html, _ = await page_of(api)
    assert '<html lang="en">' in html
    assert html.count("<table") == html.count("<caption")
    assert 'label for="secret"' in html
    assert "prefers-color-scheme: dark" in html


async def rendered(url, profile):
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *QUIET,
        f"--user-data-dir={profile}",
        "--dump-dom",
        str(url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return re.sub(r"<(script|style)>.*?</\1>", "", out.decode(), flags=re.DOTALL)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
async def test_a_browser_shows_ranks_recoveries_and_that_it_is_live(instance, tmp_path):
    registry = CollectorRegistry()
    app = make_app(
        reader=instance,
        archive=instance.archive,
        predictor=instance,
        authentication=Authentication(anonymous=Role.VIEWER),
        metrics=ControlPlaneMetrics(registry),
        registry=registry,
    )
    async with TestServer(app) as server:
        shown = await rendered(server.make_url("/"), tmp_path / "profile")
    assert "dead: engine exited 137" in shown
    assert "detect 10 ms" in shown
    assert ">live<" in shown
    assert instance.keys.instance in shown


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
async def test_a_browser_without_a_token_is_asked_for_one_and_shown_nothing(instance, tmp_path):
    async with TestServer(instance.app(tmp_path)) as server:
        shown = await rendered(server.make_url("/"), tmp_path / "profile")
    assert re.search(r"<dialog[^>]* open", shown)
    assert "engine exited" not in shown
