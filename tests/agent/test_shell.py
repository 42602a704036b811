"""The agent on a real etcd: what stands there, and that it follows what a leader writes."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from controlplane.etcd import EtcdClient, LoopLease
from controlplane.telemetry import WorkerMetrics
from schemas.codec import decode, encode
from schemas.config import EtcdConfig
from schemas.keys import Keys
from schemas.messages import Activated, Ask, Commit, Drain, EngineStatus, Hello, Prepare, Prepared, Ready
from schemas.placement import Placement
from schemas.records import Ack, EpochRecord, EpochVersion, FaultReport, Registration
from schemas.vocabulary import Cut, Evidence, Member, SourceTier, stamp_of
from tools.etcd.local import LocalEtcd
from worker.agent.core import Policy, State
from worker.agent.epochs import EpochFollower
from worker.agent.events import EngineEnded, Heard
from worker.agent.publisher import Publisher
from worker.agent.shell import Agent
from worker.agent.story import Story

KEYS = Keys("agent-test")
PLACEMENT = Placement.round_robin(layers=2, experts=4, ranks=[0, 1], max_ranks=2, slots=3)


class ScriptedEngine:
    """An engine that answers as a healthy one does, and dies when told to."""

    def __init__(self):
        self.incarnation = 0
        self.sent = []
        self.ended = []
        self.called_off = []
        self.agent = None

    def say(self, message):
        self.agent.heard(Heard(asyncio.get_running_loop().time(), message))

    async def start(self, incarnation):
        self.incarnation = incarnation
        self.say(
            Hello(
                rank=0,
                incarnation=incarnation,
                pid=1,
                link_address=f"/link-{incarnation}",
                layers=2,
                experts=4,
                slots=3,
                expert_bytes=8,
                model="m",
                checkpoint="c",
            )
        )
        self.say(Ready(serve_url="http://r0"))

    async def end(self, *, fence):
        self.ended.append((self.incarnation, fence))

    def fence(self):
        self.ended.append((self.incarnation, True))

    def clear_away(self):
        self.ended.append((self.incarnation, False))

    def send(self, message):
        self.sent.append(message)
        if isinstance(message, Prepare):
            self.say(Prepared(epoch=message.epoch, ok=True))
        elif isinstance(message, Commit):
            self.say(Activated(epoch=message.epoch, step=1, waited_ms=0.1))
        elif isinstance(message, Drain | Ask):
            self.say(EngineStatus(epoch=1, prepared=1, step=1, running=0, waiting=0, draining=True))

    def call_off(self, stamp):
        self.called_off.append(stamp)

    def committed(self, epoch):
        pass

    def die(self):
        now = asyncio.get_running_loop().time()
        self.agent.heard(EngineEnded(now, self.incarnation, "killed", time.time_ns()))


@pytest.fixture(scope="module")
def server():
    with LocalEtcd() as local:
        yield local


@pytest.fixture
async def etcd(server):
    async with EtcdClient(EtcdConfig(endpoints=server.endpoints)) as client:
        await client.delete(KEYS.prefix)
        yield client


@pytest.fixture
async def engine(etcd):
    engine = ScriptedEngine()
    engine.agent = Agent(
        state=State(identity=Registration(rank=0, incarnation=0, host="a"), policy=Policy(first_backoff_s=0.05)),
        etcd=etcd,
        keys=KEYS,
        engine=engine,
        take_lease=lambda: LoopLease.take(etcd, 5),
        follow=EpochFollower(etcd, KEYS, 0).follow,
        story=Story(WorkerMetrics(CollectorRegistry())),
    )
    engine.work = asyncio.create_task(engine.agent.run())
    yield engine
    engine.work.cancel()
    await asyncio.gather(engine.work, return_exceptions=True)


async def until(look, *, what):
    async with asyncio.timeout(20):
        while (found := await look()) is None:
            await asyncio.sleep(0.02)
        return found


async def record(etcd, key, kind, wanted):
    async def look():
        item = (await etcd.get(key)).only
        found = decode(item.value, kind, key=key) if item else None
        return found if found and wanted(found) else None

    return await until(look, what=key)


async def registered(etcd, wanted=lambda registration: registration.ready):
    return await record(etcd, KEYS.rank(0), Registration, wanted)


async def publish(etcd, *, committed, preparing=None, held="", loading=False):
    await etcd.put(KEYS.placement(PLACEMENT.digest), PLACEMENT.wire)
    await etcd.put(
        KEYS.epoch,
        encode(EpochRecord(committed=committed, preparing=preparing, held=held, loading=loading, fence=1)),
    )


def version(epoch, *members, cut=Cut.PLANNED):
    return EpochVersion(
        epoch=epoch,
        members=tuple(members),
        placement=PLACEMENT.digest if members else "",
        cut=cut,
        reason="test",
    )


async def in_epoch_one(etcd, engine):
    me = Member(0, (await registered(etcd)).incarnation)
    await publish(etcd, committed=version(0), preparing=version(1, me))
    await record(etcd, KEYS.ack(1, 0), Ack, lambda ack: ack.prepared)
    await publish(etcd, committed=version(1, me))
    await record(etcd, KEYS.ack(1, 0), Ack, lambda ack: ack.activated)
    return me


async def test_first_epoch_is_prepared_with_every_slot_to_load_and_acknowledged(etcd, engine):
    await in_epoch_one(etcd, engine)
    prepare = next(message for message in engine.sent if isinstance(message, Prepare))
    assert [peer.rank for peer in prepare.peers] == [0]
    assert len(prepare.loads) == int((PLACEMENT.slots[:, 0] != 0xFFFF).sum())
    assert {source.tier for load in prepare.loads for source in load.sources} == {SourceTier.CHECKPOINT}
    held = await registered(etcd, lambda registration: registration.holds == PLACEMENT.digest)
    assert held.serve_url == "http://r0"


async def test_an_engines_death_is_reported_and_a_new_incarnation_registers(etcd, engine):
    me = await in_epoch_one(etcd, engine)
    engine.die()
    report = await record(etcd, KEYS.report(0), FaultReport, lambda found: bool(found.suspicions))
    assert [(one.rank, one.incarnation, one.evidence) for one in report.suspicions] == [
        (0, me.incarnation, Evidence.DEAD)
    ]
    again = await registered(etcd, lambda found: found.ready and found.incarnation != me.incarnation)
    assert again.incarnation > me.incarnation
    assert not again.holds


async def test_an_engine_restarts_although_its_timer_fires_early(etcd, engine, monkeypatch):
    """A loop runs what is due within its clock's resolution: the engine once waited for ever for the rest of it."""
    me = await in_epoch_one(etcd, engine)
    monkeypatch.setattr(asyncio.get_running_loop(), "_clock_resolution", 0.03)
    engine.die()
    await registered(etcd, lambda found: found.ready and found.incarnation != me.incarnation)


