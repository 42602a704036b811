"""A running instance: real etcd, real control-plane processes, and ranks that do at once what the record asks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import aclosing, asynccontextmanager

import aiohttp

from controlplane.etcd import EtcdClient, LoopLease, Watch
from schemas.codec import decode, encode
from schemas.config import EtcdConfig
from schemas.records import Ack, AckPhase, EpochRecord, FaultReport, Registration, Suspicion
from schemas.vocabulary import Evidence, SourceTier

TOKEN = "0123456789abcdef-running"  # noqa: S105 - a test's


def now():
    return time.time_ns()


class Rank:
    """Speaks the agents' protocol; loads take the time they say."""

    def __init__(self, etcd, keys, rank):
        self.etcd, self.keys, self.rank, self.incarnation = etcd, keys, rank, 1
        self.record = None
        self.works = asyncio.Event()  # cleared: it hears, but does not acknowledge
        self.works.set()
        self.lease = None
        self.heard_unix_ns = 0

    async def run(self):
        self.lease = await LoopLease.take(self.etcd, 5)
        registration = Registration(
            rank=self.rank,
            incarnation=self.incarnation,
            host=f"host-{self.rank}",
            slots=4,
            layers=2,
            experts=8,
            expert_bytes=1000,
            model="m",
            checkpoint="c",
            ready=True,
        )
        await self.etcd.put(self.keys.rank(self.rank), encode(registration), lease=self.lease.lease)
        async with aclosing(Watch(self.etcd, self.keys.epoch).changes()) as changes:
            async for change in changes:
                for event in change.events:
                    if event.item.value:
                        await self._follow(decode(event.item.value, EpochRecord, key=event.key))

    async def _follow(self, record):
        self.record = record
        self.heard_unix_ns = now()
        version = record.preparing or record.committed
        concerned = {member.rank for member in (*record.committed.members, *version.members)}
        if self.rank not in concerned:
            return
        await self.works.wait()
        loads = (AckPhase(tier=SourceTier.HOST_PEER, slots=2, bytes=2000, seconds=0.01),)
        if record.preparing or record.loading:
            await self._ack(version.epoch, loads=loads)
        if not record.preparing:
            await self._ack(version.epoch, activated=True)

    async def _ack(self, epoch, *, activated=False, loads=()):
        ack = Ack(
            rank=self.rank,
            incarnation=self.incarnation,
            epoch=epoch,
            prepared=True,
            activated=activated,
            loads=loads,
            started_unix_ns=self.heard_unix_ns,
            finished_unix_ns=now(),
        )
        await self.etcd.put(self.keys.ack(epoch, self.rank), encode(ack), lease=self.lease.lease)

    async def report(self, other, evidence=Evidence.DEAD):
        report = FaultReport(
            reporter=self.rank,
            incarnation=self.incarnation,
            epoch=self.record.committed.epoch,
            suspicions=(Suspicion(other, 1, evidence, "pidfd: exit 137"),),
            detected_unix_ns=now() - 5_000_000,
        )
        await self.etcd.put(self.keys.report(self.rank), encode(report), lease=self.lease.lease)


class Replica:
    """One ``eep-controlplane`` process."""

    def __init__(self, folder, endpoint, name, *, keys, ranks, environment):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url, self.name, self.process = f"http://127.0.0.1:{port}", name, None
        (folder / "tokens").write_text(f"operator alice {TOKEN}\n")
        self.config = folder / f"{name}.toml"
        self.config.write_text(
            f'[instance]\nname = "{keys.instance}"\n[etcd]\nendpoints = ["{endpoint}"]\n[policy]\nranks = {ranks}\n'
            f'[controlplane]\nport = {port}\ntokens_file = "{folder / "tokens"}"\n'
        )
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        self.environment |= environment

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "controlplane",
                "--config",
                str(self.config),
                "--replica",
                self.name,
                "--log-level",
                "WARNING",
            ),
            env=self.environment,
        )

    async def stop(self, number=signal.SIGTERM):
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            async with asyncio.timeout(15):
                await self.process.wait()


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
        Replica(folder, endpoint, f"cp-{number}", keys=keys, ranks=ranks, environment=environment)
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
