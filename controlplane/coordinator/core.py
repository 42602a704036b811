"""The coordinator's core: ``(state, event) → (state, write, question, reason, wake)``. No I/O, no clock.

Level-triggered: an event only makes something known (``folding``); then the first rule below that wants something
written decides. Everything a rule looks at is in etcd, so a successor decides the same; what is not in etcd is only
patience. At most one write is under way; its outcome is an event like any other, and so is the answer to a question.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.coordinator import changes, operating
from controlplane.coordinator.blame import Verdict, judge
from controlplane.coordinator.folding import observe
from controlplane.coordinator.health import examined, gained, question_of
from controlplane.coordinator.holdings import prepared, routed, widened
from controlplane.coordinator.membership import can_read_disk, candidates, held_now, instance_of, wanted
from controlplane.coordinator.questions import settled_questions
from controlplane.coordinator.ranks import amended, lost, refreshed
from controlplane.coordinator.retention import stale
from controlplane.coordinator.staging import toward
from controlplane.coordinator.state import SECOND, Alarm, Question, Write
from schemas.operations import Blame, OperationState
from schemas.policy import OnTimeout
from schemas.vocabulary import Cut, Evidence, Member

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from controlplane.coordinator.planning import Plan, Planner
    from controlplane.coordinator.state import Event, State
    from schemas.operations import Operation, Recovery
    from schemas.placement import Placement
    from schemas.records import Ack, EpochRecord, EpochVersion, RankView, Status
    from schemas.vocabulary import Rank

SUCCESSOR_PATIENCE = 2 * SECOND
"""A deadline that passed while nobody led is not the ranks' fault."""
HOLD = SECOND
"""After a change was rolled back the next one waits this long, so that a lasting obstacle does not make a storm."""
RANKS_NAMED = 16
VIEW_EVERY = SECOND // 5
"""Views that changed without an epoch are written at most this often: at formation every rank changes at once."""


@dataclass(frozen=True)
class Outcome:
    """What one event led to; ``reason`` is empty when nothing new is to be said."""

    state: State
    write: Write | None = None
    reason: str = ""
    question: Question | None = None
    """To be planned beside the decisions and answered by ``Planned``, however late."""
    wake: int = 0
    """When to decide again if nothing happens before, Unix ns; 0: time alone changes nothing."""


@dataclass(frozen=True)
class _Case:
    """One decision's view: the state, the verdict on its members, and who plans."""

    state: State
    verdict: Verdict
    planner: Planner

    @property
    def automatic(self) -> bool:
        return not self.state.status.paused


def step(state: State, event: Event, *, planner: Planner) -> Outcome:
    """Take in one event; decide if this replica leads and no write of its own is under way."""
    before = state.question
    state = observe(state, event)
    if not state.fence or state.writing:
        return Outcome(state)
    alarm = Alarm()
    outcome = _decided(settled_questions(replace(state, alarm=alarm)), planner=planner)
    asked = outcome.state.question
    return replace(outcome, question=None if asked is before else asked, wake=alarm.at)


def _decided(state: State, *, planner: Planner) -> Outcome:
    state, verdict = _judged(state)
    case = _Case(state, verdict, planner)
    for rule in RULES:
        found = rule(case)
        if isinstance(found, Write):
            return _told(case, found)
        if isinstance(found, Wait):
            waiting = replace(found.state, said=found.why)
            kept = housekeeping(replace(case, state=waiting))
            if isinstance(kept, Write):
                return _told(replace(case, state=waiting), kept)
            return Outcome(kept or waiting, reason=found.why if found.why != state.said else "")
        if found is not None:
            case = replace(case, state=found)
    return Outcome(case.state)