async def test_an_abort_reaches_the_engine_before_the_plan(etcd, engine):
    me = await in_epoch_one(etcd, engine)
    await publish(etcd, committed=version(2, me, cut=Cut.ABORT), loading=True, held=PLACEMENT.digest)
    await record(etcd, KEYS.ack(2, 0), Ack, lambda ack: ack.activated)
    assert engine.called_off == [stamp_of(2)]
    prepare = next(message for message in engine.sent if isinstance(message, Prepare) and message.epoch == 2)
    assert prepare.loads == (), "everything is held already"


async def test_what_may_wait_goes_with_the_next_that_may_not_and_by_itself_when_its_time_is_up(etcd):
    publisher = Publisher(etcd)
    lease = await etcd.grant(60)
    publisher.use(lease.lease)
    async with asyncio.timeout(20.0), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(publisher.run())
        await publisher.settled.wait()
        ack = Ack(rank=0, incarnation=1, epoch=2, prepared=True)
        publisher.put(KEYS.ack(2, 0), ack, hold_s=1e6)
        await asyncio.sleep(0.05)
        assert not (await etcd.get(KEYS.ack(2, 0))).items
        publisher.put(KEYS.report(0), FaultReport(reporter=0, incarnation=1, epoch=2, suspicions=()))
        await publisher.settled.wait()
        both = [(await etcd.get(key)).only.mod_revision for key in (KEYS.ack(2, 0), KEYS.report(0))]
        assert both[0] == both[1], "one transaction"
        publisher.put(KEYS.ack(3, 0), ack, hold_s=0.05)
        await publisher.settled.wait()
        assert (await etcd.get(KEYS.ack(3, 0))).only
        run.cancel()


async def test_exclusion_fences_the_engine_and_starts_another(etcd, engine):
    me = await in_epoch_one(etcd, engine)
    await publish(etcd, committed=version(2, Member(1, 5), cut=Cut.ABORT))
    await registered(etcd, lambda found: found.ready and found.incarnation != me.incarnation)
    assert (me.incarnation, True) in engine.ended


async def test_what_stands_survives_the_loss_of_the_lease(etcd, engine):
    await in_epoch_one(etcd, engine)
    lease = (await etcd.get(KEYS.rank(0))).only.lease
    await etcd.revoke(lease)

    async def back():
        item = (await etcd.get(KEYS.rank(0))).only
        return item if item and item.lease != lease else None

    again = decode((await until(back, what="registration")).value, Registration, key=KEYS.rank(0))
    assert again.ready
    assert again.holds == PLACEMENT.digest
    assert engine.ended == [], "losing a lease changes nothing by itself"


async def test_a_rank_that_leaves_exits_when_it_is_let_go(etcd, engine):
    me = await in_epoch_one(etcd, engine)
    engine.agent.leave("SIGTERM", deadline_s=30)
    assert (await registered(etcd, lambda found: bool(found.leaving))).leaving == "SIGTERM"
    await publish(etcd, committed=version(1, me), preparing=version(2, Member(1, 5)))
    await record(etcd, KEYS.ack(2, 0), Ack, lambda ack: ack.prepared)
    await publish(etcd, committed=version(2, Member(1, 5)))
    assert await asyncio.wait_for(engine.work, 10) == "left: SIGTERM"
    assert (await etcd.get(KEYS.rank(0))).only is None, "the lease is released"
