"""What the coordinator asks of a planner, and the simplest planner that is correct.

A planner decides *what* each slot shall hold. *From where* it is loaded follows from the published record
(``schemas.loads``), and *in how many flips* from the rule that a slot in use is never written (``staging``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from schemas.placement import EMPTY, Placement

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from schemas.policy import Survivability
    from schemas.vocabulary import Expert, Layer, Rank


@dataclass(frozen=True)
class Seat:
    """One rank as a planner sees it."""

    host: str
    rack: str
    slots: int
    """Usable slots per layer; the placement may be wider."""
    speed: float = 1.0
    """Relative; a slow rank is given a smaller figure."""


@dataclass(frozen=True)
class Instance:
    """The model's shape and the ranks that may be used, i.e. those that are members afterwards."""

    layers: int
    experts: int
    max_ranks: int
    slots: int
    """Width of the placement: slots of the widest rank."""
    expert_bytes: int
    seats: Mapping[Rank, Seat]
    survivability: Survivability
    load: npt.NDArray[np.float64] | None = field(default=None, compare=False)
    """[layers, experts] tokens routed, any unit; None when nothing was measured."""
    unavailable: frozenset[tuple[Layer, Expert]] = frozenset()
    """Experts that have neither a live copy nor any other source: no slot may be given to them."""
    no_disk: frozenset[Rank] = frozenset()
    """Ranks that cannot read a checkpoint: an expert that only a checkpoint can give belongs elsewhere."""


@dataclass(frozen=True)
class Plan:
    """A planner's answer: complete unless ``instance.unavailable`` or the number of slots forbids it."""

    placement: Placement
    reason: str


class Planner(Protocol):
    """Pure: equal arguments give equal plans, so that a successor finds what its predecessor planned."""

    def plan(self, instance: Instance, *, live: Placement | None = None, max_bytes: int = 0) -> Plan:
        """The best placement: from nothing (``live`` is None), or within ``max_bytes`` of movement (0: no limit)."""
        ...

    def repair(self, instance: Instance, *, held: Placement, urgent: bool) -> Plan:
        """The placement that restores coverage with the least movement.

        Args:
            instance: ranks that remain or join.
            held: what every slot is known to hold now, uncertain slots empty; joiners' slots are empty. Weight 0 marks
                what the live table does not route to: such a slot can be written without another flip before.
            urgent: only what validity needs (an unplanned loss); else empty slots are filled with more copies too.
        """
        ...


class SimplePlanner:
    """Fewest copies first, slot by slot over the ranks. No load model, no search: a fallback."""

    def plan(self, instance: Instance, *, live: Placement | None = None, max_bytes: int = 0) -> Plan:
        """From nothing: fill every slot in turn. With a live placement: only its empty slots, so that nothing moves."""
        if live is None:
            nothing = np.full((instance.layers, instance.max_ranks, instance.slots), EMPTY, dtype=np.uint16)
            filled = _filled(instance, nothing, urgent=False)
            return Plan(placement=filled, reason=f"{len(instance.seats)} ranks filled in turn")
        changed = self.repair(instance, held=live, urgent=False)
        moved = int(np.count_nonzero((changed.placement.slots != live.slots) & (changed.placement.slots != EMPTY)))
        if max_bytes and moved * instance.expert_bytes > max_bytes:
            return Plan(placement=live, reason=f"{moved} slots to fill are over the budget of {max_bytes} bytes")
        return changed

    def repair(self, instance: Instance, *, held: Placement, urgent: bool) -> Plan:
        """Keep every copy; give orphaned experts the empty slots first, then those of the most copied experts."""
        members = sorted(instance.seats)
        slots = np.full_like(held.slots, EMPTY)
        for rank in members:
            usable = instance.seats[rank].slots
            slots[:, rank, :usable] = held.slots[:, rank, :usable]
        placement = _filled(instance, slots, urgent=urgent, idle=held.weights == 0)
        written = int(np.count_nonzero((placement.slots != held.slots) & (placement.slots != EMPTY)))
        return Plan(placement=placement, reason=f"{written} slots to fill on {len(members)} ranks")


def _filled(
    instance: Instance, slots: npt.NDArray[np.uint16], *, urgent: bool, idle: npt.NDArray[np.bool_] | None = None
) -> Placement:
    """``slots`` with every available expert placed at least once, and empty slots filled unless ``urgent``."""
    members = sorted(instance.seats)
    wanted = np.arange(instance.experts)
    for layer in range(instance.layers):
        table = slots[layer]
        count = np.bincount(table[members][table[members] != EMPTY].ravel(), minlength=instance.experts)
        orphans = [int(e) for e in wanted[count == 0] if (layer, int(e)) not in instance.unavailable]
        if orphans or not urgent:
            rest = np.zeros_like(table, dtype=bool) if idle is None else idle[layer]
            _fill_layer(instance, table, count, orphans, idle=rest, urgent=urgent)
    return Placement(slots=slots, weights=np.where(slots == EMPTY, 0, 1).astype(np.uint16), n_experts=instance.experts)


def _fill_layer(
    instance: Instance,
    table: npt.NDArray[np.uint16],
    count: npt.NDArray[np.intp],
    orphans: list[Expert],
    *,
    idle: npt.NDArray[np.bool_],
    urgent: bool,
) -> None:
    free = [
        (slot, rank)
        for rank, seat in sorted(instance.seats.items())
        for slot in range(seat.slots)
        if table[rank, slot] == EMPTY
    ]
    free.sort()  # slot by slot over all ranks: neighbouring experts land on different ranks
    for expert in orphans:
        where = next((place for place in free if place[1] not in instance.no_disk), None)
        where = where or next(iter(free), None) or _spare(instance, table, count, idle)
        if where is None:
            return  # fewer slots than experts: what is left over is reported missing
        if where in free:
            free.remove(where)
        slot, rank = where
        if table[rank, slot] != EMPTY:
            count[table[rank, slot]] -= 1
        table[rank, slot] = expert
        count[expert] += 1
    if urgent:
        return
    for slot, rank in free:
        here = table[rank]
        for expert in np.argsort(count, kind="stable").tolist():
            if count[expert] and expert not in here:  # a copy needs a source; a second one on one rank survives nothing
                table[rank, slot] = expert
                count[expert] += 1
                break


def _spare(
    instance: Instance, table: npt.NDArray[np.uint16], count: npt.NDArray[np.intp], idle: npt.NDArray[np.bool_]
) -> tuple[int, Rank] | None:
    """A slot whose expert has other copies: without traffic first, then the most copied, where a disk can be read."""
    places = [
        ((bool(idle[rank, slot]), rank not in instance.no_disk, int(count[table[rank, slot]])), -rank, -slot)
        for rank, seat in instance.seats.items()
        for slot in range(seat.slots)
        if table[rank, slot] != EMPTY and count[table[rank, slot]] > 1
    ]
    if not places:
        return None
    _, rank, slot = max(places)
    return -slot, -rank
