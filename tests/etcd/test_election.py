"""Election and fencing, on real clusters and the model."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from controlplane.etcd import (
    DeposedError,
    Election,
    LeaseLostError,
    LoopLease,
    Put,
    Txn,
    fenced,
    leader_of,
    observe,
    unchanged,
)

TTL_S = 5


@pytest.fixture
async def stand(etcd, prefix):
    """Make candidates by name: returns (election, lease)."""
    leases = []

    async def candidate(name):
        leases.append(await LoopLease.take(etcd, TTL_S))
        return Election(etcd, f"{prefix}leader/", leases[-1], name.encode()), leases[-1]

    yield candidate
    for lease in leases:
        await lease.release()


async def soon(awaitable):
    async with asyncio.timeout(3):
        return await awaitable


async def test_candidates_lead_in_the_order_they_stood_and_fences_grow(etcd, stand, prefix):
    elections = [(await stand(name))[0] for name in ("a", "b", "c")]
    first = await soon(elections[0].campaign())
    others = []
    for election in elections[1:]:
        others.append(asyncio.create_task(election.campaign()))
        await asyncio.sleep(0.3)
    assert not any(task.done() for task in others)
    await elections[0].resign(first)
    second = await soon(others[0])
    assert not others[1].done()
    await elections[1].resign(second)
    third = await soon(others[1])
    assert first.fence < second.fence < third.fence
    assert leader_of(await etcd.get(f"{prefix}leader/")).create_revision == third.fence


async def test_the_same_process_elected_again_has_another_fence_and_its_old_writes_fail(etcd, stand, prefix):
    election, _ = await stand("a")
    first = await soon(election.campaign())
    await election.resign(first)
    second = await soon(election.campaign())
    assert second.key == first.key
    with pytest.raises(DeposedError) as deposed:
        await fenced(etcd, first, Txn(then=(Put(f"{prefix}epoch", b"stale"),)))
    assert (deposed.value.fence, deposed.value.found) == (first.fence, second.fence)
    assert (await etcd.get(f"{prefix}epoch")).only is None
    assert (await fenced(etcd, second, Txn(then=(Put(f"{prefix}epoch", b"1"),)))).succeeded


async def test_a_fenced_write_that_loses_a_race_is_no_deposition(etcd, stand, prefix):
    election, _ = await stand("a")
    leadership = await soon(election.campaign())
    write = Txn(when=(unchanged(f"{prefix}epoch", 0),), then=(Put(f"{prefix}epoch", b"1"),))
    assert (await fenced(etcd, leadership, write)).succeeded
    lost = await fenced(etcd, leadership, write)
    assert not lost.succeeded
    assert lost.replies == ()


async def test_a_leader_hears_of_its_deposition(etcd, stand):
    election, lease = await stand("a")
    leadership = await soon(election.campaign())
    hearing = asyncio.create_task(election.wait_deposed(leadership))
    await asyncio.sleep(0.2)
    assert not hearing.done()
    await etcd.revoke(lease.lease)
    assert "deleted" in await soon(hearing)


async def test_a_candidate_whose_lease_is_lost_stops_waiting(etcd, stand):
    first, _ = await stand("a")
    await soon(first.campaign())
    second, lease = await stand("b")
    waiting = asyncio.create_task(second.campaign())
    await asyncio.sleep(0.2)
    await etcd.revoke(lease.lease)
    with pytest.raises(LeaseLostError):
        await soon(waiting)


async def test_a_candidate_removed_by_an_operator_stands_again_at_the_end(etcd, stand):
    elections = [(await stand(name))[0] for name in ("a", "b", "c")]
    first = await soon(elections[0].campaign())
    waiting = []
    for election in elections[1:]:
        waiting.append(asyncio.create_task(election.campaign()))
        await asyncio.sleep(0.3)
    await etcd.delete(elections[1].key)
    await asyncio.sleep(0.5)
    await elections[0].resign(first)
    assert (await soon(waiting[1])).key == elections[2].key
    assert not waiting[0].done()
    waiting[0].cancel()


async def test_an_observer_sees_each_leader_once(etcd, stand, prefix):
    elections = [(await stand(name))[0] for name in ("a", "b")]
    async with aclosing(observe(etcd, f"{prefix}leader/")) as leaders:
        assert await soon(anext(leaders)) is None
        first = await soon(elections[0].campaign())
        assert (await soon(anext(leaders))).value == b"a"
        waiting = asyncio.create_task(elections[1].campaign())
        await asyncio.sleep(0.3)
        await elections[0].resign(first)
        await soon(waiting)
        assert (await soon(anext(leaders))).value == b"b", "a second candidate is no change of leader"
