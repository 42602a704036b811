"""The coordinator on etcd: watch → core → one guarded transaction at a time. It decides nothing.

Every replica runs this. All of them follow the whole instance and could show it; the one that is elected feeds its core
with ``Elected`` and does what the core says. A write is guarded by the fence and by every record it is based on, so a
deposed leader's write fails, whenever it arrives (invariant 3).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from controlplane.coordinator.cluster import ClusterView
from controlplane.coordinator.core import step
from controlplane.coordinator.foresight import Foresight
from controlplane.coordinator.placing import LoadAwarePlanner
from controlplane.coordinator.predicting import predict
from controlplane.coordinator.state import Change, Deposed, Elected, Kind, Observed, Planned, State, Tick, Written
from controlplane.coordinator.story import Story
from controlplane.coordinator.wire import Wire, stands
from controlplane.etcd import (
    DeposedError,
    Election,
    EtcdError,
    EventKind,
    LeaseLostError,
    LeaseNotFoundError,
    LoopClock,
    OutcomeUnknownError,
    Put,
    Txn,
    UnavailableError,
    Watch,
    absent,
    fenced,
    leader_of,
)
from controlplane.planner import PlanningError
from schemas.codec import RecordError, decode, encode
from schemas.records import Ack, LeaderRecord
from schemas.vocabulary import Cut

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from controlplane.coordinator.core import Outcome
    from controlplane.coordinator.metering import Metering
    from controlplane.coordinator.planning import Plan, Planner
    from controlplane.coordinator.state import Event, Question, Write
    from controlplane.etcd import Change as Revision
    from controlplane.etcd import Clock, Etcd, KeyValue, Leadership, Lease, TxnResult
    from controlplane.etcd import Event as EtcdEvent
    from schemas.keys import Keys
    from schemas.operations import Operation, Prediction
    from schemas.policy import Spec

log = logging.getLogger(__name__)

T = TypeVar("T")

TURN_S = 0.5
"""The loop that decides goes round at least so often, to show that it does; deadlines are met when they are due."""
AGAIN_S = 0.1
"""Pause before a write whose outcome is unknown is sent again, or a refused one decided again."""
PLAN_DEADLINE_S = 30.0
"""A plan worked out beside the loop takes up to seconds; after this the operation that wants it fails."""
AHEAD_S = 0.5
"""The next losses are planned for once an epoch has stood so long, and at most twice as long after it came."""
SHORTEST_REST_S, LONGEST_REST_S = 0.0002, 0.05
"""Between two decisions the leader rests as long as the last one took, so that what comes meanwhile is decided
together: each costs O(ranks), and if all ranks acknowledge one by one that makes ranks². What comes while it does not
rest, as a first report does, is decided at once."""
MEASURE_S = 0.25
"""Gauges follow what they show within this time: a loss is no moment to count."""
ARRIVAL_TURNS = 6
"""Turns of the loop, tens of microseconds together, that it takes to hand over what gRPC has received."""
CONNECTED_S = 2.0
"""etcd counts as away after this long without a sign of life."""


class Beside(Protocol):
    """Runs work that takes long beside the loop: a thread; in virtual time at once."""

    def __call__(self, work: Callable[..., T], /, *arguments: Any) -> Awaitable[T]:
        """The work's result."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which replica of which instance this is."""

    replica: str
    admin_url: str = ""


