"""Rules on the next change, once none is under way: who forms the instance, comes, goes, and holds what."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from controlplane.coordinator import changes, operating
from controlplane.coordinator.case import Case, Wait
from controlplane.coordinator.holdings import routed, widened
from controlplane.coordinator.membership import can_read_disk, candidates, held_now, instance_of, wanted
from controlplane.coordinator.staging import toward
from controlplane.coordinator.state import SECOND, Write
from schemas.operations import OperationState
from schemas.vocabulary import Cut, Member

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.coordinator.planning import Plan
    from controlplane.coordinator.state import State
    from schemas.placement import Placement
    from schemas.vocabulary import Rank

HOLD = SECOND
"""After a change was rolled back the next one waits this long, so that a lasting obstacle does not make a storm."""
EVEN_AFTER = 5 * SECOND
"""Until then the lost rank's requests are being resumed, which is no moment for one more change."""


def formation(case: Case) -> Write | Wait | State | None:
    """The first epoch, and the first after everything was lost."""
    state = case.state
    if state.members:
        return None
    ready = list(wanted(state, automatic=case.automatic).members)
    if not state.backups:  # nobody holds anything yet: who cannot read a checkpoint joins later, from its peers
        ready = [rank for rank in ready if can_read_disk(state, rank)] or ready
    instance = instance_of(state, ready, held=None)
    room = sum(seat.slots for seat in instance.seats.values()) if instance else 0
    if instance is None or room < instance.experts:
        needed = instance.experts if instance else "all"
        return _aside(case, f"{len(ready)} ranks are ready with {room} slots for {needed} experts{_diskless(state)}")
    if instance.unavailable:
        return _aside(case, changes.named(sorted(instance.unavailable)))
    state = state.notice("form")
    if len(ready) < state.spec.ranks and not state.lasts("form", int(state.spec.form_wait_s * SECOND)):
        return _aside(replace(case, state=state), f"{len(ready)} of {state.spec.ranks} ranks are ready")
    plan = case.planner.plan(instance)
    members = [Member(rank, state.registrations[rank].incarnation) for rank in ready]
    return changes.prepare(
        state, members, plan.placement, reason=f"{len(ready)} ranks form the instance; {plan.reason}"
    )


def _diskless(state: State) -> str:
    """Who is left out of a first epoch because nobody could give it weights, and the remedy."""
    ranks = [rank for rank in candidates(state) if not state.backups and not can_read_disk(state, rank)]
    if not ranks or not any(can_read_disk(state, rank) for rank in candidates(state)):
        return ""
    return f"; ranks {', '.join(map(str, ranks))} cannot read a checkpoint: mend that and start them again"


def _aside(case: Case, why: str) -> Wait:
    """Nothing can be formed yet."""
    return Wait(case.state, why)


def restoration(case: Case) -> Write | None:
    """Some experts have no replica and nothing is sampled: the first source that appears ends it."""
    state = case.state
    if state.record is None or not state.record.committed.missing or not case.automatic or _held_back(state):
        return None
    members = sorted(state.members.keys() | set(wanted(state, automatic=True).joining))
    plan, held = _repair(case, members, urgent=True)
    if plan is None or held is None:
        return None
    missing = len(plan.placement.missing(members))
    if missing >= state.record.committed.missing:
        return None
    reason = f"{state.record.committed.missing - missing} experts have a source again; {plan.reason}"
    # Nothing runs under an incomplete epoch, so there is no step boundary to meet at: cross at once.
    return changes.prepare(state, _members(state, members), plan.placement, reason=reason, cut=Cut.ABORT)


def membership(case: Case) -> Write | None:
    """Ranks that came, and ranks that are to go."""
    state = case.state
    if state.record is None or state.record.committed.missing or _held_back(state):
        return None
    want = wanted(state, automatic=case.automatic)
    leaving = dict(want.leaving)
    members = set(want.members)
    if leaving and operating.shortage(state, members):
        members |= leaving.keys()  # it serves on: below coverage nobody would
        leaving = {}
    if members == state.members.keys():
        return None
    plan, _ = _repair(case, sorted(members), urgent=False)
    if plan is None:
        return None
    placement, after = _staged(state, plan.placement, members, leaving=set(leaving))
    joined = [f"rank {rank} joins" for rank in sorted(members - state.members.keys())]
    left = [f"rank {rank} leaves ({why})" for rank, why in sorted(leaving.items())]
    if placement == state.live and after == state.members.keys():
        return None  # no slot can be freed: the operation's deadline, or another rank, will tell
    cause, deadline_s = _cause(state, members ^ state.members.keys())
    reason = "; ".join([*joined, *left, plan.reason])
    return changes.prepare(state, _members(state, after), placement, reason=reason, cause=cause, deadline_s=deadline_s)


