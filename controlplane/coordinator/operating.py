"""Operations: what each kind changes in the leader's status, and when it is fulfilled.

Pure and level-triggered: an operation only sets wishes (``status``); the membership rules fulfil them; progress is
read off the state. So a successor needs nothing but what stands in etcd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from controlplane.coordinator.changes import running
from controlplane.coordinator.membership import held_now, instance_of, obstacle
from controlplane.coordinator.ranks import admitted, amended
from controlplane.coordinator.state import SECOND, Question
from schemas.operations import OperationKind, OperationState, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.coordinator.planning import Plan
    from controlplane.coordinator.state import State
    from schemas.operations import Operation
    from schemas.placement import Placement
    from schemas.records import Status
    from schemas.vocabulary import Rank

REMOVALS = (OperationKind.DRAIN, OperationKind.NOTICE, OperationKind.LEND, OperationKind.REPLACE)
ADMISSIONS = (OperationKind.REJOIN, OperationKind.RECLAIM, OperationKind.REPLACE)


@dataclass(frozen=True)
class Accepted:
    """The status that makes the operation's wish known."""

    status: Status
    placements: tuple[Placement, ...] = ()


@dataclass(frozen=True)
class Refused:
    """The operation would do harm or makes no sense; ``why`` has the figures."""

    why: str


def subjects(state: State, operation: Operation) -> tuple[Rank, ...]:
    """The ranks an operation is about: those named, and those on the host named."""
    on_host = [rank for rank, there in state.registrations.items() if operation.host and there.host == operation.host]
    return tuple(sorted({*operation.ranks, *on_host}))


def substitutes(operation: Operation) -> tuple[Rank, ...]:
    """``parameters["by"]`` of a replacement."""
    by = operation.parameters.get("by", ())
    return by if isinstance(by, tuple) else (by,) if isinstance(by, int) else ()


def accept(state: State, operation: Operation) -> Accepted | Refused | Question:
    """What an operation changes, why it is refused, or what has to be planned for it first; nothing is touched."""
    ranks, kind = subjects(state, operation), operation.kind
    needs_ranks = kind not in (OperationKind.SCALE, OperationKind.REBALANCE, OperationKind.PAUSE, OperationKind.RESUME)
    if needs_ranks and not ranks:
        return Refused(
            "no rank named" + (f": nothing is registered on host {operation.host!r}" if operation.host else "")
        )
    word = f"{operation.who}: {operation.reason}"
    match kind:
        case OperationKind.DRAIN | OperationKind.NOTICE | OperationKind.LEND | OperationKind.REPLACE:
            return _removal(state, operation, ranks, word)
        case OperationKind.CORDON:
            return Accepted(
                amended(state.status, [msgspec.structs.replace(state.view(r), cordoned=word) for r in ranks])
            )
        case OperationKind.UNCORDON | OperationKind.REJOIN | OperationKind.RECLAIM:
            return Accepted(admitted(state, state.status, ranks))
        case OperationKind.SCALE:
            return _scale(state, operation)
        case OperationKind.REBALANCE:
            return _rebalance(state, operation)
        case OperationKind.PAUSE:
            losses = bool(operation.parameters.get("losses"))
            return Accepted(msgspec.structs.replace(state.status, paused=word, pause_losses=losses))
        case OperationKind.RESUME:
            return Accepted(msgspec.structs.replace(state.status, paused="", pause_losses=False))


def _removal(state: State, operation: Operation, ranks: tuple[Rank, ...], word: str) -> Accepted | Refused:
    by = substitutes(operation)
    for rank in by:
        there = state.registrations.get(rank)
        if there is None or (rank not in state.members and not there.ready):
            return Refused(f"substitute rank {rank} is not ready: it must be registered and warm first")
    status = admitted(state, state.status, by)
    if operation.kind is not OperationKind.NOTICE:  # the host goes whether or not we agree
        gap = shortage(state, (state.members.keys() | set(by)) - set(ranks))
        if gap and state.members.keys() & set(ranks):
            return Refused(gap)
    lent = str(operation.parameters.get("to", "another user")) if operation.kind is OperationKind.LEND else ""
    views = {view.rank: view for view in status.ranks}
    return Accepted(
        amended(
            status,
            [
                msgspec.structs.replace(
                    views.get(rank, state.view(rank)),
                    cordoned=word,
                    lent_to=lent,
                    draining=word if rank in state.members or rank in state.joining else "",
                )
                for rank in ranks
            ],
        )
    )


def _scale(state: State, operation: Operation) -> Accepted | Refused:
    target = operation.parameters.get("target")
    if not isinstance(target, int) or isinstance(target, bool) or target < 0:
        return Refused(f"parameters.target is {target!r}: give the number of ranks wanted, 0 for all")
    status = msgspec.structs.replace(state.status, target=target, victims=operation.ranks)
    if target and target < len(state.members):
        order = sorted(state.members, key=lambda r: (r in operation.ranks, r))
        if gap := shortage(state, order[:target]):
            return Refused(gap)
    return Accepted(status)


