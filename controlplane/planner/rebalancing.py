"""From one placement to another while it serves: steps that are each valid by themselves.

A slot that the live table routes to is never written. A slot that shall change is first taken out of the routing (its
weight becomes 0, which costs nothing) and written one epoch later, when no rank reads it any more. Whatever cannot be
reached that way (two experts that would have to trade places with no room to spare) is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from controlplane.planner.balance import Balance, imbalance
from controlplane.planner.layers import checked_live, checked_load, split
from controlplane.planner.plan import fills, presence
from controlplane.planner.planning import DEFAULT, target
from schemas.placement import EMPTY, Placement
from schemas.policy import Survivability

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner.constraints import Constraints
    from controlplane.planner.topology import Topology


@dataclass(frozen=True, eq=False)
class Step:
    """One planned epoch.

    Attributes:
        placement: what to publish; slots of weight 0 are loaded but not routed to.
        fills: [n, 4] (layer, rank, slot, expert) to load before the flip; no live table routes to these slots.
        released: slots taken out of the routing, to be written by the next step.
    """

    placement: Placement
    fills: npt.NDArray[np.intp]
    released: int


@dataclass(frozen=True, eq=False)
class Transition:
    """Steps in order; empty when the live placement is as good as the constraints let it be.

    Attributes:
        steps: each valid after the one before.
        before: max ÷ mean of the live placement with its present weights.
        after: max ÷ mean when all steps are done.
        abandoned: slots that could not be changed without writing one in use.
    """

    steps: tuple[Step, ...]
    before: Balance
    after: Balance
    abandoned: int

    @property
    def writes(self) -> int:
        """Slots that are loaded, over all steps."""
        return sum(len(step.fills) for step in self.steps)

    def __str__(self) -> str:
        return f"{len(self.steps)} steps, {self.writes} slots to fill, balance {self.before} → {self.after}"


def rebalance(
    topology: Topology,
    load: npt.ArrayLike,
    *,
    live: Placement,
    constraints: Constraints = DEFAULT,
) -> Transition:
    """Steps from the live placement toward the best one within the movement budget.

    Also the way to drain (cordon the rank in ``topology``) and to take in a rank that has joined with empty slots.

    Args:
        topology: live ranks; cordoned ones give up what they hold by the last step.
        load: [layers, experts] tokens, any unit.
        live: the committed placement.
        constraints: of the target; survivability is also kept at every step where ``live`` has it.

    Raises:
        InfeasibleError: the target cannot be had; nothing needs to be undone.
        InvalidInputError: an argument that no plan could answer.
    """
    demand = checked_load(load)
    checked_live(live, demand, topology)
    serving = replace(topology, ranks=tuple(replace(spec, cordoned=False) for spec in topology.ranks))
    steps, abandoned = _walk(live, demand, topology, serving, constraints)
    table = steps[-1].placement if steps else live
    if not covers(table, topology, survivability=Survivability.NONE):
        # Improving moves stood in the way of emptying a cordoned rank: coverage alone can always be walked.
        more, abandoned = _walk(table, demand, topology, serving, replace(constraints, movement_budget=0))
        steps += more
    before = imbalance(live, demand, serving)
    if not steps:
        steps = _resplit(live, demand, serving, constraints, before)
    final = steps[-1].placement if steps else live
    return Transition(
        steps=tuple(steps),
        before=Balance.of(before),
        after=Balance.of(imbalance(final, demand, topology)),
        abandoned=abandoned,
    )


def _walk(
    live: Placement,
    load: npt.NDArray[np.float64],
    topology: Topology,
    serving: Topology,
    constraints: Constraints,
) -> tuple[list[Step], int]:
    goal = target(topology, load, live=live, constraints=constraints)
    walk = _Walk(live=live, target=goal, load=load, topology=serving, constraints=constraints)
    return walk.steps(), walk.abandoned


def _resplit(
    live: Placement,
    load: npt.NDArray[np.float64],
    topology: Topology,
    constraints: Constraints,
    before: npt.NDArray[np.float64],
) -> list[Step]:
    """New weights alone, where they help: nothing is loaded for them."""
    same = split(live.slots, live.weights > 0, load, topology, constraints)
    if np.all(imbalance(same, load, topology) > before * (1 - constraints.tolerance)):
        return []
    return [Step(placement=same, fills=fills(live, same), released=0)]


class _Walk:
    """State of the walk: the table that the step before published.

    Invariant: ``routed`` slots are never written; every expert that was covered stays covered.
    """

    def __init__(
        self,
        *,
        live: Placement,
        target: Placement,
        load: npt.NDArray[np.float64],
        topology: Topology,
        constraints: Constraints,
    ) -> None:
        self.load = load
        self.topology = topology
        self.constraints = constraints
        self.domains = topology.domains(constraints.survivability)
        here = topology.capacity[None, :, None] > np.arange(topology.width)
        self.table = np.where(here, live.slots, EMPTY).astype(np.uint16)
        self.routed = here & (live.weights > 0) & (live.slots != EMPTY)
        self.target = target
        self.wanted = (target.slots != EMPTY) & (target.weights > 0)
        self.live = live
        self.abandoned = 0

    def steps(self) -> list[Step]:
        """At most a few: most walks are one release and one load."""
        steps: list[Step] = []
        before = self.live
        while True:
            pending = self.wanted & (self.table != self.target.slots)
            loads = pending & ~self.routed
            self.table = np.where(loads, self.target.slots, self.table)
            self.routed |= self.wanted & (self.table == self.target.slots)
            leaving = self.routed & ~(self.wanted & (self.table == self.target.slots))
            released = self._release(leaving)
            if not loads.any() and not released:
                break
            placement = split(self.table, self.routed, self.load, self.topology, self.constraints)
            steps.append(Step(placement=placement, fills=fills(before, placement), released=released))
            before = placement
        self.abandoned = int(np.count_nonzero(self.wanted & (self.table != self.target.slots)))
        return steps

    def _release(self, leaving: npt.NDArray[np.bool_]) -> int:
        """Take slots out of the routing, as many as coverage and survivability let go in one step."""
        kept = self.routed & ~leaving
        held = presence(self._as_placement(kept), self.domains)
        now = presence(self._as_placement(self.routed), self.domains)
        enough = np.minimum(now, self.constraints.copies)
        released = 0
        for layer, rank, slot in np.argwhere(leaving).tolist():
            expert = int(self.table[layer, rank, slot])
            if held[layer, expert] < enough[layer, expert]:
                # It has to stay for now: from here on it counts as kept.
                kept[layer, rank, slot] = True
                held[layer, expert] = self._domains_of(kept, layer, expert)
                continue
            self.routed[layer, rank, slot] = False
            released += 1
        return released

    def _domains_of(self, kept: npt.NDArray[np.bool_], layer: int, expert: int) -> int:
        ranks = np.nonzero(kept[layer] & (self.table[layer] == expert))[0]
        return len(set(self.domains[ranks].tolist()))

    def _as_placement(self, routed: npt.NDArray[np.bool_]) -> Placement:
        return Placement(slots=self.table.copy(), weights=routed.astype(np.uint16), n_experts=self.live.n_experts)


def is_valid_step(live: Placement, step: Placement) -> bool:
    """Whether a planned flip from ``live`` to ``step`` writes no slot that ``live`` routes to."""
    in_use = (live.weights > 0) & (live.slots != EMPTY)
    return not bool(np.any(in_use & (step.slots != live.slots) & (step.slots != EMPTY)))


def covers(placement: Placement, topology: Topology, *, survivability: Survivability) -> bool:
    """Whether every expert has a routed copy, and keeps one after any loss that ``survivability`` names."""
    held = presence(placement, topology.domains(survivability))
    return bool(held.min() >= (1 if survivability is Survivability.NONE else 2))
