"""What the planner answers: a placement, what has to be written for it, and why it is as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from controlplane.planner.balance import Balance, imbalance, slot_bound
from schemas.placement import EMPTY
from schemas.policy import Survivability

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner.constraints import Constraints
    from controlplane.planner.topology import Topology
    from schemas.placement import Placement
    from schemas.vocabulary import Expert, Layer


@dataclass(frozen=True)
class Explanation:
    """A decision with its reason and its figures.

    Attributes:
        reason: one sentence.
        writes: slots to fill, over all layers.
        needed: of these, what coverage alone takes; nothing can do with fewer.
        balance: max ÷ mean pressure that the placement gives for the load it was planned for.
        bound: max ÷ mean that no placement on these slots can beat.
        exposed: (layer, expert) pairs that the loss the constraints name would leave without a live copy.
        uncovered: (layer, expert) pairs without any copy in this placement.
    """

    reason: str
    writes: int
    needed: int
    balance: Balance
    bound: Balance
    exposed: int
    uncovered: int

    def __str__(self) -> str:
        return (
            f"{self.reason}: {self.writes} slots to fill ({self.needed} for coverage), "
            f"balance {self.balance} where {self.bound} is possible"
            + (f", {self.exposed} experts exposed to one loss" if self.exposed else "")
            + (f", {self.uncovered} experts without a copy" if self.uncovered else "")
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement and the way there.

    Attributes:
        placement: what every slot holds and how experts are split over their replicas.
        before: what is in memory now; None when nothing is.
        topology: the ranks it was made for.
        load: [layers, experts] it was made for.
        survivability: which loss it was asked to survive.
        reason: one sentence.
        unavailable: (layer, expert) pairs that no slot was wanted for.
    """

    placement: Placement
    before: Placement | None
    topology: Topology
    load: npt.NDArray[np.float64]
    survivability: Survivability
    reason: str
    unavailable: frozenset[tuple[Layer, Expert]]

    @cached_property
    def fills(self) -> npt.NDArray[np.intp]:
        """[n, 4] (layer, rank, slot, expert): what has to be loaded, in that order."""
        return fills(self.before, self.placement)

    @cached_property
    def needed(self) -> int:
        """(layer, expert) pairs in no slot of a usable rank before: coverage cannot do with fewer writes."""
        if self.before is None:
            return self.load.size - len(self.unavailable)
        usable = self.topology.capacity[None, :, None] > np.arange(self.topology.width)
        slots = np.where(usable, self.before.slots, np.uint16(EMPTY))
        held = replace(self.before, slots=slots, weights=np.ones_like(slots))
        orphans = presence(held, self.topology.domains(Survivability.RANK)) == 0
        return int(orphans.sum()) - sum(bool(orphans[layer, expert]) for layer, expert in self.unavailable)

    @cached_property
    def explanation(self) -> Explanation:
        """Computed when asked for, so that recovery does not wait for it."""
        held = presence(self.placement, self.topology.domains(self.survivability))
        exposed = 0 if self.survivability is Survivability.NONE else int((held == 1).sum())
        return Explanation(
            reason=self.reason,
            writes=len(self.fills),
            needed=self.needed,
            balance=Balance.of(imbalance(self.placement, self.load, self.topology)),
            bound=Balance.of(slot_bound(self.load, self.topology)),
            exposed=exposed,
            uncovered=int((held == 0).sum()),
        )


def fills(before: Placement | None, after: Placement) -> npt.NDArray[np.intp]:
    """[n, 4] (layer, rank, slot, expert) of the slots whose content changes, in that order."""
    changed = after.slots != EMPTY
    if before is not None:
        changed &= after.slots != before.slots
    where = np.argwhere(changed)
    return np.column_stack([where, after.slots[changed].astype(np.intp)])


def presence(placement: Placement, domains: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """[layers, experts] failure domains in which the expert has a routed copy."""
    layers, experts = placement.n_layers, placement.n_experts
    layer, rank, slot = np.nonzero((placement.slots != EMPTY) & (placement.weights > 0) & (domains >= 0)[None, :, None])
    count = int(domains.max(initial=0)) + 1
    cell = (layer * experts + placement.slots[layer, rank, slot]) * count + domains[rank]
    there = np.zeros(layers * experts * count, dtype=np.bool_)
    there[cell] = True
    domains_of: npt.NDArray[np.int64] = there.reshape(layers, experts, count).sum(axis=2)
    return domains_of


def explain_target(constraints: Constraints) -> str:
    """The constraints in words, for the reason of a plan."""
    words = [f"{constraints.survivability} survivability"] if constraints.copies > 1 else []
    if constraints.movement_budget is not None:
        words.append(f"{constraints.movement_budget} more writes allowed")
    if constraints.pinned:
        words.append(f"{len(constraints.pinned)} pins")
    return f" ({', '.join(words)})" if words else ""