class Coordinator:
    """One replica: ``run`` until cancelled; ``hand_over`` first, so that nobody waits for a lease to end."""

    def __init__(
        self,
        *,
        etcd: Etcd,
        keys: Keys,
        identity: Identity,
        take_lease: Callable[[], Awaitable[Lease]],
        spec: Spec,
        planner: Planner | None = None,
        metering: Metering | None = None,
        clock: Clock | None = None,
        unix_ns: Callable[[], int] = time.time_ns,
        said: Callable[[str], None] = lambda _: None,
        beside: Beside = asyncio.to_thread,
    ) -> None:
        self._etcd = etcd
        self._keys = keys
        self._identity = identity
        self._take_lease = take_lease
        self._spec = spec
        self._planner = Foresight(planner or LoadAwarePlanner())
        self._beside = beside
        self._metering = metering
        self._clock = clock or LoopClock()
        self._unix_ns = unix_ns
        self._said = said
        self._wire = Wire(keys)
        self._story = Story(instance=keys.instance, replica=identity.replica)
        self._watch = Watch(etcd, keys.prefix, clock=self._clock)
        self._inbox: deque[Event] = deque()
        self._questions: asyncio.Queue[Question] = asyncio.Queue()
        self._arrived = asyncio.Event()
        self._progress = asyncio.Condition()
        self._state = State(replica=identity.replica)
        self._leadership: Leadership | None = None
        self._election: Election | None = None
        self._leaving = asyncio.Event()
        self._idle = asyncio.Event()
        self._lease: Lease | None = None
        self._candidates: Mapping[str, KeyValue] = {}
        self._unreadable: dict[str, int] = {}
        self._rested_at = 0.0
        self._wake = 0
        self._leads = asyncio.Event()
        self._unmeasured = asyncio.Event()
        self.rounds = 0
        """How often the loop that decides went round, or made an attempt to write: a watchdog's food."""

    # --- what others may ask ------------------------------------------------------------------------------------------

    @property
    def view(self) -> ClusterView:
        """What this replica knows now."""
        leader = leader_of(self._candidates.values())
        record = None
        if leader is not None:
            record = decode(leader.value, LeaderRecord, key=leader.key)
        return ClusterView(
            instance=self._keys.instance,
            state=self._state,
            leader=record,
            leader_fence=leader.create_revision if leader else 0,
            revision=self._watch.revision,
            connected=not self._watch.trouble and self._watch.confirmed_at is not None,
        )

    def predict(self, operation: Operation) -> Prediction:
        """What ``operation`` would do now; any replica can say, the leader decides."""
        return predict(self._present, operation, planner=self._planner)

    async def followed_once(self) -> None:
        """Wait until the first listing was read."""
        await self._followed(1)

    async def hand_over(self) -> None:
        """Stop leading: finish the write under way, then let the next candidate in at once."""
        self._leaving.set()
        leadership, election = self._leadership, self._election
        self._leadership = None
        await self._idle.wait()
        if leadership is not None and election is not None:
            try:
                await election.resign(leadership)
            except EtcdError as error:
                log.warning("could not resign, the lease's end will do it: %s", error)

    async def run(self) -> None:
        """Follow, stand for election and lead when elected, for ever.

        Raises:
            EtcdError: what time does not heal (permission, authentication, another cluster).
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="follow")
            tasks.create_task(self._stand(), name="stand for election")
            tasks.create_task(self._decide(), name="decide")
            tasks.create_task(self._plan(), name="plan")
            tasks.create_task(self._look_ahead(), name="look ahead")
            if self._metering:
                tasks.create_task(self._measure(self._metering), name="measure")

    # --- following ----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async with aclosing(self._watch.changes()) as revisions:
            async for revision in revisions:
                changes = tuple(self._changes(revision))
                if changes:
                    self._post(Observed(self._unix_ns(), changes))
                async with self._progress:
                    self._progress.notify_all()

    def _changes(self, revision: Revision) -> list[Change]:
        changes = []
        for event in revision.events:
            if event.key.startswith(self._keys.election):
                self._stands(event)
            try:
                change = self._wire.change(event)
            except RecordError as error:  # of a newer version, or damaged: what we knew of the key stands
                if self._unreadable.get(error.key) != event.item.mod_revision:
                    self._unreadable[error.key] = event.item.mod_revision
                    log.error("%s", error)  # noqa: TRY400 - its message says all; the trace is ours, not the writer's
                continue
            if change is not None:
                changes.append(change)
        return changes

    def _stands(self, event: EtcdEvent) -> None:
        """Keep the candidates apart: the view names the leader at every event, among thousands of keys."""
        others = {key: item for key, item in self._candidates.items() if key != event.key}
        self._candidates = others if event.kind is EventKind.DELETE else {**others, event.key: event.item}

    async def _standing(self) -> AsyncGenerator[Mapping[str, KeyValue], None]:
        """The candidates, at once and whenever they change."""
        while True:
            yield (told := self._candidates)
            async with self._progress:
                while self._candidates is told:
                    await self._progress.wait()

    async def _followed(self, revision: int) -> None:
        """Wait until everything up to ``revision`` is in the inbox."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._watch.revision >= revision)

    # --- leading ------------------------------------------------------------------------------------------------------

    async def _stand(self) -> None:
        while not self._leaving.is_set():
            try:
                lease = await self._take_lease()
            except (UnavailableError, OutcomeUnknownError):
                await self._clock.sleep(AGAIN_S)
                continue
            self._lease = lease
            try:
                await self._stand_with(lease)
            except (LeaseLostError, LeaseNotFoundError, DeposedError) as error:
                log.info("stands again: %s", error)
            finally:
                self._lease = None
                await lease.release()
        await asyncio.Event().wait()  # hand_over was called: follow on until cancelled

    async def _stand_with(self, lease: Lease) -> None:
        record = encode(LeaderRecord(replica=self._identity.replica, admin_url=self._identity.admin_url))
        self._election = Election(
            self._etcd, self._keys.election, lease, record, standing=self._standing, clock=self._clock
        )
        leadership = await self._election.campaign()
        if self._leaving.is_set():
            await self._election.resign(leadership)
            return
        since = self._unix_ns()
        await self._take_over(leadership, lease, record)
        self._leadership = leadership
        self._leads.set()
        self._post(Elected(self._unix_ns(), leadership.fence))
        self._story.elected(fence=leadership.fence, since=since, now=self._unix_ns())
        if self._metering:
            self._metering.elected()
        log.info("%s leads with fence %d", self._identity.replica, leadership.fence)
        why = await self._election.wait_deposed(leadership)
        log.warning("%s does not lead any more: %s", self._identity.replica, why)
        self._leadership = None
        self._leads.clear()
        self._post(Deposed(self._unix_ns()))
        self._story.deposed()

    async def _take_over(self, leadership: Leadership, lease: Lease, record: bytes) -> None:
        """Publish the policy if nobody has, and wait until all that predecessors wrote is in the inbox.

        The leader's own key is written again for that: its revision is a barrier in our own watch.
        """
        policy = Txn(when=(absent(self._keys.spec),), then=(Put(self._keys.spec, encode(self._spec)),))
        barrier = Txn(then=(Put(leadership.key, record, lease.lease),))
        for txn in (policy, barrier):
            revision = 0
            while not revision:
                try:
                    revision = (await fenced(self._etcd, leadership, txn)).revision
                except (UnavailableError, OutcomeUnknownError):
                    await self._clock.sleep(AGAIN_S)
        await self._followed(revision)

    async def _look_ahead(self) -> None:
        """Plan losses before they happen, one at a time beside the loop, while nothing else is to be done."""
        settled = None
        while True:
            await self._leads.wait()
            await self._clock.sleep(AHEAD_S)
            state, before = self._present, settled
            settled = state.record
            if settled is not before or not self._planner.due(state):
                continue  # under a new epoch ranks still cross, and wait for the processors that this would take
            steps = self._planner.ahead(state)
            while self._state.record is state.record:
                began = self._clock.now()
                if await self._beside(next, steps, None) is None:
                    break
                await self._clock.sleep(self._clock.now() - began)  # half of a core at most

    async def _plan(self) -> None:
        """Work out beside the loop what the core wants to know; losses are decided meanwhile."""
        while True:
            question = await self._questions.get()
            plan, why = None, ""
            try:
                async with asyncio.timeout(PLAN_DEADLINE_S):
                    plan = await self._beside(self._answer, question)
            except TimeoutError:
                why = f"the planner gave none within {PLAN_DEADLINE_S:g} s"
            except PlanningError as error:
                why = str(error)
            if why:
                log.warning("no plan for %s: %s", question.cause or "slow ranks", why)
            self._post(Planned(self._unix_ns(), question, plan, why))

    def _answer(self, question: Question) -> Plan:
        return self._planner.plan(question.instance, live=question.live, max_bytes=question.max_bytes)

    async def _decide(self) -> None:
        while True:
            self._turned()
            self._idle.set()
            await self._something()
            rest = self._rested_at - self._clock.now()
            if rest > SHORTEST_REST_S:
                await self._clock.sleep(rest)
            self._idle.clear()
            await self._handle(self._next())

    async def _something(self) -> None:
        """Wait until something has arrived, or the moment has that the last decision depends on."""
        while not self._inbox:
            left_s = (self._wake - self._unix_ns()) / 1e9 if self._wake else TURN_S
            if left_s <= 0:
                self._post(Tick(self._unix_ns()))
                return
            try:
                async with asyncio.timeout(min(left_s, TURN_S)):
                    await self._arrived.wait()
            except TimeoutError:
                self._turned()
                self._unmeasured.set()  # that etcd is away brings no event

    @property
    def _present(self) -> State:
        """What is known, as of now: without an event nobody tells the core that time has passed."""
        return replace(self._state, now=max(self._state.now, self._unix_ns()))

    def _step(self, event: Event) -> Outcome:
        """One step of the core, and the rest that it earns."""
        began = self._clock.now()
        outcome = step(self._state, event, planner=self._planner)
        ended = self._clock.now()
        self._state, self._wake = outcome.state, outcome.wake
        self._rested_at = ended + min(ended - began, LONGEST_REST_S)
        if outcome.question is not None:
            self._questions.put_nowait(outcome.question)
        return outcome

    def _turned(self) -> None:
        """Only the loop that decides says so: one that hangs costs the lease, however lively the other tasks are."""
        self.rounds += 1
        if self._lease is not None:
            self._lease.progress()

    def _post(self, event: Event) -> None:
        self._inbox.append(event)
        self._arrived.set()

    def _next(self) -> Event:
        """The next event; observations that wait are taken as one."""
        event = self._inbox.popleft()
        if isinstance(event, Observed):
            changes = list(event.changes)
            while self._inbox and isinstance(following := self._inbox[0], Observed):
                changes += following.changes
                self._inbox.popleft()
            event = Observed(event.now, tuple(changes))
        if not self._inbox:
            self._arrived.clear()
        return event

    async def _handle(self, event: Event) -> None:
        """Feed one event and whatever follows from the writes it leads to."""
        pending: Event | None = event
        received = event.now
        while pending is not None:
            event, pending = pending, None
            began = time.perf_counter_ns()
            event, outcome = await self._decided(event)
            spent = time.perf_counter_ns() - began
            self._show(event, outcome.reason)
            if outcome.write is not None:
                now = self._unix_ns()
                write = self._story.decided(
                    outcome.write,
                    operations=self._state.operations,
                    received=received,
                    planned_ns=spent,
                    now=now,
                )
                pending = await self._execute(write)
                self._catch_up()

    async def _decided(self, event: Event) -> tuple[Event, Outcome]:
        """The decision on ``event``, or on it and what arrived meanwhile: ranks that died together cost one epoch.

        A decision on a loss takes milliseconds and a transaction more, so what is there already is looked at first.
        """
        before = self._state
        outcome = self._step(event)
        if not isinstance(event, Observed) or outcome.question is not None or not _excludes(outcome.write):
            return event, outcome
        for _ in range(ARRIVAL_TURNS):
            await asyncio.sleep(0)
        if not self._inbox or not isinstance(self._inbox[0], Observed):
            return event, outcome
        self._state = before
        self._inbox.appendleft(event)
        event = self._next()
        return event, self._step(event)

    def _catch_up(self) -> None:
        """Observe what arrived during a write before anything more is decided: a refused one would be refused again."""
        while self._inbox and isinstance(self._inbox[0], Observed | Tick):
            event = self._next()
            self._step(event)  # a write is under way: no decision
            self._show(event, "")

    def _show(self, event: Event, reason: str) -> None:
        if reason:
            log.info("%s", reason)
            self._said(reason)
        if isinstance(event, Observed) and self._leadership is not None:
            for change in event.changes:
                if change.kind is Kind.ACK and isinstance(change.value, Ack):
                    self._story.acknowledged(self._state, change.value, now=self._unix_ns())
        self._unmeasured.set()

    async def _measure(self, metering: Metering) -> None:
        while True:
            await self._unmeasured.wait()
            await self._clock.sleep(MEASURE_S)
            self._unmeasured.clear()
            metering.show(self.view)

    async def _execute(self, write: Write) -> Event:
        """Run one transaction to its end: applied, refused, or this replica leads no more."""
        started = self._unix_ns()
        txn = self._wire.transaction(write, self._state)
        doubt = False
        while (leadership := self._leadership) is not None:
            self._turned()  # each attempt has a deadline of its own
            try:
                result = await fenced(self._etcd, leadership, txn)
            except DeposedError:
                if self._metering:
                    self._metering.fenced_out()
                return Deposed(self._unix_ns())
            except (UnavailableError, OutcomeUnknownError) as error:
                doubt = True
                log.warning("etcd is away, the instance serves on under its last epoch: %s", error)
                await self._clock.sleep(AGAIN_S)
                continue
            revision = result.revision if result.succeeded else stands(txn, result) if doubt else 0
            if not revision:
                return await self._refused(write, result)
            now = self._unix_ns()
            self._story.written(write, started=started, now=now)
            if self._metering:
                self._metering.written(write, self._state, seconds=(now - write.decided) / 1e9)
            return Written(now, write, revision)
        return Deposed(self._unix_ns())

    async def _refused(self, write: Write, result: TxnResult) -> Event:
        """Another write came first: wait until it is observed, then decide again."""
        log.info("a write was overtaken and is decided again: %s", write.reason)
        if self._metering:
            self._metering.fenced_out()
        self._turned()
        latest = max((item.mod_revision for reply in result.replies for item in reply), default=0)
        try:
            async with asyncio.timeout(CONNECTED_S):
                await self._followed(latest)
        except TimeoutError:
            log.warning("the watch does not deliver revision %d", latest)
        return Written(self._unix_ns(), write, 0)


def _excludes(write: Write | None) -> bool:
    """Whether the write is a loss's: an epoch that all who are left cross into at once."""
    record = write.record if write else None
    return record is not None and record.preparing is None and record.committed.cut is Cut.ABORT
