"""Rules on the change under way: to its commit, and across into it. Each deadline of a change is kept here."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from controlplane.coordinator import changes
from controlplane.coordinator.case import Case, Wait
from controlplane.coordinator.holdings import prepared
from controlplane.coordinator.ranks import amended, lost
from controlplane.coordinator.state import SECOND, Write
from schemas.operations import Blame, OperationState
from schemas.policy import OnTimeout
from schemas.vocabulary import Cut, Evidence, Member

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from controlplane.coordinator.state import State
    from schemas.operations import Recovery
    from schemas.records import Ack, EpochRecord, EpochVersion
    from schemas.vocabulary import Rank

SUCCESSOR_PATIENCE = 2 * SECOND
"""A deadline that passed while nobody led is not the ranks' fault."""
RANKS_NAMED = 16


def change_under_way(case: Case) -> Write | Wait | None:
    """A planned change: commit it, roll it back, or wait for its acknowledgements."""
    state, record = case.state, case.state.record
    if record is None or record.preparing is None:
        return None
    version = record.preparing
    cause = state.operations.get(version.cause)
    if cause and cause.state.final and cause.state is not OperationState.DONE:
        return changes.roll_back(state, record, reason=f"operation {cause.id} was {cause.state}: {cause.message}")
    if spoiled := _spoiled(state, version):
        return _penalised(state, record, spoiled)
    everybody = state.members | state.joining
    late = sorted(everybody.keys() - prepared(version, everybody, state.acks))
    if not late:
        return changes.commit(state, version, record)
    names = _ranks(late)
    if not state.reached(max(version.deadline_unix_ns, state.noticed.get("led", 0) + SUCCESSOR_PATIENCE)):
        return Wait(state, f"epoch {version.epoch} waits for ranks {names}")
    why = f"ranks {names} did not prepare epoch {version.epoch} in time"
    innocent = any(rank not in state.members for rank in late) or len(late) * 2 > len(state.members)
    if innocent or state.spec.on_timeout is OnTimeout.ROLLBACK:
        return _penalised(state, record, dict.fromkeys(late, why))
    return _excluding(case, late, why)


def _ranks(ranks: Collection[Rank]) -> str:
    """Their numbers; of many the first few."""
    first = ", ".join(map(str, islice(ranks, RANKS_NAMED)))
    return first if len(ranks) <= RANKS_NAMED else f"{first} and {len(ranks) - RANKS_NAMED} more"


def _spoiled(state: State, version: EpochVersion) -> dict[Rank, str]:
    """Ranks that make a prepared version pointless, and why: gone, replaced, failed, not wanted any more."""
    spoiled = {}
    for member in version.members:
        there = state.registrations.get(member.rank)
        if member.rank not in state.members and (there is None or there.incarnation != member.incarnation):
            spoiled[member.rank] = f"joining rank {member.rank} is gone"
        elif member.rank not in state.members and _reported_dead(state, member):
            spoiled[member.rank] = f"joining rank {member.rank} died"
        ack = state.acks.get((version.epoch, member.rank))
        if ack and (ack.missing or (ack.error and not ack.prepared)) and ack.incarnation == member.incarnation:
            spoiled[member.rank] = f"rank {member.rank} could not prepare: {_error(ack)}"
    return spoiled


def _reported_dead(state: State, member: Member) -> bool:
    return any(
        suspicion.evidence is Evidence.DEAD
        and (suspicion.rank, suspicion.incarnation) == (member.rank, member.incarnation)
        for reporter, report in state.reports.items()
        if reporter == member.rank or reporter in state.members
        for suspicion in report.suspicions
    )


def _error(ack: Ack) -> str:
    return ack.error or changes.named(list(ack.missing))


def _penalised(state: State, record: EpochRecord, why: dict[Rank, str]) -> Write:
    """Roll back; ranks that were to join and are to blame wait before they are tried again.

    They are not fenced: no epoch counted on them, so the same process may come again, with slots that count as empty.
    """
    joining, views = state.joining, []
    for rank in why.keys() & (joining.keys() - state.members.keys()):
        blame = Blame(rank=rank, incarnation=joining[rank], evidence=Evidence.DEAD, detail=why[rank])
        view = lost(state.view(rank), blame, spec=state.spec, now=state.now)
        views.append(msgspec.structs.replace(view, fenced=state.view(rank).fenced))
    reason = "; ".join(why[rank] for rank in sorted(why))
    return changes.roll_back(state, record, reason=reason, status=amended(state.status, views))


