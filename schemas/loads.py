"""What each rank has to load for an epoch, and from where: one pure function that leader, agents and tests share.

Nothing of this stands in etcd: the record names two placements (what slots hold, what they shall hold), and the
difference is the work. Two ranks that read the same record therefore never disagree about who gives what to whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas.messages import Load, Source
from schemas.placement import EMPTY
from schemas.vocabulary import SourceTier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from schemas.placement import Placement
    from schemas.records import Backup, EpochRecord, Registration
    from schemas.vocabulary import Expert, Layer, Rank


def to_fill(*, target: Placement, held: Placement | None, rank: Rank) -> npt.NDArray[np.intp]:
    """[n, 2] (layer, slot) pairs of ``rank`` that ``target`` wants filled and that do not hold it yet."""
    if rank >= target.max_ranks:
        return np.empty((0, 2), dtype=np.intp)
    wanted = target.slots[:, rank]
    filled = wanted != EMPTY
    if held is not None and rank < held.max_ranks:
        width = min(wanted.shape[1], held.slots_per_rank)
        filled[:, :width] &= wanted[:, :width] != held.slots[:, rank, :width]
    return np.argwhere(filled)


def loads_for(
    rank: Rank,
    *,
    record: EpochRecord,
    target: Placement,
    held: Placement | None,
    registrations: Mapping[Rank, Registration],
    backups: Iterable[Backup] = (),
) -> tuple[Load, ...]:
    """Slots that ``rank`` must fill for the record's ``preparing`` version, or for ``committed`` when nothing prepares.

    Args:
        rank: whose slots.
        record: the epoch record; its members (of both versions) are the ranks that can give weights.
        target: the placement of that version.
        held: the placement named by ``record.held``, None when it names none.
        registrations: where ranks are; ``checkpoint`` says who can read it from disk.
        backups: what the hosts' memory tiers keep.

    Returns:
        Loads in (layer, slot) order. Sources are in the order to try; among equals the first choice rotates with the
        slot, so that one holder does not feed everybody. A load without any source is listed with none.
    """
    slots = to_fill(target=target, held=held, rank=rank)
    if not slots.size:
        return ()
    me = registrations.get(rank)
    host = me.host if me else ""
    givers = _givers(record=record, target=target, held=held, rank=rank)
    kept = [(backup, frozenset(backup.experts)) for backup in sorted(backups, key=lambda b: (b.host != host, b.rank))]
    loads = []
    for layer, slot in slots.tolist():
        expert = int(target.slots[layer, rank, slot])
        sources = _peers(givers, layer, expert, rank=rank, turn=slot + layer, registrations=registrations, host=host)
        sources += [
            Source(tier=SourceTier.HOST_BACKUP, rank=backup.rank, address=backup.address)
            for backup, experts in kept
            if (layer, expert) in experts
        ]
        if me and me.checkpoint:
            sources.append(Source(tier=SourceTier.CHECKPOINT))
        loads.append(Load(layer=layer, slot=slot, expert=expert, sources=tuple(sources)))
    return tuple(loads)


def _givers(
    *, record: EpochRecord, target: Placement, held: Placement | None, rank: Rank
) -> dict[tuple[Layer, Expert], list[tuple[Rank, int]]]:
    """(rank, slot) pairs by (layer, expert) that hold it now and are not written on the way to ``target``."""
    givers: dict[tuple[Layer, Expert], list[tuple[Rank, int]]] = {}
    if held is None:
        return givers
    versions = (record.committed, record.preparing) if record.preparing else (record.committed,)
    named = {member.rank for version in versions for member in version.members} | {rank}
    ranks = sorted(giver for giver in named if giver < min(held.max_ranks, target.max_ranks))
    # Only experts this rank needs: at 58 layers × 512 slots the whole table would take longer than the transfer.
    wanted = to_fill(target=target, held=held, rank=rank)
    for layer in np.unique(wanted[:, 0]).tolist():
        experts = np.unique(target.slots[layer, rank, wanted[wanted[:, 0] == layer, 1]])
        width = min(held.slots_per_rank, target.slots_per_rank)
        there, goal = held.slots[layer, ranks, :width], target.slots[layer, ranks, :width]
        stays = np.isin(there, experts) & ((goal == there) | (goal == EMPTY))
        for index, slot in np.argwhere(stays).tolist():
            givers.setdefault((layer, int(there[index, slot])), []).append((ranks[index], slot))
    return givers


def _peers(
    givers: dict[tuple[Layer, Expert], list[tuple[Rank, int]]],
    layer: Layer,
    expert: Expert,
    *,
    rank: Rank,
    turn: int,
    registrations: Mapping[Rank, Registration],
    host: str,
) -> list[Source]:
    by_tier: dict[SourceTier, list[Source]] = {}
    for giver, slot in givers.get((layer, expert), ()):
        there = registrations.get(giver)
        if giver != rank and there is None:
            continue  # its lease is gone: asking it would only cost a time-out
        tier = (
            SourceTier.SAME_RANK
            if giver == rank
            else SourceTier.HOST_PEER
            if there and there.host == host
            else SourceTier.REMOTE_PEER
        )
        source = Source(tier=tier, rank=giver, slot=slot, address=there.link_address if there else "")
        by_tier.setdefault(tier, []).append(source)
    ordered = []
    for tier in (SourceTier.SAME_RANK, SourceTier.HOST_PEER, SourceTier.REMOTE_PEER):
        sources = by_tier.get(tier, [])
        first = turn % len(sources) if sources else 0
        ordered += sources[first:] + sources[:first]
    return ordered
