"""The four writes that move the epoch: prepare, commit, roll back, abort. Each is built from the state alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from controlplane.coordinator.holdings import holdings, only, widened, without
from controlplane.coordinator.membership import held_now, instance_of
from controlplane.coordinator.ranks import amended, lost
from controlplane.coordinator.state import SECOND, Write
from schemas.operations import PastEpoch, Phase, Recovery
from schemas.placement import EMPTY, Placement
from schemas.records import EpochRecord, EpochVersion
from schemas.vocabulary import Cut, Member

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from controlplane.coordinator.blame import Verdict
    from controlplane.coordinator.planning import Instance, Planner
    from controlplane.coordinator.state import State
    from schemas.records import Status
    from schemas.vocabulary import Epoch, Rank

NOTHING = EpochVersion(epoch=0, members=(), placement="", cut=Cut.PLANNED, reason="nothing was formed yet")
"""What stands committed while epoch 1 prepares, and before."""


def recovery_id(epoch: Epoch) -> str:
    """A recovery is named by the epoch it works on, so that a successor finds it."""
    return f"{epoch:012d}"


def running(state: State) -> Recovery | None:
    """The recovery of the version that is being prepared, else of the committed one while ranks still cross into it."""
    if state.record is None:
        return None
    version = state.record.preparing or state.record.committed
    found = state.recoveries.get(recovery_id(version.epoch))
    return found if found and not found.outcome else None


def phase_ended(recovery: Recovery, name: str, *, now: int, begin: str = "") -> Recovery:
    """``recovery`` with phase ``name`` ended, and phase ``begin`` begun."""
    phases = tuple(
        msgspec.structs.replace(phase, finished_unix_ns=now)
        if phase.name == name and not phase.finished_unix_ns
        else phase
        for phase in recovery.phases
    )
    if begin and all(phase.name != begin for phase in phases):
        phases = (*phases, Phase(name=begin, started_unix_ns=now))
    return msgspec.structs.replace(recovery, phases=phases)


def with_fence(recovery: Recovery, fence: int) -> Recovery:
    """``recovery`` with this leader among those that worked on it."""
    return recovery if fence in recovery.fences else msgspec.structs.replace(recovery, fences=(*recovery.fences, fence))


def abort(state: State, verdict: Verdict, *, planner: Planner, reason: str, detected: int) -> Write:
    """Commit the next epoch without the excluded ranks, whatever was being prepared."""
    record = state.record or EpochRecord(committed=NOTHING)
    excluded = {blame.rank for blame in verdict.excluded}
    members = tuple(m for m in record.committed.members if m.rank not in excluded)
    held = held_now(state)
    rest = shrunk(state, excluded)
    placement, missing, why = (
        repaired(state, [m.rank for m in members], planner=planner)
        if rest is None
        else (rest, 0, "every expert has a copy on the ranks that are left")
    )
    version = EpochVersion(
        epoch=state.next_epoch,
        shrinks=0 if rest is None else record.committed.epoch,
        without=-1 if rest is None else min(excluded),
        members=members,
        placement=placement.digest if placement else "",
        cut=Cut.ABORT,
        reason=reason,
        cause=recovery_id(state.next_epoch),
        missing=missing,
        deadline_unix_ns=state.now + int(state.spec.abort_deadline_s * SECOND),
    )
    kept = only(held, [m.rank for m in members]) if held and members else None
    recovery = Recovery(
        id=recovery_id(version.epoch),
        unplanned=True,
        reason=f"{reason}; {why}",
        blamed=verdict.excluded,
        acquitted=verdict.acquitted,
        left=tuple(sorted(excluded)),
        epoch_before=record.committed.epoch,
        epoch=version.epoch,
        phases=(
            Phase(name="detect", started_unix_ns=detected or state.now, finished_unix_ns=state.now),
            Phase(name="commit", started_unix_ns=state.now),
        ),
        missing=missing,
        fences=(state.fence,),
    )
    views = [lost(state.view(blame.rank), blame, spec=state.spec, now=state.now) for blame in verdict.excluded]
    return Write(
        reason=recovery.reason,
        decided=state.now,
        record=EpochRecord(
            committed=version,
            held=kept.digest if kept else "",
            loading=bool(members),
            issued=version.epoch,
            fence=state.fence,
            decided_unix_ns=state.now,
        ),
        # A goal was planned for members that are no more.
        status=amended(state.status, views, goal="", goal_cause="", fence=state.fence),
        placements=fresh(state, placement, kept),
        past=past(state, version, recovery),
        recoveries=(recovery, *superseded(state, version.epoch)),
    )


def shrunk(state: State, lost: Collection[Rank]) -> Placement | None:
    """The committed table without its one lost rank, where no expert goes with it; None where more has to be done.

    The ranks that are left come to it by themselves as soon as they see the death (``EpochVersion.shrinks``), so it is
    preferred to one that spreads the load better: that one follows as a planned change (``beginning.evening``).
    """
    live, held, record = state.live, held_now(state), state.record
    if len(lost) != 1 or live is None or held is None or record is None or record.committed.missing:
        return None
    staying = [rank for rank in sorted(state.members) if rank not in lost]
    rest = without(widened(live, rows=held.max_ranks, slots=held.slots_per_rank), *lost)
    # What a change that is given up has begun to write, or not acknowledged, is not known to be there.
    known = widened(held, rows=rest.max_ranks, slots=rest.slots_per_rank).slots
    if not staying or ((rest.weights > 0) & (rest.slots != known)).any() or rest.missing(staying):
        return None
    slots = np.where(rest.slots == known, rest.slots, EMPTY)
    return Placement(slots=slots, weights=rest.weights, n_experts=rest.n_experts)


def repaired(state: State, ranks: list[Rank], *, planner: Planner) -> tuple[Placement | None, int, str]:
    """The placement after a loss, how many experts it lacks, and the planner's words."""
    asked = repair_of(state, ranks)
    if asked is None:
        absent = state.live.n_layers * state.live.n_experts if state.live else 0
        return None, absent, "no rank is left: the instance forms again as soon as enough are ready"
    instance, held = asked
    plan = planner.repair(instance, held=held, urgent=True)
    missing = plan.placement.missing(ranks)
    if missing:
        return plan.placement, len(missing), f"{plan.reason}; {named(missing)}"
    return plan.placement, 0, plan.reason


