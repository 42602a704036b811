"""Carries out what the core decides: the one place where an agent touches etcd, the engine and the clock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Protocol

from controlplane.etcd import EtcdError
from schemas.messages import Ask, EngineStatus
from schemas.records import Ack, Backup, ExpertLoad, FaultReport, ReceiveWait, Registration
from worker.agent.core import decide
from worker.agent.events import (
    Begin,
    CallOff,
    ClearAway,
    Committed,
    EndEngine,
    Exit,
    FenceEngine,
    Heard,
    LeaseGone,
    Leave,
    Publish,
    RenewLease,
    Send,
    StartEngine,
    Tick,
    WakeAt,
)
from worker.agent.measuring import ASK_EVERY_S, Measurements
from worker.agent.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from controlplane.etcd import Etcd, Lease
    from schemas.keys import Keys
    from schemas.messages import ToEngine
    from schemas.vocabulary import Epoch, Incarnation, Stamp
    from worker.agent.core import State
    from worker.agent.events import Action, EpochSeen, Event
    from worker.agent.story import Story

log = logging.getLogger(__name__)

_LEASE_PAUSE_S = 0.2
_LAST_WORDS_S = 1.0
_PROGRESS_S = 1.0


Published = Registration | Ack | FaultReport | Backup | ExpertLoad | ReceiveWait


class EngineHost(Protocol):
    """The engine's processes and the ways to speak to them; what they say arrives as events."""

    async def start(self, incarnation: Incarnation) -> None:
        """Start the process tree."""
        ...

    async def end(self, *, fence: bool) -> None:
        """End the process tree; return when none of it is left."""
        ...

    def fence(self) -> None:
        """Let the engine write to nobody any more, and kill the process that steps; return at once."""
        ...

    def clear_away(self) -> None:
        """End what a dead engine left of its process tree, soon; return at once."""
        ...

    def send(self, message: ToEngine) -> None:
        """Send, in order; a message to an engine that is gone is dropped."""
        ...

    def call_off(self, stamp: Stamp) -> None:
        """Abandon steps under earlier versions."""
        ...

    def committed(self, epoch: Epoch) -> None:
        """Make known that an epoch is decided."""
        ...


