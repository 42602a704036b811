"""Random histories on a fresh cluster and on the model: every reply, revision and event must be the same."""

from __future__ import annotations

import random
from contextlib import aclosing
from dataclasses import replace

import pytest

from controlplane.etcd import (
    CompactedError,
    Compare,
    Delete,
    EtcdClient,
    Field,
    Get,
    LeaseNotFoundError,
    Put,
    RejectedError,
    Txn,
)
from schemas.config import EtcdConfig
from tools.etcd.local import LocalEtcd
from tools.simulation.etcd_model import EtcdModel

KEYS = ["/d/a", "/d/b", "/d/c/1", "/d/c/2", "/d/c", "/e"]
SPANS = [*KEYS, "/d/", "/d/c/", "/none/"]
STEPS = 500


class Pair:
    """One operation on both; lease ids are told apart by their order."""

    def __init__(self, real, model, seed):
        self.sides = [real, model]
        self.leases = [[0], [0]]
        self.random = random.Random(seed)
        self.revision = 1

    async def both(self, call):
        """Run ``call(client, leases)`` on each side and compare what comes out, errors included."""
        outcomes = []
        for client, leases in zip(self.sides, self.leases, strict=True):
            try:
                outcomes.append(self._plain(await call(client, leases), leases))
            except (CompactedError, LeaseNotFoundError, RejectedError) as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    def _plain(self, value, leases):
        """Replace lease ids by their order."""
        if hasattr(value, "replies"):
            return replace(value, replies=tuple(self._plain(reply, leases) for reply in value.replies))
        if hasattr(value, "items"):
            return replace(value, items=tuple(replace(kv, lease=leases.index(kv.lease)) for kv in value.items))
        return value

    def operation(self, leases):
        """A random operation; the same choices on both sides."""
        kind = self.random.randrange(4)
        if kind == 0:
            return Get(self.random.choice(SPANS))
        if kind == 1:
            return Delete(self.random.choice(SPANS))
        return Put(self.random.choice(KEYS), b"%d" % self.random.randrange(3), self.random.choice(leases))

    def compare(self):
        field = self.random.choice(list(Field))
        return Compare(self.random.choice(KEYS), field, self.random.choice([0, self.random.randint(1, self.revision)]))

    def txn(self, leases):
        def several(make, most):
            return tuple(make() for _ in range(self.random.randint(0, most)))

        return Txn(
            when=several(self.compare, 2),
            then=several(lambda: self.operation(leases), 3),
            otherwise=several(lambda: self.operation(leases), 2),
        )

    async def step(self):
        """One random step on both."""
        choice = self.random.random()
        state = self.random.getstate()

        async def seeded(client, leases):
            self.random.setstate(state)
            return await self.act(choice, client, leases)

        await self.both(seeded)
        found = await self.both(lambda client, _: client.get("/d/"))
        self.revision = found.revision

    async def act(self, choice, client, leases):
        if choice < 0.5:
            return await client.txn(self.txn(leases))
        if choice < 0.6:
            return await client.put(self.random.choice(KEYS), b"", lease=self.random.choice(leases))
        if choice < 0.7:
            return await client.delete(self.random.choice(SPANS))
        if choice < 0.9:
            past = self.random.randint(0, self.revision + 1)
            return replace(await client.get(self.random.choice(SPANS), revision=past), revision=0)
        if choice < 0.94:
            leases.append((await client.grant(600)).lease)
            return None
        if choice < 0.98:
            return await client.revoke(self.random.choice(leases[1:] or [7]))
        return await client.compact(self.random.randint(1, self.revision))

    async def history(self, client, leases, start, end):
        """Everything from ``start`` to ``end``, events of one revision in key order."""
        seen = []
        async with aclosing(client.stream("/d/", start=start)) as batches:
            async for batch in batches:
                if batch.events:
                    events = [replace(event, item=self._item(event.item, leases)) for event in batch.events]
                    seen.append((batch.revision, sorted(events, key=lambda event: event.key)))
                if batch.revision >= end and batch.events:
                    return seen
        return seen

    def _item(self, item, leases):
        return replace(item, lease=leases.index(item.lease))


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_model_answers_as_etcd_does(binary, seed):
    with LocalEtcd(binary=binary) as cluster:
        async with EtcdModel() as model, EtcdClient(EtcdConfig(endpoints=cluster.endpoints)) as real:
            pair = Pair(real, model.client("a"), seed)
            for _ in range(STEPS):
                await pair.step()
            end = (await real.put("/d/end", b"")) and (await model.client("a").put("/d/end", b""))
            start = model.store.compacted + 1
            histories = [
                await pair.history(client, leases, start, end)
                for client, leases in zip(pair.sides, pair.leases, strict=True)
            ]
            assert histories[0] == histories[1]
            assert len(histories[0]) > 1
