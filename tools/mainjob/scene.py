"""A running instance under checked load, and what a scenario may do with it."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controlplane.etcd import Watch
from schemas.codec import decode
from schemas.loads import loads_for
from schemas.placement import Placement
from schemas.records import Backup, EpochRecord
from tools.loadgen import Load, Target, Verdict, Workload, teacher_forced
from tools.mainjob.faults import Faults, Moment
from tools.mainjob.report import FaultReport, describe_loss, gaps_of_loss, longest_gap_ms, recoveries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from schemas.messages import Load as SlotLoad
    from schemas.operations import Recovery
    from schemas.records import Registration
    from schemas.vocabulary import Incarnation, Rank
    from tools.loadgen import Answer
    from tools.mainjob.instance import Instance

REJOIN_S = 240.0
"""Longest that a killed rank may take to serve again: an engine start on a loaded machine of two cores."""
RECOVER_S = 60.0
_UNWATCHED_S = 0.3
"""After a fault: who looks at a recovery ten times while it runs takes the processor from it."""
QUIET_S = 1.0
"""Undisturbed traffic before a fault and after it, so that gaps can be told from the rest."""


@dataclass
class Scene:
    """What a scenario gets.

    Attributes:
        instance: the cluster.
        seed: of the requests.
        title: with the seed, of the choice of ranks and moments.
        concurrency: clients.
        tell: called with a line for people when something happens.
        gateways: how many of the gateways clients know; with more than one they try again when one is killed.
        starting_clients: how many clients go on while an engine starts, None for all. Beside a load the start takes
            several times as long on a small machine, and shows nothing that the load before and after it does not.
        reports: one for each fault so far.
    """

    instance: Instance
    seed: int = 0
    title: str = ""
    concurrency: int = 8
    answer_tokens: tuple[int, int] = (32, 160)
    tell: Callable[[str], None] = print
    on_token: Callable[[Answer], None] | None = None
    gateways: int = 1
    starting_clients: int | None = None
    reports: list[FaultReport] = field(default_factory=list)
    _losses: list[tuple[FaultReport, Moment, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.faults = Faults(self.instance)
        self.rng = random.Random(f"{self.title}{self.seed}")
        self.workload = Workload(self.instance.plan.model, seed=self.seed, answer_tokens=self.answer_tokens)
        known = tuple(self.instance.gateway_urls[: self.gateways])
        target = Target(known, timeout_s=300.0, tries=20 if self.gateways > 1 else 1)
        self.load = Load(target, self.workload, self.concurrency, on_token=self.on_token)
        self._running: asyncio.Task[list[Answer]] | None = None

    # --- load ---------------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start the load and let it run undisturbed for a moment, every client with tokens."""
        self._running = asyncio.create_task(self.load.run())
        async with asyncio.timeout(60.0):
            while sum(bool(answer.tokens) for answer in self.load.answers) < self.concurrency:
                self._still_running()
                await asyncio.sleep(0.02)
        await self.quiet()

    async def quiet(self, seconds: float = QUIET_S) -> None:
        """Let traffic run undisturbed."""
        await asyncio.sleep(seconds)
        self._still_running()

    async def finish(self) -> list[Answer]:
        """Send no more requests, and wait for the answers under way."""
        self.load.stop()
        if self._running is None:
            return []
        async with asyncio.timeout(300.0):
            answers = await self._running
        for report, moment, seconds in self._losses:  # an answer names its ranks when it ends
            gaps_of_loss(report, answers, moment, moment.monotonic_ns + int(seconds * 1e9))
        await self.describe()
        return answers

    async def describe(self) -> None:
        """Fill in what the recoveries' records say by now: what was loaded stands there only when all have crossed."""
        known = await recoveries(self.instance)
        for report, moment, _ in self._losses:
            if len(report.epochs) > 1:
                before, after = report.epochs[:2]
                describe_loss(report, [one for one in known if one.unplanned and before < one.epoch <= after], moment)

    @asynccontextmanager
    async def lighter(self) -> AsyncIterator[None]:
        """Only ``starting_clients`` send new requests meanwhile."""
        self.load.limit = self.starting_clients
        try:
            yield
        finally:
            self.load.limit = None

    def watch_gaps(self, report: FaultReport, moment: Moment, *, seconds: float = 3.0) -> None:
        """Fill in, once all answers have ended, what clients waited within ``seconds`` of ``moment``."""
        self._losses.append((report, moment, seconds))

    async def judge(self) -> Verdict:
        """Check every token of every answer against transformers on the same weights."""
        return await asyncio.to_thread(teacher_forced, self.load.answers, self.instance.plan.model)

    def _still_running(self) -> None:
        if self._running is not None and self._running.done():
            self._running.result()

    # --- faults -------------------------------------------------------------------------------------------------------

    @property
    def ranks(self) -> set[Rank]:
        """All ranks of the plan."""
        return set(range(self.instance.plan.ranks))

    def pick(self, *, count: int = 1) -> list[Rank]:
        """Ranks to hit, by the seed."""
        return self.rng.sample(sorted(self.ranks), count)

    async def lose(
        self, name: str, rank: Rank, fault: Callable[[Rank], Moment], *, also: tuple[Rank, ...] = ()
    ) -> tuple[FaultReport, Moment]:
        """Hit a rank (and, in the same fault, others) and follow until the rest run without them."""
        before = await self._epoch()
        there = await self.incarnations()
        report = FaultReport(name, rank, epochs=(before,))
        self.reports.append(report)
        moment = fault(rank)
        self.tell(f"rank {rank}: {name}")
        await asyncio.sleep(_UNWATCHED_S)
        for hit in (rank, *also):
            await self.until_excluded(hit, there[hit])
        recoveries_of = [await self._recovery_of(hit, after=before) for hit in (rank, *also)]
        by_epoch = {recovery.epoch: recovery for recovery in recoveries_of}  # one may exclude several
        found = [by_epoch[epoch] for epoch in sorted(by_epoch)]
        describe_loss(report, found, moment)
        report.epochs = (before, found[-1].epoch)
        for recovery in found:
            self.tell(f"epoch {recovery.epoch}: {recovery.reason}")
        return report, moment

    async def lose_two(self, name: str) -> tuple[FaultReport, Moment]:
        """SIGKILL of two ranks at once: experts that only they held have to be loaded."""
        first, second = self.pick(count=2)

        def both(rank: Rank) -> Moment:
            moment = self.faults.kill_rank(rank)
            self.faults.kill_rank(second)
            return moment

        return await self.lose(name, first, both, also=(second,))

    async def incarnations(self) -> dict[Rank, Incarnation]:
        """The process that fills each active rank."""
        return {member.rank: member.incarnation for member in (await self._record()).committed.members}

    async def until_excluded(self, rank: Rank, incarnation: Incarnation) -> None:
        """Wait until the committed epoch is without the rank as it was."""

        def gone(record: EpochRecord | None, _: dict[Rank, Registration]) -> bool:
            members = record.committed.members if record else ()
            return all((member.rank, member.incarnation) != (rank, incarnation) for member in members)

        await self.instance.wait(gone, what=f"epoch without rank {rank}", within_s=RECOVER_S)

    async def until_up(self, ranks: set[Rank]) -> None:
        """Wait until every engine has its model: what follows is short."""

        def up(_: EpochRecord | None, there: dict[Rank, Registration]) -> bool:
            return all(rank in there and there[rank].layers for rank in ranks)

        await self.instance.wait(up, what=f"engines of ranks {sorted(ranks)}", within_s=REJOIN_S)

    async def until_ready(self, rank: Rank) -> None:
        """Wait until the rank's engine could be taken in."""

        def ready(_: EpochRecord | None, there: dict[Rank, Registration]) -> bool:
            return rank in there and there[rank].ready

        await self.instance.wait(ready, what=f"restart of rank {rank}", within_s=REJOIN_S)

    async def until_joining(self, rank: Rank) -> Incarnation:
        """Wait until an epoch that takes the rank in is being prepared; the joining process.

        Watched, not polled: it may be over within milliseconds.
        """
        async with asyncio.timeout(REJOIN_S), self.lighter():
            await self.until_up({rank})
        async with (
            asyncio.timeout(REJOIN_S),
            aclosing(Watch(self.instance.etcd, self.instance.keys.epoch).changes()) as seen,
        ):
            async for change in seen:
                for event in change.events:
                    record = decode(event.item.value, EpochRecord, key=event.key)
                    joining = record.preparing.members if record.preparing else ()
                    for member in joining:
                        if member.rank == rank:
                            return member.incarnation
        raise TimeoutError(f"rank {rank}: the watch on the epoch ended")

    async def until_replaced(self, rank: Rank, incarnation: Incarnation) -> None:
        """Wait until the rank's agent has given the process up, and no epoch counts on it."""

        def gone(record: EpochRecord | None, there: dict[Rank, Registration]) -> bool:
            named = (
                (*record.committed.members, *(record.preparing.members if record.preparing else ())) if record else ()
            )
            counted = any((member.rank, member.incarnation) == (rank, incarnation) for member in named)
            return not counted and (rank not in there or there[rank].incarnation != incarnation)

        await self.instance.wait(gone, what=f"end of rank {rank}'s process {incarnation}", within_s=RECOVER_S)

    async def preparing(self) -> int:
        """The epoch that is being prepared, 0 for none."""
        version = (await self._record()).preparing
        return version.epoch if version else 0

    async def loads_of(self, rank: Rank) -> tuple[SlotLoad, ...]:
        """What the rank has to load for the epoch that is being prepared, in its order, with the sources to try."""
        instance, record = self.instance, await self._record()
        if record.preparing is None:
            raise AssertionError(f"nothing is being prepared any more: the transfer to rank {rank} was too short")
        placements = {
            name: Placement.from_wire(found.value)
            for name in (record.preparing.placement, record.held)
            if name and (found := (await instance.etcd.get(instance.keys.placement(name))).only) is not None
        }
        backups = [decode(item.value, Backup, key=item.key) for item in await instance.etcd.get(instance.keys.backups)]
        return loads_for(
            rank,
            record=record,
            target=placements[record.preparing.placement],
            held=placements.get(record.held),
            registrations=await instance.registrations(),
            backups=backups,
        )

    async def back(self, report: FaultReport | None, moment: Moment | None, *, ranks: set[Rank] | None = None) -> None:
        """Wait until all ranks serve; fill in what the return cost."""
        expected = self.ranks if ranks is None else ranks
        async with self.lighter():
            await self.until_up(expected)
        await self.instance.wait_members(expected, within_s=REJOIN_S)
        returned = Moment.now()
        if report is not None and moment is not None:
            report.rejoin_ms = (returned.monotonic_ns - moment.monotonic_ns) / 1e6
            report.epochs = (*report.epochs[:2], await self._epoch())
            self.tell(f"rank {report.rank}: serves again, epoch {report.epochs[-1]}")
        await self.quiet()
        if report is not None and moment is not None:
            since, until = returned.monotonic_ns - 1_000_000_000, time.monotonic_ns()
            report.rejoin_pause_ms = longest_gap_ms(self.load.answers, since_ns=since, until_ns=until)

    async def kill_and_return(self, name: str, rank: Rank, fault: Callable[[Rank], Moment]) -> FaultReport:
        """One whole loss: hit, recovery, return, with all figures."""
        report, moment = await self.lose(name, rank, fault)
        await self.quiet()
        self.watch_gaps(report, moment)
        await self.back(report, moment)
        return report

    async def _recovery_of(self, rank: Rank, *, after: int) -> Recovery:
        return await self.recovery(lambda found: rank in found.left and found.epoch > after)

    async def recovery(self, wanted: Callable[[Recovery], bool], *, within_s: float = RECOVER_S) -> Recovery:
        """The first finished recovery that fits.

        Raises:
            TimeoutError: there was none in time.
        """
        async with asyncio.timeout(within_s):
            while True:
                for recovery in await recoveries(self.instance):
                    if wanted(recovery) and recovery.outcome:
                        return recovery
                await asyncio.sleep(0.05)

    async def _record(self) -> EpochRecord:
        record = await self.instance.epoch()
        if record is None:
            raise RuntimeError("no epoch yet: wait for the members first")
        return record

    async def _epoch(self) -> int:
        return (await self._record()).committed.epoch