def _told(case: _Case, write: Write) -> Outcome:
    """The write with every rank's view as it will be: gateways and people learn of a change together with it."""
    state = replace(case.state, writing=True, said=write.reason)
    if write.record is not None or write.status is not None:
        after = replace(state, record=write.record or state.record, status=write.status or state.status)
        status = msgspec.structs.replace(refreshed(after, after.status, case.verdict), fence=state.fence)
        write = replace(write, status=status if status != state.status else None)
        state = state.forget("viewed").notice("viewed")
    return Outcome(state, write, write.reason)


@dataclass(frozen=True)
class Wait:
    """Nothing to write now, and no later rule may act: a change is under way."""

    state: State
    why: str


def _judged(state: State) -> tuple[State, Verdict]:
    verdict = _verdict(state, patient=True)
    if verdict.tied:
        state = state.notice("tie")
        if state.lasts("tie", int(state.spec.silent_tie_s * SECOND)):
            verdict = _verdict(state, patient=False)
    return (state if verdict.tied else state.forget("tie")), verdict


def _verdict(state: State, *, patient: bool) -> Verdict:
    return judge(
        epoch=state.record.committed.epoch if state.record else 0,
        members=state.members,
        registrations=state.registrations,
        reports=state.reports,
        patient=patient,
    )


# --- rules, in order of urgency ---------------------------------------------------------------------------------------


def lost_members(case: _Case) -> Write | State | None:
    """A member is gone: the next epoch is committed without it at once."""
    state = case.state
    if not case.verdict.excluded or state.record is None:
        return None
    if not case.automatic and not state.status.pause_losses:
        return None
    names = "; ".join(
        f"rank {blame.rank} is gone ({blame.evidence}: {blame.detail or 'reported'})" for blame in case.verdict.excluded
    )
    detected = [
        report.detected_unix_ns
        for report in state.reports.values()
        for blame in case.verdict.excluded
        if report.detected_unix_ns and any(s.rank == blame.rank for s in report.suspicions)
    ]
    first = min(detected, default=0)
    return changes.abort(state, case.verdict, planner=case.planner, reason=names, detected=min(first, state.now))


def change_under_way(case: _Case) -> Write | Wait | None:
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


def _excluding(case: _Case, late: Iterable[Rank], why: str) -> Write:
    members = case.state.members
    blamed = tuple(
        Blame(rank=rank, incarnation=members[rank], evidence=Evidence.SILENT, detail=why) for rank in sorted(late)
    )
    verdict = replace(case.verdict, excluded=blamed)
    return changes.abort(case.state, verdict, planner=case.planner, reason=why, detected=0)


def settling(case: _Case) -> Write | Wait | None:
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
        return _settled(case, recovery) if recovery else None
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


def _forced(case: _Case, reason: str) -> Write:
    """The same members and slots under a new number, crossed into at once instead of at a common step."""
    verdict = replace(case.verdict, excluded=())
    return changes.abort(case.state, verdict, planner=case.planner, reason=reason, detected=0)


def _settled(case: _Case, recovery: Recovery) -> Write:
    state = case.state
    # A successor did not see the commit end: for it commit and activation end together.
    finished = changes.phase_ended(changes.with_fence(recovery, state.fence), "commit", now=state.now)
    finished = changes.phase_ended(finished, "activate", now=state.now)
    finished = msgspec.structs.replace(changes.with_loads(state, finished), outcome="done")
    return Write(reason=f"epoch {recovery.epoch} runs on every member", decided=state.now, recoveries=(finished,))


def _again(case: _Case, failed: Mapping[Rank, Ack]) -> Write:
    """Some weights could not be had where they were wanted: plan once more with what is really held."""
    reason = "; ".join(f"rank {rank} could not load: {_error(ack)}" for rank, ack in sorted(failed.items()))
    verdict = replace(case.verdict, excluded=())
    return changes.abort(case.state, verdict, planner=case.planner, reason=reason, detected=0)


def formation(case: _Case) -> Write | Wait | State | None:
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


def _aside(case: _Case, why: str) -> Wait:
    """Nothing can be formed yet."""
    return Wait(case.state, why)


