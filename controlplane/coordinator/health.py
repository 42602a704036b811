"""Grey failures: a slow rank gets less to do in a planned rebalance, and leaves if that does not help.

Two ways to be found slow: the peers' complaints (steps past their deadline, by a majority, for a while), and the
receive-wait matrix (``slowness``). With hysteresis both ways: what is taken is given back only after a while in peace.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from controlplane.coordinator.holdings import widened
from controlplane.coordinator.membership import instance_of
from controlplane.coordinator.ranks import amended
from controlplane.coordinator.slowness import complaint, paced, reckoned
from controlplane.coordinator.state import SECOND, Question

if TYPE_CHECKING:
    from controlplane.coordinator.blame import Verdict
    from controlplane.coordinator.state import Pace, Planned, State
    from schemas.placement import Placement
    from schemas.records import RankView


def examined(state: State, verdict: Verdict) -> tuple[State, list[RankView]]:
    """The state with its patience brought forward, and the views of members that change."""
    state, views = paced(state), []
    measured = state.pace.paces if state.pace else {}
    for rank in sorted(state.members):
        before = state.view(rank)
        if rank in verdict.leaving and not before.draining:
            word = f"notice: {verdict.leaving[rank]}"
            views.append(msgspec.structs.replace(before, draining=word, cordoned=before.cordoned or word))
            continue
        state, after = _examined(state, before, said=verdict.slow.get(rank, ""), pace=measured.get(rank))
        if after != before:
            views.append(after)
    return state, views


def _examined(state: State, view: RankView, *, said: str, pace: Pace | None) -> tuple[State, RankView]:
    measured = complaint(pace, share=state.spec.slow_wait_share) if pace else ""
    if measured or said:
        state = state.notice(f"slow:{view.rank};").forget(f"fine:{view.rank};")
        return state, _slowed(state, view, said=said, measured=measured, pace=pace)
    return _recovering(state, view, pace)


def _slowed(state: State, view: RankView, *, said: str, measured: str, pace: Pace | None) -> RankView:
    spec, slow = state.spec, f"slow:{view.rank};"
    if not view.draining and state.lasts(slow, int(spec.slow_drain_s * SECOND)):
        word = f"slow for {state.since(slow) / SECOND:.0f} s: {measured or said}"
        return msgspec.structs.replace(view, draining=word, cordoned=view.cordoned or word)
    if measured and pace is not None:
        less = reckoned(pace, planned=view.slow, least=spec.slow_share, slow=True)
        return view if less == view.slow else msgspec.structs.replace(view, slow=less, waited=round(pace.waited_for, 2))
    if state.lasts(slow, int(spec.slow_after_s * SECOND)):
        return msgspec.structs.replace(view, slow=min(view.slow, spec.slow_share))
    return view


def _recovering(state: State, view: RankView, pace: Pace | None) -> tuple[State, RankView]:
    """Nobody complains. Whom complaints made slow is trusted again after a while; who was measured, as measured."""
    slow, fine = f"slow:{view.rank};", f"fine:{view.rank};"
    if view.slow == 1 and slow not in state.noticed:
        return state, view
    state = state.notice(fine)
    if not state.lasts(fine, int(state.spec.slow_clear_s * SECOND)):
        return state, view
    state = state.forget(slow)
    able = 1.0
    if view.waited:
        able = reckoned(pace, planned=view.slow, least=state.spec.slow_share, slow=False) if pace else view.slow
    if able == view.slow:
        return (state, view) if view.slow < 1 else (state.forget(fine), view)
    return state.forget(fine), msgspec.structs.replace(view, slow=able, waited=view.waited if able < 1 else 0.0)


def question_of(state: State, views: tuple[RankView, ...]) -> Question | None:
    """Which placement suits the ranks' speeds; None while nothing can be moved, or an operator's goal is pursued."""
    record, live = state.record, state.live
    if record is None or live is None or record.committed.missing or state.status.goal_cause:
        return None
    instance = instance_of(replace(state, status=amended(state.status, views)), state.members, held=live)
    if instance is None:
        return None
    return Question(
        cause="",
        epoch=record.committed.epoch,
        instance=instance,
        live=widened(live, rows=instance.max_ranks, slots=instance.slots),
        max_bytes=max(state.spec.slow_move_slots * instance.expert_bytes, 1),  # 0 would be no limit
        views=views,
    )


def gained(state: State, answer: Planned) -> Placement | None:
    """The placement to move to; None when nothing is gained by it."""
    if answer.plan is None or answer.plan.placement == answer.question.live:
        return None
    return None if answer.plan.placement.missing(state.members) else answer.plan.placement
