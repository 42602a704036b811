"""Which ranks should be members, and what stands in the way: pure functions of the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controlplane.coordinator.holdings import holdings, only
from controlplane.coordinator.planning import Instance, Seat
from controlplane.coordinator.state import SECOND, Kind, once
from schemas.placement import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controlplane.coordinator.state import State
    from schemas.placement import Placement
    from schemas.records import Registration
    from schemas.vocabulary import Expert, Layer, Rank

    Load = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Wanted:
    """The membership to move to; ``leaving`` says why each rank that goes does."""

    members: tuple[Rank, ...]
    joining: tuple[Rank, ...]
    leaving: Mapping[Rank, str]


def obstacle(state: State, registration: Registration) -> str:
    """Why a registered process may not become a member now; empty when it may."""
    view = state.view(registration.rank)
    if registration.incarnation <= view.fenced:
        return f"incarnation {registration.incarnation} was excluded: only a new process can return"
    if view.cordoned:
        return f"cordoned: {view.cordoned}"
    if registration.leaving:
        return f"leaving: {registration.leaving}"
    if not registration.ready:
        return "its engine is starting"
    if not state.reached(view.retry_unix_ns):
        return f"backing off after {len(view.losses_unix_ns)} losses"
    return _misfit(state, registration)


def _misfit(state: State, registration: Registration) -> str:
    """Why its model is not the instance's."""
    reference = model(state)
    if reference is None or reference.rank == registration.rank:
        return ""
    for field in ("layers", "experts", "expert_bytes", "model"):
        ours, theirs = getattr(reference, field), getattr(registration, field)
        if ours != theirs:
            return f"{field} is {theirs!r}, the instance's is {ours!r}: give it the same model"
    if registration.checkpoint and reference.checkpoint and registration.checkpoint != reference.checkpoint:
        return f"its checkpoint is {registration.checkpoint[:12]}, the instance's {reference.checkpoint[:12]}"
    return ""


@once
def model(state: State) -> Registration | None:
    """The registration whose model is the instance's: that of the lowest member, else of the lowest ready rank.

    A member whose engine has just died is registered without a model until its next engine speaks: it says nothing.
    """
    known = {rank: there for rank, there in state.registrations.items() if there.experts}
    members = [
        rank for rank, incarnation in state.members.items() if rank in known and known[rank].incarnation == incarnation
    ]
    ready = [rank for rank, there in known.items() if there.ready]
    ranks = members or ready
    return known[min(ranks)] if ranks else None


def candidates(state: State) -> list[Rank]:
    """Ranks that are not members and may become one now."""
    return sorted(
        rank for rank, there in state.registrations.items() if rank not in state.members and not obstacle(state, there)
    )


def wanted(state: State, *, automatic: bool) -> Wanted:
    """The membership that operators and processes ask for.

    Args:
        state: what is known.
        automatic: whether ranks may come by themselves (not paused).
    """
    members = set(state.members)
    leaving = {rank: why for rank in sorted(members) if (why := reason_to_leave(state, rank))}
    joining = [rank for rank in candidates(state) if automatic or asked_to_join(state, rank)]
    staying = sorted(members - leaving.keys())
    target = state.status.target
    if target and len(staying) + len(joining) > target:
        order = sorted([*staying, *joining], key=lambda r: (r in state.status.victims, r not in members, r))
        chosen = set(order[:target])
        surplus = [rank for rank in staying if rank not in chosen]
        leaving |= dict.fromkeys(surplus, f"scaled to {target} ranks")
        staying = [rank for rank in staying if rank in chosen]
        joining = [rank for rank in joining if rank in chosen]
    return Wanted(members=tuple(sorted([*staying, *joining])), joining=tuple(joining), leaving=leaving)


def reason_to_leave(state: State, rank: Rank) -> str:
    """Why a member should go in a planned change, by its own wish or an operator's; empty when it should stay."""
    there = state.registrations.get(rank)
    return state.view(rank).draining or (there.leaving if there else "")


def asked_to_join(state: State, rank: Rank) -> bool:
    """Whether a running operation waits for ``rank``: that is done even while automatic recovery is paused."""
    return any(
        rank in (operation.ranks if operation.kind in ("rejoin", "reclaim") else _by(operation.parameters))
        for operation in state.operations.values()
        if operation.state == "running"
    )


