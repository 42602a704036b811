"""Faults of the in-memory model, under virtual time: what a client of a real cluster would see."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from controlplane.etcd import (
    DeposedError,
    Election,
    LeaseLostError,
    LeaseState,
    LoopLease,
    OutcomeUnknownError,
    Put,
    Txn,
    UnavailableError,
    Watch,
    absent,
    fenced,
    unchanged,
)
from tools.simulation.etcd_model import EtcdModel

pytestmark = pytest.mark.looptime


@pytest.fixture
async def model():
    async with EtcdModel() as model:
        yield model


def now():
    return asyncio.get_running_loop().time()


async def collect(watch, changes):
    async with aclosing(watch.changes()) as stream:
        async for change in stream:
            changes.append(change)


async def test_a_lost_reply_leaves_an_unguarded_put_unknown_and_applied(model):
    client = model.client("a")
    model.lose_reply("a")
    with pytest.raises(OutcomeUnknownError):
        await client.put("/k", b"1")
    assert now() == pytest.approx(model.timing.request_timeout_s)
    assert (await client.get("/k")).only.value == b"1"


async def test_a_lost_reply_of_a_guarded_transaction_is_never_applied_twice(model):
    client = model.client("a")
    model.lose_reply("a")
    with pytest.raises(OutcomeUnknownError):  # the second attempt finds its own first: who can tell?
        await client.txn(Txn(when=(absent("/k"),), then=(Put("/k", b"1"),)))
    assert (await client.get("/k")).only.version == 1


async def test_a_lost_request_of_a_guarded_transaction_is_sent_again(model):
    client = model.client("a")
    model.partition("a")
    asyncio.get_running_loop().call_later(2.5, model.heal, "a")
    assert (await client.txn(Txn(when=(absent("/k"),), then=(Put("/k", b"1"),)))).succeeded
    assert (await client.get("/k")).only.version == 1


async def test_a_partition_fails_reads_by_the_deadline_and_writes_without_a_trace(model):
    client, other = model.client("a"), model.client("b")
    model.partition("a")
    with pytest.raises(UnavailableError):
        await client.get("/k")
    assert now() == pytest.approx(model.timing.deadline_s)
    with pytest.raises(OutcomeUnknownError):
        await client.put("/k", b"1")
    assert (await other.get("/k")).only is None


async def test_without_a_quorum_nothing_is_written_and_that_is_known(model):
    client = model.client("a")
    model.lose_quorum()
    with pytest.raises(UnavailableError):
        await client.put("/k", b"1")
    with pytest.raises(UnavailableError):
        await client.get("/k")
    model.restore_quorum()
    assert (await client.get("/k")).only is None


async def test_a_watch_rides_out_partition_quorum_loss_and_compaction(model):
    client, writer = model.client("a"), model.client("b")
    seen = []
    watch = Watch(client, "/p/")
    watching = asyncio.create_task(collect(watch, seen))
    await writer.put("/p/k", b"1")
    await asyncio.sleep(0.1)
    model.partition("a")
    await writer.put("/p/k", b"2")
    await writer.put("/p/k", b"3")
    await asyncio.sleep(3)
    assert watch.trouble
    model.heal("a")
    await asyncio.sleep(10)
    assert not watch.trouble
    model.lose_quorum()
    await asyncio.sleep(3)
    model.restore_quorum()
    await asyncio.sleep(10)
    await writer.put("/p/k", b"4")
    model.partition("a")
    await writer.put("/p/k", b"5")
    last = await writer.put("/p/other", b"6")
    await model.client("c").compact(last)
    await asyncio.sleep(3)
    model.heal("a")
    await asyncio.sleep(10)
    values = [event.item.value for change in seen for event in change.events]
    assert values[:3] == [b"1", b"2", b"3"]
    assert values[-2:] == [b"5", b"6"]
    assert seen[-1].relisted
    assert [change.revision for change in seen] == sorted({change.revision for change in seen})
    assert {key: item.value for key, item in watch.items.items()} == {"/p/k": b"5", "/p/other": b"6"}
    watching.cancel()


async def test_watchers_at_different_paces_see_the_same_order():
    rng = random.Random(7)
    async with EtcdModel(latency_s=lambda: rng.uniform(0, 0.2)) as model:
        seen = {name: [] for name in "abc"}
        tasks = [
            asyncio.create_task(collect(Watch(model.client(name), "/p/"), changes)) for name, changes in seen.items()
        ]
        await asyncio.sleep(2)
        writer = model.client("w")
        revisions = [await writer.put("/p/k", b"%d" % step) for step in range(50)]
        await asyncio.sleep(2)
        for changes in seen.values():
            assert [change.revision for change in changes if not change.relisted] == revisions
        for task in tasks:
            task.cancel()


async def test_the_owner_knows_that_a_lease_is_lost_before_its_keys_go(model):
    lease = await LoopLease.take(model.client("a"), 3)
    await model.client("a").put("/k", b"", lease=lease.lease)
    await asyncio.sleep(10)
    assert lease.state is LeaseState.HELD
    model.partition("a")
    gone = asyncio.create_task(collect(Watch(model.client("b"), "/k"), changes := []))
    states = []
    while lease.state is not LeaseState.LOST:
        states.append(lease.state)
        await asyncio.sleep(0.05)
    lost_at = now()
    assert LeaseState.UNCERTAIN in states
    assert (await model.client("b").get("/k")).only is not None
    assert "no renewal" in await lease.wait_lost()
    await asyncio.sleep(3)
    assert changes[-1].events[0].item.value == b""
    assert now() > lost_at
    gone.cancel()


async def test_a_deposed_leader_cannot_write_and_its_successor_has_a_higher_fence(model):
    leases = {name: await LoopLease.take(model.client(name), 3) for name in "ab"}
    elections = {name: Election(model.client(name), "/leader/", lease, name.encode()) for name, lease in leases.items()}
    first = await elections["a"].campaign()
    waiting = asyncio.create_task(elections["b"].campaign())
    await asyncio.sleep(20)
    assert not waiting.done()
    write = Txn(when=(unchanged("/epoch", 0),), then=(Put("/epoch", b"1"),))
    assert (await fenced(model.client("a"), first, write)).succeeded
    model.partition("a")
    assert "lost" in await elections["a"].wait_deposed(first)
    second = await waiting
    assert second.fence > first.fence
    model.heal("a")
    with pytest.raises(DeposedError) as deposed:
        await fenced(model.client("a"), first, Txn(then=(Put("/epoch", b"stale"),)))
    assert deposed.value.fence == first.fence
    with pytest.raises(LeaseLostError):
        await elections["a"].campaign()
    assert not (await fenced(model.client("b"), second, write)).succeeded, "its own compare, not the fence"
    await leases["b"].release()
    assert not (await model.client("a").get("/leader/")).items


async def test_the_same_seed_gives_the_same_history():
    async def history(seed):
        rng = random.Random(seed)
        async with EtcdModel(latency_s=lambda: rng.uniform(0, 0.05)) as model:

            async def write(name):
                for step in range(20):
                    await model.client(name).put(f"/p/{name}", b"%d" % step)

            await asyncio.gather(*(write(name) for name in "abcd"))
            return [(commit.at_s, commit.batch) for commit in model.store.since(0)]

    assert len(await history(1)) == 80
    started = now()
    runs = []
    for _ in range(2):
        begun = now()
        runs.append([(round(at_s - begun, 6), batch) for at_s, batch in await history(5)])
    assert runs[0] == runs[1]
    assert now() > started