def health(case: _Case) -> Write | State | None:
    """Slow ranks get less in a planned rebalance, then leave; ranks that expect their own end leave."""
    if case.automatic and (write := _shifted(case.state)):
        return write
    state, views = examined(case.state, case.verdict)
    if not case.automatic:
        return state
    speeds = tuple(view for view in views if view.slow != state.view(view.rank).slow)
    at_once = [view for view in views if view not in speeds]
    question = question_of(state, speeds) if speeds else None
    if question is None:  # nothing to move: the instance is not complete, or an operator's goal is pursued
        at_once = views
    elif state.question is None and not at_once:
        return replace(state, question=question)
    return _healthy(state, at_once) if at_once else state


def _healthy(state: State, views: Iterable[RankView], **wish: Any) -> Write:
    names = ", ".join(f"rank {view.rank} counts {view.slow:.0%}" for view in views)
    placements = wish.pop("placements", ())
    status = amended(state.status, views, **wish)
    return Write(reason=f"health: {names}", decided=state.now, status=status, placements=placements)


def _shifted(state: State) -> Write | None:
    """The answer for slow ranks' sake: their speeds and the goal that suits them are written together."""
    answer = state.answer
    if answer is None or answer.question.cause:
        return None
    views = [
        msgspec.structs.replace(state.view(view.rank), slow=view.slow, waited=view.waited)
        for view in answer.question.views
    ]
    goal = gained(state, answer)
    if goal is None:
        return _healthy(state, views)
    return _healthy(state, views, goal=goal.digest, goal_cause="", placements=changes.fresh(state, goal))


def operations(case: _Case) -> Write | State | None:
    """Accept what was asked, and say how far it is; the oldest first."""
    state = case.state
    pending = [operation for operation in state.operations.values() if not operation.state.final]
    for operation in sorted(pending, key=lambda o: (o.created_unix_ns, o.id)):
        found = _operation(state, operation)
        if isinstance(found, Write):
            return found
        state = found or state
    return state if state is not case.state else None


def _operation(state: State, operation: Operation) -> Write | State | None:
    if operation.state is OperationState.PENDING:
        return _pending(state, operation)
    waiting = operating.unfulfilled(state, operation)
    if not waiting:
        return _ended(state, operation, OperationState.DONE, "done")
    withdrawn = operating.withdraw(state, operation)
    if operation.cancel_requested:
        why = f"cancelled by {operation.cancel_requested}"
        return _ended(state, operation, OperationState.CANCELLED, why, status=withdrawn)
    if operating.overdue(state, operation):
        why = f"not done in time: still waiting for {waiting}"
        return _ended(state, operation, OperationState.FAILED, why, status=withdrawn)
    if waiting != operation.message:
        said = msgspec.structs.replace(operation, message=waiting, safe_to_terminate=operating.safe(state, operation))
        return Write(reason=f"operation {operation.id} waits for {waiting}", decided=state.now, operations=(said,))
    return None


def _pending(state: State, operation: Operation) -> Write | State | None:
    if operation.cancel_requested:
        return _ended(state, operation, OperationState.CANCELLED, f"cancelled by {operation.cancel_requested}")
    if state.question is not None and state.question.cause == operation.id and state.answer is None:
        return None
    answer = operating.accept(state, operation)
    if isinstance(answer, Question):
        found = state.answer
        if found is None or found.question.cause != operation.id:
            if operating.overdue(state, operation):
                return _ended(state, operation, OperationState.FAILED, "not done in time: still waiting for a plan")
            return replace(state, question=answer) if state.question is None else None
        if found.plan is None:
            return _ended(state, operation, OperationState.FAILED, f"no plan: {found.why}")
        answer = operating.planned(state, operation, found.plan)
    if isinstance(answer, operating.Refused):
        return _ended(state, operation, OperationState.REFUSED, answer.why)
    begun = operating.advanced(state, operation, OperationState.RUNNING, "accepted")
    return Write(
        reason=f"operation {operation.id} ({operation.kind}) by {operation.who}: {operation.reason}",
        decided=state.now,
        status=answer.status,
        operations=(begun,),
        placements=changes.fresh(state, *answer.placements),
    )