class Agent:
    """One rank's agent, from its first lease to its last.

    Args:
        state: the core's state to begin with.
        etcd: the client.
        keys: of the instance.
        engine: the engine's host; give ``heard`` to it as the receiver of its events.
        take_lease: asks for a lease and keeps it.
        follow: epochs as they come.
        story: told of every event and decision.
    """

    def __init__(
        self,
        *,
        state: State,
        etcd: Etcd,
        keys: Keys,
        engine: EngineHost,
        take_lease: Callable[[], Awaitable[Lease]],
        follow: Callable[[], AsyncIterator[EpochSeen]],
        story: Story,
    ) -> None:
        self.state = state
        self._keys = keys
        self._engine = engine
        self._take_lease = take_lease
        self._follow = follow
        self._story = story
        self._publisher = Publisher(etcd)
        self._measurements = Measurements()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._lease: Lease | None = None
        self._exit = ""
        self._timers: set[asyncio.TimerHandle] = set()

    def heard(self, event: Event) -> None:
        """Something happened; call it on the agent's loop."""
        self._events.put_nowait(event)

    def leave(self, reason: str, *, deadline_s: float) -> None:
        """Ask the rank to go."""
        self.heard(Leave(self._now(), reason, deadline_s))

    def publish(self, record: Published, *, hold_s: float = 0.0) -> None:
        """Let a record stand on the rank's lease, ``hold_s`` from now at the latest."""
        self._publisher.put(self._key(record), record, hold_s=hold_s)

    async def run(self) -> str:
        """Work until the core says ``Exit``; the reason. Nothing of the engine is left afterwards."""
        tasks = [
            asyncio.create_task(self._publisher.run(), name="publish"),
            asyncio.create_task(self._keep_lease(), name="lease"),
            asyncio.create_task(self._watch(), name="epochs"),
            asyncio.create_task(self._ask(), name="measure"),
        ]
        worker = asyncio.create_task(self._work(), name="work")
        try:
            done, _ = await asyncio.wait([worker, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return self._exit
        finally:
            for timer in self._timers:
                timer.cancel()
            for task in (worker, *tasks):
                task.cancel()
            await asyncio.gather(worker, *tasks, return_exceptions=True)
            await self._engine.end(fence=True)
            if self._lease is not None:
                await self._lease.release()

    async def _work(self) -> None:
        self.heard(Begin(self._now(), self._fresh_incarnation()))
        while not self._exit:
            event = await self._events.get()
            before = self.state
            self.state, decision = decide(before, event)
            self._story.tell(before, event, self.state, decision)
            self._tell_measured(event)
            for action in decision.actions:
                await self._perform(action)

    async def _perform(self, action: Action) -> None:
        match action:
            case CallOff() | Committed() | Send() | FenceEngine() | ClearAway():
                self._tell_engine(action)
            case Publish(record, hold_s):
                self.publish(record, hold_s=hold_s)
            case StartEngine(incarnation):
                await self._engine.start(incarnation)
            case EndEngine(_, fence):
                await self._engine.end(fence=fence)
            case WakeAt(when):
                self._wake(when)
            case RenewLease():
                self._lease = None
            case Exit(reason):
                await self._settle()
                self._exit = reason

    def _tell_engine(self, action: CallOff | Committed | Send | FenceEngine | ClearAway) -> None:
        match action:
            case CallOff(stamp):
                self._engine.call_off(stamp)
            case Committed(epoch):
                self._engine.committed(epoch)
            case Send(message):
                self._engine.send(message)
            case FenceEngine():
                self._engine.fence()
            case ClearAway():
                self._engine.clear_away()

    def _key(self, record: Published) -> str:
        match record:
            case Registration():
                return self._keys.rank(record.rank)
            case Ack():
                return self._keys.ack(record.epoch, record.rank)
            case FaultReport():
                return self._keys.report(record.reporter)
            case Backup():
                return self._keys.backup(record.rank)
            case ExpertLoad():
                return self._keys.load(record.rank)
            case ReceiveWait():
                return self._keys.wait(record.rank)

    async def _settle(self) -> None:
        """Give the last words a moment to reach etcd."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._publisher.settled.wait()

    def _wake(self, when: float) -> None:
        def ring() -> None:
            self._timers.discard(timer)
            # A timer may fire a clock's resolution early; what waits for this instant must not find it still to come.
            self.heard(Tick(max(self._now(), when), self._fresh_incarnation()))

        timer = asyncio.get_running_loop().call_at(when, ring)
        self._timers.add(timer)

    def _tell_measured(self, event: Event) -> None:
        if isinstance(event, Heard) and isinstance(event.message, EngineStatus) and self.state.hello is not None:
            for record in self._measurements.taken(self.state.hello, event.message, now_s=event.now):
                self.publish(record)

    async def _ask(self) -> None:
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            if self.state.active:
                self._engine.send(Ask())

    async def _watch(self) -> None:
        async for seen in self._follow():
            self.heard(seen)

    async def _keep_lease(self) -> None:
        """Hold a lease whenever etcd lets us. Losing it changes nothing by itself: see the core's fail-static rule."""
        while True:
            try:
                lease = await self._take_lease()
            except EtcdError as error:
                log.debug("no lease yet: %s", error)
                await asyncio.sleep(_LEASE_PAUSE_S)
                continue
            self._lease = lease
            self._publisher.use(lease.lease)
            reason = await self._hold(lease)
            log.warning("lease lost: %s", reason)
            self.heard(LeaseGone(self._now()))

    @staticmethod
    async def _hold(lease: Lease) -> str:
        """Show that our loop goes round, until the lease is lost; why it was."""
        lost = asyncio.ensure_future(lease.wait_lost())
        try:
            while not lost.done():
                lease.progress()
                await asyncio.wait([lost], timeout=_PROGRESS_S)
            return lost.result()
        finally:
            lost.cancel()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _fresh_incarnation(self) -> Incarnation:
        """Milliseconds of the wall clock, and above all earlier ones of this agent: no two process starts share one."""
        return max(time.time_ns() // 1_000_000, self.state.running + 1)
