"""The real process: it leads, answers, is succeeded when it is killed, and hands over when it is asked to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import aiohttp
import pytest

TOKEN = "0123456789abcdef"  # noqa: S105 - a test's


class Replica:
    def __init__(self, folder, endpoint, name):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.name = name
        tokens = folder / "tokens"
        tokens.write_text(f"operator ops {TOKEN}\n")
        self.config = folder / f"{name}.toml"
        self.config.write_text(
            f'[instance]\nname = "{folder.name.replace("_", "-")[:40]}"\n[etcd]\nendpoints = ["{endpoint}"]\n'
            f'[controlplane]\nport = {port}\ntokens_file = "{tokens}"\n'
        )

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "controlplane", "--config", str(self.config), "--replica", self.name
        )

    async def stop(self, number=signal.SIGTERM):
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(15):
            return await self.process.wait()


async def leader(session, replica):
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with session.get(f"{replica.url}/v1/cluster", headers=headers) as answer:
            return await answer.json()
    except aiohttp.ClientError:
        return {}


async def until(session, replica, what, *, seconds=20):
    for _ in range(int(seconds / 0.02)):
        if what(await leader(session, replica)):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{replica.name} did not come so far within {seconds} s")


def leads(cluster):
    return cluster.get("leading")


@pytest.mark.timeout(120)
async def test_replicas_succeed_each_other(shared_etcd, tmp_path):
    first, second = (Replica(tmp_path, shared_etcd.endpoints[0], name) for name in ("one", "two"))
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            await first.start()
            await until(session, first, leads)
            await second.start()
            await until(session, second, lambda found: (found.get("leader") or {}).get("replica") == "one")
            await asyncio.sleep(0.3)
            assert await first.stop(signal.SIGKILL) == -signal.SIGKILL
            await until(session, second, leads)
            await first.start()
            await until(session, first, bool)
            assert await second.stop() == 0
            await until(session, first, leads)
    finally:
        for replica in (first, second):
            await replica.stop(signal.SIGKILL)


async def test_a_bad_configuration_names_its_key(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("[policy]\nranks = -3\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controlplane", "--config", str(file), "--check", stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 78
    assert b"policy.ranks = -3" in errors
