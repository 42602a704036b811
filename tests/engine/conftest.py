"""Clusters of real engines, shared by the tests of one module: starting one takes about a minute on two cores."""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tools.cluster.bare import BareCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SPROUT = Path(__file__).parents[2] / "tools/models/sprout"


@asynccontextmanager
async def running(model: Path, **options) -> AsyncIterator[tuple[BareCluster, aiohttp.ClientSession]]:
    """A cluster in its first epoch and a session without limits to talk to it."""
    with tempfile.TemporaryDirectory(prefix="eep-") as folder:
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session,
            BareCluster(folder=Path(folder), model=model, **options) as cluster,
        ):
            await cluster.change(cluster.placement())
            yield cluster, session
