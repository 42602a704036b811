"""The coordinator's planner: ``controlplane.planner`` behind the coordinator's own question."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from controlplane.coordinator.planning import Plan, SimplePlanner
from controlplane.planner import Constraints, RankSpec, Topology, plan
from controlplane.planner.constraints import strongest
from controlplane.planner.layers import checked_load, empty, evolve
from controlplane.planner.planning import target
from schemas.policy import Survivability

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.coordinator.planning import Instance
    from schemas.placement import Placement


class LoadAwarePlanner:
    """Balance by measured load, survivability as far as the slots allow, and the fewest loads there can be.

    Where slots do not suffice for every expert it places as many as fit, heaviest first: the coordinator reports the
    rest as missing. Ranks that cannot read a checkpoint are rare (a damaged file); then the simple planner, which keeps
    orphans away from them, answers.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        self._threads = threads
        self._simple = SimplePlanner()

    def plan(self, instance: Instance, *, live: Placement | None = None, max_bytes: int = 0) -> Plan:
        """From nothing, or from ``live`` within ``max_bytes`` of movement (0: no limit)."""
        if instance.no_disk:
            return self._simple.plan(instance, live=live, max_bytes=max_bytes)
        topology, load, wish = self._ask(instance)
        if not _fits(instance, topology):
            held = live or empty(load, topology)
            return _best_effort(held, load, topology, wish)
        if live is None:
            answer = plan(topology, load, constraints=wish)
            return Plan(placement=answer.placement, reason=str(answer.explanation))
        if max_bytes:
            wish = replace(wish, movement_budget=max_bytes // max(instance.expert_bytes, 1))
        placement = target(topology, load, live=live, constraints=wish)
        moved = int(np.count_nonzero((placement.slots != live.slots) & (placement.weights > 0)))
        return Plan(
            placement=placement, reason=f"{moved} slots to fill for an even load on {len(instance.seats)} ranks"
        )

    def repair(self, instance: Instance, *, held: Placement, urgent: bool) -> Plan:
        """The fewest loads that cover every expert; unless ``urgent`` also survivability, and no slot left empty."""
        if instance.no_disk:
            return self._simple.repair(instance, held=held, urgent=urgent)
        topology, load, wish = self._ask(instance)
        if not urgent:
            wish = replace(wish, fill=True)
        placement, _ = evolve(held, load, topology, wish, improve=urgent, budget=0 if urgent else None)
        written = int(np.count_nonzero((placement.slots != held.slots) & (placement.weights > 0)))
        return Plan(placement=placement, reason=f"{written} slots to fill on {len(instance.seats)} ranks")

    def _ask(self, instance: Instance) -> tuple[Topology, npt.NDArray[np.float64], Constraints]:
        specs = tuple(
            RankSpec(rank=rank, host=seat.host, rack=seat.rack, slots=seat.slots, speed=seat.speed)
            for rank, seat in sorted(instance.seats.items())
        )
        topology = Topology(specs, max_ranks=instance.max_ranks, width=instance.slots)
        load = np.ones((instance.layers, instance.experts)) if instance.load is None else instance.load
        possible = strongest(topology, experts=instance.experts, at_most=instance.survivability)
        wish = Constraints(
            survivability=possible or Survivability.NONE, unavailable=instance.unavailable, threads=self._threads
        )
        return topology, checked_load(load), wish


def _fits(instance: Instance, topology: Topology) -> bool:
    return strongest(topology, experts=instance.experts, at_most=Survivability.NONE) is not None


def _best_effort(held: Placement, load: npt.NDArray[np.float64], topology: Topology, wish: Constraints) -> Plan:
    placement, uncovered = evolve(held, load, topology, wish, budget=0)
    return Plan(placement=placement, reason=f"{uncovered} experts without a slot on {len(topology.usable)} ranks")
