"""Simulated engines and the data plane between them: what slots really hold, and which steps really complete.

An ``Engine`` stands where SGLang and the native group stand: the real agent starts it, speaks to it and hears from it.
The ``Fabric`` runs steps: one completes only if every member of an epoch is there, in that epoch, as that incarnation.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from controlplane.coordinator.holdings import without
from schemas.messages import Activated, Ask, Commit, Discard, EngineStatus, Fault, Hello, Prepare, Prepared, Ready
from schemas.placement import EMPTY, Placement
from schemas.records import AckPhase, Suspicion
from schemas.vocabulary import Cut, Evidence, SourceTier, stamp_of
from tools.simulation.lockstep import REQUESTS, finishing, waits
from worker.agent.events import EngineEnded, Heard

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    import numpy.typing as npt

    from schemas.messages import Load, ToAgent, ToEngine
    from schemas.vocabulary import Epoch, Incarnation, Member, Rank, Stamp
    from tools.simulation.checks import Checker
    from worker.agent.events import Event

STEP_S = 0.1
SILENCE_S = 1.0


@dataclass(frozen=True)
class Shape:
    """The simulated model."""

    layers: int = 1
    experts: int = 6
    slots: int = 4


@dataclass
class _Table:
    """One staged version; while it is not decided, the one before without a rank that is gone."""

    epoch: Epoch
    stamp: Stamp
    members: tuple[Member, ...]
    placement: Placement
    complete: bool
    decided: bool = True


@dataclass
class Engine:
    """One rank's engine process, and its remains; ``world`` reports to the rank's agent."""

    rank: Rank
    host: str
    shape: Shape
    fabric: Fabric
    random: random.Random
    heard: Callable[[Event], None] = lambda _: None
    incarnation: Incarnation = 0
    alive: bool = False
    stopped: bool = False
    disk: bool = True
    checkpoint: str = ""
    """What it said of its checkpoint when it came up; empty when it could not read one."""
    active: _Table | None = None
    staged: _Table | None = None
    known_commit: Epoch = 0
    steps: int = 0
    speed: float = 1.0
    """Below 1 it is slow at all it does: a grey failure."""
    attention: float = 0.5
    """Part of a step's work that no placement takes away from it."""
    requests: int = REQUESTS
    """More than the others have make it busy: waited for, and not slow."""
    slots: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    _work: list[asyncio.Task[None]] = field(default_factory=list)
    _awake: asyncio.Event = field(default_factory=asyncio.Event)
    _inbox: list[ToEngine] = field(default_factory=list)
    _complaints: dict[tuple[Epoch, Rank], None] = field(default_factory=dict)
    _absent_since: dict[tuple[Epoch, Rank], float] = field(default_factory=dict)

    # --- EngineHost ---------------------------------------------------------------------------------------------------

    async def start(self, incarnation: Incarnation) -> None:
        """Start the process: empty slots, a while to boot."""
        self._reset(incarnation)
        self._spawn(self._boot())

    async def end(self, *, fence: bool) -> None:
        """End it; ``fence`` makes no difference to one that is gone at once."""
        del fence
        self._die()

    def fence(self) -> None:
        """Gone at once."""
        self._die()

    def clear_away(self) -> None:
        """What it left does nothing any more."""
        self._die()

    def send(self, message: ToEngine) -> None:
        """Hear the agent; a stopped engine hears later, one that is gone never."""
        if not self.alive:
            return
        self._inbox.append(message)
        if not self.stopped:
            self._hear()

    def call_off(self, stamp: Stamp) -> None:
        """Leave any step of an earlier version."""
        if self.active is not None and self.active.stamp < stamp:
            self.fabric.note(f"rank {self.rank} leaves the step of epoch {self.active.epoch}")
            self.active = None
            if self.staged is not None and self.staged.epoch <= self.known_commit and not self._among(self.staged):
                self.activate()  # whoever left its step crosses out when that is staged and decided

    def committed(self, epoch: Epoch) -> None:
        """The control block says that ``epoch`` is decided."""
        self.known_commit = max(self.known_commit, epoch)

    # --- faults -------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL; the agent's pidfd tells it within milliseconds."""
        if not self.alive:
            return
        incarnation = self.incarnation
        self._die()
        loop = asyncio.get_running_loop()
        now = loop.time()
        event = EngineEnded(now, incarnation, "killed", int((1e9 + now) * 1e9))
        loop.call_later(self.random.uniform(0.0005, 0.005), self.heard, event)

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True
        self._awake.clear()

    def wake(self) -> None:
        """SIGCONT."""
        self.stopped = False
        self._awake.set()
        if self.alive:
            self._hear()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _reset(self, incarnation: Incarnation) -> None:
        self._die()
        self.incarnation, self.alive, self.stopped = incarnation, True, False
        self.slots = np.full((self.shape.layers, self.shape.slots), EMPTY, dtype=np.int64)
        self.known_commit = 0
        self._awake.set()

    def _die(self) -> None:
        self.alive = False
        self.active = self.staged = None
        self._inbox.clear()
        self._complaints.clear()
        self._absent_since.clear()
        for task in self._work:
            task.cancel()
        self._work.clear()

    def _spawn(self, work: object) -> None:
        self._work = [task for task in self._work if not task.done()]
        self._work.append(asyncio.create_task(work))  # type: ignore[arg-type]

    def _say(self, message: ToAgent) -> None:
        self.heard(Heard(asyncio.get_running_loop().time(), message))

    async def _boot(self) -> None:
        shape = self.shape
        await asyncio.sleep(self.random.uniform(0.05, 0.8))
        self.checkpoint = "sum" if self.disk else ""
        self._say(
            Hello(
                rank=self.rank,
                incarnation=self.incarnation,
                pid=self.rank + 1,
                link_address=f"link-{self.rank}",
                layers=shape.layers,
                experts=shape.experts,
                slots=shape.slots,
                expert_bytes=1000,
                model="simulated",
                checkpoint=self.checkpoint,
            )
        )
        await asyncio.sleep(self.random.uniform(0.01, 0.4))
        self._say(Ready(serve_url=f"http://rank-{self.rank}"))

    def _hear(self) -> None:
        while self._inbox:
            message = self._inbox.pop(0)
            match message:
                case Prepare():
                    for task in self._work:
                        task.cancel()
                    if not self._confirmed(message):
                        self._spawn(self._prepare(message))
                case Commit(epoch=epoch, cut=cut):
                    self._spawn(self._cross(epoch, cut))
                case Discard(epoch=epoch):
                    if self.staged is not None and self.staged.epoch == epoch:
                        self.staged = None
                case Ask():
                    self._say(self._status())
                case _:
                    pass

    def _status(self) -> EngineStatus:
        epoch = self.active.epoch if self.active else 0
        prepared = self.staged.epoch if self.staged else epoch
        return EngineStatus(
            epoch=epoch,
            prepared=prepared,
            step=self.steps,
            running=self.requests,
            waiting=0,
            draining=False,
            receive_wait_us=self._receive_wait_us(),
        )

    def _receive_wait_us(self) -> tuple[int, ...]:
        """Mean wait per exchange for each rank's rows; empty while not all of the epoch's ranks step."""
        table = self.active
        if table is None:
            return ()
        group = [self.fabric.engines[member.rank] for member in table.members]
        if any(engine.active is None or engine.active.epoch != table.epoch for engine in group):
            return ()
        exchange_us = STEP_S * 1e6 / (2 * self.shape.layers + 1)
        return tuple(round(part * exchange_us) for part in waits(self.rank, finishing(group, table.placement)))

    def _confirmed(self, asked: Prepare) -> bool:
        """What this rank went on with is an epoch now; or it went on without another rank, and cannot follow."""
        if self.active is None or self.active.stamp < asked.stamp:
            return False
        same = self.active.stamp == asked.stamp
        self._say(Prepared(epoch=asked.epoch, ok=same, error="" if same else "went on without another rank"))
        if same and not self.active.decided:
            self.active, self.staged = replace(self.active, epoch=asked.epoch, decided=True), None
            self._say(Activated(epoch=asked.epoch, step=self.steps, waited_ms=0.0))
        return True

    def _go_on_without(self, rank: Rank) -> None:
        """Run the broken step again without the dead, ahead of the decision, where no expert is lost with them."""
        table = self.active
        if table is None or not table.decided or not table.complete:
            return
        members = tuple(member for member in table.members if member.rank != rank)
        rest = without(table.placement, rank)
        if not rest.missing([member.rank for member in members]):
            stamp = stamp_of(table.epoch, without=rank)
            self.active = _Table(table.epoch, stamp, members, rest, complete=True, decided=False)
            self.fabric.note(f"rank {self.rank} goes on without rank {rank}")

    async def _prepare(self, asked: Prepare) -> None:
        placement = Placement.from_wire(asked.placement)
        missing = [(load.layer, load.expert) for load in asked.loads if not await self._load(load, asked.epoch)]
        if missing:
            self._say(Prepared(epoch=asked.epoch, ok=False, error="no source had it", missing=tuple(missing)))
            return
        ranks = [member.rank for member in asked.members]
        complete = not placement.missing(ranks)
        self.staged = _Table(asked.epoch, asked.stamp, asked.members, placement, complete)
        phase = AckPhase(tier=SourceTier.CHECKPOINT, slots=len(asked.loads), bytes=0, seconds=0.0)
        self._say(Prepared(epoch=asked.epoch, ok=True, loads=(phase,) if asked.loads else ()))

    async def _load(self, load: Load, epoch: Epoch) -> bool:
        self.fabric.checker.writes(self, load.layer, load.slot, epoch)
        self.slots[load.layer, load.slot] = EMPTY
        for source in load.sources:
            await asyncio.sleep(self.random.uniform(0.001, 0.06))
            await self._awake.wait()
            if self._has(source.tier, source.rank, load, source.slot):
                self.slots[load.layer, load.slot] = load.expert
                return True
        return False

    def _has(self, tier: SourceTier, rank: Rank, load: Load, slot: int) -> bool:
        """Whether the source is there and its bytes pass the checksum."""
        if tier is SourceTier.CHECKPOINT:
            return self.disk
        giver = self.fabric.engines.get(rank)
        return giver is not None and giver.alive and giver.slots[load.layer, slot] == load.expert

    async def _cross(self, epoch: Epoch, cut: Cut) -> None:
        """An abort is crossed into as soon as it is prepared; a planned version with the others, by the fabric."""
        self.known_commit = max(self.known_commit, epoch)
        while self.staged is None or self.staged.epoch < epoch:
            if self.active is not None and self.active.epoch >= epoch:
                return
            await asyncio.sleep(0.005)
            await self._awake.wait()
        joins = self.active is None
        if self.staged.epoch == epoch and (cut is Cut.ABORT or joins):
            self.activate()

    def activate(self) -> None:
        """Switch to the staged table."""
        if self.staged is None:
            return
        self.active, self.staged = self.staged, None
        epoch = self.active.epoch
        self._absent_since.clear()
        if not self._among(self.active):
            self.active = None
        self._say(Activated(epoch=epoch, step=self.steps, waited_ms=0.0))

    def _among(self, table: _Table) -> bool:
        return (self.rank, self.incarnation) in map(_pair, table.members)

    def complain(self, peer: Member, *, now_s: float) -> None:
        """A step cannot complete for want of ``peer``: say so once it is sure, once per epoch."""
        if self.active is None or self.stopped or not self.alive:
            return
        key = (self.active.epoch, peer.rank)
        since = self._absent_since.setdefault(key, now_s)
        there = self.fabric.engines[peer.rank]
        gone = not there.alive or there.incarnation != peer.incarnation
        dead = gone and (there.host == self.host or self.random.random() < 0.5)
        if key in self._complaints or not (dead or now_s - since >= SILENCE_S):
            return
        if not gone and not there.stopped:
            return  # its beacon moves: it is on its way into another epoch
        self._complaints[key] = None
        evidence = Evidence.DEAD if dead else Evidence.SILENT
        self.fabric.note(f"rank {self.rank} says that rank {peer.rank} is {evidence}")
        self._say(
            Fault(
                epoch=self.active.epoch,
                step=self.steps,
                suspicions=(Suspicion(peer.rank, peer.incarnation, evidence, "simulated"),),
                receive_wait_us=(),
                detected_unix_ns=int((1e9 + now_s) * 1e9),
            )
        )
        if dead:
            self._go_on_without(peer.rank)


