"""The fault matrix: whatever happens to etcd, no event is lost, duplicated or reordered, and a hung member is left."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from controlplane.etcd import KeptLease, LeaseState, OutcomeUnknownError, UnavailableError, Watch
from controlplane.etcd.rpc import rpc
from schemas.config import EtcdConfig
from tests.etcd.riding import leader_index, pinned, ride
from tools.etcd.local import LocalEtcd

FAILOVER_S = 1.5
"""The contract for a hung member that does not lead."""
PREFIX = "/ride/"


@pytest.fixture
def three(binary):
    with LocalEtcd(members=3, binary=binary) as etcd:
        yield etcd


@pytest.fixture
def one(binary):
    with LocalEtcd(binary=binary) as etcd:
        yield etcd


async def roles(etcd):
    """Indices of the leader and of two followers."""
    leader = await leader_index(etcd.endpoints)
    return leader, *[index for index in range(3) if index != leader]


@pytest.fixture
async def clients():
    opened = []

    async def connect(etcd, index):
        opened.append(await pinned(etcd.endpoints, index))
        return opened[-1]

    yield connect
    for client in opened:
        await client.close()


@pytest.mark.parametrize("role", ["follower", "leader"])
async def test_the_connected_member_is_killed_and_comes_back(three, clients, role):
    leader, follower, other = await roles(three)
    hit = leader if role == "leader" else follower
    reader, writer = await clients(three, hit), await clients(three, other)
    async with ride(writer, reader, PREFIX) as it:
        three.members[hit].kill()
        await asyncio.sleep(1.5)
        three.members[hit].start()
    assert it.relisted == 1, "listed once, resumed ever after"
    assert reader.session.endpoints.rotations


async def test_a_hung_member_is_left_in_time(three, clients):
    _, follower, other = await roles(three)
    reader, writer = await clients(three, follower), await clients(three, other)
    async with ride(writer, reader, PREFIX) as it:
        three.members[follower].signal(signal.SIGSTOP)
        begun = time.monotonic()
        await reader.get("/any")
        assert time.monotonic() - begun <= FAILOVER_S
        await asyncio.sleep(FAILOVER_S)
        three.members[follower].signal(signal.SIGCONT)
    assert it.longest_gap_s <= FAILOVER_S
    assert it.relisted == 1


async def test_a_quiet_watch_leaves_a_hung_member_too(three, clients):
    _, follower, other = await roles(three)
    reader, writer = await clients(three, follower), await clients(three, other)
    watch = Watch(reader, PREFIX)
    changes = watch.changes()
    await anext(changes)
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.5)
    three.members[follower].signal(signal.SIGSTOP)
    await asyncio.sleep(FAILOVER_S)
    begun = time.monotonic()
    await writer.put(f"{PREFIX}a", b"")
    async with asyncio.timeout(FAILOVER_S):
        await waiting
    assert time.monotonic() - begun < FAILOVER_S / 3, "it had moved on already"
    await changes.aclose()
    three.members[follower].signal(signal.SIGCONT)


async def test_a_hung_leader_is_replaced_and_left(three, clients):
    leader, _, other = await roles(three)
    reader, writer = await clients(three, leader), await clients(three, other)
    async with ride(writer, reader, PREFIX) as it:
        three.members[leader].signal(signal.SIGSTOP)
        await asyncio.sleep(3)
        three.members[leader].signal(signal.SIGCONT)
    assert it.relisted == 1


async def test_leadership_moves_under_a_client(three, clients):
    leader, follower, other = await roles(three)
    reader, writer, admin = [await clients(three, index) for index in (follower, other, leader)]
    async with ride(writer, reader, PREFIX) as it:
        for successor in (follower, other):
            target = await _status(await clients(three, successor))
            now_leading = await clients(three, await leader_index(three.endpoints))
            member = await now_leading.session.endpoints.ready(asyncio.get_running_loop().time() + 5)
            request = rpc.MoveLeaderRequest(targetID=target.header.member_id)
            await member.maintenance.MoveLeader(request, timeout=5)
            await asyncio.sleep(0.5)
    assert it.relisted == 1
    assert admin.session.endpoints.rotations == 0


async def _status(client):
    member = await client.session.endpoints.ready(asyncio.get_running_loop().time() + 5)
    return await member.maintenance.Status(rpc.StatusRequest(), timeout=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
async def test_the_only_member_restarts(one, clients, number):
    reader, writer = await clients(one, 0), await clients(one, 0)
    async with ride(writer, reader, PREFIX) as it:
        one.members[0].signal(number)
        await asyncio.sleep(0.5)
        one.restart(one.members[0])
    assert it.relisted == 1


async def test_the_only_member_hangs_and_goes_on(one, clients):
    reader, writer = await clients(one, 0), await clients(one, 0)
    async with ride(writer, reader, PREFIX) as it:
        one.members[0].signal(signal.SIGSTOP)
        await asyncio.sleep(3)
        one.members[0].signal(signal.SIGCONT)
    assert it.relisted == 1


async def test_a_put_without_an_answer_is_unknown_and_never_sent_twice(one, clients):
    client = await clients(one, 0)
    await client.put("/k", b"1")
    one.members[0].signal(signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(OutcomeUnknownError):
        await client.put("/k", b"2")
    assert time.monotonic() - begun <= FAILOVER_S
    with pytest.raises(UnavailableError):
        await client.get("/k")
    one.members[0].signal(signal.SIGCONT)
    async with asyncio.timeout(10):
        assert (await client.get("/k")).only.version <= 2


async def test_a_majority_is_lost_and_comes_back(three, clients):
    leader, follower, other = await roles(three)
    reader, writer = await clients(three, other), await clients(three, other)
    async with ride(writer, reader, PREFIX) as it:
        for index in (leader, follower):
            three.members[index].kill()
        await asyncio.sleep(3)
        for index in (leader, follower):
            three.members[index].start()
        await asyncio.sleep(1)
    assert it.relisted == 1


async def test_compaction_while_disconnected_is_made_up_for(one, clients):
    reader, writer = await clients(one, 0), await clients(one, 0)
    await writer.put(f"{PREFIX}stays", b"1")
    await writer.put(f"{PREFIX}goes", b"1")
    watch = Watch(reader, PREFIX)
    changes = watch.changes()
    await anext(changes)
    await reader.close()  # the watch's stream breaks; its client is then one that cannot connect
    await writer.put(f"{PREFIX}stays", b"2")
    await writer.delete(f"{PREFIX}goes")
    await writer.put(f"{PREFIX}new", b"1")
    last = await writer.put(f"{PREFIX}newer", b"1")
    await writer.compact(last)
    watch._etcd = writer
    async with asyncio.timeout(10):
        change = await anext(changes)
    assert change.relisted
    assert [(event.kind.value, event.key[len(PREFIX) :]) for event in change.events] == [
        ("delete", "goes"),
        ("put", "stays"),
        ("put", "new"),
        ("put", "newer"),
    ]
    assert {key[len(PREFIX) :]: item.value for key, item in watch.items.items()} == {
        "stays": b"2",
        "new": b"1",
        "newer": b"1",
    }
    await changes.aclose()


async def test_compaction_under_a_live_watch_takes_nothing_from_it(one, clients):
    reader, writer = await clients(one, 0), await clients(one, 0)
    async with ride(writer, reader, PREFIX) as it:
        for _ in range(20):
            await writer.compact((await writer.get(PREFIX)).revision)
            await asyncio.sleep(0.02)
    assert it.relisted == 1


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
async def test_a_kept_lease_survives_the_loss_of_etcds_leader(three, fault):
    leader, _, _ = await roles(three)
    lease = await KeptLease.take(EtcdConfig(endpoints=three.endpoints), ttl_s=3, progress_deadline_s=30)
    try:
        three.members[leader].signal(fault)
        worst = set()
        for _ in range(400):
            worst.add(lease.state)
            await asyncio.sleep(0.01)
        assert LeaseState.LOST not in worst
        assert lease.state is LeaseState.HELD
    finally:
        await lease.release()