def _by(parameters: Mapping[str, object]) -> tuple[Rank, ...]:
    by = parameters.get("by", ())
    return by if isinstance(by, tuple) else ()


@once
def held_now(state: State) -> Placement | None:
    """What members' slots hold; a rank whose process has changed holds nothing."""
    if state.record is None:
        return None
    held = holdings(state.record, placements=state.placements, acks=state.acks)
    return held and only(held, [rank for rank in state.members if rank < held.max_ranks])


def instance_of(state: State, ranks: Iterable[Rank], *, held: Placement | None) -> Instance | None:
    """The planner's picture of ``ranks``; None while nobody has said what the model is."""
    shape = model(state)
    if shape is None or not shape.experts:
        return None
    members = sorted(ranks)
    known = _seats(state)
    seats = {rank: known[rank] for rank in members if rank in known}
    width = max([seat.slots for seat in seats.values()] + ([held.slots_per_rank] if held else []) + [1])
    rows = max([rank + 1 for rank in members] + [state.spec.max_ranks] + ([held.max_ranks] if held else []))
    return Instance(
        layers=shape.layers,
        experts=shape.experts,
        max_ranks=rows,
        slots=width,
        expert_bytes=shape.expert_bytes,
        seats=seats,
        survivability=state.spec.survivability,
        load=load_of(state, layers=shape.layers, experts=shape.experts),
        unavailable=unavailable(state, seats, held=held, layers=shape.layers, experts=shape.experts),
        no_disk=_diskless(state).intersection(seats),
    )


@once
def _seats(state: State) -> dict[Rank, Seat]:
    return {
        rank: Seat(host=there.host, rack=there.rack, slots=there.slots, speed=there.speed * state.view(rank).slow)
        for rank, there in state.registrations.items()
    }


@once
def _diskless(state: State) -> frozenset[Rank]:
    return frozenset(rank for rank in state.registrations if not can_read_disk(state, rank))


def can_read_disk(state: State, rank: Rank) -> bool:
    """Whether the rank has a checkpoint, and has not failed to find something in it since it last registered."""
    there = state.registrations.get(rank)
    if there is None or not there.checkpoint:
        return False
    registered = state.revisions.get((Kind.RANK, rank), 0)
    return not any(
        ack.rank == rank
        and state.revisions.get((Kind.ACK, name), 0) > registered
        and not state.reached(ack.finished_unix_ns + int(state.spec.source_retry_s * SECOND))
        for name, ack in state.failed_loads.items()
    )


def unavailable(
    state: State, seats: Mapping[Rank, Seat], *, held: Placement | None, layers: int, experts: int
) -> frozenset[tuple[Layer, Expert]]:
    """Experts without any source: no live copy, no backup, no rank that can read the checkpoint."""
    if seats.keys() - _diskless(state):
        return frozenset()
    present = np.zeros((layers, experts + 1), dtype=bool)
    if held is not None:
        for rank in seats:
            if rank < held.max_ranks:
                row = np.where(held.slots[:, rank] == EMPTY, experts, held.slots[:, rank]).astype(np.intp)
                np.put_along_axis(present, row, values=True, axis=1)
    for backup in state.backups.values():
        for layer, expert in backup.experts:
            present[layer, expert] = True
    return frozenset((int(layer), int(expert)) for layer, expert in np.argwhere(~present[:, :experts]))


def load_of(state: State, *, layers: int, experts: int) -> Load | None:
    """[layers, experts] sum over the ranks' measurements; None when there is none."""
    total = _measured(state).get((layers, experts))
    return total if total is not None and total.any() else None


@once
def _measured(state: State) -> dict[tuple[int, int], Load]:
    """Sums by shape; ranks of another model measure another one."""
    totals: dict[tuple[int, int], Load] = {}
    for load in state.loads.values():
        shape = (load.layers, load.experts)
        total = totals.setdefault(shape, np.zeros(shape))
        total += np.frombuffer(load.tokens, dtype="<f2").reshape(shape)
    return totals
