"""A running instance under checked load, and what a scenario may do with it."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tools.loadgen import Load, Target, Verdict, Workload, teacher_forced
from tools.mainjob.faults import Faults, Moment
from tools.mainjob.report import FaultReport, describe_loss, gaps_of_loss, longest_gap_ms, recoveries

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.operations import Recovery
    from schemas.records import EpochRecord, Registration
    from schemas.vocabulary import Rank
    from tools.loadgen import Answer
    from tools.mainjob.instance import Instance

REJOIN_S = 240.0
"""Longest that a killed rank may take to serve again: an engine start on a loaded machine of two cores."""
RECOVER_S = 60.0
QUIET_S = 1.0
"""Undisturbed traffic before a fault and after it, so that gaps can be told from the rest."""


@dataclass
class Scene:
    """What a scenario gets.

    Attributes:
        instance: the cluster.
        seed: of the choice of ranks and moments.
        concurrency: clients.
        tell: called with a line for people when something happens.
        clients_retry: clients try again when a gateway is killed.
        reports: one for each fault so far.
    """

    instance: Instance
    seed: int = 0
    concurrency: int = 8
    answer_tokens: tuple[int, int] = (32, 160)
    tell: Callable[[str], None] = print
    on_token: Callable[[Answer], None] | None = None
    clients_retry: bool = False
    reports: list[FaultReport] = field(default_factory=list)
    _losses: list[tuple[FaultReport, Moment, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.faults = Faults(self.instance)
        self.rng = random.Random(self.seed)
        self.workload = Workload(self.instance.plan.model, seed=self.seed, answer_tokens=self.answer_tokens)
        target = Target(tuple(self.instance.gateway_urls), timeout_s=300.0, tries=20 if self.clients_retry else 1)
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
        known = {recovery.epoch: recovery for recovery in await recoveries(self.instance)}
        for report, moment, seconds in self._losses:  # an answer names its ranks when it ends, a recovery its loads
            gaps_of_loss(report, answers, moment, moment.monotonic_ns + int(seconds * 1e9))
            if len(report.epochs) > 1 and report.epochs[1] in known:
                describe_loss(report, known[report.epochs[1]], moment)
        return answers

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

    async def lose(self, name: str, rank: Rank, fault: Callable[[Rank], Moment]) -> tuple[FaultReport, Moment]:
        """Hit a rank and follow until the others run without it (or it is back already)."""
        before = await self._epoch()
        report = FaultReport(name, rank, epochs=(before,))
        self.reports.append(report)
        moment = fault(rank)
        self.tell(f"rank {rank}: {name}")
        await self.until_excluded(rank, after=before)
        recovery = await self.recovery(lambda found: rank in found.left and found.epoch > before)
        describe_loss(report, recovery, moment)
        report.epochs = (before, recovery.epoch)
        self.tell(f"rank {rank}: epoch {recovery.epoch} goes on without it: {recovery.reason}")
        return report, moment

    async def until_excluded(self, rank: Rank, *, after: int) -> None:
        """Wait until an epoch newer than ``after`` ran without the rank as it was."""
        there = {m.incarnation for m in (await self._record()).committed.members if m.rank == rank}

        def gone(record: EpochRecord | None, _: dict[Rank, Registration]) -> bool:
            if record is None or record.committed.epoch <= after:
                return False
            now = {member.incarnation for member in record.committed.members if member.rank == rank}
            return not now or not now & there or not there

        await self.instance.wait(gone, what=f"epoch without rank {rank}", within_s=RECOVER_S)

    async def back(self, report: FaultReport | None, moment: Moment | None, *, ranks: set[Rank] | None = None) -> None:
        """Wait until all ranks serve; fill in what the return cost."""
        await self.instance.wait_members(self.ranks if ranks is None else ranks, within_s=REJOIN_S)
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

    async def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Call the admin API as the operator."""
        return await self.faults.admin(method, path, body)
