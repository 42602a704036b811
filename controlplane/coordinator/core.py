"""The coordinator's core: ``(state, event) → (state, write, question, reason, wake)``. No I/O, no clock.

Level-triggered: an event only makes something known (``folding``); then the first rule below that wants something
written decides. Everything a rule looks at is in etcd, so a successor decides the same; what is not in etcd is only
patience. At most one write is under way; its outcome is an event like any other, and so is the answer to a question.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.coordinator import changes
from controlplane.coordinator.beginning import evening, formation, membership, rebalancing, redundancy, restoration
from controlplane.coordinator.blame import Verdict, judge
from controlplane.coordinator.case import Case, Wait
from controlplane.coordinator.folding import observe
from controlplane.coordinator.health import examined, gained, question_of
from controlplane.coordinator.holdings import prepared
from controlplane.coordinator.questions import settled_questions
from controlplane.coordinator.ranks import amended, refreshed
from controlplane.coordinator.requested import operations
from controlplane.coordinator.retention import stale
from controlplane.coordinator.state import SECOND, Alarm, Question, Write
from controlplane.coordinator.under_way import change_under_way, settling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from controlplane.coordinator.planning import Planner
    from controlplane.coordinator.state import Event, State
    from schemas.records import RankView

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
    case = Case(state, verdict, planner)
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


def _told(case: Case, write: Write) -> Outcome:
    """The write with every rank's view as it will be: gateways and people learn of a change together with it."""
    state = replace(case.state, writing=True, said=write.reason)
    if write.record is not None or write.status is not None:
        after = replace(state, record=write.record or state.record, status=write.status or state.status)
        status = msgspec.structs.replace(refreshed(after, after.status, case.verdict), fence=state.fence)
        write = replace(write, status=status if status != state.status else None)
        state = state.forget("viewed").notice("viewed")
    return Outcome(state, write, write.reason)


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


def lost_members(case: Case) -> Write | State | None:
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
        if report.detected_unix_ns
        and any((s.rank, s.incarnation) == (blame.rank, blame.incarnation) for s in report.suspicions)
    ]
    first = min(detected, default=0)
    return changes.abort(state, case.verdict, planner=case.planner, reason=names, detected=min(first, state.now))


def health(case: Case) -> Write | State | None:
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


def housekeeping(case: Case) -> Write | State | None:
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


def _shown(case: Case) -> tuple[object, ...]:
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


RULES: tuple[Callable[[Case], Write | Wait | State | None], ...] = (
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
    evening,
    housekeeping,
)