def _ended(
    state: State, operation: Operation, to: OperationState, message: str, *, status: Status | None = None
) -> Write:
    ended = operating.advanced(state, operation, to, message)
    changed = status if status is not None and status != state.status else None
    return Write(
        reason=f"operation {operation.id} {to}: {message}", decided=state.now, status=changed, operations=(ended,)
    )


def restoration(case: _Case) -> Write | None:
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


def membership(case: _Case) -> Write | None:
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


def _repair(case: _Case, members: list[Rank], *, urgent: bool) -> tuple[Plan | None, Placement | None]:
    state = case.state
    held = held_now(state)
    instance = instance_of(state, members, held=held)
    if instance is None or held is None:
        return None, None
    wide = routed(widened(held, rows=instance.max_ranks, slots=instance.slots), state.live)
    return case.planner.repair(instance, held=wide, urgent=urgent), wide


def rebalancing(case: _Case) -> Write | None:
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


def redundancy(case: _Case) -> Write | State | None:
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
    base = widened(live, rows=plan.placement.max_ranks, slots=plan.placement.slots_per_rank)
    placement = toward(live=base, target=plan.placement, members=state.members)
    # Only strict progress: a planner of another opinion each time must not make the instance flip for ever.
    if int((placement.weights > 0).sum()) <= int((live.weights > 0).sum()) or placement.missing(state.members):
        return state
    return changes.prepare(
        state, record.committed.members, placement, reason=f"spare slots are filled again; {plan.reason}"
    )


def _held_back(state: State) -> bool:
    """Whether a rolled-back change is so recent that the next one waits."""
    rolled = [r for r in state.recoveries.values() if r.outcome.startswith("rolled back")]
    latest = max((phase.finished_unix_ns for r in rolled for phase in r.phases), default=0)
    return not state.reached(latest + HOLD)


def housekeeping(case: _Case) -> Write | State | None:
    """Views for people and the gateway, and what is too old to keep; looked at when something they show has changed."""
    state, shown = case.state, _shown(case)
    if shown == state.shown:
        return None
    forget = () if changes.running(state) else stale(state)  # nothing is so old that ranks should wait for its end
    status = refreshed(state, state.status, case.verdict)
    changed = status != state.status
    if changed and "viewed" in state.noticed and not state.lasts("viewed", VIEW_EVERY):
        return None
    if not changed and not forget:
        return replace(state, shown=shown)
    return Write(
        reason="views" if changed else "housekeeping",
        decided=state.now,
        status=msgspec.structs.replace(status, fence=state.fence) if changed else None,
        forget=forget,
    )


def _shown(case: _Case) -> tuple[object, ...]:
    """All that the views and the rings of history are made of: acknowledgements of hundreds of members change none."""
    state, preparing = case.state, case.state.record.preparing if case.state.record else None
    joining = state.joining.keys() - state.members.keys()
    linked = prepared(preparing, joining, state.acks) if preparing and joining else ()
    known = state.record, state.status, state.registrations, state.recoveries, state.operations, state.placements
    return *known, case.verdict.suspected, frozenset(linked), _period(state)


def _period(state: State) -> int:
    """Counts up while somebody waits to be let in: what keeps him out may end with time."""
    if state.registrations.keys() <= state.members.keys():
        return 0
    period = state.now // VIEW_EVERY
    state.reached((period + 1) * VIEW_EVERY)
    return period


RULES: tuple[Callable[[_Case], Write | Wait | State | None], ...] = (
    lost_members,
    operations,
    change_under_way,
    settling,
    formation,
    restoration,
    health,
    membership,
    rebalancing,
    redundancy,
    housekeeping,
)
