"""``observe``: what an event makes known. No decision is taken here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from controlplane.coordinator.changes import phase_ended
from controlplane.coordinator.state import Change, Deposed, Elected, Kind, Observed, Planned, Written
from schemas.policy import Spec
from schemas.records import Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.coordinator.state import Event, Name, State
    from schemas.operations import Recovery
    from schemas.vocabulary import Rank

SINGLE: dict[Kind, Any] = {Kind.SPEC: Spec(), Kind.EPOCH: None, Kind.STATUS: Status()}
"""Kinds with one key, and what its absence means."""
UNASKED: dict[str, Any] = {"question": None, "answer": None}


def observe(state: State, event: Event) -> State:
    """The state after ``event``, before anything is decided. Time never goes back, whatever a clock says."""
    state = replace(state, now=max(state.now, event.now))
    match event:
        case Observed():
            return fold(state, event.changes)
        case Elected():
            # Patience starts anew: what a predecessor noticed is not in etcd.
            return replace(state, fence=event.fence, writing=False, noticed={"led": state.now}, **UNASKED)
        case Deposed():
            return replace(state, fence=0, writing=False, noticed={}, **UNASKED)
        case Written():
            state = replace(state, writing=False)
            return _timed(fold(state, written_changes(event, state)), event) if event.revision else state
        case Planned():
            return replace(state, answer=event) if event.question is state.question else state
        case _:
            return state


def fold(state: State, changes: Iterable[Change]) -> State:
    """Apply changes that are newer than what is known of their key (a write's own outcome may arrive twice)."""
    fields: dict[str, Any] = {}
    revisions = dict(state.revisions)
    for change in changes:
        key = (change.kind, change.name)
        if change.revision <= revisions.get(key, 0):
            continue
        revisions[key] = change.revision
        name = change.kind.value
        if change.kind in SINGLE:
            fields[name] = SINGLE[change.kind] if change.value is None else change.value
            continue
        table = fields.get(name)
        if table is None:
            table = fields[name] = dict(getattr(state, name))
        if change.value is None:
            table.pop(change.name, None)
            if change.kind is Kind.ACK:  # never written here, so never delivered twice: keep no tombstone
                del revisions[key]
        elif change.kind is Kind.WAIT:
            table[change.name] = (*table.get(change.name, ()), change.value)[-max(state.spec.slow_rows, 1) :]
        else:
            table[change.name] = change.value
    if "status" in fields and _speeds(fields["status"]) != _speeds(state.status):
        fields |= {"waits": {}, "pace": None}  # they told of other speeds
    return replace(state, revisions=revisions, **fields)


def _speeds(status: Status) -> dict[Rank, float]:
    return {view.rank: view.slow for view in status.ranks if view.slow != 1}


def written_changes(event: Written, state: State) -> list[Change]:
    """What a transaction of ours changed, without waiting for the watch to say so."""
    write, revision = event.write, event.revision
    values: list[tuple[Kind, Name, Any]] = []
    if write.record is not None:
        values.append((Kind.EPOCH, "", write.record))
    if write.status is not None:
        values.append((Kind.STATUS, "", write.status))
    values += [(Kind.PLACEMENT, placement.digest, placement) for placement in write.placements]
    values += [(Kind.RECOVERY, recovery.id, recovery) for recovery in write.recoveries]
    values += [(Kind.OPERATION, operation.id, operation) for operation in write.operations]
    values += [(kind, name, None) for kind, name in write.forget if kind not in (Kind.PAST, Kind.ACK)]
    forgotten = {name for kind, name in write.forget if kind is Kind.ACK}
    values += [(Kind.ACK, name, None) for name in state.acks if str(name[0]) in forgotten]
    return [Change(kind, name, value, revision) for kind, name, value in values]


def _timed(state: State, event: Written) -> State:
    """A commit ends with the transaction; written down with the recovery's next write, for the trace's sake.

    The watch may have told of the transaction before its answer came.
    """
    ended = {
        recovery.id: phase_ended(recovery, "commit", now=event.now, begin="activate")
        for recovery in event.write.recoveries
        if state.recoveries.get(recovery.id) == recovery and _committing(recovery)
    }
    return replace(state, recoveries={**state.recoveries, **ended}) if ended else state


def _committing(recovery: Recovery) -> bool:
    return any(phase.name == "commit" and not phase.finished_unix_ns for phase in recovery.phases)