def _rebalance(state: State, operation: Operation) -> Question | Refused:
    if state.live is None or state.record is None or state.record.committed.missing:
        return Refused("there is no complete placement to rebalance; wait until every expert has a replica")
    instance = instance_of(state, state.members, held=state.live)
    if instance is None:
        return Refused("no member is registered")
    budget = operation.parameters.get("max_bytes", 0)
    return Question(
        cause=operation.id,
        epoch=state.record.committed.epoch,
        instance=instance,
        live=state.live,
        max_bytes=int(budget) if isinstance(budget, int | float) else 0,
    )


def planned(state: State, operation: Operation, plan: Plan) -> Accepted:
    """What a rebalance changes, once it is known whereto."""
    status = msgspec.structs.replace(state.status, goal=plan.placement.digest, goal_cause=operation.id)
    return Accepted(status, placements=(plan.placement,))


def shortage(state: State, ranks: Iterable[Rank]) -> str:
    """Why ``ranks`` alone could not hold every expert, with the figures; empty when they can."""
    staying = sorted(ranks)
    held = held_now(state)
    if held is None:
        return ""
    instance = instance_of(state, staying, held=held)
    if instance is None or not staying:
        return "no rank would be left"
    room = sum(seat.slots for seat in instance.seats.values())
    if room < instance.experts:
        return (
            f"coverage would break: {len(staying)} ranks have {room} slots for {instance.experts} experts "
            f"({instance.experts - room} too few); add a rank first"
        )
    # A leaving rank still gives its weights while the change is prepared, so what it holds is available.
    lacking = instance.unavailable - _held_by(state)
    if lacking:
        return f"coverage would break: {len(lacking)} experts would have no source"
    return ""


def _held_by(state: State) -> frozenset[tuple[int, int]]:
    held = held_now(state)
    if held is None:
        return frozenset()
    absent = set(held.missing(range(held.max_ranks)))
    return frozenset((layer, expert) for layer in range(held.n_layers) for expert in range(held.n_experts)) - absent


def withdraw(state: State, operation: Operation) -> Status:
    """The status without what an unfinished operation wished."""
    ranks = subjects(state, operation)
    if operation.kind in REMOVALS:
        kept = [r for r in ranks if r in state.members]
        word = f"{operation.who}: {operation.reason}"
        mine = [r for r in kept if state.view(r).draining == word]
        return amended(
            state.status,
            [msgspec.structs.replace(state.view(r), draining="", cordoned="", lent_to="") for r in mine],
        )
    if operation.kind is OperationKind.SCALE:
        return msgspec.structs.replace(state.status, target=0, victims=())
    if operation.kind is OperationKind.REBALANCE and state.status.goal_cause == operation.id:
        return msgspec.structs.replace(state.status, goal="", goal_cause="")
    return state.status


def unfulfilled(state: State, operation: Operation) -> str:
    """What a running operation still waits for; empty when it is done."""
    members, moving = set(state.members), state.record is not None and state.record.preparing is not None
    ranks = set(subjects(state, operation))
    if operation.kind in REMOVALS and ranks & members:
        return f"ranks {_list(ranks & members)} to leave"
    arriving = set(substitutes(operation)) if operation.kind is OperationKind.REPLACE else ranks
    if operation.kind in ADMISSIONS and arriving - members:
        return "; ".join(_waiting(state, rank) for rank in sorted(arriving - members))
    if operation.kind is OperationKind.SCALE and state.status.target and len(members) != state.status.target:
        return f"{len(members)} of {state.status.target} ranks are active"
    if operation.kind is OperationKind.REBALANCE and state.status.goal_cause == operation.id:
        return "slots to move"
    if operation.kind in REMOVALS and moving:
        return "the flip to be prepared"
    if operation.kind in REMOVALS and running(state):
        return "the others to cross into the new epoch"
    return ""


def _waiting(state: State, rank: Rank) -> str:
    there = state.registrations.get(rank)
    return f"rank {rank}: " + ((obstacle(state, there) or "linking and loading") if there else "not registered yet")


def _list(ranks: Iterable[Rank]) -> str:
    return ", ".join(str(rank) for rank in sorted(ranks))


def safe(state: State, operation: Operation) -> tuple[Rank, ...]:
    """Ranks of a removal that no epoch names any more."""
    if operation.kind not in REMOVALS:
        return ()
    return tuple(r for r in subjects(state, operation) if r not in state.members and r not in state.joining)


def advanced(state: State, operation: Operation, to: OperationState, message: str) -> Operation:
    """``operation`` in its next state, its phases closed and opened to match."""
    phases = tuple(
        phase if phase.finished_unix_ns else msgspec.structs.replace(phase, finished_unix_ns=state.now)
        for phase in operation.phases
    )
    if not to.final:
        phases = (*phases, Phase(name=to.value, started_unix_ns=state.now))
    return msgspec.structs.replace(
        operation,
        state=to,
        message=message,
        phases=phases,
        epoch=state.record.committed.epoch if to is OperationState.DONE and state.record else operation.epoch,
        safe_to_terminate=safe(state, operation),
        finished_unix_ns=state.now if to.final else 0,
    )


def overdue(state: State, operation: Operation) -> bool:
    """Whether an operation has had its time."""
    allowed = operation.deadline_s or state.spec.operation_deadline_s
    begun = operation.phases[0].started_unix_ns if operation.phases else operation.created_unix_ns
    return state.reached(begun + int(allowed * SECOND))
