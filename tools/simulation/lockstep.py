"""Who waits for whom in simulated lockstep: a slow rank shows as a column of the matrix, and so does a busy one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas.placement import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from schemas.placement import Placement
    from schemas.vocabulary import Rank
    from tools.simulation.engines import Engine


def finishing(group: Iterable[Engine], placement: Placement) -> dict[Rank, float]:
    """When each rank has done its part of a step, in parts of a step of equal ranks.

    A rank's attention is its own and grows with its requests; its experts' work follows from the table.
    """
    ranks = {engine.rank: engine for engine in group}
    experts = traffic(placement)
    mean = sum(experts[rank] for rank in ranks) / len(ranks) or 1.0
    return {
        rank: (engine.attention * engine.requests / REQUESTS + (1 - engine.attention) * experts[rank] / mean)
        / engine.speed
        for rank, engine in ranks.items()
    }


REQUESTS = 4
"""Requests that a rank generates for, when it is not busy."""


def waits(rank: Rank, finished: Mapping[Rank, float]) -> tuple[float, ...]:
    """Part of the time that ``rank`` waits for each rank's rows."""
    longest = max(finished.values())
    row = [0.0] * (max(finished) + 1)
    for peer, at in finished.items():
        row[peer] = max(at - finished[rank], 0.0) / longest
    return tuple(row)


def traffic(placement: Placement) -> list[float]:
    """Experts' work of each rank when every expert is as popular as the others."""
    total = np.zeros(placement.max_ranks)
    for slots, weights in zip(placement.slots, placement.weights.astype(float), strict=True):
        routed = np.where(slots == EMPTY, 0.0, weights)
        experts = np.minimum(slots, placement.n_experts - 1)
        per_expert = np.bincount(experts.ravel(), weights=routed.ravel(), minlength=placement.n_experts)
        total += np.divide(routed, per_expert[experts], out=np.zeros_like(routed), where=routed > 0).sum(axis=1)
    return [float(part) for part in total]
