"""What a plan must keep to, and the refusal of what it cannot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controlplane.planner.errors import InfeasibleError, InvalidInputError
from schemas.policy import Survivability

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner.topology import Topology
    from schemas.vocabulary import Expert, Layer, Rank

ORDER = (Survivability.NONE, Survivability.RANK, Survivability.HOST)
"""Weakest first."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A copy that must be on a rank, in one layer or (``layer`` is None) in all."""

    expert: Expert
    rank: Rank
    layer: Layer | None = None


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """No rank ever holds two copies of one expert: that is not a choice, it would survive nothing.

    Attributes:
        survivability: which single loss must leave every expert a live copy.
        movement_budget: slots, over all layers, that may be written beyond what coverage needs; None for no limit.
        pinned: copies that must be where they are said to be.
        unavailable: (layer, expert) pairs that have no source anywhere: no slot is given to them.
        tolerance: distance from an even load that is good enough to stop looking, as a share of the mean.
        fill: use every slot, even when the balance does not need it: more copies, fewer loads at the next loss.
        threads: native threads; None for one per processor, at most four.
    """

    survivability: Survivability = Survivability.NONE
    movement_budget: int | None = None
    pinned: tuple[Pin, ...] = ()
    unavailable: frozenset[tuple[Layer, Expert]] = frozenset()
    tolerance: float = 2e-3
    fill: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.movement_budget is not None and self.movement_budget < 0:
            raise InvalidInputError(f"movement_budget={self.movement_budget}: must be 0 or more, or None for no limit")
        if not 0 < self.tolerance < 1:
            raise InvalidInputError(f"tolerance={self.tolerance}: must be between 0 and 1")

    @property
    def copies(self) -> int:
        """Failure domains that each expert must be in."""
        return 1 if self.survivability is Survivability.NONE else 2


def pins(constraints: Constraints, *, layers: int, topology: Topology, experts: int) -> npt.NDArray[np.uint8] | None:
    """Uint8 [layers, max_ranks, experts] with 1 for each pinned copy; None when nothing is pinned.

    Raises:
        InvalidInputError: a pin names a layer, rank or expert that is not there.
        InfeasibleError: more pins on a rank than it has slots.
    """
    if not constraints.pinned:
        return None
    table = np.zeros((layers, topology.max_ranks, experts), dtype=np.uint8)
    usable = {spec.rank: spec for spec in topology.usable}
    for pin in constraints.pinned:
        if pin.rank not in usable:
            raise InvalidInputError(f"{pin}: rank {pin.rank} is not usable (gone or cordoned); unpin or bring it back")
        if not 0 <= pin.expert < experts or (pin.layer is not None and not 0 <= pin.layer < layers):
            raise InvalidInputError(f"{pin}: the model has {layers} layers of {experts} experts")
        table[slice(None) if pin.layer is None else pin.layer, pin.rank, pin.expert] = 1
    fullest = table.sum(axis=2).max(axis=0)
    for rank, spec in usable.items():
        if int(fullest[rank]) > spec.slots:
            raise InfeasibleError(
                f"{int(fullest[rank])} pinned experts on rank {rank}",
                needed=int(fullest[rank]),
                present=spec.slots,
                nearest=Survivability.NONE,
                remedy=f"at most {spec.slots} can be pinned there",
            )
    return table


def unobtainable(constraints: Constraints, *, layers: int) -> int:
    """Experts that no slot is wanted for: of the layer with the fewest, so that no refusal is premature."""
    by_layer = Counter(layer for layer, _ in constraints.unavailable)
    return min(by_layer[layer] for layer in range(layers))


def counted_slots(topology: Topology, *, experts: int, survivability: Survivability) -> int:
    """Slots that count: a second copy of an expert in one failure domain adds nothing."""
    domains = topology.domains(survivability)
    sizes: Counter[int] = Counter()
    for spec in topology.usable:
        sizes[int(domains[spec.rank])] += min(spec.slots, experts)
    return sum(min(size, experts) for size in sizes.values())


def possible(topology: Topology, *, experts: int, survivability: Survivability) -> bool:
    """Whether some placement has every expert in as many failure domains as asked (one domain takes each once)."""
    copies = 1 if survivability is Survivability.NONE else 2
    return counted_slots(topology, experts=experts, survivability=survivability) >= copies * experts


def strongest(topology: Topology, *, experts: int, at_most: Survivability) -> Survivability | None:
    """The strongest survivability these ranks can give, up to ``at_most``; None when not even one copy of each fits."""
    wanted = ORDER[: ORDER.index(at_most) + 1]
    return next((s for s in reversed(wanted) if possible(topology, experts=experts, survivability=s)), None)


def require(topology: Topology, *, experts: int, survivability: Survivability) -> None:
    """Refuse what these ranks cannot give.

    Raises:
        InfeasibleError: with the strongest survivability that is possible.
    """
    if possible(topology, experts=experts, survivability=survivability):
        return
    present = counted_slots(topology, experts=experts, survivability=survivability)
    nearest = strongest(topology, experts=experts, at_most=ORDER[-1])
    if nearest is None:
        per_rank = max((spec.slots for spec in topology.usable), default=0)
        more = -(-(experts - topology.slots) // per_rank) if per_rank else experts
        raise InfeasibleError(
            f"one copy of each of {experts} experts",
            needed=experts,
            present=topology.slots,
            nearest=None,
            remedy=f"bring back {more} rank(s) of {per_rank} slots, or raise slots_per_rank",
        )
    single = "one failure domain alone holds every slot; " if present < topology.slots else ""
    raise InfeasibleError(
        f"{survivability} survivability",
        needed=2 * experts,
        present=present,
        nearest=nearest,
        remedy=f"{single}{nearest} survivability is possible",
    )
