"""The next flip on the way to a wanted placement: a slot that the live table references is never written (invariant 1).

A slot in use that shall hold another expert is first taken out of the routing in one epoch and written in the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from controlplane.coordinator.holdings import widened
from schemas.placement import EMPTY, Placement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schemas.vocabulary import Rank


def toward(*, live: Placement, target: Placement, members: Iterable[Rank]) -> Placement:
    """The placement nearest to ``target`` that one flip from ``live`` may reach.

    Args:
        live: the committed table.
        target: the placement wanted.
        members: active ranks afterwards.

    Returns:
        ``target`` itself when no slot in use would be written. Otherwise those slots keep what they hold: out of the
        routing where every expert keeps another routed copy, in it where not. The second flip then gets further.
    """
    rows, width = max(live.max_ranks, target.max_ranks), max(live.slots_per_rank, target.slots_per_rank)
    live, target = widened(live, rows=rows, slots=width), widened(target, rows=rows, slots=width)
    in_use = live.weights > 0
    conflict = in_use & (target.slots != live.slots) & (target.slots != EMPTY)
    if not conflict.any():
        return target
    slots = np.where(conflict, live.slots, target.slots)
    weights = np.where(conflict, 0, target.weights).astype(np.uint16)
    return _covered(Placement(slots=slots, weights=weights, n_experts=live.n_experts), live, set(members))


def _covered(staged: Placement, live: Placement, members: set[Rank]) -> Placement:
    """``staged`` with one slot of each expert that it left unrouted put back into the routing."""
    weights = staged.weights.copy()
    for layer, expert in staged.missing(members):
        for rank, slot in staged.replicas(layer, expert):
            if rank in members:
                weights[layer, rank, slot] = max(int(live.weights[layer, rank, slot]), 1)
                break
    return Placement(slots=staged.slots, weights=weights, n_experts=staged.n_experts)


def violations(*, live: Placement, target: Placement) -> int:
    """Slots in use that ``target`` would overwrite: 0 for every planned flip."""
    return int(np.count_nonzero((live.weights > 0) & (target.slots != live.slots) & (target.slots != EMPTY)))
