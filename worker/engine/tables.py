"""From a placement and its members to the routing table that the data plane reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from native import _native
from schemas.placement import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from schemas.placement import Placement
    from schemas.vocabulary import Member, Rank, Stamp


def build_table(placement: Placement, *, stamp: Stamp, members: Iterable[Member]) -> _native.Table:
    """Replica lists of every (layer, expert), over the members' routed slots only.

    The native side knows a version by its stamp and calls that its epoch.
    """
    incarnations = [0] * placement.max_ranks
    for member in members:
        incarnations[member.rank] = member.incarnation
    active = [rank for rank, incarnation in enumerate(incarnations) if incarnation]
    counts, ranks, slots, weights = [], [], [], []
    for layer in range(placement.n_layers):
        where, slot = np.nonzero((placement.slots[layer, active] != EMPTY) & (placement.weights[layer, active] > 0))
        rank = np.asarray(active, dtype=np.uint16)[where]
        expert = placement.slots[layer, rank, slot]
        order = np.lexsort((slot, rank, expert))
        counts.append(np.bincount(expert, minlength=placement.n_experts))
        ranks.append(rank[order])
        slots.append(slot[order].astype(np.uint16))
        weights.append(placement.weights[layer, rank, slot][order])
    return _native.Table(
        epoch=stamp,
        active=active,
        incarnations=incarnations,
        offsets=_offsets(np.stack(counts)),
        ranks=np.concatenate(ranks),
        slots=np.concatenate(slots),
        weights=np.concatenate(weights),
    )


def _offsets(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
    """[layers, experts] replica counts → [layers, experts + 1] positions in the flat lists."""
    ends = np.cumsum(counts).reshape(counts.shape)
    starts = np.concatenate(([0], ends[:-1, -1]))
    return np.column_stack([starts, ends]).astype(np.int32)


def routed_slots(placement: Placement, rank: Rank) -> npt.NDArray[np.bool_]:
    """Slots of ``rank`` that a table of this placement may send tokens to: bool [layers, slots]."""
    routed: npt.NDArray[np.bool_] = (placement.slots[:, rank] != EMPTY) & (placement.weights[:, rank] > 0)
    return routed