def repair_of(state: State, ranks: list[Rank]) -> tuple[Instance, Placement] | None:
    """What a planner is asked when only ``ranks`` are left: they, and what they hold; None when nothing is known.

    What the lost ones held does not matter any more, so it is left out: the question is the same before the loss.
    """
    held = held_now(state)
    instance = instance_of(state, ranks, held=held)
    if instance is None or not ranks or held is None:
        return None
    left = only(held, [rank for rank in ranks if rank < held.max_ranks])
    return instance, widened(left, rows=instance.max_ranks, slots=instance.slots)


def named(missing: list[tuple[int, int]]) -> str:
    """Which experts have no replica, the first few by name."""
    first = ", ".join(f"layer {layer} expert {expert}" for layer, expert in missing[:8])
    return f"no source or no slot for {first}" + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")


def superseded(state: State, epoch: Epoch) -> tuple[Recovery, ...]:
    """The recovery that was under way and ends because another epoch takes its place."""
    under_way = running(state)
    if under_way is None:
        return ()
    ended = msgspec.structs.replace(under_way, outcome=f"superseded by epoch {epoch}")
    return (with_fence(_all_ended(ended, state.now), state.fence),)


def _all_ended(recovery: Recovery, now: int) -> Recovery:
    for phase in recovery.phases:
        recovery = phase_ended(recovery, phase.name, now=now)
    return recovery


