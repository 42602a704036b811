"""What is written down about each rank: its state in words for people, its losses and holds for the next leader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from controlplane.coordinator.holdings import prepared
from controlplane.coordinator.membership import obstacle, reason_to_leave
from controlplane.coordinator.state import SECOND
from schemas.records import RankView, Status
from schemas.vocabulary import RankState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controlplane.coordinator.blame import Verdict
    from controlplane.coordinator.state import State
    from schemas.operations import Blame
    from schemas.policy import Spec
    from schemas.vocabulary import Rank


def amended(status: Status, views: Iterable[RankView], **fields: object) -> Status:
    """``status`` with some ranks' views replaced, in rank order."""
    table = {view.rank: view for view in status.ranks} | {view.rank: view for view in views}
    return msgspec.structs.replace(status, ranks=tuple(table[rank] for rank in sorted(table)), **fields)


def lost(view: RankView, blame: Blame, *, spec: Spec, now: int) -> RankView:
    """The view of a rank whose process is excluded: it may return as a new one, later each time, not for ever."""
    window = now - int(spec.flap_window_s * SECOND)
    losses = (*(at for at in view.losses_unix_ns if at > window), now)
    wait = min(spec.backoff_s * 2 ** (len(losses) - 2), spec.backoff_max_s) if len(losses) > 1 else 0.0
    hold = (
        f"flap limit: {len(losses)} losses within {spec.flap_window_s:g} s, the last by {blame.evidence}; "
        "find the cause, then uncordon it"
    )
    return msgspec.structs.replace(
        view,
        state=RankState.FENCED,
        incarnation=blame.incarnation,
        fenced=max(view.fenced, blame.incarnation),
        reason=f"{blame.evidence}: {blame.detail}".rstrip(": "),
        since_unix_ns=now,
        losses_unix_ns=losses,
        retry_unix_ns=now + int(wait * SECOND),
        draining="",
        slow=1.0,
        waited=0.0,
        cordoned=view.cordoned or (hold if len(losses) >= spec.flap_limit else ""),
    )


def refreshed(state: State, status: Status, verdict: Verdict) -> Status:
    """``status`` with every rank's state as it is now; unchanged views keep their identity and their time."""
    ranks = state.registrations.keys() | state.members.keys() | state.joining.keys() | {v.rank for v in status.ranks}
    table = {view.rank: view for view in status.ranks}
    preparing = state.record.preparing if state.record else None
    linked = prepared(preparing, state.joining, state.acks) if preparing else set()
    views = [
        _refreshed(state, table.get(rank) or RankView(rank=rank, state=RankState.EMPTY), verdict, linked)
        for rank in ranks
    ]
    return amended(status, views)


def _refreshed(state: State, view: RankView, verdict: Verdict, linked: set[Rank]) -> RankView:
    there = state.registrations.get(view.rank)
    incarnation = state.members.get(view.rank) or (there.incarnation if there else view.incarnation)
    now_in, reason = _state_of(state, view, verdict, linked)
    if (now_in, reason, incarnation) == (view.state, view.reason, view.incarnation):
        return view
    since = view.since_unix_ns if now_in is view.state else state.now
    return msgspec.structs.replace(view, state=now_in, reason=reason, incarnation=incarnation, since_unix_ns=since)


def _state_of(state: State, view: RankView, verdict: Verdict, linked: set[Rank]) -> tuple[RankState, str]:
    if view.rank in state.members:
        return _member_state(state, view, verdict)
    there = state.registrations.get(view.rank)
    if view.rank in state.joining and state.record and state.record.preparing:
        now_in = RankState.LINKED if view.rank in linked else RankState.JOINING
        return now_in, f"epoch {state.record.preparing.epoch}"
    if view.lent_to:
        return RankState.CORDONED, f"lent to {view.lent_to}"
    if view.cordoned:
        return RankState.CORDONED, view.cordoned
    if there is None:
        return (RankState.FENCED, view.reason) if view.fenced and view.reason else (RankState.EMPTY, "")
    if there.incarnation <= view.fenced:
        return RankState.FENCED, view.reason
    return RankState.JOINING, obstacle(state, there)


def _member_state(state: State, view: RankView, verdict: Verdict) -> tuple[RankState, str]:
    leaving = reason_to_leave(state, view.rank)
    if leaving:
        return RankState.DRAINING, leaving
    if view.rank in verdict.suspected:
        return RankState.SUSPECT, verdict.suspected[view.rank]
    if view.slow < 1:
        waited = f"its peers waited for it {view.waited:.0%} of the time, " if view.waited else ""
        return RankState.SUSPECT, f"slow: {waited}planned with {view.slow:.0%} of its speed"
    return RankState.ACTIVE, ""


def admitted(state: State, status: Status, ranks: Iterable[Rank]) -> Status:
    """``status`` after an operator let ``ranks`` in: every hold of theirs is lifted."""
    return amended(
        status,
        [
            msgspec.structs.replace(
                state.view(rank), cordoned="", draining="", lent_to="", losses_unix_ns=(), retry_unix_ns=0
            )
            for rank in ranks
        ],
        victims=tuple(rank for rank in status.victims if rank not in set(ranks)),
    )


def counted(status: Status) -> Mapping[RankState, int]:
    """How many ranks are in each state."""
    return {which: sum(view.state is which for view in status.ranks) for which in RankState}
