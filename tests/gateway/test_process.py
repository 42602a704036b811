"""The gateway as a process: routes out of real etcd, stopping gently and being killed."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from controlplane.etcd import EtcdClient
from schemas.codec import encode
from schemas.config import EtcdConfig
from schemas.keys import Keys
from schemas.records import EpochRecord, EpochVersion, Registration
from schemas.vocabulary import Cut, Member
from tests.gateway.conftest import PROMPT
from tests.standin.rank import Rank, answer_of
from tools.etcd.local import LocalEtcd
from tools.models.random_moe import SHIPPED

BODY = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 40, "temperature": 0, "ignore_eos": True}}
KEYS = Keys("test")


class Process:
    def __init__(self, folder, name):
        self.port_file, self.audit = folder / f"{name}.port", folder / "audit.jsonl"

    async def start(self, *arguments):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "controlplane.gateway.main", "--model", str(SHIPPED), "--port", "0",
            "--port-file", str(self.port_file), "--audit", str(self.audit), *arguments,
            stderr=asyncio.subprocess.PIPE, env=os.environ,
        )  # fmt: skip
        async with asyncio.timeout(120):
            while not self.port_file.exists():
                assert self.process.returncode is None, (await self.process.stderr.read()).decode()
                await asyncio.sleep(0.02)
        self.url = f"http://127.0.0.1:{self.port_file.read_text().strip()}"

    async def end(self, number):
        if self.process.returncode is None:
            self.process.send_signal(number)
        await asyncio.wait_for(self.process.communicate(), 60)
        return self.process.returncode

    def lines(self, event):
        found = (json.loads(line) for line in self.audit.read_text().splitlines())
        return [line for line in found if line["event"] == event]


@pytest.fixture
async def started(tmp_path):
    made = []

    async def start(*arguments):
        process = Process(tmp_path, f"gateway-{len(made)}")
        made.append(process)
        await process.start(*arguments)
        return process

    yield start
    for process in made:
        await process.end(signal.SIGKILL)


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


async def generate(http, process, body=BODY):
    async with http.post(f"{process.url}/generate", json=body) as response:
        return response.status, await response.json()


async def until_ready(http, process, *, ranks):
    async with asyncio.timeout(60):
        while True:
            async with http.get(f"{process.url}/ready") as response:
                if (await response.json())["ranks"] == ranks:
                    return
            await asyncio.sleep(0.02)


async def commit(etcd, epoch, members):
    version = EpochVersion(
        epoch=epoch,
        members=tuple(Member(*member) for member in members),
        placement="p",
        cut=Cut.ABORT,
        reason="test",
    )
    await etcd.put(KEYS.epoch, encode(EpochRecord(committed=version)))


async def register(etcd, rank, url, *, incarnation=1, lease=0):
    record = Registration(rank=rank, incarnation=incarnation, host="h", serve_url=url, ready=True)
    await etcd.put(KEYS.rank(rank), encode(record), lease=lease)


async def test_routes_follow_the_epoch_and_the_leases_of_etcd(started, http):
    async with Rank(hang_at=7) as hung, Rank() as sound:
        with LocalEtcd() as cluster:
            async with EtcdClient(EtcdConfig(endpoints=cluster.endpoints)) as etcd:
                await register(etcd, 0, hung.url)
                await commit(etcd, 1, [(0, 1)])
                process = await started("--instance", "test", *(f"--etcd={url}" for url in cluster.endpoints))
                await until_ready(http, process, ranks=[0])
                stuck = asyncio.create_task(generate(http, process))
                while not hung.bodies:
                    await asyncio.sleep(0.01)
                await register(etcd, 1, sound.url)
                await commit(etcd, 2, [(1, 1)])
                status, body = await asyncio.wait_for(stuck, 60)
                assert (status, body["output_ids"]) == (200, answer_of(PROMPT, 40))
                assert body["meta_info"]["eep"]["ranks"] == [0, 1]
                await until_ready(http, process, ranks=[1])
                await etcd.delete(KEYS.rank(1))
                await until_ready(http, process, ranks=[])
                await register(etcd, 1, sound.url)
                await until_ready(http, process, ranks=[1])
        # etcd is gone: what was known stays in force
        await asyncio.sleep(0.5)
        status, body = await generate(http, process)
        assert (status, body["output_ids"]) == (200, answer_of(PROMPT, 40))


async def test_sigterm_lets_running_answers_end(started, http):
    async with Rank(pause_s=0.02) as rank:
        process = await started("--rank", f"0={rank.url}")
        running = asyncio.create_task(generate(http, process))
        while not rank.bodies:
            await asyncio.sleep(0.01)
        process.process.send_signal(signal.SIGTERM)
        status, body = await running
        assert (status, body["output_ids"]) == (200, answer_of(PROMPT, 40))
        assert await asyncio.wait_for(process.process.wait(), 60) == 0
        assert [line["ending"] for line in process.lines("ended")] == ["completed"]


async def test_a_killed_gateway_loses_only_its_own_connections(started, http):
    async with Rank(pause_s=0.02) as rank:
        first, second = await started("--rank", f"0={rank.url}"), await started("--rank", f"0={rank.url}")
        lost, kept = (asyncio.create_task(generate(http, each)) for each in (first, second))
        while len(rank.bodies) < 2:
            await asyncio.sleep(0.01)
        await first.end(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await lost
        assert (await kept)[1]["output_ids"] == answer_of(PROMPT, 40)
        assert (await generate(http, second))[0] == 200
        assert len(second.lines("accepted")) == 3
        assert len(second.lines("ended")) == 2


async def test_it_needs_no_torch(started):
    process = await started("--rank", "0=http://127.0.0.1:9")
    mapped = {Path(mapping.path).name for mapping in psutil.Process(process.process.pid).memory_maps()}
    assert any("tokenizers" in name for name in mapped)
    assert not any("torch" in name for name in mapped)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "instance.model"),
        (("--model", "/nowhere"), "config.json"),
        (("--model", str(SHIPPED), "--rank", "zero"), "--rank"),
        (("--config", "/nowhere.toml"), "/nowhere.toml"),
    ],
)
async def test_settings_that_cannot_be_used_end_it_at_once_and_are_named(arguments, named):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controlplane.gateway.main", "--check", *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 78
    assert named in said.decode()
