"""A running instance: real etcd, real control-plane processes, and ranks that do at once what the record asks."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import aiohttp

from controlplane.etcd import EtcdClient, LoopLease
from schemas.config import EtcdConfig
from schemas.records import AckPhase
from schemas.vocabulary import SourceTier
from tools.control_rig import BareRank, ReplicaProcess

TOKEN = "0123456789abcdef-running"  # noqa: S105 - a test's


class Rank(BareRank):
    """Loads take the time they say; while ``works`` is cleared it hears, but does not acknowledge."""

    def __init__(self, etcd, keys, rank):
        super().__init__(etcd, keys, rank)
        self.works = asyncio.Event()
        self.works.set()

    async def run(self):
        self.lease = (await LoopLease.take(self.etcd, 5)).lease
        await self.register()
        await self.follow()

    async def heard(self, record):
        version = record.preparing or record.committed
        concerned = {member.rank for member in (*record.committed.members, *version.members)}
        if self.rank not in concerned:
            return
        await self.works.wait()
        loads = (AckPhase(tier=SourceTier.HOST_PEER, slots=2, bytes=2000, seconds=0.01),)
        if record.preparing or record.loading:
            await self.acknowledge(version.epoch, activated=False, loads=loads)
        if not record.preparing:
            await self.acknowledge(version.epoch, activated=True)


def process_of(folder, endpoint, name, *, keys, ranks, environment):
    (folder / "tokens").write_text(f"operator alice {TOKEN}\n")
    return ReplicaProcess(
        folder,
        name,
        f'[instance]\nname = "{keys.instance}"\n[etcd]\nendpoints = ["{endpoint}"]\n[policy]\nranks = {ranks}',
        settings=f'tokens_file = "{folder / "tokens"}"',
        environment={key: value for key, value in os.environ.items() if not key.startswith("OTEL_")} | environment,
    )


class Running:
    """The instance under test; ``leader`` and ``follower`` as of the last ``settled``."""

    def __init__(self, replicas, ranks, session):
        self.replicas, self.ranks, self.session = replicas, ranks, session

    async def get(self, replica, path):
        try:
            async with self.session.get(f"{replica.url}{path}") as answer:
                return await answer.json()
        except aiohttp.ClientError:
            return {}

    async def until(self, what, *, path="/v1/cluster", replica=None, seconds=30):
        """The page at ``path``, once ``what(page)`` holds at one replica (any, or the one named)."""
        async with asyncio.timeout(seconds):
            while True:
                for asked in [replica] if replica else self.replicas:
                    page = await self.get(asked, path)
                    if page and what(page):
                        return page
                await asyncio.sleep(0.05)

    async def settled(self, *members):
        """All replicas see these members and no change under way."""
        for replica in self.replicas:
            if replica.process.returncode is None:
                await self.until(
                    lambda page: page.get("members") == list(members) and page["leader"] and not page["preparing"],
                    replica=replica,
                )

    async def leader(self):
        found = await self.until(lambda page: page.get("leading"))
        return next(replica for replica in self.replicas if replica.name == found["replica"])


@asynccontextmanager
async def running(folder, endpoint, keys, *, ranks=4, replicas=2, **environment):
    """A formed instance of ``ranks`` ranks and ``replicas`` control-plane processes."""
    made = [
        process_of(folder, endpoint, f"cp-{number}", keys=keys, ranks=ranks, environment=environment)
        for number in range(replicas)
    ]
    timeout = aiohttp.ClientTimeout(total=10)
    tasks = []
    async with (
        EtcdClient(EtcdConfig(endpoints=(endpoint,))) as etcd,
        aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"Bearer {TOKEN}"}) as session,
    ):
        workers = [Rank(etcd, keys, rank) for rank in range(ranks)]
        instance = Running(made, workers, session)
        try:
            for replica in made:
                await replica.start()
            tasks = [asyncio.create_task(worker.run()) for worker in workers]
            await instance.settled(*range(ranks))
            yield instance
        finally:
            for replica in made:
                await replica.stop(signal.SIGKILL)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
