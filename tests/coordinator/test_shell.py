"""The shell over the in-memory etcd and over a real one: leaders come and go, the instance goes on."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest

from controlplane.coordinator import shell
from controlplane.coordinator.core import step
from controlplane.coordinator.placing import LoadAwarePlanner
from controlplane.coordinator.shell import Coordinator, Identity
from controlplane.coordinator.state import Change, Kind, Observed
from controlplane.etcd import EtcdClient, KeptLease, LoopClock, LoopLease
from schemas.codec import decode, encode
from schemas.config import EtcdConfig
from schemas.keys import Keys
from schemas.operations import Operation, OperationKind, OperationState, Recovery
from schemas.policy import Spec
from schemas.records import EpochRecord, ExpertLoad, FaultReport, Status, Suspicion
from schemas.vocabulary import Evidence
from tools.control_rig import BareRank
from tools.simulation.etcd_model import EtcdModel

KEYS = Keys("test")


async def at_once(work, *arguments):
    """A thread would be outside virtual time."""
    return work(*arguments)


class Rank(BareRank):
    """Remembers the epochs that it crossed into."""

    def __init__(self, etcd, rank, *, keys=KEYS, incarnation=1, **more):
        super().__init__(etcd, keys, rank, incarnation=incarnation, **more)
        self.epochs: list[int] = []

    async def run(self):
        self.held = await LoopLease.take(self.etcd, 5)
        self.lease = self.held.lease
        await self.register()
        await self.follow()

    async def acknowledge(self, epoch, *, activated, loads=()):
        if activated:
            self.epochs.append(epoch)
        await super().acknowledge(epoch, activated=activated, loads=loads)

    async def dies(self):
        await self.report(self.rank, incarnation=self.incarnation)


class World:
    """Replicas and ranks on one etcd."""

    def __init__(self, client, keys=KEYS):
        self.client, self.keys = client, keys
        self.tasks: dict[str, asyncio.Task] = {}
        self.replicas: dict[str, Coordinator] = {}
        self.ranks: dict[int, Rank] = {}
        self.etcd = client("observer")
        self.model = None

    def replica(self, name, *, ranks=4, **more):
        if self.model is not None and "etcd" not in self.tasks:  # in the test: a fixture has no virtual time
            self.tasks["etcd"] = asyncio.create_task(hold(self.model))
        etcd = self.client(name)
        coordinator = Coordinator(
            etcd=etcd,
            keys=self.keys,
            identity=Identity(replica=name, admin_url=f"http://{name}"),
            take_lease=lambda: LoopLease.take(etcd, 2),
            spec=Spec(ranks=ranks, form_wait_s=1.0),
            **{"beside": asyncio.to_thread if self.model is None else at_once, **more},
        )
        self.replicas[name] = coordinator
        self.tasks[name] = asyncio.create_task(coordinator.run())
        return coordinator

    def rank(self, rank, incarnation=1, **more):
        worker = Rank(self.client(f"rank{rank}"), rank, keys=self.keys, incarnation=incarnation, **more)
        self.ranks[rank] = worker
        self.tasks[f"rank{rank}"] = asyncio.create_task(worker.run())
        return worker

    async def stop(self, name):
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def record(self):
        found = (await self.etcd.get(self.keys.epoch)).only
        return decode(found.value, EpochRecord, key="epoch") if found else None

    async def until(self, what, *, seconds=20.0):
        async with asyncio.timeout(seconds):
            while True:
                record = await self.record()
                if record is not None and what(record):
                    return record
                for name, task in self.tasks.items():
                    assert not task.done(), f"{name}: {task.exception()!r}"
                await asyncio.sleep(0.005)

    async def members(self, *ranks, seconds=20.0):
        return await self.until(
            lambda r: tuple(m.rank for m in r.committed.members) == ranks and r.preparing is None, seconds=seconds
        )


@asynccontextmanager
async def world_of(client, keys=KEYS):
    world = World(client, keys)
    try:
        yield world
    finally:
        for name in list(world.tasks):
            await world.stop(name)


@pytest.fixture
async def world():
    model = EtcdModel(latency_s=lambda: 0.001)
    async with world_of(model.client) as world:
        world.model = model
        yield world


async def hold(model):
    async with model:
        await asyncio.Event().wait()


@pytest.mark.looptime
async def test_ranks_form_an_instance_lose_one_and_take_it_back(world):
    world.replica("a")
    for rank in range(4):
        world.rank(rank)
    first = await world.members(0, 1, 2, 3)
    assert first.committed.epoch == 1
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.ranks[2].dies()
    lost = await world.members(0, 1, 3)
    assert loop.time() - began < 0.05
    assert lost.committed.reason == "rank 2 is gone (dead: pidfd: exit 137)"
    await world.stop("rank2")
    await world.ranks[2].held.release()
    world.rank(2, incarnation=2)
    again = await world.members(0, 1, 2, 3)
    assert again.committed.members[2].incarnation == 2
    assert world.ranks[0].epochs == [1, lost.committed.epoch, again.committed.epoch]


@pytest.mark.looptime
async def test_a_death_that_is_told_while_another_one_is_decided_costs_no_epoch_of_its_own(world, monkeypatch):
    replica = world.replica("a")
    for rank in range(4):
        world.rank(rank)
    first = await world.members(0, 1, 2, 3)
    suspicion = Suspicion(3, 1, Evidence.DEAD, "pidfd")
    report = FaultReport(reporter=3, incarnation=1, epoch=1, suspicions=(suspicion,), detected_unix_ns=1)
    told = []

    def decided(known, event, **more):
        outcome = step(known, event, **more)
        if outcome.write is not None and not told:
            told.append(Observed(event.now, (Change(Kind.REPORT, 3, report, 1_000_000),)))
            asyncio.get_running_loop().call_soon(replica._post, told[0])
        return outcome

    await asyncio.sleep(3)
    monkeypatch.setattr(shell, "step", decided)
    await world.ranks[2].dies()
    lost = await world.members(0, 1)
    assert told
    assert lost.committed.epoch == first.committed.epoch + 1


async def test_a_loss_is_planned_for_before_it_happens(shared_etcd):
    keys = Keys("shell-ahead")
    async with EtcdClient(EtcdConfig(endpoints=shared_etcd.endpoints)) as etcd, world_of(lambda _: etcd, keys) as world:
        world.replica("a")
        for rank in range(4):
            world.rank(rank, slots=3)  # each holds an expert that no other one holds
        await world.members(0, 1, 2, 3)
        await asyncio.sleep(1.5)
        await world.ranks[2].dies()
        lost = await world.members(0, 1, 3)
        recovery = decode((await etcd.get(keys.recovery(f"{lost.committed.epoch:012d}"))).only.value, Recovery, key="")
        assert recovery.reason.endswith("worked out before the loss")


@pytest.mark.looptime
async def test_a_crashed_leader_is_succeeded_in_the_middle_of_a_change(world):
    world.replica("a")
    for rank in range(3):
        world.rank(rank)
    await world.members(0, 1, 2)
    world.replica("b")
    await asyncio.sleep(0.5)
    world.model.partition("rank1")  # its acknowledgement will be missing
    world.rank(3)
    before = await world.until(lambda r: r.preparing is not None)
    world.model.partition("a")
    world.model.heal("rank1")
    after = await world.members(0, 1, 2, 3)
    assert after.fence > before.fence
    assert after.committed.epoch == before.preparing.epoch
    world.model.heal("a")
    await asyncio.sleep(5)
    assert world.replicas["b"].view.leading
    assert not world.replicas["a"].view.leading
    assert world.replicas["a"].view.leader.replica == "b"


@pytest.mark.looptime
async def test_a_graceful_hand_over_takes_milliseconds(world):
    world.replica("a")
    for rank in range(2):
        world.rank(rank)
    await asyncio.sleep(3)
    world.replica("b")
    await asyncio.sleep(0.5)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.replicas["a"].hand_over()
    await asyncio.sleep(began + 0.3 - loop.time())
    assert world.replicas["b"].view.leading


@pytest.mark.looptime
async def test_without_quorum_nothing_changes_and_afterwards_everything_is_caught_up(world):
    world.replica("a")
    for rank in range(4):
        world.rank(rank)
    await world.members(0, 1, 2, 3)
    dying = asyncio.create_task(world.ranks[1].dies())
    world.model.lose_quorum()
    await asyncio.sleep(3)
    assert not world.replicas["a"].view.connected
    world.model.restore_quorum()
    await asyncio.gather(dying, return_exceptions=True)
    await world.ranks[1].dies()
    await world.until(lambda r: all(m.rank != 1 for m in r.committed.members))


@pytest.mark.looptime
async def test_a_lost_reply_does_not_apply_a_change_twice(world):
    world.replica("a")
    for rank in range(3):
        world.rank(rank)
    await world.members(0, 1, 2)
    world.model.lose_reply("a", count=1)
    await world.ranks[2].dies()
    lost = await world.members(0, 1)
    assert lost.committed.epoch == 2


@pytest.mark.looptime
async def test_an_operation_is_performed_once_by_whoever_leads(world):
    world.replica("a")
    for rank in range(4):
        world.rank(rank)
    await world.members(0, 1, 2, 3)
    operation = Operation(id="one", kind=OperationKind.DRAIN, who="ops", reason="disk", ranks=(3,), created_unix_ns=1)
    prediction = world.replicas["a"].predict(operation)
    assert (prediction.allowed, prediction.members, prediction.headroom_before) == (True, (0, 1, 2), 1)
    await world.etcd.put(KEYS.operation("one"), encode(operation))
    await world.members(0, 1, 2)
    await asyncio.sleep(1)
    done = decode((await world.etcd.get(KEYS.operation("one"))).only.value, Operation, key="")
    assert done.state is OperationState.DONE
    assert done.safe_to_terminate == (3,)
    status = decode((await world.etcd.get(KEYS.status)).only.value, Status, key="")
    assert {v.rank: v.state.value for v in status.ranks} == {0: "active", 1: "active", 2: "active", 3: "cordoned"}


@pytest.mark.looptime
async def test_a_damaged_record_is_named_and_otherwise_ignored(world, caplog):
    world.replica("a")
    for rank in range(3):
        world.rank(rank)
    await world.members(0, 1, 2)
    await world.etcd.put(KEYS.report(7), b"\xff\xff")
    await world.ranks[2].dies()
    await world.members(0, 1)
    assert "/eep/test/reports/0007: not a readable FaultReport" in caplog.text


async def test_the_same_story_on_a_real_etcd(shared_etcd):
    keys = Keys("shell-real")
    clients = []

    def client(_name):
        made = EtcdClient(EtcdConfig(endpoints=shared_etcd.endpoints))
        clients.append(made)
        return made

    async with world_of(client, keys) as world:
        world.replica("a")
        world.replica("b")
        for rank in range(4):
            world.rank(rank)
        await world.members(0, 1, 2, 3)
        await world.ranks[2].dies()
        lost = await world.members(0, 1, 3)
        leader = next(name for name, replica in world.replicas.items() if replica.view.leading)
        await world.replicas[leader].hand_over()
        await world.stop("rank2")
        await world.ranks[2].held.release()
        world.rank(2, incarnation=2)
        again = await world.members(0, 1, 2, 3)
        assert again.fence > lost.fence
    for made in clients:
        await made.close()


async def test_a_leader_whose_decisions_hang_loses_its_lease_although_its_other_tasks_go_on(shared_etcd):
    keys, config = Keys("shell-wedged"), EtcdConfig(endpoints=shared_etcd.endpoints)
    hangs = asyncio.Event()

    class Hanging(EtcdClient):
        async def txn(self, txn):
            if hangs.is_set() and asyncio.current_task().get_name() == "decide":
                await asyncio.Event().wait()  # what a call with a deadline must never do
            return await super().txn(txn)

    async def take_lease():
        return await KeptLease.take(config, ttl_s=2, progress_deadline_s=1.0)

    async with Hanging(config) as first, EtcdClient(config) as second, world_of(lambda _: second, keys) as world:
        replicas = {
            name: Coordinator(
                etcd=etcd, keys=keys, identity=Identity(replica=name), take_lease=take_lease, spec=Spec(ranks=2)
            )
            for name, etcd in (("a", first), ("b", second))
        }
        world.replicas |= replicas
        world.tasks["a"] = asyncio.create_task(replicas["a"].run())
        world.rank(0)
        world.rank(1)
        await world.members(0, 1)
        world.tasks["b"] = asyncio.create_task(replicas["b"].run())
        await asyncio.sleep(1.5)
        assert replicas["a"].view.leading  # idle is not wedged
        hangs.set()
        await world.ranks[1].dies()
        await world.members(0)
        assert replicas["b"].view.leading


class Late(LoopClock):
    """A clock that somebody puts forward."""

    late_s = 0.0

    def now(self):
        return super().now() + self.late_s


@pytest.mark.looptime
async def test_decisions_that_take_long_are_taken_for_many_events_at_once(world, monkeypatch):
    clock = Late()

    def costly(*arguments, **more):
        clock.late_s += 0.02  # as if there were thousands of ranks
        return step(*arguments, **more)

    monkeypatch.setattr(shell, "step", costly)
    replica = world.replica("a", clock=clock)
    world.rank(0)
    await replica.followed_once()
    await asyncio.sleep(2)
    before, last = replica.rounds, 0
    for rank in range(100):
        load = encode(ExpertLoad(rank=rank, layers=1, experts=1, tokens=b"\0\0"))
        last = await world.etcd.put(KEYS.load(rank), load)  # 1 ms each way
    await replica._followed(last)
    await asyncio.sleep(0.1)
    assert len(replica.view.state.loads) == 100
    assert 5 <= replica.rounds - before <= 30


class Thorough(LoadAwarePlanner):
    """Works on a rebalance until it is let go."""

    def __init__(self):
        super().__init__()
        self.asked, self.enough = 0, threading.Event()

    def plan(self, instance, *, live=None, max_bytes=0):
        if live is not None:
            self.asked += 1
            assert self.enough.wait(20)
        return super().plan(instance, live=live, max_bytes=max_bytes)


async def test_a_loss_is_decided_while_a_plan_is_worked_out_in_a_thread(world):
    planner = Thorough()
    world.replica("a", planner=planner, beside=asyncio.to_thread)
    for rank in range(4):
        world.rank(rank)
    await world.members(0, 1, 2, 3)
    operation = Operation(id="wide", kind=OperationKind.REBALANCE, who="ops", reason="test", created_unix_ns=1 << 62)
    await world.etcd.put(KEYS.operation("wide"), encode(operation))
    async with asyncio.timeout(10):
        while not planner.asked:
            await asyncio.sleep(0.005)
    await world.ranks[2].dies()
    await world.members(0, 1, 3, seconds=5)
    assert not planner.enough.is_set()
    planner.enough.set()
    async with asyncio.timeout(10):
        while True:
            found = (await world.etcd.get(KEYS.operation("wide"))).only
            if decode(found.value, Operation, key="wide").state is OperationState.DONE:
                break
            await asyncio.sleep(0.01)
    assert planner.asked == 2  # the first plan was for ranks that are no more


@pytest.mark.looptime
async def test_a_planner_that_never_answers_fails_the_operation_and_nothing_else(world):
    async def never(work, *arguments):
        if work.__name__ == "_answer":
            await asyncio.Event().wait()
        return work(*arguments)

    world.replica("a", beside=never)
    for rank in range(3):
        world.rank(rank)
    await world.members(0, 1, 2)
    operation = Operation(id="wide", kind=OperationKind.REBALANCE, who="ops", reason="test", created_unix_ns=1 << 62)
    await world.etcd.put(KEYS.operation("wide"), encode(operation))
    await asyncio.sleep(shell.PLAN_DEADLINE_S + 1)
    found = decode((await world.etcd.get(KEYS.operation("wide"))).only.value, Operation, key="wide")
    assert (found.state, found.message) == (OperationState.FAILED, "no plan: the planner gave none within 30 s")
    await world.ranks[2].dies()
    await world.members(0, 1)
