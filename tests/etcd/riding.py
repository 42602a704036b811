"""A writer, a watcher and a fault: every key is created once and in order, so what a watcher must see is known."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from controlplane.etcd import EtcdClient, EventKind, OutcomeUnknownError, Put, Txn, UnavailableError, Watch, absent
from controlplane.etcd.rpc import rpc
from schemas.config import EtcdConfig

PACE_S = 0.005


async def pinned(endpoints, index, **settings):
    """A client that begins on member ``index``."""
    client = EtcdClient(EtcdConfig(endpoints=tuple(endpoints), **settings))
    client.session.endpoints._current = index
    return client


async def leader_index(endpoints):
    """Which member leads."""
    for index in range(len(endpoints)):
        client = await pinned(endpoints, index)
        member = await client.session.endpoints.ready(asyncio.get_running_loop().time() + 5)
        status = await member.maintenance.Status(rpc.StatusRequest(), timeout=2)
        await client.close()
        if status.leader == status.header.member_id:
            return index
    raise AssertionError("no member leads")


@dataclass
class Ride:
    """What was written and what was delivered, with their times."""

    prefix: str
    written: list[tuple[str, float]] = field(default_factory=list)
    delivered: list[tuple[str, float]] = field(default_factory=list)
    revisions: list[int] = field(default_factory=list)
    relisted: int = 0
    stopping: bool = False

    async def write(self, etcd):
        """Create keys in order, each exactly once whatever is lost on the way."""
        while not self.stopping:
            key = f"{self.prefix}{len(self.written):06d}"
            create = Txn(when=(absent(key),), then=(Put(key, b""),))
            while True:
                try:
                    await etcd.txn(create)
                    break
                except (UnavailableError, OutcomeUnknownError):
                    await asyncio.sleep(0.01)
            self.written.append((key, time.monotonic()))
            await asyncio.sleep(PACE_S)

    async def watch(self, watch):
        async for change in watch:
            self.relisted += change.relisted
            self.revisions.append(change.revision)
            for event in change.events:
                assert event.kind is EventKind.PUT
                assert event.item.version == 1, "no key was written twice"
                self.delivered.append((event.key, time.monotonic()))

    @property
    def longest_gap_s(self):
        """The longest time for which nothing was delivered."""
        times = [at for _, at in self.delivered]
        return max(after - before for before, after in pairwise(times))

    def check(self):
        """No event lost, duplicated or reordered, and no revision twice."""
        assert [key for key, _ in self.delivered] == [key for key, _ in self.written]
        assert all(before < after for before, after in pairwise(self.revisions))


@asynccontextmanager
async def ride(writer, reader, prefix, *, before_s=0.5, after_s=0.5, settle_s=10.0):
    """Write and watch around the body, which does the fault; at the end all that was written must be delivered."""
    it = Ride(prefix)
    watching = asyncio.create_task(it.watch(Watch(reader, prefix)))
    writing = asyncio.create_task(it.write(writer))
    try:
        await asyncio.sleep(before_s)
        yield it
        await asyncio.sleep(after_s)
        it.stopping = True
        async with asyncio.timeout(settle_s):
            await writing
            while len(it.delivered) < len(it.written):
                assert not watching.done(), watching.exception()
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # anything delivered twice would come now
        it.check()
    finally:
        writing.cancel()
        watching.cancel()
        await asyncio.gather(writing, watching, return_exceptions=True)
