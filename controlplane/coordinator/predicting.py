"""Dry runs: what an operation would do to the state as it is now. Pure arithmetic; nothing is written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from controlplane.coordinator import operating
from controlplane.coordinator.cluster import headroom
from controlplane.coordinator.holdings import widened
from controlplane.coordinator.membership import held_now, instance_of, load_of, wanted
from controlplane.coordinator.staging import toward
from controlplane.coordinator.state import Question
from schemas.operations import OperationState, Prediction
from schemas.placement import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.coordinator.planning import Planner
    from controlplane.coordinator.state import State
    from schemas.operations import Operation
    from schemas.placement import Placement
    from schemas.vocabulary import Rank

MISSING_SHOWN = 64
FLIPS_LIMIT = 8


def predict(state: State, operation: Operation, *, planner: Planner) -> Prediction:
    """What ``operation`` would do now, by the very rules that would do it."""
    epoch = state.record.committed.epoch if state.record else 0
    now = tuple(sorted(state.members))
    answer = operating.accept(state, operation)
    if isinstance(answer, Question):
        plan = planner.plan(answer.instance, live=answer.live, max_bytes=answer.max_bytes)
        answer = operating.planned(state, operation, plan)
    if isinstance(answer, operating.Refused):
        return Prediction(epoch=epoch, members=now, allowed=False, refusal=answer.why)
    running = operating.advanced(state, operation, OperationState.RUNNING, "")
    wished = replace(
        state,
        status=answer.status,
        operations={**state.operations, operation.id: running},
        placements={**state.placements, **{p.digest: p for p in answer.placements}},
    )
    want = wanted(wished, automatic=False)
    target = _target(wished, want.members, planner=planner)
    before = state.live
    if target is None or before is None:
        return Prediction(epoch=epoch, members=want.members, allowed=True)
    slots, flips = _work(wished, target, want.members)
    instance = instance_of(wished, want.members, held=target)
    per_slot = instance.expert_bytes if instance else 0
    missing = target.missing(want.members)
    return Prediction(
        epoch=epoch,
        members=want.members,
        allowed=True,
        epochs=flips,
        slots_to_load=slots,
        bytes_to_load=slots * per_slot,
        pause_ms=pause_ms(state),
        prepare_s=slots * per_slot / bandwidth(state),
        balance_before=balance(state, before, now),
        balance_after=balance(state, target, want.members),
        missing=tuple(missing[:MISSING_SHOWN]),
        headroom_before=headroom(before, now),
        headroom_after=headroom(target, want.members),
    )


def _target(state: State, members: tuple[Rank, ...], *, planner: Planner) -> Placement | None:
    goal = state.placements.get(state.status.goal)
    if goal is not None:
        return goal
    held = held_now(state)
    instance = instance_of(state, members, held=held)
    if instance is None or held is None:
        return None
    if set(members) == state.members.keys():
        return state.live
    wide = widened(held, rows=instance.max_ranks, slots=instance.slots)
    return planner.repair(instance, held=wide, urgent=False).placement


def _work(state: State, target: Placement, members: tuple[Rank, ...]) -> tuple[int, int]:
    """Slots to write, and flips until ``target`` stands."""
    if state.live is None:
        return 0, 0
    live = widened(state.live, rows=target.max_ranks, slots=target.slots_per_rank)
    ranks = [rank for rank in members if rank < target.max_ranks]
    written = (target.slots != live.slots) & (target.slots != EMPTY)
    flips, reached = 0, live
    while reached != target and flips < FLIPS_LIMIT:
        nearer = toward(live=reached, target=target, members=state.members.keys() | set(members))
        flips += 1
        if nearer == reached:
            break
        reached = nearer
    return int(np.count_nonzero(written[:, ranks])), flips


def bandwidth(state: State) -> float:
    """Bytes per second that past loads reached, slowest rank by rank; 1 GB/s before anything was measured."""
    rates = [
        sum(load.bytes for load in ack.loads) / seconds
        for ack in state.acks.values()
        if (seconds := sum(load.seconds for load in ack.loads)) > 0
    ]
    return min((rate for rate in rates if rate > 0), default=1e9)


def pause_ms(state: State) -> float:
    """Median of the past planned commits' activation, ms: the one thing every rank waits for together."""
    past = [
        phase.seconds * 1e3
        for recovery in state.recoveries.values()
        if not recovery.unplanned and recovery.outcome == "done"
        for phase in recovery.phases
        if phase.name == "activate"
    ]
    return float(np.median(past)) if past else 0.0


def balance(state: State, placement: Placement, members: Iterable[Rank]) -> float:
    """Busiest rank's load ÷ mean over ranks, the worst layer's; by measured load, else as if all experts were equal."""
    ranks = [rank for rank in sorted(members) if rank < placement.max_ranks]
    if not ranks:
        return 0.0
    load = load_of(state, layers=placement.n_layers, experts=placement.n_experts)
    expert_load = np.ones((placement.n_layers, placement.n_experts)) if load is None else load
    worst = 0.0
    for layer in range(placement.n_layers):
        slots = placement.slots[layer, ranks].astype(np.intp)
        weights = np.where(slots == EMPTY, 0.0, placement.weights[layer, ranks].astype(float))
        experts = np.minimum(slots, placement.n_experts - 1)
        total = np.bincount(experts.ravel(), weights=weights.ravel(), minlength=placement.n_experts)
        share = np.divide(weights, total[experts], out=np.zeros_like(weights), where=weights > 0)
        per_rank = (share * expert_load[layer][experts]).sum(axis=1)
        worst = max(worst, float(per_rank.max() / per_rank.mean()) if per_rank.sum() else 0.0)
    return worst