def _staged(state: State, target: Placement, members: set[Rank], *, leaving: set[Rank]) -> tuple[Placement, set[Rank]]:
    """The next flip toward ``target`` and who is in it: ranks leave only when all they hold is elsewhere."""
    if state.live is None:
        return target, members
    live = widened(state.live, rows=target.max_ranks, slots=target.slots_per_rank)
    direct = toward(live=live, target=target, members=members)
    if direct == target or not direct.missing(members):
        return direct, members
    slots, weights = target.slots.copy(), target.weights.copy()
    for rank in leaving:
        slots[:, rank], weights[:, rank] = live.slots[:, rank], live.weights[:, rank]
    both = type(target)(slots=slots, weights=weights, n_experts=target.n_experts)
    return toward(live=live, target=both, members=members | leaving), members | leaving


def _cause(state: State, changed: set[Rank]) -> tuple[str, float]:
    """The running operation that asked for a change of ``changed`` ranks, and what is left of its time."""
    for operation in sorted(state.operations.values(), key=lambda o: (o.created_unix_ns, o.id)):
        about = {*operating.subjects(state, operation), *operating.substitutes(operation)}
        mine = about & changed or operation.kind == "scale"
        if operation.state is OperationState.RUNNING and mine:
            return operation.id, min(
                operation.deadline_s or state.spec.prepare_deadline_s, state.spec.prepare_deadline_s
            )
    return "", 0.0


def _members(state: State, ranks: Iterable[Rank]) -> list[Member]:
    """Each rank with the process that fills it: a member's own, a joiner's registered one."""
    return [Member(rank, state.members.get(rank) or state.registrations[rank].incarnation) for rank in sorted(ranks)]


def _repair(case: Case, members: list[Rank], *, urgent: bool) -> tuple[Plan | None, Placement | None]:
    state = case.state
    held = held_now(state)
    instance = instance_of(state, members, held=held)
    if instance is None or held is None:
        return None, None
    wide = routed(widened(held, rows=instance.max_ranks, slots=instance.slots), state.live)
    return case.planner.repair(instance, held=wide, urgent=urgent), wide


def rebalancing(case: Case) -> Write | None:
    """One flip nearer to the placement that an operation wants."""
    state = case.state
    if not state.status.goal or state.live is None or state.record is None or _held_back(state):
        return None
    target = state.placements.get(state.status.goal)
    if target is not None and target != state.live:
        placement = toward(live=state.live, target=target, members=state.members)
        if placement != state.live and not placement.missing(state.members):
            return changes.prepare(
                state,
                state.record.committed.members,
                placement,
                reason="moving slots to the wanted placement",
                cause=state.status.goal_cause,
            )
    reached = "reached" if target == state.live else "not reachable from here"
    return Write(
        reason=f"the wanted placement is {reached}",
        decided=state.now,
        status=msgspec.structs.replace(state.status, goal="", goal_cause=""),
    )


def redundancy(case: Case) -> Write | State | None:
    """After a loss: fill slots that stand empty or unrouted, so that the next loss costs no load."""
    state = case.state
    live, record = state.live, state.record
    if live is None or record is None or record.committed.missing or not case.automatic or _held_back(state):
        return None
    tag = f"filled:{record.committed.epoch}:{len(state.backups)}"
    if tag in state.noticed:
        return None
    state = state.forget("filled:").notice(tag)
    plan, _ = _repair(replace(case, state=state), sorted(state.members), urgent=False)
    if plan is None:
        return state
    placement = _next_flip(state, live, plan)
    # Only strict progress: a planner of another opinion each time must not make the instance flip for ever.
    if int((placement.weights > 0).sum()) <= int((live.weights > 0).sum()) or placement.missing(state.members):
        return state
    return changes.prepare(
        state, record.committed.members, placement, reason=f"spare slots are filled again; {plan.reason}"
    )


def evening(case: Case) -> Write | State | None:
    """After a loss that only took a rank out: spread its share of the tokens anew, once the recovery is long over."""
    state, record, live = case.state, case.state.record, case.state.live
    if record is None or live is None or not record.committed.shrinks or not case.automatic:
        return None
    tag, done = f"uneven:{record.committed.epoch}", f"evened:{record.committed.epoch}"
    if done in state.noticed or _held_back(state):
        return None
    state = state if tag in state.noticed else state.forget("uneven:").notice(tag)
    if not state.lasts(tag, EVEN_AFTER):
        return state
    state = state.forget("evened:").notice(done)
    plan, _ = _repair(replace(case, state=state), sorted(state.members), urgent=True)
    if plan is None:
        return state
    placement = _next_flip(state, live, plan)
    unchanged = widened(live, rows=placement.max_ranks, slots=placement.slots_per_rank)
    if placement == unchanged or placement.missing(state.members):
        return state
    reason = f"the tokens are spread evenly over the copies that are left; {plan.reason}"
    return changes.prepare(state, record.committed.members, placement, reason=reason)


def _next_flip(state: State, live: Placement, plan: Plan) -> Placement:
    """As near to what is planned for the present members as one flip may come."""
    base = widened(live, rows=plan.placement.max_ranks, slots=plan.placement.slots_per_rank)
    return toward(live=base, target=plan.placement, members=state.members)


def _held_back(state: State) -> bool:
    """Whether a rolled-back change is so recent that the next one waits."""
    rolled = [r for r in state.recoveries.values() if r.outcome.startswith("rolled back")]
    latest = max((phase.finished_unix_ns for r in rolled for phase in r.phases), default=0)
    return not state.reached(latest + HOLD)