def _pair(member: Member) -> tuple[Rank, Incarnation]:
    return member.rank, member.incarnation


@dataclass
class Fabric:
    """Runs the lockstep steps of whoever shares an epoch."""

    checker: Checker
    note: Callable[[str], None]
    engines: dict[Rank, Engine] = field(default_factory=dict)
    sampled: int = 0
    """Steps that completed."""

    async def run(self) -> None:
        """Step for ever."""
        while True:
            await asyncio.sleep(STEP_S)
            self.step()

    def step(self) -> None:
        """One attempt of every group."""
        now_s = asyncio.get_running_loop().time()
        groups: dict[Stamp, list[Engine]] = {}
        for engine in self.engines.values():
            if engine.alive and not engine.stopped and engine.active is not None:
                groups.setdefault(engine.active.stamp, []).append(engine)
        for stamp in sorted(groups):
            self._attempt(groups[stamp], now_s)

    def _attempt(self, present: list[Engine], now_s: float) -> None:
        table = present[0].active
        if table is None:
            return
        here = {(engine.rank, engine.incarnation): engine for engine in present}
        absent = [member for member in table.members if _pair(member) not in here]
        if absent:
            for engine in present:
                for member in absent:
                    engine.complain(member, now_s=now_s)
            return
        group = [here[_pair(member)] for member in table.members]
        epoch = max(engine.active.epoch for engine in group if engine.active)
        if table.complete:
            self.checker.stepped(epoch, group)
        if any(engine.active is None or not engine.active.decided for engine in group):
            return  # what came out is held, and nobody begins the next step
        self.sampled += table.complete
        for engine in group:
            engine.steps += 1
        self._flip(group, epoch)

    def _flip(self, group: list[Engine], epoch: Epoch) -> None:
        """Everybody has prepared, and somebody knows the commit: all switch after this sync."""
        staged = {engine.staged.epoch if engine.staged else 0 for engine in group}
        if len(staged) != 1 or (following := staged.pop()) <= epoch:
            return
        if any(engine.known_commit >= following for engine in group):
            for engine in group:
                engine.activate()