def prepare(
    state: State,
    members: Iterable[Member],
    placement: Placement,
    *,
    reason: str,
    cause: str = "",
    cut: Cut = Cut.PLANNED,
    deadline_s: float = 0.0,
) -> Write:
    """Announce the next epoch: ranks link and load, the live table stays."""
    record = state.record or EpochRecord(committed=NOTHING)
    ranks = tuple(sorted(members))
    version = EpochVersion(
        epoch=state.next_epoch,
        members=ranks,
        placement=placement.digest,
        cut=cut,
        reason=reason,
        cause=cause or recovery_id(state.next_epoch),
        missing=len(placement.missing(m.rank for m in ranks)),
        deadline_unix_ns=state.now + int((deadline_s or state.spec.prepare_deadline_s) * SECOND),
    )
    held = held_now(state)
    held = held and widened(held, rows=placement.max_ranks, slots=placement.slots_per_rank)
    before, after = {m.rank for m in record.committed.members}, {m.rank for m in ranks}
    recovery = Recovery(
        id=recovery_id(version.epoch),
        cause=cause,
        reason=reason,
        joined=tuple(sorted(after - before)),
        left=tuple(sorted(before - after)),
        epoch_before=record.committed.epoch,
        epoch=version.epoch,
        phases=(Phase(name="prepare", started_unix_ns=state.now),),
        missing=version.missing,
        fences=(state.fence,),
    )
    return Write(
        reason=reason,
        decided=state.now,
        record=EpochRecord(
            committed=record.committed,
            preparing=version,
            held=held.digest if held else "",
            issued=version.epoch,
            fence=state.fence,
            decided_unix_ns=state.now,
        ),
        placements=fresh(state, placement, held),
        recoveries=(recovery,),
    )


def commit(state: State, version: EpochVersion, record: EpochRecord) -> Write:
    """Everybody is prepared: flip together at the next common step boundary."""
    held = holdings(record, placements=state.placements, acks=state.acks)
    kept = only(held, [m.rank for m in version.members if m.rank < held.max_ranks]) if held else None
    recovery = state.recoveries.get(recovery_id(version.epoch))
    if recovery:
        recovery = phase_ended(with_fence(recovery, state.fence), "prepare", now=state.now, begin="commit")
        recovery = with_loads(state, recovery)
    gone = {m.rank for m in record.committed.members} - {m.rank for m in version.members}
    views = [msgspec.structs.replace(state.view(rank), draining="") for rank in gone]
    return Write(
        reason=f"epoch {version.epoch} committed: {version.reason}",
        decided=state.now,
        record=EpochRecord(
            committed=msgspec.structs.replace(
                version, deadline_unix_ns=state.now + int(state.spec.activate_deadline_s * SECOND)
            ),
            held=kept.digest if kept else "",
            issued=max(record.issued, version.epoch),
            fence=state.fence,
            decided_unix_ns=state.now,
            traceparent=record.traceparent,
        ),
        status=amended(state.status, views, fence=state.fence),
        placements=fresh(state, kept),
        past=past(state, version, recovery),
        recoveries=(recovery,) if recovery else (),
    )


def roll_back(state: State, record: EpochRecord, *, reason: str, status: Status | None = None) -> Write:
    """Forget the version being prepared; its number is never used again."""
    held = held_now(state)
    recovery = running(state)
    if recovery:
        ended = msgspec.structs.replace(recovery, outcome=f"rolled back: {reason}")
        recovery = with_fence(_all_ended(ended, state.now), state.fence)
    return Write(
        reason=f"rolled back: {reason}",
        decided=state.now,
        record=EpochRecord(
            committed=record.committed,
            held=held.digest if held else "",
            issued=max(record.issued, record.preparing.epoch if record.preparing else 0),
            fence=state.fence,
            decided_unix_ns=state.now,
            traceparent=record.traceparent,
        ),
        status=status,
        placements=fresh(state, held),
        recoveries=(recovery,) if recovery else (),
    )


def with_loads(state: State, recovery: Recovery) -> Recovery:
    """``recovery`` with what the acknowledgements say was loaded, by source tier."""
    bytes_by_tier: dict[str, int] = {}
    slots = 0
    for (epoch, _), ack in sorted(state.acks.items()):
        for load in ack.loads if epoch == recovery.epoch else ():
            bytes_by_tier[load.tier] = bytes_by_tier.get(load.tier, 0) + load.bytes
            slots += load.slots
    return msgspec.structs.replace(recovery, bytes_by_tier=bytes_by_tier, slots_loaded=slots)


def past(state: State, version: EpochVersion, recovery: Recovery | None) -> PastEpoch:
    """The audit entry of an epoch."""
    return PastEpoch(
        decided=version,
        fence=state.fence,
        replica=state.replica,
        recovery=recovery.id if recovery else "",
        decided_unix_ns=state.now,
    )


def fresh(state: State, *placements: Placement | None) -> tuple[Placement, ...]:
    """Those of ``placements`` whose bytes are not in etcd yet."""
    return tuple({p.digest: p for p in placements if p is not None and p.digest not in state.placements}.values())