def _excluding(case: Case, late: Iterable[Rank], why: str) -> Write:
    members = case.state.members
    blamed = tuple(
        Blame(rank=rank, incarnation=members[rank], evidence=Evidence.SILENT, detail=why) for rank in sorted(late)
    )
    verdict = replace(case.verdict, excluded=blamed)
    return changes.abort(case.state, verdict, planner=case.planner, reason=why, detected=0)


def settling(case: Case) -> Write | Wait | None:
    """Ranks cross into the committed epoch; the next planned change waits for them."""
    state, record = case.state, case.state.record
    if record is None or not state.members:
        return None
    version, acks = record.committed, state.acks
    recovery = changes.running(state)
    mine = {rank: acks.get((version.epoch, rank)) for rank in state.members}
    current = {rank: ack for rank, ack in mine.items() if ack and ack.incarnation == state.members[rank]}
    done = {rank for rank, ack in current.items() if ack.activated or (version.missing and ack.prepared)}
    late = sorted(state.members.keys() - done)
    if not late:
        return _settled(case, recovery, current) if recovery else None
    failed = {rank: ack for rank, ack in current.items() if record.loading and (ack.missing or ack.error)}
    if (
        failed
        and all(ack.prepared or ack.error or ack.missing for ack in current.values())
        and len(current) == len(mine)
    ):
        return _again(case, failed)
    if recovery is None:
        return None  # crossed into before this leader's records reach back: nothing is under way
    names = _ranks(late)
    if version.cut is Cut.PLANNED and (gone := _left_too_early(state, recovery)):
        return _forced(case, f"ranks {gone} went before ranks {names} had crossed into epoch {version.epoch}")
    if not state.reached(max(version.deadline_unix_ns, state.noticed.get("led", 0) + SUCCESSOR_PATIENCE)):
        return Wait(state, f"ranks {names} cross into epoch {version.epoch}")
    if len(late) * 2 > len(state.members):
        if version.cut is Cut.PLANNED:
            return _forced(case, f"ranks {names} did not find a common step to cross into epoch {version.epoch}")
        return Wait(state, f"ranks {names}, more than half, are late for epoch {version.epoch}: no rank is to blame")
    return _excluding(case, late, f"ranks {names} did not cross into epoch {version.epoch} in time")


def _left_too_early(state: State, recovery: Recovery) -> str:
    """Ranks that the committed epoch let go and that died before the flip: the old epoch's steps wait for them."""
    accused = {
        suspicion.rank
        for reporter, report in state.reports.items()
        if report.epoch == recovery.epoch_before and state.members.get(reporter) == report.incarnation
        for suspicion in report.suspicions
        if suspicion.evidence in (Evidence.DEAD, Evidence.SILENT)
    }
    gone = [
        rank
        for rank in recovery.left
        if rank in accused or (there := state.registrations.get(rank)) is None or not there.ready
    ]
    return _ranks(gone)


def _forced(case: Case, reason: str) -> Write:
    """The same members and slots under a new number, crossed into at once instead of at a common step."""
    verdict = replace(case.verdict, excluded=())
    return changes.abort(case.state, verdict, planner=case.planner, reason=reason, detected=0)


def _settled(case: Case, recovery: Recovery, acks: Mapping[Rank, Ack]) -> Write:
    state = case.state
    crossed = min(max(ack.finished_unix_ns for ack in acks.values()) or state.now, state.now)  # ranks may tell it late
    # A successor did not see the commit end: for it commit and activation end together.
    finished = changes.phase_ended(changes.with_fence(recovery, state.fence), "commit", now=state.now)
    finished = changes.phase_ended(finished, "activate", now=crossed)
    finished = msgspec.structs.replace(changes.with_loads(state, finished), outcome="done")
    return Write(reason=f"epoch {recovery.epoch} runs on every member", decided=state.now, recoveries=(finished,))


def _again(case: Case, failed: Mapping[Rank, Ack]) -> Write:
    """Some weights could not be had where they were wanted: plan once more with what is really held."""
    reason = "; ".join(f"rank {rank} could not load: {_error(ack)}" for rank, ack in sorted(failed.items()))
    verdict = replace(case.verdict, excluded=())
    return changes.abort(case.state, verdict, planner=case.planner, reason=reason, detected=0)
