"""What the follower makes of a record: never work that is done, and nothing without all that the record names."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from controlplane.etcd import EtcdClient
from schemas.codec import encode
from schemas.config import EtcdConfig
from schemas.keys import Keys
from schemas.placement import Placement
from schemas.records import EpochRecord, EpochVersion, Registration
from schemas.vocabulary import Cut, Member
from tools.etcd.local import LocalEtcd
from worker.agent.epochs import EpochFollower

KEYS = Keys("follower")


def placement(number: int) -> Placement:
    """Two ranks with two slots; rank 0 holds the same in all of them, rank 1's weights differ."""
    slots = np.array([[[0, 1], [0, 1]]], dtype=np.uint16)
    weights = np.array([[[1, 1], [1, number + 1]]], dtype=np.uint16)
    return Placement(slots=slots, weights=weights, n_experts=2)


def record(epoch: int, *, table: Placement, held: Placement) -> EpochRecord:
    members = (Member(0, 1), Member(1, 1))
    version = EpochVersion(epoch=epoch, members=members, placement=table.digest, cut=Cut.ABORT, reason="test")
    return EpochRecord(committed=version, held=held.digest, loading=True, fence=1)


@pytest.fixture(scope="module")
def server():
    with LocalEtcd() as local:
        yield local


@pytest.fixture
async def etcd(server):
    async with EtcdClient(EtcdConfig(endpoints=server.endpoints)) as client:
        await client.delete(KEYS.prefix)
        for rank in (0, 1):
            there = Registration(rank=rank, incarnation=1, host="h", ready=True, checkpoint="sum")
            await client.put(KEYS.rank(rank), encode(there))
        yield client


async def publish(etcd, found: EpochRecord, *placements: Placement) -> None:
    for each in placements:
        await etcd.put(KEYS.placement(each.digest), each.wire)
    await etcd.put(KEYS.epoch, encode(found))


async def test_what_is_held_is_never_loaded_again_however_many_tables_came_by(etcd):
    """An eviction once took the very placement that said what is held: every slot in use was written anew."""
    held = placement(0)
    await publish(etcd, record(1, table=held, held=held), held)
    seen = EpochFollower(etcd, KEYS, 0).follow()
    assert (await anext(seen)).committed.loads == ()
    for epoch in range(2, 30):
        table = placement(epoch)
        await publish(etcd, record(epoch, table=table, held=held), table)
        assert (await anext(seen)).committed.loads == (), f"epoch {epoch}"
    await seen.aclose()


@pytest.mark.parametrize("lacking", ["held", "table"])
async def test_a_record_whose_placement_is_gone_is_skipped_for_the_newer_one(etcd, lacking):
    old = {"held": placement(100), "table": placement(101)}
    there = [found for name, found in old.items() if name != lacking]
    await publish(etcd, record(1, **old), *there)
    newest = placement(0)
    seen = EpochFollower(etcd, KEYS, 0).follow()
    await etcd.put(KEYS.placement(newest.digest), newest.wire)
    waiting = asyncio.ensure_future(anext(seen))
    await asyncio.sleep(0.2)
    assert not waiting.done(), "nothing may be done without knowing what slots hold"
    await publish(etcd, record(2, table=newest, held=newest))
    found = await asyncio.wait_for(waiting, 5)
    assert (found.record.committed.epoch, found.committed.loads) == (2, ())
    await seen.aclose()
