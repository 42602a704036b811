"""What each slot really holds, worked out from the record and the acknowledgements: nothing else is ever trusted.

A slot that was to be written and whose rank has not acknowledged is uncertain, hence empty, until it is loaded again
(invariant 4: a committed expert has a loaded, verified replica).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas.placement import EMPTY, Placement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from schemas.records import Ack, EpochRecord, EpochVersion
    from schemas.vocabulary import Epoch, Rank


def prepared(version: EpochVersion, ranks: Iterable[Rank], acks: Mapping[tuple[Epoch, Rank], Ack]) -> set[Rank]:
    """Those of ``ranks`` whose process in ``version`` has loaded, verified and staged it."""
    members = {member.rank: member.incarnation for member in version.members}
    return {
        rank
        for rank in ranks
        if (ack := acks.get((version.epoch, rank))) is not None
        and ack.prepared
        and members.get(rank, ack.incarnation) == ack.incarnation
    }


def holdings(
    record: EpochRecord,
    *,
    placements: Mapping[str, Placement],
    acks: Mapping[tuple[Epoch, Rank], Ack],
) -> Placement | None:
    """What every slot of every member holds now; None before the first placement.

    ``record.held`` is where things stood when the record was written; then the version that was being loaded since
    (``preparing``, else a ``committed`` one whose loads followed its commit) counts as far as it is acknowledged.
    """
    changing = record.preparing or record.committed
    before, target = placements.get(record.held), placements.get(changing.placement)
    if target is None or not (record.preparing or record.loading):
        return before
    slots = np.full_like(target.slots, EMPTY) if before is None else before.slots.copy()
    ranks = {member.rank for member in (*record.committed.members, *changing.members)}
    ready = prepared(changing, ranks, acks)
    for rank in ranks:
        written = (target.slots[:, rank] != EMPTY) & (target.slots[:, rank] != slots[:, rank])
        done = rank in ready
        slots[:, rank] = np.where(written, target.slots[:, rank] if done else EMPTY, slots[:, rank])
        if done:
            _forget(slots[:, rank], target, rank, acks[(changing.epoch, rank)].missing)
    return as_holdings(slots, target.n_experts)


def _forget(row: npt.NDArray[np.uint16], target: Placement, rank: Rank, missing: Iterable[tuple[int, int]]) -> None:
    """Slots that no source could fill hold nothing, although the rank is prepared otherwise."""
    for layer, expert in missing:
        row[layer, target.slots[layer, rank] == expert] = EMPTY


def as_holdings(slots: npt.NDArray[np.uint16], experts: int) -> Placement:
    """A placement that says what is held; its weights only mark what is not empty."""
    return Placement(slots=slots, weights=np.where(slots == EMPTY, 0, 1).astype(np.uint16), n_experts=experts)


def only(held: Placement, ranks: Iterable[Rank]) -> Placement:
    """``held`` without every other rank: the dead hold nothing, and neither does a new process in a used rank."""
    kept = list(ranks)
    slots = np.full_like(held.slots, EMPTY)
    slots[:, kept] = held.slots[:, kept]
    return as_holdings(slots, held.n_experts)


def without(placement: Placement, rank: Rank) -> Placement:
    """``placement`` without one rank; the weights of the others stay, so their proportions do."""
    slots, weights = placement.slots.copy(), placement.weights.copy()
    slots[:, rank], weights[:, rank] = EMPTY, 0
    return Placement(slots=slots, weights=weights, n_experts=placement.n_experts)


def routed(held: Placement, live: Placement | None) -> Placement:
    """``held`` with weight 0 where the live table does not use a slot: that may be written without a flip before."""
    if live is None:
        return held
    weights = np.zeros_like(held.weights)
    rows, slots = min(held.max_ranks, live.max_ranks), min(held.slots_per_rank, live.slots_per_rank)
    used = live.weights[:, :rows, :slots] > 0
    same = held.slots[:, :rows, :slots] == live.slots[:, :rows, :slots]
    weights[:, :rows, :slots] = np.where(used & same, live.weights[:, :rows, :slots], 0)
    return Placement(slots=held.slots, weights=weights, n_experts=held.n_experts)


def widened(placement: Placement, *, rows: int, slots: int) -> Placement:
    """The same placement with at least ``rows`` ranks and ``slots`` slots, the new ones empty."""
    if placement.max_ranks >= rows and placement.slots_per_rank >= slots:
        return placement
    shape = (placement.n_layers, max(rows, placement.max_ranks), max(slots, placement.slots_per_rank))
    table, weights = np.full(shape, EMPTY, dtype=np.uint16), np.zeros(shape, dtype=np.uint16)
    table[:, : placement.max_ranks, : placement.slots_per_rank] = placement.slots
    weights[:, : placement.max_ranks, : placement.slots_per_rank] = placement.weights
    return Placement(slots=table, weights=weights, n_experts=placement.n_experts)
