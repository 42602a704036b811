"""Loads, topologies and references that the planner's tests share."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from controlplane.planner import RankSpec, Topology
from schemas.placement import EMPTY


def zipf(*, layers, experts, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(1 / np.arange(1, experts + 1)) for _ in range(layers)])


def lognormal(*, layers, experts, seed=0, sigma=1.0):
    return np.random.default_rng(seed).lognormal(0, sigma, (layers, experts))


def hosts_of(topology):
    return {spec.rank: spec.host for spec in topology.ranks}


def mixed(*, ranks, slots, speeds=(1.0,), ranks_per_host=2):
    """Ranks whose slots and speeds differ in turn."""
    specs = tuple(
        RankSpec(rank=r, host=f"h{r // ranks_per_host}", slots=slots[r % len(slots)], speed=speeds[r % len(speeds)])
        for r in range(ranks)
    )
    return Topology(ranks=specs, max_ranks=ranks, width=max(slots))


def routed(placement, layer, expert):
    """Ranks that have a routed copy."""
    return {
        int(rank)
        for rank, slot in np.argwhere(placement.slots[layer] == expert)
        if placement.weights[layer, rank, slot] > 0
    }


def written(before, after):
    return int(np.count_nonzero((after.slots != before.slots) & (after.slots != EMPTY)))


def orphans(live, lost):
    """(layer, expert) pairs whose copies are all on lost ranks: what a repair cannot avoid to load."""
    survivors = [r for r in range(live.max_ranks) if r not in lost]
    return [
        (layer, expert)
        for layer in range(live.n_layers)
        for expert in range(live.n_experts)
        if not (live.slots[layer, survivors] == expert).any()
    ]


def assert_sound(placement, topology):
    """No expert is missing, twice on one rank, or on a rank that may hold nothing."""
    live = [spec.rank for spec in topology.usable]
    assert placement.missing(live) == []
    for rank in range(placement.max_ranks):
        capacity = int(topology.capacity[rank])
        assert (placement.slots[:, rank, capacity:] == EMPTY).all()
        for row in placement.slots[:, rank]:
            held = row[row != EMPTY]
            assert len(np.unique(held)) == len(held)
    assert ((placement.weights > 0) <= (placement.slots != EMPTY)).all()


def best_split(placement, load, topology):
    """[layers] the least max ÷ mean that any split over the copies of this placement gives, by HiGHS.

    min t  subject to  Σ_r x_er = w_e,  Σ_e x_er ≤ t · speed_r,  x ≥ 0.
    """
    return np.array([_best_split_layer(placement, load[layer], topology, layer) for layer in range(len(load))])


def _best_split_layer(placement, load, topology, layer):
    ranks = [spec.rank for spec in topology.usable]
    row_of = {rank: index for index, rank in enumerate(ranks)}
    copies = [
        (int(placement.slots[layer, rank, slot]), row_of[rank])
        for rank in ranks
        for slot in range(placement.slots_per_rank)
        if placement.weights[layer, rank, slot] > 0
    ]
    n = len(copies)
    expert, row = np.array(copies).T
    equal = coo_matrix((np.ones(n), (expert, np.arange(n))), shape=(len(load), n + 1)).tocsr()
    speed = topology.speed[ranks]
    less = coo_matrix(
        (
            np.concatenate([np.ones(n), -speed]),
            (np.concatenate([row, np.arange(len(ranks))]), np.concatenate([np.arange(n), np.full(len(ranks), n)])),
        ),
        shape=(len(ranks), n + 1),
    ).tocsr()
    answer = linprog(
        np.append(np.zeros(n), 1.0), A_ub=less, b_ub=np.zeros(len(ranks)), A_eq=equal, b_eq=load, method="highs"
    )
    assert answer.status == 0
    return answer.fun / (load.sum() / speed.sum())
